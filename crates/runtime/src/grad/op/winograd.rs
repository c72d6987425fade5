//! Convolutions of three by three taps by tiles of outputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks", 2015): forward by tiles of two by two in sixteen products of channels instead of thirty-six, back by tiles of
//! four by four in thirty-six instead of a hundred and forty-four.
//!
//! Forward the rounding must be as small as that of a plain sum (it is smaller): an activation that changes its sign by
//! rounding changes a gradient by far more than rounding. Back, where there is nothing to flip, 1e-6 is exact enough; there
//! the points of interpolation are 0, ±√½, ±√2 and infinity, which round less than 0, ±1, ±2 and infinity, and the passes
//! are the adjoints of the forward transforms, so that the derivatives by input and kernel share one of them.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::Geometry;
use super::{Kept, Sink};
use crate::panels::{LANES, Outer, Place, Product};

/// The points that are not 0 or infinity are ±A and ±B; squares are exact.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const A2: f32 = 0.5;
const B2: f32 = 2.0;
const SUM: f32 = A2 + B2;
/// `1 / (2·A²·(A² - B²))` and the same with the letters changed.
const FA: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const FB: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// Whether a convolution of three by three taps is cheaper this way.
pub(super) fn pays(g: &Geometry) -> bool {
    let tiles = Tiles::new(g, 1, Size::Four).n;
    let is_whole = g.c.is_multiple_of(LANES) && g.k.is_multiple_of(LANES);
    is_whole && g.c >= 2 * LANES && g.k >= 2 * LANES && tiles * 36 * 4 < g.oh * g.ow * 9 * 3
}

/// Outputs of a tile along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Two,
    Four,
}

/// How outputs are dealt out to tiles.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    /// Of all samples.
    n: usize,
    /// Outputs of a tile along an axis.
    step: usize,
    /// Products.
    points: usize,
}

impl Tiles {
    fn new(g: &Geometry, n: usize, size: Size) -> Tiles {
        let step = match size {
            Size::Two => 2,
            Size::Four => 4,
        };
        let (rows, columns) = (g.oh.div_ceil(step), g.ow.div_ceil(step));
        Tiles {
            rows,
            columns,
            n: n * rows * columns,
            step,
            points: (step + 2) * (step + 2),
        }
    }

    fn per_image(&self) -> usize {
        self.rows * self.columns
    }
}

/// Vector arithmetic with constants, for the transforms.
#[derive(Clone, Copy)]
struct Math<S: Simd>(S);

/// A transform along one axis. A type and not a closure: a closure is not compiled for the vectors that it is used with.
trait Transform<const I: usize, const O: usize> {
    fn apply<S: Simd>(math: Math<S>, from: [S::f32s; I]) -> [S::f32s; O];
}

/// `Bᵀd` for tiles of two.
struct InputOfTwo;
/// `Aᵀm` for tiles of two.
struct OutputOfTwo;
/// `Gg` for tiles of two.
struct KernelOfTwo;
/// `Bᵀd`; A²·B² is one.
struct Input;
/// `Bz`
struct InputAdjoint;
/// `Ay`
struct OutputAdjoint;
/// `Gg`
struct Kernel;
/// `Gᵀu`
struct KernelAdjoint;

impl Transform<4, 4> for InputOfTwo {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, d: [S::f32s; 4]) -> [S::f32s; 4] {
        [
            math.sub(d[0], d[2]),
            math.add(d[1], d[2]),
            math.sub(d[2], d[1]),
            math.sub(d[3], d[1]),
        ]
    }
}

impl Transform<4, 2> for OutputOfTwo {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, m: [S::f32s; 4]) -> [S::f32s; 2] {
        [
            math.add(m[0], math.add(m[1], m[2])),
            math.add(math.sub(m[1], m[2]), m[3]),
        ]
    }
}

impl Transform<3, 4> for KernelOfTwo {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, g: [S::f32s; 3]) -> [S::f32s; 4] {
        let even = math.times(0.5, math.add(g[0], g[2]));
        [g[0], math.fma(0.5, g[1], even), math.fma(-0.5, g[1], even), g[2]]
    }
}

impl Transform<6, 6> for Input {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (math.fma(-B2, d[2], d[4]), math.fma(-B2, d[1], d[3]));
        let (even_b, odd_b) = (math.fma(-A2, d[2], d[4]), math.fma(-A2, d[1], d[3]));
        [
            math.fma(-SUM, d[2], math.add(d[0], d[4])),
            math.fma(A, odd_a, even_a),
            math.fma(-A, odd_a, even_a),
            math.fma(B, odd_b, even_b),
            math.fma(-B, odd_b, even_b),
            math.fma(-SUM, d[3], math.add(d[1], d[5])),
        ]
    }
}

impl Transform<6, 6> for InputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, z: [S::f32s; 6]) -> [S::f32s; 6] {
        let (sum_a, odd_a) = (math.add(z[1], z[2]), math.times(A, math.sub(z[1], z[2])));
        let (sum_b, odd_b) = (math.add(z[3], z[4]), math.times(B, math.sub(z[3], z[4])));
        [
            z[0],
            math.fma(-B2, odd_a, math.fma(-A2, odd_b, z[5])),
            math.fma(-SUM, z[0], math.fma(-B2, sum_a, math.times(-A2, sum_b))),
            math.fma(-SUM, z[5], math.add(odd_a, odd_b)),
            math.add(z[0], math.add(sum_a, sum_b)),
            z[5],
        ]
    }
}

impl Transform<4, 6> for OutputAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (math.fma(A2, y[2], y[0]), math.fma(A2, y[3], y[1]));
        let (even_b, odd_b) = (math.fma(B2, y[2], y[0]), math.fma(B2, y[3], y[1]));
        [
            y[0],
            math.fma(A, odd_a, even_a),
            math.fma(-A, odd_a, even_a),
            math.fma(B, odd_b, even_b),
            math.fma(-B, odd_b, even_b),
            y[3],
        ]
    }
}

impl Transform<3, 6> for Kernel {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (math.times(FA, math.fma(A2, g[2], g[0])), math.times(FA * A, g[1]));
        let (even_b, odd_b) = (math.times(FB, math.fma(B2, g[2], g[0])), math.times(FB * B, g[1]));
        [
            g[0],
            math.add(even_a, odd_a),
            math.sub(even_a, odd_a),
            math.add(even_b, odd_b),
            math.sub(even_b, odd_b),
            g[2],
        ]
    }
}

impl Transform<6, 3> for KernelAdjoint {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, u: [S::f32s; 6]) -> [S::f32s; 3] {
        let (sum_a, odd_a) = (math.times(FA, math.add(u[1], u[2])), math.sub(u[1], u[2]));
        let (sum_b, odd_b) = (math.times(FB, math.add(u[3], u[4])), math.sub(u[3], u[4]));
        [
            math.add(u[0], math.add(sum_a, sum_b)),
            math.fma(FA * A, odd_a, math.times(FB * B, odd_b)),
            math.fma(A2, sum_a, math.fma(B2, sum_b, u[5])),
        ]
    }
}

impl<S: Simd> Math<S> {
    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }
    #[inline(always)]
    fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.sub_f32s(a, b)
    }
    #[inline(always)]
    fn times(self, factor: f32, a: S::f32s) -> S::f32s {
        self.0.mul_f32s(self.0.splat_f32s(factor), a)
    }
    /// `factor·a + b`
    #[inline(always)]
    fn fma(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_add_f32s(self.0.splat_f32s(factor), a, b)
    }

    /// A transform of the rows of a matrix, then of its columns.
    #[inline(always)]
    fn both<T: Transform<I, O>, const I: usize, const O: usize>(
        self,
        from: [[S::f32s; I]; I],
    ) -> [[S::f32s; O]; O] {
        let zero = self.0.splat_f32s(0.0);
        let mut half = [[zero; I]; O];
        for i in 0..I {
            let row = T::apply(self, from[i]);
            for o in 0..O {
                half[o][i] = row[o];
            }
        }
        let mut out = [[zero; O]; O];
        for o in 0..O {
            let column = T::apply(self, half[o]);
            for i in 0..O {
                out[i][o] = column[i];
            }
        }
        out
    }
}

/// The vector that begins at `at`.
#[inline(always)]
fn load<S: Simd>(from: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&from[at..][..S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(to: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[at..][..S::F32_LANES]).0[0] = value;
}

/// What goes into tiles.
#[derive(Debug, Clone, Copy)]
enum Taken {
    /// Inputs, which overlap.
    Inputs(Size, [usize; 2]),
    /// Derivatives by outputs.
    Outputs,
}

/// Tiles of `[n, h, w, channels]` around the pixels of a panel, transformed: `to` is `[points, tiles, 16]`.
struct ToTiles<'a> {
    from: &'a [f32],
    size: [usize; 2],
    channels: usize,
    panel: usize,
    tiles: Tiles,
    what: Taken,
    to: &'a mut [f32],
}

impl WithSimd for ToTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.what {
            Taken::Inputs(Size::Two, pad) => self.run::<S, InputOfTwo, 4, 4>(simd, pad),
            Taken::Inputs(Size::Four, pad) => self.run::<S, Input, 6, 6>(simd, pad),
            Taken::Outputs => self.run::<S, OutputAdjoint, 4, 6>(simd, [0, 0]),
        }
    }
}

impl ToTiles<'_> {
    #[inline(always)]
    fn run<S: Simd, T: Transform<I, O>, const I: usize, const O: usize>(self, simd: S, pad: [usize; 2]) {
        let ([h, w], step) = (self.size, self.tiles.step);
        let zero = simd.splat_f32s(0.0);
        let per_point = self.tiles.n * LANES;
        for tile_idx in 0..self.tiles.n {
            let (image, at) = (
                tile_idx / self.tiles.per_image(),
                tile_idx % self.tiles.per_image(),
            );
            let image = &self.from[image * h * w * self.channels..][..h * w * self.channels];
            let (top, left) = (at / self.tiles.columns * step, at % self.tiles.columns * step);
            for lane in (0..LANES).step_by(S::F32_LANES) {
                let mut tile = [[zero; I]; I];
                for (i, row) in tile.iter_mut().enumerate() {
                    let y = (top + i).wrapping_sub(pad[0]);
                    if y >= h {
                        continue;
                    }
                    for (j, to) in row.iter_mut().enumerate() {
                        let x = (left + j).wrapping_sub(pad[1]);
                        if x < w {
                            *to = load::<S>(image, (y * w + x) * self.channels + self.panel * LANES + lane);
                        }
                    }
                }
                let points = Math(simd).both::<T, I, O>(tile);
                for (point, value) in points.as_flattened().iter().enumerate() {
                    store::<S>(self.to, point * per_point + tile_idx * LANES + lane, *value);
                }
            }
        }
    }
}

/// What comes out of tiles.
#[derive(Debug, Clone, Copy)]
enum Given {
    /// Outputs.
    Outputs,
    /// Derivatives by inputs, which are added to what is there.
    Inputs([usize; 2]),
}

/// The other way: tiles `[points, panels, tiles, 16]` of one image, transformed and put into it.
struct FromTiles<'a> {
    from: &'a [f32],
    /// The image's first tile.
    first: usize,
    tiles: Tiles,
    size: [usize; 2],
    channels: usize,
    what: Given,
    to: &'a mut [f32],
}

impl WithSimd for FromTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.what {
            Given::Outputs => self.run::<S, OutputOfTwo, 4, 2, false>(simd, [0, 0]),
            Given::Inputs(pad) => self.run::<S, InputAdjoint, 6, 6, true>(simd, pad),
        }
    }
}

impl FromTiles<'_> {
    #[inline(always)]
    fn run<S: Simd, T: Transform<I, O>, const I: usize, const O: usize, const ADDS: bool>(
        self,
        simd: S,
        pad: [usize; 2],
    ) {
        let ([h, w], step) = (self.size, self.tiles.step);
        let per_point = self.channels * self.tiles.n;
        for panel in 0..self.channels / LANES {
            for at in 0..self.tiles.per_image() {
                let (top, left) = (at / self.tiles.columns * step, at % self.tiles.columns * step);
                for lane in (0..LANES).step_by(S::F32_LANES) {
                    let start = (panel * self.tiles.n + self.first + at) * LANES + lane;
                    let mut points = [[simd.splat_f32s(0.0); I]; I];
                    for (point, value) in points.as_flattened_mut().iter_mut().enumerate() {
                        *value = load::<S>(self.from, point * per_point + start);
                    }
                    let tile = Math(simd).both::<T, I, O>(points);
                    for (i, row) in tile.iter().enumerate() {
                        let y = (top + i).wrapping_sub(pad[0]);
                        if y >= h {
                            continue;
                        }
                        for (j, value) in row.iter().enumerate() {
                            let x = (left + j).wrapping_sub(pad[1]);
                            if x < w {
                                let at = (y * w + x) * self.channels + panel * LANES + lane;
                                let value = if ADDS {
                                    simd.add_f32s(load::<S>(self.to, at), *value)
                                } else {
                                    *value
                                };
                                store::<S>(self.to, at, value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Kernels transformed: a panel over sixteen of one axis, `[points, depth, 16]`.
struct Kernels<'a> {
    /// `[k, c, 9]`
    weights: &'a [f32],
    /// From one lane to the next, and from one row.
    lane: usize,
    row: usize,
    depth: usize,
    size: Size,
    to: &'a mut [f32],
}

impl WithSimd for Kernels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.size {
            Size::Two => self.run::<S, KernelOfTwo, 4>(simd),
            Size::Four => self.run::<S, Kernel, 6>(simd),
        }
    }
}

impl Kernels<'_> {
    #[inline(always)]
    fn run<S: Simd, T: Transform<3, O>, const O: usize>(self, simd: S) {
        for row in 0..self.depth {
            let mut taps = [[0.0f32; LANES]; 9];
            for lane in 0..LANES {
                let kernel = &self.weights[lane * self.lane + row * self.row..][..9];
                for (tap, value) in taps.iter_mut().zip(kernel) {
                    tap[lane] = *value;
                }
            }
            for lane in (0..LANES).step_by(S::F32_LANES) {
                let mut g = [[simd.splat_f32s(0.0); 3]; 3];
                for (tap, value) in g.as_flattened_mut().iter_mut().enumerate() {
                    *value = load::<S>(&taps[tap], lane);
                }
                let u = Math(simd).both::<T, 3, O>(g);
                for (point, value) in u.as_flattened().iter().enumerate() {
                    store::<S>(self.to, (point * self.depth + row) * LANES + lane, *value);
                }
            }
        }
    }
}

/// The derivative by the kernels of one output channel, `[c, 9]`, from that by the transformed ones, `[36, k, c]`.
struct FromKernels<'a> {
    from: &'a [f32],
    k: usize,
    n_outputs: usize,
    to: &'a mut [f32],
    is_added: bool,
}

impl WithSimd for FromKernels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.to.len() / 9;
        for start in (0..c).step_by(LANES) {
            let mut taps = [[0.0f32; LANES]; 9];
            for lane in (0..LANES).step_by(S::F32_LANES) {
                let mut u = [[simd.splat_f32s(0.0); 6]; 6];
                for (point, value) in u.as_flattened_mut().iter_mut().enumerate() {
                    *value = load::<S>(self.from, (point * self.n_outputs + self.k) * c + start + lane);
                }
                let g = Math(simd).both::<KernelAdjoint, 6, 3>(u);
                for (tap, value) in g.as_flattened().iter().enumerate() {
                    store::<S>(&mut taps[tap], lane, *value);
                }
            }
            for (lane, kernel) in self.to[start * 9..][..LANES * 9]
                .as_chunks_mut::<9>()
                .0
                .iter_mut()
                .enumerate()
            {
                for tap in 0..9 {
                    let value = taps[tap][lane];
                    kernel[tap] = if self.is_added { kernel[tap] + value } else { value };
                }
            }
        }
    }
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
            panel,
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

pub(super) fn forward(g: &Geometry, n: usize, x: &[f32], weights: &[f32], out: &mut [f32], kept: &mut Kept) {
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
                what: Given::Outputs,
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
