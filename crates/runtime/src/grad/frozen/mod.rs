//! A program whose weights will not change, for the forward pass alone: normalisations and activations are part of the
//! products in front of them, kernels are packed once, and tensors whose lives do not overlap share their memory.

mod fuse;
mod place;

use std::ops::Range;

use self::fuse::Planner;
use self::place::{Group, Placed, place};
use super::lower::{Section, lower};
use super::op::{Cost, FrozenProduct, Kept, Part, Run};
use super::plan::NormMode;
use super::program::{Program, Source};
use super::shape::Dim;
use super::weights::Weights;
use crate::error::Error;
use crate::onnx::{Model, Operation};
use crate::scratch::Aligned;

/// Samples that are computed at a time, so that the room does not follow the batch.
const AT_ONCE: usize = 32;

/// ONNX's numbers of types.
const FLOAT16: i64 = 10;
const BFLOAT16: i64 = 16;

/// The nodes between an input and an output with their weights, ready to be run. Immutable, and shared by threads.
#[derive(Debug)]
pub struct Frozen {
    program: Program,
    /// Only what is not packed in a step.
    weights: Weights,
    steps: Vec<Step>,
    groups: Vec<Group>,
    /// Pieces of memory that tensors share.
    n_buffers: usize,
    outputs: Vec<Input>,
}

/// An operator, and where its input and output lie.
#[derive(Debug)]
struct Step {
    what: What,
    inputs: Vec<Input>,
    output: Place,
}

#[derive(Debug)]
enum What {
    /// A node of the program.
    Node(usize),
    /// Inputs are `x` and, where there is one, the residual.
    Product(Box<FrozenProduct>),
}

/// Where a step finds an input.
#[derive(Debug, Clone, Copy)]
enum Input {
    Boundary,
    Buffer(Place),
    Parameter(usize),
    Constant(usize),
}

/// The first numbers of a piece of memory: of all samples, or of those that are passing.
#[derive(Debug, Clone, Copy)]
struct Place {
    buffer: usize,
    len: Dim,
    is_passing: bool,
}

/// The memory of one run at a time.
#[derive(Debug, Default)]
pub struct Room {
    buffers: Vec<Aligned>,
    kept: Vec<Kept>,
    shared: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

impl Frozen {
    /// Makes a program of a model's nodes between `input`, of `input_shape` for a sample, and `outputs`.
    ///
    /// # Errors
    /// As [`Tail::new`](super::Tail::new).
    pub fn new(model: &Model, input: &str, outputs: &[&str], input_shape: &[usize]) -> Result<Frozen, Error> {
        let section = Section {
            boundary: input,
            outputs,
            input_shape,
        };
        let (program, _, weights) = lower(model, section)?;
        Ok(Frozen::of(program, weights))
    }

    /// Whether `output` is computed faster this way than by ONNX Runtime: the gain is in convolutions of three by three taps
    /// and stride one, whose multiplications must be so many that a quarter of all can be left out. No where it cannot be
    /// computed this way, or ONNX Runtime would compute it in half precision.
    pub fn pays(model: &Model, input: &str, output: &str, input_shape: &[usize]) -> bool {
        let Ok(operations) = model.operations_behind(input, &[output]) else {
            return false;
        };
        // Seen before weights are looked at, which are many where the answer is no.
        let is_gain = |operation: &Operation<'_>| {
            operation.op_type == "Conv" && operation.integers("kernel_shape") == Some(&[3, 3])
        };
        let is_rounded = |operation: &Operation<'_>| {
            let to = operation.integer("to");
            operation.op_type == "Cast" && to.is_some_and(|to| to == FLOAT16 || to == BFLOAT16)
        };
        let is_product =
            |operation: &Operation<'_>| matches!(operation.op_type, "MatMul" | "Attention" | "Einsum");
        let is_other = |operation: &Operation<'_>| is_rounded(operation) || is_product(operation);
        if !operations.iter().any(is_gain) || operations.iter().any(is_other) {
            return false;
        }
        let section = Section {
            boundary: input,
            outputs: &[output],
            input_shape,
        };
        let Ok((program, ..)) = lower(model, section) else {
            return false;
        };
        let mut cost = Cost::default();
        for node in &program.nodes {
            let of_node = match node.op.part() {
                Part::Conv(conv) => conv.cost(),
                Part::Linear(linear) => linear.cost(program.slots[node.slot].size),
                Part::MatMul => return false,
                _ => continue,
            };
            cost.plain += of_node.plain;
            cost.paid += of_node.paid;
        }
        cost.paid * 4 <= cost.plain * 3
    }

    /// Of any program.
    pub(super) fn of(program: Program, mut weights: Weights) -> Frozen {
        let planned = Planner::new(&program, &weights).plan();
        let mut is_used = vec![false; weights.values.len()];
        for source in planned.iter().flat_map(|planned| &planned.inputs) {
            if let Source::Parameter(idx) = source {
                is_used[*idx] = true;
            }
        }
        for output in &program.outputs {
            if let Source::Parameter(idx) = output.source {
                is_used[idx] = true;
            }
        }
        for (values, is_used) in weights.values.values_mut().zip(is_used) {
            if !is_used {
                *values = Vec::new();
            }
        }
        let Placed {
            steps,
            groups,
            n_buffers,
            outputs,
        } = place(&program, planned);
        Frozen {
            program,
            weights,
            steps,
            groups,
            n_buffers,
            outputs,
        }
    }

    /// The sizes of each output for one sample.
    pub fn output_shapes(&self) -> impl Iterator<Item = &[usize]> {
        self.program.outputs.iter().map(|output| output.shape.as_slice())
    }

    /// The outputs for the samples of `batch` (`[n, input_shape…]`, row-major), row-major too. A sample's numbers depend on
    /// the sample alone, and not on the number of threads of the pool that this is called in.
    ///
    /// # Panics
    /// Where `batch` is not whole samples.
    pub fn forward<'r>(&self, room: &'r mut Room, batch: &[f32]) -> &'r [Vec<f32>] {
        let width = self.program.input_width;
        assert!(batch.len().is_multiple_of(width), "whole samples");
        room.buffers.resize_with(self.n_buffers, Aligned::default);
        room.kept.resize_with(self.steps.len(), Kept::default);
        room.outputs.resize(self.outputs.len(), Vec::new());
        room.outputs.iter_mut().for_each(Vec::clear);
        for batch in batch.chunks(AT_ONCE * width) {
            let n = batch.len() / width;
            for group in &self.groups {
                for start in (0..n).step_by(group.at_once) {
                    let samples = start..(start + group.at_once).min(n);
                    for at in group.steps.clone() {
                        self.step(at, room, batch, n, samples.clone());
                    }
                }
            }
            for (output, to) in self.outputs.iter().zip(&mut room.outputs) {
                to.extend_from_slice(self.look(*output, &room.buffers, batch, 0..n));
            }
        }
        &room.outputs
    }

    /// A step for some of `n` samples.
    fn step(&self, at: usize, room: &mut Room, batch: &[f32], n: usize, samples: Range<usize>) {
        let step = &self.steps[at];
        let to = step.output;
        let mut memory = std::mem::take(&mut room.buffers[to.buffer]);
        let part = to.part(samples.clone());
        let whole = if to.is_passing { part.end } else { to.len.at(n) };
        let out = &mut memory.of(whole)[part];
        let inputs: Vec<&[f32]> = step
            .inputs
            .iter()
            .map(|input| self.look(*input, &room.buffers, batch, samples.clone()))
            .collect();
        match &step.what {
            What::Product(product) => product.forward(inputs[0], inputs.get(1).copied(), out),
            What::Node(node) => {
                let run = Run {
                    n: samples.len(),
                    norm: NormMode::Frozen,
                };
                let kept = &mut room.kept[at];
                std::mem::swap(&mut kept.room, &mut room.shared);
                self.program.nodes[*node].op.forward(run, &inputs, out, kept);
                std::mem::swap(&mut kept.room, &mut room.shared);
            }
        }
        room.buffers[to.buffer] = memory;
    }

    fn look<'s>(
        &'s self,
        input: Input,
        buffers: &'s [Aligned],
        batch: &'s [f32],
        samples: Range<usize>,
    ) -> &'s [f32] {
        match input {
            Input::Boundary => {
                let width = self.program.input_width;
                &batch[samples.start * width..samples.end * width]
            }
            Input::Buffer(place) => {
                let part = place.part(samples);
                &buffers[place.buffer].get(part.end)[part]
            }
            Input::Parameter(idx) => &self.weights.values[idx],
            Input::Constant(idx) => &self.program.constants[idx],
        }
    }
}

impl Place {
    /// Where the numbers of some samples are.
    fn part(self, samples: Range<usize>) -> Range<usize> {
        if self.is_passing || !self.len.is_batched {
            0..self.len.at(samples.len())
        } else {
            samples.start * self.len.size..samples.end * self.len.size
        }
    }
}
