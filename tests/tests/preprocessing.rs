//! `--preprocess`: other people's configs and presets, with flags over them, and their part in the cache's key.

use harness::{Said, Scratch, fixture, run};

/// Extracts the digits' features; the entry's folder is on stdout.
fn extract(scratch: &Scratch, more: &[&str]) -> Said {
    let mut command = scratch.command(["extract", "--cache", "cache"]);
    command
        .args(more)
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"))
        .arg("--data")
        .arg(fixture("digits/pictures"));
    run(command)
}

fn entry(scratch: &Scratch, more: &[&str]) -> String {
    let name = extract(scratch, more).ok().stdout.trim().to_owned();
    assert!(scratch.path(&name).is_dir(), "{name}");
    name
}

#[test]
fn a_config_file_is_the_flags_that_it_says() {
    let scratch = Scratch::new();
    let timm = r#"{"architecture": "digits", "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
    scratch.write("config.json", timm.as_bytes());
    let by_file = entry(&scratch, &["--preprocess", "config.json"]);
    let flags = [
        "--resize",
        "40",
        "--crop",
        "32",
        "--interpolation",
        "bicubic",
        "--mean",
        "0.5,0.5,0.5",
    ];
    let by_flags = entry(&scratch, &[&flags[..], &["--std", "0.25,0.25,0.25"]].concat());
    assert_eq!(by_file, by_flags);
    // A flag changes the part that it names, and with it the key.
    let changed = entry(
        &scratch,
        &["--preprocess", "config.json", "--interpolation", "bilinear"],
    );
    assert_ne!(by_file, changed);
    let upright = entry(&scratch, &["--preprocess", "config.json", "--exif"]);
    assert_ne!(by_file, upright);
    let squashed = entry(
        &scratch,
        &[
            "--preprocess",
            "config.json",
            "--resize",
            "32x32",
            "--crop",
            "none",
        ],
    );
    assert_ne!(by_file, squashed);
    let named = [
        "--preprocess",
        "torchvision:resnet50",
        "--resize",
        "32",
        "--crop",
        "32",
    ];
    let plain = ["--resize", "32", "--crop", "32"];
    assert_eq!(entry(&scratch, &named), entry(&scratch, &plain));
}

#[test]
fn what_is_not_understood_is_named() {
    let scratch = Scratch::new();
    scratch.write(
        "qwen.json",
        br#"{"image_processor_type": "Qwen2VLImageProcessor"}"#,
    );
    extract(&scratch, &["--preprocess", "qwen.json"]).fails(
        2,
        "`qwen.json`: the image processor `Qwen2VLImageProcessor` is not known",
    );
    extract(&scratch, &["--preprocess", "none.json"]).fails(2, "`none.json`: ");
    extract(&scratch, &["--preprocess", "torchvision:resnet19"])
        .fails(2, "no classification model `resnet19`");
    extract(&scratch, &["--preprocess", "torchvision:resnet18"])
        .fails(2, "takes pictures of 32 x 32, and the crop is 224");
    extract(&scratch, &["--crop", "none"]).fails(2, "without a crop pictures have different sizes");
    extract(&scratch, &["--resize", "big"]).fails(2, "a short side, HEIGHTxWIDTH");
}
