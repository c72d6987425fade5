//! Frozen marks: `requires_grad` of each tensor, and how it survives a file that has no place for it.
//!
//! safetensors keeps strings only, so `__metadata__["frozen"]` holds a JSON list of patterns over names, readable and short.

use std::collections::HashSet;

use pth::{StateDict, Tensor};

use crate::Pattern;
use crate::lazy::{Group, LazyEntry, LazyStateDict};

/// The key in `__metadata__`.
pub(crate) const KEY: &str = "frozen";

/// The key of the ordered groups: a JSON list of `{"name", "patterns", "lr_scale"}`.
pub(crate) const GROUPS_KEY: &str = "groups";

/// One group as `__metadata__` has it.
#[derive(serde::Deserialize, serde::Serialize)]
struct WrittenGroup {
    name: String,
    patterns: Vec<String>,
    lr_scale: f64,
}

/// Puts the tensors into the groups of a `groups` entry; what is not of our form is not ours.
pub(crate) fn apply_groups(tensors: &mut LazyStateDict, text: &str) {
    let written: Vec<WrittenGroup> = serde_json::from_str(text).unwrap_or_default();
    let patterns: Vec<Vec<Pattern>> = written
        .iter()
        .map(|group| {
            group
                .patterns
                .iter()
                .map(|pattern| pattern_or_name(pattern))
                .collect()
        })
        .collect();
    let is_in = |name: &str, patterns: &Vec<Pattern>| patterns.iter().any(|pattern| pattern.matches(name));
    for (name, entry) in tensors.iter_mut() {
        entry.group = patterns.iter().position(|patterns| is_in(name, patterns));
    }
    let group = |group: WrittenGroup| Group {
        name: group.name,
        lr_scale: group.lr_scale,
    };
    tensors.groups = written.into_iter().map(group).collect();
}

/// The text for [`apply_groups`].
pub(crate) fn describe_groups(tensors: &LazyStateDict) -> Option<String> {
    let written: Vec<WrittenGroup> = tensors
        .groups
        .iter()
        .enumerate()
        .map(|(index, group)| WrittenGroup {
            name: group.name.clone(),
            patterns: patterns_of(tensors, |_, entry| {
                if entry.group == Some(index) {
                    Member::In
                } else {
                    Member::Out
                }
            }),
            lr_scale: group.lr_scale,
        })
        .collect();
    (!written.is_empty()).then(|| serde_json::to_string(&written).expect("strings and numbers make JSON"))
}

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
        Ok(patterns) => patterns.iter().map(|pattern| pattern_or_name(pattern)).collect(),
        Err(_) => vec![pattern_or_name(text)],
    }
}

/// A name that is no pattern, for a brace that stands alone, is itself.
fn pattern_or_name(text: &str) -> Pattern {
    Pattern::parse(text).unwrap_or_else(|_| Pattern::literal(text))
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

/// Whether a name belongs to a set that patterns are to describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member {
    /// It does.
    In,
    /// It does not.
    Out,
    /// It may be matched or not.
    Either,
}

/// The patterns that say which tensors are frozen; none where nothing is marked, which is how a plain state dict is saved.
pub(crate) fn describe(tensors: &LazyStateDict) -> Option<String> {
    if !tensors.is_marked() {
        return None;
    }
    let patterns = patterns_of(tensors, |name, entry| {
        match (entry.requires_grad, LazyStateDict::can_train(name, entry)) {
            (true, _) => Member::Out,
            (false, true) => Member::In,
            (false, false) => Member::Either,
        }
    });
    Some(serde_json::to_string(&patterns).expect("strings make JSON"))
}

/// The shortest list of patterns of the form `module.**` or `name` that match the members and nothing that is none.
fn patterns_of(tensors: &LazyStateDict, member: impl Fn(&str, &LazyEntry) -> Member) -> Vec<String> {
    let members: Vec<(&str, Member)> = tensors
        .iter()
        .map(|(name, entry)| (name, member(name, entry)))
        .collect();
    let names = |wanted: Member| {
        let entries = members.iter().filter(move |(_, member)| *member == wanted);
        entries.map(|(name, _)| *name)
    };
    let mut prefixes_of_others: HashSet<&str, foldhash::fast::RandomState> = HashSet::default();
    for name in names(Member::Out) {
        // From the longest on: where one is known, all that are shorter are.
        let longest_first = name.rmatch_indices('.').map(|(at, _)| &name[..=at]).chain([""]);
        longest_first
            .take_while(|prefix| prefixes_of_others.insert(*prefix))
            .for_each(drop);
    }
    if prefixes_of_others.is_empty() {
        return names(Member::In).take(1).map(|_| "**".to_owned()).collect();
    }
    let mut patterns: Vec<String> = Vec::new();
    let mut covered = HashSet::new();
    for name in names(Member::In) {
        // The outermost module without anything else stands for all that it holds.
        let module = prefixes(name).find(|prefix| !prefix.is_empty() && !prefixes_of_others.contains(prefix));
        let pattern = module.map_or_else(|| name.to_owned(), |prefix| format!("{prefix}**"));
        if covered.insert(pattern.clone()) {
            patterns.push(pattern);
        }
    }
    patterns
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
        let text = describe(&LazyStateDict::from(tensors.clone())).unwrap();
        assert_eq!(text, r#"["conv1.**","layer1.**","layer2.0.**","bias"]"#);
        let mut blank = named(&names.map(|(name, _)| (name, false)));
        assert_eq!(describe(&LazyStateDict::from(blank.clone())), None);
        apply(&mut blank, &parse(&text));
        let marks = |tensors: &StateDict| tensors.iter().map(|(_, t)| t.requires_grad()).collect::<Vec<_>>();
        assert_eq!(marks(&blank), marks(&tensors));
    }
}
