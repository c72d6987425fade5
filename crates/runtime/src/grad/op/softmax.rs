//! Softmax along the innermost axis.

use rayon::prelude::*;

use super::{Backward, Kept, Op, Run, Sink};
use crate::panels::{sum_of, vectorised};
use crate::train::math::exp;

/// `torch.softmax` or `torch.log_softmax` of rows of `width` numbers.
#[derive(Debug)]
pub(in crate::grad) struct Softmax {
    pub(in crate::grad) width: usize,
    pub(in crate::grad) is_log: bool,
}

vectorised! {
    fn rows(x: &'a [f32], out: &'a mut [f32], width: usize, is_log: bool) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mut largest = [f32::NEG_INFINITY; 16];
            let (chunks, rest) = x.as_chunks::<16>();
            for chunk in chunks {
                for (largest, x) in largest.iter_mut().zip(chunk) {
                    *largest = largest.max(*x);
                }
            }
            let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            for (out, x) in out.iter_mut().zip(x) {
                *out = exp(x - largest);
            }
            let total = sum_of([out], |[y]| y);
            if is_log {
                let log = total.ln() + largest;
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x - log);
            } else {
                let factor = 1.0 / total;
                out.iter_mut().for_each(|out| *out *= factor);
            }
        }
    }
}

vectorised! {
    fn d_rows(y: &'a [f32], d_out: &'a [f32], to: &'a mut [f32], width: usize, is_log: bool, is_added: bool) {
        let rows = y.chunks_exact(width).zip(d_out.chunks_exact(width));
        for ((y, d_out), to) in rows.zip(to.chunks_exact_mut(width)) {
            if is_log {
                let total = sum_of([d_out], |[d]| d);
                for ((to, y), d) in to.iter_mut().zip(y).zip(d_out) {
                    let value = d - exp(*y) * total;
                    *to = if is_added { *to + value } else { value };
                }
            } else {
                let total = sum_of([y, d_out], |[y, d]| y * d);
                for ((to, y), d) in to.iter_mut().zip(y).zip(d_out) {
                    let value = y * (d - total);
                    *to = if is_added { *to + value } else { value };
                }
            }
        }
    }
}

impl Softmax {
    fn chunk(&self) -> usize {
        (super::CHUNK / self.width).max(1) * self.width
    }
}

impl Op for Softmax {
    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        out.par_chunks_mut(self.chunk())
            .zip(inputs[0].par_chunks(self.chunk()))
            .for_each(|(out, x)| rows(x, out, self.width, self.is_log));
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let Some(sink) = &mut sinks[0] else { return };
        let is_added = sink.is_added;
        sink.values
            .par_chunks_mut(self.chunk())
            .zip(
                pass.out
                    .par_chunks(self.chunk())
                    .zip(pass.d_out.par_chunks(self.chunk())),
            )
            .for_each(|(to, (y, d_out))| d_rows(y, d_out, to, self.width, self.is_log, is_added));
    }
}
