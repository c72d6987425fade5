//! Heads behind graphs: which operators, under which names, and where their numbers lie. What they compute is compared with
//! torch by `tools/check_export.py`, through ONNX Runtime.

use super::build::graph;
use crate::head::{BatchNorm1d, Head, Layer, LayerNorm, Linear};
use crate::onnx::{Model, Outputs, Reduction};
use crate::targets::Task;

fn linear(n_out: usize, n_in: usize) -> Layer {
    Layer::Linear(Linear {
        weight: (0..n_out * n_in).map(|i| i as f32).collect(),
        bias: vec![0.5; n_out],
        n_in,
        n_out,
    })
}

fn batch_norm(n: usize) -> Layer {
    Layer::BatchNorm1d(BatchNorm1d {
        weight: vec![2.0; n],
        bias: vec![1.0; n],
        running_mean: vec![0.5; n],
        running_var: vec![4.0; n],
        num_batches_tracked: 1,
        eps: 0.0,
    })
}

fn layer_norm(n: usize) -> Layer {
    Layer::LayerNorm(LayerNorm {
        weight: vec![1.0; n],
        bias: vec![0.0; n],
        eps: 1e-5,
    })
}

fn head(task: Task, layers: Vec<Layer>) -> Head {
    Head::new(task, vec!["a".into(), "b".into()], layers).unwrap()
}

fn backbone(opset: u64) -> Model {
    let opsets: &[(&'static str, u64)] = &[("", opset)];
    graph()
        .opsets(opsets)
        .input("x", 1, &[0, 4])
        .node("Relu", &["x"], &["features"])
        .node("Sqrt", &["features"], &["logits"])
        .output("logits")
        .model()
}

fn spliced(opset: u64, head: &Head) -> Model {
    let outputs = Outputs::LogitsAndProbabilities;
    backbone(opset)
        .splice("features", Reduction::None, head, outputs, &[])
        .unwrap()
}

fn operators(model: &Model) -> Vec<&str> {
    model.nodes.iter().map(|node| node.op_type.as_str()).collect()
}

#[test]
fn layers_become_the_operators_of_the_operator_set() {
    let layers = || {
        vec![
            linear(3, 4),
            layer_norm(3),
            Layer::Gelu,
            Layer::Dropout { p: 0.5 },
            linear(2, 3),
        ]
    };
    let newest = spliced(20, &head(Task::SingleLabel, layers()));
    let expected = [
        "Relu",
        "Flatten",
        "Gemm",
        "LayerNormalization",
        "Gelu",
        "Gemm",
        "Softmax",
    ];
    assert_eq!(operators(&newest), expected);
    assert_eq!(newest.outputs(), ["logits", "probabilities"]);
    let old = spliced(13, &head(Task::MultiLabel, layers()));
    let expected = [
        "Relu",
        "Flatten",
        "Gemm",
        "ReduceMean",
        "Sub",
        "Mul",
        "ReduceMean",
        "Add",
        "Sqrt",
        "Div",
        "Mul",
        "Add",
        "Mul",
        "Erf",
        "Add",
        "Mul",
        "Mul",
        "Gemm",
        "Sigmoid",
    ];
    assert_eq!(operators(&old), expected);
    let mut names: Vec<&str> = old
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    // The graph's own numbers keep their names, those of the head are its state dict's.
    for name in ["head.0.weight", "head.0.bias", "head.1.weight", "head.4.weight"] {
        assert!(old.initializers.contains_key(name), "{name}");
    }
    let numbers = spliced(13, &head(Task::Regression, vec![linear(2, 4)]));
    assert_eq!(
        (operators(&numbers), numbers.outputs()),
        (vec!["Relu", "Flatten", "Gemm"], &["logits".to_owned()][..])
    );
    assert!(numbers.initializers.contains_key("head.weight"));
}

#[test]
fn a_batch_normalisation_is_folded_where_a_linear_layer_is_beside_it() {
    let behind = vec![linear(3, 4), batch_norm(3), Layer::Relu, linear(2, 3)];
    let made = spliced(17, &head(Task::Regression, behind));
    assert_eq!(operators(&made), ["Relu", "Flatten", "Gemm", "Relu", "Gemm"]);
    let in_front = vec![batch_norm(4), Layer::Dropout { p: 0.5 }, linear(2, 4)];
    let made = spliced(17, &head(Task::Regression, in_front));
    assert_eq!(operators(&made), ["Relu", "Flatten", "Gemm"]);
    // 2·(x - 0.5)/2 + 1 = x + 0.5 of each number: the weights stay, and the bias is 0.5 + 0.5·(0 + 1 + 2 + 3).
    let bias = &made.bytes[made.initializers["head.bias"].field.clone()];
    assert!(bias.windows(4).any(|bytes| bytes == 3.5f32.to_le_bytes()));
    let between = vec![
        linear(3, 4),
        Layer::Relu,
        batch_norm(3),
        Layer::Relu,
        linear(2, 3),
    ];
    let made = spliced(17, &head(Task::Regression, between));
    let expected = [
        "Relu",
        "Flatten",
        "Gemm",
        "Relu",
        "BatchNormalization",
        "Relu",
        "Gemm",
    ];
    assert_eq!(operators(&made), expected);
}

#[test]
fn names_of_the_backbone_are_left_to_it() {
    let taken = graph()
        .input("head.weight", 1, &[0, 4])
        .node("Relu", &["head.weight"], &["logits"])
        .node("Relu", &["logits"], &["y"])
        .output("y")
        .model();
    let head = head(Task::SingleLabel, vec![linear(2, 4)]);
    let made = taken
        .splice("logits", Reduction::None, &head, Outputs::Logits, &[])
        .unwrap();
    assert_eq!(made.outputs(), ["logits_1"]);
    assert!(made.initializers.contains_key("head.weight_1"));
    assert_eq!(made.inputs()[0].name, "head.weight");
}

#[test]
fn a_head_that_does_not_fit_into_the_file_lies_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let (head, limit) = (
        head(Task::SingleLabel, vec![linear(600, 4), linear(2, 600)]),
        4096,
    );
    let model = backbone(17)
        .splice_below("features", Reduction::None, &head, Outputs::Logits, &[], limit)
        .unwrap();
    let outside: Vec<&str> = model
        .external()
        .iter()
        .map(|external| external.name.as_str())
        .collect();
    assert_eq!(
        outside,
        ["head.0.weight", "head.0.bias", "head.1.weight"],
        "small ones stay inside"
    );
    assert!(model.bytes().len() < limit);
    let files = model
        .save_below(&path, pth::Existing::Refuse, limit as u64)
        .unwrap();
    assert_eq!(files.len(), 2);
    let again = Model::open(&path).unwrap();
    for (made, read) in model.external().iter().zip(again.external()) {
        assert_eq!(
            (&made.name, &made.shape, made.bytes()),
            (&read.name, &read.shape, read.bytes())
        );
    }
    assert!(again.inlined().unwrap().unwrap().external().is_empty());
}

#[test]
fn probabilities_come_behind_a_finished_model_byte_by_byte() {
    let two_layers = || vec![linear(3, 4), Layer::Relu, linear(2, 3)];
    for task in [Task::SingleLabel, Task::MultiLabel] {
        let head = head(task, two_layers());
        let metadata = [("key", "value".to_owned())];
        let with = |outputs| {
            let made = backbone(17).splice("features", Reduction::None, &head, outputs, &metadata);
            made.unwrap()
        };
        let (narrow, wide) = (with(Outputs::Logits), with(Outputs::LogitsAndProbabilities));
        let widened = narrow.with_probabilities(task, 2).unwrap();
        assert_eq!(operators(&widened), operators(&wide));
        assert_eq!(widened.outputs(), wide.outputs());
        assert_eq!(widened.metadata("key").unwrap(), "value");
        // The graph's fields are those that it had, in their order, and behind them a node and an output.
        let fields = |model: &Model| -> Vec<Vec<u8>> {
            let fields = model.graph.iter();
            fields
                .map(|field| model.bytes[field.span.clone()].to_vec())
                .collect()
        };
        let (before, after) = (fields(&narrow), fields(&widened));
        assert_eq!(after[..before.len()], before);
        assert_eq!(after.len(), before.len() + 2);
        let error = widened.with_probabilities(task, 2).unwrap_err().to_string();
        assert!(
            error.ends_with("has 2 outputs, and probabilities are of the logits alone"),
            "{error}"
        );
    }
    let numbers = spliced(17, &head(Task::Regression, two_layers()));
    let same = numbers.with_probabilities(Task::Regression, 2).unwrap();
    assert_eq!(same.bytes(), numbers.bytes());
}
