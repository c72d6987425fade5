//! Tiles of pictures, of outputs and of kernels, and their transforms.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::super::after::After;
use super::super::conv::Geometry;
use crate::panels::LANES;

/// The points that are not 0 or infinity are ±A and ±B; squares are exact.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;
const A2: f32 = 0.5;
const B2: f32 = 2.0;
const SUM: f32 = A2 + B2;
/// `1 / (2·A²·(A² - B²))` and the same with the letters changed.
const FA: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const FB: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// Outputs of a tile along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Two,
    Four,
}

/// How outputs are dealt out to tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    /// The row of tiles that these begin at in their picture.
    pub(super) first_row: usize,
    /// Of a picture.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Of all pictures.
    pub(super) n: usize,
    /// Outputs of a tile along an axis.
    pub(super) step: usize,
    /// Products.
    pub(super) points: usize,
}

impl Tiles {
    pub(super) fn new(g: &Geometry, n: usize, size: Size) -> Tiles {
        let step = match size {
            Size::Two => 2,
            Size::Four => 4,
        };
        let (rows, columns) = (g.oh.div_ceil(step), g.ow.div_ceil(step));
        Tiles {
            first_row: 0,
            rows,
            columns,
            n: n * rows * columns,
            step,
            points: (step + 2) * (step + 2),
        }
    }

    /// Of a picture.
    pub(super) fn per_image(&self) -> usize {
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
/// `Aᵀm`
struct Output;
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

impl Transform<6, 4> for Output {
    #[inline(always)]
    fn apply<S: Simd>(math: Math<S>, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let (sum_a, odd_a) = (math.add(m[1], m[2]), math.times(A, math.sub(m[1], m[2])));
        let (sum_b, odd_b) = (math.add(m[3], m[4]), math.times(B, math.sub(m[3], m[4])));
        [
            math.add(m[0], math.add(sum_a, sum_b)),
            math.add(odd_a, odd_b),
            math.fma(A2, sum_a, math.times(B2, sum_b)),
            math.fma(A2, odd_a, math.fma(B2, odd_b, m[5])),
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
pub(super) enum Taken {
    /// Inputs, which overlap.
    Inputs(Size, [usize; 2]),
    /// Derivatives by outputs.
    Outputs,
}

/// Tiles of `[n, h, w, channels]` around the pixels of some panels, transformed: `to` is `[panels, points, tiles, 16]`.
pub(super) struct ToTiles<'a> {
    pub(super) from: &'a [f32],
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    pub(super) panels: Range<usize>,
    pub(super) tiles: Tiles,
    pub(super) what: Taken,
    pub(super) to: &'a mut [f32],
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
    #[expect(
        clippy::needless_range_loop,
        reason = "rows and columns are told apart by their numbers"
    )]
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
            let top = (self.tiles.first_row + at / self.tiles.columns) * step;
            let left = at % self.tiles.columns * step;
            let is_inside =
                top >= pad[0] && top + I <= h + pad[0] && left >= pad[1] && left + I <= w + pad[1];
            for (i, panel) in self.panels.clone().enumerate() {
                let to = &mut self.to[(i * self.tiles.points * self.tiles.n + tile_idx) * LANES..];
                for lane in (0..LANES).step_by(S::F32_LANES) {
                    let channel = panel * LANES + lane;
                    let mut half = [[zero; I]; O];
                    if is_inside {
                        for i in 0..I {
                            let row = ((top + i - pad[0]) * w + left - pad[1]) * self.channels + channel;
                            let mut d = [zero; I];
                            for j in 0..I {
                                d[j] = load::<S>(image, row + j * self.channels);
                            }
                            let row = T::apply(Math(simd), d);
                            for o in 0..O {
                                half[o][i] = row[o];
                            }
                        }
                    } else {
                        for i in 0..I {
                            let y = (top + i).wrapping_sub(pad[0]);
                            let mut d = [zero; I];
                            for j in 0..I {
                                let x = (left + j).wrapping_sub(pad[1]);
                                if y < h && x < w {
                                    d[j] = load::<S>(image, (y * w + x) * self.channels + channel);
                                }
                            }
                            let row = T::apply(Math(simd), d);
                            for o in 0..O {
                                half[o][i] = row[o];
                            }
                        }
                    }
                    for o in 0..O {
                        let column = T::apply(Math(simd), half[o]);
                        for i in 0..O {
                            store::<S>(to, (i * O + o) * per_point + lane, column[i]);
                        }
                    }
                }
            }
        }
    }
}

/// What comes out of tiles.
#[derive(Debug, Clone, Copy)]
pub(super) enum Given<'a> {
    /// Outputs.
    Outputs(Size, After<'a>),
    /// Derivatives by inputs, which are added to what is there.
    Inputs([usize; 2]),
}

/// How a vector is put into a picture at a place, which has a channel. A type for the reason that [`Transform`] is one.
trait Put: Copy {
    fn put<S: Simd>(self, simd: S, to: &mut [f32], at: usize, channel: usize, value: S::f32s);
}

/// Added to what is there.
#[derive(Clone, Copy)]
struct Added;

impl Put for Added {
    #[inline(always)]
    fn put<S: Simd>(self, simd: S, to: &mut [f32], at: usize, _: usize, value: S::f32s) {
        store::<S>(to, at, simd.add_f32s(load::<S>(to, at), value));
    }
}

impl Put for After<'_> {
    #[inline(always)]
    fn put<S: Simd>(self, simd: S, to: &mut [f32], at: usize, channel: usize, mut value: S::f32s) {
        if let Some(bias) = self.bias {
            value = simd.add_f32s(value, load::<S>(bias, channel));
        }
        if let Some([factor, offset]) = self.scale {
            value = simd.mul_add_f32s(value, load::<S>(factor, channel), load::<S>(offset, channel));
        }
        if let Some(residual) = self.residual {
            value = simd.add_f32s(value, load::<S>(residual, at));
        }
        if let Some([low, high]) = self.clamp {
            let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
            // What is no number stays.
            value = simd.select_f32s(simd.less_than_f32s(value, low), low, value);
            value = simd.select_f32s(simd.less_than_f32s(high, value), high, value);
        }
        store::<S>(to, at, value);
    }
}

/// The other way: tiles `[points, panels, tiles, 16]` of one picture, transformed and put into it.
pub(super) struct FromTiles<'a> {
    pub(super) from: &'a [f32],
    /// The picture's first tile.
    pub(super) first: usize,
    pub(super) tiles: Tiles,
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    pub(super) what: Given<'a>,
    pub(super) to: &'a mut [f32],
}

impl WithSimd for FromTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.what {
            Given::Outputs(Size::Two, after) => self.run::<S, OutputOfTwo, 4, 2>(simd, [0, 0], after),
            Given::Outputs(Size::Four, after) => self.run::<S, Output, 6, 4>(simd, [0, 0], after),
            Given::Inputs(pad) => self.run::<S, InputAdjoint, 6, 6>(simd, pad, Added),
        }
    }
}

impl FromTiles<'_> {
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "rows and columns are told apart by their numbers"
    )]
    fn run<S: Simd, T: Transform<I, O>, const I: usize, const O: usize>(
        self,
        simd: S,
        pad: [usize; 2],
        put: impl Put,
    ) {
        let ([h, w], step) = (self.size, self.tiles.step);
        let per_point = self.channels * self.tiles.n;
        for panel in 0..self.channels / LANES {
            for at in 0..self.tiles.per_image() {
                let (top, left) = (at / self.tiles.columns * step, at % self.tiles.columns * step);
                for lane in (0..LANES).step_by(S::F32_LANES) {
                    let channel = panel * LANES + lane;
                    let start = (panel * self.tiles.n + self.first + at) * LANES + lane;
                    let mut half = [[simd.splat_f32s(0.0); I]; O];
                    for i in 0..I {
                        let mut m = [simd.splat_f32s(0.0); I];
                        for j in 0..I {
                            m[j] = load::<S>(self.from, (i * I + j) * per_point + start);
                        }
                        let row = T::apply(Math(simd), m);
                        for o in 0..O {
                            half[o][i] = row[o];
                        }
                    }
                    for o in 0..O {
                        let column = T::apply(Math(simd), half[o]);
                        let x = (left + o).wrapping_sub(pad[1]);
                        if x >= w {
                            continue;
                        }
                        for i in 0..O {
                            let y = (top + i).wrapping_sub(pad[0]);
                            if y < h {
                                let at = (y * w + x) * self.channels + channel;
                                put.put(simd, self.to, at, channel, column[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Kernels transformed: a panel over sixteen of one axis, `[points, depth, 16]`.
pub(super) struct Kernels<'a> {
    /// `[k, c, 9]`
    pub(super) weights: &'a [f32],
    /// From one lane to the next, and from one row.
    pub(super) lane: usize,
    pub(super) row: usize,
    pub(super) depth: usize,
    pub(super) size: Size,
    pub(super) to: &'a mut [f32],
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
pub(super) struct FromKernels<'a> {
    pub(super) from: &'a [f32],
    pub(super) k: usize,
    pub(super) n_outputs: usize,
    pub(super) to: &'a mut [f32],
    pub(super) is_added: bool,
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
