//! How a head is trained: everything that its numbers depend on beside the features and the targets.
//!
//! Names and meanings are PyTorch's, so that a training script can be copied line by line.

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::error::Error;
use crate::solve::ClassWeights;
use crate::targets::Task;

/// Settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// What the outputs mean, and with that the loss.
    pub task: Task,
    /// Widths of the hidden layers; none makes a linear head.
    pub hidden: Vec<usize>,
    /// After each hidden layer and its norm.
    pub activation: Activation,
    /// Between each hidden layer and its activation.
    pub norm: Norm,
    /// The probability that an output of a hidden layer is dropped in training, `torch.nn.Dropout`.
    pub dropout: f32,
    /// How much of each target goes to all classes alike, `CrossEntropyLoss(label_smoothing=…)`; for several labels the
    /// targets 0 and 1 become `ε/2` and `1 - ε/2`.
    pub label_smoothing: f32,
    /// What a class counts, `CrossEntropyLoss(weight=…)` and `BCEWithLogitsLoss(pos_weight=…)`; not for a regression.
    pub class_weights: ClassWeights,
    /// The rule of an update.
    pub optimiser: Optimiser,
    /// Learning rate before the schedule.
    pub lr: f64,
    /// Weight decay: part of the gradient, but for [`Optimiser::AdamW`].
    pub weight_decay: f64,
    /// Learning rate and momentum over time.
    pub schedule: Schedule,
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Whether the last batch of an epoch is left out where it is not full.
    pub drop_last: bool,
    /// The largest 2-norm of the gradient of all parameters, `torch.nn.utils.clip_grad_norm_`.
    pub clip_norm: Option<f64>,
    /// α of mixup (Zhang et al. 2018): λ ~ Beta(α, α), rows of a batch mixed with those of a permutation of it.
    pub mixup: Option<f64>,
    /// Standard deviation of the Gaussian noise that is added to the features (in their own unit, or in standard deviations
    /// of each feature with [`standardise`](TrainerConfig::standardise)).
    pub noise: f32,
    /// Whether the features are brought to mean 0 and variance 1 first; the head that is returned takes them as given.
    pub standardise: bool,
    /// When to stop before the last epoch.
    pub early_stopping: Option<EarlyStopping>,
    /// Which epoch's weights are the best.
    pub best: Best,
    /// Decay of the moving average of the weights, `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`.
    pub ema: Option<f64>,
    /// How the weights begin.
    pub init: Init,
    /// Of the order of the rows, dropout, mixup and noise.
    pub seed: u64,
    /// Of the first weights.
    pub init_seed: u64,
}

/// `torch.nn.ReLU` or `torch.nn.GELU` (with the error function).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x · Φ(x)`.
    Gelu,
}

/// What is normalised between a hidden layer and its activation, with torch's defaults: ε 1e-5, momentum 0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Nothing.
    None,
    /// `torch.nn.BatchNorm1d`.
    Batch,
    /// `torch.nn.LayerNorm`.
    Layer,
}

/// `torch.optim`'s rules of an update, without `amsgrad` and `maximize`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Optimiser {
    /// `torch.optim.SGD`.
    Sgd {
        /// Of the buffer; without one at 0.
        momentum: f64,
        /// Of each gradient after the first.
        dampening: f64,
        /// Nesterov's momentum.
        nesterov: bool,
    },
    /// `torch.optim.Adam`: weight decay is part of the gradient.
    Adam {
        /// Decays of the two moments.
        betas: (f64, f64),
        /// Added to the root of the second.
        eps: f64,
    },
    /// `torch.optim.AdamW`: weights decay by themselves.
    AdamW {
        /// Decays of the two moments.
        betas: (f64, f64),
        /// Added to the root of the second.
        eps: f64,
    },
}

/// Stops once the validation loss (without validation rows the training loss) has not fallen for a while.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without progress that are borne.
    pub patience: usize,
    /// What counts as progress.
    pub min_delta: f64,
}

/// Which epoch's weights are kept as the best; the earliest of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Best {
    /// The highest accuracy on the validation rows; for a regression the lowest loss.
    Accuracy,
    /// The lowest loss on the validation rows.
    Loss,
    /// The last.
    Last,
}

/// How weights begin; biases as said, norms at 1 and 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Init {
    /// `torch.nn.Linear`'s: weights and biases uniform in `±1/√(inputs)`.
    Uniform,
    /// Weights normal around zero, biases zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// All zero; for linear heads.
    Zeros,
}

impl TrainerConfig {
    /// The transfer-learning notebook's: SGD with lr 0.001 and momentum 0.9, StepLR(7, 0.1), 25 epochs, batches of 4, best
    /// by validation accuracy.
    pub fn notebook(task: Task) -> TrainerConfig {
        TrainerConfig {
            task,
            hidden: Vec::new(),
            activation: Activation::Relu,
            norm: Norm::None,
            dropout: 0.0,
            label_smoothing: 0.0,
            class_weights: ClassWeights::None,
            optimiser: Optimiser::sgd(0.9),
            lr: 1e-3,
            weight_decay: 0.0,
            schedule: Schedule::step(7, 0.1),
            epochs: 25,
            batch_size: 4,
            drop_last: false,
            clip_norm: None,
            mixup: None,
            noise: 0.0,
            standardise: false,
            early_stopping: None,
            best: Best::Accuracy,
            ema: None,
            init: Init::Uniform,
            seed: 0,
            init_seed: 0,
        }
    }

    /// Whether it can be followed.
    ///
    /// # Errors
    /// [`Error::Usage`] names the setting.
    pub fn check(&self, n_outputs: usize) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Usage(text));
        if self.epochs == 0 || self.batch_size == 0 {
            return wrong("epochs and batch size begin at 1".to_owned());
        }
        // On a GPU four bits of the counter that dropout draws by say which layer it is.
        if self.hidden.len() > 16 {
            return wrong(format!("{} hidden layers; there can be 16", self.hidden.len()));
        }
        if self.hidden.contains(&0) {
            return wrong("a hidden layer has at least one output".to_owned());
        }
        if !self.hidden.is_empty() && self.init == Init::Zeros {
            return wrong("hidden layers that begin at zero do not learn; take another init".to_owned());
        }
        let shares = [
            ("dropout", f64::from(self.dropout)),
            ("ema", self.ema.unwrap_or(0.0)),
        ];
        for (name, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return wrong(format!("{name} = {value} is not in [0, 1)"));
            }
        }
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return wrong(format!(
                "label smoothing = {} is not in [0, 1]",
                self.label_smoothing
            ));
        }
        let least_zero = [
            ("lr", self.lr),
            ("weight decay", self.weight_decay),
            ("noise", f64::from(self.noise)),
        ];
        for (name, value) in least_zero {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(format!("{name} = {value} is not a number from 0 on"));
            }
        }
        for (name, value) in [("clip norm", self.clip_norm), ("mixup", self.mixup)] {
            if let Some(value) = value
                && !(value > 0.0 && value.is_finite())
            {
                return wrong(format!("{name} = {value} is not a positive number"));
            }
        }
        self.optimiser.check()?;
        self.schedule.check(self.epochs)?;
        match &self.class_weights {
            ClassWeights::Given(weights) if weights.len() != n_outputs => {
                return wrong(format!("{} class weights for {n_outputs} classes", weights.len()));
            }
            ClassWeights::Given(weights) if weights.iter().any(|w| !(*w >= 0.0 && w.is_finite())) => {
                return wrong("a class weight is a number from 0 on".to_owned());
            }
            ClassWeights::Given(_) | ClassWeights::Balanced if self.task == Task::Regression => {
                return wrong("a regression has no classes to weigh".to_owned());
            }
            _ => {}
        }
        if self.task == Task::Regression && self.label_smoothing > 0.0 {
            return wrong("a regression has no labels to smooth".to_owned());
        }
        Ok(())
    }
}

impl Optimiser {
    /// Stochastic gradient descent with momentum.
    pub fn sgd(momentum: f64) -> Optimiser {
        Optimiser::Sgd {
            momentum,
            dampening: 0.0,
            nesterov: false,
        }
    }

    /// AdamW with torch's defaults.
    pub fn adamw() -> Optimiser {
        Optimiser::AdamW {
            betas: (0.9, 0.999),
            eps: 1e-8,
        }
    }

    /// Numbers that it keeps beside each weight.
    pub(crate) fn n_moments(&self) -> usize {
        match self {
            Optimiser::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Optimiser::Adam { .. } | Optimiser::AdamW { .. } => 2,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Usage(text));
        match *self {
            Optimiser::Sgd {
                momentum,
                dampening,
                nesterov,
            } => {
                if !(momentum >= 0.0 && momentum.is_finite() && dampening.is_finite()) {
                    return wrong(format!("momentum = {momentum} is not a number from 0 on"));
                }
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    return wrong("Nesterov's momentum needs a momentum and no dampening".to_owned());
                }
            }
            Optimiser::Adam { betas, eps } | Optimiser::AdamW { betas, eps } => {
                if ![betas.0, betas.1].iter().all(|beta| (0.0..1.0).contains(beta)) {
                    return wrong(format!("betas = {betas:?} are not in [0, 1)"));
                }
                if !(eps > 0.0 && eps.is_finite()) {
                    return wrong(format!("eps = {eps} is not a positive number"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_rejects(change: impl Fn(&mut TrainerConfig), message: &str) {
        let mut config = TrainerConfig::notebook(Task::SingleLabel);
        config.check(3).unwrap();
        change(&mut config);
        let error = config.check(3).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_followed_are_named() {
        check_rejects(|c| c.epochs = 0, "epochs and batch size begin at 1");
        check_rejects(|c| c.hidden = vec![4, 0], "at least one output");
        check_rejects(
            |c| (c.hidden, c.init) = (vec![4], Init::Zeros),
            "begin at zero do not learn",
        );
        check_rejects(|c| c.dropout = 1.0, "dropout = 1 is not in [0, 1)");
        check_rejects(|c| c.ema = Some(1.0), "ema = 1 is not in [0, 1)");
        check_rejects(|c| c.label_smoothing = 1.5, "label smoothing = 1.5");
        check_rejects(|c| c.lr = f64::NAN, "lr = NaN");
        check_rejects(|c| c.weight_decay = -1.0, "weight decay = -1");
        check_rejects(|c| c.noise = -1.0, "noise = -1");
        check_rejects(|c| c.clip_norm = Some(0.0), "clip norm = 0");
        check_rejects(|c| c.mixup = Some(-0.2), "mixup = -0.2");
        check_rejects(
            |c| c.class_weights = ClassWeights::Given(vec![1.0]),
            "1 class weights for 3",
        );
        check_rejects(
            |c| c.class_weights = ClassWeights::Given(vec![1.0, -1.0, 1.0]),
            "a class weight is",
        );
        check_rejects(
            |c| (c.task, c.class_weights) = (Task::Regression, ClassWeights::Given(vec![1.0; 3])),
            "no classes to weigh",
        );
        check_rejects(
            |c| (c.task, c.label_smoothing) = (Task::Regression, 0.1),
            "no labels to smooth",
        );
        check_rejects(|c| c.optimiser = Optimiser::sgd(-0.5), "momentum = -0.5");
        check_rejects(
            |c| {
                c.optimiser = Optimiser::Sgd {
                    momentum: 0.0,
                    dampening: 0.0,
                    nesterov: true,
                }
            },
            "Nesterov's momentum needs",
        );
        check_rejects(
            |c| {
                c.optimiser = Optimiser::Adam {
                    betas: (0.9, 1.0),
                    eps: 1e-8,
                }
            },
            "betas = (0.9, 1.0)",
        );
        check_rejects(|c| c.schedule = Schedule::step(0, 0.1), "step size");
    }

    #[test]
    fn settings_survive_json() {
        let mut config = TrainerConfig::notebook(Task::MultiLabel);
        config.optimiser = Optimiser::adamw();
        config.class_weights = ClassWeights::Given(vec![1.0, 2.5]);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TrainerConfig>(&text).unwrap(), config);
    }
}
