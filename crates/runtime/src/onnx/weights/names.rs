//! The names of a checkpoint, as the graph would call them.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use surgery::{LazyStateDict, LazyTensor};

/// How the checkpoint's names differ from the graph's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prefix {
    None,
    /// The checkpoint's have it.
    InCheckpoint(String),
    /// The graph's have it.
    InGraph(String),
}

/// A checkpoint's tensors under the graph's names, in the checkpoint's order.
pub(super) struct Names<'w> {
    pub(super) prefix: Prefix,
    tensors: IndexMap<String, Given<'w>>,
    /// Names that do not have the prefix that others have.
    pub(super) outside: Vec<&'w str>,
    /// Whether the order is that of the model and not the alphabet's.
    pub(super) is_ordered: bool,
}

/// A tensor of the checkpoint.
#[derive(Clone, Copy)]
pub(super) struct Given<'w> {
    /// Its name there.
    pub(super) name: &'w str,
    /// None for a record of several arrays.
    pub(super) tensor: Option<&'w LazyTensor>,
}

impl<'w> Names<'w> {
    /// Finds the prefix by which most names agree with `wanted`.
    ///
    /// # Errors
    /// Two prefixes that serve equally well.
    pub(super) fn new(weights: &'w LazyStateDict, wanted: &HashSet<String>) -> Result<Names<'w>, String> {
        let prefix = find_prefix(weights, wanted)?;
        let mut tensors = IndexMap::new();
        let mut outside = Vec::new();
        for (name, entry) in weights.iter() {
            let in_graph = match &prefix {
                Prefix::None => name.to_owned(),
                Prefix::InCheckpoint(prefix) => match name.strip_prefix(prefix.as_str()) {
                    Some(rest) => rest.to_owned(),
                    None => {
                        outside.push(name);
                        continue;
                    }
                },
                Prefix::InGraph(prefix) => format!("{prefix}{name}"),
            };
            let tensor = entry.tensor();
            tensors.insert(in_graph, Given { name, tensor });
        }
        let is_ordered = !tensors.keys().is_sorted();
        Ok(Names {
            prefix,
            tensors,
            outside,
            is_ordered,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Given<'w>> {
        self.tensors.get(name)
    }

    /// The tensor of `name`, where it is one array.
    pub(super) fn tensor(&self, name: &str) -> Option<&'w LazyTensor> {
        self.tensors.get(name)?.tensor
    }

    pub(super) fn shape(&self, name: &str) -> Option<&'w [usize]> {
        self.tensor(name).map(LazyTensor::shape)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Given<'w>)> {
        self.tensors.iter().map(|(name, given)| (name.as_str(), given))
    }

    /// Names directly in a module.
    pub(super) fn in_module<'n>(&'n self, module: &'n str) -> impl Iterator<Item = &'n str> {
        let names = self.tensors.keys().map(String::as_str);
        names.filter(move |name| parent(name) == module)
    }

    /// Whether a module is a batch normalisation of so many channels.
    pub(super) fn is_batch_norm(&self, module: &str, n_channels: usize) -> bool {
        let has = |leaf: &str| self.shape(&child(module, leaf)) == Some(&[n_channels]);
        has("running_mean") && has("running_var")
    }

    /// The module that comes next behind `module`, where the order tells.
    pub(super) fn module_behind(&self, module: &str) -> Option<&str> {
        if !self.is_ordered {
            return None;
        }
        let last = self.tensors.keys().rposition(|name| parent(name) == module)?;
        let (next, _) = self.tensors.get_index(last + 1)?;
        Some(parent(next))
    }
}

/// The module of a tensor or a module: all in front of the last dot.
pub(super) fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

pub(super) fn child(module: &str, leaf: &str) -> String {
    if module.is_empty() {
        leaf.to_owned()
    } else {
        format!("{module}.{leaf}")
    }
}

/// Whether it is a name of a state dict, and not one that an exporter made up.
pub(super) fn is_a_name(name: &str) -> bool {
    let is_word =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    // `conv1.weight_bias` is what folding a batch normalisation adds.
    name.contains('.') && !name.ends_with(".weight_bias") && name.split('.').all(is_word)
}

fn find_prefix(weights: &LazyStateDict, wanted: &HashSet<String>) -> Result<Prefix, String> {
    let given: HashSet<&str> = weights.names().collect();
    let n_exact = given.iter().filter(|name| wanted.contains(**name)).count();
    // The checkpoint's names without one or more leading words, and the graph's without.
    let cuts = |name: &str| -> Vec<usize> { name.match_indices('.').map(|(at, _)| at + 1).collect() };
    let mut counts: HashMap<(bool, &str), usize> = HashMap::new();
    for name in &given {
        for at in cuts(name).into_iter().filter(|&at| wanted.contains(&name[at..])) {
            *counts.entry((true, &name[..at])).or_default() += 1;
        }
    }
    for name in wanted {
        for at in cuts(name).into_iter().filter(|&at| given.contains(&name[at..])) {
            *counts.entry((false, &name[..at])).or_default() += 1;
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    if most <= n_exact {
        return Ok(Prefix::None);
    }
    let mut best: Vec<(bool, &str)> = counts
        .into_iter()
        .filter(|(_, count)| *count == most)
        .map(|(prefix, _)| prefix)
        .collect();
    best.sort_unstable();
    match best.as_slice() {
        [(true, prefix)] => Ok(Prefix::InCheckpoint((*prefix).to_owned())),
        [(false, prefix)] => Ok(Prefix::InGraph((*prefix).to_owned())),
        several => {
            let names: Vec<String> = several.iter().map(|(_, prefix)| format!("`{prefix}`")).collect();
            Err(format!(
                "the names agree equally well with several prefixes ({})",
                names.join(", ")
            ))
        }
    }
}
