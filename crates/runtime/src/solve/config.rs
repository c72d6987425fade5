//! What is fitted, and how well.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::targets::{Targets, Task};

/// How much each class counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// All rows alike.
    #[default]
    None,
    /// Each class as much as any other: scikit-learn's `class_weight="balanced"`, `N / (classes · rows of the class)`;
    /// with several labels that of every label by itself, its presence against its absence.
    Balanced,
    /// `[C]`. One class a row: the `weight` of `torch.nn.CrossEntropyLoss`, and without label smoothing scikit-learn's
    /// `class_weight`. Several labels: the `pos_weight` of `torch.nn.BCEWithLogitsLoss`.
    Given(Vec<f64>),
}

/// What a linear head is fitted to.
///
/// The objective is scikit-learn's, `C · Σ loss + ½ ‖W‖²` with the bias free. The loss of a row is, by task:
/// cross-entropy of the softmax (for two classes of one vector `w`, as scikit-learn has it), the sum of the binary
/// cross-entropies of the outputs, or the squared error summed over the outputs. The last is
/// `sklearn.linear_model.Ridge` with `alpha = 1 / (2 C)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SolverConfig {
    /// The loss.
    pub task: Task,
    /// How much each class counts; not for a regression.
    pub class_weights: ClassWeights,
    /// In `0..1`: as `torch.nn.CrossEntropyLoss(label_smoothing)`, or `y (1 - s) + s / 2` with several labels; not for
    /// a regression.
    pub label_smoothing: f64,
    /// Whether the penalty acts on the weights of features of mean 0 and variance 1, as in scikit-learn's
    /// `make_pipeline(StandardScaler(), …)`. The head that comes out applies to the features as given.
    pub standardise: bool,
    /// When to stop: the distance of the objective to its minimum over the objective, as half the Newton decrement
    /// estimates it.
    pub relative_gap: f64,
    /// Passes over the data for one C, at most.
    pub max_passes: usize,
}

impl SolverConfig {
    /// No weights, no smoothing, the features as they are, to the last digits that float32 weights show.
    pub fn new(task: Task) -> SolverConfig {
        SolverConfig {
            task,
            class_weights: ClassWeights::None,
            label_smoothing: 0.0,
            standardise: false,
            relative_gap: 1e-8,
            max_passes: 1000,
        }
    }

    /// # Errors
    /// [`Error::Usage`] for a number out of its range, [`Error::Features`] for targets that do not fit.
    pub(super) fn check(&self, targets: &Targets, n_rows: usize, n_outputs: usize) -> Result<(), Error> {
        let usage = |text: String| Err(Error::Usage(text));
        targets.check(self.task, n_rows, n_outputs)?;
        if n_rows == 0 {
            return Err(Error::Features("there are no rows to fit a head on".to_owned()));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return usage(format!(
                "label smoothing is {}, not in 0..1",
                self.label_smoothing
            ));
        }
        if self.relative_gap.is_nan() || self.relative_gap <= 0.0 {
            return usage(format!("the relative gap is {}, not above 0", self.relative_gap));
        }
        if self.task == Task::Regression
            && (self.class_weights != ClassWeights::None || self.label_smoothing != 0.0)
        {
            return usage("a regression has no classes to weight or to smooth".to_owned());
        }
        if let ClassWeights::Given(weights) = &self.class_weights {
            if weights.len() != n_outputs {
                let given = weights.len();
                return usage(format!(
                    "{given} class weights are given, and there are {n_outputs} classes"
                ));
            }
            let counts = |w: f64| (w as f32) > 0.0 && (w as f32).is_finite();
            if let Some(class) = weights.iter().position(|w| !counts(*w)) {
                return usage(format!(
                    "the weight of class {class} is {}, not a positive number within float32's range",
                    weights[class]
                ));
            }
        }
        Ok(())
    }
}

/// Whether `c` can be a regularisation strength.
///
/// # Errors
/// [`Error::Usage`].
pub(super) fn check_c(c: f64) -> Result<(), Error> {
    if c > 0.0 && c.is_finite() {
        return Ok(());
    }
    Err(Error::Usage(format!("C = {c} is not a positive number")))
}
