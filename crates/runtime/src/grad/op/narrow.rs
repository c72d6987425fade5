//! Convolutions of a few input channels, as the first one of a network: what the taps of an output see lies in one row,
//! `[tap, channel]`, where a panel for each tap would be mostly empty. The taps of a row of the kernel lie side by side in the
//! picture, and are moved together.

use std::ops::Range;

use rayon::prelude::*;

use super::after::After;
use super::conv::{Geometry, each_part, rows_at_once};
use super::{Kept, Sink, alone, totals};
use crate::panels::{LANES, Outer, Place, Product, pack, panels_len};
use crate::scratch;

/// Channels from which on a panel for each tap is worth it.
const MANY: usize = 8;

/// Groups of images that the derivative by a kernel is made of at most.
const GROUPS: usize = 16;

/// Whether a convolution is one of these.
pub(super) fn fits(g: &Geometry) -> bool {
    g.groups == 1 && g.dilation[1] == 1 && g.c < MANY
}

/// Numbers that the taps of an output see.
fn depth(g: &Geometry) -> usize {
    g.taps() * g.c
}

/// Calls `run` for what each row of the kernel sees under each output of some rows: where that row of the kernel begins among
/// what all outputs see, which of its numbers are in the picture and not in the padding, and where in the picture they begin.
#[inline(always)]
fn each_run(g: &Geometry, rows: Range<usize>, mut run: impl FnMut(usize, Range<usize>, usize)) {
    let (width, depth) = (g.kernel[1], depth(g));
    for (at, oy) in rows.enumerate() {
        for ky in 0..g.kernel[0] {
            let y = (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.pad[0]);
            for ox in 0..g.ow {
                let left = ox * g.stride[1];
                let first = g.pad[1].saturating_sub(left).min(width);
                let last = (g.w + g.pad[1]).saturating_sub(left).clamp(first, width);
                let start = (at * g.ow + ox) * depth + ky * width * g.c;
                if y < g.h && first < last {
                    let from = (y * g.w + left + first - g.pad[1]) * g.c;
                    run(start, first * g.c..last * g.c, from);
                } else {
                    run(start, 0..0, 0);
                }
            }
        }
    }
}

/// What the taps see, `[outputs, depth]`.
fn gather(g: &Geometry, image: &[f32], rows: Range<usize>, out: &mut [f32]) {
    let len = g.kernel[1] * g.c;
    each_run(g, rows, |start, seen, from| {
        let out = &mut out[start..start + len];
        if seen.len() < len {
            out.fill(0.0);
        }
        copy(&image[from..][..seen.len()], &mut out[seen]);
    });
}

/// Copies a run, which is short: most are one or two vectors long, and a call would cost more than the copy.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<LANES>(), to.first_chunk_mut::<LANES>()) {
        (Some(head), Some(to_head)) if from.len() <= 2 * LANES => {
            *to_head = *head;
            if let (Some(tail), Some(to_tail)) = (from.last_chunk::<LANES>(), to.last_chunk_mut::<LANES>()) {
                *to_tail = *tail;
            }
        }
        _ => to.copy_from_slice(from),
    }
}

/// The adjoint of [`gather`].
fn scatter(g: &Geometry, taken: &[f32], rows: Range<usize>, image: &mut [f32]) {
    each_run(g, rows, |start, seen, to| {
        let taken = &taken[start + seen.start..start + seen.end];
        for (to, value) in image[to..].iter_mut().zip(taken) {
            *to += value;
        }
    });
}

/// Where in a kernel, `[channel, tap]`, the number of a row is.
fn in_kernel(g: &Geometry, at: usize) -> usize {
    at % g.c * g.taps() + at / g.c
}

/// Numbers of the kernels in panels.
pub(super) fn kernels_len(g: &Geometry) -> usize {
    panels_len(depth(g), g.k)
}

/// Kernels in panels over the outputs.
pub(super) fn pack_kernels(g: &Geometry, weights: &[f32], panels: &mut [f32]) {
    let depth = depth(g);
    let fill = |(panel, out): (usize, &mut [f32])| {
        out.fill(0.0);
        let kernels = weights.chunks_exact(depth).skip(panel * LANES).take(LANES);
        for (lane, kernel) in kernels.enumerate() {
            for (at, out) in out.chunks_exact_mut(LANES).enumerate() {
                out[lane] = kernel[in_kernel(g, at)];
            }
        }
    };
    panels
        .par_chunks_exact_mut(depth * LANES)
        .with_min_len(alone(depth * LANES))
        .enumerate()
        .for_each(fill);
}

/// Pictures `[n, h, w, c]` and kernels as [`pack_kernels`] makes them to `[n, oh, ow, k]`.
pub(super) fn forward(g: &Geometry, x: &[f32], kernels: &[f32], after: After<'_>, out: &mut [f32]) {
    let depth = depth(g);
    each_part(g, x, after, out, |image, rows, out| {
        let n_rows = rows.len() * g.ow;
        scratch::with(n_rows * depth, |seen| {
            gather(g, image, rows, seen);
            Product {
                a: seen,
                a_row: depth,
                a_panel: LANES,
                n_rows,
                depth,
                b: kernels,
                b_panel: depth * LANES,
                out,
                place: Place {
                    row: g.k,
                    panel: LANES,
                    n_columns: g.k,
                    is_added: false,
                },
            }
            .run();
        });
    });
}

pub(super) fn backward_input(
    g: &Geometry,
    weights: &[f32],
    d_out: &[f32],
    sink: &mut Sink<'_>,
    kept: &mut Kept,
) {
    let depth = depth(g);
    let [_, panels] = kept.arrays([0, panels_len(g.k, depth)]);
    let fill = |(panel, out): (usize, &mut [f32])| {
        out.fill(0.0);
        for (out, kernel) in out.chunks_exact_mut(LANES).zip(weights.chunks_exact(depth)) {
            for (out, at) in out.iter_mut().zip(panel * LANES..depth) {
                *out = kernel[in_kernel(g, at)];
            }
        }
    };
    panels
        .par_chunks_exact_mut(g.k * LANES)
        .with_min_len(alone(g.k * LANES))
        .enumerate()
        .for_each(fill);
    let panels = &*panels;
    sink.zero();
    let step = rows_at_once(g);
    let images = sink
        .values
        .par_chunks_mut(g.in_len())
        .zip(d_out.par_chunks(g.out_len()));
    images.for_each(|(image, d_out)| {
        for (idx, d_out) in d_out.chunks(step * g.ow * g.k).enumerate() {
            let n_rows = d_out.len() / g.k;
            scratch::with(n_rows * depth, |seen| {
                Product {
                    a: d_out,
                    a_row: g.k,
                    a_panel: LANES,
                    n_rows,
                    depth: g.k,
                    b: panels,
                    b_panel: g.k * LANES,
                    out: &mut *seen,
                    place: Place {
                        row: depth,
                        panel: LANES,
                        n_columns: depth,
                        is_added: false,
                    },
                }
                .run();
                let first = idx * step;
                scatter(g, seen, first..first + n_rows / g.ow, image);
            });
        }
    });
}

/// Sums over a few images, as many as their number says, and then over those in order.
pub(super) fn backward_weights(g: &Geometry, x: &[f32], d_out: &[f32], sink: &mut Sink<'_>) {
    let depth = depth(g);
    let n = x.len() / g.in_len();
    let each = n.div_ceil(GROUPS);
    let step = rows_at_once(g);
    scratch::with(n.div_ceil(each) * depth * g.k, |parts| {
        parts
            .par_chunks_mut(depth * g.k)
            .zip(
                x.par_chunks(each * g.in_len())
                    .zip(d_out.par_chunks(each * g.out_len())),
            )
            .for_each(|(part, (images, d_out))| {
                let images = images.chunks(g.in_len()).zip(d_out.chunks(g.out_len()));
                let stretches = images.flat_map(|(image, d_out)| {
                    let rows = d_out.chunks(step * g.ow * g.k).enumerate();
                    rows.map(move |(idx, d_out)| (image, idx, d_out))
                });
                for (at, (image, idx, d_out)) in stretches.enumerate() {
                    let n_rows = d_out.len() / g.k;
                    let sizes = [n_rows * depth, panels_len(n_rows, depth), panels_len(n_rows, g.k)];
                    scratch::with(sizes.iter().sum(), |room| {
                        let (seen, panels) = room.split_at_mut(sizes[0]);
                        let (seen_panels, d_panels) = panels.split_at_mut(sizes[1]);
                        gather(g, image, idx * step..idx * step + n_rows / g.ow, seen);
                        pack(seen, depth, n_rows, depth, seen_panels);
                        pack(d_out, g.k, n_rows, g.k, d_panels);
                        Outer {
                            a: seen_panels,
                            a_row: LANES,
                            a_panel: n_rows * LANES,
                            n_a: depth,
                            b: d_panels,
                            b_panel: n_rows * LANES,
                            n_rows,
                            out: &mut *part,
                            place: Place {
                                row: g.k,
                                panel: LANES,
                                n_columns: g.k,
                                is_added: at > 0,
                            },
                        }
                        .run();
                    });
                }
            });
        let sums = totals(parts, depth * g.k);
        for (k, kernel) in sink.values.chunks_exact_mut(depth).enumerate() {
            for at in 0..depth {
                let (to, sum) = (&mut kernel[in_kernel(g, at)], sums[at * g.k + k] as f32);
                *to = if sink.is_added { *to + sum } else { sum };
            }
        }
    });
}
