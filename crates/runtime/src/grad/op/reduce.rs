//! Means and sums over axes.

use rayon::prelude::*;

use super::{Backward, Kept, Op, Run, Sink};
use crate::grad::shape::Dim;
use crate::panels::{sum_of, vectorised};

/// Means or sums over neighbouring axes: the input is `[outer, axes, inner]`, the result `[outer, inner]`.
#[derive(Debug)]
pub(in crate::grad) struct Reduce {
    pub(in crate::grad) size: Dim,
    pub(in crate::grad) inner: Dim,
    pub(in crate::grad) is_mean: bool,
}

vectorised! {
    fn sum_over(rows: &'a [f32], out: &'a mut [f32], factor: f32) {
        let inner = out.len();
        if inner == 1 {
            out[0] = sum_of([rows], |[x]| x) * factor;
        } else {
            out.fill(0.0);
            for row in rows.chunks_exact(inner) {
                for (out, value) in out.iter_mut().zip(row) {
                    *out += value;
                }
            }
            for out in out.iter_mut() {
                *out *= factor;
            }
        }
    }
}

vectorised! {
    fn spread_over(d_out: &'a [f32], to: &'a mut [f32], factor: f32, is_added: bool) {
        for to in to.chunks_exact_mut(d_out.len()) {
            for (to, d) in to.iter_mut().zip(d_out) {
                *to = if is_added { *to + d * factor } else { d * factor };
            }
        }
    }
}

impl Reduce {
    fn factor(&self, n: usize) -> f32 {
        if self.is_mean {
            1.0 / self.size.at(n) as f32
        } else {
            1.0
        }
    }
}

impl Op for Reduce {
    fn is_by_sample(&self) -> bool {
        !self.size.is_batched && !self.inner.is_batched
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let (inner, block) = (self.inner.at(run.n), self.size.at(run.n) * self.inner.at(run.n));
        let at_once = (super::CHUNK / block.max(1)).max(1);
        let factor = self.factor(run.n);
        out.par_chunks_mut(at_once * inner)
            .zip(inputs[0].par_chunks(at_once * block))
            .for_each(|(out, rows)| {
                for (out, rows) in out.chunks_exact_mut(inner).zip(rows.chunks_exact(block)) {
                    sum_over(rows, out, factor);
                }
            });
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let Some(sink) = &mut sinks[0] else { return };
        let (inner, block) = (self.inner.at(run.n), self.size.at(run.n) * self.inner.at(run.n));
        let (factor, is_added) = (self.factor(run.n), sink.is_added);
        sink.values
            .par_chunks_mut(block)
            .zip(pass.d_out.par_chunks(inner))
            .for_each(|(to, d_out)| spread_over(d_out, to, factor, is_added));
    }
}
