//! Convolutions of two axes, channels innermost.

use std::ops::Range;

use rayon::prelude::*;

use super::after::After;
use super::linear::column_sums;
use super::{Backward, Kept, Op, Part, Run, Sink, alone, depthwise, narrow, winograd};
use crate::panels::{LANES, Outer, Place, Product, pack, panels_len};
use crate::scratch;

/// Sizes of a convolution for one sample; its input is `[h, w, c]`, its output `[oh, ow, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grad) struct Geometry {
    pub(in crate::grad) h: usize,
    pub(in crate::grad) w: usize,
    pub(in crate::grad) c: usize,
    pub(in crate::grad) oh: usize,
    pub(in crate::grad) ow: usize,
    pub(in crate::grad) k: usize,
    pub(in crate::grad) kernel: [usize; 2],
    pub(in crate::grad) stride: [usize; 2],
    pub(in crate::grad) dilation: [usize; 2],
    /// Above and to the left; what is missing below and to the right follows from the output's size.
    pub(in crate::grad) pad: [usize; 2],
    pub(in crate::grad) groups: usize,
}

impl Geometry {
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels of a group.
    pub(super) fn group_c(&self) -> usize {
        self.c / self.groups
    }

    /// Output channels of a group.
    pub(super) fn group_k(&self) -> usize {
        self.k / self.groups
    }

    /// The input pixel under a tap of an output pixel; none in the padding.
    #[inline(always)]
    pub(super) fn under(&self, oy: usize, ox: usize, tap: usize) -> Option<usize> {
        let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
        let y = (oy * self.stride[0] + ky * self.dilation[0]).checked_sub(self.pad[0])?;
        let x = (ox * self.stride[1] + kx * self.dilation[1]).checked_sub(self.pad[1])?;
        (y < self.h && x < self.w).then_some(y * self.w + x)
    }

    pub(super) fn in_len(&self) -> usize {
        self.h * self.w * self.c
    }

    pub(super) fn out_len(&self) -> usize {
        self.oh * self.ow * self.k
    }
}

/// A convolution; inputs are `x`, the kernel `[k, c / groups, kh, kw]` and, where there is one, the bias.
#[derive(Debug)]
pub(in crate::grad) struct Conv {
    pub(super) geometry: Geometry,
    pub(super) way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One product with all that the taps see.
    Columns,
    /// The same for few input channels.
    Narrow,
    /// Tap by tap, a channel by itself.
    Depthwise,
    /// Tiles of outputs, through fewer and smaller products.
    Winograd,
}

impl Conv {
    pub(in crate::grad) fn new(geometry: Geometry) -> Conv {
        let is_square = geometry.kernel == [3, 3]
            && geometry.stride == [1, 1]
            && geometry.dilation == [1, 1]
            && geometry.groups == 1;
        let way = if geometry.group_c() == 1 && geometry.group_k() == 1 {
            Way::Depthwise
        } else if is_square && winograd::pays(&geometry) {
            Way::Winograd
        } else if narrow::fits(&geometry) {
            Way::Narrow
        } else {
            Way::Columns
        };
        Conv { geometry, way }
    }
}

impl Op for Conv {
    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept) {
        let g = &self.geometry;
        let [x, weights] = [inputs[0], inputs[1]];
        let after = After::bias(inputs.get(2).copied());
        match self.way {
            Way::Winograd => winograd::forward(g, run.n, [x, weights], after, out, kept),
            Way::Depthwise => {
                depthwise::forward(g, x, weights, out, kept);
                out.par_chunks_mut(g.out_len())
                    .for_each(|rows| after.finish(rows, g.k));
            }
            Way::Narrow => {
                let [panels] = kept.arrays([narrow::kernels_len(g)]);
                narrow::pack_kernels(g, weights, panels);
                narrow::forward(g, x, panels, after, out);
            }
            Way::Columns => {
                let [panels] = kept.arrays([kernels_len(g)]);
                pack_kernels(g, weights, panels);
                forward(g, x, panels, after, out);
            }
        }
    }

    fn part(&self) -> Part<'_> {
        Part::Conv(self)
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept) {
        let g = &self.geometry;
        let [x, weights] = [pass.inputs[0], pass.inputs[1]];
        let [to_x, to_weights, rest @ ..] = sinks else {
            unreachable!("a convolution has two inputs")
        };
        match self.way {
            Way::Winograd => winograd::backward(g, run.n, [x, weights, pass.d_out], to_x, to_weights, kept),
            Way::Depthwise => {
                if let Some(sink) = to_x {
                    depthwise::backward_input(g, weights, pass.d_out, sink, kept);
                }
                if let Some(sink) = to_weights {
                    depthwise::backward_weights(g, x, pass.d_out, sink);
                }
            }
            Way::Narrow => {
                if let Some(sink) = to_x {
                    narrow::backward_input(g, weights, pass.d_out, sink, kept);
                }
                if let Some(sink) = to_weights {
                    narrow::backward_weights(g, x, pass.d_out, sink);
                }
            }
            Way::Columns => {
                if let Some(sink) = to_x {
                    backward_input(g, weights, pass.d_out, sink, kept);
                }
                if let Some(sink) = to_weights {
                    backward_weights(g, x, pass.d_out, sink);
                }
            }
        }
        if let [Some(sink)] = rest {
            column_sums(pass.d_out, g.k, sink);
        }
    }
}

/// Output rows of an image that one task takes: what its taps see is to stay in the cache.
pub(super) fn rows_at_once(g: &Geometry) -> usize {
    let row = g.ow * g.taps() * g.group_c();
    ((1 << 18) / row.max(1)).clamp(1, g.oh)
}

/// What one tap sees of `LANES` channels from `channel` on, for output pixels of some rows: a panel.
fn gather(g: &Geometry, image: &[f32], rows: Range<usize>, tap: usize, channel: usize, out: &mut [f32]) {
    let width = (g.group_c() - channel % g.group_c()).min(LANES);
    let mut out = out.as_chunks_mut::<LANES>().0.iter_mut();
    for oy in rows {
        for ox in 0..g.ow {
            let out = out.next().expect("a row of the panel per output pixel");
            match g.under(oy, ox, tap) {
                None => *out = [0.0; LANES],
                Some(pixel) => {
                    let from = &image[pixel * g.c + channel..][..width];
                    match <&[f32; LANES]>::try_from(from) {
                        Ok(from) => *out = *from,
                        Err(_) => {
                            out[..width].copy_from_slice(from);
                            out[width..].fill(0.0);
                        }
                    }
                }
            }
        }
    }
}

/// Numbers of a group's kernels in panels.
fn group_len(g: &Geometry) -> usize {
    panels_len(depth(g), g.group_k())
}

/// What the taps of an output see of a group, channels filled up to whole panels.
fn depth(g: &Geometry) -> usize {
    g.taps() * g.group_c().next_multiple_of(LANES)
}

/// Numbers of all kernels in panels.
pub(super) fn kernels_len(g: &Geometry) -> usize {
    g.groups * group_len(g)
}

/// Kernels in panels over the outputs; rows are taps, and the channels under each.
pub(super) fn pack_kernels(g: &Geometry, weights: &[f32], panels: &mut [f32]) {
    let (group_c, group_k, taps) = (g.group_c(), g.group_k(), g.taps());
    let depth = depth(g);
    panels
        .par_chunks_mut(depth * LANES)
        .with_min_len(alone(depth * LANES))
        .enumerate()
        .for_each(|(panel, out)| {
            out.fill(0.0);
            let per_group = group_k.div_ceil(LANES);
            let first = panel % per_group * LANES;
            for lane in 0..(group_k - first).min(LANES) {
                let kernel = &weights[(panel / per_group * group_k + first + lane) * group_c * taps..];
                for c in 0..group_c {
                    for tap in 0..taps {
                        out[(tap * (depth / taps) + c) * LANES + lane] = kernel[c * taps + tap];
                    }
                }
            }
        });
}

/// Pictures `[n, h, w, c]` and kernels as [`pack_kernels`] makes them to `[n, oh, ow, k]`.
pub(super) fn forward(g: &Geometry, x: &[f32], kernels: &[f32], after: After<'_>, out: &mut [f32]) {
    let (group_c, group_k) = (g.group_c(), g.group_k());
    let (depth, group_len) = (depth(g), group_len(g));
    let n_panels = depth / g.taps() / LANES;
    each_part(g, x, after, out, |image, rows, out| {
        let n_rows = rows.len() * g.ow;
        scratch::with(n_rows * depth, |seen| {
            for group in 0..g.groups {
                for (panel, seen) in seen.chunks_exact_mut(n_rows * LANES).enumerate() {
                    let channel = group * group_c + panel % n_panels * LANES;
                    gather(g, image, rows.clone(), panel / n_panels, channel, seen);
                }
                Product {
                    a: seen,
                    a_row: LANES,
                    a_panel: n_rows * LANES,
                    n_rows,
                    depth,
                    b: &kernels[group * group_len..][..group_len],
                    b_panel: depth * LANES,
                    out: &mut out[group * group_k..],
                    place: Place {
                        row: g.k,
                        panel: LANES,
                        n_columns: group_k,
                        is_added: false,
                    },
                }
                .run();
            }
        });
    });
}

/// Computes all outputs, some rows of an image at a time, on all threads: `of_rows` writes the rows of a range, of an image
/// `[C, H, W]` with channels last, into `[rows, ow, k]`; then comes what is done with outputs while they are near.
pub(super) fn each_part(
    g: &Geometry,
    x: &[f32],
    after: After<'_>,
    out: &mut [f32],
    of_rows: impl Fn(&[f32], Range<usize>, &mut [f32]) + Sync,
) {
    let step = rows_at_once(g);
    let images = out.par_chunks_mut(g.out_len()).zip(x.par_chunks(g.in_len()));
    images.enumerate().for_each(|(image_idx, (out, image))| {
        let after = after.from(image_idx * g.out_len());
        let len = step * g.ow * g.k;
        out.par_chunks_mut(len).enumerate().for_each(|(idx, out)| {
            of_rows(image, idx * step..((idx + 1) * step).min(g.oh), &mut *out);
            after.from(idx * len).finish(out, g.k);
        });
    });
}

fn backward_input(g: &Geometry, weights: &[f32], d_out: &[f32], sink: &mut Sink<'_>, kept: &mut Kept) {
    let (group_c, group_k, taps) = (g.group_c(), g.group_k(), g.taps());
    let n_panels = group_c.div_ceil(LANES);
    let depth = group_k.next_multiple_of(LANES);
    let group_len = taps * n_panels * depth * LANES;
    let [_, panels] = kept.arrays([0, g.groups * group_len]);
    // Panels over taps and the channels under each; rows are outputs.
    panels
        .par_chunks_mut(depth * LANES)
        .with_min_len(alone(depth * LANES))
        .enumerate()
        .for_each(|(panel, out)| {
            out.fill(0.0);
            let (group, tap) = (panel / (taps * n_panels), panel / n_panels % taps);
            let first = panel % n_panels * LANES;
            let width = (group_c - first).min(LANES);
            for (k, out) in out.as_chunks_mut::<LANES>().0[..group_k].iter_mut().enumerate() {
                let kernel = &weights[((group * group_k + k) * group_c + first) * taps + tap..];
                for (out, value) in out[..width].iter_mut().zip(kernel.iter().step_by(taps)) {
                    *out = *value;
                }
            }
        });
    let panels = &*panels;
    sink.zero();
    let step = rows_at_once(g);
    let images = sink
        .values
        .par_chunks_mut(g.in_len())
        .zip(d_out.par_chunks(g.out_len()));
    images.for_each(|(image, d_out)| {
        for start in (0..g.oh).step_by(step) {
            let rows = start..(start + step).min(g.oh);
            let n_rows = rows.len() * g.ow;
            let columns = taps * n_panels * LANES;
            scratch::with(n_rows * (depth + columns), |room| {
                let (a, out) = room.split_at_mut(n_rows * depth);
                for group in 0..g.groups {
                    let d_out = &d_out[rows.start * g.ow * g.k + group * group_k..];
                    pack(d_out, g.k, n_rows, group_k, a);
                    Product {
                        a,
                        a_row: LANES,
                        a_panel: n_rows * LANES,
                        n_rows,
                        depth,
                        b: &panels[group * group_len..][..group_len],
                        b_panel: depth * LANES,
                        out,
                        place: Place {
                            row: LANES,
                            panel: n_rows * LANES,
                            n_columns: columns,
                            is_added: false,
                        },
                    }
                    .run();
                    for (panel, seen) in out.chunks_exact(n_rows * LANES).enumerate() {
                        let channel = group * group_c + panel % n_panels * LANES;
                        scatter(g, seen, rows.clone(), panel / n_panels, channel, image);
                    }
                }
            });
        }
    });
}

/// The adjoint of [`gather`].
fn scatter(g: &Geometry, panel: &[f32], rows: Range<usize>, tap: usize, channel: usize, image: &mut [f32]) {
    let width = (g.group_c() - channel % g.group_c()).min(LANES);
    let mut seen = panel.as_chunks::<LANES>().0.iter();
    for oy in rows {
        for ox in 0..g.ow {
            let seen = seen.next().expect("a row of the panel per output pixel");
            if let Some(pixel) = g.under(oy, ox, tap) {
                let image = &mut image[pixel * g.c + channel..][..width];
                for (image, value) in image.iter_mut().zip(seen) {
                    *image += value;
                }
            }
        }
    }
}

fn backward_weights(g: &Geometry, x: &[f32], d_out: &[f32], sink: &mut Sink<'_>) {
    let (group_c, group_k, taps) = (g.group_c(), g.group_k(), g.taps());
    let n_panels = group_c.div_ceil(LANES);
    let pixels = g.oh * g.ow;
    let n_rows = d_out.len() / g.k;
    for group in 0..g.groups {
        let (d_len, out_len) = (panels_len(n_rows, group_k), taps * n_panels * LANES * group_k);
        scratch::with(d_len + out_len, |room| {
            let (d_panels, out) = room.split_at_mut(d_len);
            d_panels
                .par_chunks_mut(n_rows * LANES)
                .enumerate()
                .for_each(|(panel, out)| {
                    let width = (group_k - panel * LANES).min(LANES);
                    pack(&d_out[group * group_k + panel * LANES..], g.k, n_rows, width, out);
                });
            let d_panels = &*d_panels;
            // `[tap, c, k]`: a task takes a few panels of what a tap sees, image by image.
            let at_once = if n_panels.is_multiple_of(4) { 4 } else { 1 };
            let tasks = out.par_chunks_mut(at_once * LANES * group_k).enumerate();
            tasks.for_each(|(task, out)| {
                let n_columns = out.len() / group_k;
                scratch::with(pixels * n_columns, |seen| {
                    for (image_idx, image) in x.chunks_exact(g.in_len()).enumerate() {
                        for (i, seen) in seen.chunks_exact_mut(pixels * LANES).enumerate() {
                            let panel = task * at_once + i;
                            let first = panel % n_panels * LANES;
                            gather(g, image, 0..g.oh, panel / n_panels, group * group_c + first, seen);
                        }
                        Outer {
                            a: seen,
                            a_row: LANES,
                            a_panel: pixels * LANES,
                            n_a: n_columns,
                            b: &d_panels[image_idx * pixels * LANES..],
                            b_panel: n_rows * LANES,
                            n_rows: pixels,
                            out,
                            place: Place {
                                row: group_k,
                                panel: LANES,
                                n_columns: group_k,
                                is_added: image_idx > 0,
                            },
                        }
                        .run();
                    }
                });
            });
            let out = &*out;
            let is_added = sink.is_added;
            let kernels = sink.values[group * group_k * group_c * taps..][..group_k * group_c * taps]
                .par_chunks_mut(group_c * taps)
                .enumerate();
            kernels.for_each(|(k, kernel)| {
                for (at, to) in kernel.iter_mut().enumerate() {
                    let (c, tap) = (at / taps, at % taps);
                    let value = out[(tap * n_panels * LANES + c) * group_k + k];
                    *to = if is_added { *to + value } else { value };
                }
            });
        });
    }
}
