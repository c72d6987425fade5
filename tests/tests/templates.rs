//! Graphs from checkpoints: `convert net.pth net.onnx`, a checkpoint as a backbone, and the table of a network with an input.
//!
//! The template is the Python file that the fixture's network was trained from, as it is. `tools/parity_templates.py` and
//! `tools/parity_summary.py` compare the networks of torchvision and timm with PyTorch.

use std::path::PathBuf;
use std::process::Command;

use harness::{Said, Scratch, fixture, root, run};

/// Python source of the class that the checkpoint is of.
fn template() -> PathBuf {
    root().join("tools/digits_cnn.py")
}

fn with_template(mut command: Command) -> Command {
    command.arg("--template").arg(template());
    command
}

fn convert(scratch: &Scratch, out: &str) -> Said {
    let mut command = scratch.command_without_runtime(["convert"]);
    command
        .arg(fixture("digits/backbone.pth"))
        .args([out, "--input-size", "32"]);
    run(with_template(command))
}

#[test]
fn a_checkpoint_becomes_a_graph_by_its_own_python_source() {
    let scratch = Scratch::new();
    let said = convert(&scratch, "m.onnx").ok();
    assert!(
        said.stdout
            .starts_with("wrote m.onnx: DigitsCnn for [batch, 3, 32, 32], 17"),
        "{}",
        said.stdout
    );
    convert(&scratch, "m.onnx").fails(2, "exists");
    let cuts = |mut command: Command| {
        command.arg("--json");
        run(command).ok().json()
    };
    let of_graph = cuts(scratch.command_without_runtime(["cuts", "m.onnx"]));
    let mut command = scratch.command_without_runtime(["cuts", "--input-size", "32"]);
    command.arg(fixture("digits/backbone.pth"));
    let of_checkpoint = cuts(with_template(command));
    assert_eq!(of_graph, of_checkpoint);
    let names: Vec<&str> = of_graph
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|cut| cut["name"].as_str())
        .collect();
    assert!(names.contains(&"/conv4/relu/Relu_output_0"), "{names:?}");
    assert!(names.contains(&"/flatten/Flatten_output_0"), "{names:?}");
}

#[test]
fn features_of_a_checkpoint_are_pytorchs_and_those_of_the_graph_made_of_it() {
    let scratch = Scratch::new();
    convert(&scratch, "m.onnx").ok();
    let extract = |backbone: PathBuf, more: &[&str]| {
        let mut command = scratch.command(["extract", "--cache", "cache", "--dtype", "float32"]);
        command.args(["--resize", "32", "--crop", "32"]).args(more);
        command.arg("--backbone").arg(backbone);
        command.arg("--data").arg(fixture("digits/pictures"));
        command
    };
    let checkpoint = extract(fixture("digits/backbone.pth"), &[]);
    let said = run(with_template(checkpoint)).ok();
    assert!(
        said.stderr
            .contains("is a DigitsCnn, for pictures of 3 x 32 x 32"),
        "{}",
        said.stderr
    );
    let entry = scratch.path(said.stdout.trim());
    harness::digits::check_features(&entry);
    // The key is of the content, so that the written graph finds every row.
    let again = run(extract(scratch.path("m.onnx"), &["--json"])).ok().json();
    assert_eq!(again["cache"]["misses"], 0, "{again}");
    assert_eq!(again["cache"]["hits"], 700, "{again}");
}

#[test]
fn the_table_has_shapes_and_marks() {
    let scratch = Scratch::new();
    let mut edit =
        scratch.command_without_runtime(["convert", "--freeze", "conv1.**", "--freeze", "conv2.**"]);
    edit.arg(fixture("digits/backbone.pth")).arg("frozen.pth");
    run(edit).ok();
    let table = |more: &[&str]| {
        let mut command =
            scratch.command_without_runtime(["summary", "frozen.pth", "--input-size", "10,3,32,32"]);
        command.args(more);
        run(with_template(command)).ok().stdout
    };
    // torchinfo 1.8.0's own text: `summary(net, input_size=(10, 3, 32, 32), depth=1)`.
    let expected = "\
==========================================================================================
Layer (type:depth-idx)                   Output Shape              Param #
==========================================================================================
DigitsCnn                                [10, 5]                   --
├─ConvBlock: 1-1                         [10, 16, 32, 32]          (464)
├─ConvBlock: 1-2                         [10, 24, 16, 16]          (3,504)
├─ConvBlock: 1-3                         [10, 48, 8, 8]            10,464
├─ConvBlock: 1-4                         [10, 64, 8, 8]            27,776
├─AdaptiveAvgPool2d: 1-5                 [10, 64, 1, 1]            --
├─Flatten: 1-6                           [10, 64]                  --
├─Linear: 1-7                            [10, 5]                   325
==========================================================================================
Total params: 42,533
Trainable params: 38,565
Non-trainable params: 3,968
Total mult-adds (M): 37.61
==========================================================================================
Input size (MB): 0.12
Forward/backward pass size (MB): 4.75
Params size (MB): 0.17
Estimated Total Size (MB): 5.04
==========================================================================================
";
    assert_eq!(table(&["--depth", "1"]), expected);
    let wide = table(&["--columns", "kernel_size,mult_adds", "--var-names"]);
    assert!(
        wide.contains("│    └─Conv2d (conv): 2-1                [3, 3]                    4,423,680\n"),
        "{wide}"
    );
}

#[test]
fn what_fits_no_template_is_said() {
    let scratch = Scratch::new();
    let checkpoint = fixture("digits/backbone.pth");
    let mut command = scratch.command_without_runtime(["convert"]);
    command.arg(&checkpoint).arg("m.onnx");
    let said = run(command).fails(3, "backbone.pth` fits no template, and `");
    assert!(
        said.stderr.contains("is the nearest: ") && said.stderr.contains(" missing ("),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("hint: --template FILE"), "{}", said.stderr);
    assert!(!scratch.path("m.onnx").exists());

    let mut command =
        scratch.command_without_runtime(["summary", "--input-size", "1,3,32,32", "--template", "resnet18"]);
    command.arg(&checkpoint);
    run(command).fails(3, "does not fit the template `resnet18`");

    let bad = scratch.write(
        "net.template",
        b"class Net(nn.Module):\n    def __init__(self):\n        self.fc = nn.Linear(64)\n",
    );
    let mut command = scratch.command_without_runtime(["convert"]);
    command.arg(&checkpoint).arg("m.onnx").arg("--template").arg(&bad);
    let said = run(command).fails(3, "`__init__` needs `out_features`");
    assert!(
        said.stderr.contains("net.template, line 3, column 19\n"),
        "{}",
        said.stderr
    );
    assert!(
        said.stderr.contains("3 |         self.fc = nn.Linear(64)\n"),
        "{}",
        said.stderr
    );

    let mut command = scratch.command_without_runtime(["convert", "--dtype", "float16"]);
    command.arg(&checkpoint).arg("m.onnx");
    run(command).fails(2, "--dtype means nothing to an ONNX model");
    let mut command = scratch.command_without_runtime(["cuts", "--input-size", "32"]);
    command.arg(fixture("digits/backbone.onnx"));
    run(command).fails(2, "--input-size is for checkpoints");
}
