//! A run whose steps a GPU makes: the network on the processor stays what checkpoints, the best weights and the end of a
//! head are made of, and is brought up to date after each epoch.

use super::batch::Scale;
use super::config::{Activation, Norm, Optimiser, TrainerConfig};
use super::counter::{Counter, Purpose, mixup};
use super::dense::Array;
use super::loss::Loss;
use super::run::Job;
use super::schedule::Time;
use super::state::{Outcome, Run};
use super::step::Totals;
use crate::device::network::{self as device, Epoch, Recipe, Rule, State, StepScalars, Weights};
use crate::device::rows::Rows;
use crate::device::{Cuda, Precision};
use crate::error::Error;
use crate::features::Labelled;
use crate::head::Layer;

/// Which array of the processor is which on the GPU.
const STATES: [(Array, State); 4] = [
    (Array::Weights, State::Weights),
    (Array::FirstMoment, State::First),
    (Array::SecondMoment, State::Second),
    (Array::Ema, State::Ema),
];

/// The rows on a GPU, and the network there that has the numbers of the run's.
pub(super) struct Mirror<'j> {
    gpu: &'j Cuda,
    rows: Rows<Cuda>,
    val: Option<Rows<Cuda>>,
    recipe: Recipe,
    /// None before the first epoch.
    network: Option<device::Network<'j, Cuda>>,
}

impl<'j> Mirror<'j> {
    /// # Errors
    /// [`Error::Features`] for a number that the precision cannot hold; [`Error::GpuMemory`].
    pub(super) fn new(
        gpu: &'j Cuda,
        precision: Precision,
        job: &Job<'j>,
        scale: Option<&Scale>,
        loss: &Loss,
    ) -> Result<Mirror<'j>, Error> {
        let affine = scale.map(|scale| (&scale.factor[..], &scale.shift[..]));
        let rows =
            |labelled: &Labelled| Rows::new(gpu, &labelled.features, &labelled.targets, affine, precision);
        let config = job.config;
        Ok(Mirror {
            gpu,
            rows: rows(job.train)?,
            val: job.val.map(rows).transpose()?,
            recipe: Recipe {
                // Room for a batch is made once, and no batch has more rows than there are.
                batch_size: config.batch_size.min(job.train.features.n_rows()),
                ..recipe(config, job.outputs.len(), loss)
            },
            network: None,
        })
    }

    /// The rest of the run's epoch, whose rows are `order`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where the only head diverges; the run is then where it was before the call.
    pub(super) fn epoch(&mut self, job: &Job<'_>, run: &mut Run, order: &[usize]) -> Result<(), Error> {
        let (config, batches) = (job.config, job.batches());
        let network = match self.network.take() {
            Some(network) if network.n_heads() == run.columns.len() => network,
            _ => self.push(job, run)?,
        };
        let network = self.network.insert(network);
        let n_steps = batches - run.cursor;
        if n_steps == 0 {
            return Ok(());
        }
        let range = job.batch(run.cursor).start..job.batch(batches - 1).end;
        let rows: Vec<u32> = order[range.clone()].iter().map(|row| *row as u32).collect();
        let table: Vec<StepScalars> = (0..n_steps)
            .flat_map(|step| run.columns.iter().map(move |head| (step, *head)))
            .map(|(step, head)| {
                let time = Time {
                    epoch: run.epoch,
                    step: run.step + step,
                    epochs: config.epochs,
                    steps: batches * config.epochs,
                };
                scalars(config, run.heads[head].settings.lr, time)
            })
            .collect();
        let mixed = config
            .mixup
            .map(|alpha| mixed(config.seed, alpha, rows.len(), config.batch_size, run.step as u64));
        let epoch = Epoch {
            order: &rows,
            table: &table,
            start: run.step as u64,
            mixup: mixed.as_ref().map(|(share, partner)| (&share[..], &partner[..])),
        };
        let totals = network.epoch(&self.rows, &epoch)?;
        if let (true, Some(fault)) = (job.is_single, totals.iter().find_map(|totals| totals.fault)) {
            let step = run.cursor + fault;
            return Err(job.not_finite("loss or gradient", (run.epoch, step), &order[job.batch(step)]));
        }
        pull(network, run, n_steps)?;
        // Every head has seen the same rows; one that stood still has fewer of them, and no metrics.
        let seen = |totals: &&device::Totals| totals.fault.is_none();
        let first = run.cursor;
        run.totals.denominator += totals.iter().find(seen).map_or(0.0, |totals| totals.weight);
        for (column, totals) in totals.iter().enumerate() {
            run.totals.losses[column] += totals.loss;
            run.totals.n_right[column] += totals.top1 as u64;
            let state = &mut run.heads[run.columns[column]];
            if let Some(step) = totals.fault
                && state.outcome == Outcome::Running
            {
                state.outcome = Outcome::Diverged {
                    epoch: run.epoch + 1,
                    step: first + step + 1,
                };
            }
        }
        run.cursor = batches;
        run.step += n_steps;
        Ok(())
    }

    /// Losses and right outputs of the validation rows.
    pub(super) fn judge(&self) -> Result<Totals, Error> {
        let (Some(network), Some(val)) = (&self.network, &self.val) else {
            return Ok(Totals::new(0));
        };
        let totals = network.evaluate(val, None)?;
        Ok(Totals {
            losses: totals.iter().map(|totals| totals.loss).collect(),
            n_right: totals.iter().map(|totals| totals.top1 as u64).collect(),
            denominator: totals.first().map_or(0.0, |totals| totals.weight),
        })
    }

    /// A network on the GPU with the run's numbers.
    fn push(&self, job: &Job<'_>, run: &Run) -> Result<device::Network<'j, Cuda>, Error> {
        let rules = run
            .columns
            .iter()
            .map(|head| rule(job.config, run.heads[*head].settings.weight_decay));
        let recipe = Recipe {
            n_heads: run.columns.len(),
            rules: rules.collect(),
            ..self.recipe.clone()
        };
        let network = device::Network::new(self.gpu, recipe, &self.rows)?;
        for column in 0..run.columns.len() {
            for (array, state) in STATES.into_iter().filter(|(array, _)| run.network.has(*array)) {
                network.set(state, column, &weights(&run.network.layers(column, array)))?;
            }
        }
        Ok(network)
    }
}

/// Brings the run's network to the GPU's numbers.
fn pull(network: &device::Network<'_, Cuda>, run: &mut Run, n_steps: usize) -> Result<(), Error> {
    for column in 0..run.columns.len() {
        // Running figures come with the weights; what comes after must not set them back.
        for (array, state) in STATES.into_iter().rev() {
            if !run.network.has(array) {
                continue;
            }
            let mut layers = run.network.layers(column, array);
            put(
                &mut layers,
                network.get(state, column)?,
                n_steps,
                array == Array::Weights,
            );
            run.network.set_layers(column, array, &layers);
        }
    }
    Ok(())
}

fn recipe(config: &TrainerConfig, n_outputs: usize, loss: &Loss) -> Recipe {
    Recipe {
        task: config.task,
        hidden: config.hidden.clone(),
        n_outputs,
        n_heads: 1,
        activation: match config.activation {
            Activation::Relu => device::Activation::Relu,
            Activation::Gelu => device::Activation::Gelu,
        },
        norm: match config.norm {
            Norm::None => device::Norm::None,
            Norm::Batch => device::Norm::Batch,
            Norm::Layer => device::Norm::Layer,
        },
        dropout: config.dropout,
        dropout_key: Counter::new(config.seed, Purpose::Dropout).key(),
        noise: config.noise,
        noise_key: Counter::new(config.seed, Purpose::Noise).key(),
        smoothing: config.label_smoothing,
        class_weights: loss.class_weights(),
        clip_norm: config.clip_norm.map(|limit| limit as f32),
        ema: config.ema.map(|decay| decay as f32),
        is_adam: !matches!(config.optimiser, Optimiser::Sgd { .. }),
        rules: Vec::new(),
        batch_size: config.batch_size,
    }
}

/// What does not change from step to step.
fn rule(config: &TrainerConfig, weight_decay: f64) -> Rule {
    let mut rule = Rule {
        weight_decay: weight_decay as f32,
        dampening: 0.0,
        nesterov: 0.0,
        beta2: 0.0,
        eps: 0.0,
        decoupled: 0.0,
    };
    match config.optimiser {
        Optimiser::Sgd {
            dampening, nesterov, ..
        } => (rule.dampening, rule.nesterov) = (dampening as f32, f32::from(u8::from(nesterov))),
        Optimiser::Adam { betas, eps } => (rule.beta2, rule.eps) = (betas.1 as f32, eps as f32),
        Optimiser::AdamW { betas, eps } => {
            (rule.beta2, rule.eps, rule.decoupled) = (betas.1 as f32, eps as f32, 1.0);
        }
    }
    rule
}

/// What does, in float64 up to here.
fn scalars(config: &TrainerConfig, lr: f64, time: Time) -> StepScalars {
    let (rate, moved) = (config.schedule.lr(lr, time), config.schedule.momentum(time));
    let steps = i32::try_from(time.step + 1).unwrap_or(i32::MAX);
    let (momentum, step_size, root) = match config.optimiser {
        Optimiser::Sgd { momentum: 0.0, .. } => (0.0, rate, 1.0),
        Optimiser::Sgd { momentum, .. } => (moved.unwrap_or(momentum), rate, 1.0),
        Optimiser::Adam { betas, .. } | Optimiser::AdamW { betas, .. } => {
            let beta1 = moved.unwrap_or(betas.0);
            (
                beta1,
                rate / (1.0 - beta1.powi(steps)),
                (1.0 - betas.1.powi(steps)).sqrt(),
            )
        }
    };
    StepScalars {
        rate: rate as f32,
        momentum: momentum as f32,
        step_size: step_size as f32,
        root: root as f32,
        first: f32::from(u8::from(time.step == 0)),
    }
}

/// Share and partner of every row of an order of `n`, batch by batch from step `start` on.
fn mixed(seed: u64, alpha: f64, n: usize, batch_size: usize, start: u64) -> (Vec<f32>, Vec<u32>) {
    let counter = Counter::new(seed, Purpose::Mixup);
    let (mut shares, mut partners, mut of_batch) = (Vec::with_capacity(n), Vec::with_capacity(n), Vec::new());
    for (step, first) in (0..n).step_by(batch_size).enumerate() {
        let rows = batch_size.min(n - first);
        let share = mixup(counter, start + step as u64, alpha, rows, &mut of_batch);
        shares.extend(std::iter::repeat_n(share, rows));
        partners.extend(of_batch.iter().map(|row| *row as u32));
    }
    (shares, partners)
}

/// Layers as the GPU takes them.
fn weights(layers: &[Layer]) -> Vec<Weights> {
    let mut out: Vec<Weights> = Vec::new();
    for layer in layers {
        let norm = match layer {
            Layer::Linear(linear) => {
                out.push(Weights {
                    weight: linear.weight.clone(),
                    bias: linear.bias.clone(),
                    norm: None,
                });
                continue;
            }
            Layer::BatchNorm1d(norm) => {
                let figures = [&norm.running_mean, &norm.running_var].map(Clone::clone);
                let [mean, variance] = figures;
                [norm.weight.clone(), norm.bias.clone(), mean, variance]
            }
            Layer::LayerNorm(norm) => {
                let n = norm.weight.len();
                [norm.weight.clone(), norm.bias.clone(), vec![0.0; n], vec![1.0; n]]
            }
            Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => continue,
        };
        if let Some(last) = out.last_mut() {
            last.norm = Some(norm);
        }
    }
    out
}

/// The GPU's numbers into layers of the same kinds; running figures only with the weights.
fn put(layers: &mut [Layer], numbers: Vec<Weights>, n_steps: usize, with_figures: bool) {
    let mut numbers = numbers.into_iter();
    let mut behind = None;
    for layer in layers {
        match layer {
            Layer::Linear(linear) => {
                if let Some(weights) = numbers.next() {
                    (linear.weight, linear.bias, behind) = (weights.weight, weights.bias, weights.norm);
                }
            }
            Layer::BatchNorm1d(norm) => {
                if let Some([weight, bias, mean, variance]) = behind.take() {
                    (norm.weight, norm.bias) = (weight, bias);
                    if with_figures {
                        (norm.running_mean, norm.running_var) = (mean, variance);
                        norm.num_batches_tracked += n_steps as i64;
                    }
                }
            }
            Layer::LayerNorm(norm) => {
                if let Some([weight, bias, ..]) = behind.take() {
                    (norm.weight, norm.bias) = (weight, bias);
                }
            }
            Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, data, names, perceptron};
    use super::super::*;
    use crate::device::Precision;
    use crate::device::emulator::gpu;
    use crate::error::Error;
    use crate::head::{Head, Layer};
    use crate::monitor::Monitor;
    use crate::solve::ClassWeights;
    use crate::targets::Task;

    fn numbers(head: &Head) -> Vec<f32> {
        let of = |layer: &Layer| match layer {
            Layer::Linear(linear) => [&linear.weight[..], &linear.bias].concat(),
            Layer::BatchNorm1d(norm) => [
                &norm.weight[..],
                &norm.bias,
                &norm.running_mean,
                &norm.running_var,
            ]
            .concat(),
            Layer::LayerNorm(norm) => [&norm.weight[..], &norm.bias].concat(),
            _ => Vec::new(),
        };
        head.layers().iter().flat_map(of).collect()
    }

    #[test]
    fn a_last_batch_that_is_cut_into_more_pieces_has_room_for_them() {
        let Some(cuda) = gpu(false) else { return };
        let rows = data(8296, 4, 3, Task::SingleLabel);
        let config = TrainerConfig {
            batch_size: 4200,
            epochs: 1,
            ..config(Task::SingleLabel)
        };
        let names = names(3);
        let none = Monitor::none();
        let want = fit(&rows, Some(&rows), &names, &config, None, &mut |_| {}, none).unwrap();
        let got = fit_on(
            &cuda,
            Precision::F32,
            &rows,
            Some(&rows),
            &names,
            &config,
            None,
            &mut |_| {},
            none,
        )
        .unwrap();
        check_near(&got, &want, 2e-3);
        // No more room than there are rows.
        let config = TrainerConfig {
            batch_size: usize::MAX / 8,
            ..config
        };
        fit_on(
            &cuda,
            Precision::F32,
            &rows,
            None,
            &names,
            &config,
            None,
            &mut |_| {},
            none,
        )
        .unwrap();
    }

    fn check_near(got: &TrainedHead, want: &TrainedHead, tolerance: f32) {
        assert_eq!(got.ema.is_some(), want.ema.is_some());
        assert_eq!(got.history.len(), want.history.len());
        let heads = [(&got.last, &want.last), (&got.head, &want.head)];
        for (got, want) in heads.into_iter().chain(got.ema.iter().zip(&want.ema)) {
            let (got, want) = (numbers(got), numbers(want));
            assert_eq!(got.len(), want.len());
            for (at, (a, b)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (a - b).abs() <= tolerance * b.abs().max(1.0),
                    "number {at}: {a} for {b}"
                );
            }
        }
        assert_eq!((got.best_epoch, got.outcome), (want.best_epoch, want.outcome));
        for (got, want) in got.history.iter().zip(&want.history) {
            let close = |a: f64, b: f64| (a - b).abs() <= f64::from(tolerance) * b.abs();
            assert!(close(got.train_loss, want.train_loss), "{got:?} {want:?}");
            assert!(
                close(got.val_loss.unwrap(), want.val_loss.unwrap()),
                "{got:?} {want:?}"
            );
            assert_eq!(got.val_accuracy, want.val_accuracy);
            assert_eq!(got.train_accuracy, want.train_accuracy);
        }
    }

    /// The processor's trainer, which is checked against PyTorch, is the reference of the GPU's.
    #[test]
    fn a_gpu_trains_what_the_processor_trains() {
        let Some(gpu) = gpu(false) else { return };
        let of = |task, change: &dyn Fn(&mut TrainerConfig)| {
            let mut config = config(task);
            change(&mut config);
            config
        };
        let configs = [
            of(Task::SingleLabel, &|_| ()),
            of(Task::SingleLabel, &|c| {
                (c.schedule, c.class_weights) = (Schedule::one_cycle(), ClassWeights::Balanced);
            }),
            of(Task::MultiLabel, &|c| {
                (c.class_weights, c.label_smoothing) = (ClassWeights::Balanced, 0.1);
            }),
            of(Task::Regression, &|c| {
                (c.optimiser, c.drop_last) = (Optimiser::adamw(), true);
            }),
            perceptron(Norm::None),
            perceptron(Norm::Layer),
            // A bias in front of a batch norm has no slope but rounding, of which Adam would make a step.
            TrainerConfig {
                optimiser: Optimiser::sgd(0.9),
                ..perceptron(Norm::Batch)
            },
        ];
        for config in configs {
            let (train, val) = (data(70, 9, 4, config.task), data(31, 9, 4, config.task));
            let (outputs, none) = (names(4), Monitor::none());
            let want = fit(&train, Some(&val), &outputs, &config, None, &mut |_| (), none).unwrap();
            let f32 = Precision::F32;
            let got = fit_on(
                &gpu,
                f32,
                &train,
                Some(&val),
                &outputs,
                &config,
                None,
                &mut |_| (),
                none,
            )
            .unwrap();
            check_near(&got, &want, 2e-3);
        }
    }

    #[test]
    fn a_sweep_on_a_gpu_drops_whom_the_processor_drops() {
        let Some(gpu) = gpu(true) else { return };
        let head = |lr: f64| SweepHead {
            lr,
            weight_decay: 0.01,
            init_seed: 3,
        };
        let sweep_config = SweepConfig {
            base: TrainerConfig {
                epochs: 4,
                ..config(Task::SingleLabel)
            },
            heads: [1e-4, 0.1, 1e-3, 0.02, 0.01].map(head).to_vec(),
            halving: Some(Halving { first: 1, factor: 2 }),
        };
        let (train, val, outputs) = (
            data(70, 9, 4, Task::SingleLabel),
            data(31, 9, 4, Task::SingleLabel),
            names(4),
        );
        let none = Monitor::none();
        let want = sweep(
            &train,
            Some(&val),
            &outputs,
            &sweep_config,
            None,
            &mut |_, _| (),
            none,
        )
        .unwrap();
        let f32 = Precision::F32;
        let got = sweep_on(
            &gpu,
            f32,
            &train,
            Some(&val),
            &outputs,
            &sweep_config,
            None,
            &mut |_, _| (),
            none,
        );
        for (got, want) in got.unwrap().iter().zip(&want) {
            check_near(got, want, 1e-3);
        }
    }

    #[test]
    fn a_run_on_a_gpu_goes_on_where_it_was_stopped() {
        let Some(gpu) = gpu(false) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let config = perceptron(Norm::Batch);
        let (train, val, outputs) = (
            data(70, 9, 4, Task::SingleLabel),
            data(31, 9, 4, Task::SingleLabel),
            names(4),
        );
        let f16 = Precision::F16;
        let run = |checkpoint: Option<&std::path::Path>, stop_after: usize| {
            let cancel = std::sync::atomic::AtomicBool::new(false);
            let monitor = Monitor {
                cancel: &cancel,
                ..Monitor::none()
            };
            let mut seen = 0;
            let mut on_epoch = |_: &EpochMetrics| {
                seen += 1;
                cancel.store(seen == stop_after, std::sync::atomic::Ordering::Relaxed);
            };
            fit_on(
                &gpu,
                f16,
                &train,
                Some(&val),
                &outputs,
                &config,
                checkpoint,
                &mut on_epoch,
                monitor,
            )
        };
        let want = run(None, usize::MAX).unwrap();
        assert!(matches!(run(Some(&path), 1), Err(Error::Cancelled)));
        assert_eq!(run(Some(&path), usize::MAX).unwrap(), want);
    }

    #[test]
    fn a_head_that_diverges_on_a_gpu_is_told_of_with_its_step() {
        let Some(gpu) = gpu(false) else { return };
        let config = TrainerConfig {
            lr: 1e38,
            ..config(Task::SingleLabel)
        };
        let (train, outputs) = (data(70, 9, 4, Task::SingleLabel), names(4));
        let f32 = Precision::F32;
        let error = fit_on(
            &gpu,
            f32,
            &train,
            None,
            &outputs,
            &config,
            None,
            &mut |_| (),
            Monitor::none(),
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("is not finite in epoch 2, step 1 (row 9, "),
            "{text}"
        );
    }
}
