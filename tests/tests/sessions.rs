//! Graphs of many kinds through one call: several inputs and outputs, numbers of other types, and what does not fit.

use std::path::Path;

use harness::onnx::{Attribute, Dim, Graph, dtype};
use runtime::engine::{Device, Engine, Input, Output, Session, SessionOptions};
use runtime::onnx::Model;

const ROWS: [Dim; 2] = [Dim::Any("batch"), Dim::Of(2)];

fn session(graph: Graph) -> Result<Session, runtime::Error> {
    let model = Model::parse(Path::new("m.onnx"), graph.build())?;
    let engine = Engine::open(Some(harness::onnx_runtime()))?;
    engine.session(
        &model,
        SessionOptions {
            intra_threads: 1,
            device: Device::Cpu,
        },
    )
}

fn f32s<'a>(shape: &'a [usize], values: &'a [f32]) -> Input<'a> {
    Input::F32 { shape, values }
}

fn i64s<'a>(shape: &'a [usize], values: &'a [i64]) -> Input<'a> {
    Input::I64 { shape, values }
}

/// `sum = x + n` and `product = x * n`, with `n` of whole numbers.
fn two_and_two(n: u64) -> Graph {
    Graph::new()
        .input("x", dtype::FLOAT, &ROWS)
        .input("n", n, &ROWS)
        .node_with("Cast", &["n"], &["f"], &[Attribute::Int("to", 1)])
        .node("Add", &["x", "f"], &["sum"])
        .node("Mul", &["x", "f"], &["product"])
        .output("sum", dtype::FLOAT)
        .output("product", dtype::FLOAT)
}

#[test]
fn inputs_and_outputs_go_by_the_model_s_order() {
    for kind in [dtype::INT64, dtype::INT32] {
        let mut session = session(two_and_two(kind)).unwrap();
        assert_eq!(session.input_names().collect::<Vec<_>>(), ["x", "n"]);
        assert_eq!(session.output_names().collect::<Vec<_>>(), ["sum", "product"]);
        let inputs = [f32s(&[1, 2], &[0.5, -2.0]), i64s(&[1, 2], &[3, 4])];
        let outputs = session.run(&inputs).unwrap();
        let expected = |values: [f32; 2]| Output {
            shape: vec![1, 2],
            values: values.to_vec(),
        };
        assert_eq!(outputs, [expected([3.5, 2.0]), expected([1.5, -8.0])]);
        // The same without a copy.
        let product = session
            .run_with(&inputs, |outputs| {
                assert_eq!((outputs[1].name, outputs[1].row_len()), ("product", 2));
                assert!(matches!(outputs[1].values, std::borrow::Cow::Borrowed(_)));
                outputs[1].values[1]
            })
            .unwrap();
        assert_eq!(product, -8.0);
    }
}

#[test]
fn numbers_of_other_types_are_converted_on_both_sides() {
    // 1 + 2^-11 lies between two float16 and goes to the even one; so does its double.
    for (kind, given, doubled) in [
        (dtype::FLOAT16, 1.0 + 2f32.powi(-11), 2.0),
        (dtype::FLOAT16, 1.0 + 3.0 * 2f32.powi(-11), 2.0 + 2f32.powi(-8)),
        (dtype::DOUBLE, 1.0 + 2f32.powi(-23), 2.0 + 2f32.powi(-22)),
    ] {
        let mut session = session(
            Graph::new()
                .input("x", kind, &[Dim::Any("batch")])
                .node("Add", &["x", "x"], &["y"])
                .output("y", kind),
        )
        .unwrap();
        let output = session.run(&[f32s(&[1], &[given])]).unwrap().remove(0);
        assert_eq!(output.values, [doubled], "{kind}");
    }
    let mut masked = session(
        Graph::new()
            .input("mask", dtype::BOOL, &[Dim::Any("batch")])
            .node_with("Cast", &["mask"], &["y"], &[Attribute::Int("to", 1)])
            .output("y", dtype::FLOAT),
    )
    .unwrap();
    let output = masked.run(&[i64s(&[3], &[0, 1, 7])]).unwrap().remove(0);
    assert_eq!(output.values, [0.0, 1.0, 1.0]);
}

#[test]
fn what_does_not_fit_is_said() {
    let fails = |session: &mut Session, inputs: &[Input<'_>], message: &str| {
        let error = session.run(inputs).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let x = f32s(&[1, 2], &[0.5, -2.0]);
    let mut wide = session(two_and_two(dtype::INT64)).unwrap();
    fails(
        &mut wide,
        &[x],
        "`m.onnx` cannot serve as a backbone: it takes 2 inputs (`x` float32, `n` int64), and 1 were given",
    );
    fails(&mut wide, &[x, x, x], "and 3 were given");
    fails(&mut wide, &[x, x], "its input `n`: it takes int64, not float32");
    // ONNX Runtime's own words name the input and the axis.
    fails(
        &mut wide,
        &[f32s(&[1, 3], &[0.0; 3]), i64s(&[1, 3], &[0; 3])],
        "ONNX Runtime could not run `m.onnx`: Got invalid dimensions for input: x",
    );
    fails(
        &mut wide,
        &[f32s(&[2, 2], &[0.0; 3]), i64s(&[1, 2], &[0; 2])],
        "its input `x`: Cannot create a tensor from raw data; shape",
    );
    let mut narrow = session(two_and_two(dtype::INT32)).unwrap();
    fails(
        &mut narrow,
        &[x, i64s(&[1, 2], &[1 << 31, 0])],
        "its input `n`: 2147483648 does not fit into int32",
    );
    let mut counts = session(
        Graph::new()
            .input("x", dtype::FLOAT, &ROWS)
            .node("Shape", &["x"], &["y"])
            .output("y", dtype::INT64),
    )
    .unwrap();
    fails(
        &mut counts,
        &[x],
        "its output `y` is int64, not float32 or float16",
    );
    let mut sums = session(
        Graph::new()
            .input("x", dtype::FLOAT, &ROWS)
            .node_with("ReduceSum", &["x"], &["y"], &[Attribute::Int("keepdims", 0)])
            .output("y", dtype::FLOAT),
    )
    .unwrap();
    let error = sums.run_rows(&[x], 1).unwrap_err().to_string();
    assert_eq!(
        error,
        "`m.onnx` cannot serve as a backbone: its output `y` has shape [] for 1 samples"
    );
}

#[test]
fn weights_beside_the_model_are_read_where_they_lie() {
    let weights: [f32; 2] = [2.0, -0.5];
    // At 6 the file does not align them to their type.
    for offset in [0, 4, 6, 4096] {
        let scratch = harness::Scratch::new();
        let mut data = vec![0xff; offset];
        data.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
        scratch.write("w.bin", &data);
        let graph = Graph::new()
            .input("x", dtype::FLOAT, &ROWS)
            .external("w", dtype::FLOAT, &[2], "w.bin", offset as u64)
            .node("Mul", &["x", "w"], &["y"])
            .output("y", dtype::FLOAT);
        let model = Model::open(&scratch.write("m.onnx", &graph.build())).unwrap();
        let engine = Engine::open(Some(harness::onnx_runtime())).unwrap();
        let options = SessionOptions {
            intra_threads: 1,
            device: Device::Cpu,
        };
        let mut session = engine.session(&model, options).unwrap();
        // The session holds what it reads, whatever becomes of the model.
        drop(model);
        let output = session.run(&[f32s(&[1, 2], &[3.0, 8.0])]).unwrap().remove(0);
        assert_eq!(output.values, [6.0, -4.0], "offset {offset}");
    }
}

#[test]
fn an_operator_that_onnx_runtime_does_not_know_is_named() {
    let error = session(
        Graph::new()
            .input("x", dtype::FLOAT, &ROWS)
            .node("Frobnicate", &["x"], &["y"])
            .output("y", dtype::FLOAT),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.starts_with("ONNX Runtime could not load `m.onnx`: ") && error.contains("Frobnicate"),
        "{error}"
    );
}
