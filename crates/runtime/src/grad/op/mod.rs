//! Operators: each knows its result and how a change of the result depends on a change of its inputs.

mod after;
mod batch_norm;
mod binary;
mod concat;
mod conv;
mod depthwise;
mod frozen;
mod layer_norm;
mod linear;
mod matmul;
mod narrow;
mod pool;
mod reduce;
mod softmax;
mod strided;
#[cfg(test)]
mod tests;
mod unary;
mod winograd;

pub(super) use batch_norm::BatchNorm;
pub(super) use binary::{Binary, BinaryKind};
pub(super) use concat::{Concat, Select};
pub(super) use conv::{Conv, Geometry};
pub(super) use frozen::{Cost, Follow, FrozenProduct};
pub(super) use layer_norm::LayerNorm;
pub(super) use linear::Linear;
pub(super) use matmul::MatMul;
pub(super) use pool::{AveragePool, MaxPool};
pub(super) use reduce::Reduce;
pub(super) use softmax::Softmax;
pub(super) use strided::{Axis, Strided};
pub(super) use unary::{Unary, UnaryKind};

use super::plan::NormMode;

/// What a run is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Samples.
    pub(super) n: usize,
    /// What a batch normalisation takes its statistics from.
    pub(super) norm: NormMode,
}

/// Where the derivative by an input goes.
pub(super) struct Sink<'s> {
    pub(super) values: &'s mut [f32],
    /// Whether it is added to what another reader of the same tensor left.
    pub(super) is_added: bool,
}

impl Sink<'_> {
    /// Zeros, where nothing was left: for operators that can only add.
    pub(super) fn zero(&mut self) {
        use rayon::prelude::*;
        if !self.is_added {
            let parts = self.values.par_chunks_mut(CHUNK).with_min_len(alone(CHUNK));
            parts.for_each(|part| part.fill(0.0));
        }
    }
}

/// What an operator keeps between the passes, and from one step to the next for its room.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) arrays: Vec<Vec<f32>>,
    pub(super) indices: Vec<u32>,
    /// Room within a pass, which all operators of a tail share.
    pub(super) room: Vec<f32>,
}

impl Kept {
    /// `N` arrays of these sizes; their numbers are those of the last use with the same sizes.
    pub(super) fn arrays<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        if self.arrays.len() < N {
            self.arrays.resize(N, Vec::new());
        }
        for (array, size) in self.arrays.iter_mut().zip(sizes) {
            if array.len() < size {
                array.resize(size, 0.0);
            }
        }
        let mut arrays = self.arrays.iter_mut();
        sizes.map(|size| &mut arrays.next().expect("resized above")[..size])
    }

    /// `n` numbers of no meaning.
    pub(super) fn room(&mut self, n: usize) -> &mut [f32] {
        if self.room.len() < n {
            self.room.resize(n, 0.0);
        }
        &mut self.room[..n]
    }
}

/// What one who puts operators together sees in one of them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'o> {
    Conv(&'o Conv),
    Linear(&'o Linear),
    Norm(&'o BatchNorm),
    /// Each element within bounds.
    Clamp([f32; 2]),
    /// The sum of two inputs of the same sizes.
    Sum,
    /// A product of two inputs that are computed.
    MatMul,
    Other,
}

/// An operator. Inputs are as it was made for; `out` is whole.
pub(super) trait Op: std::fmt::Debug + Send + Sync {
    /// Computes `out`, every element of it.
    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept);

    /// Computes the derivatives by those inputs that have a sink, from that by `out`.
    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept);

    /// What it is to one who puts operators together.
    fn part(&self) -> Part<'_> {
        Part::Other
    }

    /// Whether the samples of all tensors lie behind each other, so that some of them can be computed by themselves.
    fn is_by_sample(&self) -> bool {
        true
    }

    /// Lets running statistics follow those of the batch that was last run forward; only for a batch normalisation.
    fn update_running(&self, kept: &Kept, mean: &mut [f32], var: &mut [f32]) {
        let _ = (kept, mean, var);
    }
}

/// What a backward pass looks at.
pub(super) struct Backward<'b> {
    pub(super) inputs: &'b [&'b [f32]],
    pub(super) out: &'b [f32],
    pub(super) d_out: &'b [f32],
}

/// `to += from` or `to = from`.
pub(super) fn put(sink: &mut Sink<'_>, from: &[f32]) {
    if sink.is_added {
        add(sink.values, from);
    } else {
        sink.values.copy_from_slice(from);
    }
}

crate::panels::vectorised! {
    fn add_part(to: &'a mut [f32], from: &'a [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

crate::panels::vectorised! {
    fn add_rows(rows: &'a [f32], sums: &'a mut [f64]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
    }
}

/// The sums of columns, of rows of `n` numbers, in the order of the rows.
pub(super) fn totals(rows: &[f32], n: usize) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    add_rows(rows, &mut sums);
    sums
}

/// `sink = totals` or `sink += totals`.
pub(super) fn put_totals(sink: &mut Sink<'_>, totals: &[f64]) {
    for (to, total) in sink.values.iter_mut().zip(totals) {
        *to = if sink.is_added { *to } else { 0.0 } + *total as f32;
    }
}

/// Elements that one task of an elementwise loop takes.
pub(super) const CHUNK: usize = 1 << 14;

/// How many chunks of `len` numbers a thread is left alone with: they are moved before another one has woken up.
pub(super) fn alone(len: usize) -> usize {
    (1usize << 15).div_ceil(len.max(1))
}

/// `to += from`.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    use rayon::prelude::*;
    to.par_chunks_mut(CHUNK)
        .zip(from.par_chunks(CHUNK))
        .with_min_len(alone(CHUNK))
        .for_each(|(to, from)| add_part(to, from));
}
