//! The main job: a network that learned the digits 0-4 gets a head for the digits 5-9.

use std::fs;

use harness::{Said, Scratch, fixture, run};

const SIZES: [&str; 4] = ["--resize", "32", "--crop", "32"];

fn fit(scratch: &Scratch, data: &std::path::Path, out: &str, more: &[&str]) -> Said {
    let backbone = fixture("digits/backbone.onnx");
    let mut command = scratch.command(["fit", "--json", "-o", out, "--cache", "cache"]);
    command
        .args(SIZES)
        .arg("--backbone")
        .arg(backbone)
        .arg("--data")
        .arg(data)
        .args(more);
    run(command)
}

#[test]
fn demo_transfers_and_a_second_run_computes_nothing() {
    let scratch = Scratch::new();
    let command = || {
        let mut command = scratch.command(["demo", "--json"]);
        command
            .arg("-o")
            .arg(scratch.path("run"))
            .current_dir(harness::root());
        command
    };
    let first = run(command()).ok().json();
    assert!(
        first["val"]["accuracy"].as_f64().unwrap() >= 0.97,
        "{}",
        first["val"]["accuracy"]
    );
    assert_eq!(first["cache"]["misses"], 700);
    for name in [
        "config.toml",
        "head.safetensors",
        "ledger.jsonl",
        "metrics.json",
        "model.onnx",
        "report.html",
    ] {
        assert!(scratch.path("run").join(name).is_file(), "{name}");
    }
    let head = fs::read(scratch.path("run/head.safetensors")).unwrap();

    let second = run(command()).ok().json();
    assert_eq!(
        (&second["cache"]["hits"], &second["cache"]["misses"]),
        (&700.into(), &0.into())
    );
    assert_eq!(
        fs::read(scratch.path("run/head.safetensors")).unwrap(),
        head,
        "the same job, another head"
    );
    assert_eq!(
        scratch
            .names("")
            .iter()
            .filter(|name| name.ends_with(".tmp"))
            .count(),
        0
    );
}

#[test]
fn features_are_those_of_torchvision_and_onnxruntime() {
    let scratch = Scratch::new();
    let mut command = scratch.command(["extract", "--cache", "cache", "--dtype", "float32"]);
    command
        .args(SIZES)
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"));
    command.arg("--data").arg(fixture("digits/pictures"));
    let entry = std::path::PathBuf::from(run(command).ok().stdout.trim());
    harness::digits::check_features(&scratch.path("").join(&entry));
}

#[test]
fn renaming_and_relabelling_computes_nothing() {
    let scratch = Scratch::new();
    let data = scratch.copy(&fixture("digits/pictures"), "pictures");
    fit(&scratch, &data, "first", &[]).ok();
    fs::rename(data.join("train/5"), data.join("train/five")).unwrap();
    fs::rename(data.join("val/5"), data.join("val/five")).unwrap();
    let moved = scratch.path("elsewhere");
    fs::rename(&data, &moved).unwrap();
    let second = fit(&scratch, &moved, "second", &[]).ok().json();
    assert_eq!(second["cache"]["misses"], 0);
    assert!(second["classes"].as_array().unwrap().contains(&"five".into()));
}

#[test]
fn the_exported_model_says_what_the_metrics_say() {
    let scratch = Scratch::new();
    let data = fixture("digits/pictures");
    let metrics = fit(&scratch, &data, "run", &["--c", "100"]).ok().json();
    let mut eval = scratch.command(["eval", "run", "--json", "--data"]);
    eval.arg(&data);
    let marks = run(eval).ok().json();
    assert_eq!(marks["accuracy"], metrics["val"]["accuracy"]);
    assert_eq!(marks["confusion"], metrics["val"]["confusion"]);

    let mut predict = scratch.command(["predict", "run", "--json"]);
    predict.arg(data.join("val"));
    let lines = run(predict).ok().stdout;
    let right = lines
        .lines()
        .filter(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let class = line["predictions"][0]["class"].as_str().unwrap().to_owned();
            std::path::Path::new(line["path"].as_str().unwrap())
                .parent()
                .unwrap()
                .ends_with(class)
        })
        .count();
    assert_eq!(
        right as f64 / lines.lines().count() as f64,
        metrics["val"]["accuracy"].as_f64().unwrap()
    );
}

#[test]
fn a_head_on_arrays_and_on_a_cache_entry() {
    let scratch = Scratch::new();
    let npy = |kind: &str, shape: &str, data: Vec<u8>| {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    };
    // Three clusters on a line, ten rows each.
    let rows: Vec<f32> = (0..30)
        .map(|row| (row % 3) as f32 * 4.0 + (row as f32 * 0.7).sin())
        .collect();
    let x = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    let y = (0..30i64).flat_map(|row| (row % 3).to_le_bytes()).collect();
    scratch.write("x.npy", &npy("<f4", "(30, 1)", x));
    scratch.write("y.npy", &npy("<i8", "(30,)", y));
    let train = [
        "train",
        "--features",
        "x.npy",
        "--labels",
        "y.npy",
        "--c",
        "10",
        "-o",
        "run",
        "--json",
    ];
    let metrics = run(scratch.command_without_runtime(train)).ok().json();
    assert_eq!(metrics["train"]["accuracy"], 1.0);
    let eval = [
        "eval",
        "run",
        "--features",
        "x.npy",
        "--labels",
        "y.npy",
        "--json",
    ];
    assert_eq!(
        run(scratch.command_without_runtime(eval)).ok().json()["accuracy"],
        1.0
    );

    let (head, _) = surgery::open_safetensors(&scratch.path("run/head.safetensors")).unwrap();
    assert_eq!(head.get("weight").unwrap().shape(), [3, 1]);
    assert_eq!(head.get("bias").unwrap().shape(), [3]);

    let mut extract = scratch.command(["extract", "--cache", "cache"]);
    extract
        .args(SIZES)
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"));
    let entry = run({
        extract.arg("--data").arg(fixture("digits/pictures"));
        extract
    })
    .ok()
    .stdout;
    let train = [
        "train",
        "--features",
        entry.trim(),
        "-o",
        "from-cache",
        "--json",
        "--c",
        "100",
    ];
    let metrics = run(scratch.command_without_runtime(train)).ok().json();
    assert!(metrics["val"]["accuracy"].as_f64().unwrap() >= 0.97);
}

#[test]
fn one_folder_is_split_by_a_seed() {
    let scratch = Scratch::new();
    let train = fixture("digits/pictures/train");
    let metrics = fit(
        &scratch,
        &train,
        "run",
        &["--val-fraction", "0.25", "--seed", "3"],
    )
    .ok()
    .json();
    assert_eq!(
        (&metrics["train"]["n"], &metrics["val"]["n"]),
        (&375.into(), &125.into())
    );
    assert!(metrics["val"]["accuracy"].as_f64().unwrap() > 0.9);
}
