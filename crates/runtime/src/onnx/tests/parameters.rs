//! Parameters of graphs by a state dict's names, classifiers, and numbers put in by name.

use std::collections::HashMap;

use super::build::{Graph, graph};
use crate::head::Head;
use crate::onnx::{Model, Reduction};
use crate::targets::Task;

/// A convolution, two normalisations of which one's scale is the other's by another name, and a linear layer that was
/// transposed at export.
fn network() -> Graph {
    let two = [1.0f32; 2];
    graph()
        .input("x", 1, &[0, 2, 4, 4])
        .weight("conv.weight", &[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0])
        .weight("bn1.weight", &[2], &two)
        .weight("bn1.bias", &[2], &[0.0; 2])
        .weight("bn1.running_mean", &[2], &[0.5; 2])
        .weight("bn1.running_var", &[2], &two)
        .weight("scale", &[], &[2.0])
        .weight("onnx::MatMul_9", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .weight("fc.bias", &[3], &[0.1, 0.2, 0.3])
        .node("Identity", &["bn1.weight"], &["bn2.weight"])
        .named("Conv", "/conv/Conv", &["x", "conv.weight"], "c")
        .named(
            "BatchNormalization",
            "/bn1/BatchNormalization",
            &[
                "c",
                "bn1.weight",
                "bn1.bias",
                "bn1.running_mean",
                "bn1.running_var",
            ],
            "b",
        )
        .named(
            "BatchNormalization",
            "/bn2/BatchNormalization",
            &[
                "b",
                "bn2.weight",
                "bn1.bias",
                "bn1.running_mean",
                "bn1.running_var",
            ],
            "b2",
        )
        .node("Mul", &["b2", "scale"], &["m"])
        .node("GlobalAveragePool", &["m"], &["p"])
        .node("Flatten", &["p"], &["features"])
        .named("MatMul", "/fc/MatMul", &["features", "onnx::MatMul_9"], "z")
        .named("Add", "/fc/Add", &["fc.bias", "z"], "logits")
        .output("logits")
}

#[test]
fn parameters_have_the_names_that_a_state_dict_has() {
    let model = network().model().untied().unwrap();
    let parameters = model.parameters();
    let found: Vec<(&str, &str, bool, bool)> = parameters
        .iter()
        .map(|at| {
            (
                at.name.as_str(),
                at.initializer.as_str(),
                at.is_transposed,
                at.is_buffer,
            )
        })
        .collect();
    let same = |name: &'static str, is_buffer| (name, name, false, is_buffer);
    let expected = [
        same("conv.weight", false),
        same("bn1.weight", false),
        same("bn1.bias", false),
        same("bn1.running_mean", true),
        same("bn1.running_var", true),
        same("bn2.weight", false),
        ("fc.weight", "onnx::MatMul_9", true, false),
        same("fc.bias", false),
    ];
    assert_eq!(found, expected);
    assert_eq!(parameters[6].state_shape(), [3, 2]);
    let turned = parameters[6].turned(&model.values("onnx::MatMul_9").unwrap(), &parameters[6].shape);
    assert_eq!(turned, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(
        parameters[6].turned(&turned, &[3, 2]),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );
}

#[test]
fn names_of_one_tensor_are_tensors_of_their_own_once_they_are_untied() {
    let tied = network().model();
    let model = tied.untied().unwrap();
    assert!(model.nodes.iter().all(|node| node.op_type != "Identity"));
    assert_eq!(model.values("bn2.weight"), tied.values("bn1.weight"));
    let changed = model
        .with_values(&HashMap::from([("bn2.weight".to_owned(), vec![7.0, 8.0])]))
        .unwrap();
    assert_eq!(changed.values("bn2.weight").unwrap(), [7.0, 8.0]);
    assert_eq!(changed.values("bn1.weight").unwrap(), [1.0, 1.0]);
    assert_eq!(model.untied().unwrap().bytes(), model.bytes());
    for (name, numbers) in [("bn2.weight", vec![1.0]), ("none", vec![1.0])] {
        let error = model
            .with_values(&HashMap::from([(name.to_owned(), numbers)]))
            .unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_lies_outside_is_changed_outside() {
    let values: Vec<f32> = (0..2048).map(|at| at as f32).collect();
    let model = graph()
        .input("x", 1, &[0, 2048])
        .weight("a.weight", &[2048], &values)
        .node("Mul", &["x", "a.weight"], &["y"])
        .output("y")
        .model()
        .with_weights_outside()
        .unwrap();
    assert_eq!(model.external().len(), 1);
    let new: Vec<f32> = values.iter().map(|value| value + 1.0).collect();
    let changed = model
        .with_values(&HashMap::from([("a.weight".to_owned(), new.clone())]))
        .unwrap();
    assert_eq!(changed.values("a.weight").unwrap(), new);
    assert_eq!(model.values("a.weight").unwrap(), values);
}

#[test]
fn classifiers_are_read_as_torch_has_them() {
    let model = network().model();
    let found = model.classifier_at("features").unwrap();
    assert_eq!(found.module, "fc");
    assert_eq!(found.weight, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(found.bias, [0.1, 0.2, 0.3]);
    assert!(model.classifier_at("p").is_none());

    let head = Head::linear(
        Task::SingleLabel,
        vec!["a".into(), "b".into()],
        vec![1.0, 2.0, 3.0, 4.0],
        vec![5.0, 6.0],
    );
    let spliced = model
        .splice_as("fc", "features", Reduction::None, &head.unwrap(), &[])
        .unwrap();
    assert_eq!(spliced.values("fc.weight").unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(spliced.values("fc.bias").unwrap(), [5.0, 6.0]);
    assert_eq!(spliced.outputs(), ["logits"]);
    let found = spliced.classifier_at("head.input");
    assert!(found.is_some_and(|found| (found.module.as_str(), found.bias) == ("fc", vec![5.0, 6.0])));
    assert!(!spliced.initializers.contains_key("onnx::MatMul_9"));
}

#[test]
fn the_input_alone_is_a_graph() {
    let model: Model = network().model();
    let (alone, name) = model.input_alone().unwrap();
    assert_eq!(alone.outputs(), [name.as_str()]);
    assert_eq!(alone.inputs(), model.inputs());
    assert!(alone.initializers.is_empty() && alone.nodes.len() == 1);
    alone.prefix_digest(&name).unwrap();
}
