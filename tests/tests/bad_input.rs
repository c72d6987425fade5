//! Bad input to the main job: one clear sentence, the contract's exit code, nothing half-written.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::{Said, Scratch, fixture, run};

fn fit(scratch: &Scratch, backbone: &Path, data: &Path, more: &[&str]) -> Said {
    let mut command = scratch.command(["fit", "--json", "-o", "run", "--cache", "cache", "--resize", "32"]);
    command
        .args(["--crop", "32"])
        .args(more)
        .arg("--backbone")
        .arg(backbone)
        .arg("--data")
        .arg(data);
    run(command)
}

fn check_fails(prepare: impl Fn(&Scratch), more: &[&str], code: i32, message: &str) {
    let scratch = Scratch::new();
    let data = scratch.copy(&fixture("digits/pictures"), "pictures");
    prepare(&scratch);
    fit(&scratch, &fixture("digits/backbone.onnx"), &data, more).fails(code, message);
    assert!(!scratch.path("run").exists(), "a run folder was left");
    let left = scratch
        .names("")
        .into_iter()
        .filter(|name| name.ends_with(".tmp"))
        .count();
    assert_eq!(left, 0, "temporary files were left");
}

#[test]
fn a_broken_picture_is_left_out_and_named() {
    let scratch = Scratch::new();
    let data = scratch.copy(&fixture("digits/pictures"), "pictures");
    let whole = fs::read(fixture("pictures/jpeg-17x16.jpg")).unwrap();
    scratch.write("pictures/train/7/cut.jpg", &whole[..whole.len() / 2]);
    scratch.write("pictures/train/7/page.jpg", b"<!doctype html><title>404</title>");
    scratch.write("pictures/val/6/empty.png", b"");
    let metrics = fit(&scratch, &fixture("digits/backbone.onnx"), &data, &[])
        .ok()
        .json();
    assert_eq!(metrics["left_out"], 3);
    assert_eq!(
        (&metrics["train"]["n"], &metrics["val"]["n"]),
        (&500.into(), &200.into())
    );
    let ledger = fs::read_to_string(scratch.path("run/ledger.jsonl")).unwrap();
    for (path, reason) in [
        ("cut.jpg", "truncated"),
        ("page.jpg", "HTML"),
        ("empty.png", "empty"),
    ] {
        let line = ledger.lines().find(|line| line.contains(path)).expect(path);
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn an_empty_class() {
    check_fails(
        |scratch| fs::create_dir(scratch.path("pictures/train/4")).unwrap(),
        &[],
        3,
        "pictures/train/4`: this class has no pictures",
    );
}

#[test]
fn no_pictures() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("empty/train")).unwrap();
    fs::create_dir_all(scratch.path("empty/val")).unwrap();
    let backbone = fixture("digits/backbone.onnx");
    fit(&scratch, &backbone, &scratch.path("empty"), &[]).fails(3, "there are no pictures in it");
    fit(&scratch, &backbone, &scratch.path("absent"), &[]).fails(3, "no such folder");
    let flat = scratch.copy(&fixture("digits/pictures/train"), "flat");
    fit(&scratch, &backbone, &flat, &[]).fails(2, "no `train` folder");
    assert!(!scratch.path("run").exists());
}

#[test]
fn an_onnx_file_that_is_none() {
    let scratch = Scratch::new();
    let data = fixture("digits/pictures");
    let whole = fs::read(fixture("digits/backbone.onnx")).unwrap();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for (name, bytes) in [
        ("page.onnx", b"<!doctype html>".as_slice()),
        ("lfs.onnx", lfs),
        ("empty.onnx", b""),
    ] {
        let path = scratch.write(name, bytes);
        fit(&scratch, &path, &data, &[]).fails(3, "is not an ONNX model");
    }
    let cut = scratch.write("cut.onnx", &whole[..whole.len() - 100]);
    fit(&scratch, &cut, &data, &[]).fails(3, "is not an ONNX model");
    fit(&scratch, &scratch.path("absent.onnx"), &data, &[]).fails(3, "absent.onnx");
    assert!(!scratch.path("run").exists());
}

#[test]
fn a_cut_that_does_not_exist_and_a_crop_that_does_not_fit() {
    check_fails(
        |_| {},
        &["--cut", "/flatten/Flaten_output_0"],
        2,
        "hint: --cut takes one of its tensors; near are `/flatten/Flatten_output_0`",
    );
    let scratch = Scratch::new();
    let mut command = scratch.command(["fit", "-o", "run", "--cache", "cache"]);
    command
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"))
        .arg("--data")
        .arg(fixture("digits/pictures"));
    run(command).fails(2, "takes pictures of 32 x 32, and the crop is 224");
}

#[test]
fn no_onnx_runtime_anywhere() {
    let scratch = Scratch::new();
    let mut command =
        scratch.command_without_runtime(["fit", "-o", "run", "--cache", "cache", "--resize", "32"]);
    command
        .args(["--crop", "32"])
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"));
    command.arg("--data").arg(fixture("digits/pictures"));
    run(command).fails(5, "hint: graftwork doctor --install");
    assert!(!scratch.path("run").exists());

    let said = run(scratch.command_without_runtime(["doctor"])).fails(5, "ONNX Runtime was not found");
    assert!(said.stdout.contains("user data folder"), "{}", said.stdout);
    let mut asked = scratch.command_without_runtime(["doctor", "--json"]);
    asked.env("ORT_DYLIB_PATH", harness::onnx_runtime());
    assert!(
        run(asked).ok().json()["onnxruntime"]["used"]["version"]
            .as_str()
            .unwrap()
            .starts_with("1.")
    );
    // What was asked for and is not there is not replaced by what is.
    let mut absent = scratch.command(["demo", "-o", "run"]);
    absent
        .current_dir(harness::root())
        .env("ORT_DYLIB_PATH", scratch.path("absent.so"));
    run(absent).fails(5, "absent.so` cannot be used as ONNX Runtime");
    // No pip without a Python.
    run(scratch.command_without_runtime(["doctor", "--install"]))
        .fails(5, "ONNX Runtime could not be installed");
}

#[test]
fn a_run_of_other_settings_is_not_overwritten() {
    let scratch = Scratch::new();
    let (backbone, data) = (fixture("digits/backbone.onnx"), fixture("digits/pictures"));
    fit(&scratch, &backbone, &data, &["--c", "10"]).ok();
    let before = fs::read(scratch.path("run/metrics.json")).unwrap();
    fit(&scratch, &backbone, &data, &["--c", "1"]).fails(2, "already holds a run of other settings");
    assert_eq!(fs::read(scratch.path("run/metrics.json")).unwrap(), before);
    fit(&scratch, &backbone, &data, &["--c", "1", "--force"]).ok();
    let foreign = Scratch::new();
    foreign.write("run/thesis.tex", b"years of work");
    fit(&foreign, &backbone, &data, &[]).fails(2, "already holds files that are no run");
}

#[test]
fn features_that_no_head_can_be_fitted_on() {
    let scratch = Scratch::new();
    let npy = |kind: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
        [
            b"\x93NUMPY\x01\x00",
            (header.len() as u16).to_le_bytes().as_slice(),
            header.as_bytes(),
            data,
        ]
        .concat()
    };
    let floats = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    scratch.write("x.npy", &npy("<f4", "(3, 1)", &floats(&[1.0, 2.0, 3.0])));
    scratch.write("nan.npy", &npy("<f4", "(3, 1)", &floats(&[1.0, f32::NAN, 3.0])));
    scratch.write("y.npy", &npy("|u1", "(3,)", &[0, 1, 1]));
    scratch.write("one.npy", &npy("|u1", "(3,)", &[1, 1, 1]));
    scratch.write("short.npy", &npy("|u1", "(2,)", &[0, 1]));
    scratch.write("many.npy", &npy("|u1", "(3,)", &[0, 9, 5]));
    scratch.write("negative.npy", &npy("|i1", "(3,)", &[0, 255, 1]));
    scratch.write("text.npy", b"1 2 3");
    for (x, y, message) in [
        ("nan.npy", "y.npy", "row 1 holds NaN"),
        ("x.npy", "one.npy", "all rows are of one class"),
        (
            "x.npy",
            "many.npy",
            "3 rows and 10 classes; a classifier needs a row of each",
        ),
        ("x.npy", "short.npy", "`x.npy` has 3 rows and `short.npy` 2"),
        ("x.npy", "negative.npy", "row 1 has label -1"),
        ("text.npy", "y.npy", "this is no .npy array"),
    ] {
        let train = ["train", "--features", x, "--labels", y, "-o", "run", "--c", "1"];
        run(scratch.command_without_runtime(train)).fails(3, message);
    }
    scratch.write("wide.npy", &npy("<f4", "(1, 3)", &floats(&[1.0, 2.0, 3.0])));
    scratch.write("zero.npy", &npy("|u1", "(1,)", &[0]));
    let other_width = [
        "train",
        "--features",
        "x.npy",
        "--labels",
        "y.npy",
        "-o",
        "run",
        "--c",
        "1",
        "--val-features",
        "wide.npy",
        "--val-labels",
        "zero.npy",
    ];
    let message = "those for validation have 3 numbers a row, and those for training 1";
    run(scratch.command_without_runtime(other_width)).fails(3, message);
    let unlabelled = ["train", "--features", "x.npy", "-o", "run"];
    run(scratch.command_without_runtime(unlabelled)).fails(2, "needs its labels");
    assert!(!scratch.path("run").exists());
}

#[test]
fn interrupted_and_run_again() {
    let data = fixture("digits/pictures");
    let mut seen = None;
    // Where in the job the signal falls depends on the machine: try moments until one is in the middle.
    for delay_ms in [40, 60, 90, 130, 180, 250, 350, 500, 700, 1000, 1500, 2200] {
        let scratch = Scratch::new();
        let command = || {
            let mut command = scratch.command(["fit", "--json", "-o", "run", "--cache", "cache", "-j", "1"]);
            // Small batches of large pictures, so that there is a middle to hit.
            command.args(["--batch-size", "1", "--resize", "32", "--crop", "32"]);
            command
                .arg("--backbone")
                .arg(fixture("digits/backbone.onnx"))
                .arg("--data")
                .arg(&data);
            command
        };
        let child = command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let killed = std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        if !killed.success() || output.status.code() != Some(75) {
            continue;
        }
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("error: interrupted") && said.contains("hint: run the same command again"),
            "{said}"
        );
        assert!(!scratch.path("run").exists());
        let resumed = run(command()).ok().json();
        let (hits, misses) = (
            resumed["cache"]["hits"].as_u64().unwrap(),
            resumed["cache"]["misses"].as_u64().unwrap(),
        );
        assert_eq!(hits + misses, 700);
        seen = Some(hits);
        if hits > 0 {
            break;
        }
    }
    assert!(
        seen.is_some_and(|hits| hits > 0),
        "no moment of interruption left rows in the cache"
    );
}

/// Needs leave to mount; says so and passes where there is none.
#[test]
#[cfg(target_os = "linux")]
#[expect(clippy::print_stderr, reason = "a test that skips says so aloud")]
fn a_full_disk() {
    let scratch = Scratch::new();
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
    let mounted = std::process::Command::new("mount")
        .args(mount)
        .arg(&small)
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk: this user may not mount a tmpfs");
        return;
    }
    let unmount = || std::process::Command::new("umount").arg(&small).status().unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let job = |run_folder: &str, cache: &str| {
            let mut command = scratch.command(["fit", "--resize", "32", "--crop", "32"]);
            command.args(["-o", run_folder, "--cache", cache]);
            command
                .arg("--backbone")
                .arg(fixture("digits/backbone.onnx"))
                .arg("--data")
                .arg(fixture("digits/pictures"));
            run(command)
        };
        // 700 rows of 64 numbers do not fit; neither does the run folder.
        job("run", "small/cache").fails(75, "hint: make room and run the same command again");
        assert!(!scratch.path("run").exists());
        let left = scratch
            .names("small/cache")
            .iter()
            .map(|key| scratch.names(&format!("small/cache/{key}")))
            .collect::<Vec<_>>();
        assert!(
            left.iter()
                .flatten()
                .all(|name| ["key.json", "used"].contains(&name.as_str())),
            "{left:?}"
        );
        job("small/run", "cache").fails(75, "hint: make room");
        assert!(!scratch.path("small/run").exists());
        assert!(
            scratch.names("small").iter().all(|name| name == "cache"),
            "{:?}",
            scratch.names("small")
        );
        job("run", "cache").ok();
    });
    assert!(unmount().success());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A run of `train` in the place of a run of `fit` must not leave the old model to be judged.
#[test]
fn a_replaced_run_keeps_nothing_of_the_old_one() {
    let scratch = Scratch::new();
    let (backbone, data) = (fixture("digits/backbone.onnx"), fixture("digits/pictures"));
    let metrics = fit(&scratch, &backbone, &data, &["--c", "10"]).ok().json();
    let entry = metrics["cache"]["entry"].as_str().unwrap();
    let mut extract = scratch.command(["extract", "--cache", "cache", "--resize", "32", "--crop", "32"]);
    extract.arg("--backbone").arg(&backbone).arg("--data").arg(&data);
    run(extract).ok();
    let train = |more: &[&str]| {
        let mut command =
            scratch.command_without_runtime(["train", "--features", entry, "--c", "1", "-o", "run"]);
        command.args(more);
        run(command)
    };
    train(&[]).fails(2, "already holds a run of other settings");
    train(&["--force"]).ok();
    assert_eq!(
        scratch.names("run"),
        ["config.toml", "head.safetensors", "metrics.json", "report.html"]
    );
    run(scratch.command_without_runtime(["predict", "run", "x.png"])).fails(2, "holds no `model.onnx`");
}
