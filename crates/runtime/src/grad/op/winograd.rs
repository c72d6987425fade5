//! Convolutions of three by three taps by tiles of four by four outputs (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2015): thirty-six products of channels instead of a hundred and forty-four.
//!
//! Interpolation points are 0, ±√½, ±√2 and infinity, whose rounding errors are smaller than those of 0, ±1, ±2 and infinity.
//! The backward pass is the adjoint of the forward one, transform by transform, so that it shares the transformed input
//! and has no weights of its own to transform but in another order.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::Geometry;
use super::{Kept, Sink};
use crate::grad::kernel::{LANES, Outer, Place, Product};

/// Outputs of a tile along an axis, and inputs.
const OUT: usize = 4;
const IN: usize = 6;
/// Products.
const POINTS: usize = IN * IN;

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
    let tiles = g.oh.div_ceil(OUT) * g.ow.div_ceil(OUT);
    let is_whole = g.c.is_multiple_of(LANES) && g.k.is_multiple_of(LANES);
    is_whole && g.c >= 2 * LANES && g.k >= 2 * LANES && tiles * POINTS * 4 < g.oh * g.ow * 9 * 3
}

/// How outputs are dealt out to tiles.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    /// Of all samples.
    n: usize,
}

impl Tiles {
    fn new(g: &Geometry, n: usize) -> Tiles {
        let (rows, columns) = (g.oh.div_ceil(OUT), g.ow.div_ceil(OUT));
        Tiles {
            rows,
            columns,
            n: n * rows * columns,
        }
    }

    fn per_image(&self) -> usize {
        self.rows * self.columns
    }
}

/// Vector arithmetic with constants, for the transforms.
#[derive(Clone, Copy)]
struct Math<S: Simd>(S);

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

    /// `Bᵀd`; A²·B² is one.
    #[inline(always)]
    fn input(self, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (self.fma(-B2, d[2], d[4]), self.fma(-B2, d[1], d[3]));
        let (even_b, odd_b) = (self.fma(-A2, d[2], d[4]), self.fma(-A2, d[1], d[3]));
        [
            self.fma(-SUM, d[2], self.add(d[0], d[4])),
            self.fma(A, odd_a, even_a),
            self.fma(-A, odd_a, even_a),
            self.fma(B, odd_b, even_b),
            self.fma(-B, odd_b, even_b),
            self.fma(-SUM, d[3], self.add(d[1], d[5])),
        ]
    }

    /// `Bz`
    #[inline(always)]
    fn input_adjoint(self, z: [S::f32s; 6]) -> [S::f32s; 6] {
        let (sum_a, odd_a) = (self.add(z[1], z[2]), self.times(A, self.sub(z[1], z[2])));
        let (sum_b, odd_b) = (self.add(z[3], z[4]), self.times(B, self.sub(z[3], z[4])));
        [
            z[0],
            self.fma(-B2, odd_a, self.fma(-A2, odd_b, z[5])),
            self.fma(-SUM, z[0], self.fma(-B2, sum_a, self.times(-A2, sum_b))),
            self.fma(-SUM, z[5], self.add(odd_a, odd_b)),
            self.add(z[0], self.add(sum_a, sum_b)),
            z[5],
        ]
    }

    /// `Aᵀm`
    #[inline(always)]
    fn output(self, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let (sum_a, odd_a) = (self.add(m[1], m[2]), self.times(A, self.sub(m[1], m[2])));
        let (sum_b, odd_b) = (self.add(m[3], m[4]), self.times(B, self.sub(m[3], m[4])));
        [
            self.add(m[0], self.add(sum_a, sum_b)),
            self.add(odd_a, odd_b),
            self.fma(A2, sum_a, self.times(B2, sum_b)),
            self.fma(A2, odd_a, self.fma(B2, odd_b, m[5])),
        ]
    }

    /// `Ay`
    #[inline(always)]
    fn output_adjoint(self, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (self.fma(A2, y[2], y[0]), self.fma(A2, y[3], y[1]));
        let (even_b, odd_b) = (self.fma(B2, y[2], y[0]), self.fma(B2, y[3], y[1]));
        [
            y[0],
            self.fma(A, odd_a, even_a),
            self.fma(-A, odd_a, even_a),
            self.fma(B, odd_b, even_b),
            self.fma(-B, odd_b, even_b),
            y[3],
        ]
    }

    /// `Gg`
    #[inline(always)]
    fn kernel(self, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (self.times(FA, self.fma(A2, g[2], g[0])), self.times(FA * A, g[1]));
        let (even_b, odd_b) = (self.times(FB, self.fma(B2, g[2], g[0])), self.times(FB * B, g[1]));
        [
            g[0],
            self.add(even_a, odd_a),
            self.sub(even_a, odd_a),
            self.add(even_b, odd_b),
            self.sub(even_b, odd_b),
            g[2],
        ]
    }

    /// `Gᵀu`
    #[inline(always)]
    fn kernel_adjoint(self, u: [S::f32s; 6]) -> [S::f32s; 3] {
        let (sum_a, odd_a) = (self.times(FA, self.add(u[1], u[2])), self.sub(u[1], u[2]));
        let (sum_b, odd_b) = (self.times(FB, self.add(u[3], u[4])), self.sub(u[3], u[4]));
        [
            self.add(u[0], self.add(sum_a, sum_b)),
            self.fma(FA * A, odd_a, self.times(FB * B, odd_b)),
            self.fma(A2, sum_a, self.fma(B2, sum_b, u[5])),
        ]
    }

    /// A transform of the rows of a matrix, then of its columns.
    #[inline(always)]
    fn both<const I: usize, const O: usize>(
        self,
        from: [[S::f32s; I]; I],
        transform: impl Fn([S::f32s; I]) -> [S::f32s; O],
    ) -> [[S::f32s; O]; O] {
        let zero = self.0.splat_f32s(0.0);
        let mut half = [[zero; I]; O];
        for i in 0..I {
            let row = transform(from[i]);
            for o in 0..O {
                half[o][i] = row[o];
            }
        }
        let mut out = [[zero; O]; O];
        for o in 0..O {
            let column = transform(half[o]);
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

/// Tiles of `[n, h, w, channels]` around the pixels of a panel, transformed: `to` is `[36, tiles, 16]`.
struct ToTiles<'a> {
    from: &'a [f32],
    size: [usize; 2],
    channels: usize,
    panel: usize,
    tiles: Tiles,
    /// None where tiles are outputs and do not overlap.
    pad: Option<[usize; 2]>,
    to: &'a mut [f32],
}

impl WithSimd for ToTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.pad {
            Some(pad) => self.run::<S, IN>(simd, pad, |math, tile| math.both(tile, |d| math.input(d))),
            None => self.run::<S, OUT>(simd, [0, 0], |math, tile| {
                math.both(tile, |y| math.output_adjoint(y))
            }),
        }
    }
}

impl ToTiles<'_> {
    #[inline(always)]
    fn run<S: Simd, const I: usize>(
        self,
        simd: S,
        pad: [usize; 2],
        transform: impl Fn(Math<S>, [[S::f32s; I]; I]) -> [[S::f32s; IN]; IN],
    ) {
        let [h, w] = self.size;
        let zero = simd.splat_f32s(0.0);
        let per_point = self.tiles.n * LANES;
        for tile_idx in 0..self.tiles.n {
            let (image, at) = (
                tile_idx / self.tiles.per_image(),
                tile_idx % self.tiles.per_image(),
            );
            let image = &self.from[image * h * w * self.channels..][..h * w * self.channels];
            let (top, left) = (at / self.tiles.columns * OUT, at % self.tiles.columns * OUT);
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
                let points = transform(Math(simd), tile);
                for (point, value) in points.as_flattened().iter().enumerate() {
                    store::<S>(self.to, point * per_point + tile_idx * LANES + lane, *value);
                }
            }
        }
    }
}

/// The other way: tiles `[36, panels, tiles, 16]` of one image, transformed and put into it.
struct FromTiles<'a> {
    from: &'a [f32],
    /// The image's first tile.
    first: usize,
    tiles: Tiles,
    size: [usize; 2],
    channels: usize,
    /// None where tiles are outputs and do not overlap; else what is there is added to.
    pad: Option<[usize; 2]>,
    to: &'a mut [f32],
}

impl WithSimd for FromTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.pad {
            None => self.run::<S, OUT>(simd, [0, 0], |math, m| math.both(m, |m| math.output(m))),
            Some(pad) => self.run::<S, IN>(simd, pad, |math, z| math.both(z, |z| math.input_adjoint(z))),
        }
    }
}

impl FromTiles<'_> {
    #[inline(always)]
    fn run<S: Simd, const O: usize>(
        self,
        simd: S,
        pad: [usize; 2],
        transform: impl Fn(Math<S>, [[S::f32s; IN]; IN]) -> [[S::f32s; O]; O],
    ) {
        let [h, w] = self.size;
        let is_added = O == IN;
        let per_point = self.channels * self.tiles.n;
        for panel in 0..self.channels / LANES {
            for at in 0..self.tiles.per_image() {
                let (top, left) = (at / self.tiles.columns * OUT, at % self.tiles.columns * OUT);
                for lane in (0..LANES).step_by(S::F32_LANES) {
                    let start = (panel * self.tiles.n + self.first + at) * LANES + lane;
                    let mut points = [[simd.splat_f32s(0.0); IN]; IN];
                    for (point, value) in points.as_flattened_mut().iter_mut().enumerate() {
                        *value = load::<S>(self.from, point * per_point + start);
                    }
                    let tile = transform(Math(simd), points);
                    for (i, row) in tile.iter().enumerate() {
                        let y = (top + i).wrapping_sub(pad[0]);
                        if y >= h {
                            continue;
                        }
                        for (j, value) in row.iter().enumerate() {
                            let x = (left + j).wrapping_sub(pad[1]);
                            if x < w {
                                let at = (y * w + x) * self.channels + panel * LANES + lane;
                                let value = if is_added {
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

/// Kernels transformed: a panel over sixteen of one axis, `[36, depth, 16]`.
struct Kernels<'a> {
    /// `[k, c, 9]`
    weights: &'a [f32],
    /// From one lane to the next, and from one row.
    lane: usize,
    row: usize,
    depth: usize,
    to: &'a mut [f32],
}

impl WithSimd for Kernels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let math = Math(simd);
        for row in 0..self.depth {
            let mut taps = [[0.0f32; LANES]; 9];
            for lane in 0..LANES {
                let kernel = &self.weights[lane * self.lane + row * self.row..][..9];
                for tap in 0..9 {
                    taps[tap][lane] = kernel[tap];
                }
            }
            for lane in (0..LANES).step_by(S::F32_LANES) {
                let g = [0, 1, 2].map(|i| [0, 1, 2].map(|j| load::<S>(&taps[3 * i + j], lane)));
                let u = math.both(g, |g| math.kernel(g));
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
        let math = Math(simd);
        let c = self.to.len() / 9;
        for start in (0..c).step_by(LANES) {
            let mut taps = [[0.0f32; LANES]; 9];
            for lane in (0..LANES).step_by(S::F32_LANES) {
                let mut u = [[simd.splat_f32s(0.0); IN]; IN];
                for (point, value) in u.as_flattened_mut().iter_mut().enumerate() {
                    *value = load::<S>(self.from, (point * self.n_outputs + self.k) * c + start + lane);
                }
                let g = math.both(u, |u| math.kernel_adjoint(u));
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

/// For each point `out[p, k] = Σ a[p, c] · b[c, k]`: `a` is `[panels over c, 36, tiles, 16]`, `b` is
/// `[panels over k, 36, depth, 16]`, `out` becomes `[36, panels over k, tiles, 16]`.
fn multiply(a: &[f32], b: &[f32], depth: usize, tiles: Tiles, out: &mut [f32]) {
    let per_panel = tiles.n * LANES;
    let n_panels = out.len() / (POINTS * per_panel);
    let at_once = at_once(n_panels);
    let tasks = out.par_chunks_mut(at_once * per_panel).enumerate();
    tasks.for_each(|(task, out)| {
        let (point, panel) = (task * at_once / n_panels, task * at_once % n_panels);
        Product {
            a: &a[point * per_panel..],
            a_panel: POINTS * per_panel,
            n_rows: tiles.n,
            depth,
            b: &b[(panel * POINTS + point) * depth * LANES..],
            b_panel: POINTS * depth * LANES,
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
    let tiles = Tiles::new(g, n);
    let [_] = kept.arrays([POINTS * tiles.n * g.c]);
    let (u_len, y_len) = (POINTS * g.c * g.k, POINTS * tiles.n * g.k);
    let (room, arrays) = kept.room(u_len + y_len);
    let (u, y) = room.split_at_mut(u_len);
    let v = &mut arrays[0][..POINTS * tiles.n * g.c];
    v.par_chunks_mut(POINTS * tiles.n * LANES)
        .enumerate()
        .for_each(|(panel, to)| {
            arch.dispatch(ToTiles {
                from: x,
                size: [g.h, g.w],
                channels: g.c,
                panel,
                tiles,
                pad: Some(g.pad),
                to,
            });
        });
    u.par_chunks_mut(POINTS * g.c * LANES)
        .enumerate()
        .for_each(|(panel, to)| {
            arch.dispatch(Kernels {
                weights: &weights[panel * LANES * g.c * 9..],
                lane: g.c * 9,
                row: 9,
                depth: g.c,
                to,
            });
        });
    multiply(v, u, g.c, tiles, y);
    out.par_chunks_mut(g.out_len())
        .enumerate()
        .for_each(|(image, to)| {
            arch.dispatch(FromTiles {
                from: y,
                first: image * tiles.per_image(),
                tiles,
                size: [g.oh, g.ow],
                channels: g.k,
                pad: None,
                to,
            });
        });
}

pub(super) fn backward(
    g: &Geometry,
    n: usize,
    weights: &[f32],
    d_out: &[f32],
    to_x: &mut Option<Sink<'_>>,
    to_weights: &mut Option<Sink<'_>>,
    kept: &mut Kept,
) {
    let arch = pulp::Arch::new();
    let tiles = Tiles::new(g, n);
    let (m_len, u_len) = (POINTS * tiles.n * g.k, POINTS * g.c * g.k);
    let z_len = POINTS * tiles.n * g.c;
    let (room, arrays) = kept.room(m_len + u_len + z_len);
    let (m, rest) = room.split_at_mut(m_len);
    let (u, z) = rest.split_at_mut(u_len);
    m.par_chunks_mut(POINTS * tiles.n * LANES)
        .enumerate()
        .for_each(|(panel, to)| {
            arch.dispatch(ToTiles {
                from: d_out,
                size: [g.oh, g.ow],
                channels: g.k,
                panel,
                tiles,
                pad: None,
                to,
            });
        });
    let m = &*m;
    if let Some(sink) = to_weights {
        let v = &arrays[0][..z_len];
        let per_panel = tiles.n * LANES;
        // `[36, k, c]`
        u.par_chunks_mut(LANES * g.c).enumerate().for_each(|(task, out)| {
            let (point, panel) = (task / (g.k / LANES), task % (g.k / LANES));
            Outer {
                a: &m[(panel * POINTS + point) * per_panel..][..per_panel],
                n_a: LANES,
                b: &v[point * per_panel..],
                b_rows: POINTS * tiles.n,
                start: 0,
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
        sink.values
            .par_chunks_mut(g.c * 9)
            .enumerate()
            .for_each(|(k, to)| {
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
        u.par_chunks_mut(POINTS * g.k * LANES)
            .enumerate()
            .for_each(|(panel, to)| {
                arch.dispatch(Kernels {
                    weights: &weights[panel * LANES * 9..],
                    lane: 9,
                    row: g.c * 9,
                    depth: g.k,
                    to,
                });
            });
        multiply(m, u, g.k, tiles, z);
        let z = &*z;
        sink.zero();
        sink.values
            .par_chunks_mut(g.in_len())
            .enumerate()
            .for_each(|(image, to)| {
                arch.dispatch(FromTiles {
                    from: z,
                    first: image * tiles.per_image(),
                    tiles,
                    size: [g.h, g.w],
                    channels: g.c,
                    pad: Some(g.pad),
                    to,
                });
            });
    }
}
