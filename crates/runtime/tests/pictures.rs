//! Decoding and preprocessing against digests that Pillow and torchvision made (`tools/make_fixtures.py`).
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::PathBuf;

use runtime::image::{Interpolation, Preprocess, View, decode};
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

fn sha256_of(numbers: &[f32]) -> String {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    sha256(&bytes)
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
            check("as network input", sha256_of(&input), want);
            input.fill(f32::NAN);
            preprocess
                .prepare(&fs::read(fixtures().join(name)).unwrap(), None, &mut input)
                .unwrap();
            check("as network input in one pass", sha256_of(&input), want);
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

#[test]
fn every_transform_is_its_librarys() {
    let expected = expected();
    let mut wrong = Vec::new();
    let mut n_compared = 0;
    for entry in expected["transforms"].as_array().unwrap() {
        let config = &entry["config"];
        let preprocess = match config.as_str() {
            Some(name) => Preprocess::from_source(name).unwrap(),
            None => Preprocess::from_json(&config.to_string()).unwrap(),
        };
        for (name, want) in entry["float32_chw_sha256"].as_object().unwrap() {
            let encoded = fs::read(fixtures().join(name)).unwrap();
            let mut input = vec![f32::NAN; preprocess.numel()];
            preprocess.prepare(&encoded, None, &mut input).unwrap();
            n_compared += 1;
            if want.as_str() != Some(&sha256_of(&input)) {
                wrong.push(format!("{name} by {config}"));
            }
            // From pixels and in one pass are the same.
            let mut again = vec![f32::NAN; preprocess.numel()];
            preprocess.apply(&decode(&encoded).unwrap(), None, &mut again);
            assert_eq!(sha256_of(&again), sha256_of(&input), "{name} by {config}");
        }
    }
    assert!(n_compared >= 100, "only {n_compared} comparisons");
    assert!(
        wrong.is_empty(),
        "{} of {n_compared} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn views_orientation_and_scaled_decoding_are_the_libraries() {
    for entry in expected()["views"].as_array().unwrap() {
        let name = entry["picture"].as_str().unwrap();
        let preprocess = Preprocess {
            resize: 40.into(),
            crop: 32.into(),
            interpolation: Interpolation::Bicubic,
            exif: entry["exif"].as_bool().unwrap(),
            scaled_decode: entry["scaled_decode"].as_bool().unwrap(),
            ..Preprocess::imagenet()
        };
        let view: Option<View> = serde_json::from_value(entry["view"].clone()).unwrap();
        let mut input = vec![f32::NAN; preprocess.numel()];
        let encoded = fs::read(fixtures().join(name)).unwrap();
        preprocess.prepare(&encoded, view.as_ref(), &mut input).unwrap();
        assert_eq!(
            entry["float32_chw_sha256"].as_str(),
            Some(sha256_of(&input).as_str()),
            "{entry}"
        );
    }
}

#[test]
fn the_size_that_regions_are_measured_in() {
    let size = |name: &str, change: fn(&mut Preprocess)| {
        let mut preprocess = Preprocess::imagenet();
        change(&mut preprocess);
        preprocess
            .source_size(&fs::read(fixtures().join(name)).unwrap())
            .unwrap()
    };
    assert_eq!(size("jpeg-exif-orientation6.jpg", |_| {}), (120, 80));
    assert_eq!(size("jpeg-exif-orientation6.jpg", |p| p.exif = true), (80, 120));
    assert_eq!(
        size("jpeg-shrink-420x391.jpg", |p| p.scaled_decode = true),
        (420, 391)
    );
    let small = |p: &mut Preprocess| (p.resize, p.scaled_decode) = (100.into(), true);
    assert_eq!(size("jpeg-shrink-420x391.jpg", small), (210, 196));
    assert_eq!(size("webp-lossy.webp", |_| {}), (61, 43));
    assert_eq!(size("gif-small-frame.gif", |_| {}), (20, 15));
}
