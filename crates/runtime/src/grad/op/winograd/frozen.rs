//! The forward pass with kernels that do not change: tiles of four by four, a block of them after the other, so that what is
//! transformed stays in the cache until it has been used. There is no gradient to flip here, and 1e-6 is exact enough.

use rayon::prelude::*;

use super::super::after::After;
use super::super::conv::Geometry;
use super::transform::{FromTiles, Given, Kernels, Size, Taken, Tiles, ToTiles};
use crate::panels::{LANES, Place, Product};
use crate::scratch::{self, Aligned};

/// Transformed inputs and outputs of a block, in numbers.
const BLOCK: usize = 1 << 18;

/// Transformed kernels may lie outside the cache, and are to be used for so many tiles at least.
const TILES: usize = 56;

/// A convolution whose kernels are transformed.
#[derive(Debug)]
pub(in crate::grad::op) struct Frozen {
    g: Geometry,
    /// `[points, panels over k, c, 16]`
    kernels: Aligned,
}

impl Frozen {
    /// `weights` is `[k, c, 3, 3]`.
    pub(in crate::grad::op) fn new(g: &Geometry, weights: &[f32]) -> Frozen {
        let arch = pulp::Arch::new();
        let points = Tiles::new(g, 1, Size::Four).points;
        let per_panel = g.c * LANES;
        let mut packed = Aligned::default();
        let kernels = packed.of(Frozen::kernels_len(g));
        scratch::with(points * per_panel, |panel_kernels| {
            for panel in 0..g.k / LANES {
                arch.dispatch(Kernels {
                    weights: &weights[panel * LANES * g.c * 9..],
                    lane: g.c * 9,
                    row: 9,
                    depth: g.c,
                    size: Size::Four,
                    to: panel_kernels,
                });
                for (point, from) in panel_kernels.chunks_exact(per_panel).enumerate() {
                    kernels[point * g.c * g.k + panel * per_panel..][..per_panel].copy_from_slice(from);
                }
            }
        });
        Frozen {
            g: *g,
            kernels: packed,
        }
    }

    /// Multiplications for one picture, transforms left aside.
    pub(in crate::grad::op) fn cost(g: &Geometry) -> usize {
        let tiles = Tiles::new(g, 1, Size::Four);
        tiles.n * tiles.points * g.c * g.k
    }

    pub(in crate::grad::op) fn n_channels(&self) -> usize {
        self.g.k
    }

    pub(in crate::grad::op) fn n_weights(&self) -> usize {
        Frozen::kernels_len(&self.g)
    }

    fn kernels_len(g: &Geometry) -> usize {
        Tiles::new(g, 1, Size::Four).points * g.c * g.k
    }

    /// Pictures `[n, h, w, c]` to `[n, oh, ow, k]`.
    pub(in crate::grad::op) fn forward(&self, x: &[f32], after: After<'_>, out: &mut [f32]) {
        let g = &self.g;
        let whole = Tiles::new(g, 1, Size::Four);
        let at_once = (BLOCK / (whole.points * (g.c + g.k))).max(TILES);
        let n_pictures = (at_once / whole.n).max(1);
        let pictures = out
            .par_chunks_mut(n_pictures * g.out_len())
            .zip(x.par_chunks(n_pictures * g.in_len()));
        pictures.enumerate().for_each(|(idx, (out, x))| {
            let after = after.from(idx * n_pictures * g.out_len());
            let rows = (at_once / whole.columns).clamp(1, whole.rows);
            // Of several pictures all rows, of one as many as a block takes.
            let len = if n_pictures > 1 {
                out.len()
            } else {
                rows * whole.step * g.ow * g.k
            };
            out.par_chunks_mut(len).enumerate().for_each(|(idx, out)| {
                let rows = if n_pictures > 1 { whole.rows } else { rows };
                let first_row = idx * rows;
                let rows = rows.min(whole.rows - first_row);
                let tiles = Tiles {
                    first_row,
                    rows,
                    n: x.len() / g.in_len() * rows * whole.columns,
                    ..whole
                };
                self.block(tiles, x, after.from(idx * len), out);
            });
        });
    }

    /// Some rows of tiles of some pictures.
    fn block(&self, tiles: Tiles, x: &[f32], after: After<'_>, out: &mut [f32]) {
        let (g, arch) = (&self.g, pulp::Arch::new());
        let [v_len, m_len] = [g.c, g.k].map(|channels| tiles.points * tiles.n * channels);
        scratch::with(v_len + m_len, |room| {
            let (v, m) = room.split_at_mut(v_len);
            arch.dispatch(ToTiles {
                from: x,
                size: [g.h, g.w],
                channels: g.c,
                panels: 0..g.c / LANES,
                tiles,
                what: Taken::Inputs(Size::Four, g.pad),
                to: v,
            });
            let (per_panel, kernels) = (tiles.n * LANES, self.kernels.get(self.n_weights()));
            for (point, m) in m.chunks_exact_mut(tiles.n * g.k).enumerate() {
                Product {
                    a: &v[point * per_panel..],
                    a_row: LANES,
                    a_panel: tiles.points * per_panel,
                    n_rows: tiles.n,
                    depth: g.c,
                    b: &kernels[point * g.c * g.k..][..g.c * g.k],
                    b_panel: g.c * LANES,
                    out: m,
                    place: Place {
                        row: LANES,
                        panel: per_panel,
                        n_columns: g.k,
                        is_added: false,
                    },
                }
                .run();
            }
            let height = (tiles.rows * tiles.step).min(g.oh - tiles.first_row * tiles.step);
            let len = height * g.ow * g.k;
            for (picture, to) in out.chunks_exact_mut(len).enumerate() {
                arch.dispatch(FromTiles {
                    from: m,
                    first: picture * tiles.per_image(),
                    tiles,
                    size: [height, g.ow],
                    channels: g.k,
                    what: Given::Outputs(Size::Four, after.from(picture * len)),
                    to,
                });
            }
        });
    }
}
