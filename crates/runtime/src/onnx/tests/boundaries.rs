use super::build::{Graph, graph, node, value_info};
use crate::error::Error;
use crate::onnx::Model;

/// conv, relu, a residual block, pooling and a classifier.
fn network() -> Graph {
    graph()
        .input("x", 1, &[0, 2, 4, 4])
        .weight("w0", &[2, 2, 1, 1], &[1.0; 4])
        .weight("w1", &[2, 2, 1, 1], &[1.0; 4])
        .weight("fc", &[2, 3], &[1.0; 6])
        .field(13, value_info("sum", 1, &[0, 2, 4, 4]))
        .node("Conv", &["x", "w0"], &["c0"])
        .node("Relu", &["c0"], &["r0"])
        .node("Conv", &["r0", "w1"], &["c1"])
        .node("Relu", &["c1"], &["r1"])
        .node("Add", &["r1", "r0"], &["sum"])
        .node("Relu", &["sum"], &["r2"])
        .node("GlobalAveragePool", &["r2"], &["pool"])
        .node("Flatten", &["pool"], &["flat"])
        .node("MatMul", &["flat", "fc"], &["y"])
        .output("y")
}

fn names(model: &Model) -> Vec<String> {
    model.boundaries().into_iter().map(|found| found.name).collect()
}

#[test]
fn what_the_whole_network_goes_through_is_found_in_order() {
    let model = network().model();
    assert_eq!(names(&model), ["c0", "r0", "sum", "r2", "pool", "flat", "y"]);
    let found = model.boundaries();
    let marked = |is: fn(&crate::onnx::Boundary) -> bool| -> Vec<&str> {
        found
            .iter()
            .filter(|at| is(at))
            .map(|at| at.name.as_str())
            .collect()
    };
    assert_eq!(marked(|at| at.is_suggested), ["r0", "r2"]);
    assert_eq!(marked(|at| at.is_default), ["flat"]);
    assert!(found.iter().all(|at| at.is_sole));
    let sum = &found[2];
    assert_eq!((sum.parameters_before, sum.parameters_behind), (8, 6));
    assert_eq!(sum.shape, Some(vec![None, Some(2), Some(4), Some(4)]));
    assert_eq!((sum.op_type.as_str(), sum.node_idx), ("Add", 4));
}

/// A tensor dominates if the output cannot be reached without it: tried one by one.
fn by_removal(model: &Model) -> Vec<String> {
    let output = model.outputs()[0].clone();
    let mut found = Vec::new();
    for node in &model.nodes {
        for name in &node.outputs {
            let mut reached = vec!["x"];
            for node in &model.nodes {
                if node.reads().any(|name| reached.contains(&name)) {
                    reached.extend(
                        node.outputs
                            .iter()
                            .map(String::as_str)
                            .filter(|made| made != name),
                    );
                }
            }
            if !reached.contains(&output.as_str()) {
                found.push(name.clone());
            }
        }
    }
    found
}

#[test]
fn dominators_are_those_without_which_the_output_is_not_reached() {
    // Counted up, so that every graph of five nodes and more is another.
    for seed in 0u64..400 {
        let mut state = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut draw = |n: usize| {
            let mut bytes = [0; 8];
            state.fill(&mut bytes);
            usize::try_from(u64::from_le_bytes(bytes) % n as u64).unwrap()
        };
        let n_nodes = 2 + draw(9);
        let tensors: Vec<String> = std::iter::once("x".to_owned())
            .chain((0..n_nodes).map(|idx| format!("t{idx}")))
            .collect();
        let mut made = graph().input("x", 1, &[1]);
        for idx in 0..n_nodes {
            // Near tensors more often than far ones, or nothing would dominate.
            let mut read = || &*tensors[idx.saturating_sub(draw(3))];
            let (a, b) = (read(), read());
            let inputs: &[&str] = if a == b { &[a] } else { &[a, b] };
            made = made.node("Sum", inputs, &[&tensors[idx + 1]]);
        }
        let model = made.output(&tensors[n_nodes]).model();
        assert_eq!(names(&model), by_removal(&model), "seed {seed}");
    }
}

#[test]
fn sizes_and_second_inputs_are_no_paths_and_are_told() {
    let model = graph()
        .input("input_ids", 7, &[0, 8])
        .input("attention_mask", 7, &[0, 8])
        .weight("table", &[3, 2], &[0.0; 6])
        .node("Gather", &["table", "input_ids"], &["e"])
        .node("Shape", &["e"], &["size"])
        .node("Relu", &["e"], &["a"])
        .node("Mul", &["a", "attention_mask"], &["b"])
        .node("Reshape", &["b", "size"], &["c"])
        .node("Relu", &["c"], &["d"])
        .output("d")
        .model();
    let found = model.boundaries();
    let told: Vec<(&str, bool)> = found.iter().map(|at| (at.name.as_str(), at.is_sole)).collect();
    // Behind `e` the mask is read, behind `a` the mask and the size of `e`.
    assert_eq!(
        told,
        [("e", false), ("a", false), ("b", false), ("c", true), ("d", true)]
    );
}

#[test]
fn a_transformer_is_cut_behind_its_blocks() {
    let mut made = graph()
        .input("x", 1, &[0, 4, 2])
        .weight("w", &[2, 2], &[1.0; 4])
        .weight("g", &[2], &[1.0; 2]);
    let mut stream = "x".to_owned();
    for block in 0..2 {
        let t = |name: &str| format!("{name}{block}");
        made = made
            .node("LayerNormalization", &[&stream, "g"], &[&t("n")])
            .node("MatMul", &[&t("n"), "w"], &[&t("q")])
            .node("Softmax", &[&t("q")], &[&t("p")])
            .node("MatMul", &[&t("p"), &t("n")], &[&t("o")])
            .node("Add", &[&stream, &t("o")], &[&t("attended")])
            .node("LayerNormalization", &[&t("attended"), "g"], &[&t("m")])
            .node("MatMul", &[&t("m"), "w"], &[&t("h")])
            .node("Erf", &[&t("h")], &[&t("erf")])
            .node("Mul", &[&t("h"), &t("erf")], &[&t("gelu")])
            .node("Add", &[&t("attended"), &t("gelu")], &[&t("block")]);
        stream = t("block");
    }
    let model = made
        .node("LayerNormalization", &[&stream, "g"], &["norm"])
        .node("Gather", &["norm", "index"], &["cls"])
        .field(
            5,
            super::build::with(super::build::tensor("index", 7, &[]), 9, &[0; 8]),
        )
        .output("cls")
        .model();
    let found = model.boundaries();
    let all: Vec<&str> = found.iter().map(|at| at.name.as_str()).collect();
    assert_eq!(all, ["attended0", "block0", "attended1", "block1", "norm", "cls"]);
    let ends: Vec<&str> = found
        .iter()
        .filter(|at| at.is_suggested)
        .map(|at| at.name.as_str())
        .collect();
    assert_eq!(ends, ["block0", "norm"]);
}

#[test]
fn several_taps_are_outputs_in_the_order_given() {
    let model = network().model();
    // One is an ancestor of another, one no dominator, one the old output.
    let cut = model.cut(&["r2", "r1", "y", "c0"]).unwrap();
    assert_eq!(cut.outputs(), ["r2", "r1", "y", "c0"]);
    let cut = model.cut(&["r1", "r0"]).unwrap();
    assert_eq!(cut.outputs(), ["r1", "r0"]);
    assert_eq!(cut.nodes.len(), 4);
    assert!(!cut.initializers.contains_key("fc"));
    for boundary in ["r1", "r0"] {
        assert_eq!(
            cut.prefix_digest(boundary).unwrap(),
            model.prefix_digest(boundary).unwrap()
        );
    }
    // Again, from the cut graph.
    assert_eq!(cut.cut(&["c0"]).unwrap().nodes.len(), 1);
    // What the file says of a tensor stays said.
    let again = model.cut(&["sum"]).unwrap();
    assert_eq!(
        again.infos["sum"].about.shape,
        Some(vec![None, Some(2), Some(4), Some(4)])
    );
    assert_eq!(again.infos["sum"].about.elem_type, 1);
    assert_eq!(cut.infos["r1"].about.elem_type, 0, "not made up");
}

#[test]
fn a_cut_that_cannot_be_is_said() {
    let model = network().model();
    let message = |boundaries: &[&str]| model.cut(boundaries).unwrap_err().to_string();
    assert_eq!(message(&[]), "there is no tensor to cut at");
    assert_eq!(message(&["r0", "r0"]), "`r0` is given twice to cut at");
    assert_eq!(message(&["r0", "r9"]), "`m.onnx` has no tensor `r9`");
    let Error::UnknownTensor { suggestions, .. } = model.cut(&["r9"]).unwrap_err() else {
        panic!("another error")
    };
    assert!(suggestions.contains(&"r2".to_owned()), "{suggestions:?}");
    assert!(message(&["fc"]).contains("`fc` (made by nothing: it is a weight) does not depend on the input"));
    assert!(message(&["x"]).contains("has no tensor `x`"));
}

#[test]
fn a_node_without_a_name_is_still_a_node() {
    let model = graph()
        .input("x", 1, &[1])
        .field(1, node("Split", "cut/in/two", "", &["x"], &["a", "b"]))
        .node("Concat", &["a", "b"], &["y"])
        .output("y")
        .model();
    assert_eq!(names(&model), ["y"]);
}
