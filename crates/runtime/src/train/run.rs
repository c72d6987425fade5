//! A run: epochs of steps over heads that lie beside each other, from any state to the end.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use super::batch::{Batch, Changes, Scale, Source};
use super::checkpoint::{self, Identity};
use super::config::{Norm, TrainerConfig};
use super::counter::{Counter, Purpose, mixup, order};
use super::dense::Array;
use super::gpu::Mirror;
use super::loss::Loss;
use super::network::Network;
use super::schedule::Time;
use super::state::{EpochMetrics, HeadState, Outcome, Run, TrainedHead, is_best, score};
use super::step::{NotFinite, Step, Totals};
use super::sweep::{Halving, SweepHead};
use crate::awake::Awake;
use crate::device::{Cuda, Precision};
use crate::error::Error;
use crate::features::Labelled;
use crate::head::{Head, Layer};
use crate::monitor::{Monitor, Stage};
use crate::targets::Task;

/// Between two checkpoints within an epoch.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// A step has a few parts, each of which would be over before a thread that sleeps had come, and so would many a step.
static AWAKE: Awake = Awake::new();

/// What a run is made of.
pub(super) struct Job<'j> {
    pub(super) train: &'j Labelled,
    pub(super) val: Option<&'j Labelled>,
    pub(super) outputs: &'j [String],
    pub(super) config: &'j TrainerConfig,
    pub(super) halving: Option<Halving>,
    /// Where heads begin, if not at random.
    pub(super) start: Option<&'j Head>,
    pub(super) checkpoint: Option<&'j Path>,
    /// Whether a head that diverges ends the run.
    pub(super) is_single: bool,
}

/// Does what many threads share, where it is worth them.
fn on_threads<T: Send>(is_parallel: bool, work: impl FnOnce() -> T + Send) -> T {
    if is_parallel { AWAKE.run_here(work) } else { work() }
}

impl<'j> Job<'j> {
    /// One head, from its first weights, on the processor.
    pub(super) fn single(
        train: &'j Labelled,
        val: Option<&'j Labelled>,
        outputs: &'j [String],
        config: &'j TrainerConfig,
        checkpoint: Option<&'j Path>,
    ) -> Job<'j> {
        Job {
            train,
            val,
            outputs,
            config,
            halving: None,
            start: None,
            checkpoint,
            is_single: true,
        }
    }

    pub(super) fn batches(&self) -> usize {
        let n = self.train.features.n_rows();
        match self.config.drop_last {
            true => n / self.config.batch_size,
            false => n.div_ceil(self.config.batch_size),
        }
    }

    pub(super) fn batch(&self, cursor: usize) -> Range<usize> {
        let start = cursor * self.config.batch_size;
        start..(start + self.config.batch_size).min(self.train.features.n_rows())
    }

    fn check(&self) -> Result<(), Error> {
        let TrainerConfig { task, batch_size, .. } = *self.config;
        self.config.check(self.outputs.len())?;
        let n = self.train.features.n_rows();
        self.train.targets.check(task, n, self.outputs.len())?;
        if self.batches() == 0 {
            return Err(Error::Usage(format!("{n} rows make no batch of {batch_size}")));
        }
        if self.config.norm == Norm::Batch
            && !self.config.hidden.is_empty()
            && self.batch(self.batches() - 1).len() == 1
        {
            return Err(Error::Usage(format!(
                "batches of {batch_size} leave one of {n} rows over, and a batch norm needs two; drop the last or take another size"
            )));
        }
        if let Some(val) = self.val {
            if val.features.n_features() != self.train.features.n_features() {
                return Err(Error::Features(format!(
                    "the training rows have {} numbers and the validation rows {}",
                    self.train.features.n_features(),
                    val.features.n_features()
                )));
            }
            self.check_val(val)?;
        }
        if let Some(start) = self.start
            && (start.n_features() != self.train.features.n_features()
                || start.n_outputs() != self.outputs.len())
        {
            return Err(Error::Usage(format!(
                "the head to begin with takes {} numbers and gives {}, and {} and {} are needed",
                start.n_features(),
                start.n_outputs(),
                self.train.features.n_features(),
                self.outputs.len()
            )));
        }
        Ok(())
    }

    /// Validation rows may all be of one class, but of no other than those that are trained.
    fn check_val(&self, val: &Labelled) -> Result<(), Error> {
        let fits = val
            .targets
            .fits(self.config.task, val.features.n_rows(), self.outputs.len());
        fits.map_err(|error| match error {
            Error::Features(reason) => Error::Features(format!("of the validation rows, {reason}")),
            other => other,
        })
    }

    /// Trains `heads` to the end, from the checkpoint where there is one; a GPU makes the steps, if one is given.
    pub(super) fn run(
        &self,
        heads: &[SweepHead],
        gpu: Option<(&Cuda, Precision)>,
        on_epoch: &mut dyn FnMut(usize, &EpochMetrics),
        monitor: Monitor<'_>,
    ) -> Result<Vec<TrainedHead>, Error> {
        self.check()?;
        let config = self.config;
        let scale = config.standardise.then(|| Scale::new(&self.train.features));
        let source = Source {
            features: &self.train.features,
            targets: &self.train.targets,
            scale: scale.as_ref(),
        };
        let val = self.val.map(|val| Source {
            features: &val.features,
            targets: &val.targets,
            scale: scale.as_ref(),
        });
        let n_outputs = self.outputs.len();
        let loss = Loss::new(
            config.task,
            config.label_smoothing,
            &config.class_weights,
            source.targets,
            n_outputs,
        )?;

        let mut run = self.begin(heads, scale.as_ref())?;
        let mut mirror = match gpu {
            Some((gpu, precision)) => Some(Mirror::new(gpu, precision, self, scale.as_ref(), &loss)?),
            None => None,
        };
        let identity = self
            .checkpoint
            .map(|path| Identity::new(self, heads).map(|identity| (path, identity)));
        let identity = identity.transpose()?;
        if let Some((path, identity)) = &identity
            && path.exists()
        {
            checkpoint::load(path, identity, &mut run, self)?;
        }
        let save = |run: &Run| match &identity {
            Some((path, identity)) => checkpoint::save(path, identity, run),
            None => Ok(()),
        };

        let (batches, n_rows) = (self.batches(), self.train.features.n_rows());
        let steps = batches * config.epochs;
        let mut rows = Vec::new();
        let mut saved = Instant::now();
        while run.epoch < config.epochs && !run.columns.is_empty() {
            order(config.seed, run.epoch, n_rows, &mut rows);
            if let Some(mirror) = &mut mirror {
                // An epoch is one recording; between two there is time to stop.
                if monitor.is_cancelled() {
                    save(&run)?;
                    return Err(Error::Cancelled);
                }
                mirror.epoch(self, &mut run, &rows)?;
                monitor.at(Stage::Train, run.step, steps);
            }
            while run.cursor < batches {
                if monitor.is_cancelled() {
                    save(&run)?;
                    return Err(Error::Cancelled);
                }
                let is_parallel = run.network.is_parallel(config.batch_size.min(n_rows));
                let steps = || self.steps(&mut run, &rows, source, &loss, monitor);
                if let Err(error) = on_threads(is_parallel, steps) {
                    save(&run)?;
                    return Err(error);
                }
                if saved.elapsed() > SAVE_EVERY {
                    save(&run)?;
                    saved = Instant::now();
                }
            }
            let last = Time {
                epoch: run.epoch,
                step: run.step - 1,
                epochs: config.epochs,
                steps,
            };
            let judged = match (&mirror, val) {
                (_, None) => None,
                (Some(mirror), Some(source)) => Some((source.features.n_rows(), mirror.judge()?)),
                (None, Some(source)) => {
                    let n = source.features.n_rows();
                    let is_parallel = run.network.is_parallel(n);
                    Some((n, on_threads(is_parallel, || run.judge(source, &loss))))
                }
            };
            self.end_epoch(&mut run, judged, last, on_epoch);
            save(&run)?;
            saved = Instant::now();
        }
        for column in 0..run.columns.len() {
            run.leave(column, Outcome::Finished);
        }
        run.heads
            .into_iter()
            .map(|head| self.trained(head, scale.as_ref()))
            .collect()
    }

    /// All heads at their first weights.
    fn begin(&self, heads: &[SweepHead], scale: Option<&Scale>) -> Result<Run, Error> {
        let n_features = self.train.features.n_features();
        let mut network = Network::new(self.config, n_features, self.outputs.len(), heads.len());
        for (head, settings) in heads.iter().enumerate() {
            network.init(head, self.config.init, settings.init_seed);
            if let Some(start) = self.start {
                let mut layers = start.layers().to_vec();
                let same = network.layers(head, Array::Weights);
                let is_same = |(a, b): (&Layer, &Layer)| match (a, b) {
                    (Layer::Linear(a), Layer::Linear(b)) => (a.n_in, a.n_out) == (b.n_in, b.n_out),
                    _ => std::mem::discriminant(a) == std::mem::discriminant(b),
                };
                if same.len() != layers.len() || !same.iter().zip(&layers).all(is_same) {
                    return Err(Error::Usage(
                        "the head to begin with has other layers than the settings".to_owned(),
                    ));
                }
                if let (Some(scale), Some(Layer::Linear(first))) = (scale, layers.first_mut()) {
                    scale.unfold(&mut first.weight, &mut first.bias);
                }
                network.set_layers(head, Array::Weights, &layers);
            }
        }
        let state = |settings: &SweepHead| HeadState {
            settings: *settings,
            outcome: Outcome::Running,
            history: Vec::new(),
            best: None,
            lowest: f64::INFINITY,
            stalled: 0,
            ended: None,
        };
        Ok(Run {
            network,
            heads: heads.iter().map(state).collect(),
            columns: (0..heads.len()).collect(),
            epoch: 0,
            cursor: 0,
            step: 0,
            totals: Totals::new(heads.len()),
        })
    }

    /// Makes steps of an epoch whose rows these are, until it ends, is cancelled or has taken a while.
    fn steps(
        &self,
        run: &mut Run,
        rows: &[usize],
        source: Source<'_>,
        loss: &Loss,
        monitor: Monitor<'_>,
    ) -> Result<(), Error> {
        /// Less than a thread waits awake.
        const A_WHILE: Duration = Duration::from_secs(1);
        let config = self.config;
        let (begin, batches) = (Instant::now(), self.batches());
        let noise = (config.noise > 0.0).then(|| (config.noise, Counter::new(config.seed, Purpose::Noise)));
        let mixing = Counter::new(config.seed, Purpose::Mixup);
        let mut partners = Vec::new();
        while run.cursor < batches && !monitor.is_cancelled() && begin.elapsed() < A_WHILE {
            let time = Time {
                epoch: run.epoch,
                step: run.step,
                epochs: config.epochs,
                steps: batches * config.epochs,
            };
            let rows = &rows[self.batch(run.cursor)];
            let step = run.step as u64;
            let mixup = config
                .mixup
                .map(|alpha| mixup(mixing, step, alpha, rows.len(), &mut partners));
            let mixup = mixup.map(|share| (share, &partners[..]));
            let changes = (noise.is_some() || mixup.is_some()).then_some(Changes { step, noise, mixup });
            let batch = Batch {
                source,
                rows,
                changes,
            };
            self.step(run, &batch, loss, time)?;
            run.cursor += 1;
            run.step += 1;
            monitor.at(Stage::Train, run.step, time.steps);
        }
        Ok(())
    }

    /// Makes one step with all heads that can make it.
    fn step(&self, run: &mut Run, batch: &Batch<'_>, loss: &Loss, time: Time) -> Result<(), Error> {
        let config = self.config;
        loop {
            let of_head = |&head: &usize| {
                let HeadState {
                    settings, outcome, ..
                } = &run.heads[head];
                let lr = config.schedule.lr(settings.lr, time);
                (*outcome == Outcome::Running).then_some((lr, settings.weight_decay))
            };
            let heads: Vec<Option<(f64, f64)>> = run.columns.iter().map(of_head).collect();
            let step = Step {
                step: run.step,
                loss,
                optimiser: config.optimiser,
                momentum: config.schedule.momentum(time),
                ema: config.ema,
                clip_norm: config.clip_norm,
                heads: &heads,
            };
            match run.network.step(batch, &step, &mut run.totals) {
                Ok(()) => return Ok(()),
                Err(NotFinite { what, .. }) if self.is_single => {
                    return Err(self.not_finite(what, (run.epoch, run.cursor), batch.rows));
                }
                // The others go on without it; the step is made again from where it began.
                Err(NotFinite { head, .. }) => {
                    let (epoch, step) = (run.epoch + 1, run.cursor + 1);
                    run.heads[run.columns[head]].outcome = Outcome::Diverged { epoch, step };
                }
            }
        }
    }

    /// The error of a step, epoch and step counted from 0.
    pub(super) fn not_finite(
        &self,
        what: &'static str,
        (epoch, step): (usize, usize),
        rows: &[usize],
    ) -> Error {
        /// Rows that the error names.
        const MAX_NAMED: usize = 8;
        let name = |&row: &usize| {
            self.train
                .names
                .get(row)
                .cloned()
                .unwrap_or_else(|| format!("row {row}"))
        };
        let mut named = rows
            .iter()
            .take(MAX_NAMED)
            .map(name)
            .collect::<Vec<_>>()
            .join(", ");
        if rows.len() > MAX_NAMED {
            named += &format!(" and {} more", rows.len() - MAX_NAMED);
        }
        Error::NotFinite {
            what,
            epoch: epoch + 1,
            step: step + 1,
            rows: named,
        }
    }

    /// Judges the epoch, keeps what is best, and lets heads go.
    fn end_epoch(
        &self,
        run: &mut Run,
        judged: Option<(usize, Totals)>,
        last: Time,
        on_epoch: &mut dyn FnMut(usize, &EpochMetrics),
    ) {
        let config = self.config;
        let seen = match config.drop_last {
            true => self.batches() * config.batch_size,
            false => self.train.features.n_rows(),
        };
        let answers = match config.task {
            Task::SingleLabel => Some(1),
            Task::MultiLabel => Some(self.outputs.len()),
            Task::Regression => None,
        };
        let accuracy = |n_right: u64, n: usize| answers.map(|answers| n_right as f64 / (n * answers) as f64);
        let mut leaving = Vec::new();
        for (column, &head) in run.columns.iter().enumerate() {
            let state = &mut run.heads[head];
            if state.outcome != Outcome::Running {
                leaving.push((column, state.outcome));
                continue;
            }
            let metrics = EpochMetrics {
                epoch: run.epoch + 1,
                lr: config.schedule.lr(state.settings.lr, last),
                train_loss: run.totals.losses[column] / run.totals.denominator,
                train_accuracy: accuracy(run.totals.n_right[column], seen),
                val_loss: judged
                    .as_ref()
                    .map(|(_, val)| val.losses[column] / val.denominator),
                val_accuracy: judged
                    .as_ref()
                    .and_then(|(n, val)| accuracy(val.n_right[column], *n)),
            };
            state.history.push(metrics);
            if is_best(config.best, &state.history) {
                state.best = Some((metrics.epoch, run.network.layers(column, Array::Weights)));
            }
            if let Some(stopping) = config.early_stopping {
                let loss = metrics.val_loss.unwrap_or(metrics.train_loss);
                if loss < state.lowest - stopping.min_delta {
                    (state.lowest, state.stalled) = (loss, 0);
                } else {
                    state.stalled += 1;
                }
                if state.stalled > stopping.patience {
                    leaving.push((column, Outcome::StoppedEarly));
                }
            }
            on_epoch(head, &metrics);
        }
        run.epoch += 1;
        run.cursor = 0;
        if let Some(halving) = self.halving {
            let gone: Vec<usize> = leaving.iter().map(|(column, _)| *column).collect();
            let left: Vec<usize> = (0..run.columns.len())
                .filter(|column| !gone.contains(column))
                .collect();
            let dropped = halving.drop(run.epoch, &left, |column| {
                let last = run.heads[run.columns[column]]
                    .history
                    .last()
                    .expect("the epoch was judged above");
                score(config.best, last)
            });
            leaving.extend(dropped.into_iter().map(|column| (column, Outcome::Dropped)));
        }
        if run.epoch < config.epochs {
            leaving
                .iter()
                .for_each(|&(column, outcome)| run.leave(column, outcome));
            run.compact(config);
        } else {
            let early = leaving
                .iter()
                .filter(|(_, outcome)| matches!(outcome, Outcome::Diverged { .. }));
            early.for_each(|&(column, outcome)| run.leave(column, outcome));
            run.compact(config);
        }
        run.totals = Totals::new(run.columns.len());
    }

    fn trained(&self, state: HeadState, scale: Option<&Scale>) -> Result<TrainedHead, Error> {
        let head = |layers: Vec<Layer>| {
            let mut layers = layers;
            if let (Some(scale), Some(Layer::Linear(first))) = (scale, layers.first_mut()) {
                scale.fold(&mut first.weight, &mut first.bias);
            }
            Head::new(self.config.task, self.outputs.to_vec(), layers)
        };
        let (last, ema) = state.ended.expect("every head has left the network");
        let last = head(last)?;
        Ok(TrainedHead {
            ema: ema.map(&head).transpose()?,
            best_epoch: state.best.as_ref().map_or(0, |(epoch, _)| *epoch),
            head: state
                .best
                .map(|(_, layers)| head(layers))
                .transpose()?
                .unwrap_or_else(|| last.clone()),
            last,
            history: state.history,
            outcome: state.outcome,
        })
    }
}

impl Run {
    /// Losses and right outputs of all rows of a source.
    fn judge(&mut self, source: Source<'_>, loss: &Loss) -> Totals {
        let rows: Vec<usize> = (0..source.features.n_rows()).collect();
        let batch = Batch {
            source,
            rows: &rows,
            changes: None,
        };
        self.network.evaluate(&batch, loss)
    }
}
