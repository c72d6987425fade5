//! Normalisation of each row (`torch.nn.LayerNorm`).

use rayon::prelude::*;

use super::{Backward, Kept, Op, Run, Sink, put_totals, totals};
use crate::panels::{sum_of, vectorised};
use crate::scratch;

/// Rows whose sums are made in float32 before they are added up in float64.
const ROWS: usize = 64;

/// Inputs are `x`, `scale` and `shift`; rows have `width` numbers.
#[derive(Debug)]
pub(in crate::grad) struct LayerNorm {
    pub(in crate::grad) width: usize,
    pub(in crate::grad) eps: f32,
}

vectorised! {
    /// `statistics` are each row's mean and the inverse of its deviation.
    fn rows(x: &'a [f32], scale: &'a [f32], shift: &'a [f32], eps: f32, out: &'a mut [f32], statistics: &'a mut [f32]) {
        let width = scale.len();
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), statistics) in rows.zip(statistics.as_chunks_mut::<2>().0) {
            let n = width as f32;
            let middle = sum_of([x], |[x]| x) / n;
            let var = sum_of([x], |[x]| (x - middle) * (x - middle)) / n;
            let inverse = 1.0 / (var + eps).sqrt();
            *statistics = [middle, inverse];
            for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                *out = ((x - middle) * inverse).mul_add(*scale, *shift);
            }
        }
    }
}

vectorised! {
    fn d_rows(x: &'a [f32], scale: &'a [f32], statistics: &'a [f32], d_out: &'a [f32], to: &'a mut [f32], is_added: bool) {
        let width = scale.len();
        let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width)).zip(to.chunks_exact_mut(width));
        for (((x, d_out), to), [middle, inverse]) in rows.zip(statistics.as_chunks::<2>().0) {
            let n = width as f32;
            let of_g = sum_of([d_out, scale], |[d, s]| d * s) / n;
            let of_gx = sum_of([x, d_out, scale], |[x, d, s]| d * s * ((x - middle) * inverse)) / n;
            for (((to, x), d), s) in to.iter_mut().zip(x).zip(d_out).zip(scale) {
                let normal = (x - middle) * inverse;
                let value = inverse * (d * s - of_g - normal * of_gx);
                *to = if is_added { *to + value } else { value };
            }
        }
    }
}

vectorised! {
    fn parameter_sums(x: &'a [f32], statistics: &'a [f32], d_out: &'a [f32], of_scale: &'a mut [f32], of_shift: &'a mut [f32]) {
        let width = of_scale.len();
        of_scale.fill(0.0);
        of_shift.fill(0.0);
        let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
        for ((x, d_out), [middle, inverse]) in rows.zip(statistics.as_chunks::<2>().0) {
            for (((scale, shift), x), d) in of_scale.iter_mut().zip(of_shift.iter_mut()).zip(x).zip(d_out) {
                *scale = d.mul_add((x - middle) * inverse, *scale);
                *shift += d;
            }
        }
    }
}

impl Op for LayerNorm {
    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept) {
        let part = ROWS * self.width;
        let [statistics] = kept.arrays([2 * (out.len() / self.width)]);
        out.par_chunks_mut(part)
            .zip(inputs[0].par_chunks(part))
            .zip(statistics.par_chunks_mut(2 * ROWS))
            .for_each(|((out, x), statistics)| rows(x, inputs[1], inputs[2], self.eps, out, statistics));
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept) {
        let (width, part) = (self.width, ROWS * self.width);
        let [x, scale] = [pass.inputs[0], pass.inputs[1]];
        let [statistics] = kept.arrays([2 * (x.len() / width)]);
        let statistics = &*statistics;
        if let Some(sink) = &mut sinks[0] {
            let is_added = sink.is_added;
            sink.values
                .par_chunks_mut(part)
                .zip(x.par_chunks(part))
                .zip(pass.d_out.par_chunks(part).zip(statistics.par_chunks(2 * ROWS)))
                .for_each(|((to, x), (d_out, statistics))| {
                    d_rows(x, scale, statistics, d_out, to, is_added);
                });
        }
        if sinks[1].is_none() && sinks[2].is_none() {
            return;
        }
        let n_parts = x.len().div_ceil(part);
        scratch::with(n_parts * 2 * width, |parts| {
            parts
                .par_chunks_mut(2 * width)
                .zip(x.par_chunks(part))
                .zip(pass.d_out.par_chunks(part).zip(statistics.par_chunks(2 * ROWS)))
                .for_each(|((to, x), (d_out, statistics))| {
                    let (of_scale, of_shift) = to.split_at_mut(width);
                    parameter_sums(x, statistics, d_out, of_scale, of_shift);
                });
            let sums = totals(parts, 2 * width);
            for (sink, sums) in sinks[1..3].iter_mut().zip(sums.chunks_exact(width)) {
                if let Some(sink) = sink {
                    put_totals(sink, sums);
                }
            }
        });
    }
}
