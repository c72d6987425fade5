//! Comparisons against loops so simple that they are obviously right.

use std::collections::BTreeMap;

use pth::{DType, StateDict, Storage, Tensor};

use super::*;
use crate::Format;

/// Numbers that look random: the fractional part of multiples of an irrational number, from -1 to 1.
fn numbers(n: usize, seed: f64) -> Vec<f32> {
    let fraction = |i: usize| ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + seed)).fract();
    (0..n).map(|i| (2.0 * fraction(i) - 1.0) as f32).collect()
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::from_bytes(DType::Float32, shape, bytes).unwrap()
}

fn halves(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
        .collect();
    Tensor::from_bytes(DType::BFloat16, shape, bytes).unwrap()
}

fn random(shape: &[usize], seed: f64) -> Tensor {
    floats(shape, &numbers(shape.iter().product(), seed))
}

fn opened(tensors: &[(&str, Tensor)]) -> Opened {
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
    Opened {
        format: Format::Safetensors,
        pieces: Vec::new(),
        state_dict: tensors.collect::<StateDict>(),
        wrapper: String::new(),
        metadata: BTreeMap::new(),
        others: Vec::new(),
        other_tensors: StateDict::new(),
        problems: Vec::new(),
        sources: Vec::new(),
    }
}

fn differences(a: &[(&str, Tensor)], b: &[(&str, Tensor)]) -> Diff {
    diff(&opened(a), &opened(b), &DiffOptions::default()).unwrap()
}

#[track_caller]
fn check_verdict(a: &[(&str, Tensor)], b: &[(&str, Tensor)], expected: &str) {
    let found = differences(a, b);
    assert_eq!(found.verdict.to_string(), expected, "{found:#?}");
}

#[test]
fn numbers_of_a_change_are_those_of_a_simple_loop() {
    // More than a piece, and no whole number of blocks.
    let n = 300_007;
    let a = numbers(n, 0.0);
    let mut b = a.clone();
    for i in (0..n).step_by(3) {
        b[i] *= 1.0 + 0.01 * a[n - 1 - i];
    }
    b[5] = -b[5];
    let found = differences(
        &[("w", floats(&[n], &a)), ("k", random(&[9], 0.1))],
        &[("w", floats(&[n], &b)), ("k", random(&[9], 0.1))],
    );
    let [change] = found.changed.as_slice() else {
        panic!("{found:?}")
    };
    let pairs = || a.iter().zip(&b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
    let n_changed = pairs().filter(|(x, y)| x != y).count();
    assert_eq!(change.share_changed, Some(n_changed as f64 / n as f64));
    let max_abs = pairs().map(|(x, y)| (y - x).abs()).fold(0.0, f64::max);
    assert_eq!(change.max_abs, Some(max_abs));
    let sum = |f: fn(f64, f64) -> f64| pairs().map(|(x, y)| f(x, y)).sum::<f64>();
    let (aa, bb, ab) = (sum(|x, _| x * x), sum(|_, y| y * y), sum(|x, y| x * y));
    let dd = sum(|x, y| (y - x) * (y - x));
    let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() <= 1e-12 * expected;
    assert!(near(change.rel, (dd / aa).sqrt()) && near(change.cos, ab / (aa * bb).sqrt()));
    // The floats from -x to x, both zeros as one.
    assert_eq!(change.max_ulp, Some(u64::from(2 * a[5].abs().to_bits())));
    assert_eq!((found.counts.same, found.counts.changed), (1, 1));
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let names: Vec<String> = (0..40).map(|i| format!("layer{i}.weight")).collect();
    let side = |seed: f64| -> Vec<(&str, Tensor)> {
        let tensors = names.iter().enumerate();
        tensors
            .map(|(i, name)| (name.as_str(), random(&[i + 3, 50], seed * i as f64)))
            .collect()
    };
    let (a, b) = (opened(&side(0.1)), opened(&side(0.2)));
    let with = |n_threads: usize| {
        let options = DiffOptions {
            n_threads,
            ..DiffOptions::default()
        };
        format!("{:?}", diff(&a, &b, &options).unwrap())
    };
    assert_eq!(with(1), with(2));
    assert_eq!(with(1), with(7));
}

#[test]
fn verdicts_of_the_same_values() {
    let (w, bias) = (random(&[20, 30], 0.0), random(&[20], 0.2));
    let plain = [("a.w", w.clone()), ("a.b", bias.clone())];
    check_verdict(&plain, &plain, "identical");
    let prefixed = [("m.a.w", w.clone()), ("m.a.b", bias.clone())];
    check_verdict(&plain, &prefixed, "same values, renamed (2)");
    let wide = numbers(600, 0.0);
    let cast = [("a.w", halves(&[20, 30], &wide)), ("a.b", bias.clone())];
    check_verdict(&plain, &cast, "cast float32 -> bfloat16 only");
    check_verdict(
        &cast,
        &plain,
        "cast bfloat16 -> float32 only (A is rounded from B)",
    );
    let renamed_cast = [("m.w", halves(&[20, 30], &wide)), ("a.b", bias.clone())];
    check_verdict(
        &plain,
        &renamed_cast,
        "same values, renamed (1), cast float32 -> bfloat16",
    );
    let turned = w.permute(&[1, 0]).unwrap().deep_copy().unwrap();
    check_verdict(
        &plain,
        &[("a.w", turned), ("a.b", bias.clone())],
        "same values, transposed (1)",
    );
    let flat = w.view_as(&[600]).unwrap();
    check_verdict(
        &plain,
        &[("a.w", flat), ("a.b", bias)],
        "same values, reshaped (1)",
    );
}

#[test]
fn a_square_matrix_may_be_transposed_too() {
    let w = random(&[17, 17], 0.0);
    let turned = w.permute(&[1, 0]).unwrap();
    check_verdict(
        &[("w", w), ("k", random(&[3], 0.1))],
        &[("w", turned), ("k", random(&[3], 0.1))],
        "same values, transposed (1)",
    );
}

#[test]
fn a_new_head_is_a_head() {
    let body = random(&[100, 20], 0.0);
    let a = [
        ("fc.bias", random(&[9], 0.3)),
        ("fc.weight", random(&[9, 20], 0.1)),
        ("x.w", body.clone()),
    ];
    let b = [
        ("fc.bias", random(&[4], 0.3)),
        ("fc.weight", random(&[4, 20], 0.5)),
        ("x.w", body.clone()),
    ];
    check_verdict(&a, &b, "head only: `fc` (2 tensors, 4.0 % of the values)");
    let other = [
        ("fc.bias", random(&[9], 0.3)),
        ("fc.weight", random(&[9, 20], 0.1)),
        ("x.w", random(&[100, 20], 0.7)),
    ];
    let found = differences(&a, &other);
    assert!(
        matches!(found.verdict, Verdict::Unrelated { .. }),
        "{:?}",
        found.verdict
    );
}

#[test]
fn adapters_of_low_rank_are_told_from_noise() {
    let (m, n) = (160, 96);
    let w = numbers(m * n, 0.0);
    for rank in [1, 3, 8] {
        let (left, right) = (numbers(m * rank, 0.11), numbers(rank * n, 0.23));
        let mut sum = w.clone();
        for i in 0..m {
            for j in 0..n {
                let low: f32 = (0..rank).map(|k| left[i * rank + k] * right[k * n + j]).sum();
                sum[i * n + j] += 0.01 * low;
            }
        }
        let a = [
            ("h.0.w", floats(&[m, n], &w)),
            ("h.1.w", floats(&[m, n], &w)),
            ("k", random(&[9], 0.0)),
        ];
        let b = [
            ("h.0.w", floats(&[m, n], &sum)),
            ("h.1.w", floats(&[m, n], &sum)),
            ("k", random(&[9], 0.0)),
        ];
        check_verdict(&a, &b, &format!("LoRA-like, rank <= {rank} in 2 matrices"));
    }
    // Products of two irrational sequences are no low rank.
    let noise: Vec<f32> = (0..m * n)
        .map(|i| w[i] + 0.01 * ((i * i) as f32 * 0.1).sin())
        .collect();
    let found = differences(
        &[("h.w", floats(&[m, n], &w)), ("k.w", random(&[9], 0.0))],
        &[("h.w", floats(&[m, n], &noise)), ("k.w", random(&[9], 0.0))],
    );
    assert!(
        matches!(found.verdict, Verdict::FineTune { .. }),
        "{:?}",
        found.verdict
    );
}

#[test]
fn bits_decide_about_nan_and_zeros() {
    let with = |values: &[f32]| [("x", floats(&[4], values)), ("k", random(&[9], 0.0))];
    let a = [f32::NAN, 0.0, f32::INFINITY, 1.0];
    let found = differences(&with(&a), &with(&a));
    assert!(found.is_identical);
    let census = Census {
        n_nan: 1,
        n_inf: 1,
        is_zero: false,
    };
    let health = Health {
        name: "x".to_owned(),
        a: Some(census),
        b: Some(census),
    };
    assert_eq!(found.health, [health]);
    let other_nan = f32::from_bits(f32::NAN.to_bits() ^ 1);
    for (b, share) in [
        ([other_nan, 0.0, f32::INFINITY, 1.0], 0.25),
        ([f32::NAN, -0.0, f32::INFINITY, 1.0], 0.25),
        ([1.0, 0.0, f32::NEG_INFINITY, 1.0], 0.5),
    ] {
        let found = differences(&with(&a), &with(&b));
        assert_eq!(found.changed[0].share_changed, Some(share), "{b:?}");
        assert_eq!(found.changed[0].max_abs, Some(0.0), "{b:?}");
    }
}

#[test]
fn tolerances_decide_what_has_changed() {
    let a = [("w", floats(&[3], &[1.0, 2.0, f32::INFINITY]))];
    let next = f32::from_bits(1.0_f32.to_bits() + 3);
    let b = [("w", floats(&[3], &[next, 2.0, f32::INFINITY]))];
    let infinite = [("w", floats(&[3], &[1.0, 2.0, f32::NEG_INFINITY]))];
    let with = |b: &[(&str, Tensor)], tolerance: &str| {
        let options = DiffOptions {
            tolerance: Tolerance::parse(tolerance).unwrap(),
            ..DiffOptions::default()
        };
        diff(&opened(&a), &opened(b), &options).unwrap().is_identical
    };
    assert!(!with(&b, "exact") && !with(&b, "ulp=2") && with(&b, "ulp=3"));
    assert!(with(&b, "f32") && !with(&b, "1e-8,1e-8"));
    assert!(!with(&infinite, "bf16") && !with(&infinite, "1,1"));
}

#[test]
fn integers_are_compared_exactly_whatever_the_tolerance() {
    let ints = |values: &[i64]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor::from_bytes(DType::Int64, &[values.len()], bytes).unwrap()
    };
    let options = DiffOptions {
        tolerance: Tolerance::parse("1,1").unwrap(),
        ..DiffOptions::default()
    };
    let a = opened(&[("n", ints(&[i64::MIN, 5])), ("k", random(&[9], 0.0))]);
    let b = opened(&[("n", ints(&[i64::MAX, 5])), ("k", random(&[9], 0.0))]);
    let found = diff(&a, &b, &options).unwrap();
    let change = &found.changed[0];
    assert_eq!(
        (change.share_changed, change.rel, change.cos),
        (Some(0.5), None, None)
    );
    assert_eq!(change.max_abs, Some(u64::MAX as f64));
}

#[test]
fn ties_marks_and_metadata_are_told_beside_the_values() {
    let w = random(&[5, 4], 0.0);
    let storage = Storage::owned(w.to_bytes().unwrap().into_owned());
    let tied = Tensor::contiguous(storage, DType::Float32, &[5, 4]).unwrap();
    let a = [("in.w", tied.clone()), ("out.w", tied)];
    let b = [("in.w", w.clone()), ("out.w", w.deep_copy().unwrap())];
    check_verdict(&a, &b, "only ties differ");
    let found = differences(&b, &a);
    assert_eq!((found.ties[0].tied_in, found.ties[0].names.len()), (Side::B, 2));

    // One of both names, and what it stands for in the metadata, is the same tie.
    let mut one = opened(&a[..1]);
    one.metadata.insert("out.w".to_owned(), "in.w".to_owned());
    let found = diff(&opened(&a), &one, &DiffOptions::default()).unwrap();
    assert_eq!(found.verdict, Verdict::Identical);

    let marked = |trains: bool| {
        let head = random(&[3], 0.4).into_parameter(true);
        opened(&[("w", w.clone().into_parameter(trains)), ("head", head)])
    };
    let found = diff(&marked(false), &marked(true), &DiffOptions::default()).unwrap();
    assert_eq!(found.verdict.to_string(), "only marks differ");
    assert_eq!(found.marks[0].trainable_in, Side::B);

    let mut said = opened(&b);
    said.metadata.insert("epoch".to_owned(), "3".to_owned());
    said.metadata.insert("format".to_owned(), "pt".to_owned());
    let found = diff(&opened(&b), &said, &DiffOptions::default()).unwrap();
    assert_eq!(found.verdict.to_string(), "only metadata differs");
    assert_eq!(found.metadata.len(), 1);
}

#[test]
fn what_must_not_happen_is_named() {
    let a = [
        ("body.w", random(&[30, 4], 0.0)),
        ("body.old", random(&[3], 0.1)),
        ("fc.w", random(&[3, 4], 0.2)),
    ];
    let b = [
        ("body.w", random(&[30, 4], 0.0)),
        ("fc.w", random(&[3, 4], 0.3)),
        ("fc.new", random(&[2], 0.4)),
    ];
    let ask = |kind: FailKind, pattern: &str| {
        let asked = FailOn {
            kind,
            pattern: Pattern::parse(pattern).unwrap(),
        };
        let options = DiffOptions {
            fail_on: vec![asked],
            ..DiffOptions::default()
        };
        diff(&opened(&a), &opened(&b), &options).map(|found| found.fail_on[0].found.clone())
    };
    assert!(ask(FailKind::Changed, "body.w").unwrap().is_empty());
    // What is gone was not proven to be the same.
    assert_eq!(ask(FailKind::Changed, "body.**").unwrap(), ["body.old"]);
    assert_eq!(ask(FailKind::Removed, "**").unwrap(), ["body.old"]);
    assert_eq!(ask(FailKind::Added, "**").unwrap(), ["fc.new"]);
    assert_eq!(ask(FailKind::Changed, "fc.**").unwrap(), ["fc.w"]);
    assert_eq!(ask(FailKind::Any, "**").unwrap(), ["fc.w", "body.old", "fc.new"]);
    assert!(ask(FailKind::Marks, "**").unwrap().is_empty());
    let error = ask(FailKind::Changed, "bodi.**").unwrap_err();
    assert_eq!(error.to_string(), "no tensor name matches `bodi.**`");
}

#[test]
fn headers_alone_prove_no_values() {
    let options = DiffOptions {
        depth: Depth::Headers,
        ..DiffOptions::default()
    };
    let a = opened(&[("w", random(&[4, 5], 0.0))]);
    let other = opened(&[("w", random(&[4, 5], 0.9))]);
    let found = diff(&a, &other, &options).unwrap();
    assert_eq!(found.verdict, Verdict::SameHeaders);
    let cast = opened(&[("w", halves(&[4, 5], &numbers(20, 0.9)))]);
    let found = diff(&a, &cast, &options).unwrap();
    assert_eq!(
        (found.verdict, found.cast[0].proof),
        (Verdict::OtherHeaders, CastProof::Unread)
    );
}
