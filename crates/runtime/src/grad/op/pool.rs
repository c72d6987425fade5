//! Maxima and means of windows, channels innermost.

use rayon::prelude::*;

use super::conv::Geometry;
use super::{Backward, Kept, Op, Run, Sink};
use crate::panels::vectorised;

/// Windows: a depthwise geometry.
pub(in crate::grad) type Window = Geometry;

vectorised! {
    /// The largest number of each window of an image, and the pixel that it is at.
    fn largest(g: &'a Window, image: &'a [f32], out: &'a mut [f32], indices: &'a mut [u32]) {
        let rows = out.chunks_exact_mut(g.c).zip(indices.chunks_exact_mut(g.c));
        for (at, (out, indices)) in rows.enumerate() {
            out.fill(f32::NEG_INFINITY);
            let mut is_first = true;
            for tap in 0..g.taps() {
                let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) else {
                    continue;
                };
                let x = &image[pixel * g.c..][..g.c];
                for ((out, index), x) in out.iter_mut().zip(indices.iter_mut()).zip(x) {
                    // What is no number wins, as in torch.
                    let wins = is_first | (*x > *out) | x.is_nan();
                    *out = if wins { *x } else { *out };
                    *index = if wins { pixel as u32 } else { *index };
                }
                is_first = false;
            }
        }
    }
}

/// `torch.nn.MaxPool2d`; of equal numbers the first wins.
#[derive(Debug)]
pub(in crate::grad) struct MaxPool(pub(in crate::grad) Window);

impl Op for MaxPool {
    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept) {
        let g = &self.0;
        kept.indices.resize(out.len(), 0);
        out.par_chunks_mut(g.out_len())
            .zip(kept.indices.par_chunks_mut(g.out_len()))
            .zip(inputs[0].par_chunks(g.in_len()))
            .for_each(|((out, indices), image)| largest(g, image, out, indices));
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept) {
        let g = &self.0;
        let Some(sink) = &mut sinks[0] else { return };
        sink.zero();
        sink.values
            .par_chunks_mut(g.in_len())
            .zip(
                kept.indices
                    .par_chunks(g.out_len())
                    .zip(pass.d_out.par_chunks(g.out_len())),
            )
            .for_each(|(image, (indices, d_out))| {
                for (indices, d_out) in indices.chunks_exact(g.c).zip(d_out.chunks_exact(g.c)) {
                    for (c, (index, d)) in indices.iter().zip(d_out).enumerate() {
                        image[*index as usize * g.c + c] += d;
                    }
                }
            });
    }
}

/// `torch.nn.AvgPool2d`.
#[derive(Debug)]
pub(in crate::grad) struct AveragePool {
    pub(in crate::grad) window: Window,
    /// Whether zeros of the padding count.
    pub(in crate::grad) counts_padding: bool,
}

impl AveragePool {
    /// What the taps of an output pixel are multiplied by.
    fn factor(&self, at: usize) -> f32 {
        let g = &self.window;
        let taps = (0..g.taps()).filter(|tap| g.under(at / g.ow, at % g.ow, *tap).is_some());
        let n = if self.counts_padding {
            g.taps()
        } else {
            taps.count().max(1)
        };
        1.0 / n as f32
    }
}

impl Op for AveragePool {
    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let g = &self.window;
        out.par_chunks_mut(g.out_len())
            .zip(inputs[0].par_chunks(g.in_len()))
            .for_each(|(out, image)| {
                for (at, out) in out.chunks_exact_mut(g.c).enumerate() {
                    out.fill(0.0);
                    for tap in 0..g.taps() {
                        if let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) {
                            let x = &image[pixel * g.c..][..g.c];
                            out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
                        }
                    }
                    let factor = self.factor(at);
                    out.iter_mut().for_each(|out| *out *= factor);
                }
            });
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let g = &self.window;
        let Some(sink) = &mut sinks[0] else { return };
        sink.zero();
        sink.values
            .par_chunks_mut(g.in_len())
            .zip(pass.d_out.par_chunks(g.out_len()))
            .for_each(|(image, d_out)| {
                for (at, d_out) in d_out.chunks_exact(g.c).enumerate() {
                    let factor = self.factor(at);
                    for tap in 0..g.taps() {
                        if let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) {
                            let x = &mut image[pixel * g.c..][..g.c];
                            x.iter_mut().zip(d_out).for_each(|(x, d)| *x += d * factor);
                        }
                    }
                }
            });
    }
}
