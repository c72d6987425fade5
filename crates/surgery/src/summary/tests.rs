use pth::{DType, Tensor};

use super::*;
use crate::LazyTensor;

fn dict(names: &[(&str, &[usize], Option<bool>)]) -> LazyStateDict {
    let mut tensors = LazyStateDict::default();
    for &(name, shape, trains) in names {
        let dtype = if name.ends_with("tracked") {
            DType::Int64
        } else {
            DType::Float32
        };
        let n: usize = shape.iter().product();
        let tensor = Tensor::from_bytes(dtype, shape, vec![0; n * dtype.size()]).unwrap();
        let mut entry = LazyEntry::unmarked(LazyTensor::stored(tensor));
        (entry.requires_grad, entry.is_parameter) = (trains == Some(true), trains.is_some());
        tensors.insert(name, entry);
    }
    tensors
}

/// The text with one space where there are several.
fn squeezed(text: &str) -> String {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn style(depth: usize, folds: bool) -> SummaryStyle {
    SummaryStyle {
        name: "Net".to_owned(),
        depth,
        columns: SummaryColumns::All,
        is_verbose: false,
        folds,
    }
}

#[test]
fn frozen_layers_stand_in_parentheses() {
    let tensors = dict(&[
        ("stem.0.weight", &[4, 3, 3, 3], Some(false)),
        ("stem.1.weight", &[4], Some(false)),
        ("stem.1.bias", &[4], Some(true)),
        ("stem.1.running_mean", &[4], None),
        ("stem.1.num_batches_tracked", &[], None),
        ("fc.weight", &[2, 4], Some(true)),
        ("scale", &[1], Some(true)),
    ]);
    let text = Summary::of(&tensors).render(&style(3, false));
    let rows: Vec<String> = squeezed(&text).lines().map(str::to_owned).collect();
    assert_eq!(
        rows[3..9],
        [
            "Net (Net) -- 1 Partial",
            "├─Sequential (stem): 1-1 -- -- Partial",
            "│ └─Conv2d (0): 2-1 [3, 3] (108) False",
            "│ └─BatchNorm2d (1): 2-2 -- 8 Partial",
            "├─Linear (fc): 1-2 -- 8 True",
            &"=".repeat(115),
        ]
    );
    assert!(
        text.contains("Total params: 125\nTrainable params: 13\nNon-trainable params: 112\n"),
        "{text}"
    );
    let shallow = Summary::of(&tensors).render(&style(1, false));
    assert!(
        squeezed(&shallow).contains("├─Sequential (stem): 1-1 -- 116 Partial"),
        "{shallow}"
    );
}

#[test]
fn alike_blocks_are_one_row() {
    let mut names = Vec::new();
    let paths: Vec<String> = (0..4).map(|i| format!("blocks.{i}.fc.weight")).collect();
    for (i, path) in paths.iter().enumerate() {
        names.push((
            path.as_str(),
            if i == 3 { &[3, 2][..] } else { &[2, 2][..] },
            None,
        ));
    }
    let text = Summary::of(&dict(&names)).render(&style(3, true));
    assert!(text.contains("└─Module (0..2): 2-{1..3}, 3 alike"), "{text}");
    assert!(text.contains("└─Module (3): 2-4"), "{text}");
    assert_eq!(text.matches("Linear (fc)").count(), 2);
}

#[test]
fn a_tied_tensor_is_counted_once() {
    let mut tensors = dict(&[("embed.weight", &[5, 2], None)]);
    let entry = tensors.get("embed.weight").unwrap().clone();
    tensors.insert("head.weight", entry);
    let summary = Summary::of(&tensors);
    assert_eq!(summary.n_params, 10);
    let text = summary.render(&style(3, false));
    assert!(
        squeezed(&text).contains("├─Linear (head): 1-2 -- (recursive) True"),
        "{text}"
    );
    assert!(text.contains("Tied: embed.weight = head.weight"), "{text}");
}

#[test]
fn a_name_of_many_dots_is_no_danger() {
    let name = "a.".repeat(100_000) + "weight";
    let summary = Summary::of(&dict(&[(&name, &[2], None)]));
    assert_eq!(summary.rows.len(), MAX_DEPTH + 1);
}
