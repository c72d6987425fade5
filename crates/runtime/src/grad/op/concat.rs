//! Tensors behind each other along an axis, and rows chosen by number.

use super::{Backward, Kept, Op, Run, Sink};
use crate::grad::shape::Dim;

/// Inputs are `[outer, size, inner]` with a size of their own each.
#[derive(Debug)]
pub(in crate::grad) struct Concat {
    pub(in crate::grad) sizes: Vec<Dim>,
    pub(in crate::grad) inner: Dim,
}

impl Op for Concat {
    fn is_by_sample(&self) -> bool {
        !self.inner.is_batched && self.sizes.iter().all(|size| !size.is_batched)
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let widths: Vec<usize> = self
            .sizes
            .iter()
            .map(|size| size.times(self.inner).at(run.n))
            .collect();
        let mut start = 0;
        for (input, width) in inputs.iter().zip(&widths) {
            for (out, input) in out
                .chunks_exact_mut(widths.iter().sum())
                .zip(input.chunks_exact(*width))
            {
                out[start..start + width].copy_from_slice(input);
            }
            start += width;
        }
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let widths: Vec<usize> = self
            .sizes
            .iter()
            .map(|size| size.times(self.inner).at(run.n))
            .collect();
        let mut start = 0;
        for (sink, width) in sinks.iter_mut().zip(&widths) {
            if let Some(sink) = sink {
                let rows = pass.d_out.chunks_exact(widths.iter().sum());
                for (to, d_out) in sink.values.chunks_exact_mut(*width).zip(rows) {
                    let d_out = &d_out[start..start + width];
                    if sink.is_added {
                        super::add_part(to, d_out);
                    } else {
                        to.copy_from_slice(d_out);
                    }
                }
            }
            start += width;
        }
    }
}

/// Rows of an axis by number, as `Gather` has them: `[outer, size, inner]` becomes `[outer, indices, inner]`.
#[derive(Debug)]
pub(in crate::grad) struct Select {
    pub(in crate::grad) size: usize,
    pub(in crate::grad) inner: Dim,
    pub(in crate::grad) indices: Vec<usize>,
}

impl Op for Select {
    fn is_by_sample(&self) -> bool {
        !self.inner.is_batched
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let inner = self.inner.at(run.n);
        let blocks = out.chunks_exact_mut(self.indices.len() * inner);
        for (out, input) in blocks.zip(inputs[0].chunks_exact(self.size * inner)) {
            for (out, index) in out.chunks_exact_mut(inner).zip(&self.indices) {
                out.copy_from_slice(&input[index * inner..][..inner]);
            }
        }
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let Some(sink) = &mut sinks[0] else { return };
        sink.zero();
        let inner = self.inner.at(run.n);
        let blocks = sink.values.chunks_exact_mut(self.size * inner);
        for (to, d_out) in blocks.zip(pass.d_out.chunks_exact(self.indices.len() * inner)) {
            for (d_out, index) in d_out.chunks_exact(inner).zip(&self.indices) {
                super::add_part(&mut to[index * inner..][..inner], d_out);
            }
        }
    }
}
