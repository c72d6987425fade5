//! `summary` through the binary. The rows are those that torchinfo 1.8.0 prints of the fixtures' network, without the modules that own
//! no tensor and with `Module` for classes of the network's own; `tools/parity_summary.py` compares whole models.

use harness::{Said, Scratch, fixture, run};

const TABLE: &str = "\
===================================================================================================================
Layer (type (var_name):depth-idx)        Kernel Shape              Param #                   Trainable
===================================================================================================================
DigitsCnn (DigitsCnn)                    --                        --                        True
├─Module (conv1): 1-1                    --                        --                        True
│    └─Conv2d (conv): 2-1                [3, 3]                    432                       True
│    └─BatchNorm2d (bn): 2-2             --                        32                        True
├─Module (conv2): 1-2                    --                        --                        True
│    └─Conv2d (conv): 2-3                [3, 3]                    3,456                     True
│    └─BatchNorm2d (bn): 2-4             --                        48                        True
├─Module (conv3): 1-3                    --                        --                        True
│    └─Conv2d (conv): 2-5                [3, 3]                    10,368                    True
│    └─BatchNorm2d (bn): 2-6             --                        96                        True
├─Module (conv4): 1-4                    --                        --                        True
│    └─Conv2d (conv): 2-7                [3, 3]                    27,648                    True
│    └─BatchNorm2d (bn): 2-8             --                        128                       True
├─Linear (fc): 1-5                       --                        325                       True
===================================================================================================================
Total params: 42,533
Trainable params: 42,533
Non-trainable params: 0
===================================================================================================================
Params size (MB): 0.17
Buffers size (MB): 0.00 (12 tensors)
Types: float32 42.8 k 171 kB, int64 4 32 B
Largest tensor: conv4.conv.weight float32 [64, 48, 3, 3] 111 kB
Marks: none in the file, so that every parameter counts as trainable
===================================================================================================================
";

fn summary(scratch: &Scratch, file: &std::path::Path, more: &[&str]) -> Said {
    let mut command = scratch.command_without_runtime(["summary"]);
    command.arg(file).args(more);
    run(command)
}

#[test]
fn the_table_is_torchinfos() {
    let scratch = Scratch::new();
    let file = fixture("digits/backbone.pth");
    let said = summary(&scratch, &file, &["--name", "DigitsCnn"]).ok();
    assert_eq!(said.stdout, TABLE);
    assert_eq!(said.stderr, "");
    // A pickled module carries the marks that a plain state dict loses, and is called like its file.
    let whole = summary(&scratch, &fixture("digits/backbone_model.pth"), &[]).ok();
    let marked = TABLE.replace(
        "Marks: none in the file, so that every parameter counts as trainable\n",
        "",
    );
    let (mut got, mut want) = (whole.stdout.lines(), marked.lines());
    assert!(got.any(|line| line.starts_with("backbone_model (backbone_model) ")));
    want.find(|line| line.starts_with("DigitsCnn"));
    assert!(got.eq(want), "{}", whole.stdout);
}

#[test]
fn frozen_counts_are_in_parentheses_whatever_the_format() {
    let scratch = Scratch::new();
    for out in ["out.pth", "out.safetensors"] {
        let mut convert = scratch.command_without_runtime(["convert", "--freeze", "conv*.**"]);
        convert.args(["--freeze", "fc.bias"]);
        convert.arg(fixture("digits/backbone.pth")).arg(out);
        run(convert).ok();
        let text = summary(&scratch, &scratch.path(out), &["--depth", "1"])
            .ok()
            .stdout;
        for (start, count, trainable) in [
            ("out (out) ", "--", "Partial"),
            ("├─Module (conv1): ", "(464)", "False"),
            ("├─Module (conv4): ", "(27,776)", "False"),
            ("├─Linear (fc): ", "325", "Partial"),
        ] {
            let line = text.lines().find(|line| line.starts_with(start)).expect(start);
            let cells: Vec<&str> = line.split_whitespace().rev().take(2).collect();
            assert_eq!(cells, [trainable, count], "{out}: {line}");
        }
        assert!(text.contains("\nTrainable params: 320\nNon-trainable params: 42,213\n"));
        assert!(!text.contains("2-1") && !text.contains("Marks: none"));
    }
}

#[test]
fn ties_lines_of_parameters_and_json() {
    let scratch = Scratch::new();
    let file = fixture("checkpoints/parameters.pth");
    let text = summary(&scratch, &file, &["--verbose"]).ok().stdout;
    for line in [
        "├─Linear (tied): 1-4                     --                        (recursive)               False\n",
        "│    └─weight                            [2, 4]                    ├─8\n",
        "tied: tied.weight = conv.weight, counted once\n",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let json = summary(&scratch, &file, &["--json"]).ok().json();
    assert_eq!(json["name"], "parameters");
    assert_eq!(json["totals"]["n_params"], 22);
    assert_eq!(json["totals"]["n_trainable"], 12);
    assert_eq!(json["totals"]["ties"][0]["first"], "conv.weight");
    let rows = json["rows"].as_array().expect("rows");
    let kinds: Vec<_> = rows.iter().map(|row| row["kind"].as_str()).collect();
    assert_eq!(kinds[..2], [Some("Module"), Some("Linear")]);
    assert_eq!(rows[4]["is_recursive"], true);
}

#[test]
fn what_cannot_be_summarised_is_said() {
    let scratch = Scratch::new();
    summary(&scratch, &scratch.path("absent.pth"), &[]).fails(3, "No such file");
    let file = fixture("digits/backbone.pth");
    summary(&scratch, &file, &["--depth", "deep"]).fails(2, "invalid value 'deep'");
}
