//! Operators in order, and what each reads and writes.

use super::op::Op;
use super::shape::Dim;

/// Where an operator finds an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// The rows that come in at the boundary.
    Boundary,
    /// What an operator wrote.
    Slot(usize),
    /// A parameter, by its place in the list.
    Parameter(usize),
    /// Numbers that the graph fixes.
    Constant(usize),
}

/// An operator in its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) op: Box<dyn Op>,
    pub(super) inputs: Vec<Source>,
    /// The slot that it writes.
    pub(super) slot: usize,
    /// The name of the graph's node.
    pub(super) layer: String,
    /// Whether it is a batch normalisation, whose running statistics are its fourth and fifth input.
    pub(super) is_batch_norm: bool,
}

/// What a tail does, for any number of samples.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) nodes: Vec<Node>,
    /// Sizes of the slots.
    pub(super) slots: Vec<Dim>,
    pub(super) constants: Vec<Vec<f32>>,
    /// At least one.
    pub(super) outputs: Vec<Output>,
    /// Numbers of a sample at the boundary.
    pub(super) input_width: usize,
}

/// What a program is for.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) source: Source,
    /// Its sizes for one sample.
    pub(super) shape: Vec<usize>,
}

impl Program {
    /// Numbers of a sample at the first output.
    pub(super) fn output_width(&self) -> usize {
        self.outputs[0].shape.iter().product()
    }
}
