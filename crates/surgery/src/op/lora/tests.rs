use pth::Tensor;

use super::*;
use crate::lazy::{Distribution, Draw};

fn drawn(shape: &[usize], name: &str) -> Vec<f64> {
    let mut out = vec![0.0; shape.iter().product()];
    Draw::new(Distribution::Normal { mean: 0.0, std: 1.0 }, 7, name).fill(0, &mut out);
    out
}

fn stored(shape: &[usize], values: &[f64]) -> LazyTensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    LazyTensor::stored(Tensor::from_bytes(DType::Float64, shape, bytes).unwrap())
}

/// `[m, n]` of that rank.
fn low_rank(m: usize, n: usize, rank: usize, name: &str) -> Vec<f64> {
    let (b, a) = (drawn(&[m, rank], name), drawn(&[rank, n], &format!("{name}'")));
    product(&b, &a, m, rank, n)
}

fn product(b: &[f64], a: &[f64], m: usize, rank: usize, n: usize) -> Vec<f64> {
    let at = |i: usize, j: usize| (0..rank).map(|k| b[i * rank + k] * a[k * n + j]).sum();
    (0..m * n).map(|i| at(i / n, i % n)).collect()
}

fn dict(entries: &[(&str, &[usize], Vec<f64>)]) -> LazyStateDict {
    let mut out = LazyStateDict::default();
    for (name, shape, values) in entries {
        out.insert(*name, LazyEntry::unmarked(stored(shape, values)));
    }
    out
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn values(tensors: &LazyStateDict, name: &str) -> Vec<f64> {
    tensors.tensor(name).expect(name).to_f64().unwrap()
}

fn config_of(tensors: &LazyStateDict) -> Value {
    serde_json::from_str(&tensors.metadata[CONFIG_KEY]).unwrap()
}

fn check_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * scale, "{found} for {expected}");
    }
}

/// A linear layer, a convolution, an embedding, a layer that is smaller than the rank, a norm, and what has not changed.
fn models() -> (LazyStateDict, LazyStateDict, Vec<Vec<f64>>) {
    let shapes: [(&str, &[usize]); 7] = [
        ("fc.weight", &[9, 7]),
        ("conv.weight", &[6, 3, 2, 2]),
        ("embed_tokens.weight", &[11, 5]),
        ("tiny.weight", &[2, 8]),
        ("norm.weight", &[5]),
        ("same.weight", &[4, 4]),
        ("depth.weight", &[4, 1, 3]),
    ];
    let deltas = vec![
        low_rank(9, 7, 3, "fc"),
        low_rank(6, 12, 2, "conv"),
        low_rank(11, 5, 3, "embed"),
        low_rank(2, 8, 2, "tiny"),
        drawn(&[5], "norm"),
        vec![0.0; 16],
        drawn(&[4, 1, 3], "depth"),
    ];
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for ((name, shape), delta) in shapes.into_iter().zip(&deltas) {
        let base = drawn(shape, name);
        after.push((name, shape, plus(&base, delta)));
        before.push((name, shape, base));
    }
    (dict(&before), dict(&after), deltas)
}

#[test]
fn names_and_shapes_are_pefts_and_products_are_the_change() {
    let (before, after, deltas) = models();
    let (adapter, effect) = extract(&after, &before, 3, 6.0, &|_| false).unwrap();
    let found: Vec<(&str, &[usize])> = adapter
        .iter()
        .map(|(name, entry)| (name, entry.shape()))
        .collect();
    let expected: [(&str, &[usize]); 10] = [
        ("base_model.model.fc.lora_A.weight", &[3, 7]),
        ("base_model.model.fc.lora_B.weight", &[9, 3]),
        ("base_model.model.conv.lora_A.weight", &[3, 3, 2, 2]),
        ("base_model.model.conv.lora_B.weight", &[6, 3, 1, 1]),
        ("base_model.model.embed_tokens.lora_embedding_A", &[3, 11]),
        ("base_model.model.embed_tokens.lora_embedding_B", &[5, 3]),
        ("base_model.model.tiny.lora_A.weight", &[2, 8]),
        ("base_model.model.tiny.lora_B.weight", &[2, 2]),
        ("base_model.model.norm.weight", &[5]),
        ("base_model.model.depth.weight", &[4, 1, 3]),
    ];
    assert_eq!(found, expected);
    assert_eq!(effect.summary, "4 of rank 3, 2 whole, 1 unchanged");
    let of = |name: &str| values(&adapter, &format!("base_model.model.{name}"));
    let twice = |values: Vec<f64>| values.iter().map(|value| 2.0 * value).collect::<Vec<_>>();
    let fc = product(&of("fc.lora_B.weight"), &of("fc.lora_A.weight"), 9, 3, 7);
    check_close(&twice(fc), &deltas[0]);
    let conv = product(&of("conv.lora_B.weight"), &of("conv.lora_A.weight"), 6, 3, 12);
    check_close(&twice(conv), &deltas[1]);
    let (a, b) = (
        of("embed_tokens.lora_embedding_A"),
        of("embed_tokens.lora_embedding_B"),
    );
    let embed = Columns::of_rows(5, 11, &product(&b, &a, 5, 3, 11));
    // Column by column, a matrix is its transposed row by row.
    check_close(&twice(embed.values), &deltas[2]);
    // Its rank is 2, by which PEFT divides the same alpha.
    let tiny = product(&of("tiny.lora_B.weight"), &of("tiny.lora_A.weight"), 2, 2, 8);
    check_close(
        &tiny.iter().map(|value| 3.0 * value).collect::<Vec<_>>(),
        &deltas[3],
    );
    assert_eq!(of("norm.weight"), values(&after, "norm.weight"));
    let config = config_of(&adapter);
    assert_eq!(
        config["target_modules"],
        json!(["fc", "conv", "embed_tokens", "tiny"])
    );
    assert_eq!(config["modules_to_save"], json!(["norm", "depth"]));
    assert_eq!(config["rank_pattern"], json!({"^tiny": 2}));
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["bias"]),
        (&json!(3), &json!(6), &json!("none"))
    );
}

#[test]
fn what_is_kept_goes_in_whole() {
    let (before, after, _) = models();
    let (adapter, effect) = extract(&after, &before, 2, 2.0, &|name| name.starts_with("fc.")).unwrap();
    assert_eq!(
        values(&adapter, "base_model.model.fc.weight"),
        values(&after, "fc.weight")
    );
    assert_eq!(effect.summary, "3 of rank 2, 3 whole, 1 unchanged");
    assert_eq!(
        config_of(&adapter)["modules_to_save"],
        json!(["fc", "norm", "depth"])
    );
}

#[test]
fn a_list_that_would_mean_other_modules_becomes_an_expression() {
    let same = drawn(&[3, 3], "same");
    let entries = |fc: Vec<f64>| {
        dict(&[
            ("fc.weight", &[3, 3], fc),
            ("block.fc.weight", &[3, 3], same.clone()),
        ])
    };
    let (before, after) = (entries(same.clone()), entries(drawn(&[3, 3], "other")));
    let (adapter, _) = extract(&after, &before, 1, 1.0, &|_| false).unwrap();
    assert_eq!(config_of(&adapter)["target_modules"], json!("^(?:fc)$"));
}

#[test]
fn factors_can_be_read_in_any_order_and_again() {
    let (before, after, _) = models();
    let read = |names: &[&str]| -> Vec<Vec<f64>> {
        let (adapter, _) = extract(&after, &before, 2, 2.0, &|_| false).unwrap();
        names
            .iter()
            .map(|name| values(&adapter, &format!("base_model.model.fc.{name}.weight")))
            .collect()
    };
    let (once, other) = (
        read(&["lora_A", "lora_B", "lora_A"]),
        read(&["lora_B", "lora_B", "lora_A"]),
    );
    assert_eq!(once[0], once[2]);
    assert_eq!(other[0], other[1]);
    assert_eq!((&once[0], &once[1]), (&other[2], &other[0]));
}

#[test]
fn what_differs_is_named() {
    let a = dict(&[("fc.weight", &[2, 2], vec![0.0; 4])]);
    let b = dict(&[("fc.weight", &[2, 3], vec![0.0; 6])]);
    let text = |after: &LazyStateDict, before: &LazyStateDict| {
        check_alike(after, before, "base.pth").unwrap_err().to_string()
    };
    assert_eq!(
        text(&a, &b),
        "`fc.weight` of `the state dict at hand` is [2, 2], but `fc.weight` of `base.pth` is [2, 3]"
    );
    let none = LazyStateDict::default();
    assert_eq!(
        text(&none, &b),
        "tensor `fc.weight` of `base.pth` is missing in `the state dict at hand`"
    );
    assert_eq!(
        text(&a, &none),
        "tensor `fc.weight` of `the state dict at hand` is missing in `base.pth`"
    );
    let nan = dict(&[("fc.weight", &[2, 2], vec![f64::NAN; 4])]);
    let (adapter, _) = extract(&nan, &a, 1, 1.0, &|_| false).unwrap();
    let error = adapter.compute().unwrap_err();
    assert_eq!(error.to_string(), "tensor `fc.weight` holds NaN");
    let fault = extract(&a, &a, 1, 1.0, &|_| false).unwrap_err();
    assert_eq!(
        fault.in_text("", &(0..0)).to_string(),
        "nothing has changed, of which an adapter could be made"
    );
}

#[test]
fn resizing_to_the_rank_that_is_there_keeps_the_product() {
    let (before, after, deltas) = models();
    let (mut adapter, _) = extract(&after, &before, 5, 10.0, &|_| false).unwrap();
    let effect = resize(&mut adapter, 3).unwrap();
    assert_eq!(effect.summary, "3 of 4 to rank 3");
    let of = |name: &str| values(&adapter, &format!("base_model.model.{name}"));
    // The alpha stays 10, so that the factor is now 10 / 3.
    let scaled = |values: Vec<f64>| values.iter().map(|value| value * 10.0 / 3.0).collect::<Vec<_>>();
    let fc = product(&of("fc.lora_B.weight"), &of("fc.lora_A.weight"), 9, 3, 7);
    check_close(&scaled(fc), &deltas[0]);
    let (a, b) = (
        of("embed_tokens.lora_embedding_A"),
        of("embed_tokens.lora_embedding_B"),
    );
    let embed = Columns::of_rows(5, 11, &product(&b, &a, 5, 3, 11));
    check_close(&scaled(embed.values), &deltas[2]);
    let config = config_of(&adapter);
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(10)));
    assert_eq!(config["rank_pattern"], json!({"^tiny": 2}));
    let shape = |name: &str| adapter.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("base_model.model.conv.lora_A.weight"), [3, 3, 2, 2]);
    assert_eq!(shape("base_model.model.conv.lora_B.weight"), [6, 3, 1, 1]);
    let mut without = before;
    let fault = resize(&mut without, 2).unwrap_err().in_text("", &(0..0));
    assert!(
        fault
            .to_string()
            .starts_with("the adapter's `adapter_config.json` is not known")
    );
}

#[test]
fn what_peft_saves_is_whole_and_beside_factors_is_the_layer_inside() {
    let names: [(&str, bool); 9] = [
        ("fc.weight", true),
        ("fc.bias", true),
        ("norm.weight", true),
        ("norm.bias", false),
        // Its name ends as the one that is to be saved.
        ("block.norm.weight", false),
        ("block.other.bias", false),
        ("cls_token", true),
        ("block.gamma", true),
        ("block.fc.weight", true),
    ];
    let entries = |change: f64| {
        let entries: Vec<(&str, &[usize], Vec<f64>)> = names
            .iter()
            .map(|(name, is_changed)| -> (&str, &[usize], Vec<f64>) {
                let shape: &[usize] = if name.ends_with("fc.weight") {
                    &[2, 2]
                } else {
                    &[2]
                };
                let n = shape.iter().product();
                (name, shape, vec![if *is_changed { change } else { 0.0 }; n])
            })
            .collect();
        dict(&entries)
    };
    let (adapter, effect) = extract(&entries(1.0), &entries(0.0), 1, 1.0, &|_| false).unwrap();
    let found: Vec<&str> = adapter
        .names()
        .map(|name| name.strip_prefix(PREFIX).unwrap())
        .collect();
    let expected = [
        "fc.lora_A.weight",
        "fc.lora_B.weight",
        "fc.base_layer.bias",
        "norm.weight",
        "norm.bias",
        "block.norm.weight",
        "cls_token",
        "block.gamma",
        "block.fc.lora_A.weight",
        "block.fc.lora_B.weight",
    ];
    assert_eq!(found, expected);
    let config = config_of(&adapter);
    assert_eq!(
        (&config["bias"], &config["modules_to_save"]),
        (&json!("lora_only"), &json!(["norm"]))
    );
    // The module of `block.gamma` has factors in it, and `cls_token` is in none.
    assert_eq!(
        effect.notes,
        [
            "note: PEFT saves whole modules and will not load what is in none without factors: `cls_token`, `block.gamma`"
        ]
    );
}
