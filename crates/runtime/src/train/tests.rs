mod refusals;
mod resume;
mod sweeps;

use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{Batch, Source};
use super::dense::Array;
use super::loss::Loss;
use super::network::Network;
use super::step::{Step, Totals};
use super::*;
use crate::error::Error;
use crate::features::{FeatureType, Features, Labelled, Piece};
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
    for (d, k, config) in [
        (700, 40, wide.clone()),
        (4000, 3, clipped),
        (2048, 10, wide),
        (100, 5, deep),
    ] {
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

#[test]
fn rows_that_are_read_where_they_lie_give_the_same_as_copies() {
    for (d, k, hidden) in [
        (32, 1, vec![]),
        (16, 2, vec![]),
        (208, 3, vec![]),
        (2048, 7, vec![]),
        (48, 12, vec![]),
        (64, 20, vec![5]),
    ] {
        let mut rows = data(90, d, k.max(2), Task::SingleLabel);
        if k == 1 {
            rows.targets =
                Targets::dense((0..90).map(|i| f32::from(u8::from(i % 3 == 0))).collect(), 1).unwrap();
        }
        let task = if k == 1 {
            Task::MultiLabel
        } else {
            Task::SingleLabel
        };
        let bytes = rows
            .features
            .values()
            .iter()
            .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
            .collect();
        // Must be converted, and so copied.
        let piece = Piece::stored(pth::Storage::owned(bytes), FeatureType::Float16, d).unwrap();
        let copied = Labelled {
            features: Features::of_piece(piece, d).unwrap(),
            ..rows.clone()
        };
        let apart = Labelled {
            features: Features::new(copied.features.values().into_owned(), d).unwrap(),
            ..rows.clone()
        };
        assert!(apart.features.row(0).is_some() && copied.features.row(0).is_none());
        for batch_size in [7, 64] {
            let config = TrainerConfig {
                hidden: hidden.clone(),
                batch_size,
                clip_norm: (batch_size == 7).then_some(0.5),
                ..config(task)
            };
            assert_eq!(
                train(&apart, &apart, &config, k),
                train(&copied, &copied, &config, k),
                "{d} -> {k}, {batch_size} at once"
            );
        }
    }
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
