//! The numbers of a tail, by the names of the graph's initialisers.

use indexmap::IndexMap;

/// What a parameter does in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// The kernel of a convolution, or a matrix that rows are multiplied by.
    Weight,
    /// What a convolution or a linear layer adds.
    Bias,
    /// `gamma` of a normalisation.
    NormScale,
    /// `beta` of a normalisation.
    NormShift,
    /// The running mean of a batch normalisation; it never learns.
    RunningMean,
    /// The running variance of a batch normalisation; it never learns.
    RunningVar,
    /// Anything else that is multiplied or added: a layer scale, a class token, a position table.
    Other,
}

impl ParameterKind {
    /// Whether a gradient can be asked for.
    pub fn can_learn(self) -> bool {
        !matches!(self, ParameterKind::RunningMean | ParameterKind::RunningVar)
    }
}

/// A float initialiser that the tail uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The initialiser's name.
    pub name: String,
    /// The sizes of its axes, as the graph has them.
    pub shape: Vec<usize>,
    /// What it does where it is used first.
    pub kind: ParameterKind,
    /// The name of the node that uses it first (its output's, where the node has none).
    pub layer: String,
}

/// Every parameter of a tail as float32, row-major, in the order of [`Tail::parameters`](super::Tail::parameters). A clone
/// is a deep copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    pub(super) values: IndexMap<String, Vec<f32>>,
}

impl Weights {
    /// The numbers of a parameter.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// The numbers of a parameter, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.values.get_mut(name).map(Vec::as_mut_slice)
    }

    /// All parameters, in the order of [`Tail::parameters`](super::Tail::parameters).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.values
            .iter()
            .map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// All parameters, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.values
            .iter_mut()
            .map(|(name, values)| (name.as_str(), values.as_mut_slice()))
    }
}
