//! How good a head is, by what it was trained for. Every figure is defined as scikit-learn defines it (the function is named
//! beside it); `tools/check_metrics.py` compares all of them.

mod calibration;
mod multi_label;
mod regression;
mod single_label;
mod table;

use serde::{Deserialize, Serialize};

pub use calibration::{Bin, N_BINS, Reliability, Temperature};
pub use multi_label::{LabelMetrics, MultiLabelMetrics};
pub(crate) use multi_label::{sigmoid, softplus};
pub use regression::{OutputMetrics, RegressionMetrics};
pub use single_label::{ClassMetrics, Judged, Metrics};
pub use table::{classification_report, multi_label_report, regression_report};

use crate::error::Error;
use crate::targets::{Targets, Task};

/// The marks of a head on some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub enum Marks {
    /// One class of several.
    SingleLabel(Metrics),
    /// Each class by itself.
    MultiLabel(MultiLabelMetrics),
    /// Numbers.
    Regression(RegressionMetrics),
}

/// Precision, recall and F1, averaged over classes or rows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Average {
    /// Right among what was predicted.
    pub precision: f64,
    /// Right among what is there.
    pub recall: f64,
    /// Harmonic mean of both, of each before the average.
    pub f1: f64,
}

impl Marks {
    /// Marks `logits` `[N, C]` against what is wanted of the N rows. Unlike a trainer, it takes rows of one class only.
    ///
    /// # Errors
    /// [`Error::Features`] where counts disagree, a label is beyond the outputs, or the targets are not the task's; the row
    /// is named.
    pub fn new(task: Task, logits: &[f32], targets: &Targets, outputs: &[String]) -> Result<Marks, Error> {
        check(task, logits, targets, outputs.len())?;
        Ok(match (task, targets) {
            (Task::SingleLabel, Targets::Classes(labels)) => {
                Marks::SingleLabel(Metrics::new(logits, labels, outputs))
            }
            (Task::MultiLabel, Targets::Dense { values, .. }) => {
                Marks::MultiLabel(MultiLabelMetrics::new(logits, values, outputs))
            }
            (Task::Regression, Targets::Dense { values, .. }) => {
                Marks::Regression(RegressionMetrics::new(logits, values, outputs))
            }
            _ => {
                return Err(Error::Features(
                    "the targets are not those of the task".to_owned(),
                ));
            }
        })
    }

    /// N.
    pub fn n(&self) -> usize {
        match self {
            Marks::SingleLabel(marks) => marks.n,
            Marks::MultiLabel(marks) => marks.n,
            Marks::Regression(marks) => marks.n,
        }
    }

    /// The one figure that two heads are compared by, with its name; the larger the better.
    pub fn headline(&self) -> (&'static str, f64) {
        match self {
            Marks::SingleLabel(marks) => ("accuracy", marks.accuracy),
            Marks::MultiLabel(marks) => ("mean average precision", marks.mean_average_precision),
            Marks::Regression(marks) => ("R²", marks.r2),
        }
    }

    /// The table that scikit-learn's `classification_report` prints, with `digits` decimals; of a regression, one like it.
    pub fn table(&self, digits: usize) -> String {
        match self {
            Marks::SingleLabel(marks) => classification_report(marks, digits),
            Marks::MultiLabel(marks) => multi_label_report(marks, digits),
            Marks::Regression(marks) => regression_report(marks, digits),
        }
    }
}

/// Whether logits and targets belong together.
fn check(task: Task, logits: &[f32], targets: &Targets, n_outputs: usize) -> Result<(), Error> {
    let wrong = |text: String| Err(Error::Features(text));
    if n_outputs == 0 || logits.len() != targets.len() * n_outputs {
        return wrong(format!(
            "{} logits for {} rows of {n_outputs} outputs",
            logits.len(),
            targets.len()
        ));
    }
    if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
        return wrong(format!(
            "the head gives {} for row {}",
            logits[at],
            at / n_outputs
        ));
    }
    targets.fits(task, targets.len(), n_outputs)
}

/// `part / whole`, zero where there is nothing, as scikit-learn's `zero_division=0`.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl Average {
    /// From what was right, what was predicted, and what is there.
    fn of(right: usize, predicted: usize, support: usize) -> Average {
        Average {
            precision: ratio(right, predicted),
            recall: ratio(right, support),
            f1: ratio(2 * right, predicted + support),
        }
    }

    /// The mean of some with their weights; zero where the weights are.
    fn mean(parts: impl Iterator<Item = (Average, f64)>) -> Average {
        let mut sum = Average::default();
        let mut total = 0.0;
        for (part, weight) in parts {
            sum.precision += weight * part.precision;
            sum.recall += weight * part.recall;
            sum.f1 += weight * part.f1;
            total += weight;
        }
        let total = if total == 0.0 { 1.0 } else { total };
        Average {
            precision: sum.precision / total,
            recall: sum.recall / total,
            f1: sum.f1 / total,
        }
    }
}

#[cfg(test)]
mod tests;
