//! Frozen marks: `requires_grad` of each tensor, and how it survives a file that has no place for it.
//!
//! safetensors keeps strings only, so `__metadata__["frozen"]` holds a JSON list of patterns over names, readable and short.

use std::collections::HashSet;

use pth::{StateDict, Tensor};

use crate::Pattern;

/// The key in `__metadata__`.
pub(crate) const KEY: &str = "frozen";

/// Whether training could change it: torch gives gradients to floating and complex tensors only.
pub fn can_train(tensor: &Tensor) -> bool {
    tensor.dtype().is_float() || tensor.dtype().is_complex()
}

/// Whether the name is that of a buffer of torch's own normalisation layers, which no optimiser ever sees.
pub fn is_buffer_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "running_mean" | "running_var" | "num_batches_tracked")
}

/// The patterns in a `frozen` entry: a JSON list, or one pattern as it is.
pub(crate) fn parse(text: &str) -> Vec<Pattern> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(patterns) => patterns.iter().map(|pattern| Pattern::new(pattern)).collect(),
        Err(_) => vec![Pattern::new(text)],
    }
}

/// Freezes what matches and marks the rest trainable, as far as it can be trained.
pub(crate) fn apply(tensors: &mut StateDict, frozen: &[Pattern]) {
    for (name, tensor) in tensors.iter_mut() {
        let is_parameter = can_train(tensor) && !is_buffer_name(name);
        let trains = is_parameter && !frozen.iter().any(|pattern| pattern.matches(name));
        *tensor = mark(tensor, trains, is_parameter);
    }
}

/// The tensor with its mark, which only a parameter carries into a `.pth`.
pub(crate) fn mark(tensor: &Tensor, trains: bool, is_parameter: bool) -> Tensor {
    if is_parameter {
        tensor.clone().into_parameter(trains)
    } else {
        tensor.clone().with_requires_grad(trains)
    }
}

/// The shortest list of patterns that says which tensors are frozen; none where nothing is marked trainable, which is how a plain
/// state dict is saved.
pub(crate) fn describe(tensors: &StateDict) -> Option<String> {
    let mut trainable_prefixes = HashSet::new();
    for (name, _) in tensors.iter().filter(|(_, tensor)| tensor.requires_grad()) {
        trainable_prefixes.extend(prefixes(name));
    }
    if trainable_prefixes.is_empty() {
        return None;
    }
    let mut patterns: Vec<String> = Vec::new();
    let mut covered = HashSet::new();
    for (name, tensor) in tensors.iter() {
        if tensor.requires_grad() || !can_train(tensor) || is_buffer_name(name) {
            continue;
        }
        // The outermost module without anything trainable stands for all that it holds.
        let module = prefixes(name).find(|prefix| !prefix.is_empty() && !trainable_prefixes.contains(prefix));
        let pattern = module.map_or_else(|| name.to_owned(), |prefix| format!("{prefix}**"));
        if covered.insert(pattern.clone()) {
            patterns.push(pattern);
        }
    }
    Some(serde_json::to_string(&patterns).expect("strings make JSON"))
}

/// `a.b.c` -> ``, `a.`, `a.b.`
fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once("").chain(name.match_indices('.').map(move |(at, _)| &name[..=at]))
}

#[cfg(test)]
mod tests {
    use pth::DType;

    use super::*;

    fn named(names: &[(&str, bool)]) -> StateDict {
        let tensor = |trains| {
            Tensor::from_bytes(DType::Float32, &[], vec![0; 4])
                .unwrap()
                .with_requires_grad(trains)
        };
        names
            .iter()
            .map(|&(name, trains)| (name.to_owned(), tensor(trains)))
            .collect()
    }

    #[test]
    fn marks_survive_their_description() {
        let names = [
            ("conv1.weight", false),
            ("layer1.0.weight", false),
            ("layer1.0.running_mean", false),
            ("layer1.1.weight", false),
            ("layer2.0.weight", false),
            ("layer2.1.weight", true),
            ("bias", false),
        ];
        let tensors = named(&names);
        let text = describe(&tensors).unwrap();
        assert_eq!(text, r#"["conv1.**","layer1.**","layer2.0.**","bias"]"#);
        let mut blank = named(&names.map(|(name, _)| (name, false)));
        assert_eq!(describe(&blank), None);
        apply(&mut blank, &parse(&text));
        let marks = |tensors: &StateDict| tensors.iter().map(|(_, t)| t.requires_grad()).collect::<Vec<_>>();
        assert_eq!(marks(&blank), marks(&tensors));
    }
}
