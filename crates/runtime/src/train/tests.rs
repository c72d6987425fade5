use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{Batch, Source};
use super::dense::Array;
use super::loss::Loss;
use super::network::Network;
use super::step::{Step, Totals};
use super::*;
use crate::error::Error;
use crate::features::{Features, Labelled};
use crate::head::{Head, Layer};
use crate::monitor::Monitor;
use crate::random::Random;
use crate::solve::ClassWeights;
use crate::targets::{Targets, Task};

/// `n` rows of `d` numbers whose first ones say the class.
pub(super) fn data(n: usize, d: usize, k: usize, task: Task) -> Labelled {
    let mut random = Random::new(11, "trainer test");
    let mut uniform = || random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
    let (mut values, mut labels, mut dense) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        let label = (((uniform() + 0.5) * k as f32) as usize).min(k - 1);
        values.extend((0..d).map(|i| uniform() + if i % k == label { 0.7 } else { 0.0 }));
        labels.push(label as u32);
        dense.extend((0..k).map(|class| match task {
            Task::Regression => values[values.len() - d + class % d] * 2.0 + 0.1 * uniform(),
            _ => f32::from(u8::from(class == label || class == (label + 1) % k)),
        }));
    }
    let targets = match task {
        Task::SingleLabel => Targets::Classes(labels),
        _ => Targets::dense(dense, k).unwrap(),
    };
    Labelled {
        features: Features::new(values, d).unwrap(),
        targets,
        names: Vec::new(),
        n_unlabelled: 0,
        n_missing_views: 0,
    }
}

pub(super) fn names(k: usize) -> Vec<String> {
    (0..k).map(|class| format!("class {class}")).collect()
}

pub(super) fn config(task: Task) -> TrainerConfig {
    TrainerConfig {
        lr: 0.05,
        epochs: 3,
        batch_size: 16,
        ..TrainerConfig::notebook(task)
    }
}

/// Everything at once.
pub(super) fn perceptron(norm: Norm) -> TrainerConfig {
    TrainerConfig {
        hidden: vec![20, 6],
        activation: Activation::Gelu,
        norm,
        dropout: 0.2,
        label_smoothing: 0.1,
        optimiser: Optimiser::adamw(),
        lr: 0.01,
        weight_decay: 0.01,
        schedule: Schedule {
            warmup: 5,
            ..Schedule::cosine(Unit::Step)
        },
        clip_norm: Some(1.0),
        mixup: Some(0.4),
        noise: 0.05,
        standardise: true,
        ema: Some(0.9),
        ..config(Task::SingleLabel)
    }
}

fn train(train: &Labelled, val: &Labelled, config: &TrainerConfig, k: usize) -> TrainedHead {
    fit(
        train,
        Some(val),
        &names(k),
        config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap()
}

fn bits(head: &Head) -> Vec<u32> {
    let mut bits = Vec::new();
    for layer in head.layers() {
        let arrays: Vec<&[f32]> = match layer {
            Layer::Linear(l) => vec![&l.weight, &l.bias],
            Layer::BatchNorm1d(n) => vec![&n.weight, &n.bias, &n.running_mean, &n.running_var],
            Layer::LayerNorm(n) => vec![&n.weight, &n.bias],
            _ => Vec::new(),
        };
        bits.extend(arrays.into_iter().flatten().map(|v| v.to_bits()));
    }
    bits
}

#[test]
fn heads_learn() {
    for (task, lr) in [(Task::SingleLabel, 0.05), (Task::MultiLabel, 0.3)] {
        for (k, hidden) in [(2, vec![]), (5, vec![]), (10, vec![]), (10, vec![24])] {
            let (rows, val) = (data(400, 20, k, task), data(400, 20, k, task));
            let config = TrainerConfig {
                hidden,
                lr,
                epochs: 12,
                ..config(task)
            };
            let trained = train(&rows, &val, &config, k);
            let last = trained.history.last().unwrap();
            assert!(last.val_accuracy.unwrap() > 0.9, "{task:?} {k}: {last:?}");
            assert!(last.train_loss < trained.history[0].train_loss);
            assert_eq!(trained.outcome, Outcome::Finished);
        }
    }
    let rows = data(400, 8, 3, Task::Regression);
    let config = TrainerConfig {
        epochs: 30,
        ..config(Task::Regression)
    };
    let trained = train(&rows, &rows, &config, 3);
    let last = trained.history.last().unwrap();
    assert!(
        last.val_loss.unwrap() < 0.01 && last.val_accuracy.is_none(),
        "{last:?}"
    );
}

/// The slope of the loss along a direction, by f64 differences of the head's own logits, equals the gradient's share of it.
fn check_gradient(config: &TrainerConfig, rows: &Labelled, k: usize) {
    let mut network = Network::new(config, rows.features.n_features(), k, 1);
    network.init(0, Init::Uniform, 3);
    let loss = Loss::new(
        config.task,
        config.label_smoothing,
        &config.class_weights,
        &rows.targets,
        k,
    )
    .unwrap();
    let before = network.layers(0, Array::Weights);
    let source = Source {
        features: &rows.features,
        targets: &rows.targets,
        scale: None,
    };
    let all: Vec<usize> = (0..rows.features.n_rows()).collect();
    let batch = Batch {
        source,
        rows: &all,
        changes: None,
    };
    // One step of plain descent: the gradient is how far the weights have moved, over the rate.
    let rate = 1.0 / 1024.0;
    let step = Step {
        step: 0,
        loss: &loss,
        optimiser: Optimiser::sgd(0.0),
        momentum: None,
        ema: None,
        clip_norm: Some(1e30),
        heads: &[Some((rate, 0.0))],
    };
    let mut totals = Totals::new(1);
    network.step(&batch, &step, &mut totals).unwrap();
    let after = network.layers(0, Array::Weights);
    let value = |layers: &[Vec<f64>]| exact_loss(config, rows, k, &before, layers);
    let flat = |layers: &[Layer]| -> Vec<Vec<f64>> { layers.iter().map(numbers).collect() };
    let (start, moved) = (flat(&before), flat(&after));
    assert!((value(&start) - totals.losses[0] / totals.denominator).abs() < 1e-5);
    let mut random = Random::new(1, "directions");
    for layer in 0..start.len() {
        for _ in 0..4 {
            let direction: Vec<f64> = start[layer]
                .iter()
                .map(|_| random.below(2001) as f64 / 1000.0 - 1.0)
                .collect();
            let at = |by: f64| {
                let mut layers = start.clone();
                layers[layer]
                    .iter_mut()
                    .zip(&direction)
                    .for_each(|(w, d)| *w += by * d);
                value(&layers)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            let gradient = start[layer]
                .iter()
                .zip(&moved[layer])
                .map(|(before, after)| (before - after) / rate);
            let share: f64 = gradient.zip(&direction).map(|(g, d)| g * d).sum();
            // The weights are rounded to f32 after the step: that much of each is lost, over the rate.
            let tolerance = 2e-3 * (1.0 + slope.abs());
            assert!(
                (slope - share).abs() < tolerance,
                "layer {layer} of {config:?}: {slope} {share}"
            );
        }
    }
}

fn numbers(layer: &Layer) -> Vec<f64> {
    let arrays: Vec<&[f32]> = match layer {
        Layer::Linear(l) => vec![&l.weight, &l.bias],
        Layer::BatchNorm1d(n) => vec![&n.weight, &n.bias],
        Layer::LayerNorm(n) => vec![&n.weight, &n.bias],
        _ => Vec::new(),
    };
    arrays.into_iter().flatten().map(|v| f64::from(*v)).collect()
}

/// The mean loss in training mode by definition, in f64; `layers` are the numbers of `kinds`.
fn exact_loss(
    config: &TrainerConfig,
    rows: &Labelled,
    k: usize,
    kinds: &[Layer],
    layers: &[Vec<f64>],
) -> f64 {
    let (n, mut width) = (rows.features.n_rows(), rows.features.n_features());
    let mut x: Vec<f64> = (0..n)
        .flat_map(|row| {
            rows.features
                .rows(row..row + 1, &mut Vec::new())
                .iter()
                .map(|v| f64::from(*v))
                .collect::<Vec<_>>()
        })
        .collect();
    for (kind, numbers) in kinds.iter().zip(layers) {
        match kind {
            Layer::Linear(l) => {
                let (weight, bias) = numbers.split_at(l.n_in * l.n_out);
                let output = |row: &[f64], o: usize| {
                    bias[o]
                        + row
                            .iter()
                            .zip(&weight[o * l.n_in..])
                            .map(|(x, w)| x * w)
                            .sum::<f64>()
                };
                x = x
                    .chunks(width)
                    .flat_map(|row| (0..l.n_out).map(|o| output(row, o)).collect::<Vec<_>>())
                    .collect();
                width = l.n_out;
            }
            Layer::BatchNorm1d(_) | Layer::LayerNorm(_) => {
                let by_column = matches!(kind, Layer::BatchNorm1d(_));
                let groups = if by_column { width } else { n };
                let of = |group: usize, i: usize| {
                    if by_column {
                        i * width + group
                    } else {
                        group * width + i
                    }
                };
                let size = if by_column { n } else { width };
                for group in 0..groups {
                    let mean = (0..size).map(|i| x[of(group, i)]).sum::<f64>() / size as f64;
                    let var = (0..size).map(|i| (x[of(group, i)] - mean).powi(2)).sum::<f64>() / size as f64;
                    (0..size).for_each(|i| x[of(group, i)] = (x[of(group, i)] - mean) / (var + 1e-5).sqrt());
                }
                for (at, x) in x.iter_mut().enumerate() {
                    *x = *x * numbers[at % width] + numbers[width + at % width];
                }
            }
            Layer::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
            Layer::Gelu => x
                .iter_mut()
                .for_each(|x| *x *= 0.5 * (1.0 + libm::erf(*x / 2f64.sqrt()))),
            Layer::Dropout { .. } => {}
        }
    }
    let eps = f64::from(config.label_smoothing);
    let of_row = |row: usize| -> f64 {
        let z = &x[row * k..(row + 1) * k];
        match &rows.targets {
            Targets::Classes(labels) => {
                let total = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                let q =
                    |c: usize| (1.0 - eps) * f64::from(u8::from(c == labels[row] as usize)) + eps / k as f64;
                (0..k).map(|c| q(c) * (total - z[c])).sum()
            }
            Targets::Dense { values, .. } => {
                let y = values[row * k..(row + 1) * k].iter().map(|y| f64::from(*y));
                let term = |(z, y): (&f64, f64)| match config.task {
                    Task::Regression => (z - y).powi(2),
                    _ => z.max(0.0) - z * ((1.0 - eps) * y + eps / 2.0) + (-z.abs()).exp().ln_1p(),
                };
                z.iter().zip(y).map(term).sum::<f64>() / k as f64
            }
        }
    };
    (0..n).map(of_row).sum::<f64>() / n as f64
}

#[test]
fn gradients_are_slopes() {
    for (task, smoothing) in [
        (Task::SingleLabel, 0.0),
        (Task::SingleLabel, 0.1),
        (Task::MultiLabel, 0.1),
        (Task::Regression, 0.0),
    ] {
        for k in [3, 9] {
            let rows = data(23, 11, k, task);
            let linear = TrainerConfig {
                label_smoothing: smoothing,
                ..config(task)
            };
            check_gradient(&linear, &rows, k);
            for norm in [Norm::None, Norm::Batch, Norm::Layer] {
                for activation in [Activation::Relu, Activation::Gelu] {
                    let hidden = vec![17, 5];
                    check_gradient(
                        &TrainerConfig {
                            hidden,
                            norm,
                            activation,
                            ..linear.clone()
                        },
                        &rows,
                        k,
                    );
                }
            }
        }
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let wide = TrainerConfig {
        batch_size: 150,
        ..config(Task::SingleLabel)
    };
    let mut deep = perceptron(Norm::Batch);
    (deep.hidden, deep.batch_size) = (vec![200, 33], 150);
    let clipped = TrainerConfig {
        clip_norm: Some(0.1),
        ..wide.clone()
    };
    for (d, k, config) in [(700, 40, wide), (2000, 3, clipped), (100, 5, deep)] {
        let rows = data(320, d, k, Task::SingleLabel);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| train(&rows, &rows, &config, k))
        };
        let one = run(1);
        for threads in [2, 3] {
            let many = run(threads);
            assert_eq!(bits(&many.last), bits(&one.last), "{threads} threads");
            assert_eq!(many, one);
        }
    }
}

/// Runs until `stop` steps are done, then goes on; the state of both ends is compared.
fn check_resume(rows: &Labelled, config: &TrainerConfig, k: usize, stops: impl Iterator<Item = usize>) {
    let folder = tempfile::tempdir().unwrap();
    let whole_path = folder.path().join("whole");
    let run = |path: &std::path::Path, cancel: &AtomicBool, stop: usize| {
        let report = |progress: crate::Progress| {
            if progress.done == stop {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let monitor = Monitor {
            cancel,
            report: &report,
        };
        fit(
            rows,
            Some(rows),
            &names(k),
            config,
            Some(path),
            &mut |_| {},
            monitor,
        )
    };
    let whole = run(&whole_path, &AtomicBool::new(false), usize::MAX).unwrap();
    let end = std::fs::read(&whole_path).unwrap();
    for stop in stops {
        let path = folder.path().join("part");
        let part = run(&path, &AtomicBool::new(false), stop);
        assert_eq!(part.is_err(), stop < 200, "{stop}");
        if let Err(error) = part {
            assert!(matches!(error, Error::Cancelled), "{error}");
        }
        let resumed = run(&path, &AtomicBool::new(false), usize::MAX).unwrap();
        assert_eq!(resumed, whole, "stopped after {stop}");
        assert!(std::fs::read(&path).unwrap() == end, "stopped after {stop}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn two_hundred_steps_stopped_at_each_end_in_the_same_bytes() {
    let rows = data(160, 12, 3, Task::SingleLabel);
    let linear = TrainerConfig {
        epochs: 20,
        ema: Some(0.9),
        ..config(Task::SingleLabel)
    };
    let deep = TrainerConfig {
        epochs: 20,
        ..perceptron(Norm::Batch)
    };
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            check_resume(&rows, &linear, 3, 1..=200);
            check_resume(
                &rows,
                &deep,
                3,
                (1..=200).step_by(if threads == 1 { 1 } else { 7 }),
            );
        });
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let rows = data(160, 12, 3, Task::SingleLabel);
    let config = TrainerConfig {
        epochs: 6,
        ..perceptron(Norm::Layer)
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("run"), folder.path().join("copy"));
    let mut epoch = 0;
    let mut keep = |metrics: &EpochMetrics| {
        // What a kill after three epochs would leave: the checkpoint of the epoch before.
        epoch = metrics.epoch;
        if epoch == 4 {
            std::fs::copy(&path, &copy).unwrap();
        }
    };
    let whole = fit(
        &rows,
        None,
        &names(3),
        &config,
        Some(&path),
        &mut keep,
        Monitor::none(),
    )
    .unwrap();
    let mut seen = Vec::new();
    let resumed = fit(
        &rows,
        None,
        &names(3),
        &config,
        Some(&copy),
        &mut |m| seen.push(m.epoch),
        Monitor::none(),
    )
    .unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(seen, [4, 5, 6]);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a damaged file is made")]
fn a_checkpoint_of_another_run_is_refused_by_name() {
    let rows = data(60, 6, 3, Task::SingleLabel);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let run = |rows: &Labelled, config: &TrainerConfig| {
        fit(
            rows,
            None,
            &names(3),
            config,
            Some(&path),
            &mut |_| {},
            Monitor::none(),
        )
    };
    let base = config(Task::SingleLabel);
    run(&rows, &base).unwrap();
    let message = |rows: &Labelled, config: &TrainerConfig| run(rows, config).unwrap_err().to_string();
    let text = message(
        &rows,
        &TrainerConfig {
            batch_size: 8,
            ..base.clone()
        },
    );
    assert!(
        text.contains("its `batch_size` is 16, and 8 is asked for"),
        "{text}"
    );
    let mut other = rows.clone();
    other.targets = Targets::Classes((0..60).map(|i| i % 3).collect());
    let text = message(&other, &base);
    assert!(text.contains("its features or targets are not these"), "{text}");
    std::fs::write(&path, b"nonsense").unwrap();
    let text = message(&rows, &base);
    assert!(text.contains("not a checkpoint of a trainer"), "{text}");
}

#[test]
fn heads_of_a_sweep_are_those_trained_alone() {
    for (k, clip_norm) in [(3, None), (3, Some(0.5)), (10, None), (10, Some(0.5)), (21, None)] {
        let rows = data(120, 19, k, Task::SingleLabel);
        for optimiser in [Optimiser::sgd(0.9), Optimiser::adamw()] {
            let base = TrainerConfig {
                optimiser,
                clip_norm,
                ema: Some(0.8),
                ..config(Task::SingleLabel)
            };
            let head = |i: u32| SweepHead {
                lr: 0.001 * 3f64.powi(i as i32),
                weight_decay: 0.01 * f64::from(i),
                init_seed: i.into(),
            };
            let sweep_config = SweepConfig {
                base: base.clone(),
                heads: (0..5).map(head).collect(),
                halving: None,
            };
            let heads = sweep(
                &rows,
                Some(&rows),
                &names(k),
                &sweep_config,
                None,
                &mut |_, _| {},
                Monitor::none(),
            )
            .unwrap();
            for (
                trained,
                SweepHead {
                    lr,
                    weight_decay,
                    init_seed,
                },
            ) in heads.iter().zip(&sweep_config.heads)
            {
                let alone = TrainerConfig {
                    lr: *lr,
                    weight_decay: *weight_decay,
                    init_seed: *init_seed,
                    ..base.clone()
                };
                assert_eq!(*trained, train(&rows, &rows, &alone, k), "{k} classes, lr {lr}");
            }
        }
    }
}

#[test]
fn halving_drops_the_worst_and_the_others_do_not_notice() {
    let rows = data(200, 19, 10, Task::SingleLabel);
    let base = TrainerConfig {
        epochs: 6,
        best: Best::Loss,
        ..config(Task::SingleLabel)
    };
    let head = |i: u32| SweepHead {
        lr: 1e-4 * 3f64.powi(i as i32),
        weight_decay: 0.0,
        init_seed: 1,
    };
    let mut config = SweepConfig {
        base,
        heads: (0..7).map(head).collect(),
        halving: None,
    };
    let run = |config: &SweepConfig| {
        sweep(
            &rows,
            Some(&rows),
            &names(10),
            config,
            None,
            &mut |_, _| {},
            Monitor::none(),
        )
        .unwrap()
    };
    let all = run(&config);
    config.halving = Some(Halving { first: 1, factor: 2 });
    let halved = run(&config);
    let epochs: Vec<usize> = halved.iter().map(|head| head.history.len()).collect();
    // Seven after one epoch become four, after two epochs two, after four epochs one.
    assert_eq!(epochs, [1, 1, 1, 2, 2, 4, 6]);
    for (halved, all) in halved.iter().zip(&all) {
        assert_eq!(halved.history[..], all.history[..halved.history.len()]);
    }
    assert_eq!(halved[6], all[6]);
    assert_eq!(halved[0].outcome, Outcome::Dropped);
}

#[test]
fn a_sweep_can_be_interrupted_and_a_diverging_head_ends_alone() {
    let rows = data(160, 12, 9, Task::Regression);
    let mut base = TrainerConfig {
        epochs: 8,
        best: Best::Loss,
        ..config(Task::Regression)
    };
    base.batch_size = 8;
    let head = |lr: f64| SweepHead {
        lr,
        weight_decay: 0.0,
        init_seed: 4,
    };
    let heads = vec![head(0.01), head(1e4), head(0.02), head(0.001)];
    let config = SweepConfig {
        base: base.clone(),
        heads,
        halving: Some(Halving { first: 3, factor: 2 }),
    };
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stop: usize| {
        let cancel = AtomicBool::new(false);
        let report = |progress: crate::Progress| {
            if progress.done == stop {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let monitor = Monitor {
            cancel: &cancel,
            report: &report,
        };
        sweep(
            &rows,
            None,
            &names(9),
            &config,
            Some(&folder.path().join(name)),
            &mut |_, _| {},
            monitor,
        )
    };
    let whole = run("whole", usize::MAX).unwrap();
    assert!(
        matches!(whole[1].outcome, Outcome::Diverged { epoch: 1, .. }),
        "{:?}",
        whole[1].outcome
    );
    assert!(
        bits(&whole[1].last)
            .iter()
            .all(|bits| f32::from_bits(*bits).is_finite())
    );
    for stop in [1, 7, 30, 61, 100, 150] {
        let name = format!("part {stop}");
        assert!(matches!(run(&name, stop), Err(Error::Cancelled)));
        assert_eq!(run(&name, usize::MAX).unwrap(), whole, "stopped after {stop}");
    }
    let alone = TrainerConfig { lr: 1e4, ..base };
    let error = fit(&rows, None, &names(9), &alone, None, &mut |_| {}, Monitor::none())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is not finite in epoch 1, step ") && error.contains("(row "),
        "{error}"
    );
}

#[test]
fn standardised_heads_take_the_features_as_given() {
    let rows = data(200, 6, 3, Task::SingleLabel);
    let values: Vec<f32> = rows
        .features
        .values()
        .chunks(6)
        .flat_map(|row| {
            [
                row[0] * 100.0 + 5.0,
                row[1],
                row[2] * 0.01,
                row[3] - 50.0,
                row[4],
                7.0,
            ]
        })
        .collect();
    let rows = Labelled {
        features: Features::new(values, 6).unwrap(),
        ..rows
    };
    for hidden in [vec![], vec![12]] {
        let config = TrainerConfig {
            standardise: true,
            hidden,
            epochs: 10,
            ..config(Task::SingleLabel)
        };
        let trained = train(&rows, &rows, &config, 3);
        let logits = trained.head.logits(&rows.features).unwrap();
        let labels = rows.targets.classes().unwrap();
        let right = logits.chunks(3).zip(labels).filter(|(row, label)| {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            row[**label as usize] == top
        });
        let accuracy = right.count() as f64 / 200.0;
        let best = trained.history[trained.best_epoch - 1].val_accuracy.unwrap();
        assert!(
            (accuracy - best).abs() <= 0.011 && best > 0.8,
            "{accuracy} {best}"
        );
    }
}

#[test]
fn the_best_weights_are_kept_and_stopping_is_early() {
    let (rows, val) = (
        data(60, 30, 3, Task::SingleLabel),
        data(90, 30, 3, Task::SingleLabel),
    );
    let stopping = EarlyStopping {
        patience: 2,
        min_delta: 1.0,
    };
    let config = TrainerConfig {
        epochs: 40,
        early_stopping: Some(stopping),
        ..config(Task::SingleLabel)
    };
    let trained = train(&rows, &val, &config, 3);
    // Nothing falls by 1 after the first epoch: two more are borne, and the third one ends it.
    assert_eq!(
        (trained.outcome, trained.history.len()),
        (Outcome::StoppedEarly, 4)
    );
    let best = trained
        .history
        .iter()
        .map(|m| m.val_accuracy.unwrap())
        .fold(0.0, f64::max);
    let first = trained
        .history
        .iter()
        .position(|m| m.val_accuracy.unwrap() == best)
        .unwrap();
    assert_eq!(trained.best_epoch, first + 1);
    let short = TrainerConfig {
        epochs: trained.best_epoch,
        early_stopping: None,
        ..config
    };
    assert_eq!(bits(&train(&rows, &val, &short, 3).last), bits(&trained.head));
}

#[test]
fn a_mean_over_no_weight_stops_before_its_step() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let config = TrainerConfig {
        class_weights: ClassWeights::Given(vec![0.0, 1.0, 1.0]),
        batch_size: 1,
        ..config(Task::SingleLabel)
    };
    let error = fit(
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap_err();
    let Error::NotFinite { epoch, step, .. } = error else {
        panic!("{error}")
    };
    let mut order = epoch_order(config.seed, 0, 33);
    let labels = rows.targets.classes().unwrap();
    let first = order.iter().position(|row| labels[*row] == 0).unwrap();
    assert_eq!((epoch, step), (1, first + 1));
    order.sort_unstable();
    assert!(order.into_iter().eq(0..33));
}

#[test]
fn a_head_to_begin_with_has_the_widths_that_are_asked_for() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let hidden = |width: usize| TrainerConfig {
        hidden: vec![width],
        ..config(Task::SingleLabel)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let names = names(3);
    let start = fit(
        &rows,
        None,
        &names,
        &hidden(4),
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap()
    .head;
    let from = |width: usize| {
        let config = hidden(width);
        fit_from(
            &start,
            &rows,
            None,
            &names,
            &config,
            Some(&path),
            &mut |_| {},
            Monitor::none(),
        )
    };
    let error = from(8).unwrap_err().to_string();
    assert!(error.contains("has other layers than the settings"), "{error}");
    from(4).unwrap();
    // What begins elsewhere is another run.
    let fresh = fit(
        &rows,
        None,
        &names,
        &hidden(4),
        Some(&path),
        &mut |_| {},
        Monitor::none(),
    );
    let error = fresh.unwrap_err().to_string();
    assert!(error.contains("its `start` is"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_said() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let check = |change: &dyn Fn(&mut TrainerConfig, &mut Labelled), message: &str| {
        let (mut config, mut rows) = (config(Task::SingleLabel), rows.clone());
        change(&mut config, &mut rows);
        let error = fit(
            &rows,
            None,
            &names(3),
            &config,
            None,
            &mut |_| {},
            Monitor::none(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(message), "{error}");
    };
    check(
        &|config, _| (config.batch_size, config.drop_last) = (34, true),
        "33 rows make no batch of 34",
    );
    check(
        &|config, _| (config.hidden, config.norm) = (vec![4], Norm::Batch),
        "batches of 16 leave one of 33 rows over",
    );
    check(
        &|_, rows| rows.targets = Targets::Classes(vec![1; 33]),
        "all rows are of one class",
    );
    check(
        &|_, rows| rows.targets = Targets::Classes(vec![1; 3]),
        "33 rows and 3 labels",
    );
    check(
        &|config, _| config.class_weights = ClassWeights::Given(vec![1.0]),
        "1 class weights for 3 classes",
    );
    check(&|config, _| config.lr = -1.0, "lr = -1");
    let other = data(10, 7, 3, Task::SingleLabel);
    let error = fit(
        &rows,
        Some(&other),
        &names(3),
        &config(Task::SingleLabel),
        None,
        &mut |_| {},
        Monitor::none(),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("the training rows have 6 numbers and the validation rows 7")
    );
    let empty = SweepConfig {
        heads: Vec::new(),
        ..SweepConfig::dinov2(Task::SingleLabel, 128, 2)
    };
    let error = sweep(
        &rows,
        None,
        &names(3),
        &empty,
        None,
        &mut |_, _| {},
        Monitor::none(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("a sweep of no heads"));
    let start = Head::linear(Task::SingleLabel, names(3), vec![0.0; 6], vec![0.0; 3]).unwrap();
    let config = config(Task::SingleLabel);
    let error = fit_from(
        &start,
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("takes 2 numbers and gives 3, and 6 and 3 are needed")
    );
}

#[test]
fn a_head_goes_on_from_where_another_ended() {
    let rows = data(64, 6, 3, Task::SingleLabel);
    let config = TrainerConfig {
        standardise: true,
        lr: 0.0,
        epochs: 1,
        ..config(Task::SingleLabel)
    };
    let start = train(
        &rows,
        &rows,
        &TrainerConfig {
            lr: 0.1,
            epochs: 2,
            ..config.clone()
        },
        3,
    )
    .last;
    let same = fit_from(
        &start,
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap()
    .last;
    let numbers = |head: &Head| head.layers().iter().flat_map(numbers).collect::<Vec<_>>();
    for (a, b) in numbers(&same).iter().zip(numbers(&start)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
