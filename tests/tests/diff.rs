//! What differs between two checkpoints, through the binary.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::collections::BTreeMap;
use std::fs;

use harness::{Said, Scratch, fixture, run};
use pth::{DType, Existing, StateDict, Tensor};

/// Numbers from -1 to 1 that look random.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // Knuth's MMIX generator; the high bits are good enough here.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::from_bytes(DType::Float32, shape, bytes).unwrap()
}

/// Four blocks and a head of `n_classes`; each block's values by `change`.
fn model(n_classes: usize, change: impl Fn(usize, Vec<f32>) -> Vec<f32>) -> StateDict {
    let mut tensors = StateDict::new();
    for i in 0..4 {
        let weight = change(i, numbers(64 * 48, i as u64));
        tensors.insert(format!("body.blocks.{i}.attn.weight"), tensor(&[64, 48], &weight));
        tensors.insert(
            format!("body.blocks.{i}.attn.bias"),
            tensor(&[64], &numbers(64, 9 + i as u64)),
        );
    }
    tensors.insert(
        "fc.weight",
        tensor(&[n_classes, 64], &numbers(n_classes * 64, n_classes as u64)),
    );
    tensors
}

fn base() -> StateDict {
    model(10, |_, values| values)
}

fn save(scratch: &Scratch, name: &str, tensors: &StateDict) {
    let path = scratch.path(name);
    surgery::save_safetensors(&path, tensors, &BTreeMap::new(), Existing::Replace).unwrap();
}

fn diff(scratch: &Scratch, args: &[&str]) -> Said {
    let mut command = scratch.command_without_runtime(["diff"]);
    command.args(args);
    run(command)
}

/// Exit code and first line of a comparison with the base.
#[track_caller]
fn check_verdict(other: &StateDict, code: i32, expected: &str) -> String {
    let scratch = Scratch::new();
    save(&scratch, "a.safetensors", &base());
    save(&scratch, "b.safetensors", other);
    let said = diff(&scratch, &["a.safetensors", "b.safetensors"]);
    assert_eq!(said.code, code, "{}{}", said.stdout, said.stderr);
    let verdict = said.stdout.lines().next().unwrap();
    assert!(verdict.starts_with(expected), "{}", said.stdout);
    said.stdout
}

#[test]
fn the_verdict_says_what_kind_of_difference_it_is() {
    check_verdict(&base(), 0, "identical");
    check_verdict(&model(4, |_, values| values), 1, "head only: `fc` (1 tensor, ");
    let tuned = model(10, |i, mut values| {
        let noise = numbers(values.len(), 77 + i as u64);
        values.iter_mut().zip(noise).for_each(|(x, d)| *x += 0.03 * d);
        values
    });
    // Uniform numbers all: the ratio of the norms is the ratio of the ranges, but for the biases and the head.
    let text = check_verdict(&tuned, 1, "fine-tune, dW/W 2.");
    let row = text.lines().find(|line| line.starts_with("~ ")).unwrap();
    assert!(
        row.starts_with("~ body.blocks.{0..3}.attn.weight  [64, 48] float32  changed "),
        "{row}"
    );
    assert!(
        row.contains("max|Δ| 0.03") && row.contains("ΔW/W 3.") && row.contains("cos .999"),
        "{row}"
    );
    assert_eq!(text.lines().nth(1), Some("= 5  ~ 4  + 0  - 0"));
    let adapted = model(10, |i, mut values| {
        let (left, right) = (numbers(64 * 2, 31 + i as u64), numbers(48 * 2, 55 + i as u64));
        for (at, x) in values.iter_mut().enumerate() {
            let (row, column) = (at / 48, at % 48);
            *x += 0.01 * (left[row] * right[column] + left[64 + row] * right[48 + column]);
        }
        values
    });
    check_verdict(&adapted, 1, "LoRA-like, rank <= 2 in 4 matrices");
    let other = model(10, |i, values| numbers(values.len(), 1000 + i as u64));
    check_verdict(&other, 1, "unrelated (cos ");
}

#[test]
fn renamed_and_cast_tensors_are_recognised() {
    let scratch = Scratch::new();
    let from = fixture("checkpoints/training-legacy.pth.tar");
    let from = from.to_str().unwrap();
    let convert = |args: &[&str]| {
        let mut command = scratch.command_without_runtime(["convert"]);
        command.args(args);
        run(command).ok();
    };
    convert(&[from, "same.safetensors"]);
    convert(&["--strip-prefix", "module.", from, "renamed.safetensors"]);
    convert(&["--dtype", "bfloat16", from, "cast.safetensors"]);
    let said = diff(&scratch, &[from, "same.safetensors"]).ok();
    assert!(said.stdout.starts_with("identical\n"), "{}", said.stdout);
    assert!(said.stdout.contains("disk: "), "{}", said.stdout);
    let said = diff(&scratch, &[from, "renamed.safetensors", "--json"]);
    assert_eq!(said.code, 1);
    let found = said.json();
    let renamed = found["renamed"].as_array().unwrap();
    assert_eq!(
        found["verdict"],
        format!("same values, renamed ({})", renamed.len())
    );
    for pair in renamed {
        let (old, new) = (pair["from"].as_str().unwrap(), pair["to"].as_str().unwrap());
        assert_eq!(old.strip_prefix("module."), Some(new));
    }
    let said = diff(&scratch, &["same.safetensors", "cast.safetensors"]);
    assert_eq!(said.code, 1);
    assert!(
        said.stdout.starts_with("cast float32 -> bfloat16 only\n"),
        "{}",
        said.stdout
    );
    let near = diff(
        &scratch,
        &["same.safetensors", "cast.safetensors", "--skip", "**weight"],
    );
    assert!(!near.stdout.contains("weight"), "{}", near.stdout);
}

#[test]
fn a_freeze_is_proven_or_disproven() {
    let scratch = Scratch::new();
    save(&scratch, "a.safetensors", &base());
    save(&scratch, "head.safetensors", &model(4, |_, values| values));
    let broken = model(4, |i, mut values| {
        values[0] += if i == 2 { 0.5 } else { 0.0 };
        values
    });
    save(&scratch, "broken.safetensors", &broken);
    let ask = |b: &str, asked: &str| diff(&scratch, &["a.safetensors", b, "--fail-on", asked]);
    let held = ask("head.safetensors", "changed:body.**").ok().stdout;
    let line = held.lines().nth(1).unwrap();
    assert_eq!(line, "fail-on changed:body.**: holds, none of 8 names");
    let failed = ask("broken.safetensors", "changed:body.**");
    assert_eq!(failed.code, 1);
    let line = failed.stdout.lines().nth(1).unwrap();
    assert_eq!(
        line,
        "fail-on changed:body.**: FAILED, 1 of 8 names: body.blocks.2.attn.weight"
    );
    assert_eq!(ask("head.safetensors", "any:**").code, 1);
    ask("head.safetensors", "added:**").ok();
    ask("head.safetensors", "changed:bodi.**").fails(2, "bodi.**");
    ask("head.safetensors", "chagned:body.**").fails(2, "did you mean `changed`?");
    ask("head.safetensors", "body.**").fails(2, "KIND:PATTERN");
    diff(
        &scratch,
        &[
            "a.safetensors",
            "head.safetensors",
            "--headers",
            "--fail-on",
            "changed:**",
        ],
    )
    .fails(2, "--headers");
}

#[test]
fn headers_are_compared_without_values() {
    let scratch = Scratch::new();
    save(&scratch, "a.safetensors", &base());
    let other = model(10, |i, values| numbers(values.len(), 1000 + i as u64));
    save(&scratch, "b.safetensors", &other);
    save(&scratch, "c.safetensors", &model(4, |_, values| values));
    let said = diff(&scratch, &["a.safetensors", "b.safetensors", "--headers"]).ok();
    assert!(
        said.stdout.starts_with("same names, shapes and types"),
        "{}",
        said.stdout
    );
    let said = diff(&scratch, &["a.safetensors", "c.safetensors", "--headers"]);
    assert_eq!(said.code, 1);
    assert!(
        said.stdout.contains("~ fc.weight  [10, 64] -> [4, 64] float32"),
        "{}",
        said.stdout
    );
}

#[test]
fn the_json_has_every_list_and_the_numbers() {
    let scratch = Scratch::new();
    let a = base();
    let mut b = base();
    b.insert("body.blocks.0.attn.bias", tensor(&[64], &[0.0; 64]));
    b.insert("extra", tensor(&[3], &[1.0, f32::NAN, 2.0]));
    b.remove("fc.weight");
    save(&scratch, "a.safetensors", &a);
    save(&scratch, "b.safetensors", &b);
    let said = diff(
        &scratch,
        &[
            "a.safetensors",
            "b.safetensors",
            "--json",
            "--fail-on",
            "removed:fc.**",
        ],
    );
    assert_eq!(said.code, 1);
    let found = said.json();
    for list in [
        "changed",
        "added",
        "removed",
        "renamed",
        "cast",
        "reshaped",
        "transposed",
        "ties",
        "marks",
        "health",
        "fail_on",
    ] {
        assert!(found[list].is_array(), "{list}");
    }
    assert!(found["metadata"].is_object() && found["identical"] == false);
    assert_eq!(found["added"][0]["name"], "extra");
    assert_eq!(found["added"][0]["nbytes"], 12);
    assert_eq!(found["removed"][0]["shape"], serde_json::json!([10, 64]));
    let change = &found["changed"][0];
    assert_eq!(
        (&change["share_changed"], &change["rel"], &change["cos"]),
        (&1.0.into(), &1.0.into(), &serde_json::Value::Null)
    );
    let worst = numbers(64, 9)
        .into_iter()
        .map(|x| f64::from(x.abs()))
        .fold(0.0, f64::max);
    // Read back from decimal digits, the last bit may be another.
    let found_worst = change["max_abs"].as_f64().unwrap();
    assert!(
        (found_worst - worst).abs() <= f64::EPSILON,
        "{found_worst} {worst}"
    );
    assert_eq!(found["fail_on"][0]["names"], serde_json::json!(["fc.weight"]));
    let health = found["health"].as_array().unwrap();
    let of = |name: &str| health.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!(of("extra")["b"]["nan"], 1);
    assert_eq!(of("body.blocks.0.attn.bias")["b"]["all_zero"], true);
}

#[test]
fn wrong_requests_and_wrong_files_have_their_exit_codes() {
    let scratch = Scratch::new();
    save(&scratch, "a.safetensors", &base());
    let whole = fs::read(scratch.path("a.safetensors")).unwrap();
    scratch.write("cut.safetensors", &whole[..whole.len() / 2]);
    let same = |more: &[&str]| diff(&scratch, &[&["a.safetensors", "a.safetensors"], more].concat());
    same(&["--tol", "bf61"]).fails(2, "did you mean `bf16`?");
    same(&["--tol", "1e-3"]).fails(2, "RTOL,ATOL");
    same(&["--tol", "1e-3,1e-5"]).ok();
    same(&["--only", "nothing.**"]).fails(2, "nothing.**");
    same(&["--only", "body.{"]).fails(2, "body.{");
    diff(&scratch, &["a.safetensors", "absent.safetensors"]).fails(3, "absent.safetensors");
    diff(&scratch, &["a.safetensors", "cut.safetensors"]).fails(3, "cut.safetensors");
    assert_eq!(diff(&scratch, &["a.safetensors"]).code, 2);
}
