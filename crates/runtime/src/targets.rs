//! What a head is to say of each row.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What a head's outputs mean, and with that the loss that it is trained by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class of several: softmax, `torch.nn.CrossEntropyLoss`.
    SingleLabel,
    /// Each class by itself: sigmoid, `torch.nn.BCEWithLogitsLoss`.
    MultiLabel,
    /// Numbers: `torch.nn.MSELoss`.
    Regression,
}

/// What is wanted of N rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// `[N]`, a class of each.
    Classes(Vec<u32>),
    /// `[N, K]` row-major: zeros and ones for several labels, any finite numbers for a regression.
    Dense {
        /// Row-major.
        values: Vec<f32>,
        /// K.
        n_outputs: usize,
    },
}

impl Targets {
    /// `[N, K]` numbers.
    ///
    /// # Errors
    /// [`Error::Features`] where they make no whole rows or one is not finite; the first such row is named.
    pub fn dense(values: Vec<f32>, n_outputs: usize) -> Result<Targets, Error> {
        if n_outputs == 0 || !values.len().is_multiple_of(n_outputs) {
            let text = format!("{} targets do not make rows of {n_outputs}", values.len());
            return Err(Error::Features(text));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let text = format!("the target of row {} is {}", at / n_outputs, values[at]);
            return Err(Error::Features(text));
        }
        Ok(Targets::Dense { values, n_outputs })
    }

    /// N.
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(labels) => labels.len(),
            Targets::Dense { values, n_outputs } => values.len() / n_outputs,
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes, where each row has one.
    pub fn classes(&self) -> Option<&[u32]> {
        match self {
            Targets::Classes(labels) => Some(labels),
            Targets::Dense { .. } => None,
        }
    }

    /// The targets of these rows, in this order.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn select(&self, rows: &[usize]) -> Targets {
        match self {
            Targets::Classes(labels) => Targets::Classes(rows.iter().map(|&row| labels[row]).collect()),
            Targets::Dense { values, n_outputs } => {
                let k = *n_outputs;
                let of_rows = rows.iter().flat_map(|&row| &values[row * k..(row + 1) * k]);
                Targets::Dense {
                    values: of_rows.copied().collect(),
                    n_outputs: k,
                }
            }
        }
    }

    /// Whether a head of `n_outputs` can be trained by them for `task`.
    ///
    /// # Errors
    /// As [`Targets::fits`]; [`Error::Features`] where all rows are of one class.
    pub fn check(&self, task: Task, n_rows: usize, n_outputs: usize) -> Result<(), Error> {
        self.fits(task, n_rows, n_outputs)?;
        match self {
            Targets::Classes(labels) if n_outputs < 2 || labels.windows(2).all(|two| two[0] == two[1]) => {
                let text = "all rows are of one class; a classifier needs at least two";
                Err(Error::Features(text.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a head of `n_outputs` can be judged by them for `task`.
    ///
    /// # Errors
    /// [`Error::Features`]: counts that disagree, a label beyond the classes, a row that is neither 0 nor 1 for several
    /// labels, targets of another task. The row is named.
    pub fn fits(&self, task: Task, n_rows: usize, n_outputs: usize) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Features(text));
        if self.len() != n_rows {
            return wrong(format!("{n_rows} rows and {} labels", self.len()));
        }
        match (self, task) {
            (Targets::Classes(labels), Task::SingleLabel) => {
                if let Some(row) = labels.iter().position(|label| *label as usize >= n_outputs) {
                    let label = labels[row];
                    return wrong(format!(
                        "row {row} has label {label}, and there are {n_outputs} classes"
                    ));
                }
            }
            (Targets::Dense { values, n_outputs: k }, Task::MultiLabel | Task::Regression) => {
                if *k != n_outputs {
                    return wrong(format!(
                        "the targets have {k} numbers a row, and the head {n_outputs} outputs"
                    ));
                }
                let is_label = |value: &f32| *value == 0.0 || *value == 1.0;
                if task == Task::MultiLabel
                    && let Some(at) = values.iter().position(|value| !is_label(value))
                {
                    let (row, value) = (at / k, values[at]);
                    return wrong(format!(
                        "row {row} has the label {value}, which is neither 0 nor 1"
                    ));
                }
            }
            (Targets::Classes(_), Task::MultiLabel | Task::Regression) => {
                return wrong("each row has one class, and this task takes rows of numbers".to_owned());
            }
            (Targets::Dense { .. }, Task::SingleLabel) => {
                return wrong("the rows have several targets, and this task takes one class each".to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_trained_is_named() {
        let message = |targets: &Targets, task, n_rows, k| match targets.check(task, n_rows, k) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        let classes = Targets::Classes(vec![0, 2, 1]);
        assert_eq!(message(&classes, Task::SingleLabel, 3, 3), "fine");
        assert!(message(&classes, Task::SingleLabel, 4, 3).contains("4 rows and 3 labels"));
        assert!(message(&classes, Task::SingleLabel, 3, 2).contains("row 1 has label 2"));
        assert!(message(&Targets::Classes(vec![1; 3]), Task::SingleLabel, 3, 2).contains("one class"));
        assert!(message(&classes, Task::Regression, 3, 3).contains("rows of numbers"));
        let dense = Targets::dense(vec![0.0, 1.0, 1.0, 0.5], 2).unwrap();
        assert_eq!(message(&dense, Task::Regression, 2, 2), "fine");
        assert!(message(&dense, Task::MultiLabel, 2, 2).contains("row 1 has the label 0.5"));
        assert!(message(&dense, Task::Regression, 2, 3).contains("2 numbers a row"));
        assert!(
            Targets::dense(vec![0.0, f32::NAN], 1)
                .unwrap_err()
                .to_string()
                .contains("row 1")
        );
        assert_eq!(dense.select(&[1]), Targets::dense(vec![1.0, 0.5], 2).unwrap());
    }
}
