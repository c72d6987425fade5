//! From labelled features to a head and its marks.

use std::time::Instant;

use serde::Serialize;

use super::baselines::compare;
use super::recipe::{HeadRecipe, Method, Regularisation};
use super::run_folder::Unfinished;
use crate::device::Cuda;
use crate::engine::Device;
use crate::error::Error;
use crate::features::Labelled;
use crate::head::Head;
use crate::history::EpochScalars;
use crate::metrics::{Marks, Temperature};
use crate::monitor::{Monitor, Stage};
use crate::report::Baseline;
use crate::solve::{
    Fitted, HoldOut, SelectConfig, Selection, SolverConfig, Suspect, Values, fit as solve, select,
};
use crate::targets::Task;
use crate::train::{self, EpochMetrics, Outcome, SweepHead, TrainedHead};

/// A trained head and its marks.
#[derive(Debug)]
pub struct Trained {
    /// The head.
    pub head: Head,
    /// How it came about.
    pub way: Way,
    /// Marks on the rows it was fitted on.
    pub train: Marks,
    /// Marks on the validation rows, where there are any.
    pub val: Option<Marks>,
    /// Logits of the validation rows.
    pub val_logits: Vec<f32>,
    /// What the validation rows say of its probabilities; none without such rows and for a regression.
    pub temperature: Option<Temperature>,
    /// Simpler heads, where they were asked for.
    pub baselines: Vec<Baseline>,
    /// Training rows whose label the others contradict, where they were asked for.
    pub suspects: Vec<Suspect>,
    /// Wall time of choosing and fitting.
    pub seconds: f64,
}

/// How a head came about.
#[derive(Debug)]
pub enum Way {
    /// By the solver.
    Solved {
        /// What it reports.
        fitted: Fitted,
        /// How C was chosen, where it was.
        selection: Option<Selection>,
    },
    /// By mini-batches; one head, or those of a sweep.
    Descended {
        /// All heads.
        heads: Vec<Descent>,
        /// The one that is kept.
        chosen: usize,
        /// What made the steps.
        ran_on: String,
    },
}

/// The training of one head by mini-batches.
#[derive(Debug, Clone, Serialize)]
pub struct Descent {
    /// In what it differs from others of a sweep.
    #[serde(flatten)]
    pub settings: SweepHead,
    /// Epochs done.
    pub epochs: usize,
    /// The one whose weights are the best, from 1; 0 where none was finished.
    pub best_epoch: usize,
    /// How it ended.
    pub outcome: Outcome,
    /// The figures of the best epoch.
    pub best: Option<EpochMetrics>,
    /// One per epoch.
    #[serde(skip)]
    pub history: Vec<EpochMetrics>,
}

/// Called after each epoch with the head's number in a sweep (0 for a single head) and the epoch's figures.
pub type OnEpoch<'e> = &'e mut (dyn FnMut(usize, &EpochMetrics) + Send);

/// Trains a head as the recipe says, and judges it.
///
/// # Errors
/// As [`select`], [`solve`], [`train::fit`] and [`train::sweep`]; [`Error::Features`] for more classes than rows;
/// [`Error::CudaMissing`] for a GPU that is not there;
/// [`Error::Usage`] for a temperature without validation rows, and where no head of a sweep got through.
pub fn train(
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    recipe: &HeadRecipe,
    on_epoch: OnEpoch<'_>,
    monitor: Monitor<'_>,
) -> Result<Trained, Error> {
    train_in(None, train, val, outputs, recipe, on_epoch, monitor)
}

/// As [`train()`], with a place for what an interrupted run goes on from.
pub(super) fn train_in(
    keep: Option<&Unfinished>,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    recipe: &HeadRecipe,
    on_epoch: OnEpoch<'_>,
    monitor: Monitor<'_>,
) -> Result<Trained, Error> {
    let start = Instant::now();
    let task = recipe.task();
    recipe.check()?;
    let (n_rows, n_outputs) = (train.targets.len(), outputs.len());
    if task == Task::SingleLabel && n_outputs > n_rows {
        let text = format!("{n_rows} rows and {n_outputs} classes; a classifier needs a row of each");
        return Err(Error::Features(text));
    }
    if recipe.calibrate && val.is_none_or(|val| val.targets.is_empty()) {
        let text = "a temperature is fitted on validation rows, and there are none";
        return Err(Error::Usage(text.to_owned()));
    }
    // Before the work, not after it.
    if let Some(val) = val {
        check_val(task, train, val, outputs.len())?;
    }
    let (mut head, way) = match &recipe.method {
        Method::Solver {
            config,
            regularisation,
            n_folds,
            seed,
        } => by_solver(train, outputs, config, regularisation, *n_folds, *seed, monitor)?,
        Method::MiniBatch(_) | Method::Sweep(_) => {
            by_descent(keep, train, val, outputs, recipe, on_epoch, monitor)?
        }
    };
    let seconds = start.elapsed().as_secs_f64();

    let mut val_logits = match val {
        Some(val) => head.logits(&val.features)?,
        None => Vec::new(),
    };
    let temperature = match val {
        Some(val) if task != Task::Regression && !val.targets.is_empty() => {
            Some(Temperature::fit(task, &val_logits, &val.targets, outputs.len())?)
        }
        _ => None,
    };
    if let Some(temperature) = temperature.filter(|_| recipe.calibrate) {
        head = temperature.fold(&head)?;
        temperature.apply(&mut val_logits);
    }
    let compared = match recipe.baselines {
        true => Some(compare(task, train, val, outputs, monitor)?),
        false => None,
    };
    let (baselines, suspects) = compared.map_or_else(Default::default, |compared| {
        (compared.baselines, compared.suspects)
    });
    Ok(Trained {
        train: Marks::new(task, &head.logits(&train.features)?, &train.targets, outputs)?,
        val: val
            .map(|val| Marks::new(task, &val_logits, &val.targets, outputs))
            .transpose()?,
        head,
        way,
        val_logits,
        temperature,
        baselines,
        suspects,
        seconds,
    })
}

/// Chooses C on held-out training rows where asked to, then fits on all of them.
fn by_solver(
    train: &Labelled,
    outputs: &[String],
    config: &SolverConfig,
    regularisation: &Regularisation,
    n_folds: Option<usize>,
    seed: u64,
    monitor: Monitor<'_>,
) -> Result<(Head, Way), Error> {
    let (features, targets, n_outputs) = (&train.features, &train.targets, outputs.len());
    let values = match regularisation {
        Regularisation::C(_) => None,
        Regularisation::Auto => Some(Values::Climb),
        Regularisation::Among(values) => Some(Values::All(values)),
    };
    let selection = values.map(|values| {
        let how = SelectConfig {
            values,
            hold_out: n_folds.map_or(HoldOut::Auto, HoldOut::KFold),
            seed,
        };
        select(features, targets, n_outputs, &how, config, monitor)
    });
    let selection = selection.transpose()?;
    let c = match (regularisation, &selection) {
        (Regularisation::C(c), _) => *c,
        (_, Some(selection)) => selection.c,
        (_, None) => unreachable!("chosen above"),
    };
    monitor.at(Stage::Train, 0, 0);
    let fitted = solve(features, targets, n_outputs, c, config, monitor)?;
    let (weight, bias) = (fitted.weight.clone(), fitted.bias.clone());
    let head = Head::linear(config.task, outputs.to_vec(), weight, bias)?;
    Ok((head, Way::Solved { fitted, selection }))
}

/// Trains one head or a sweep by mini-batches; epochs of one head are written down as they come, those of a sweep at its
/// end.
fn by_descent(
    keep: Option<&Unfinished>,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    recipe: &HeadRecipe,
    on_epoch: OnEpoch<'_>,
    monitor: Monitor<'_>,
) -> Result<(Head, Way), Error> {
    let gpu = match recipe.device {
        Device::Cpu => None,
        Device::Cuda { index, .. } => Some(Cuda::open(index)?),
    };
    let on_gpu = gpu.as_ref().map(|gpu| (gpu, recipe.precision));
    let ran_on = match &gpu {
        None => "the CPU".to_owned(),
        Some(gpu) => format!("{} ({})", recipe.device, gpu.name()),
    };
    let checkpoint = keep.map(Unfinished::checkpoint);
    let checkpoint = checkpoint.as_deref();
    let (base, settings, trained) = match &recipe.method {
        Method::Solver { .. } => unreachable!("the solver has no steps"),
        Method::MiniBatch(config) => {
            let mut lines = keep.map(Unfinished::history);
            let mut each = |epoch: &EpochMetrics| {
                on_epoch(0, epoch);
                if let Some(lines) = &mut lines {
                    lines.append(scalars(epoch));
                }
            };
            let head = match on_gpu {
                None => train::fit(train, val, outputs, config, checkpoint, &mut each, monitor)?,
                Some((gpu, precision)) => train::fit_on(
                    gpu, precision, train, val, outputs, config, checkpoint, &mut each, monitor,
                )?,
            };
            if let Some(lines) = lines {
                lines.finish()?;
            }
            let settings = vec![SweepHead {
                lr: config.lr,
                weight_decay: config.weight_decay,
                init_seed: config.init_seed,
            }];
            (config, settings, vec![head])
        }
        Method::Sweep(config) => {
            let mut each = |head: usize, epoch: &EpochMetrics| on_epoch(head, epoch);
            let heads = match on_gpu {
                None => train::sweep(train, val, outputs, config, checkpoint, &mut each, monitor)?,
                Some((gpu, precision)) => train::sweep_on(
                    gpu, precision, train, val, outputs, config, checkpoint, &mut each, monitor,
                )?,
            };
            if let Some(keep) = keep {
                let mut lines = keep.history();
                for epoch in sweep_scalars(&config.heads, &heads) {
                    lines.append(epoch);
                }
                lines.finish()?;
            }
            (&config.base, config.heads.clone(), heads)
        }
    };
    let chosen = train::best_of(&trained, base.best).ok_or_else(|| {
        Error::Usage(
            "no head of the sweep got through its first epoch; take smaller learning rates".to_owned(),
        )
    })?;
    let head = trained[chosen]
        .ema
        .clone()
        .unwrap_or_else(|| trained[chosen].head.clone());
    let heads = settings.into_iter().zip(trained).map(Descent::of).collect();
    Ok((
        head,
        Way::Descended {
            heads,
            chosen,
            ran_on,
        },
    ))
}

impl Descent {
    fn of((settings, trained): (SweepHead, TrainedHead)) -> Descent {
        Descent {
            settings,
            epochs: trained.history.len(),
            best_epoch: trained.best_epoch,
            outcome: trained.outcome,
            best: trained.best_epoch.checked_sub(1).map(|at| trained.history[at]),
            history: trained.history,
        }
    }

    /// Its epochs as they are written down.
    pub(super) fn scalars(&self) -> Vec<EpochScalars> {
        self.history.iter().map(scalars).collect()
    }
}

/// An epoch by TensorBoard's names.
pub(super) fn scalars(epoch: &EpochMetrics) -> EpochScalars {
    let figures = [
        ("loss/train", Some(epoch.train_loss)),
        ("loss/val", epoch.val_loss),
        ("accuracy/train", epoch.train_accuracy),
        ("accuracy/val", epoch.val_accuracy),
        ("lr", Some(epoch.lr)),
    ];
    let figures = figures.into_iter();
    let figures = figures.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    EpochScalars {
        epoch: epoch.epoch as u64,
        scalars: figures.collect(),
    }
}

/// The epochs of all heads of a sweep: what they are judged by, a line for each head.
fn sweep_scalars(settings: &[SweepHead], heads: &[TrainedHead]) -> Vec<EpochScalars> {
    let n_epochs = heads.iter().map(|head| head.history.len()).max().unwrap_or(0);
    let of_epoch = |at: usize| {
        let mut figures = Vec::new();
        for (number, (settings, head)) in settings.iter().zip(heads).enumerate() {
            let Some(epoch) = head.history.get(at) else {
                continue;
            };
            let SweepHead { lr, weight_decay, .. } = settings;
            let name = format!("{number} (lr {lr}, weight decay {weight_decay})");
            let mut push = |group: &str, value: Option<f64>| {
                figures.extend(value.map(|value| (format!("{group}/{name}"), value)));
            };
            push("train loss", Some(epoch.train_loss));
            push("val loss", epoch.val_loss);
            push("val accuracy", epoch.val_accuracy);
        }
        EpochScalars {
            epoch: at as u64 + 1,
            scalars: figures,
        }
    };
    (0..n_epochs).map(of_epoch).collect()
}

/// Whether a head that is trained on `train` can be judged on `val`.
fn check_val(task: Task, train: &Labelled, val: &Labelled, n_outputs: usize) -> Result<(), Error> {
    let (d, d_val) = (train.features.n_features(), val.features.n_features());
    if d != d_val {
        let reason = format!("those for validation have {d_val} numbers a row, and those for training {d}");
        return Err(Error::Features(reason));
    }
    let fits = val.targets.fits(task, val.features.n_rows(), n_outputs);
    fits.map_err(|error| match error {
        Error::Features(reason) => Error::Features(format!("those for validation: {reason}")),
        other => other,
    })
}
