//! The one module that holds all that differs.

use super::report::Diff;
use super::sides::{Names, shape};

/// What the last layer is called in torchvision, timm, transformers and elsewhere.
pub const HEADS: [&str; 11] = [
    "fc",
    "head",
    "heads",
    "classifier",
    "lm_head",
    "score",
    "head_dist",
    "last_linear",
    "qa_outputs",
    "logits",
    "cls_head",
];

/// Of all elements, a module that is more is not small.
const MAX_SHARE: f64 = 0.5;

/// The innermost module that holds all tensors that differ, whether it is the head, and its part of all elements of B; none if it is
/// everything, or large.
pub(super) fn of_all_differences(diff: &Diff, a: &Names<'_>, b: &Names<'_>) -> Option<(String, bool, f64)> {
    let mut names = diff
        .changed
        .iter()
        .map(|tensor| tensor.name.as_str())
        .chain(diff.cast.iter().map(|tensor| tensor.name.as_str()))
        .chain(diff.reshaped.iter().map(|tensor| tensor.name.as_str()))
        .chain(diff.transposed.iter().map(|tensor| tensor.name.as_str()))
        .chain(diff.added.iter().map(|tensor| tensor.name.as_str()))
        .chain(diff.removed.iter().map(|tensor| tensor.name.as_str()))
        .chain(
            diff.renamed
                .iter()
                .flat_map(|tensor| [tensor.from.as_str(), tensor.to.as_str()]),
        );
    // The last segment names a tensor, unless there is no other.
    let first = names.next()?;
    let mut module = first.rsplit_once('.').map_or(first, |(module, _)| module);
    for name in names {
        while !is_in(name, module) {
            module = module.rsplit_once('.').map(|(outer, _)| outer)?;
        }
    }
    let numel = |name: &str, names: &Names<'_>| -> f64 {
        let entry = names.entries.get(name);
        entry.map_or(0.0, |entry| shape(entry).iter().map(|&n| n as f64).product())
    };
    let total: f64 = b.entries.keys().map(|name| numel(name, b)).sum();
    let inside: f64 = b
        .entries
        .keys()
        .filter(|name| is_in(name, module))
        .map(|name| numel(name, b))
        .sum();
    let share = inside / total;
    // Of no elements at all, it is not a number.
    if share.is_nan() || share > MAX_SHARE {
        return None;
    }
    // `blocks.3.mlp.fc` is none: a head is not one of a row of like modules.
    let is_number = |segment: &&str| segment.bytes().all(|byte| byte.is_ascii_digit());
    let mut outer = module.split('.').take_while(|segment| !is_number(segment));
    let is_called_head = outer.any(|segment| HEADS.contains(&segment));
    // The order of a model is its own; that of a file that was sorted says nothing.
    let is_sorted = a.entries.keys().is_sorted();
    let is_last = !is_sorted && a.entries.last().is_some_and(|(name, _)| is_in(name, module));
    Some((module.to_owned(), is_called_head || is_last, share))
}

fn is_in(name: &str, module: &str) -> bool {
    let rest = name.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
