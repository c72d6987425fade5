//! Convolutions of three by three taps by tiles of outputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks", 2015): forward by tiles of two by two in sixteen products of channels instead of thirty-six, back by tiles of
//! four by four in thirty-six instead of a hundred and forty-four.
//!
//! Forward the rounding must be as small as that of a plain sum (it is smaller): an activation that changes its sign by
//! rounding changes a gradient by far more than rounding. Back, where there is nothing to flip, 1e-6 is exact enough; there
//! the points of interpolation are 0, ±√½, ±√2 and infinity, which round less than 0, ±1, ±2 and infinity, and the passes
//! are the adjoints of the forward transforms, so that the derivatives by input and kernel share one of them.

mod frozen;
mod transform;

use rayon::prelude::*;

pub(super) use self::frozen::Frozen;
use self::transform::{FromKernels, FromTiles, Given, Kernels, Size, Taken, Tiles, ToTiles};
use super::after::After;
use super::conv::Geometry;
use super::{Kept, Sink};
use crate::panels::{LANES, Outer, Place, Product};

/// Whether a convolution of three by three taps is cheaper this way.
pub(super) fn pays(g: &Geometry) -> bool {
    let tiles = Tiles::new(g, 1, Size::Four).n;
    let is_whole = g.c.is_multiple_of(LANES) && g.k.is_multiple_of(LANES);
    is_whole && g.c >= 2 * LANES && g.k >= 2 * LANES && tiles * 36 * 4 < g.oh * g.ow * 9 * 3
}

/// Panels that one product takes, of `n`: a part of them, so that there are enough tasks.
fn at_once(n: usize) -> usize {
    [4, 2]
        .into_iter()
        .find(|at_once| n.is_multiple_of(*at_once))
        .unwrap_or(1)
}

/// Panels of channels `[panels, points, tiles, 16]` of pictures.
fn to_tiles(from: &[f32], size: [usize; 2], channels: usize, tiles: Tiles, what: Taken, to: &mut [f32]) {
    let arch = pulp::Arch::new();
    let panels = to.par_chunks_mut(tiles.points * tiles.n * LANES).enumerate();
    panels.for_each(|(panel, to)| {
        arch.dispatch(ToTiles {
            from,
            size,
            channels,
            panels: panel..panel + 1,
            tiles,
            what,
            to,
        });
    });
}

/// For each point `out[p, k] = Σ a[p, c] · b[c, k]`: `a` is `[panels over c, points, tiles, 16]`, `b` is
/// `[panels over k, points, depth, 16]`, `out` becomes `[points, panels over k, tiles, 16]`.
fn multiply(a: &[f32], b: &[f32], depth: usize, tiles: Tiles, out: &mut [f32]) {
    let per_panel = tiles.n * LANES;
    let n_panels = out.len() / (tiles.points * per_panel);
    let at_once = at_once(n_panels);
    let tasks = out.par_chunks_mut(at_once * per_panel).enumerate();
    tasks.for_each(|(task, out)| {
        let (point, panel) = (task * at_once / n_panels, task * at_once % n_panels);
        Product {
            a: &a[point * per_panel..],
            a_row: LANES,
            a_panel: tiles.points * per_panel,
            n_rows: tiles.n,
            depth,
            b: &b[(panel * tiles.points + point) * depth * LANES..],
            b_panel: tiles.points * depth * LANES,
            out,
            place: Place {
                row: LANES,
                panel: per_panel,
                n_columns: at_once * LANES,
                is_added: false,
            },
        }
        .run();
    });
}

pub(super) fn forward(
    g: &Geometry,
    n: usize,
    [x, weights]: [&[f32]; 2],
    after: After<'_>,
    out: &mut [f32],
    kept: &mut Kept,
) {
    let arch = pulp::Arch::new();
    let tiles = Tiles::new(g, n, Size::Two);
    let [v_len, u_len, y_len] = [tiles.n * g.c, g.c * g.k, tiles.n * g.k].map(|len| tiles.points * len);
    let (v, rest) = kept.room(v_len + u_len + y_len).split_at_mut(v_len);
    let (u, y) = rest.split_at_mut(u_len);
    to_tiles(x, [g.h, g.w], g.c, tiles, Taken::Inputs(Size::Two, g.pad), v);
    u.par_chunks_mut(tiles.points * g.c * LANES)
        .enumerate()
        .for_each(|(panel, to)| {
            arch.dispatch(Kernels {
                weights: &weights[panel * LANES * g.c * 9..],
                lane: g.c * 9,
                row: 9,
                depth: g.c,
                size: Size::Two,
                to,
            });
        });
    multiply(v, u, g.c, tiles, y);
    let y = &*y;
    out.par_chunks_mut(g.out_len())
        .enumerate()
        .for_each(|(image, to)| {
            arch.dispatch(FromTiles {
                from: y,
                first: image * tiles.per_image(),
                tiles,
                size: [g.oh, g.ow],
                channels: g.k,
                what: Given::Outputs(Size::Two, after.from(image * g.out_len())),
                to,
            });
        });
}

pub(super) fn backward(
    g: &Geometry,
    n: usize,
    [x, weights, d_out]: [&[f32]; 3],
    to_x: &mut Option<Sink<'_>>,
    to_weights: &mut Option<Sink<'_>>,
    kept: &mut Kept,
) {
    let arch = pulp::Arch::new();
    let tiles = Tiles::new(g, n, Size::Four);
    let points = tiles.points;
    let [m_len, u_len, v_len] = [tiles.n * g.k, g.c * g.k, tiles.n * g.c].map(|len| points * len);
    let (m, rest) = kept.room(m_len + u_len + v_len).split_at_mut(m_len);
    let (u, v) = rest.split_at_mut(u_len);
    to_tiles(d_out, [g.oh, g.ow], g.k, tiles, Taken::Outputs, m);
    let m = &*m;
    if let Some(sink) = to_weights {
        to_tiles(x, [g.h, g.w], g.c, tiles, Taken::Inputs(Size::Four, g.pad), v);
        let (v, per_panel) = (&*v, tiles.n * LANES);
        // `[36, k, c]`
        let at_once = at_once(g.k / LANES) * LANES;
        u.par_chunks_mut(at_once * g.c)
            .enumerate()
            .for_each(|(task, out)| {
                let (point, panel) = (task * at_once / g.k, task * at_once % g.k / LANES);
                Outer {
                    a: &m[(panel * points + point) * per_panel..],
                    a_row: LANES,
                    a_panel: points * per_panel,
                    n_a: at_once,
                    b: &v[point * per_panel..],
                    b_panel: points * per_panel,
                    n_rows: tiles.n,
                    out,
                    place: Place {
                        row: g.c,
                        panel: LANES,
                        n_columns: g.c,
                        is_added: false,
                    },
                }
                .run();
            });
        let u = &*u;
        let is_added = sink.is_added;
        let kernels = sink.values.par_chunks_mut(g.c * 9).enumerate();
        kernels.for_each(|(k, to)| {
            arch.dispatch(FromKernels {
                from: u,
                k,
                n_outputs: g.k,
                to,
                is_added,
            });
        });
    }
    if let Some(sink) = to_x {
        u.par_chunks_mut(points * g.k * LANES)
            .enumerate()
            .for_each(|(panel, to)| {
                arch.dispatch(Kernels {
                    weights: &weights[panel * LANES * 9..],
                    lane: 9,
                    row: g.c * 9,
                    depth: g.k,
                    size: Size::Four,
                    to,
                });
            });
        multiply(m, u, g.k, tiles, v);
        let z = &*v;
        sink.zero();
        let images = sink.values.par_chunks_mut(g.in_len()).enumerate();
        images.for_each(|(image, to)| {
            arch.dispatch(FromTiles {
                from: z,
                first: image * tiles.per_image(),
                tiles,
                size: [g.h, g.w],
                channels: g.c,
                what: Given::Inputs(g.pad),
                to,
            });
        });
    }
}
