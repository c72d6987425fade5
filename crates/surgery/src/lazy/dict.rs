//! A state dict whose tensors are not computed yet.

use std::collections::{BTreeMap, HashMap, HashSet};

use indexmap::IndexMap;
use pth::{DType, Entry, ModuleVersion, Record, StateDict};

use super::{Identity, LazyTensor, Map};
use crate::{Error, Opened, marks};

/// Names and lazy tensors in the order of the model, with all that a file says beside them.
#[derive(Debug, Clone, Default)]
pub struct LazyStateDict {
    entries: IndexMap<String, LazyEntry, foldhash::fast::RandomState>,
    /// torch's `_metadata`.
    pub versions: Vec<ModuleVersion>,
    /// `__metadata__` of safetensors.
    pub metadata: BTreeMap<String, String>,
    /// Ordered groups of parameters, from the input to the output.
    pub groups: Vec<Group>,
    /// Tensors beside the state dict, under their whole names in the checkpoint.
    pub others: StateDict,
    /// Where in a checkpoint the state dict was found; empty for the root.
    pub wrapper: String,
}

/// What a name stands for, and whether training would change it.
#[derive(Debug, Clone)]
pub struct LazyEntry {
    /// The values.
    pub value: LazyValue,
    /// False is what a frozen parameter has.
    pub requires_grad: bool,
    /// Whether it is a `torch.nn.Parameter`.
    pub is_parameter: bool,
    /// Which of the state dict's groups it is in.
    pub group: Option<usize>,
}

/// A tensor, or something that no verb but those of names changes.
#[derive(Debug, Clone)]
pub enum LazyValue {
    /// One array.
    Tensor(LazyTensor),
    /// A quantized, sparse, nested or otherwise composed tensor.
    Record(Box<Record>),
}

/// Parameters that are trained alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What it is called in tables.
    pub name: String,
    /// Factor of the learning rate.
    pub lr_scale: f64,
}

impl LazyEntry {
    /// A tensor without a mark.
    pub fn unmarked(tensor: LazyTensor) -> LazyEntry {
        LazyEntry {
            value: LazyValue::Tensor(tensor),
            requires_grad: false,
            is_parameter: false,
            group: None,
        }
    }

    /// The tensor, if it is one array.
    pub fn tensor(&self) -> Option<&LazyTensor> {
        match &self.value {
            LazyValue::Tensor(tensor) => Some(tensor),
            LazyValue::Record(_) => None,
        }
    }

    /// The same marks with other values.
    pub(crate) fn with_tensor(&self, tensor: LazyTensor) -> LazyEntry {
        LazyEntry {
            value: LazyValue::Tensor(tensor),
            ..self.clone()
        }
    }

    /// Element type, of what is one array.
    pub(crate) fn dtype_of(&self) -> Option<DType> {
        self.tensor().map(LazyTensor::dtype)
    }

    /// Size of its elements in bytes; of a record, of its parts.
    pub(crate) fn nbytes(&self) -> usize {
        match &self.value {
            LazyValue::Tensor(tensor) => tensor.nbytes(),
            LazyValue::Record(record) => record.parts.iter().map(|(_, part)| part.nbytes()).sum(),
        }
    }

    /// Sizes, outermost first.
    pub(crate) fn shape(&self) -> &[usize] {
        match &self.value {
            LazyValue::Tensor(tensor) => tensor.shape(),
            LazyValue::Record(record) => &record.shape,
        }
    }
}

impl LazyStateDict {
    /// What `opened` holds.
    pub fn of(opened: Opened) -> LazyStateDict {
        let mut tensors = LazyStateDict::from(opened.state_dict);
        for (n_before, pieces) in opened.pieces.into_iter().enumerate() {
            let entry = LazyEntry {
                requires_grad: pieces.requires_grad(),
                is_parameter: pieces.requires_grad(),
                ..LazyEntry::unmarked(LazyTensor::pieced(pieces.clone()))
            };
            // Its place is among the others; those in pieces before it are there by now.
            let place = (pieces.place() + n_before).min(tensors.entries.len());
            tensors
                .entries
                .shift_insert(place, pieces.name().to_owned(), entry);
        }
        tensors.metadata = opened.metadata;
        if let Some(text) = tensors.metadata.remove(marks::GROUPS_KEY) {
            marks::apply_groups(&mut tensors, &text);
        }
        // Written anew from the marks.
        tensors.metadata.remove(marks::KEY);
        tensors.others = opened.other_tensors;
        tensors.wrapper = opened.wrapper;
        tensors
    }

    /// What it says beside its entries, without these.
    pub(crate) fn emptied(&self) -> LazyStateDict {
        LazyStateDict {
            versions: self.versions.clone(),
            metadata: self.metadata.clone(),
            groups: self.groups.clone(),
            ..LazyStateDict::default()
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry called `name`.
    pub fn get(&self, name: &str) -> Option<&LazyEntry> {
        self.entries.get(name)
    }

    /// The entry called `name`, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut LazyEntry> {
        self.entries.get_mut(name)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&LazyTensor> {
        self.entries.get(name)?.tensor()
    }

    /// Whether there is an entry called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Puts `entry` at the end, or in the place of the entry of that name.
    pub fn insert(&mut self, name: impl Into<String>, entry: LazyEntry) {
        self.entries.insert(name.into(), entry);
    }

    /// Old and new names, where `after` holds the same tensors as this state dict and no others; none where more has changed.
    pub fn renames_to(&self, after: &LazyStateDict) -> Option<Vec<(String, String)>> {
        if self.len() != after.len() {
            return None;
        }
        let mut renames = Vec::new();
        for ((old, before), (new, entry)) in self.iter().zip(after.iter()) {
            let is_same = match (before.tensor(), entry.tensor()) {
                (Some(x), Some(y)) => x.identity() == y.identity(),
                _ => false,
            };
            if !is_same {
                return None;
            }
            if old != new {
                renames.push((old.to_owned(), new.to_owned()));
            }
        }
        Some(renames)
    }

    /// `__metadata__` of a safetensors file of it: what there is, `format`, marks and groups, and second names of tensors.
    pub fn file_metadata(&self) -> BTreeMap<String, String> {
        crate::stream::file_metadata(self)
    }

    /// Names and entries in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &LazyEntry)> + ExactSizeIterator {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Names and entries in order, to change the entries.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut LazyEntry)> {
        self.entries
            .iter_mut()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Names in order.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.entries.keys().map(String::as_str)
    }

    /// Keeps the entries for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &LazyEntry) -> bool) {
        self.entries.retain(|name, entry| keep(name, entry));
    }

    /// Whether any tensor is marked as trainable or as a parameter; if not, nothing is known of what is frozen.
    pub fn is_marked(&self) -> bool {
        self.entries
            .values()
            .any(|entry| entry.requires_grad || entry.is_parameter)
    }

    /// Replaces all entries by `entries`, in their order.
    ///
    /// # Errors
    /// Two have one name: the error names what each was made of, which is the first of each tuple.
    pub(crate) fn replace_entries(
        &mut self,
        entries: impl IntoIterator<Item = (String, String, LazyEntry)>,
    ) -> Result<(), Error> {
        let mut sources: Map<String, String> = Map::default();
        let mut new = IndexMap::default();
        for (source, name, entry) in entries {
            if let Some(first) = sources.insert(name.clone(), source.clone()) {
                return Err(Error::Collision {
                    first,
                    second: source,
                    name,
                });
            }
            new.insert(name, entry);
        }
        self.entries = new;
        Ok(())
    }

    /// Gives each entry the name that `rename` says, all at once; returns how many names are others than before.
    ///
    /// torch's `_metadata` follows: a module that all its tensors have left is called as they are.
    ///
    /// # Errors
    /// Two would have one name; nothing is renamed then.
    pub(crate) fn rename(&mut self, mut rename: impl FnMut(&str) -> Option<String>) -> Result<usize, Error> {
        let new: Vec<Option<String>> = self
            .entries
            .keys()
            .map(|old| rename(old).filter(|new| new != old))
            .collect();
        let n_renamed = new.iter().flatten().count();
        if n_renamed == 0 {
            return Ok(0);
        }
        let all = || {
            self.entries
                .keys()
                .zip(&new)
                .map(|(old, new)| (old, new.as_ref().unwrap_or(old)))
        };
        let mut seen: HashSet<&str, foldhash::fast::RandomState> = HashSet::default();
        seen.reserve(self.entries.len());
        for (second, name) in all() {
            if !seen.insert(name) {
                let first = all()
                    .find(|(_, other)| *other == name)
                    .map_or(second, |(first, _)| first);
                return Err(Error::Collision {
                    first: first.clone(),
                    second: second.clone(),
                    name: name.clone(),
                });
            }
        }
        if !self.versions.is_empty() {
            let mut modules: HashMap<String, String> = HashMap::new();
            all().for_each(|(old, new)| note_modules(&mut modules, old, new));
            let mut seen = HashSet::new();
            for version in &mut self.versions {
                if let Some(new) = modules.get(&version.module) {
                    version.module.clone_from(new);
                }
            }
            self.versions
                .retain(|version| seen.insert(version.module.clone()));
        }
        let old = std::mem::take(&mut self.entries);
        self.entries.reserve(old.len());
        for ((old, entry), new) in old.into_iter().zip(new) {
            self.entries.insert(new.unwrap_or(old), entry);
        }
        Ok(n_renamed)
    }

    /// Puts `new` in the place of the tensor called `name`, under all its names.
    pub(crate) fn replace_tensor(&mut self, name: &str, new: &LazyTensor) {
        let Some(old) = self.tensor(name).cloned() else {
            return;
        };
        for entry in self.entries.values_mut() {
            if let LazyValue::Tensor(tensor) = &mut entry.value
                && tensor.identity() == old.identity()
            {
                *tensor = new.clone();
            }
        }
    }

    /// The name and the entry at a place in the order.
    pub(crate) fn at(&self, place: usize) -> Option<(&str, &LazyEntry)> {
        self.entries
            .get_index(place)
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// As [`at`](LazyStateDict::at), to change the entry.
    pub(crate) fn at_mut(&mut self, place: usize) -> Option<(&str, &mut LazyEntry)> {
        self.entries
            .get_index_mut(place)
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The tensors that several names stand for, and their names in order.
    pub fn ties(&self) -> Vec<Vec<&str>> {
        let mut first: Map<Identity, &str> = Map::default();
        first.reserve(self.len());
        let mut groups: IndexMap<Identity, Vec<&str>> = IndexMap::new();
        for (name, entry) in self.iter() {
            let Some(tensor) = entry.tensor() else { continue };
            let identity = tensor.identity();
            // Most tensors have one name, and need no list.
            if let Some(first) = first.insert(identity, name) {
                let names = groups.entry(identity).or_insert_with(|| vec![first]);
                names.push(name);
            }
        }
        groups.into_values().collect()
    }

    /// The state dict with everything computed, in memory where it is not a view of a file.
    ///
    /// # Errors
    /// A tensor that cannot be made.
    pub fn compute(&self) -> Result<StateDict, Error> {
        let mut made: Map<Identity, pth::Tensor> = Map::default();
        let mut out = StateDict::new();
        for (name, entry) in self.iter() {
            let entry = match &entry.value {
                LazyValue::Record(record) => Entry::Record(record.clone()),
                LazyValue::Tensor(tensor) => {
                    let identity = tensor.identity();
                    let computed = match made.get(&identity) {
                        Some(computed) => computed.clone(),
                        None => tensor.compute().map_err(|error| error.of_tensor(name))?,
                    };
                    made.insert(identity, computed.clone());
                    Entry::Tensor(entry.marked(computed))
                }
            };
            out.insert_entry(name, entry);
        }
        Ok(out.with_metadata(self.versions.clone()))
    }

    /// Sizes of all elements, each tied tensor once.
    pub fn nbytes(&self) -> usize {
        let mut seen = HashSet::new();
        let tensors = self.entries.values().filter_map(LazyEntry::tensor);
        tensors
            .filter(|tensor| seen.insert(tensor.identity()))
            .fold(0, |sum: usize, tensor| sum.saturating_add(tensor.nbytes()))
    }

    /// Whether training could change the entry called `name`.
    pub(crate) fn can_train(name: &str, entry: &LazyEntry) -> bool {
        let is_float = |dtype: DType| dtype.is_float() || dtype.is_complex();
        !marks::is_buffer_name(name) && entry.tensor().is_some_and(|tensor| is_float(tensor.dtype()))
    }
}

impl LazyEntry {
    /// `tensor` with this entry's marks.
    pub(crate) fn marked(&self, tensor: pth::Tensor) -> pth::Tensor {
        if self.is_parameter {
            tensor.into_parameter(self.requires_grad)
        } else {
            tensor.with_requires_grad(self.requires_grad)
        }
    }
}

impl From<StateDict> for LazyStateDict {
    fn from(tensors: StateDict) -> LazyStateDict {
        let versions = tensors.metadata().to_vec();
        // Names of one view are names of one tensor.
        let mut views: Map<(usize, u32), Vec<LazyTensor>> = Map::default();
        let mut storages: Map<(usize, u32), bool> = Map::default();
        storages.reserve(tensors.len());
        for (_, tensor) in tensors.iter() {
            let shared = storages
                .entry(tensor.storage().id())
                .and_modify(|shared| *shared = true);
            shared.or_insert(false);
        }
        let mut lazy = |tensor: pth::Tensor| {
            let id = tensor.storage().id();
            if tensor.numel() == 0 || storages.get(&id) != Some(&true) {
                return LazyTensor::stored(tensor);
            }
            let known = views.entry(id).or_default();
            let same = known
                .iter()
                .find(|other| other.as_stored().is_some_and(|other| other.is_same_view(&tensor)));
            match same {
                Some(same) => same.clone(),
                None => {
                    let new = LazyTensor::stored(tensor);
                    known.push(new.clone());
                    new
                }
            }
        };
        let entries = tensors.into_iter().map(|(name, entry)| {
            let entry = match entry {
                Entry::Tensor(tensor) => LazyEntry {
                    requires_grad: tensor.requires_grad(),
                    is_parameter: tensor.is_parameter(),
                    group: None,
                    value: LazyValue::Tensor(lazy(tensor)),
                },
                Entry::Record(record) => LazyEntry {
                    requires_grad: record.requires_grad,
                    is_parameter: record.is_parameter,
                    group: None,
                    value: LazyValue::Record(record),
                },
            };
            (name, entry)
        });
        LazyStateDict {
            entries: entries.collect(),
            versions,
            ..LazyStateDict::default()
        }
    }
}

/// Which module became which, where a tensor's name changed in front of what stays: `layer3.0.w` to `train_.0.0.w` makes `layer3`
/// `train_.0`, and `layer3.0` `train_.0.0`.
fn note_modules(modules: &mut HashMap<String, String>, old: &str, new: &str) {
    for (at, _) in old.rmatch_indices('.') {
        let tail = &old[at..];
        let module = match new.strip_suffix(tail) {
            Some(module) => module,
            // A prefix that is taken off whole leaves the root.
            None if new == &tail[1..] => "",
            None => return,
        };
        modules
            .entry(old[..at].to_owned())
            .or_insert_with(|| module.to_owned());
    }
}
