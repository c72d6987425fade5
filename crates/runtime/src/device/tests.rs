//! Whole runs: on the reference and on a GPU, against a plain loop in float64.

use super::backend::{Backend, Kind};
use super::cpu::Reference;
use super::emulator::gpu;
use super::network::{Activation, Epoch, Network, Norm, Recipe, Rule, State, StepScalars, Totals, Weights};
use super::rows::Rows;
use crate::error::Error;
use crate::features::Features;
use crate::targets::{Targets, Task};

/// A linear head of three classes that learns by SGD with momentum.
fn recipe() -> Recipe {
    let rule = Rule {
        weight_decay: 0.01,
        dampening: 0.0,
        nesterov: 0.0,
        beta2: 0.99,
        eps: 1e-8,
        decoupled: 0.0,
    };
    Recipe {
        task: Task::SingleLabel,
        hidden: Vec::new(),
        n_outputs: 3,
        n_heads: 1,
        activation: Activation::Relu,
        norm: Norm::None,
        dropout: 0.0,
        dropout_key: 11,
        noise: 0.0,
        noise_key: 12,
        smoothing: 0.0,
        class_weights: None,
        clip_norm: None,
        ema: None,
        is_adam: false,
        rules: vec![rule],
        batch_size: 8,
    }
}

fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * step).sin()).collect()
}

/// 45 rows of 11 features in three classes.
fn data() -> (Features, Targets) {
    let labels: Vec<u32> = (0..45).map(|i| i * 7 % 3).collect();
    let mut values = wave(45 * 11, 1.7);
    for (row, label) in values.chunks_exact_mut(11).zip(&labels) {
        row[*label as usize] += 1.0;
    }
    (Features::new(values, 11).unwrap(), Targets::Classes(labels))
}

fn scalars(lr: f64, step: i32) -> StepScalars {
    StepScalars {
        rate: lr as f32,
        momentum: 0.9,
        step_size: (lr / (1.0 - 0.9f64.powi(step + 1))) as f32,
        root: (1.0 - 0.99f64.powi(step + 1)).sqrt() as f32,
        first: f32::from(u8::from(step == 0)),
    }
}

fn weights(recipe: &Recipe, n_features: usize) -> Vec<Weights> {
    let mut n_in = n_features;
    let hidden = recipe
        .hidden
        .iter()
        .map(|width| (*width, recipe.norm != Norm::None));
    let of = |(n_out, has_norm): (usize, bool)| {
        let weights = Weights {
            weight: wave(n_out * n_in, 0.9).iter().map(|w| w * 0.3).collect(),
            bias: wave(n_out, 0.4),
            norm: has_norm.then(|| {
                [
                    wave(n_out, 0.3).iter().map(|w| w + 1.5).collect(),
                    wave(n_out, 0.8),
                    vec![0.0; n_out],
                    vec![1.0; n_out],
                ]
            }),
        };
        n_in = n_out;
        weights
    };
    hidden.chain([(recipe.n_outputs, false)]).map(of).collect()
}

/// Two epochs; the totals of both, those of an evaluation, and the weights at the end.
fn train<D: Backend>(device: &D, recipe: &Recipe, kind: Kind) -> (Vec<Totals>, Vec<f32>) {
    let (features, targets) = data();
    let rows = Rows::new(device, &features, &targets, None, kind).unwrap();
    let network = Network::new(device, recipe.clone(), &rows).unwrap();
    for head in 0..recipe.n_heads {
        network.set(State::Weights, head, &weights(recipe, 11)).unwrap();
    }
    let mut totals = Vec::new();
    for epoch in 0..2u32 {
        let order: Vec<u32> = (0..45).map(|i| (i * 13 + epoch * 5) % 45).collect();
        let steps = 45usize.div_ceil(recipe.batch_size);
        let table: Vec<StepScalars> = (0..steps * recipe.n_heads)
            .map(|at| {
                let (step, head) = (at / recipe.n_heads, at % recipe.n_heads);
                let lr = 0.1 / (1.0 + head as f64);
                scalars(lr, (epoch as usize * steps + step) as i32)
            })
            .collect();
        let epoch = Epoch {
            order: &order,
            table: &table,
            start: (epoch as usize * steps) as u64,
            mixup: None,
        };
        totals.extend(network.epoch(&rows, &epoch).unwrap());
    }
    let mut numbers = Vec::new();
    totals.extend(network.evaluate(&rows, Some(&mut numbers)).unwrap());
    for head in 0..recipe.n_heads {
        for state in [State::Weights, State::First, State::Second, State::Ema] {
            for layer in network.get(state, head).unwrap() {
                numbers.extend([layer.weight, layer.bias].concat());
                numbers.extend(layer.norm.unwrap_or_default().concat());
            }
        }
    }
    (totals, numbers)
}

fn check_near(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * b.abs().max(1.0),
            "{what}: number {at}: {a} for {b}"
        );
    }
}

/// The recipes that are run, with what they are.
fn recipes() -> Vec<(&'static str, Recipe)> {
    let of = |name, change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        (name, recipe)
    };
    vec![
        of("linear", &|_| ()),
        of("three heads", &|r| {
            (r.n_heads, r.rules) = (3, vec![r.rules[0]; 3]);
        }),
        of("one row a step", &|r| r.batch_size = 1),
        of("weights, smoothing, clipping, average", &|r| {
            (r.class_weights, r.smoothing) = (Some(vec![1.0, 2.0, 0.5]), 0.1);
            (r.clip_norm, r.ema) = (Some(0.5), Some(0.9));
        }),
        of("Adam, noise", &|r| (r.is_adam, r.noise) = (true, 0.1)),
        of("hidden layers, dropout", &|r| {
            (r.hidden, r.dropout) = (vec![16, 5], 0.3);
        }),
        of("batch norm, GELU", &|r| {
            (r.hidden, r.norm, r.activation, r.batch_size) = (vec![8], Norm::Batch, Activation::Gelu, 9);
        }),
        of("layer norm", &|r| (r.hidden, r.norm) = (vec![8, 8], Norm::Layer)),
    ]
}

#[test]
fn a_gpu_learns_what_the_reference_learns() {
    for with_blas in [false, true] {
        let Some(cuda) = gpu(with_blas) else { return };
        if cuda.has_blas() != with_blas {
            // A GPU of a machine without cuBLASLt.
            continue;
        }
        for (name, recipe) in recipes() {
            for (kind, tolerance) in [(Kind::F32, 2e-4), (Kind::F16, 2e-2), (Kind::Bf16, 1e-1)] {
                let (want_totals, want) = train(&Reference::default(), &recipe, kind);
                let (got_totals, got) = train(&cuda, &recipe, kind);
                check_near(&format!("{name}, {kind:?}, {with_blas}"), &got, &want, tolerance);
                for (got, want) in got_totals.iter().zip(&want_totals) {
                    let losses = (got.loss, want.loss);
                    assert!(
                        (losses.0 - losses.1).abs() <= f64::from(tolerance) * losses.1,
                        "{got:?} {want:?}"
                    );
                    assert_eq!((got.weight, got.fault), (want.weight, want.fault));
                }
                // The same bits twice.
                assert_eq!(train(&cuda, &recipe, kind), (got_totals, got));
            }
        }
    }
}

/// The reference by itself: a linear head by SGD with momentum against ten lines of float64.
#[test]
fn the_reference_is_plain_sgd() {
    let recipe = recipe();
    let (_, got) = train(&Reference::default(), &recipe, Kind::F32);
    let (features, targets) = data();
    let labels = targets.classes().unwrap();
    let first = &weights(&recipe, 11)[0];
    // [3, 12], the bias last.
    let mut w: Vec<f64> = (0..36)
        .map(|i| {
            if i % 12 == 11 {
                first.bias[i / 12]
            } else {
                first.weight[i / 12 * 11 + i % 12]
            }
            .into()
        })
        .collect();
    let mut buffer = vec![0.0; 36];
    let mut is_first = true;
    for epoch in 0..2 {
        let order: Vec<usize> = (0..45).map(|i| (i * 13 + epoch * 5) % 45).collect();
        for batch in order.chunks(8) {
            let mut gradient = vec![0.0; 36];
            for &row in batch {
                let mut scratch = Vec::new();
                let mut x: Vec<f64> = features
                    .rows(row..row + 1, &mut scratch)
                    .iter()
                    .map(|x| f64::from(*x))
                    .collect();
                x.push(1.0);
                let z: Vec<f64> = w
                    .chunks(12)
                    .map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum())
                    .collect();
                let total: f64 = z.iter().map(|z| z.exp()).sum();
                for (k, z) in z.iter().enumerate() {
                    let r = z.exp() / total - f64::from(u8::from(labels[row] as usize == k));
                    x.iter()
                        .enumerate()
                        .for_each(|(d, x)| gradient[k * 12 + d] += r * x / batch.len() as f64);
                }
            }
            for ((w, g), buffer) in w.iter_mut().zip(gradient).zip(&mut buffer) {
                let g = g + 0.01 * *w;
                *buffer = if is_first { g } else { 0.9 * *buffer + g };
                *w -= 0.1 * *buffer;
            }
            is_first = false;
        }
    }
    let got = &got[45 * 3..][..36];
    let want: Vec<f32> = (0..33)
        .map(|i| w[i / 11 * 12 + i % 11])
        .chain((0..3).map(|k| w[k * 12 + 11]))
        .map(|w| w as f32)
        .collect();
    check_near("SGD", got, &want, 1e-5);
}

#[test]
fn recordings_are_what_single_steps_are() {
    let Some(cuda) = gpu(false) else { return };
    // 200 steps of one row: one step, three recordings of 64 and seven steps.
    let (_, targets) = data();
    let labels: Vec<u32> = targets
        .classes()
        .unwrap()
        .iter()
        .cycle()
        .take(200)
        .copied()
        .collect();
    let features = Features::new(wave(200 * 11, 1.3), 11).unwrap();
    let (order, start) = ((0..200).collect::<Vec<u32>>(), 0);
    let table: Vec<StepScalars> = (0..200).map(|step| scalars(0.05, step)).collect();
    let run = |n: usize| {
        let recipe = Recipe {
            batch_size: 1,
            dropout: 0.2,
            hidden: vec![4],
            ..recipe()
        };
        let rows = Rows::new(
            &cuda,
            &features,
            &Targets::Classes(labels.clone()),
            None,
            Kind::F32,
        )
        .unwrap();
        let network = Network::new(&cuda, recipe.clone(), &rows).unwrap();
        network.set(State::Weights, 0, &weights(&recipe, 11)).unwrap();
        for part in (0..200).step_by(n) {
            let epoch = Epoch {
                order: &order[part..part + n],
                table: &table[part..part + n],
                start: start + part as u64,
                mixup: None,
            };
            network.epoch(&rows, &epoch).unwrap();
        }
        network.get(State::Weights, 0).unwrap()
    };
    // An epoch of 200 steps, and eight of 25 that are too short to be recorded.
    assert_eq!(run(200), run(25));
}

#[test]
fn a_head_that_diverges_stands_still_and_the_others_do_not() {
    let Some(cuda) = gpu(false) else { return };
    let (features, targets) = data();
    let rows = Rows::new(&cuda, &features, &targets, None, Kind::F32).unwrap();
    let recipe = Recipe {
        n_heads: 2,
        rules: vec![recipe().rules[0]; 2],
        ..recipe()
    };
    let network = Network::new(&cuda, recipe.clone(), &rows).unwrap();
    let mut bad = weights(&recipe, 11);
    network.set(State::Weights, 0, &bad).unwrap();
    bad[0].weight[0] = f32::INFINITY;
    network.set(State::Weights, 1, &bad).unwrap();
    let order: Vec<u32> = (0..45).collect();
    let table: Vec<StepScalars> = (0..12).map(|at| scalars(0.1, at / 2)).collect();
    let epoch = Epoch {
        order: &order,
        table: &table,
        start: 0,
        mixup: None,
    };
    let totals = network.epoch(&rows, &epoch).unwrap();
    assert_eq!((totals[0].fault, totals[1].fault), (None, Some(0)));
    assert_eq!(network.get(State::Weights, 1).unwrap(), bad);
    assert_ne!(
        network.get(State::Weights, 0).unwrap()[0].weight[1],
        bad[0].weight[1]
    );
}

#[test]
fn what_cannot_be_is_said() {
    let message = |error: Error| error.to_string();
    let (features, targets) = data();
    let mut values = vec![1.0; 22];
    values[13] = 1e6;
    let large = Features::new(values, 11).unwrap();
    let device = Reference::default();
    let error = Rows::new(&device, &large, &targets, None, Kind::F16)
        .err()
        .unwrap();
    assert_eq!(
        message(error),
        "the features cannot be used: row 1 has the value 1000000, which float16 cannot hold"
    );
    let rows = Rows::new(&device, &features, &targets, None, Kind::F32).unwrap();
    let many = Recipe {
        n_heads: 2,
        hidden: vec![4],
        ..recipe()
    };
    let error = Network::new(&device, many, &rows).err().unwrap();
    assert_eq!(
        message(error),
        "heads that are trained beside each other have no hidden layers"
    );
    let Some(cuda) = gpu(false) else { return };
    let error = cuda.zeros(1 << 50).err().unwrap();
    assert!(message(error).starts_with("cuda:0 has no room for another 1125899906842624 bytes; "));
}
