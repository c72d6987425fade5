//! What is trained of a network, at which rates, and when: everything beside the steps themselves.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;
use crate::targets::Task;
use crate::train::{Init, Norm, TrainerConfig};

/// Settings of a fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TuneConfig {
    /// Patterns of the parameters that may be trained, words of surgery's pattern language; what stands behind a word
    /// `except` is not. Empty where [`groups`](TuneConfig::groups) says it.
    pub train: Vec<String>,
    /// Patterns of ordered groups, the first is the one next to the output. Without any, all parameters are one group.
    pub groups: Vec<Vec<String>>,
    /// How the groups' learning rates follow from that of the settings.
    pub rates: Rates,
    /// When groups begin to train.
    pub unfreeze: Unfreeze,
    /// Patterns of the parameters that begin as torch's layers would draw them, instead of at the network's values.
    pub fresh: Vec<String>,
    /// What batch normalisations do in training.
    pub batch_norm: NormPolicy,
    /// Whether the classifier begins as the solver fits it on the frozen features.
    pub head_first: bool,
    /// A checkpoint of which what fits is put into the network first, `load_state_dict(strict=False)`.
    #[serde(serialize_with = "as_text")]
    pub load: Option<PathBuf>,
    /// Losses, updates and schedules.
    pub trainer: TrainerConfig,
}

/// A path that is no Unicode is text all the same.
fn as_text<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref()
        .map(|path| path.to_string_lossy())
        .serialize(serializer)
}

/// Learning rates of groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum Rates {
    /// Each group's is the one above it divided by this: 2.6 in ULMFiT (Howard and Ruder 2018); the inverse of a layer
    /// decay. 1 makes all the same.
    Divided(f64),
    /// One for each group, the first is the top's.
    Given(Vec<f64>),
}

/// When groups of parameters begin to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unfreeze {
    /// All from the first step on.
    AtOnce,
    /// The next one when the validation rows get no better, as long as early stopping's patience says; when none is left
    /// that ends the run.
    OnPlateau,
    /// One more with each epoch (ULMFiT).
    EachEpoch,
}

/// What batch normalisations do in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPolicy {
    /// Those whose scale or shift trains use the batch's statistics, the others their running ones.
    Auto,
    /// All use their running statistics, as `eval()` has it.
    Frozen,
    /// All behind the boundary use the batch's, as `train()` has it.
    Batch,
}

impl TuneConfig {
    /// Whether it can be followed, as far as that shows without the network.
    ///
    /// # Errors
    /// [`Error::Usage`] names the setting.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |text: &str| Err(Error::Usage(text.to_owned()));
        let trainer = &self.trainer;
        if trainer.task != Task::SingleLabel {
            return wrong(
                "a network is fine-tuned for one class a picture; other tasks train heads on extracted features",
            );
        }
        if self.train.is_empty() && self.groups.is_empty() {
            return wrong("nothing says what is to be trained");
        }
        let unsupported = [
            (
                !trainer.hidden.is_empty() || trainer.norm != Norm::None,
                "hidden layers",
            ),
            (trainer.mixup.is_some(), "mixup"),
            (trainer.noise != 0.0, "noise on the features"),
            (trainer.standardise, "standardised features"),
            (trainer.ema.is_some(), "a moving average of the weights"),
            (trainer.init != Init::Uniform, "another init than torch's own"),
        ];
        if let Some((_, what)) = unsupported.iter().find(|(is_asked_for, _)| *is_asked_for) {
            return Err(Error::Usage(format!(
                "{what}: that is of heads, and not of a network that is fine-tuned"
            )));
        }
        if self.unfreeze != Unfreeze::AtOnce && self.groups.is_empty() {
            return wrong("to unfreeze one group after the other there must be groups");
        }
        if self.unfreeze == Unfreeze::OnPlateau && trainer.early_stopping.is_none() {
            return wrong("a plateau needs a patience");
        }
        match &self.rates {
            Rates::Divided(by) if !(*by > 0.0 && by.is_finite()) => {
                return wrong("the divisor of the groups' learning rates is a positive number");
            }
            Rates::Given(rates) if rates.iter().any(|lr| !(*lr >= 0.0 && lr.is_finite())) => {
                return wrong("a learning rate is a number from 0 on");
            }
            _ => {}
        }
        Ok(())
    }

    /// The learning rate of a group before the schedule; the first is the top's.
    pub(super) fn lr(&self, group: usize) -> f64 {
        match &self.rates {
            Rates::Divided(by) => self.trainer.lr / by.powi(i32::try_from(group).unwrap_or(i32::MAX)),
            Rates::Given(rates) => rates
                .get(group)
                .or(rates.last())
                .copied()
                .unwrap_or(self.trainer.lr),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::train::EarlyStopping;

    pub(crate) fn config() -> TuneConfig {
        TuneConfig {
            train: vec!["**".to_owned()],
            groups: Vec::new(),
            rates: Rates::Divided(1.0),
            unfreeze: Unfreeze::AtOnce,
            fresh: Vec::new(),
            batch_norm: NormPolicy::Auto,
            head_first: true,
            load: None,
            trainer: TrainerConfig::notebook(Task::SingleLabel),
        }
    }

    #[test]
    fn rates_are_ulmfits_or_a_layer_decays_or_given() {
        let mut config = config();
        config.trainer.lr = 0.01;
        config.rates = Rates::Divided(2.6);
        for group in 0..4 {
            let expected = 0.01 / 2.6f64.powi(group);
            assert!((config.lr(group as usize) - expected).abs() < 1e-12);
        }
        config.rates = Rates::Divided(1.0 / 0.75);
        assert!((config.lr(2) - 0.01 * 0.75 * 0.75).abs() < 1e-12);
        config.rates = Rates::Given(vec![0.1, 0.02]);
        assert_eq!([config.lr(0), config.lr(1)], [0.1, 0.02]);
    }

    #[test]
    fn settings_that_cannot_be_followed_are_named() {
        let check = |change: &dyn Fn(&mut TuneConfig), message: &str| {
            let mut config = config();
            config.check().unwrap();
            change(&mut config);
            let text = config.check().unwrap_err().to_string();
            assert!(text.contains(message), "{text}");
        };
        check(&|c| c.train.clear(), "nothing says what");
        check(&|c| c.trainer.mixup = Some(0.2), "mixup");
        check(&|c| c.trainer.hidden = vec![8], "hidden layers");
        check(&|c| c.unfreeze = Unfreeze::EachEpoch, "there must be groups");
        check(
            &|c| (c.unfreeze, c.groups) = (Unfreeze::OnPlateau, vec![vec!["fc.**".to_owned()]]),
            "a patience",
        );
        check(&|c| c.rates = Rates::Divided(0.0), "a positive number");
        let mut good = config();
        good.unfreeze = Unfreeze::OnPlateau;
        good.groups = vec![vec!["fc.**".to_owned()]];
        good.trainer.early_stopping = Some(EarlyStopping {
            patience: 1,
            min_delta: 0.0,
        });
        good.check().unwrap();
    }
}
