//! What a step says about each parameter that learns.

use indexmap::IndexMap;

/// The derivative of the loss by each parameter that learns, row-major, in the shapes of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub(super) values: IndexMap<String, Vec<f32>>,
}

impl Gradients {
    /// The gradient of a parameter; none where it does not learn.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// The gradient of a parameter, to be clipped or averaged.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.values.get_mut(name).map(Vec::as_mut_slice)
    }

    /// All gradients, in the order of [`Tail::parameters`](super::Tail::parameters).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.values
            .iter()
            .map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// All gradients, to be clipped or averaged.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.values
            .iter_mut()
            .map(|(name, values)| (name.as_str(), values.as_mut_slice()))
    }
}
