//! One head, or many linear heads at once as columns of one product.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::{Best, Init, Optimiser, TrainerConfig};
use super::run::Job;
use super::schedule::{Schedule, Unit};
use super::state::{EpochMetrics, TrainedHead};
use crate::device::{Cuda, Precision};
use crate::error::Error;
use crate::features::Labelled;
use crate::head::Head;
use crate::monitor::Monitor;
use crate::targets::Task;

/// In what heads of a sweep differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepHead {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Of the first weights.
    pub init_seed: u64,
}

/// Successive halving: after `first` epochs, and each time that `factor` as many have passed, the best `1/factor` of the
/// heads go on (Jamieson and Talwalkar 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halving {
    /// Epochs before the first cut.
    pub first: usize,
    /// What the number of heads is divided by.
    pub factor: usize,
}

/// Many heads on the same features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// What they have in common; its `lr`, `weight_decay` and `init_seed` are not used.
    pub base: TrainerConfig,
    /// In what they differ.
    pub heads: Vec<SweepHead>,
    /// Whether the worst are dropped on the way.
    pub halving: Option<Halving>,
}

impl SweepConfig {
    /// DINOv2's linear evaluation: thirteen learning rates from 1e-5 to 0.1, scaled by batch size / 256; SGD with momentum
    /// 0.9 and no decay, a cosine over all steps, weights normal with standard deviation 0.01 and biases zero. Its 52
    /// heads are four sweeps, one for each of its sets of features.
    pub fn dinov2(task: Task, batch_size: usize, epochs: usize) -> SweepConfig {
        const RATES: [f64; 13] = [
            1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
        ];
        let base = TrainerConfig {
            optimiser: Optimiser::sgd(0.9),
            schedule: Schedule::cosine(Unit::Step),
            epochs,
            batch_size,
            best: Best::Accuracy,
            init: Init::Normal { std: 0.01 },
            ..TrainerConfig::notebook(task)
        };
        let head = |(seed, rate): (usize, &f64)| SweepHead {
            lr: rate * batch_size as f64 / 256.0,
            weight_decay: 0.0,
            init_seed: seed as u64,
        };
        SweepConfig {
            base,
            heads: RATES.iter().enumerate().map(head).collect(),
            halving: None,
        }
    }
}

impl Halving {
    /// The columns that are dropped after `epoch`, of those that are left; `score` is how good one is.
    pub(super) fn drop(&self, epoch: usize, left: &[usize], score: impl Fn(usize) -> f64) -> Vec<usize> {
        let mut rung = self.first;
        while rung < epoch {
            rung = rung.saturating_mul(self.factor);
        }
        if rung != epoch {
            return Vec::new();
        }
        let mut ranked = left.to_vec();
        // Stable: of equals the earlier one stays.
        ranked.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        ranked.split_off(left.len().div_ceil(self.factor))
    }
}

/// Trains one head.
///
/// With `checkpoint`, a file, the state of the run is kept there: after each epoch, at least every half minute, and when
/// `monitor` cancels; a run that finds it there goes on from it and ends in the same bytes as one without a pause. It is left
/// there at the end. `on_epoch` is called after each epoch, and once more for one that was not yet saved when a run died.
///
/// # Errors
/// [`Error::Usage`] for settings that cannot be followed; [`Error::Features`] for targets that do not fit;
/// [`Error::JobDiffers`] for a checkpoint of other settings, features or targets; [`Error::NotFinite`] for a loss or
/// gradient that is not finite; [`Error::Cancelled`]; the file system's.
pub fn fit(
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &TrainerConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(&EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<TrainedHead, Error> {
    train_one(
        Job::single(train, val, outputs, config, checkpoint),
        None,
        on_epoch,
        monitor,
    )
}

/// As [`fit`], on a GPU: not to the bit, since its sums round differently, but with the same orders, dropout, mixup and noise.
/// The checkpoint of one is the checkpoint of the other; it is written after each epoch.
///
/// # Errors
/// As [`fit`]; [`Error::GpuMemory`] and [`Error::Gpu`].
#[expect(clippy::too_many_arguments, reason = "those of `fit`, and where it runs")]
pub fn fit_on(
    gpu: &Cuda,
    precision: Precision,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &TrainerConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(&EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<TrainedHead, Error> {
    train_one(
        Job::single(train, val, outputs, config, checkpoint),
        Some((gpu, precision)),
        on_epoch,
        monitor,
    )
}

/// As [`fit`], from the weights of a head with the layers that `config` asks for.
///
/// # Errors
/// As [`fit`].
#[expect(clippy::too_many_arguments, reason = "those of `fit`, and where it begins")]
pub fn fit_from(
    start: &Head,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &TrainerConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(&EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<TrainedHead, Error> {
    train_one(
        Job {
            start: Some(start),
            ..Job::single(train, val, outputs, config, checkpoint)
        },
        None,
        on_epoch,
        monitor,
    )
}

fn train_one(
    job: Job<'_>,
    gpu: Option<(&Cuda, Precision)>,
    on_epoch: &mut dyn FnMut(&EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<TrainedHead, Error> {
    let TrainerConfig {
        lr,
        weight_decay,
        init_seed,
        ..
    } = *job.config;
    let heads = [SweepHead {
        lr,
        weight_decay,
        init_seed,
    }];
    let mut trained = job.run(&heads, gpu, &mut |_, metrics| on_epoch(metrics), monitor)?;
    Ok(trained.pop().expect("one head went in"))
}

/// Trains many linear heads at once; each comes out as [`fit`] would train it alone, to the bit. `on_epoch` also gets the
/// head's place. A head that diverges ends as [`Outcome::Diverged`](super::Outcome::Diverged) and the others go on.
///
/// # Errors
/// As [`fit`]; [`Error::Usage`] for hidden layers, which heads cannot share.
pub fn sweep(
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &SweepConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(usize, &EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<Vec<TrainedHead>, Error> {
    sweep_with(None, train, val, outputs, config, checkpoint, on_epoch, monitor)
}

/// As [`sweep`], on a GPU: not to the bit, since its sums round differently, but with the same orders, dropout, mixup and
/// noise. The checkpoint of one is the checkpoint of the other.
///
/// # Errors
/// As [`sweep`]; [`Error::GpuMemory`] and [`Error::Gpu`].
#[expect(clippy::too_many_arguments, reason = "those of `sweep`, and where it runs")]
pub fn sweep_on(
    gpu: &Cuda,
    precision: Precision,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &SweepConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(usize, &EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<Vec<TrainedHead>, Error> {
    sweep_with(
        Some((gpu, precision)),
        train,
        val,
        outputs,
        config,
        checkpoint,
        on_epoch,
        monitor,
    )
}

#[expect(clippy::too_many_arguments, reason = "those of `sweep`, and where it runs")]
fn sweep_with(
    gpu: Option<(&Cuda, Precision)>,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &SweepConfig,
    checkpoint: Option<&Path>,
    on_epoch: &mut dyn FnMut(usize, &EpochMetrics),
    monitor: Monitor<'_>,
) -> Result<Vec<TrainedHead>, Error> {
    if !config.base.hidden.is_empty() {
        return Err(Error::Usage("heads of a sweep have no hidden layers".to_owned()));
    }
    if config.heads.is_empty() {
        return Err(Error::Usage("a sweep of no heads".to_owned()));
    }
    if let Some(Halving { first, factor }) = config.halving
        && (first == 0 || factor < 2)
    {
        return Err(Error::Usage(
            "halving begins after at least one epoch and divides by at least two".to_owned(),
        ));
    }
    for (at, head) in config.heads.iter().enumerate() {
        let alone = TrainerConfig {
            lr: head.lr,
            weight_decay: head.weight_decay,
            ..config.base.clone()
        };
        alone
            .check(outputs.len())
            .map_err(|error| Error::Usage(format!("head {at} of the sweep: {error}")))?;
    }
    let (config, heads, halving) = (&config.base, &config.heads, config.halving);
    let job = Job {
        train,
        val,
        outputs,
        config,
        halving,
        start: None,
        checkpoint,
        is_single: false,
    };
    job.run(heads, gpu, on_epoch, monitor)
}
