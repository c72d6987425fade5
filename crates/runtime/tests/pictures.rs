//! Decoding and preprocessing against digests that Pillow and torchvision made (`tools/make_fixtures.py`).
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::PathBuf;

use runtime::image::{Interpolation, Preprocess, decode};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/pictures")
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn spec(spec: &Value) -> Preprocess {
    Preprocess {
        resize: (spec["resize"].as_u64().unwrap() as usize).into(),
        crop: (spec["crop"].as_u64().unwrap() as usize).into(),
        interpolation: match spec["interpolation"].as_str().unwrap() {
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            other => panic!("{other}"),
        },
        ..Preprocess::imagenet()
    }
}

#[test]
fn every_pixel_is_pillows() {
    let expected = expected();
    let mut wrong = Vec::new();
    let mut n_compared = 0;
    for (name, want) in expected["pictures"].as_object().unwrap() {
        let pixels = match decode(&fs::read(fixtures().join(name)).unwrap()) {
            Ok(pixels) => pixels,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut check = |what: &str, got: String, want: &Value| {
            n_compared += 1;
            if want.as_str() != Some(got.as_str()) {
                wrong.push(format!("{name}: {what}"));
            }
        };
        check("decoded", sha256(&pixels.to_rgb()), &want["rgb_sha256"]);
        for (spec_name, want) in want["preprocessed"].as_object().unwrap() {
            if want["rgb_sha256"].is_null() {
                continue;
            }
            let cropped = spec(&expected["specs"][spec_name]).pixels(&pixels, None);
            check(spec_name, sha256(&cropped.to_rgb()), &want["rgb_sha256"]);
        }
        for (spec_name, want) in want["float32_chw_sha256"].as_object().unwrap() {
            let preprocess = spec(&expected["specs"][spec_name]);
            let mut input = vec![0f32; preprocess.numel()];
            preprocess.apply(&pixels, None, &mut input);
            let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
            check("as network input", sha256(&bytes), want);
        }
    }
    assert!(n_compared >= 200, "only {n_compared} comparisons");
    assert!(
        wrong.is_empty(),
        "{} of {n_compared} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn what_pillow_refuses_is_refused_and_what_it_takes_is_taken() {
    let mut wrong = Vec::new();
    for (name, want) in expected()["broken"].as_object().unwrap() {
        let got = decode(&fs::read(fixtures().join(name)).unwrap());
        let agrees = match (&got, want["rgb_sha256"].as_str()) {
            (Ok(pixels), Some(digest)) => sha256(&pixels.to_rgb()) == digest,
            (Err(_), None) => true,
            _ => false,
        };
        if !agrees {
            wrong.push(format!(
                "{name}: {:?}, Pillow: {want}",
                got.map(|pixels| sha256(&pixels.to_rgb()))
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
