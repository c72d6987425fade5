//! One side of a comparison: its names in order, with those that its metadata tells of.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use pth::{DType, Entry, Tensor};

use super::options::DiffOptions;
use crate::Opened;

/// The names that are compared.
pub(super) struct Names<'o> {
    pub(super) entries: IndexMap<&'o str, &'o Entry>,
    /// Keys of `__metadata__` that stand for a tensor under a second name.
    pub(super) aliases: HashSet<&'o str>,
    /// Whether any tensor is marked as trainable or as a parameter; if not, nothing is known of what is frozen.
    pub(super) is_marked: bool,
}

/// What makes two names one tensor.
type View<'t> = ((usize, u32), usize, &'t [usize], &'t [usize], DType);

impl<'o> Names<'o> {
    pub(super) fn of(opened: &'o Opened, options: &DiffOptions) -> Names<'o> {
        let mut entries: IndexMap<&str, &Entry> = opened.state_dict.entries().collect();
        let mut aliases = HashSet::new();
        // safetensors keeps one of several names of a tensor; transformers and we write `second = first` beside it.
        for (second, first) in &opened.metadata {
            if let (false, Some(entry)) = (
                entries.contains_key(second.as_str()),
                entries.get(first.as_str()).copied(),
            ) {
                entries.insert(second, entry);
                aliases.insert(second.as_str());
            }
        }
        let is_marked = entries.values().any(|entry| match entry {
            Entry::Tensor(tensor) => tensor.requires_grad() || tensor.is_parameter(),
            Entry::Record(record) => record.requires_grad || record.is_parameter,
        });
        entries.retain(|name, _| {
            let is_meant =
                options.only.is_empty() || options.only.iter().any(|pattern| pattern.matches(name));
            is_meant && !options.skip.iter().any(|pattern| pattern.matches(name))
        });
        Names {
            entries,
            aliases,
            is_marked,
        }
    }

    /// Groups of names that are one tensor, in the order of their first.
    pub(super) fn ties(&self) -> Vec<Vec<&'o str>> {
        let mut groups: IndexMap<View<'_>, Vec<&str>> = IndexMap::new();
        for (name, entry) in &self.entries {
            if let Entry::Tensor(tensor) = entry
                && tensor.numel() > 0
            {
                groups.entry(view(tensor)).or_default().push(name);
            }
        }
        groups.into_values().filter(|names| names.len() > 1).collect()
    }

    /// Size of all elements, a tied tensor once.
    pub(super) fn n_bytes(&self) -> usize {
        let mut seen = HashMap::new();
        let mut total = 0;
        for entry in self.entries.values() {
            match entry {
                Entry::Tensor(tensor) => {
                    if seen.insert(view(tensor), ()).is_none() {
                        total += tensor.nbytes();
                    }
                }
                Entry::Record(_) => total += n_bytes(entry),
            }
        }
        total
    }
}

fn view(tensor: &Tensor) -> View<'_> {
    (
        tensor.storage().id(),
        tensor.storage_offset(),
        tensor.shape(),
        tensor.stride(),
        tensor.dtype(),
    )
}

/// Sizes, outermost first.
pub(super) fn shape(entry: &Entry) -> &[usize] {
    match entry {
        Entry::Tensor(tensor) => tensor.shape(),
        Entry::Record(record) => &record.shape,
    }
}

/// Element type as torch spells it.
pub(super) fn dtype(entry: &Entry) -> &str {
    match entry {
        Entry::Tensor(tensor) => tensor.dtype().as_str(),
        Entry::Record(record) => &record.dtype,
    }
}

/// Size of all elements; of a record, of its parts.
pub(super) fn n_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Tensor(tensor) => tensor.nbytes(),
        Entry::Record(record) => record.parts.iter().map(|(_, part)| part.nbytes()).sum(),
    }
}

/// Whether training would change it.
pub(super) fn trains(entry: &Entry) -> bool {
    match entry {
        Entry::Tensor(tensor) => tensor.requires_grad(),
        Entry::Record(record) => record.requires_grad,
    }
}
