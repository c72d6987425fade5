//! Two products of a step, on rows of 16 lanes; where sixteen outputs lie side by side the third is
//! [`Product`](crate::panels::Product).
//!
//! Each number that comes out is one chain of fused multiply-adds in an order that only the problem decides (for
//! [`Dot`] sixteen chains, added up in a fixed tree, and that for each span of the panels). Tiles, vector width and threads only choose what is computed at the
//! same time, so that the bits are the same on every machine, and those of a head the same whatever heads lie beside it.
//!
//! A *panel* is `[m, 16]`: sixteen outputs of a layer for all its inputs, or sixteen inputs for all its outputs.

use std::ops::Range;

use pulp::{Simd, WithSimd};

pub(crate) use crate::panels::LANES;
use crate::panels::in_memory;
use crate::scratch;

/// Rows of a product: `n`; of inputs with a one behind each that stands for the bias, and zeros up to a multiple of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    rows: Rows<'a>,
    pub(super) n: usize,
}

#[derive(Clone, Copy)]
enum Rows<'a> {
    Even {
        values: &'a [f32],
        stride: usize,
    },
    /// Where each lies; without what is behind it.
    Apart(&'a [&'a [f32]]),
}

/// What is behind a row of whole panels.
static ONE: [f32; LANES] = [1.0, 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.];

impl<'a> Matrix<'a> {
    /// `n` rows, `stride` numbers from one to the next.
    pub(super) fn even(values: &'a [f32], stride: usize, n: usize) -> Matrix<'a> {
        Matrix {
            rows: Rows::Even { values, stride },
            n,
        }
    }

    /// Rows of a multiple of sixteen numbers without what is behind them.
    pub(super) fn apart(rows: &'a [&'a [f32]]) -> Matrix<'a> {
        Matrix {
            rows: Rows::Apart(rows),
            n: rows.len(),
        }
    }

    /// What is behind `n` rows.
    pub(super) fn ones(n: usize) -> Matrix<'static> {
        Matrix::even(&ONE, 0, n)
    }

    /// Numbers of the rows that lie together, and from one to the next.
    pub(super) fn as_even(&self) -> Option<(&'a [f32], usize)> {
        match self.rows {
            Rows::Even { values, stride } => Some((values, stride)),
            Rows::Apart(_) => None,
        }
    }

    /// Whether what is behind the rows is missing.
    pub(super) fn is_apart(&self) -> bool {
        matches!(self.rows, Rows::Apart(_))
    }

    /// A row, which may go on into the next ones.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        match self.rows {
            Rows::Even { values, stride } => &values[row * stride..],
            Rows::Apart(rows) => rows[row],
        }
    }
}

/// `out[b, c] = Σ_p Σ_lane a[b, 16·(first + p) + lane] · panels[p, c, lane]` for `n` rows and `m` outputs, or that much more.
pub(super) struct Dot<'a> {
    pub(super) a: Matrix<'a>,
    /// Where in the rows the first of the panels stands.
    pub(super) first: usize,
    pub(super) panels: &'a [f32],
    pub(super) is_added: bool,
    pub(super) m: usize,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

/// Outputs of a [`Dot`] that all rows meet before the next ones' turn.
const OUTPUTS: usize = 12;

/// Panels that all rows meet with those outputs: their weights stay in the innermost cache.
fn panels_at_once(m: usize) -> usize {
    const WEIGHTS: usize = 32 * OUTPUTS;
    WEIGHTS / m.min(OUTPUTS)
}

impl WithSimd for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 if self.m <= 2 => self.parts::<S, 8, 2, 1>(simd),
            16 if self.m == 3 => self.parts::<S, 6, 3, 1>(simd),
            // Rows come from far away: they are read once.
            16 if (7..=OUTPUTS).contains(&self.m) => self.parts::<S, 2, OUTPUTS, 1>(simd),
            16 => self.parts::<S, 4, 6, 1>(simd),
            8 => self.parts::<S, 2, 2, 2>(simd),
            4 => self.parts::<S, 2, 2, 4>(simd),
            _ => self.parts::<S, 1, 1, 16>(simd),
        }
    }
}

/// Some panels of a [`Dot`], and the sixteen chains of each number that go on from one part to the next.
struct DotPart<'p> {
    panels: Range<usize>,
    is_last: bool,
    /// `[n, m, 16]`
    chains: &'p mut [f32],
}

impl Dot<'_> {
    #[inline(always)]
    fn parts<S: Simd, const R: usize, const Q: usize, const V: usize>(&mut self, simd: S) {
        let n_panels = self.panels.len() / (self.m * LANES);
        let at_once = panels_at_once(self.m);
        let n_chains = if n_panels > at_once {
            self.a.n * self.m * LANES
        } else {
            0
        };
        let mut chains = scratch::take(n_chains);
        for start in (0..n_panels).step_by(at_once) {
            let panels = start..(start + at_once).min(n_panels);
            let mut part = DotPart {
                is_last: panels.end == n_panels,
                panels,
                chains: chains.as_mut(),
            };
            for block in (0..self.m).step_by(OUTPUTS) {
                let outputs = block..(block + OUTPUTS).min(self.m);
                let mut row = 0;
                while row + R <= self.a.n {
                    self.outputs::<S, R, Q, V>(simd, &mut part, row, outputs.clone());
                    row += R;
                }
                if R > 4 && row + 4 <= self.a.n {
                    self.outputs::<S, 4, Q, V>(simd, &mut part, row, outputs.clone());
                    row += 4;
                }
                if R > 2 && row + 2 <= self.a.n {
                    self.outputs::<S, 2, Q, V>(simd, &mut part, row, outputs.clone());
                    row += 2;
                }
                while row < self.a.n {
                    self.outputs::<S, 1, Q, V>(simd, &mut part, row, outputs.clone());
                    row += 1;
                }
            }
        }
    }

    #[inline(always)]
    fn outputs<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        part: &mut DotPart<'_>,
        row: usize,
        outputs: Range<usize>,
    ) {
        let mut output = outputs.start;
        while output < outputs.end {
            // Tiles of about one size: a pass over the rows for what is left over would take as long as for all.
            let left = outputs.end - output;
            let n = left.div_ceil(left.div_ceil(Q));
            match n {
                1 => self.tile::<S, R, 1, V>(simd, part, row, output),
                2 if Q >= 2 => self.tile::<S, R, 2, V>(simd, part, row, output),
                3 if Q >= 3 => self.tile::<S, R, 3, V>(simd, part, row, output),
                4 if Q >= 4 => self.tile::<S, R, 4, V>(simd, part, row, output),
                5 if Q >= 5 => self.tile::<S, R, 5, V>(simd, part, row, output),
                7 if Q >= 7 => self.tile::<S, R, 7, V>(simd, part, row, output),
                8 if Q >= 8 => self.tile::<S, R, 8, V>(simd, part, row, output),
                9 if Q >= 9 => self.tile::<S, R, 9, V>(simd, part, row, output),
                10 if Q >= 10 => self.tile::<S, R, 10, V>(simd, part, row, output),
                11 if Q >= 11 => self.tile::<S, R, 11, V>(simd, part, row, output),
                _ => self.tile::<S, R, Q, V>(simd, part, row, output),
            }
            output += n;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        part: &mut DotPart<'_>,
        row: usize,
        output: usize,
    ) {
        let panels = part.panels.clone();
        let size = self.m * LANES;
        let weights = &self.panels[panels.start * size..panels.end * size];
        // What is behind the rows comes last where it does not lie there.
        let at = (self.first + panels.start) * LANES;
        let lacks_one = self.a.is_apart() && at + panels.len() * LANES > self.a.row(row).len();
        let (weights, behind) = weights.split_at(weights.len() - if lacks_one { size } else { 0 });
        let n_panels = panels.len() - usize::from(lacks_one);
        let mut a = [S::as_simd_f32s(&[]).0; R];
        for r in 0..R {
            let values = &self.a.row(row + r)[at..][..n_panels * LANES];
            a[r] = S::as_simd_f32s(values).0;
        }
        // The next rows come from far away while these are at work; of two rows there is enough to do for that.
        let is_fetched = R == 2 && V == 1;
        let mut ahead = a;
        if is_fetched && row + 2 * R <= self.a.n {
            for r in 0..R {
                let values = &self.a.row(row + R + r)[at..][..n_panels * LANES];
                ahead[r] = S::as_simd_f32s(values).0;
            }
        }
        let mut sums = self.open::<S, R, Q, V>(simd, part, row, output);
        for (panel, weights) in weights.chunks_exact(size).enumerate() {
            let (weights, _) = S::as_simd_f32s(&weights[output * LANES..][..Q * LANES]);
            for r in 0..R {
                if is_fetched {
                    fetch(&ahead[r][panel * V..]);
                }
                let a = &a[r][panel * V..][..V];
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(a[v], weights[q * V + v], sums[r][q][v]);
                    }
                }
            }
        }
        for weights in behind.chunks_exact(size) {
            let (weights, _) = S::as_simd_f32s(&weights[output * LANES..][..Q * LANES]);
            let (one, _) = S::as_simd_f32s(&ONE);
            for r in 0..R {
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(one[v], weights[q * V + v], sums[r][q][v]);
                    }
                }
            }
        }
        if part.is_last {
            let mut totals = [[0.0f32; Q]; R];
            for r in 0..R {
                for q in 0..Q {
                    totals[r][q] = total::<S, V>(simd, sums[r][q]);
                }
            }
            for (r, totals) in totals.iter().enumerate() {
                let out = &mut self.out[(row + r) * self.out_stride + output..][..Q];
                if self.is_added {
                    out.iter_mut().zip(totals).for_each(|(out, total)| *out += total);
                } else {
                    out.copy_from_slice(totals);
                }
            }
        } else {
            for (r, chains) in in_memory::<S, R, Q, V>(sums).iter().enumerate() {
                let at = ((row + r) * self.m + output) * LANES;
                part.chains[at..][..Q * LANES].copy_from_slice(chains.as_flattened());
            }
        }
    }

    /// The chains of a tile where the part before has left them.
    #[inline(always)]
    fn open<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &self,
        simd: S,
        part: &DotPart<'_>,
        row: usize,
        output: usize,
    ) -> [[[S::f32s; V]; Q]; R] {
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        if part.panels.start > 0 {
            let mut chains = [[[0.0f32; LANES]; Q]; R];
            for (r, chains) in chains.iter_mut().enumerate() {
                let at = ((row + r) * self.m + output) * LANES;
                chains
                    .as_flattened_mut()
                    .copy_from_slice(&part.chains[at..][..Q * LANES]);
            }
            for r in 0..R {
                for q in 0..Q {
                    let (vectors, _) = S::as_simd_f32s(&chains[r][q]);
                    sums[r][q].copy_from_slice(&vectors[..V]);
                }
            }
        }
        sums
    }
}

/// Has a line of the cache brought near, where the processor can be asked for that.
#[inline(always)]
fn fetch<T>(line: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        sse._mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
    }
}

/// [`tree_sum`] of sixteen numbers in vectors.
#[inline(always)]
fn total<S: Simd, const V: usize>(simd: S, mut sums: [S::f32s; V]) -> f32 {
    let mut half = V / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] = simd.add_f32s(sums[i], sums[i + half]);
        }
        half /= 2;
    }
    if S::F32_LANES >= 8 {
        // These halve as well.
        return simd.reduce_sum_f32s(sums[0]);
    }
    let mut lanes = [0.0f32; LANES];
    S::as_mut_simd_f32s(&mut lanes).0[0] = sums[0];
    let mut half = S::F32_LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of sixteen numbers: halves are added to halves.
#[inline(always)]
pub(super) fn tree_sum(lanes: &[f32; LANES]) -> f32 {
    let mut sums = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// `out[p, r, lane] = Σ_b a[b, a_at + r] · b[b, b_at + 16·p + lane]` for all rows of all pairs in order;
/// `out` is `[n_panels, height, 16]`, at most `[8, 16, 16]`.
pub(super) struct Outer<'a, I> {
    pub(super) pairs: I,
    pub(super) a_at: usize,
    pub(super) b_at: usize,
    pub(super) height: usize,
    pub(super) n_panels: usize,
    pub(super) out: &'a mut [f32],
}

/// Panels and rows that one [`Outer`] takes at most.
pub(super) const OUTER_PANELS: usize = 8;
pub(super) const OUTER_HEIGHT: usize = 16;

impl<'m, I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone> WithSimd for Outer<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        while row < self.height {
            // As for a [`Dot`], and such tiles that there are enough chains to hide the latency of an addition.
            let left = self.height - row;
            let n = left.div_ceil(left.div_ceil(Self::highest(S::F32_LANES)));
            match (S::F32_LANES, n) {
                (16, 1) => self.panels::<S, 1, 8>(simd, row),
                (16, 2) => self.panels::<S, 2, 8>(simd, row),
                (16, 3) => self.panels::<S, 3, 8>(simd, row),
                (16, 4) => self.panels::<S, 4, 4>(simd, row),
                (16, 5) => self.panels::<S, 5, 4>(simd, row),
                (16, 6) => self.panels::<S, 6, 4>(simd, row),
                (16, 7) => self.panels::<S, 7, 2>(simd, row),
                (16, 8) => self.panels::<S, 8, 2>(simd, row),
                (16, 9) => self.panels::<S, 9, 2>(simd, row),
                (16, 10) => self.panels::<S, 10, 2>(simd, row),
                (16, 11) => self.panels::<S, 11, 2>(simd, row),
                (16, _) => self.panels::<S, 12, 2>(simd, row),
                (8, 1) => self.panels::<S, 1, 8>(simd, row),
                (8, 2) => self.panels::<S, 2, 4>(simd, row),
                (8, 3) => self.panels::<S, 3, 4>(simd, row),
                (8, 4) => self.panels::<S, 4, 2>(simd, row),
                (8, 5) => self.panels::<S, 5, 2>(simd, row),
                (8, _) => self.panels::<S, 6, 2>(simd, row),
                (4, 1) => self.panels::<S, 1, 8>(simd, row),
                (4, 2) => self.panels::<S, 2, 4>(simd, row),
                (4, 3) => self.panels::<S, 3, 4>(simd, row),
                (4, 4) => self.panels::<S, 4, 4>(simd, row),
                (4, 5) => self.panels::<S, 5, 4>(simd, row),
                (4, _) => self.panels::<S, 6, 4>(simd, row),
                _ => self.panels::<S, 1, 16>(simd, row),
            }
            row += n;
        }
    }
}

impl<'m, I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone> Outer<'_, I> {
    /// Rows of a tile, at most.
    const fn highest(lanes: usize) -> usize {
        match lanes {
            16 => 12,
            8 | 4 => 6,
            _ => 1,
        }
    }

    /// Tiles of `R` rows and `W` vectors.
    #[inline(always)]
    fn panels<S: Simd, const R: usize, const W: usize>(&mut self, simd: S, row: usize) {
        let (mut panel, at_once) = (0, W * S::F32_LANES / LANES);
        while panel + at_once <= self.n_panels {
            self.tile::<S, R, W>(simd, row, panel);
            panel += at_once;
        }
        while panel < self.n_panels {
            match S::F32_LANES {
                16 => self.tile::<S, R, 1>(simd, row, panel),
                8 => self.tile::<S, R, 2>(simd, row, panel),
                4 => self.tile::<S, R, 4>(simd, row, panel),
                _ => self.tile::<S, R, 16>(simd, row, panel),
            }
            panel += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const W: usize>(&mut self, simd: S, row: usize, panel: usize) {
        let mut sums = [[simd.splat_f32s(0.0); W]; R];
        for (a, b) in self.pairs.clone() {
            let (a_at, b_at) = (self.a_at + row, self.b_at + panel * LANES);
            for i in 0..a.n {
                let factors = &a.row(i)[a_at..][..R];
                let (b, _) = S::as_simd_f32s(&b.row(i)[b_at..][..W * S::F32_LANES]);
                for r in 0..R {
                    let factor = simd.splat_f32s(factors[r]);
                    for w in 0..W {
                        sums[r][w] = simd.mul_add_f32s(factor, b[w], sums[r][w]);
                    }
                }
            }
        }
        let per_panel = LANES / S::F32_LANES;
        for r in 0..R {
            for w in 0..W {
                let at = ((panel + w / per_panel) * self.height + row + r) * LANES;
                let (out, _) = S::as_mut_simd_f32s(&mut self.out[at..at + LANES]);
                out[w % per_panel] = sums[r][w];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without pattern, and exact sums of products of them in f64.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (((i + 1) * (seed * 2 + 7919)) % 1013) as f32 / 506.5 - 1.0)
            .collect()
    }

    /// Runs an operation with the machine's vectors and with none, and sees that the bits agree.
    fn check(run: impl Fn(bool) -> Vec<f32>, expected: &[f64]) {
        let fast = run(true);
        for (got, want) in fast.iter().zip(expected) {
            assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&fast), bits(&run(false)));
    }

    #[test]
    fn dot_products_are_their_definition_to_the_bit_with_and_without_vectors() {
        let at_once = panels_at_once(OUTPUTS);
        // The last ones have chains that go on from memory, and outputs in several blocks.
        for (n, m, n_panels) in [
            (1, 16, 1),
            (5, 3, 2),
            (15, 40, 3),
            (6, 10, 2 * at_once + 3),
            (9, 31, at_once + 1),
        ] {
            let panels = numbers(n_panels * m * LANES, 2);
            let x = numbers(n * (n_panels * LANES + 16), 3);
            let (x_stride, out_stride) = (n_panels * LANES + 16, m + 1);
            let expected: Vec<f64> = (0..n * out_stride)
                .map(|at| {
                    let (row, output) = (at / out_stride, at % out_stride);
                    let term = |i: usize| {
                        f64::from(x[row * x_stride + i])
                            * f64::from(panels[((i / LANES) * m + output) * LANES + i % LANES])
                    };
                    if output < m {
                        (0..n_panels * LANES).map(term).sum()
                    } else {
                        9.0
                    }
                })
                .collect();
            // As a whole, and what the second half of the panels adds to the first half's.
            for middle in [0, n_panels / 2] {
                let spans = [0..middle, middle..n_panels];
                let dot = |fast: bool| {
                    let mut out = vec![9.0; n * out_stride];
                    for span in &spans {
                        let op = Dot {
                            a: Matrix::even(&x, x_stride, n),
                            first: span.start,
                            panels: &panels[span.start * m * LANES..span.end * m * LANES],
                            is_added: span.start > 0,
                            m,
                            out: &mut out,
                            out_stride,
                        };
                        if fast {
                            pulp::Arch::new().dispatch(op);
                        } else {
                            op.with_simd(pulp::Scalar);
                        }
                    }
                    out
                };
                check(dot, &expected);
            }
        }
    }

    #[test]
    fn outer_products_go_on_over_blocks() {
        for (height, n_panels) in [(1, 1), (2, 4), (5, 3), (16, 2), (9, 4)] {
            let (a_stride, b_stride) = (height + 2, n_panels * LANES + 8);
            let blocks = [4, 3].map(|n| (n, numbers(n * a_stride, n), numbers(n * b_stride, n + 1)));
            let pairs = blocks
                .iter()
                .map(|(n, a, b)| (Matrix::even(a, a_stride, *n), Matrix::even(b, b_stride, *n)));
            let expected: Vec<f64> = (0..n_panels * height * LANES)
                .map(|at| {
                    let (panel, row, lane) = (at / (height * LANES), at / LANES % height, at % LANES);
                    let of_block = |(n, a, b): &(usize, Vec<f32>, Vec<f32>)| {
                        let term = |i: usize| {
                            f64::from(a[i * a_stride + 1 + row])
                                * f64::from(b[i * b_stride + 2 + panel * LANES + lane])
                        };
                        (0..*n).map(term).sum::<f64>()
                    };
                    blocks.iter().map(of_block).sum()
                })
                .collect();
            let outer = |fast: bool| {
                let mut out = vec![0.0; n_panels * height * LANES];
                let op = Outer {
                    pairs: pairs.clone(),
                    a_at: 1,
                    b_at: 2,
                    height,
                    n_panels,
                    out: &mut out,
                };
                if fast {
                    pulp::Arch::new().dispatch(op);
                } else {
                    op.with_simd(pulp::Scalar);
                }
                out
            };
            check(outer, &expected);
        }
    }
}
