//! The network itself trained behind a boundary, through the binary: what is better and what stays as it was, groups that are
//! unfrozen one after the other, a run that goes on after a kill, and what is refused.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::onnx::{Dim, Graph, dtype};
use harness::runs::SIZES;
use harness::{Said, Scratch, fixture, run};
use serde_json::Value;

/// `fit` of the digits' network with its checkpoint.
fn command(scratch: &Scratch, more: &[&str]) -> Command {
    let mut command = scratch.command(["fit", "--cache", "cache", "--backbone"]);
    command
        .arg(fixture("digits/backbone.onnx"))
        .arg("--weights")
        .arg(fixture("digits/backbone.pth"))
        .arg("--data")
        .arg(fixture("digits/pictures"))
        .args(SIZES)
        .args(more);
    command
}

fn fit(scratch: &Scratch, more: &[&str]) -> Said {
    run(command(scratch, more))
}

fn metrics(scratch: &Scratch, run: &str) -> Value {
    serde_json::from_slice(&fs::read(scratch.path(run).join("metrics.json")).unwrap()).unwrap()
}

fn accuracy(metrics: &Value) -> f64 {
    metrics["val"]["accuracy"].as_f64().unwrap()
}

fn lines(scratch: &Scratch, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(scratch.path(run).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// `diff` of the backbone's checkpoint with a run's, failing on `changed:` these.
fn diff(scratch: &Scratch, run_file: &str, changed: &str) -> Said {
    let mut command = scratch.command_without_runtime(["diff"]);
    command
        .arg(fixture("digits/backbone.pth"))
        .arg(scratch.path(run_file))
        .args(["--fail-on", changed]);
    run(command)
}

#[test]
fn a_block_that_is_unfrozen_at_a_small_rate_is_better_than_the_head_alone() {
    let scratch = Scratch::new();
    let head = accuracy(
        &fit(
            &scratch,
            &["--c", "auto", "--dtype", "float32", "-o", "head", "--json"],
        )
        .ok()
        .json(),
    );
    let tuned = fit(
        &scratch,
        &[
            "--groups",
            "fc.** ; conv4.**",
            "--train",
            "conv4.** fc.**",
            "--lr",
            "0.02",
            "--lr-decay",
            "2",
            "--epochs",
            "12",
            "--seed",
            "1",
            "--dtype",
            "float32",
            "-o",
            "run",
            "--json",
        ],
    )
    .ok();
    let figures = tuned.json();
    assert!(tuned.stderr.contains("flatter"), "{}", tuned.stderr);
    assert_eq!(
        figures["tune"]["head_first"]["val_accuracy"].as_f64().unwrap(),
        head
    );
    assert!(
        accuracy(&figures) > head,
        "{} is no better than {head}",
        accuracy(&figures)
    );
    assert!(figures["tune"]["best_epoch"].as_u64().unwrap() > 0);
    assert_eq!(figures["export"]["n"], 64);

    let mut names: HashSet<String> = scratch.names("run").into_iter().collect();
    names.retain(|name| !name.starts_with("events.out.tfevents."));
    let expected = [
        "config.toml",
        "last.safetensors",
        "ledger.jsonl",
        "metrics.json",
        "metrics.jsonl",
        "model.onnx",
        "model.pth",
        "model.safetensors",
        "report.html",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
    for file in ["run/model.pth", "run/model.safetensors"] {
        diff(&scratch, file, "changed:conv1.**").ok();
        diff(&scratch, file, "changed:conv2.**").ok();
        diff(&scratch, file, "changed:conv3.**").ok();
        let said = diff(&scratch, file, "changed:conv4.conv.weight");
        assert_eq!(said.code, 1, "{}", said.stderr);
    }
    let inspected = ["inspect", "run/model.pth", "--json"];
    let inspected = run(scratch.command_without_runtime(inspected)).ok().json();
    let tensors = inspected["tensors"].as_array().unwrap();
    let is_trained = |name: &str| name.starts_with("conv4.") || name.starts_with("fc.");
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        let is_buffer = name.contains("running") || name.contains("num_batches");
        let expected = is_trained(name) && !is_buffer;
        assert_eq!(tensor["requires_grad"].as_bool().unwrap(), expected, "{name}");
    }

    // What the run says of the validation pictures is what its model says of them.
    let data = fixture("digits/pictures");
    let mut eval = scratch.command(["eval", "run", "--json", "--data"]);
    eval.arg(&data);
    assert_eq!(
        run(eval).ok().json()["accuracy"].as_f64().unwrap(),
        accuracy(&figures)
    );
    let mut predict = scratch.command(["predict", "run"]);
    predict.arg(data.join("val/7/000.png"));
    assert!(run(predict).ok().stdout.contains("\t7\t"));
    run(scratch.command_without_runtime(["export", "run", "net.safetensors"])).ok();
    let same = ["diff", "run/model.pth", "net.safetensors", "--json"];
    let same = run(scratch.command_without_runtime(same)).ok();
    assert!(same.stdout.contains("identical"), "{}", same.stdout);
    run(scratch.command_without_runtime(["export", "run", "net.onnx"])).ok();
    let features = ["eval", "run", "--features", "none.npy"];
    run(scratch.command_without_runtime(features)).fails(2, "holds no `head.safetensors`");
    let report = fs::read_to_string(scratch.path("run/report.html")).unwrap();
    assert!(
        report.contains("frozen parameters") && report.contains("<svg"),
        "no curves"
    );
}

#[test]
fn the_next_group_is_unfrozen_when_validation_gets_no_better() {
    let scratch = Scratch::new();
    let said = fit(
        &scratch,
        &[
            "--groups",
            "fc.** ; conv4.** ; conv3.**",
            "--unfreeze",
            "on-plateau",
            "--patience",
            "1",
            "--lr",
            "0.01",
            "--epochs",
            "30",
            "-o",
            "run",
        ],
    )
    .ok();
    assert!(
        said.stderr.contains("unfreezing the next group"),
        "{}",
        said.stderr
    );
    let figures = metrics(&scratch, "run");
    let from: Vec<u64> = figures["tune"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["from_epoch"].as_u64().unwrap())
        .collect();
    assert!(from[0] == 1 && from[1] > 2 && from[2] > from[1] + 1, "{from:?}");
    let boundaries = figures["tune"]["boundaries"].as_array().unwrap();
    assert_eq!(
        boundaries
            .iter()
            .map(|at| at.as_str().unwrap())
            .collect::<HashSet<_>>()
            .len(),
        3
    );

    // Each epoch's rates: the next group's is a tenth of the one above it.
    let lines = lines(&scratch, "run");
    let mut best = f64::NEG_INFINITY;
    let mut stalled = 0;
    for (at, line) in lines.iter().enumerate() {
        let epoch = at as u64 + 1;
        let n_groups = from.iter().filter(|&&first| first <= epoch).count();
        assert_eq!(line["groups"].as_f64().unwrap(), n_groups as f64);
        assert_eq!(line["lr of fc.**"], 0.01);
        assert_eq!(line.get("lr of conv4.**").is_some(), n_groups > 1);
        if n_groups > 1 {
            assert!((line["lr of conv4.**"].as_f64().unwrap() - 0.001).abs() < 1e-9);
        }
        // The rule itself: two epochs without progress, one of which is borne.
        let score = line["accuracy/val"].as_f64().unwrap();
        stalled = if score > best { 0 } else { stalled + 1 };
        best = best.max(score);
        let is_next = from.contains(&(epoch + 1)) || at + 1 == lines.len();
        assert_eq!(stalled > 1, is_next, "epoch {epoch} of {from:?}");
        if is_next {
            stalled = 0;
        }
    }
    assert!(lines.len() < 30, "the last plateau ends the run");
    diff(&scratch, "run/last.safetensors", "changed:conv2.**").ok();
    assert_eq!(
        diff(&scratch, "run/last.safetensors", "changed:conv3.conv.weight").code,
        1
    );
}

#[test]
fn all_ways_to_begin_are_trained_the_same_way_on_any_number_of_threads() {
    let scratch = Scratch::new();
    let ways: [(&str, &[&str]); 4] = [
        ("all", &["--train", "**", "--epochs", "2"]),
        (
            "fresh",
            &[
                "--train",
                "conv4.** fc.**",
                "--fresh",
                "conv4.** fc.**",
                "--epochs",
                "3",
                "--dtype",
                "float32",
            ],
        ),
        (
            "own",
            &[
                "--train",
                "** except conv1.** conv2.**",
                "--no-head-first",
                "--epochs",
                "2",
                "--batch-norm",
                "frozen",
            ],
        ),
        (
            "layers",
            &[
                "--groups",
                "fc.** ; conv4.** ; conv3.** ; conv2.**",
                "--unfreeze",
                "each-epoch",
                "--layer-decay",
                "0.75",
                "--optimizer",
                "adamw",
                "--lr",
                "0.001",
                "--schedule",
                "one-cycle",
                "--epochs",
                "5",
            ],
        ),
    ];
    for (name, way) in ways {
        let out = |threads: &str| format!("{name}-{threads}");
        for threads in ["1", "3"] {
            fit(
                &scratch,
                &[way, &["-o", &out(threads), "--threads", threads]].concat(),
            )
            .ok();
        }
        for file in ["model.onnx", "model.safetensors", "model.pth", "metrics.jsonl"] {
            let bytes = |threads: &str| fs::read(scratch.path(&out(threads)).join(file)).unwrap();
            assert!(
                bytes("1") == bytes("3"),
                "{file} of {name} depends on the threads"
            );
        }
    }
    let said = |name: &str| metrics(&scratch, &format!("{name}-1"));
    assert_eq!(said("all")["boundary"], "input");
    assert_eq!(said("fresh")["tune"]["classifier"], "fresh");
    assert_eq!(said("own")["tune"]["classifier"], "own");
    assert!(said("own")["tune"]["head_first"].is_null());
    // Frozen statistics stay, and so does the count of batches.
    diff(
        &scratch,
        "own-1/model.pth",
        "changed:conv3.bn.{running_mean|running_var|num_batches_tracked}",
    )
    .ok();
    assert_eq!(
        diff(
            &scratch,
            "all-1/last.safetensors",
            "changed:conv1.bn.running_mean"
        )
        .code,
        1
    );
    let rates: Vec<f64> = said("layers")["tune"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["lr"].as_f64().unwrap())
        .collect();
    for pair in rates.windows(2) {
        assert!((pair[1] / pair[0] - 0.75).abs() < 1e-9, "{rates:?}");
    }
}

#[test]
fn features_that_are_computed_again_are_to_the_bit_those_that_are_cached() {
    let scratch = Scratch::new();
    scratch.copy(&fixture("digits/pictures"), "pictures");
    // One that has no row, in the middle of the others.
    scratch.write("pictures/train/8/0795.png", b"no picture");
    let views = ["--train", "conv4.** fc.**", "--views", "2", "--epochs", "2"];
    let all = ["--train", "**", "--epochs", "1"];
    let own = ["--train", "conv3.** conv4.** fc.**", "--no-head-first"];
    let ways: [(&str, &[&str], &[&str]); 4] = [
        ("views", &views, &[]),
        ("all", &all, &["--threads", "1", "--drop-last"]),
        (
            "own",
            &own,
            &["--epochs", "2", "--dtype", "float32", "--batch-size", "5"],
        ),
        ("gradual", LONG, &["--epochs", "3"]),
    ];
    for (name, way, more) in ways {
        let way = if name == "gradual" {
            &way[..way.len() - 4]
        } else {
            way
        };
        let out = |recompute: &str| format!("{name}-{recompute}");
        for recompute in ["never", "always"] {
            let (out, cache) = (out(recompute), format!("cache-{recompute}"));
            let how = ["-o", &out, "--cache", &cache, "--recompute", recompute];
            let mut command = scratch.command(["fit", "--data", "pictures", "--backbone"]);
            command
                .arg(fixture("digits/backbone.onnx"))
                .arg("--weights")
                .arg(fixture("digits/backbone.pth"))
                .args(SIZES)
                .args([way, more, &how].concat());
            let said = run(command).ok();
            assert_eq!(
                said.stderr
                    .contains("computed in each epoch and not cached: as was asked"),
                recompute == "always",
                "{}",
                said.stderr
            );
        }
        let files = [
            "model.onnx",
            "model.safetensors",
            "model.pth",
            "metrics.jsonl",
            "ledger.jsonl",
        ];
        for file in files {
            let bytes = |recompute: &str| fs::read(scratch.path(&out(recompute)).join(file)).unwrap();
            assert!(bytes("never") == bytes("always"), "{file} of {name} differs");
        }
    }
    // What the classifier stands on is all that is cached, in float16 and float32.
    let entries = |recompute: &str| scratch.names(&format!("cache-{recompute}")).len();
    assert_eq!(entries("always"), 2);
    assert!(entries("never") > 6);
}

#[test]
fn a_picture_that_changes_under_a_run_that_reads_it_again_is_named() {
    let scratch = Scratch::new();
    scratch.copy(&fixture("digits/pictures"), "pictures");
    let again = || {
        let mut command = scratch.command(["fit", "--cache", "cache", "--backbone"]);
        command
            .arg(fixture("digits/backbone.onnx"))
            .arg("--weights")
            .arg(fixture("digits/backbone.pth"))
            .args(["--data", "pictures", "-o", "run", "--recompute", "always"])
            .args(SIZES)
            .args(LONG);
        command
    };
    let mut child = again()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the second of the stages that read it.
    while lines_so_far(&scratch, "run") < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let picture = scratch.path("pictures/train/8/079.png");
    fs::copy(scratch.path("pictures/train/8/075.png"), &picture).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("`train/8/079.png` was there before, and now: its bytes are others"),
        "{said}"
    );
    assert_eq!(scratch.names("run"), ["unfinished"]);
    fs::copy(fixture("digits/pictures/train/8/079.png"), &picture).unwrap();
    run(again()).ok();
}

#[test]
fn features_that_have_no_room_are_computed_again_unless_that_is_refused() {
    let scratch = Scratch::new();
    let how = ["--train", "conv4.** fc.**", "--epochs", "1", "-o", "run"];
    let limit = ["--max-cache-size", "1MB"];
    let said = fit(&scratch, &[&how[..], &limit].concat()).ok();
    assert!(said.stderr.contains("the cache has room for"), "{}", said.stderr);
    let refused = [&how[..5], &["other", "--recompute", "never"], &limit].concat();
    fit(&scratch, &refused).fails(75, "would grow beyond its limit");
}

#[test]
fn a_part_of_a_state_dict_is_loaded_first() {
    let scratch = Scratch::new();
    let short = ["--train", "fc.**", "--epochs", "1"];
    fit(
        &scratch,
        &[&short[..], &["--lr", "0", "--no-head-first", "-o", "first"]].concat(),
    )
    .ok();
    let edit = ["edit", "first/model.pth", "part.pth", "-e"];
    let steps =
        "keep conv4.** fc.**; init conv4.conv.weight normal 0.02 seed=3; rename fc.bias -> other.bias";
    run(scratch.command_without_runtime([&edit[..], &[steps]].concat())).ok();
    let said = fit(
        &scratch,
        &[&short[..], &["--lr", "0", "--load", "part.pth", "-o", "loaded"]].concat(),
    )
    .ok();
    assert!(
        said.stderr.contains("unexpected keys: other.bias"),
        "{}",
        said.stderr
    );
    assert!(
        said.stderr.contains("missing keys: conv1.conv.weight"),
        "{}",
        said.stderr
    );
    let loaded = &metrics(&scratch, "loaded")["tune"]["loaded"];
    assert!(
        loaded["loaded"]
            .as_array()
            .unwrap()
            .contains(&Value::from("conv4.conv.weight"))
    );
    let mut command = scratch.command_without_runtime(["diff", "part.pth", "loaded/model.pth"]);
    command.args(["--fail-on", "changed:conv4.**"]);
    run(command).ok();
    let steps = "keep fc.weight; head fc classes=3";
    run(scratch
        .command_without_runtime([&["edit", "first/model.pth", "odd.pth", "-e"][..], &[steps]].concat()))
    .ok();
    fit(
        &scratch,
        &[&short[..], &["--load", "odd.pth", "-o", "odd"]].concat(),
    )
    .fails(
        3,
        "size mismatch for fc.weight: copying a param with shape torch.Size([3, 64])",
    );
    let steps = "keep fc.weight; rename fc.weight -> fd.weights";
    run(scratch
        .command_without_runtime([&["edit", "first/model.pth", "none.pth", "-e"][..], &[steps]].concat()))
    .ok();
    fit(
        &scratch,
        &[&short[..], &["--load", "none.pth", "-o", "odd"]].concat(),
    )
    .fails(2, "`fd.weights`");
}

/// Long enough to be caught in its middle, and over an unfreezing.
const LONG: &[&str] = &[
    "--groups",
    "fc.** ; conv4.** ; conv3.**",
    "--unfreeze",
    "each-epoch",
    "--optimizer",
    "adamw",
    "--lr",
    "0.0005",
    "--train-batch-size",
    "16",
    "--epochs",
    "9",
    "--best",
    "loss",
];

fn lines_so_far(scratch: &Scratch, run: &str) -> usize {
    let text = fs::read_to_string(scratch.path(run).join("unfinished/metrics.jsonl"));
    text.map_or(0, |text| text.lines().count())
}

#[test]
#[cfg(unix)]
fn a_run_goes_on_after_a_kill_and_ends_in_the_same_bytes() {
    let scratch = Scratch::new();
    fit(&scratch, &[LONG, &["-o", "whole"]].concat()).ok();
    // Cached features or not, a run goes on from either.
    for (signal, code, recompute) in [
        ("KILL", None, "never"),
        ("TERM", Some(75), "always"),
        ("INT", Some(75), "auto"),
    ] {
        let before = lines_so_far(&scratch, "stopped");
        let how = ["-o", "stopped", "--recompute", recompute];
        let mut child = command(&scratch, &[LONG, &how].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while lines_so_far(&scratch, "stopped") < before + 1 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), code, "{signal}");
        assert_eq!(scratch.names("stopped"), ["unfinished"]);
    }
    fit(&scratch, &["--train", "fc.**", "-o", "stopped"]).fails(2, "an unfinished run of other settings");
    let done = lines_so_far(&scratch, "stopped");
    assert!((3..9).contains(&done), "{done} epochs, which is not its middle");
    fit(&scratch, &[LONG, &["-o", "stopped"]].concat()).ok();
    let files = [
        "model.onnx",
        "model.safetensors",
        "model.pth",
        "last.safetensors",
        "metrics.jsonl",
        "config.toml",
    ];
    for file in files {
        let bytes = |run: &str| fs::read(scratch.path(run).join(file)).unwrap();
        assert!(bytes("whole") == bytes("stopped"), "{file} differs");
    }
}

#[test]
fn a_loss_that_is_no_number_leaves_the_last_good_weights() {
    let scratch = Scratch::new();
    let said = fit(
        &scratch,
        &[
            "--train",
            "conv4.** fc.**",
            "--lr",
            "1e30",
            "--epochs",
            "3",
            "-o",
            "run",
        ],
    )
    .fails(3, "is not finite in epoch 1");
    assert!(said.stderr.contains("hint: a smaller --lr"), "{}", said.stderr);
    let figures = metrics(&scratch, "run");
    assert_eq!(figures["tune"]["best_epoch"], 0);
    assert_eq!(
        accuracy(&figures),
        figures["tune"]["head_first"]["val_accuracy"].as_f64().unwrap()
    );
    assert!(
        figures["trainer"]["outcome"]["diverged"]["step"]
            .as_u64()
            .unwrap()
            >= 1
    );
    diff(&scratch, "run/model.pth", "changed:conv4.**").ok();
    let mut eval = scratch.command(["eval", "run", "--json", "--data"]);
    eval.arg(fixture("digits/pictures"));
    assert_eq!(
        run(eval).ok().json()["accuracy"].as_f64().unwrap(),
        accuracy(&figures)
    );
}

/// A small network with a hyperbolic sine in its middle.
fn odd_network() -> Vec<u8> {
    let weight: Vec<u8> = (0..3 * 32 * 32 * 4)
        .flat_map(|at| (at as f32 * 1e-8).to_le_bytes())
        .collect();
    let last: Vec<u8> = (0..4 * 2)
        .flat_map(|at| (at as f32 * 0.1).to_le_bytes())
        .collect();
    Graph::new()
        .input(
            "x",
            dtype::FLOAT,
            &[Dim::Any("n"), Dim::Of(3), Dim::Of(32), Dim::Of(32)],
        )
        .initializer("first.weight", dtype::FLOAT, &[3 * 32 * 32, 4], &weight)
        .initializer("last.weight", dtype::FLOAT, &[4, 2], &last)
        .node("Flatten", &["x"], &["flat"])
        .node("MatMul", &["flat", "first.weight"], &["z"])
        .node("Sinh", &["z"], &["s"])
        .node("MatMul", &["s", "last.weight"], &["logits"])
        .output("logits", dtype::FLOAT)
        .build()
}

#[test]
fn what_cannot_be_trained_is_said_and_leaves_nothing() {
    let scratch = Scratch::new();
    let check = |more: &[&str], code: i32, message: &str| {
        let said = fit(&scratch, &[&["-o", "run"], more].concat()).fails(code, message);
        assert!(!scratch.path("run").exists(), "{message}");
        said.stderr
    };
    let near = check(
        &["--train", "conv5.**"],
        2,
        "has no parameter that `conv5.**` matches",
    );
    assert!(near.contains("hint: near are `conv"), "{near}");
    check(&["--train", "conv4.**", "--fresh", "conv9.**"], 2, "`conv9.**`");
    check(
        &["--groups", "fc.** ; ; conv4.**"],
        2,
        "a group without a pattern",
    );
    check(
        &["--groups", "fc.** ; conv4.**", "--lrs", "0.1"],
        2,
        "1 learning rates for 2 groups",
    );
    check(
        &["--train", "conv4.**", "--lr", "0.1,0.2"],
        2,
        "a sweep trains heads",
    );
    check(&["--train", "conv4.**", "--mixup", "0.2"], 2, "mixup");
    check(&["--train", "conv4.**", "--baselines"], 2, "baselines");
    check(
        &["--train", "conv4.**", "--task", "multi-label"],
        2,
        "one class a picture",
    );
    check(
        &["--train", "conv4.**", "--unfreeze", "on-plateau"],
        2,
        "--groups",
    );
    check(&["--no-head-first"], 2, "required");
    let graph = scratch.write("odd.onnx", &odd_network());
    let odd = |patterns: &str| {
        let mut command = scratch.command(["fit", "--cache", "cache", "-o", "odd", "--train", patterns]);
        command.args(SIZES).arg("--backbone").arg(&graph);
        command
            .arg("--data")
            .arg(fixture("digits/pictures"))
            .args(["--epochs", "1"]);
        run(command)
    };
    let said = odd("**").fails(3, "Sinh");
    assert!(
        said.stderr.contains("without --train a head is"),
        "{}",
        said.stderr
    );
    // Behind the operator there is something to train.
    odd("last.**").ok();
}
