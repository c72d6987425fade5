//! A small residual network as a graph: its program, its gradients, and what is refused.

use super::*;
use crate::error::Error;
use crate::onnx::tests::build::{Graph, graph, node};
use crate::onnx::wire::{put_bytes, put_varint};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (((i + 3) * (seed * 2 + 7919)) % 1013) as f32 / 506.5 - 1.0)
        .collect()
}

/// A node with attributes that are lists of integers.
fn with_integers(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[u64])]) -> Vec<u8> {
    let mut message = node(op, output, "", inputs, &[output]);
    for (name, values) in attributes {
        let mut attribute = Vec::new();
        put_bytes(&mut attribute, 1, name.as_bytes());
        values
            .iter()
            .for_each(|value| put_varint(&mut attribute, 8, *value));
        put_varint(&mut attribute, 20, 7);
        put_bytes(&mut message, 5, &attribute);
    }
    message
}

const THREE: &[(&str, &[u64])] = &[("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1])];
const STRIDED: &[(&str, &[u64])] = &[
    ("kernel_shape", &[3, 3]),
    ("pads", &[1, 1, 1, 1]),
    ("strides", &[2, 2]),
];

/// conv, norm, relu; a residual block of another stride; means and a linear layer. The boundary is `in`.
fn network() -> Graph {
    let mut graph = graph()
        .input("x", 1, &[0, 4, 10, 10])
        .node("Identity", &["x"], &["in"])
        .field(1, with_integers("Conv", &["in", "a.weight"], "a", THREE))
        .weight(
            "a.weight",
            &[32, 4, 3, 3],
            &numbers(32 * 36, 1).iter().map(|v| v * 0.3).collect::<Vec<_>>(),
        )
        .field(1, with_integers("Conv", &["a3", "b.weight"], "b", STRIDED))
        .weight(
            "b.weight",
            &[32, 32, 3, 3],
            &numbers(32 * 32 * 9, 2)
                .iter()
                .map(|v| v * 0.1)
                .collect::<Vec<_>>(),
        )
        .field(1, with_integers("Conv", &["b3", "c.weight"], "c", THREE))
        .weight(
            "c.weight",
            &[32, 32, 3, 3],
            &numbers(32 * 32 * 9, 3)
                .iter()
                .map(|v| v * 0.1)
                .collect::<Vec<_>>(),
        )
        .field(
            1,
            with_integers("Conv", &["a3", "d.weight"], "d", &[("strides", &[2, 2])]),
        )
        .weight("d.weight", &[32, 32, 1, 1], &numbers(32 * 32, 4));
    for (layer, n) in ["a", "b", "c", "d"].into_iter().zip(5..) {
        let names = ["scale", "shift", "mean", "var"].map(|what| format!("{layer}.{what}"));
        for (i, name) in names.iter().enumerate() {
            let mut values = numbers(32, n + 10 * i);
            if i == 0 || i == 3 {
                values.iter_mut().for_each(|v| *v = v.abs() + 0.5);
            }
            graph = graph.weight(name, &[32], &values);
        }
        let [scale, shift, mean, var] = names.each_ref().map(String::as_str);
        let out = format!("{layer}2");
        graph = graph.named(
            "BatchNormalization",
            &format!("{layer}.norm"),
            &[layer, scale, shift, mean, var],
            &out,
        );
    }
    graph
        .node("Relu", &["a2"], &["a3"])
        .node("Relu", &["b2"], &["b3"])
        .node("Add", &["c2", "d2"], &["sum"])
        .node("Relu", &["sum"], &["last"])
        .node("GlobalAveragePool", &["last"], &["pooled"])
        .node("Flatten", &["pooled"], &["flat"])
        .weight("fc.weight", &[32, 5], &numbers(160, 30))
        .weight("fc.bias", &[5], &numbers(5, 31))
        .node("Gemm", &["flat", "fc.weight", "fc.bias"], &["logits"])
        .output("logits")
}

/// Nodes are given by layer above; a graph wants them in order.
fn sorted(graph: &Graph) -> Graph {
    let order = [
        "in", "a", "a2", "a3", "b", "b2", "b3", "c", "c2", "d", "d2", "sum", "last", "pooled", "flat",
        "logits",
    ];
    graph.clone().in_order(&order)
}

fn tail(threads: usize) -> Tail {
    let options = TailOptions {
        boundary: "in",
        output: "logits",
        input_shape: &[4, 10, 10],
        threads,
    };
    Tail::new(&sorted(&network()).model(), &options).unwrap()
}

/// Half the sum of squares of the logits against numbers.
fn loss(logits: &[f32], derivative: &mut [f32]) -> f64 {
    let targets = numbers(logits.len(), 77);
    let mut total = 0.0;
    for ((logit, to), target) in logits.iter().zip(derivative).zip(targets) {
        *to = logit - target;
        total += f64::from(*to).powi(2) / 2.0;
    }
    total
}

#[test]
fn gradients_are_differences_of_the_loss_in_both_modes() {
    let tail = tail(2);
    let names: Vec<&str> = tail.parameters().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names.len(), 4 + 16 + 2);
    let (n, batch) = (3, numbers(3 * 400, 50));
    for mode in [NormMode::Frozen, NormMode::Batch] {
        let plan = tail.plan(&|_| true, &|_| mode).unwrap();
        let mut gradients = plan.gradients();
        let value = |weights: &Weights| {
            let mut weights = weights.clone();
            let mut gradients = plan.gradients();
            tail.step(&plan, &mut weights, &batch, n, &mut loss, &mut gradients)
                .unwrap()
        };
        let mut weights = tail.weights();
        tail.step(&plan, &mut weights, &batch, n, &mut loss, &mut gradients)
            .unwrap();
        let is_batch = mode == NormMode::Batch;
        assert_eq!(weights.get("c.mean") != tail.weights().get("c.mean"), is_batch);
        assert_eq!(weights.get("c.weight"), tail.weights().get("c.weight"));
        for (name, gradient) in gradients.iter() {
            // Up the gradient itself, where the difference is largest against rounding.
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let step = 2e-3 / norm;
            let [up, down] = [step, -step].map(|step| {
                let mut weights = tail.weights();
                let moved = weights.get_mut(name).unwrap().iter_mut().zip(gradient);
                moved.for_each(|(w, g)| *w += step as f32 * g);
                value(&weights)
            });
            let slope = (up - down) / (2.0 * step);
            assert!(
                (slope / (norm * norm) - 1.0).abs() < 0.03,
                "{mode:?} {name}: {slope} {}",
                norm * norm
            );
        }
    }
}

#[test]
fn any_number_of_threads_and_any_batch_gives_the_same_bits() {
    let batch = numbers(5 * 400, 51);
    let run = |threads: usize| {
        let tail = tail(threads);
        let plan = tail.plan(&|_| true, &|_| NormMode::Batch).unwrap();
        let (mut weights, mut gradients) = (tail.weights(), plan.gradients());
        for _ in 0..3 {
            tail.step(&plan, &mut weights, &batch, 5, &mut loss, &mut gradients)
                .unwrap();
        }
        (weights, gradients)
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
    let tail = tail(2);
    let (mut all, mut single) = (Vec::new(), Vec::new());
    tail.forward(&tail.weights(), &batch, 5, &mut all).unwrap();
    for (sample, logits) in batch.chunks_exact(400).zip(all.chunks_exact(5)) {
        tail.forward(&tail.weights(), sample, 1, &mut single).unwrap();
        assert_eq!(single, logits);
    }
}

#[test]
fn only_what_is_above_the_first_learner_is_differentiated() {
    let tail = tail(1);
    let batch = numbers(2 * 400, 52);
    let all = tail.plan(&|_| true, &|_| NormMode::Frozen).unwrap();
    let some = tail
        .plan(&|name| name.starts_with("c.") || name == "fc.bias", &|_| {
            NormMode::Frozen
        })
        .unwrap();
    assert_eq!(
        some.trainable().collect::<Vec<_>>(),
        ["c.weight", "c.scale", "c.shift", "fc.bias"]
    );
    assert!(
        some.needs.iter().filter(|needs| **needs).count() < all.needs.iter().filter(|needs| **needs).count()
    );
    let (mut of_all, mut of_some) = (all.gradients(), some.gradients());
    let mut weights = tail.weights();
    tail.step(&all, &mut weights, &batch, 2, &mut loss, &mut of_all)
        .unwrap();
    tail.step(&some, &mut weights, &batch, 2, &mut loss, &mut of_some)
        .unwrap();
    for (name, gradient) in of_some.iter() {
        assert_eq!(of_all.get(name), Some(gradient), "{name}");
    }
    let none = tail.plan(&|_| false, &|_| NormMode::Frozen);
    assert_eq!(
        none.unwrap_err().to_string(),
        "no parameter of the tail is to learn"
    );
}

#[test]
fn a_loss_that_is_no_number_changes_nothing() {
    let tail = tail(1);
    let plan = tail.plan(&|_| true, &|_| NormMode::Batch).unwrap();
    let (mut weights, mut gradients) = (tail.weights(), plan.gradients());
    let batch = numbers(2 * 400, 53);
    let mut bad = |_: &[f32], _: &mut [f32]| f64::NAN;
    let error = tail.step(&plan, &mut weights, &batch, 2, &mut bad, &mut gradients);
    assert!(matches!(error, Err(Error::StepNotFinite("loss"))));
    let mut bad = |_: &[f32], derivative: &mut [f32]| {
        derivative[0] = f32::INFINITY;
        1.0
    };
    let error = tail.step(&plan, &mut weights, &batch, 2, &mut bad, &mut gradients);
    assert!(matches!(error, Err(Error::StepNotFinite("gradient"))));
    assert_eq!(weights, tail.weights());
    let error = tail.step(&plan, &mut weights, &batch[1..], 2, &mut loss, &mut gradients);
    assert_eq!(
        error.unwrap_err().to_string(),
        "799 numbers are not 2 samples of 400"
    );
}

/// The network with weights that do not change, and several outputs.
fn frozen(outputs: &[&str]) -> Frozen {
    Frozen::new(&sorted(&network()).model(), "in", outputs, &[4, 10, 10]).unwrap()
}

/// Checks outputs of a graph with weights that do not change against a tail that ends at each.
fn check_frozen(graph: &Graph, boundary: &str, outputs: &[&str], input_shape: &[usize]) {
    let frozen = Frozen::new(&graph.model(), boundary, outputs, input_shape).unwrap();
    let (width, mut room) = (input_shape.iter().product::<usize>(), Room::default());
    // More than are computed at a time, and not the same number each time.
    for n in [1, 33, 7, 70] {
        let batch = numbers(n * width, 54);
        let found = frozen.forward(&mut room, &batch);
        for (output, found) in outputs.iter().zip(found) {
            let options = TailOptions {
                boundary,
                output,
                input_shape,
                threads: 2,
            };
            let (tail, mut expected) = (Tail::new(&graph.model(), &options).unwrap(), Vec::new());
            tail.forward(&tail.weights(), &batch, n, &mut expected).unwrap();
            let scale = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert_eq!(found.len(), expected.len());
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() < 1e-5 * scale,
                    "{output} of {n} at {at}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn weights_that_do_not_change_give_the_tails_outputs() {
    let graph = sorted(&network());
    check_frozen(&graph, "in", &["logits", "b3", "last", "a", "b3"], &[4, 10, 10]);
    let frozen = frozen(&["logits", "b3", "last"]);
    let shapes: Vec<&[usize]> = frozen.output_shapes().collect();
    assert_eq!(shapes, [&[5][..], &[32, 5, 5], &[32, 5, 5]]);
}

#[test]
fn what_only_looks_like_a_part_of_a_product_is_none() {
    let scaled = |graph: Graph, n: usize| {
        ["scale", "shift", "mean", "var"]
            .into_iter()
            .zip(1..)
            .fold(graph, |graph, (name, seed)| {
                let values: Vec<f32> = numbers(n, seed).iter().map(|v| v.abs() + 0.5).collect();
                graph.weight(name, &[n as u64], &values)
            })
    };
    let norm = |graph: Graph, x: &str| {
        let inputs = [x, "scale", "shift", "mean", "var"];
        graph
            .named("BatchNormalization", "norm", &inputs, "y")
            .output("y")
    };
    // One channel, whose pixels are the normalisation's.
    let one = graph()
        .input("x", 1, &[0, 2, 4, 4])
        .node("Identity", &["x"], &["in"])
        .field(1, with_integers("Conv", &["in", "weight"], "c", THREE))
        .weight("weight", &[1, 2, 3, 3], &numbers(18, 9))
        .node("Flatten", &["c"], &["flat"]);
    check_frozen(&norm(scaled(one, 16), "flat"), "in", &["y"], &[2, 4, 4]);
    // Added to itself, and to what comes in.
    let sums = graph()
        .input("x", 1, &[0, 2, 4, 4])
        .node("Identity", &["x"], &["in"])
        .field(1, with_integers("Conv", &["in", "weight"], "c", THREE))
        .weight("weight", &[2, 2, 3, 3], &numbers(36, 9))
        .node("Add", &["c", "c"], &["twice"])
        .node("Relu", &["twice"], &["d"])
        .field(1, with_integers("Conv", &["d", "weight"], "e", THREE))
        .node("Add", &["in", "e"], &["f"])
        .node("Add", &["f", "d"], &["y"])
        .output("y");
    check_frozen(&sums, "in", &["y", "d"], &[2, 4, 4]);
}

#[test]
fn what_else_is_wanted_changes_no_number() {
    let batch = numbers(3 * 400, 56);
    let alone = frozen(&["logits"]).forward(&mut Room::default(), &batch)[0].clone();
    for more in ["a", "a2", "b2", "c", "d2", "sum", "last"] {
        let both = frozen(&[more, "logits"])
            .forward(&mut Room::default(), &batch)
            .to_vec();
        assert_eq!(both[1], alone, "{more}");
    }
}

#[test]
fn a_samples_features_depend_on_the_sample_alone() {
    let (frozen, batch) = (frozen(&["b3", "logits"]), numbers(40 * 400, 55));
    let threads = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let all = threads(1).install(|| frozen.forward(&mut Room::default(), &batch).to_vec());
    let of_three = threads(3).install(|| frozen.forward(&mut Room::default(), &batch).to_vec());
    assert_eq!(all, of_three);
    let mut room = Room::default();
    for sample in [0, 31, 39] {
        let alone = frozen.forward(&mut room, &batch[sample * 400..][..400]);
        for (alone, all) in alone.iter().zip(&all) {
            assert_eq!(
                *alone,
                all[sample * alone.len()..][..alone.len()],
                "sample {sample}"
            );
        }
    }
}

/// A convolution of 32 channels and `size` taps along an axis, with something in front of it.
fn convolution(first: &str, size: u64) -> Graph {
    let attributes: &[(&str, &[u64])] = &[("kernel_shape", &[size; 2]), ("pads", &[size / 2; 4])];
    graph()
        .input("x", 1, &[0, 32, 8, 8])
        .node(first, &["x"], &["in"])
        .field(1, with_integers("Conv", &["in", "weight"], "y", attributes))
        .weight(
            "weight",
            &[32, 32, size, size],
            &[0.5; 32 * 32 * 9][..32 * 32 * (size * size) as usize],
        )
        .output("y")
}

#[test]
fn only_networks_of_tiles_are_run_without_onnx_runtime() {
    let pays = |graph: Graph| Frozen::pays(&graph.model(), "x", "y", &[32, 8, 8]);
    assert!(pays(convolution("Relu", 3)));
    assert!(!pays(convolution("Relu", 1)));
    assert!(!pays(convolution("TopK", 3)));
    let cut = convolution("TopK", 3).model();
    assert!(Frozen::pays(&cut, "in", "y", &[32, 8, 8]));
    assert!(Frozen::new(&cut, "x", &["y"], &[32, 8, 8]).is_err());
}

fn check_refuses(graph: &Graph, boundary: &str, expect: &str) {
    let options = TailOptions {
        boundary,
        output: "logits",
        input_shape: &[4],
        threads: 1,
    };
    assert_eq!(
        Tail::new(&graph.model(), &options).unwrap_err().to_string(),
        expect
    );
}

#[test]
fn what_cannot_be_trained_is_named() {
    let odd = graph()
        .input("x", 1, &[0, 4])
        .node("Identity", &["x"], &["in"])
        .named("TopK", "/pick", &["in"], "a")
        .node("Identity", &["a"], &["logits"])
        .output("logits");
    check_refuses(
        &odd,
        "in",
        "`m.onnx` cannot be trained behind `in`: TopK at node `/pick`: it has no derivative here",
    );
    let around = graph()
        .input("x", 1, &[0, 4])
        .node("Identity", &["x"], &["in"])
        .node("Relu", &["in"], &["a"])
        .node("Add", &["a", "in"], &["logits"])
        .output("logits");
    check_refuses(
        &around,
        "a",
        "`m.onnx` cannot be trained behind `a`: the nodes behind it also read `in`, which comes around it",
    );
    check_refuses(&around, "b", "`m.onnx` has no tensor `b`");
}
