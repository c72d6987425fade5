//! What a run leaves the house as: its head for torch, alone and in a checkpoint, and one model.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::Path;

use harness::checkpoints::{floats, tensors};
use harness::runs::npy;
use harness::{Said, Scratch, fixture, run};
use runtime::Task;
use runtime::engine::{Device, Engine, Input, SessionOptions};
use runtime::head::{Layer, Linear};
use runtime::onnx::Model;
use serde_json::Value;

fn export(scratch: &Scratch, args: &[&str]) -> Said {
    run(scratch.command([&["export"], args].concat()))
}

/// Without ONNX Runtime: state dicts need none.
fn export_without_runtime(scratch: &Scratch, args: &[&str]) -> Said {
    run(scratch.command_without_runtime([&["export"], args].concat()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn linear(n_out: usize, n_in: usize) -> Layer {
    Layer::Linear(Linear {
        weight: (0..n_out * n_in).map(|at| at as f32 / 64.0 - 1.0).collect(),
        bias: vec![0.25; n_out],
        n_in,
        n_out,
    })
}

/// Outputs of a model for two samples of numbers that are no picture's.
fn outputs(path: &Path) -> Vec<Vec<f32>> {
    let engine = Engine::open(Some(harness::onnx_runtime())).unwrap();
    let options = SessionOptions {
        intra_threads: 1,
        device: Device::Cpu,
    };
    let mut session = engine.session(&Model::open(path).unwrap(), options).unwrap();
    let values: Vec<f32> = (0..2 * 3 * 32 * 32).map(|at| (at as f32 * 0.37).sin()).collect();
    let input = Input::F32 {
        shape: &[2, 3, 32, 32],
        values: &values,
    };
    let outputs = session.run(&[input]).unwrap();
    outputs.into_iter().map(|output| output.values).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

#[test]
fn the_head_alone_by_torchs_names() {
    let scratch = Scratch::new();
    let layers = vec![linear(3, 4), Layer::Relu, Layer::Dropout { p: 0.5 }, linear(2, 3)];
    let head = scratch.save_head("run", Task::MultiLabel, &["a", "b"], layers);
    let said = export_without_runtime(&scratch, &["run", "head.pth", "--json"])
        .ok()
        .json();
    assert_eq!(said["files"], serde_json::json!(["head.pth"]));
    let names = ["0.weight", "0.bias", "3.weight", "3.bias"];
    assert_eq!(said["added"], serde_json::json!(names));
    let found = tensors(&scratch.path("head.pth"));
    assert_eq!(found.iter().map(|(name, ..)| name).collect::<Vec<_>>(), names);
    let bytes: Vec<u8> = (0..12)
        .flat_map(|at| (at as f32 / 64.0 - 1.0).to_le_bytes())
        .collect();
    assert_eq!((found[0].2.as_slice(), &found[0].3), (&[3, 4][..], &bytes));
    // Of a head's file as of a run's folder, and with all that its numbers do not tell.
    export_without_runtime(&scratch, &["run/head.safetensors", "head.safetensors"]).ok();
    let again = runtime::head::Head::open(&scratch.path("head.safetensors")).unwrap();
    assert_eq!(again, head);
}

#[test]
fn backbone_and_head_in_one_checkpoint() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let backbone = fixture("digits/backbone.pth");
    let args = ["run", "out.pth", "--checkpoint", text(&backbone), "--json"];
    let said = export_without_runtime(&scratch, &args).ok().json();
    assert_eq!(said["module"], "fc");
    assert_eq!(said["replaced"], serde_json::json!(["fc.weight", "fc.bias"]));
    assert_eq!(said["added"], said["replaced"]);
    assert_eq!(said["n_frozen"], 12);
    let head = tensors(&scratch.path("run/head.safetensors"));
    let of_head = |name: &str| head.iter().find(|(found, ..)| found == name).unwrap().3.clone();
    let (before, after) = (tensors(&backbone), tensors(&scratch.path("out.pth")));
    let names = |tensors: &[harness::checkpoints::Named]| -> Vec<String> {
        tensors.iter().map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(names(&before), names(&after));
    for ((name, _, shape, bytes), old) in after.iter().zip(&before) {
        match name.strip_prefix("fc.") {
            Some(of) => assert_eq!(*bytes, of_head(of), "{name}"),
            None => assert_eq!((shape, bytes), (&old.2, &old.3), "{name}"),
        }
    }
    let opened = surgery::open(&scratch.path("out.pth")).unwrap();
    let trainable = opened
        .state_dict
        .iter()
        .filter(|(_, tensor)| tensor.requires_grad());
    let trainable: Vec<&str> = trainable.map(|(name, _)| name).collect();
    assert_eq!(trainable, ["fc.weight", "fc.bias"]);

    // A backbone without a classifier gets one where it is told to.
    let edit = ["edit", text(&backbone), "bare.safetensors", "-e", "drop fc.**"];
    scratch.graftwork(&edit).ok();
    let bare = ["run", "bare.pth", "--checkpoint", "bare.safetensors"];
    export_without_runtime(&scratch, &bare).fails(2, "has no classifier of a known name; name the module");
    let with_module = [&bare[..], &["--module", "head", "--json"]].concat();
    let said = export_without_runtime(&scratch, &with_module).ok().json();
    assert_eq!(said["replaced"], serde_json::json!([]));
    assert_eq!(said["added"], serde_json::json!(["head.weight", "head.bias"]));
}

#[test]
fn the_model_of_a_finished_run_with_probabilities() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    // As it is it was proven when it was made, and no runtime is needed.
    export_without_runtime(&scratch, &["run", "plain.onnx"]).ok();
    let before = fs::read(scratch.path("run/model.onnx")).unwrap();
    assert_eq!(fs::read(scratch.path("plain.onnx")).unwrap(), before);
    export_without_runtime(&scratch, &["run", "p.onnx", "--probabilities"])
        .fails(5, "ONNX Runtime was not found");

    let said = export(&scratch, &["run", "p.onnx", "--probabilities", "--json"])
        .ok()
        .json();
    assert_eq!(said["outputs"], serde_json::json!(["logits", "probabilities"]));
    assert_eq!(said["classes"], serde_json::json!(["5", "6", "7", "8", "9"]));
    let (old, new) = (
        outputs(&scratch.path("run/model.onnx")),
        outputs(&scratch.path("p.onnx")),
    );
    assert_eq!((old.len(), new.len()), (1, 2));
    assert_eq!(old[0], new[0], "the logits changed");
    for (logits, probabilities) in new[0].chunks(5).zip(new[1].chunks(5)) {
        for (probability, expected) in probabilities.iter().zip(softmax(logits)) {
            assert!((f64::from(*probability) - expected).abs() < 1e-6);
        }
    }
    // It is a model as any other: it has its probabilities, and predicts.
    fs::create_dir(scratch.path("again")).unwrap();
    fs::copy(scratch.path("p.onnx"), scratch.path("again/model.onnx")).unwrap();
    export(&scratch, &["again", "again.onnx", "--probabilities"]).ok();
    assert_eq!(
        fs::read(scratch.path("again.onnx")).unwrap(),
        fs::read(scratch.path("p.onnx")).unwrap()
    );
    let picture = fixture("digits/pictures/val/7/000.png");
    let predicted = run(scratch.command(["predict", "p.onnx", text(&picture)])).ok();
    assert!(predicted.stdout.contains("\t7\t"), "{}", predicted.stdout);
}

#[test]
fn a_run_on_a_cache_entry_behind_its_backbone() {
    let scratch = Scratch::new();
    let backbone = fixture("digits/backbone.onnx");
    scratch.fit_digits("fitted");
    let entry = scratch.extract_digits(&fixture("digits/pictures"), &[]);
    scratch.train_on(&entry, "trained");
    let args = ["trained", "t.onnx", "--backbone", text(&backbone), "--json"];
    let said = export(&scratch, &args).ok().json();
    assert_eq!(said["boundary"], "/flatten/Flatten_output_0");
    assert_eq!(said["outputs"], serde_json::json!(["logits"]));
    let verified = &said["verified"];
    assert_eq!(verified["pictures"]["n"], 64);
    assert!(verified["pattern"]["max_abs_logit_diff"].as_f64().unwrap() < 1e-4);
    // The same head by the same features: fit's own model.
    assert_eq!(
        fs::read(scratch.path("t.onnx")).unwrap(),
        fs::read(scratch.path("fitted/model.onnx")).unwrap()
    );
    let with = [&args[..2], &["--force", "--probabilities"], &args[2..]].concat();
    let said = export(&scratch, &with).ok().json();
    assert_eq!(said["outputs"], serde_json::json!(["logits", "probabilities"]));
    let outputs = outputs(&scratch.path("t.onnx"));
    for (logits, probabilities) in outputs[0].chunks(5).zip(outputs[1].chunks(5)) {
        for (probability, expected) in probabilities.iter().zip(softmax(logits)) {
            assert!((f64::from(*probability) - expected).abs() < 1e-6);
        }
    }
}

/// At a boundary in the middle, pooled, with other weights, and without the pictures: found by content alone.
#[test]
fn the_boundary_is_found_by_what_the_features_are() {
    let scratch = Scratch::new();
    let backbone = fixture("digits/backbone.onnx");
    let checkpoint = fixture("digits/backbone.pth");
    let pictures = scratch.copy(&fixture("digits/pictures"), "pictures");
    let weights = ["--weights", text(&checkpoint), "-e", "scale conv1.conv.weight 2"];
    let more = [
        &["--cut", "/conv3/relu/Relu_output_0", "--pool", "avg"],
        &weights[..],
    ]
    .concat();
    let entry = scratch.extract_digits(&pictures, &more);
    scratch.train_on(&entry, "run");
    let predicted = {
        let said =
            run(scratch.command_without_runtime(["predict", "run", "--json", "--features", text(&entry)]));
        said.ok().stdout
    };
    let pictures_elsewhere = scratch.path("elsewhere");
    fs::rename(&pictures, &pictures_elsewhere).unwrap();

    let export_with = |out: &str, more: &[&str]| {
        let args = ["run", out, "--json", "--backbone", text(&backbone)];
        export(&scratch, &[&args, more].concat())
    };
    let said = export_with("out.onnx", &weights).ok();
    assert!(
        said.stderr.contains("the pictures are not at hand"),
        "{}",
        said.stderr
    );
    let said = said.json();
    assert_eq!(said["boundary"], "/conv3/relu/Relu_output_0");
    assert_eq!(said["verified"]["pictures"], Value::Null);
    // The model on the pictures says what the head says of the rows.
    let said = run(scratch.command([
        "predict",
        "out.onnx",
        "--json",
        "elsewhere/train",
        "elsewhere/val",
    ]));
    let said = said.ok().stdout;
    let class_of = |line: &str, key: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line[key].as_str().unwrap().replace("elsewhere/", "");
        (name, line["predictions"][0]["class"].to_string())
    };
    let mut by_model: Vec<_> = said.lines().map(|line| class_of(line, "path")).collect();
    let mut by_head: Vec<_> = predicted.lines().map(|line| class_of(line, "name")).collect();
    by_model.sort();
    by_head.sort();
    assert_eq!(by_model.len(), 700);
    let n_same = by_model.iter().zip(&by_head).filter(|(a, b)| a == b).count();
    // The rows are rounded to float16: at an even match that can decide.
    assert!(n_same >= 698, "{n_same} of 700");

    let other = "are of another network";
    export_with("other.onnx", &[]).fails(3, other);
    let not_there = ["--cut", "/conv2/relu/Relu_output_0"];
    let message = "are not its `/conv2/relu/Relu_output_0`";
    export_with("other.onnx", &[&not_there, &weights[..]].concat()).fails(3, message);
    export_with("other.onnx", &["--cut", "conv3"]).fails(2, "has no tensor `conv3`");
    export_with("other.onnx", &["--cut", "a,b"]).fails(2, "--cut names several");
    fs::rename(entry.join("key.json"), entry.join("key.txt")).unwrap();
    export_with("other.onnx", &weights).fails(3, "it holds no `key.json`");
    fs::rename(&entry, scratch.path("gone")).unwrap();
    export_with("other.onnx", &weights).fails(3, "`run` was trained on these features, and they are gone");
    assert!(!scratch.path("other.onnx").exists());
}

#[test]
fn what_cannot_be_is_said() {
    let scratch = Scratch::new();
    let (backbone, checkpoint) = (fixture("digits/backbone.onnx"), fixture("digits/backbone.pth"));
    let (backbone, checkpoint) = (text(&backbone), text(&checkpoint));
    scratch.save_head("run", Task::SingleLabel, &["a", "b"], vec![linear(2, 64)]);
    scratch.save_head("wide", Task::SingleLabel, &["a", "b"], vec![linear(2, 65)]);
    scratch.save_head("numbers", Task::Regression, &["a", "b"], vec![linear(2, 64)]);
    scratch.write("numbers/config.toml", b"features = \"/absent\"\n");
    scratch.write("x.npy", &npy(&[1, 64], &[0.0; 64]));
    let features = serde_json::to_string(text(&scratch.path("x.npy"))).unwrap();
    scratch.write("run/config.toml", format!("features = {features}\n").as_bytes());
    scratch.write("wide/config.toml", b"[features]\npool = \"avg\"\n");
    scratch.write("empty/config.toml", b"");
    scratch.write("there.pth", b"old");
    scratch.write("there.onnx", b"old");
    scratch.save("plain.pth", &[("conv.weight", floats(&[2, 3, 1, 1], 0.0))]);
    let check = |args: &[&str], code: i32, message: &str| {
        export(&scratch, args).fails(code, message);
    };
    check(
        &["run", "out.h5"],
        2,
        "`out.h5` is neither .onnx, .pth nor .safetensors",
    );
    check(
        &["run", "out"],
        2,
        "`out` is neither .onnx, .pth nor .safetensors",
    );
    check(&["run", "there.pth"], 2, "--force replaces it");
    check(
        &["run", "there.onnx", "--backbone", backbone],
        2,
        "--force replaces it",
    );
    check(&["run", "absent/out.pth"], 3, "cannot create `absent/out.pth`");
    check(&["empty", "out.pth"], 2, "`empty` holds no `head.safetensors`");
    check(&["empty", "out.onnx"], 2, "`empty` holds no `head.safetensors`");
    check(&["absent", "out.pth"], 3, "absent");
    check(
        &["run", "out.onnx"],
        2,
        "--backbone M.onnx, the network that its features came from",
    );
    check(
        &["run", "out.onnx", "--checkpoint", checkpoint],
        2,
        "--checkpoint is for .pth and .safetensors, and `out.onnx` is none",
    );
    check(
        &["run", "out.pth", "--probabilities"],
        2,
        "--probabilities is for .onnx, and `out.pth` is none",
    );
    check(
        &["run", "out.pth", "--backbone", backbone],
        2,
        "--backbone is for .onnx",
    );
    check(
        &["run", "out.onnx", "--backbone", backbone],
        2,
        "`run` was trained on the array",
    );
    check(
        &["run", "out.onnx", "--backbone", "absent.onnx"],
        3,
        "absent.onnx",
    );
    check(
        &["wide", "out.onnx", "--backbone", backbone],
        3,
        "it does not say which features the run was trained on",
    );
    check(
        &["numbers", "out.onnx", "--backbone", backbone, "--probabilities"],
        2,
        "its outputs are numbers, not classes",
    );
    check(
        &["run", "out.pth", "--checkpoint", checkpoint, "--module", "fcc"],
        2,
        "has no module `fcc`; its classifier is `fc`",
    );
    check(
        &["wide", "out.pth", "--checkpoint", checkpoint],
        2,
        "has a classifier whose `fc` takes 64 features, and the head takes 65; name the module",
    );
    check(
        &["wide", "out.pth", "--checkpoint", checkpoint, "--module", "fc"],
        2,
        "has a `fc` that takes 64 features, and the head takes 65",
    );
    check(&["run", "out.pth", "--checkpoint", "absent.pth"], 3, "absent.pth");
    check(
        &["run", "out.pth", "--checkpoint", "plain.pth"],
        2,
        "has no classifier of a known name; name the module",
    );
    for usage in [
        &["run", "out.pth", "--module", "fc"][..],
        &["run", "out.onnx", "--cut", "x"],
        &["run", "out.onnx", "--weights", checkpoint],
        &["run"],
    ] {
        assert_eq!(export(&scratch, usage).code, 2, "{usage:?}");
    }
    for file in ["there.pth", "there.onnx"] {
        assert_eq!(fs::read(scratch.path(file)).unwrap(), b"old");
    }
    let names = scratch.names("");
    assert!(
        names
            .iter()
            .all(|name| !name.starts_with("out") && !name.ends_with(".tmp")),
        "{names:?}"
    );
    export(&scratch, &["run", "there.pth", "--force"]).ok();
    assert_eq!(tensors(&scratch.path("there.pth")).len(), 2);
}

/// Runs that have a model already, and runs on texts.
#[test]
fn runs_of_other_kinds_are_refused() {
    let scratch = Scratch::new();
    let backbone = fixture("digits/backbone.onnx");
    scratch.fit_digits("run");
    export(&scratch, &["run", "out.onnx", "--backbone", text(&backbone)])
        .fails(2, "`run` has a model.onnx with its backbone");

    let lines: String = (0..12)
        .map(|row| format!("{{\"text\": \"number {row}\", \"label\": \"{}\"}}\n", row % 2))
        .collect();
    scratch.write("texts.jsonl", lines.as_bytes());
    let encoder = fixture("text/model.onnx");
    let mut extract = scratch.command(["extract", "--data", "texts.jsonl", "--cache", "cache"]);
    extract
        .args(["--val-fraction", "0.25", "--backbone"])
        .arg(&encoder);
    let entry = scratch.path(run(extract).ok().stdout.trim());
    scratch.train_on(&entry, "texts");
    export(&scratch, &["texts", "out.onnx", "--backbone", text(&encoder)])
        .fails(2, "are of texts; one model is made for pictures only");

    assert!(!scratch.path("out.onnx").exists());
}
