//! Epochs of steps on a tail, from any state to the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::checkpoint;
use super::config::{NormPolicy, TuneConfig};
use super::network::Network;
use super::optimiser::Optimiser;
use super::rows::{Rows, Source, Split};
use super::stages::Stage;
use super::unfreeze::{Next, Unfreezing};
use crate::error::Error;
use crate::grad::{Gradients, NormMode, ParameterKind, Plan, Tail, TailOptions, Weights};
use crate::monitor::{Monitor, Stage as Work};
use crate::targets::Targets;
use crate::train::update::{Loss, RowLoss, Wanted, is_best};
use crate::train::{EpochMetrics, Outcome, Time, epoch_order};

/// Saving takes at most one part in so many of a run's time; a kill costs what came after the last save.
const SAVE_SHARE: u32 = 10;
/// Rows of the validation split that go through a tail at once, at least.
const JUDGED_AT_ONCE: usize = 32;

/// The figures of an epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneEpoch {
    /// As of any training; the learning rate is the top group's.
    pub metrics: EpochMetrics,
    /// Groups that trained in it.
    pub n_groups: usize,
    /// Their names and the learning rates of its last step.
    pub rates: Vec<(String, f64)>,
    /// Whether another group trains from the next epoch on.
    pub unfreezes: bool,
}

/// A run to be made.
pub(crate) struct Run<'r> {
    pub(crate) network: &'r Network,
    pub(crate) config: &'r TuneConfig,
    pub(crate) n_classes: usize,
    pub(crate) threads: usize,
    pub(crate) pool: &'r rayon::ThreadPool,
    /// Where the state is kept between epochs.
    pub(crate) checkpoint: &'r Path,
    /// The sizes of a row at each stage's boundary.
    pub(crate) shapes: &'r [Vec<usize>],
}

/// Where a run is, between two epochs.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) epoch: usize,
    /// Steps since the beginning.
    pub(super) step: usize,
    /// Whether it ended before its last epoch.
    pub(super) is_over: bool,
    pub(super) unfreezing: Unfreezing,
    /// Figures of the validation rows before the first step.
    pub(super) start: EpochMetrics,
    pub(super) history: Vec<EpochMetrics>,
    /// The stage of each epoch.
    pub(super) stages: Vec<usize>,
    /// By the initialisers' names.
    pub(super) weights: BTreeMap<String, Vec<f32>>,
    pub(super) optimiser: Optimiser,
    /// Batches that each batch normalisation has seen, by the initialiser of its mean.
    pub(super) norm_batches: BTreeMap<String, u64>,
    pub(super) best: Snapshot,
}

/// Weights at the end of an epoch, a deep copy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    /// From 1; 0 for those before the first step.
    pub(crate) epoch: usize,
    /// The stage that the epoch was in.
    pub(crate) stage: usize,
    /// By the initialisers' names.
    pub(crate) weights: BTreeMap<String, Vec<f32>>,
    /// Batches that batch normalisations have seen since the run began, by the initialiser of their mean.
    pub(crate) norm_batches: BTreeMap<String, u64>,
}

/// What came of a run.
pub(crate) struct Tuned {
    pub(crate) best: Snapshot,
    pub(crate) last: Snapshot,
    pub(crate) start: EpochMetrics,
    pub(crate) history: Vec<EpochMetrics>,
    pub(crate) stages: Vec<usize>,
    pub(crate) outcome: Outcome,
    /// What ended it before its time, where something did.
    pub(crate) failure: Option<Error>,
}

/// A stage ready for steps.
pub(crate) struct Loaded<'d> {
    /// Which stage it is.
    pub(crate) stage: usize,
    rows: Rows<'d>,
    learner: Learner,
    /// Learning rates before the schedule, by the initialisers' names.
    rates: HashMap<String, f64>,
    /// Initialisers of the running means of batch normalisations that use the batch's statistics.
    moving: Vec<String>,
    /// Everything that steps change: what learns, and running statistics that move.
    changing: HashSet<String>,
}

/// A tail with its weights.
struct Learner {
    tail: Tail,
    plan: Plan,
    loss: Loss,
    weights: Weights,
    gradients: Gradients,
}

/// Of an epoch or a split.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    loss: f64,
    denominator: f64,
    n_right: usize,
    n: usize,
}

impl Totals {
    fn mean(&self) -> f64 {
        self.loss / self.denominator
    }

    fn accuracy(&self) -> f64 {
        self.n_right as f64 / self.n as f64
    }
}

impl Run<'_> {
    /// The tail of a stage.
    ///
    /// # Errors
    /// As [`Tail::new`].
    pub(crate) fn tail_of(
        network: &Network,
        shapes: &[Vec<usize>],
        stage: usize,
        threads: usize,
    ) -> Result<Tail, Error> {
        let options = TailOptions {
            boundary: network.stages[stage].boundary.name(),
            output: network.output(),
            input_shape: &shapes[stage],
            threads,
        };
        Tail::new(&network.model, &options)
    }

    /// Everything that a stage's steps need, with the network's own weights.
    ///
    /// # Errors
    /// As [`Tail::new`], [`Tail::plan`] and `Loss::new`.
    pub(crate) fn load<'d>(&self, stage: usize, rows: Rows<'d>) -> Result<Loaded<'d>, Error> {
        let tail = Run::tail_of(self.network, self.shapes, stage, self.threads)?;
        let Stage { n_groups, .. } = self.network.stages[stage];
        let rates: HashMap<String, f64> = self.network.groups[..n_groups]
            .iter()
            .flat_map(|group| group.members.iter().map(|&at| (at, group.lr)))
            .map(|(at, lr)| (self.network.parameters[at].initializer.clone(), lr))
            .collect();
        let is_affine = |kind| matches!(kind, ParameterKind::NormScale | ParameterKind::NormShift);
        let learning: HashSet<&str> = tail
            .parameters()
            .iter()
            .filter(|parameter| is_affine(parameter.kind) && rates.contains_key(&parameter.name))
            .map(|parameter| parameter.layer.as_str())
            .collect();
        let mode = |layer: &str| match self.config.batch_norm {
            NormPolicy::Frozen => NormMode::Frozen,
            NormPolicy::Batch => NormMode::Batch,
            NormPolicy::Auto if learning.contains(layer) => NormMode::Batch,
            NormPolicy::Auto => NormMode::Frozen,
        };
        let plan = tail.plan(&|name| rates.contains_key(name), &mode)?;
        // Only batch normalisations have running statistics.
        let of_moving = |kind: ParameterKind| {
            let found = tail.parameters().iter();
            let found = found.filter(move |at| at.kind == kind && mode(&at.layer) == NormMode::Batch);
            found.map(|parameter| parameter.name.clone())
        };
        let moving: Vec<String> = of_moving(ParameterKind::RunningMean).collect();
        let mut changing: HashSet<String> = plan.trainable().map(str::to_owned).collect();
        changing.extend(moving.iter().cloned());
        changing.extend(of_moving(ParameterKind::RunningVar));
        let loss = Loss::new(
            self.config.trainer.task,
            self.config.trainer.label_smoothing,
            &self.config.trainer.class_weights,
            &rows.train.targets,
            self.n_classes,
        )?;
        Ok(Loaded {
            stage,
            rows,
            learner: Learner {
                weights: tail.weights(),
                gradients: plan.gradients(),
                tail,
                plan,
                loss,
            },
            rates,
            moving,
            changing,
        })
    }

    /// Trains to the end, from the checkpoint where there is one. `rows_of` gives the rows of a stage, `on_epoch` is told of
    /// each epoch as it ends.
    ///
    /// # Errors
    /// [`Error::Cancelled`] between two steps, after which the run goes on from its last epoch; as [`Run::load`]. A loss that
    /// is no number is no error here: [`Tuned::failure`] says it, beside the weights of before.
    pub(crate) fn run<'d>(
        &self,
        rows_of: &mut dyn FnMut(usize) -> Result<Rows<'d>, Error>,
        on_epoch: &mut dyn FnMut(&TuneEpoch),
        monitor: Monitor<'_>,
    ) -> Result<(Tuned, Loaded<'d>), Error> {
        let config = &self.config.trainer;
        config.check(self.n_classes)?;
        let stages = &self.network.stages;
        let mut rows = rows_of(0)?;
        let identity = self.identity(&rows);
        let n_rows = rows.train.features.n_rows();
        let batches = match config.drop_last {
            true => n_rows / config.batch_size,
            false => n_rows.div_ceil(config.batch_size),
        };
        if batches == 0 {
            return Err(Error::Usage(format!(
                "{n_rows} rows make no batch of {}",
                config.batch_size
            )));
        }
        let kept = match self.checkpoint.exists() {
            true => Some(checkpoint::load(self.checkpoint, &identity)?),
            false => None,
        };
        let first = kept.as_ref().map_or(0, |state| {
            let is_done = state.is_over || state.epoch >= config.epochs;
            let of_last = state.stages.last().copied().unwrap_or(0);
            if is_done { of_last } else { state.unfreezing.stage }.min(stages.len() - 1)
        });
        if first > 0 {
            rows = rows_of(first)?;
        }
        let mut loaded = self.load(first, rows)?;
        let mut state = match kept {
            Some(state) => {
                loaded.put(&state.weights)?;
                state
            }
            None => self.begin(&mut loaded, monitor)?,
        };
        let mut stage = first;
        let steps = batches * config.epochs;
        let mut failure = None;
        let mut last_save: Option<(Instant, Duration)> = None;
        while state.epoch < config.epochs && !state.is_over {
            if state.unfreezing.stage != stage {
                stage = state.unfreezing.stage;
                // The old features are let go before the new ones come.
                drop(loaded);
                loaded = self.load(stage, rows_of(stage)?)?;
                loaded.put(&state.weights)?;
            }
            match self.epoch(&mut loaded, &mut state, batches, steps, monitor) {
                Ok(totals) => {
                    let judged = loaded.judge(config.batch_size, monitor)?;
                    if !judged.mean().is_finite() {
                        failure = Some(Error::NotFinite {
                            what: "validation loss",
                            epoch: state.epoch + 1,
                            step: batches,
                            rows: "all of the validation split".to_owned(),
                        });
                        break;
                    }
                    self.end_epoch(&loaded, &mut state, totals, judged, (batches, steps), on_epoch);
                    let is_last = state.is_over || state.epoch == config.epochs;
                    if is_last || last_save.is_none_or(|(at, took)| at.elapsed() >= took * SAVE_SHARE) {
                        let start = Instant::now();
                        checkpoint::save(self.checkpoint, &identity, &state)?;
                        last_save = Some((Instant::now(), start.elapsed()));
                    }
                }
                Err(error @ Error::NotFinite { .. }) => {
                    failure = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let outcome = match &failure {
            Some(Error::NotFinite { epoch, step, .. }) => Outcome::Diverged {
                epoch: *epoch,
                step: *step,
            },
            _ if state.epoch < config.epochs => Outcome::StoppedEarly,
            _ => Outcome::Finished,
        };
        let last = Snapshot {
            epoch: state.epoch,
            stage: state.stages.last().copied().unwrap_or(0),
            weights: state.weights,
            norm_batches: state.norm_batches,
        };
        let tuned = Tuned {
            best: state.best,
            last,
            start: state.start,
            history: state.history,
            stages: state.stages,
            outcome,
            failure,
        };
        Ok((tuned, loaded))
    }

    /// What a checkpoint depends on: settings, first weights, and what is wanted of which rows.
    fn identity(&self, rows: &Rows<'_>) -> String {
        let mut hasher = blake3::Hasher::new();
        let settings = serde_json::to_vec(self.config).expect("plain data is JSON");
        hasher.update(&settings);
        for parameter in &self.network.parameters {
            hasher.update(parameter.initializer.as_bytes());
            for value in self.network.model.values(&parameter.initializer).iter().flatten() {
                hasher.update(&value.to_le_bytes());
            }
        }
        for split in [&rows.train, &rows.val] {
            if let Targets::Classes(labels) = &split.targets {
                hasher.update(bytemuck::cast_slice(labels));
            }
            for name in &split.names {
                hasher.update(name.as_bytes()).update(&[0]);
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Before the first step: the validation rows are judged, so that what training makes worse is not kept.
    fn begin(&self, loaded: &mut Loaded<'_>, monitor: Monitor<'_>) -> Result<State, Error> {
        let judged = loaded.judge(self.config.trainer.batch_size, monitor)?;
        let weights = loaded.taken();
        Ok(State {
            epoch: 0,
            step: 0,
            is_over: false,
            unfreezing: Unfreezing::new(),
            start: EpochMetrics {
                epoch: 0,
                lr: 0.0,
                train_loss: judged.mean(),
                train_accuracy: None,
                val_loss: Some(judged.mean()),
                val_accuracy: Some(judged.accuracy()),
            },
            history: Vec::new(),
            stages: Vec::new(),
            best: Snapshot {
                epoch: 0,
                stage: 0,
                weights: weights.clone(),
                norm_batches: BTreeMap::new(),
            },
            weights,
            optimiser: Optimiser::default(),
            norm_batches: BTreeMap::new(),
        })
    }

    /// The steps of an epoch. The state's weights stay those of before; what else changes is put back by whoever drops it.
    fn epoch(
        &self,
        loaded: &mut Loaded<'_>,
        state: &mut State,
        batches: usize,
        steps: usize,
        monitor: Monitor<'_>,
    ) -> Result<Totals, Error> {
        let config = &self.config.trainer;
        let rows = &loaded.rows.train;
        let n_rows = rows.features.n_rows();
        let order = epoch_order(config.seed, state.epoch, n_rows);
        let mut reader = rows.features.reader(&order);
        let mut totals = Totals::default();
        for at in 0..batches {
            if monitor.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let start = at * config.batch_size;
            let end = (start + config.batch_size).min(n_rows);
            let batch = reader.batch(start..end, monitor)?;
            let done = loaded.learner.step(rows, &order[start..end], batch);
            let done = done.map_err(|error| match error {
                Error::StepNotFinite(what) => Error::NotFinite {
                    what,
                    epoch: state.epoch + 1,
                    step: at + 1,
                    rows: named(rows, &order[start..end]),
                },
                other => other,
            })?;
            totals.loss += done.loss;
            totals.denominator += done.denominator;
            totals.n_right += done.n_right;
            totals.n += done.n;
            let time = Time {
                epoch: state.epoch,
                step: state.step,
                epochs: config.epochs,
                steps,
            };
            let rates = &loaded.rates;
            let lr = |name: &str| config.schedule.lr(rates.get(name).copied().unwrap_or(0.0), time);
            let momentum = config.schedule.momentum(time);
            let Learner {
                weights, gradients, ..
            } = &mut loaded.learner;
            self.pool
                .install(|| state.optimiser.step(config, weights, gradients, &lr, momentum));
            for name in &loaded.moving {
                *state.norm_batches.entry(name.clone()).or_default() += 1;
            }
            state.step += 1;
            monitor.at(Work::Train, state.step, steps);
        }
        Ok(totals)
    }

    /// Notes what an epoch gave, keeps the best, and decides what comes next.
    fn end_epoch(
        &self,
        loaded: &Loaded<'_>,
        state: &mut State,
        totals: Totals,
        judged: Totals,
        (batches, steps): (usize, usize),
        on_epoch: &mut dyn FnMut(&TuneEpoch),
    ) {
        let config = &self.config.trainer;
        let stage = state.unfreezing.stage;
        let last = Time {
            epoch: state.epoch,
            step: (state.epoch + 1) * batches - 1,
            epochs: config.epochs,
            steps,
        };
        let n_groups = self.network.stages[stage].n_groups;
        let groups = self.network.groups[..n_groups].iter();
        let rates: Vec<(String, f64)> = groups
            .map(|group| (group.name.clone(), config.schedule.lr(group.lr, last)))
            .collect();
        let metrics = EpochMetrics {
            epoch: state.epoch + 1,
            lr: rates.first().map_or(0.0, |(_, lr)| *lr),
            train_loss: totals.mean(),
            train_accuracy: Some(totals.accuracy()),
            val_loss: Some(judged.mean()),
            val_accuracy: Some(judged.accuracy()),
        };
        state.history.push(metrics);
        state.stages.push(stage);
        state.weights.extend(loaded.taken());
        state.epoch += 1;
        let all: Vec<EpochMetrics> = std::iter::once(state.start)
            .chain(state.history.iter().copied())
            .collect();
        if is_best(config.best, &all) {
            state.best = Snapshot {
                epoch: state.epoch,
                stage,
                weights: state.weights.clone(),
                norm_batches: state.norm_batches.clone(),
            };
        }
        let score = crate::train::update::score(config.best, &metrics);
        let next = state.unfreezing.after_epoch(
            self.config.unfreeze,
            config.early_stopping,
            self.network.stages.len(),
            score,
        );
        state.is_over = next == Next::Stop;
        on_epoch(&TuneEpoch {
            metrics,
            n_groups,
            rates,
            unfreezes: next == Next::Unfreeze && state.epoch < config.epochs,
        });
    }
}

impl Loaded<'_> {
    /// The rows that it stands on.
    pub(crate) fn rows(&self) -> &Rows<'_> {
        &self.rows
    }

    /// Makes these the weights, where the tail has them.
    fn put(&mut self, weights: &BTreeMap<String, Vec<f32>>) -> Result<(), Error> {
        for (name, values) in weights {
            if let Some(own) = self.learner.weights.get_mut(name) {
                if own.len() != values.len() {
                    return Err(Error::Usage(format!(
                        "`{name}` has {} numbers, not {}",
                        own.len(),
                        values.len()
                    )));
                }
                own.copy_from_slice(values);
            }
        }
        Ok(())
    }

    /// A deep copy of the weights that steps change.
    fn taken(&self) -> BTreeMap<String, Vec<f32>> {
        let changing = self
            .learner
            .weights
            .iter()
            .filter(|(name, _)| self.changing.contains(*name));
        changing
            .map(|(name, values)| (name.to_owned(), values.to_vec()))
            .collect()
    }

    /// Losses and right answers of the validation rows.
    fn judge(&self, batch_size: usize, monitor: Monitor<'_>) -> Result<Totals, Error> {
        let Targets::Classes(labels) = &self.rows.val.targets else {
            unreachable!("a class a row, as the settings were checked for")
        };
        let mut totals = Totals::default();
        let mut classes = labels.iter();
        self.learner.each(
            &self.rows.val.features,
            &self.learner.weights,
            batch_size,
            monitor,
            &mut |logits, n| {
                let classes: Vec<u32> = classes.by_ref().take(n).copied().collect();
                let done = losses(&self.learner.loss, &classes, logits);
                totals.loss += done.loss;
                totals.denominator += done.denominator;
                totals.n_right += done.n_right;
                totals.n += done.n;
            },
        )?;
        Ok(totals)
    }

    /// `[N, C]` by the weights of a snapshot.
    ///
    /// # Errors
    /// As [`Tail::forward`].
    pub(crate) fn logits(
        &self,
        features: &Source<'_>,
        weights: &BTreeMap<String, Vec<f32>>,
        monitor: Monitor<'_>,
    ) -> Result<Vec<f32>, Error> {
        // What was unfrozen after the snapshot has the network's values in it.
        let mut own = self.learner.tail.weights();
        for (name, values) in weights {
            if let Some(own) = own.get_mut(name) {
                own.copy_from_slice(values);
            }
        }
        let mut all = Vec::new();
        self.learner
            .each(features, &own, JUDGED_AT_ONCE, monitor, &mut |logits, _| {
                all.extend_from_slice(logits);
            })?;
        Ok(all)
    }
}

impl Learner {
    /// Gradients of a batch, with the weights as they are.
    fn step(&mut self, train: &Split<'_>, rows: &[usize], batch: &[f32]) -> Result<Totals, Error> {
        let Targets::Classes(labels) = &train.targets else {
            unreachable!("a class a row, as the settings were checked for")
        };
        let classes: Vec<u32> = rows.iter().map(|&row| labels[row]).collect();
        let mut totals = Totals::default();
        let loss = &self.loss;
        self.tail.step(
            &self.plan,
            &mut self.weights,
            batch,
            rows.len(),
            &mut |logits, residuals| {
                residuals.copy_from_slice(logits);
                totals = losses(loss, &classes, residuals);
                totals.mean()
            },
            &mut self.gradients,
        )?;
        Ok(totals)
    }

    fn each(
        &self,
        features: &Source<'_>,
        weights: &Weights,
        batch_size: usize,
        monitor: Monitor<'_>,
        take: &mut dyn FnMut(&mut [f32], usize),
    ) -> Result<(), Error> {
        let (n_rows, at_once) = (features.n_rows(), batch_size.max(JUDGED_AT_ONCE));
        let order: Vec<usize> = (0..n_rows).collect();
        let (mut reader, mut logits) = (features.reader(&order), Vec::new());
        for start in (0..n_rows).step_by(at_once) {
            if monitor.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let end = (start + at_once).min(n_rows);
            let rows = reader.batch(start..end, monitor)?;
            self.tail.forward(weights, rows, end - start, &mut logits)?;
            take(&mut logits, end - start);
        }
        Ok(())
    }
}

/// Turns logits into residuals, and sums their losses.
fn losses(loss: &Loss, classes: &[u32], logits: &mut [f32]) -> Totals {
    let wanted = |class: u32| Wanted::Class {
        first: class,
        second: class,
        share: 1.0,
    };
    let denominator: f64 = classes.iter().map(|&class| loss.denominator(wanted(class))).sum();
    let mut totals = Totals {
        denominator,
        n: classes.len(),
        ..Totals::default()
    };
    let width = logits.len() / classes.len().max(1);
    for (row, &class) in logits.chunks_exact_mut(width.max(1)).zip(classes) {
        let RowLoss { loss, n_right } = loss.row(row, wanted(class), (1.0 / denominator) as f32);
        totals.loss += loss;
        totals.n_right += n_right as usize;
    }
    totals
}

/// Rows by their names, the first few.
fn named(split: &Split<'_>, rows: &[usize]) -> String {
    const MAX_NAMED: usize = 8;
    let name = |&row: &usize| {
        split
            .names
            .get(row)
            .cloned()
            .unwrap_or_else(|| format!("row {row}"))
    };
    let mut text = rows
        .iter()
        .take(MAX_NAMED)
        .map(name)
        .collect::<Vec<_>>()
        .join(", ");
    if rows.len() > MAX_NAMED {
        text += &format!(" and {} more", rows.len() - MAX_NAMED);
    }
    text
}
