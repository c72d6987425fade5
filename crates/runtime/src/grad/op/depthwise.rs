//! Convolutions in which a channel sees itself only.

use rayon::prelude::*;

use super::conv::Geometry;
use super::{Kept, Sink, totals};
use crate::panels::vectorised;
use crate::scratch;

vectorised! {
    fn image_forward(g: &'a Geometry, image: &'a [f32], weights: &'a [f32], out: &'a mut [f32]) {
        for (at, out) in out.chunks_exact_mut(g.c).enumerate() {
            out.fill(0.0);
            for (tap, w) in weights.chunks_exact(g.c).enumerate() {
                if let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) {
                    let x = &image[pixel * g.c..][..g.c];
                    for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                        *out = x.mul_add(*w, *out);
                    }
                }
            }
        }
    }
}

vectorised! {
    fn image_backward(g: &'a Geometry, d_out: &'a [f32], weights: &'a [f32], image: &'a mut [f32]) {
        for (at, d_out) in d_out.chunks_exact(g.c).enumerate() {
            for (tap, w) in weights.chunks_exact(g.c).enumerate() {
                if let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) {
                    let x = &mut image[pixel * g.c..][..g.c];
                    for ((x, d_out), w) in x.iter_mut().zip(d_out).zip(w) {
                        *x = d_out.mul_add(*w, *x);
                    }
                }
            }
        }
    }
}

vectorised! {
    fn image_weights(g: &'a Geometry, image: &'a [f32], d_out: &'a [f32], to: &'a mut [f32]) {
        to.fill(0.0);
        for (at, d_out) in d_out.chunks_exact(g.c).enumerate() {
            for (tap, to) in to.chunks_exact_mut(g.c).enumerate() {
                if let Some(pixel) = g.under(at / g.ow, at % g.ow, tap) {
                    let x = &image[pixel * g.c..][..g.c];
                    for ((to, x), d_out) in to.iter_mut().zip(x).zip(d_out) {
                        *to = x.mul_add(*d_out, *to);
                    }
                }
            }
        }
    }
}

/// Weights `[c, taps]` tap by tap.
fn transpose(g: &Geometry, weights: &[f32], out: &mut [f32]) {
    for (tap, out) in out.chunks_exact_mut(g.c).enumerate() {
        for (out, value) in out.iter_mut().zip(weights[tap..].iter().step_by(g.taps())) {
            *out = *value;
        }
    }
}

pub(super) fn forward(g: &Geometry, x: &[f32], weights: &[f32], out: &mut [f32], kept: &mut Kept) {
    let [by_tap] = kept.arrays([g.taps() * g.c]);
    transpose(g, weights, by_tap);
    let by_tap = &*by_tap;
    out.par_chunks_mut(g.out_len())
        .zip(x.par_chunks(g.in_len()))
        .for_each(|(out, image)| image_forward(g, image, by_tap, out));
}

pub(super) fn backward_input(
    g: &Geometry,
    weights: &[f32],
    d_out: &[f32],
    sink: &mut Sink<'_>,
    kept: &mut Kept,
) {
    let [by_tap] = kept.arrays([g.taps() * g.c]);
    transpose(g, weights, by_tap);
    let by_tap = &*by_tap;
    sink.zero();
    sink.values
        .par_chunks_mut(g.in_len())
        .zip(d_out.par_chunks(g.out_len()))
        .for_each(|(image, d_out)| image_backward(g, d_out, by_tap, image));
}

/// Sums over an image, then over images in order.
pub(super) fn backward_weights(g: &Geometry, x: &[f32], d_out: &[f32], sink: &mut Sink<'_>) {
    let len = g.taps() * g.c;
    let n = x.len() / g.in_len();
    scratch::with(n * len, |parts| {
        parts
            .par_chunks_mut(len)
            .zip(x.par_chunks(g.in_len()).zip(d_out.par_chunks(g.out_len())))
            .for_each(|(to, (image, d_out))| image_weights(g, image, d_out, to));
        let sums = totals(parts, len);
        for (at, to) in sink.values.iter_mut().enumerate() {
            let (c, tap) = (at / g.taps(), at % g.taps());
            let sum = sums[tap * g.c + c] as f32;
            *to = if sink.is_added { *to + sum } else { sum };
        }
    });
}
