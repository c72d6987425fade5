//! Backbones: weights from files beside the model and from checkpoints, several taps, and graphs that cannot be run.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::path::Path;

use harness::onnx::{Dim, Graph, dtype};
use harness::{Said, Scratch, fixture, run};
use pth::Existing;
use runtime::engine::{Device, Engine, Input, Output, SessionOptions};
use runtime::onnx::Model;

fn run_once(model: &Model, x: &[f32]) -> Vec<Output> {
    let engine = Engine::open(Some(harness::onnx_runtime())).unwrap();
    let options = SessionOptions {
        intra_threads: 1,
        device: Device::Cpu,
    };
    let mut session = engine.session(model, options).unwrap();
    let shape = [x.len() / 32, 32];
    session
        .run(&[Input::F32 {
            shape: &shape,
            values: x,
        }])
        .unwrap()
}

const X: [Dim; 2] = [Dim::Any("n"), Dim::Of(32)];

fn weights() -> Vec<u8> {
    let values = (0..2048u16).map(|idx| f32::from(idx % 37) / 16.0 - 1.0);
    values.flat_map(f32::to_le_bytes).collect()
}

/// Two layers with a clamp between, whose weights are put in by `weight`.
fn two_layers(weight: impl Fn(Graph, &str, usize) -> Graph) -> Vec<u8> {
    let made = Graph::new().input("x", dtype::FLOAT, &X);
    let made = weight(weight(made, "a", 0), "b", 4096);
    made.node("MatMul", &["x", "a"], &["h"])
        .node("Relu", &["h"], &["r"])
        .node("MatMul", &["r", "b"], &["y"])
        .output("y", dtype::FLOAT)
        .build()
}

#[test]
fn weights_beside_the_model_run_as_weights_in_it() {
    let scratch = Scratch::new();
    // At an odd place, which no number of four bytes may have in memory.
    scratch.write("w.bin", &[&[9], weights().as_slice()].concat());
    let outside =
        two_layers(|graph, name, at| graph.external(name, dtype::FLOAT, &[32, 32], "w.bin", at as u64 + 1));
    let inside = two_layers(|graph, name, at| {
        graph.initializer(name, dtype::FLOAT, &[32, 32], &weights()[at..at + 4096])
    });
    let outside = Model::open(&scratch.write("m.onnx", &outside)).unwrap();
    let inside = Model::parse(Path::new("inside.onnx"), inside).unwrap();
    assert_eq!(outside.external().len(), 2);
    let x: Vec<f32> = (0..64u8).map(|idx| f32::from(idx) / 64.0).collect();
    assert_eq!(run_once(&outside, &x), run_once(&inside, &x));
    // Several taps in one pass, in the order asked for, each what it is alone.
    let taps = outside.cut(&["y", "h"]).unwrap();
    let both = run_once(&taps, &x);
    for (idx, name) in ["y", "h"].into_iter().enumerate() {
        assert_eq!(both[idx], run_once(&inside.cut(&[name]).unwrap(), &x)[0]);
    }
    // Saved, it needs the other file no longer.
    let saved = scratch.path("saved.onnx");
    outside.save(&saved, Existing::Refuse).unwrap();
    assert_eq!(run_once(&Model::open(&saved).unwrap(), &x), run_once(&inside, &x));
}

fn extract(scratch: &Scratch, backbone: &Path, more: &[&str]) -> Said {
    let mut command = scratch.command([
        "extract", "--json", "--cache", "cache", "--resize", "32", "--crop", "32",
    ]);
    command
        .args(more)
        .arg("--backbone")
        .arg(backbone)
        .arg("--data")
        .arg(fixture("digits/pictures"));
    run(command)
}

#[test]
fn a_checkpoint_goes_into_the_graph_under_its_names() {
    let scratch = Scratch::new();
    let backbone = fixture("digits/backbone.onnx");
    let checkpoint = fixture("digits/backbone.pth");
    let checkpoint = checkpoint.to_str().unwrap();
    let with = |more: &[&str]| extract(&scratch, &backbone, &[&["--weights", checkpoint], more].concat());
    let plain = extract(&scratch, &backbone, &[]).ok().json();
    // The graph was exported with these values: nothing is computed again, whatever the names.
    for more in [
        &[][..],
        &["-e", "add module."],
        &["-e", "drop fc.**"],
        &["-e", "head fc classes=77"],
    ] {
        let again = with(more).ok().json();
        assert_eq!(again["entry"], plain["entry"], "{more:?}");
        assert_eq!(again["cache"]["misses"], 0, "{more:?}");
    }
    let other = with(&["-e", "scale conv1.conv.weight 2"]).ok().json();
    assert_ne!(other["entry"], plain["entry"]);
    assert_eq!(other["cache"]["hits"], 0);

    with(&["-e", "drop conv1.bn.bias"]).fails(3, "Missing key(s) in state_dict: \"conv1.bn.bias\".");
    with(&["-e", "drop conv1.bn.bias", "--weights-keep", "conv1.bn.bias"]).ok();
    with(&["-e", "rename conv1.bn.bias -> conv1.bn.bais"])
        .fails(3, "nearest are \"conv1.bn.bais\" for \"conv1.bn.bias\"");
    with(&["-e", "slice conv1.conv.weight 1 :2"]).fails(
        3,
        "size mismatch for conv1.conv.weight: copying a param with shape torch.Size([16, 2, 3, 3]) from checkpoint, \
         the shape in current model is torch.Size([16, 3, 3, 3]).",
    );
    with(&["-e", "frobnicate x"]).fails(2, "unknown verb `frobnicate`");
    with(&["--bn-eps=-1"]).fails(2, "--bn-eps");
    extract(&scratch, &backbone, &["-e", "strip x."]).fails(2, "--weights");
    extract(&scratch, &backbone, &["--weights", "absent.pth"]).fails(3, "absent.pth");
}

#[test]
fn graphs_that_cannot_be_run_are_refused_by_the_node() {
    let scratch = Scratch::new();
    let pixels = [Dim::Any("n"), Dim::Of(3), Dim::Of(32), Dim::Of(32)];
    let base = || Graph::new().input("x", dtype::FLOAT, &pixels);
    let check = |name: &str, graph: Graph, message: &str| {
        let path = scratch.write(name, &graph.output("y", dtype::FLOAT).build());
        extract(&scratch, &path, &["--cut", "y"]).fails(3, message);
    };
    check(
        "magic.onnx",
        base().node("Magic", &["x"], &["y"]),
        "Magic that makes `y` (ONNX's own domain, operator set 17)",
    );
    check(
        "late.onnx",
        base().node("Relu", &["a"], &["y"]).node("Neg", &["x"], &["a"]),
        "its nodes are not in order: the Relu that makes `y` reads `a`, which a later node makes",
    );
    check(
        "cycle.onnx",
        base()
            .node("Add", &["x", "b"], &["a"])
            .node("Neg", &["a"], &["b"])
            .node("Relu", &["b"], &["y"]),
        "its graph has a cycle",
    );
    check(
        "short.onnx",
        base()
            .initializer("w", dtype::FLOAT, &[4], &[0; 12])
            .node("Add", &["x", "w"], &["y"]),
        "its initialiser `w` is float32 of [4] and holds 12 bytes, not 16",
    );
    check(
        "outside.onnx",
        base()
            .external("w", dtype::FLOAT, &[32], "../w.bin", 0)
            .node("Add", &["x", "w"], &["y"]),
        "keeps `w` in `../w.bin`, which is not below the model's folder",
    );
}
