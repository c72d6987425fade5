//! How a head is to be trained, as data.

use super::settings;
use crate::device::Precision;
use crate::engine::Device;
use crate::error::Error;
use crate::solve::SolverConfig;
use crate::targets::Task;
use crate::train::{SweepConfig, TrainerConfig};

/// How a head is trained, and what is made of it beside.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadRecipe {
    /// The way to the weights.
    pub method: Method,
    /// Whether the temperature that the validation rows ask for goes into the last layer.
    pub calibrate: bool,
    /// Whether simpler heads are fitted for comparison, and labels looked for that the other rows contradict.
    pub baselines: bool,
    /// What the mini-batch trainer runs on; the solver runs on the processor.
    pub device: Device,
    /// How a GPU keeps the features.
    pub precision: Precision,
}

/// The way to the weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The optimum of a convex objective, for linear heads.
    Solver {
        /// The objective.
        config: SolverConfig,
        /// How strong its regularisation is.
        regularisation: Regularisation,
        /// Folds that C is chosen on; none for as many as the rows ask for.
        n_folds: Option<usize>,
        /// Decides which rows are held out.
        seed: u64,
    },
    /// Many steps on few rows each.
    MiniBatch(TrainerConfig),
    /// Several linear heads by mini-batches at once, of which the best is kept.
    Sweep(SweepConfig),
}

/// How strong the regularisation is.
#[derive(Debug, Clone, PartialEq)]
pub enum Regularisation {
    /// scikit-learn's C.
    C(f64),
    /// The C with the least loss on held-out training rows.
    Auto,
    /// The one of these with the least loss on held-out training rows.
    Among(Vec<f64>),
}

impl HeadRecipe {
    /// A linear head for one class a row, with the C that held-out rows choose.
    pub fn solver() -> HeadRecipe {
        HeadRecipe::of(Method::Solver {
            config: SolverConfig::new(Task::SingleLabel),
            regularisation: Regularisation::Auto,
            n_folds: None,
            seed: 0,
        })
    }

    /// By this method, on the processor, without anything beside it.
    pub fn of(method: Method) -> HeadRecipe {
        HeadRecipe {
            method,
            calibrate: false,
            baselines: false,
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }

    /// What the outputs mean.
    pub fn task(&self) -> Task {
        match &self.method {
            Method::Solver { config, .. } => config.task,
            Method::MiniBatch(config) => config.task,
            Method::Sweep(config) => config.base.task,
        }
    }

    /// Whether it can be followed, as far as that shows without the data.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |text: &str| Err(Error::Usage(text.to_owned()));
        if self.calibrate && self.task() == Task::Regression {
            return wrong("a regression has no probabilities to calibrate");
        }
        if matches!(
            (&self.method, self.device),
            (Method::Solver { .. }, Device::Cuda { .. })
        ) {
            return wrong("the solver runs on the CPU; a GPU trains by mini-batches");
        }
        Ok(())
    }

    /// As a table of TOML, so that the same text is the same recipe.
    pub(super) fn to_toml(&self) -> String {
        let json = |value: Result<serde_json::Value, serde_json::Error>| value.expect("plain data is JSON");
        let mut text = String::from("\n[head]\n");
        match &self.method {
            Method::Solver {
                config,
                regularisation,
                n_folds,
                seed,
            } => {
                let c = match regularisation {
                    Regularisation::C(c) => format!("{c:?}"),
                    Regularisation::Auto => "\"auto\"".to_owned(),
                    Regularisation::Among(values) => format!("{values:?}"),
                };
                text.push_str(&format!("c = {c}\nseed = {seed}\n"));
                if let Some(n_folds) = n_folds {
                    text.push_str(&format!("folds = {n_folds}\n"));
                }
                settings::flatten("solver", &json(serde_json::to_value(config)), &mut text);
            }
            Method::MiniBatch(config) => {
                settings::flatten("trainer", &json(serde_json::to_value(config)), &mut text);
            }
            Method::Sweep(config) => {
                settings::flatten("sweep", &json(serde_json::to_value(config)), &mut text);
            }
        }
        if self.calibrate {
            text.push_str("calibrate = true\n");
        }
        if self.baselines {
            text.push_str("baselines = true\n");
        }
        if let Device::Cuda { .. } = self.device {
            let (class, precision) = (self.device.class(), self.precision.suffix());
            text.push_str(&format!("device = \"{class}\"\nprecision = \"{precision}\"\n"));
        }
        text
    }
}
