//! Products of matrices that are both computed, matrix by matrix: attention.

use rayon::prelude::*;

use super::{Backward, Kept, Op, Part, Run, Sink};
use crate::grad::shape::Dim;
use crate::solve::linalg::{View, multiply_into};

/// `out[i] = a[i] · b[i]` of `n` matrices `[rows, depth]` and `[depth, columns]`; either may be stored transposed.
#[derive(Debug)]
pub(in crate::grad) struct MatMul {
    /// Matrices of each side; 1 where one serves all.
    pub(in crate::grad) counts: [Dim; 2],
    pub(in crate::grad) rows: Dim,
    pub(in crate::grad) depth: Dim,
    pub(in crate::grad) columns: Dim,
    pub(in crate::grad) is_transposed: [bool; 2],
}

impl MatMul {
    fn sizes(&self, n: usize) -> [usize; 3] {
        [self.rows, self.depth, self.columns].map(|dim| dim.at(n))
    }

    /// Matrix `i` of a side.
    fn matrix<'i>(&self, run: Run, side: usize, input: &'i [f32], i: usize) -> View<'i, f32> {
        let [rows, depth, columns] = self.sizes(run.n);
        let len = if side == 0 { rows * depth } else { depth * columns };
        let at = if self.counts[side].at(run.n) == 1 {
            0
        } else {
            i * len
        };
        let width = match (side, self.is_transposed[side]) {
            (0, false) | (1, true) => depth,
            (0, true) => rows,
            _ => columns,
        };
        let plain = View::new(&input[at..at + len], width);
        if self.is_transposed[side] {
            plain.transposed()
        } else {
            plain
        }
    }
}

impl Op for MatMul {
    fn part(&self) -> Part<'_> {
        Part::MatMul
    }

    fn is_by_sample(&self) -> bool {
        let is_inside = self.columns.is_batched || self.depth.is_batched;
        !is_inside && (!self.rows.is_batched || self.counts == [Dim::ONE; 2])
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let [rows, _, columns] = self.sizes(run.n);
        out.par_chunks_mut(rows * columns)
            .enumerate()
            .for_each(|(i, out)| {
                let [a, b] = [0, 1].map(|side| self.matrix(run, side, inputs[side], i));
                multiply_into(&a, &b, out, false);
            });
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let [rows, depth, columns] = self.sizes(run.n);
        for side in [0, 1] {
            let Some(sink) = &mut sinks[side] else { continue };
            let len = if side == 0 { rows * depth } else { depth * columns };
            let one = |i: usize, to: &mut [f32], is_added: bool| {
                let d_out = View::new(&pass.d_out[i * rows * columns..][..rows * columns], columns);
                let other = self.matrix(run, 1 - side, pass.inputs[1 - side], i).transposed();
                // dA = dC·Bᵀ and dB = Aᵀ·dC, or the transposes of both.
                match (side, self.is_transposed[side]) {
                    (0, false) => multiply_into(&d_out, &other, to, is_added),
                    (0, true) => multiply_into(&other.transposed(), &d_out.transposed(), to, is_added),
                    (_, false) => multiply_into(&other, &d_out, to, is_added),
                    (_, true) => multiply_into(&d_out.transposed(), &other.transposed(), to, is_added),
                }
            };
            if self.counts[side].at(run.n) == 1 {
                for i in 0..pass.d_out.len() / (rows * columns) {
                    one(i, sink.values, sink.is_added || i > 0);
                }
            } else {
                let is_added = sink.is_added;
                sink.values
                    .par_chunks_mut(len)
                    .enumerate()
                    .for_each(|(i, to)| one(i, to, is_added));
            }
        }
    }
}
