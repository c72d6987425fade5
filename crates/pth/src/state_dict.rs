//! The ordered map from names to tensors that `state_dict()` returns in torch.

use indexmap::IndexMap;

use crate::Tensor;

/// Names and tensors in the order of the model.
#[derive(Debug, Clone, Default)]
pub struct StateDict {
    tensors: IndexMap<String, Tensor>,
    metadata: Vec<ModuleVersion>,
}

/// One entry of torch's `_metadata`: the version of the class that wrote a module's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleVersion {
    /// The module's name within the model; empty for the model itself.
    pub module: String,
    /// `_version` of its class, where it has one.
    pub version: Option<i64>,
}

impl StateDict {
    /// No tensors.
    pub fn new() -> StateDict {
        StateDict::default()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Puts `tensor` at the end, or in the place of the one of that name, which is returned.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.tensors.insert(name.into(), tensor)
    }

    /// Takes the tensor called `name` out; the others keep their order. Linear in the number of tensors.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.shift_remove(name)
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Tensor)> + ExactSizeIterator {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Names and tensors in order, to change the tensors.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (&str, &mut Tensor)> {
        self.tensors
            .iter_mut()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Names in order.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        self.tensors.keys().map(String::as_str)
    }

    /// torch's `_metadata`, in its order; empty where the file has none.
    pub fn metadata(&self) -> &[ModuleVersion] {
        &self.metadata
    }

    /// The same tensors with other `_metadata`.
    pub fn with_metadata(mut self, metadata: Vec<ModuleVersion>) -> StateDict {
        self.metadata = metadata;
        self
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    /// As [`StateDict::insert`] one after the other: of equal names the last tensor stays, at the place of the first.
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> StateDict {
        StateDict {
            tensors: tensors.into_iter().collect(),
            metadata: Vec::new(),
        }
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Tensor);
    type IntoIter = indexmap::map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}
