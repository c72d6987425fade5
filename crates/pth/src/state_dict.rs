//! The ordered map from names to tensors that `state_dict()` returns in torch.

use indexmap::IndexMap;

use crate::{Record, Tensor};

/// Names and tensors in the order of the model.
///
/// A few models have entries that are not one strided array; those are [`Record`]s, and keep their place among the tensors.
#[derive(Debug, Clone, Default)]
pub struct StateDict {
    entries: IndexMap<String, Entry, foldhash::fast::RandomState>,
    metadata: Vec<ModuleVersion>,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    /// One strided array.
    Tensor(Tensor),
    /// A quantized, sparse, nested or otherwise composed tensor.
    Record(Box<Record>),
}

/// One entry of torch's `_metadata`: the version of the class that wrote a module's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleVersion {
    /// The module's name within the model; empty for the model itself.
    pub module: String,
    /// `_version` of its class, where it has one.
    pub version: Option<i64>,
}

impl Entry {
    /// The tensor, if it is one strided array.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Entry::Tensor(tensor) => Some(tensor),
            Entry::Record(_) => None,
        }
    }

    /// The record, if it is not.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Entry::Tensor(_) => None,
            Entry::Record(record) => Some(record),
        }
    }
}

impl StateDict {
    /// No tensors.
    pub fn new() -> StateDict {
        StateDict::default()
    }

    /// Makes room for `n` more entries.
    pub fn reserve(&mut self, n: usize) {
        self.entries.reserve(n);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name)?.tensor()
    }

    /// Whether there is an entry called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Puts `tensor` at the end, or in the place of the entry of that name, which is returned.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Entry> {
        self.insert_entry(name, Entry::Tensor(tensor))
    }

    /// As [`insert`](StateDict::insert), of whatever kind.
    pub fn insert_entry(&mut self, name: impl Into<String>, entry: Entry) -> Option<Entry> {
        self.entries.insert(name.into(), entry)
    }

    /// Puts `entry` at the end, unless there is one of that name; returns whether it did.
    pub(crate) fn insert_new(&mut self, name: &str, entry: Entry) -> bool {
        match self.entries.entry(name.to_owned()) {
            indexmap::map::Entry::Occupied(_) => false,
            indexmap::map::Entry::Vacant(place) => {
                place.insert(entry);
                true
            }
        }
    }

    /// Takes the entry called `name` out; the others keep their order. Linear in the number of entries.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        self.entries.shift_remove(name)
    }

    /// Names and tensors in order; without the records.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Tensor)> {
        self.entries()
            .filter_map(|(name, entry)| Some((name, entry.tensor()?)))
    }

    /// Names and tensors in order, to change the tensors.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Tensor)> {
        self.entries.iter_mut().filter_map(|(name, entry)| match entry {
            Entry::Tensor(tensor) => Some((name.as_str(), tensor)),
            Entry::Record(_) => None,
        })
    }

    /// Names and what they stand for, in order.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (&str, &Entry)> + ExactSizeIterator {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Names and records in order; without the tensors.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = (&str, &Record)> {
        self.entries()
            .filter_map(|(name, entry)| Some((name, entry.record()?)))
    }

    /// Names in order, of tensors and records.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.entries.keys().map(String::as_str)
    }

    /// What wrappers around the model have put in front of every name: `module.` of DataParallel, `_orig_mod.` of `torch.compile`.
    pub fn wrapper_prefix(&self) -> Option<String> {
        const WRAPPERS: [&str; 3] = ["module.", "_orig_mod.", "_fsdp_wrapped_module."];
        let mut prefix = String::new();
        while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| {
            let all = |name: &str| {
                name.strip_prefix(&prefix)
                    .is_some_and(|rest| rest.starts_with(**wrapper))
            };
            !self.is_empty() && self.names().all(all)
        }) {
            prefix.push_str(wrapper);
        }
        (!prefix.is_empty()).then_some(prefix)
    }

    /// torch's `_metadata`, in its order; empty where the file has none.
    pub fn metadata(&self) -> &[ModuleVersion] {
        &self.metadata
    }

    /// The same entries with other `_metadata`.
    pub fn with_metadata(mut self, metadata: Vec<ModuleVersion>) -> StateDict {
        self.metadata = metadata;
        self
    }
}

impl FromIterator<(String, Entry)> for StateDict {
    /// As [`StateDict::insert_entry`] one after the other: of equal names the last stays, at the place of the first.
    fn from_iter<I: IntoIterator<Item = (String, Entry)>>(entries: I) -> StateDict {
        StateDict {
            entries: entries.into_iter().collect(),
            metadata: Vec::new(),
        }
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    /// As [`StateDict::insert`] one after the other.
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> StateDict {
        let entry = |(name, tensor)| (name, Entry::Tensor(tensor));
        tensors.into_iter().map(entry).collect()
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Entry);
    type IntoIter = indexmap::map::IntoIter<String, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn prefixes_of_wrappers_are_named_only_where_every_name_has_them() {
        let check = |names: &[&str], expected: Option<&str>| {
            let tensor = Tensor::from_bytes(DType::Uint8, &[], vec![0]).unwrap();
            let tensors: StateDict = names
                .iter()
                .map(|name| ((*name).to_owned(), tensor.clone()))
                .collect();
            assert_eq!(tensors.wrapper_prefix().as_deref(), expected);
        };
        check(&["module.a", "module.b.c"], Some("module."));
        check(
            &["_orig_mod.module.a", "_orig_mod.module.b"],
            Some("_orig_mod.module."),
        );
        check(&["module.a", "b"], None);
        check(&["modules.a"], None);
        check(&[], None);
    }
}
