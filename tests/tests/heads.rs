//! Heads by every method and for every task, through the binary: what they give, that they go on after a kill, and what is refused.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::runs::{npy, npy_classes};
use harness::{Said, Scratch, run};
use runtime::head::Head;

const N: usize = 240;
const D: usize = 6;
const VAL: usize = 60;

/// Numbers that look random and are the same everywhere.
fn noise(at: usize) -> f32 {
    let mut bits = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((bits ^ (bits >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

/// Three clouds that overlap a little, with labels for each task: `x.npy`, `y.npy`, `several.npy`, `numbers.npy`, and those
/// for validation with a `v` before.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for (prefix, first, n) in [("", 0, N), ("v", N, VAL)] {
        let (mut x, mut y, mut several, mut numbers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in first..first + n {
            let class = row % 3;
            let values: Vec<f32> = (0..D)
                .map(|at| 2.0 * noise(row * D + at) + if at == class { 0.8 } else { 0.0 })
                .collect();
            y.push(class as i64);
            several.extend([values[0] > 0.3, values[1] + values[2] > 0.5].map(|is| f32::from(u8::from(is))));
            numbers.extend([values[0] - 2.0 * values[3] + 0.1 * noise(row + 7777), values[1]]);
            x.extend(values);
        }
        scratch.write(&format!("{prefix}x.npy"), &npy(&[n, D], &x));
        scratch.write(&format!("{prefix}y.npy"), &npy_classes(&y));
        scratch.write(&format!("{prefix}several.npy"), &npy(&[n, 2], &several));
        scratch.write(&format!("{prefix}numbers.npy"), &npy(&[n, 2], &numbers));
    }
    scratch
}

fn command(scratch: &Scratch, labels: &str, more: &[&str]) -> Command {
    let (val_labels, train_labels) = (format!("v{labels}.npy"), format!("{labels}.npy"));
    let mut command = scratch.command_without_runtime(["train", "--features", "x.npy", "--val-features"]);
    command
        .args(["vx.npy", "--labels", &train_labels, "--val-labels", &val_labels])
        .args(more);
    command
}

fn train(scratch: &Scratch, more: &[&str]) -> Said {
    run(command(scratch, "y", more))
}

fn head(scratch: &Scratch, run: &str) -> Head {
    Head::open(&scratch.path(run).join("head.safetensors")).unwrap()
}

/// SGD as the notebook has it, flag by flag.
const NOTEBOOK: &[&str] = &[
    "--optimizer",
    "sgd",
    "--lr",
    "0.001",
    "--momentum",
    "0.9",
    "--schedule",
    "step",
    "--step-size",
    "7",
    "--gamma",
    "0.1",
    "--epochs",
    "25",
    "--train-batch-size",
    "4",
];

#[test]
fn the_notebooks_preset_is_its_flags() {
    let scratch = scratch();
    let preset = train(&scratch, &["--preset", "notebook", "-o", "preset", "--json"]).ok();
    let flags = train(&scratch, &[NOTEBOOK, &["-o", "flags"]].concat()).ok();
    assert_eq!(head(&scratch, "preset"), head(&scratch, "flags"));
    assert!(
        flags.stdout.contains("precision    recall  f1-score   support"),
        "{}",
        flags.stdout
    );

    // What the trainer says of its best epoch is what the head that was kept gets.
    let metrics = preset.json();
    let best = &metrics["trainer"]["best"];
    assert_eq!(best["val_accuracy"], metrics["val"]["accuracy"]);
    let of_loss = (best["val_loss"].as_f64().unwrap() - metrics["val"]["log_loss"].as_f64().unwrap()).abs();
    assert!(of_loss < 1e-5, "{metrics}");
    let history = fs::read_to_string(scratch.path("preset/metrics.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 25);
    let names = scratch.names("preset");
    assert!(
        names.iter().any(|name| name.starts_with("events.out.tfevents.")),
        "{names:?}"
    );
    assert!(!names.contains(&"unfinished".to_owned()), "{names:?}");
    let report = fs::read_to_string(scratch.path("preset/report.html")).unwrap();
    assert!(
        report.contains("<svg") && report.contains("best epoch"),
        "no curves"
    );
}

#[test]
fn a_head_of_a_sweep_is_the_one_that_is_trained_alone() {
    let scratch = scratch();
    let common = [
        "--optimizer",
        "adamw",
        "--epochs",
        "6",
        "--schedule",
        "cosine",
        "--best",
        "loss",
    ];
    let sweep = [
        &common[..],
        &[
            "--lr",
            "0.3,0.01,0.0001",
            "--weight-decay",
            "0,0.1",
            "-o",
            "sweep",
            "--json",
        ],
    ];
    let metrics = train(&scratch, &sweep.concat()).ok().json();
    let heads = metrics["sweep"]["heads"].as_array().unwrap();
    assert_eq!(heads.len(), 6);
    let chosen = &heads[metrics["sweep"]["chosen"].as_u64().unwrap() as usize];
    let loss = |head: &serde_json::Value| head["best"]["val_loss"].as_f64().unwrap();
    assert!(heads.iter().all(|head| loss(head) >= loss(chosen)), "{metrics}");

    let (lr, decay) = (chosen["lr"].to_string(), chosen["weight_decay"].to_string());
    let alone = [
        &common[..],
        &["--lr", &lr, "--weight-decay", &decay, "-o", "alone"],
    ];
    train(&scratch, &alone.concat()).ok();
    assert_eq!(head(&scratch, "sweep"), head(&scratch, "alone"));
}

#[test]
fn every_task_is_trained_and_judged_the_same_way_twice() {
    let scratch = scratch();
    for (task, labels, ways) in [
        (
            "single-label",
            "y",
            [&["--c", "1"][..], &["--optimizer", "adam", "--hidden", "8"]],
        ),
        (
            "multi-label",
            "several",
            [&["--c", "0.1,1,10"][..], &["--optimizer", "sgd", "--lr", "0.1"]],
        ),
        (
            "regression",
            "numbers",
            [&["--c", "auto"][..], &["--optimizer", "adam", "--lr", "0.05"]],
        ),
    ] {
        for (at, way) in ways.into_iter().enumerate() {
            let out = format!("{task}-{at}");
            let args = [&["--task", task, "-o", &out, "--json", "--baselines"][..], way].concat();
            let metrics = run(command(&scratch, labels, &args)).ok().json();
            let val_labels = format!("v{labels}.npy");
            let eval = [
                "eval",
                &out,
                "--features",
                "vx.npy",
                "--labels",
                &val_labels,
                "--json",
            ];
            let mut marks = run(scratch.command_without_runtime(eval)).ok().json();
            marks.as_object_mut().unwrap().remove("left_out");
            assert_eq!(marks, metrics["val"], "{task}");
            assert!(!metrics["baselines"].as_array().unwrap().is_empty(), "{metrics}");
            let table = run(scratch.command_without_runtime(&eval[..6])).ok().stdout;
            assert!(table.lines().count() > 3, "{table}");
        }
    }
    // Noise of a twentieth is all that a linear head cannot know.
    let metrics = fs::read_to_string(scratch.path("regression-0/metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    assert!(metrics["val"]["r2"].as_f64().unwrap() > 0.99, "{metrics}");
}

#[test]
fn a_temperature_goes_into_the_head() {
    let scratch = scratch();
    // Weak regularisation on few features makes a head too sure.
    let plain = train(&scratch, &["--c", "10000", "-o", "plain", "--json"])
        .ok()
        .json();
    let warm = train(&scratch, &["--c", "10000", "--calibrate", "-o", "warm", "--json"])
        .ok()
        .json();
    let temperature = plain["temperature"]["value"].as_f64().unwrap() as f32;
    assert_eq!(warm["temperature"], plain["temperature"]);
    assert_eq!(warm["val"]["accuracy"], plain["val"]["accuracy"]);
    let log_loss = |metrics: &serde_json::Value| metrics["val"]["log_loss"].as_f64().unwrap();
    assert!(log_loss(&warm) < log_loss(&plain), "{warm}");
    let (plain, warm) = (head(&scratch, "plain"), head(&scratch, "warm"));
    let (plain, warm) = (plain.as_linear().unwrap(), warm.as_linear().unwrap());
    for (plain, warm) in plain.weight.iter().zip(&warm.weight) {
        assert!((plain / temperature - warm).abs() <= 1e-5 * plain.abs());
    }
}

#[test]
fn wrong_labels_are_suspects() {
    let scratch = scratch();
    let flipped = [3usize, 100, 200];
    let labels: Vec<i64> = (0..N)
        .map(|row| {
            let class = row as i64 % 3;
            if flipped.contains(&row) {
                (class + 1) % 3
            } else {
                class
            }
        })
        .collect();
    // Clouds far from each other, so that nothing else is in doubt.
    let x: Vec<f32> = (0..N * D)
        .map(|at| noise(at) + if at % D == (at / D) % 3 { 4.0 } else { 0.0 })
        .collect();
    scratch.write("x.npy", &npy(&[N, D], &x));
    scratch.write("y.npy", &npy_classes(&labels));
    run(scratch.command_without_runtime([
        "train",
        "--features",
        "x.npy",
        "--labels",
        "y.npy",
        "-o",
        "run",
        "--baselines",
        "--c",
        "1",
    ]))
    .ok();
    let suspects = fs::read_to_string(scratch.path("run/suspects.csv")).unwrap();
    let mut rows: Vec<usize> = suspects
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap().parse().unwrap())
        .collect();
    rows.sort_unstable();
    assert_eq!(rows, flipped, "{suspects}");
}

/// Long enough to be caught in its middle.
const LONG: &[&str] = &[
    "--optimizer",
    "adamw",
    "--hidden",
    "64",
    "--dropout",
    "0.2",
    "--mixup",
    "0.2",
    "--epochs",
    "1500",
    "--train-batch-size",
    "16",
    "--ema",
    "0.99",
];

fn lines_so_far(scratch: &Scratch, run: &str) -> usize {
    let text = fs::read_to_string(scratch.path(run).join("unfinished/metrics.jsonl"));
    text.map_or(0, |text| text.lines().count())
}

/// Starts the run, lets it get over some more epochs, and stops it by the signal.
fn stop(scratch: &Scratch, out: &str, signal: &str) -> Option<i32> {
    let before = lines_so_far(scratch, out);
    let mut child = command(scratch, "y", &[LONG, &["-o", out]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while lines_so_far(scratch, out) < before + 20 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
    child.wait().unwrap().code()
}

#[test]
#[cfg(unix)]
fn a_run_goes_on_after_a_kill_and_ends_in_the_same_bytes() {
    let scratch = scratch();
    train(&scratch, &[LONG, &["-o", "whole"]].concat()).ok();
    for (signal, code) in [
        ("KILL", None),
        ("TERM", Some(75)),
        ("INT", Some(75)),
        ("KILL", None),
    ] {
        assert_eq!(stop(&scratch, "stopped", signal), code, "{signal}");
        assert_eq!(scratch.names("stopped"), ["unfinished"]);
    }
    // Other settings are not mixed into it.
    train(&scratch, &["--optimizer", "sgd", "-o", "stopped"]).fails(2, "an unfinished run of other settings");
    let done = lines_so_far(&scratch, "stopped");
    assert!(
        (60..1500).contains(&done),
        "{done} epochs, which is not its middle"
    );
    train(&scratch, &[LONG, &["-o", "stopped"]].concat()).ok();
    for file in ["head.safetensors", "metrics.jsonl", "config.toml"] {
        let bytes = |run: &str| fs::read(scratch.path(run).join(file)).unwrap();
        assert!(bytes("whole") == bytes("stopped"), "{file} differs");
    }
}

#[test]
#[cfg(unix)]
fn a_finished_run_stays_until_the_next_one_is_complete() {
    let scratch = scratch();
    train(&scratch, &["--c", "1", "-o", "run"]).ok();
    let before = fs::read(scratch.path("run/head.safetensors")).unwrap();
    train(&scratch, &[LONG, &["-o", "run"]].concat()).fails(2, "already holds a run of other settings");
    let mut child = command(&scratch, "y", &[LONG, &["-o", "run", "--force"]].concat())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while lines_so_far(&scratch, "run") < 5 {
        std::thread::sleep(Duration::from_millis(2));
    }
    // A second one beside it is told, and does no harm.
    train(&scratch, &[LONG, &["-o", "run", "--force"]].concat()).fails(2, "another process is training in");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(scratch.path("run/head.safetensors")).unwrap(), before);
    let eval = ["eval", "run", "--features", "vx.npy", "--labels", "vy.npy"];
    run(scratch.command_without_runtime(eval)).ok();
    train(&scratch, &["--c", "1", "-o", "run"]).ok();
}

#[test]
fn what_cannot_be_trained_is_said_and_leaves_nothing() {
    let scratch = scratch();
    scratch.write("vlow.npy", &npy_classes(&[0; VAL]));
    scratch.write("low.npy", &npy_classes(&[0; N]));
    scratch.write("vhigh.npy", &npy_classes(&[3; VAL]));
    scratch.write(
        "high.npy",
        &npy_classes(&(0..N as i64).map(|row| row % 3).collect::<Vec<_>>()),
    );
    let descend = ["--optimizer", "sgd"];
    let check = |labels: &str, more: &[&str], code: i32, message: &str| {
        run(command(&scratch, labels, &[&["-o", "run"], more].concat())).fails(code, message);
        assert!(!scratch.path("run").exists(), "{message}");
    };
    for way in [&[][..], &descend] {
        check("low", way, 3, "all rows are of one class");
        let several = [way, &["--task", "multi-label"]].concat();
        check(
            "y",
            &several,
            3,
            "row 2 has the label 2, which is neither 0 nor 1",
        );
        check(
            "several",
            way,
            3,
            "takes one class index a row, and this array has [240, 2]",
        );
        let regression = [way, &["--task", "regression", "--label-smoothing", "0.1"]].concat();
        check("numbers", &regression, 2, "a regression has no");
        let weights = [way, &["--class-weight", "1,2"]].concat();
        check("y", &weights, 2, "3 classes");
        let device = [way, &["--device", "cuda"]].concat();
        check("y", &device, 5, "cuda:0 cannot be used");
    }
    check(
        "y",
        &["--epochs", "3"],
        2,
        "the following required arguments were not provided",
    );
    check("y", &["--optimizer", "sgd", "--c", "1"], 2, "cannot be used with");
    check("y", &["--c", "0"], 2, "C is a positive number");
    check(
        "y",
        &["--optimizer", "sgd", "--betas", "0.9,0.99"],
        2,
        "--betas and --eps are of adam and adamw",
    );
    check(
        "y",
        &["--optimizer", "adam", "--momentum", "0.9"],
        2,
        "--momentum and --nesterov are of sgd",
    );
    check(
        "y",
        &["--optimizer", "sgd", "--gamma", "0.1"],
        2,
        "are of --schedule step",
    );
    check(
        "y",
        &["--optimizer", "sgd", "--lr", "0.1,0.2", "--hidden", "4"],
        2,
        "heads of a sweep have no hidden layers",
    );
    check("y", &["--optimizer", "sgd", "--halving", "2"], 2, "FIRST:FACTOR");
    let calibrate = [
        "train",
        "--features",
        "x.npy",
        "--labels",
        "y.npy",
        "-o",
        "run",
        "--calibrate",
    ];
    run(scratch.command_without_runtime(calibrate)).fails(2, "there are none");
    assert!(!scratch.path("run").exists());
}

#[test]
fn a_loss_that_is_not_finite_names_its_step() {
    let scratch = scratch();
    let steep = [
        "--optimizer",
        "sgd",
        "--task",
        "regression",
        "--lr",
        "1e18",
        "-o",
        "run",
    ];
    let said = run(command(&scratch, "numbers", &steep)).fails(3, "is not finite in epoch 1, step");
    assert!(said.stderr.contains("hint: a smaller --lr"), "{}", said.stderr);
    assert!(!scratch.path("run/head.safetensors").exists());
}
