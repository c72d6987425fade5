//! Two products of a step, on rows of 16 lanes; where sixteen outputs lie side by side the third is
//! [`Product`](crate::panels::Product).
//!
//! Each number that comes out is one chain of fused multiply-adds in an order that only the problem decides (for
//! [`Dot`] sixteen chains, added up in a fixed tree). Tiles, vector width and threads only choose what is computed at the
//! same time, so that the bits are the same on every machine, and those of a head the same whatever heads lie beside it.
//!
//! A *panel* is `[m, 16]`: sixteen outputs of a layer for all its inputs, or sixteen inputs for all its outputs.

use std::ops::Range;

use pulp::{Simd, WithSimd};

pub(crate) use crate::panels::LANES;
use crate::panels::in_memory;
use crate::scratch;

/// `out[b, c] = Σ_p Σ_lane a[b, 16·p + lane] · panels[p, c, lane]` for `n` rows and `m` outputs.
pub(super) struct Dot<'a> {
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) n: usize,
    pub(super) panels: &'a [f32],
    pub(super) m: usize,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

/// Panels and outputs of a [`Dot`] that all rows meet before the next ones' turn: their weights stay in the innermost cache.
const PANELS: usize = 32;
const OUTPUTS: usize = 12;

impl WithSimd for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
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
        let n_chains = if n_panels > PANELS {
            self.n * self.m * LANES
        } else {
            0
        };
        let mut chains = scratch::take(n_chains);
        for start in (0..n_panels).step_by(PANELS) {
            let panels = start..(start + PANELS).min(n_panels);
            let mut part = DotPart {
                is_last: panels.end == n_panels,
                panels,
                chains: chains.as_mut(),
            };
            for block in (0..self.m).step_by(OUTPUTS) {
                let outputs = block..(block + OUTPUTS).min(self.m);
                let mut row = 0;
                while row + R <= self.n {
                    self.outputs::<S, R, Q, V>(simd, &mut part, row, outputs.clone());
                    row += R;
                }
                while row < self.n {
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
        while output + Q <= outputs.end {
            self.tile::<S, R, Q, V>(simd, part, row, output);
            output += Q;
        }
        if Q > 4 && output + 4 <= outputs.end {
            self.tile::<S, R, 4, V>(simd, part, row, output);
            output += 4;
        }
        while output + 2 <= outputs.end {
            self.tile::<S, R, 2, V>(simd, part, row, output);
            output += 2;
        }
        if output < outputs.end {
            self.tile::<S, R, 1, V>(simd, part, row, output);
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
        let mut a = [S::as_simd_f32s(&self.a[..0]).0; R];
        for r in 0..R {
            let at = (row + r) * self.a_stride;
            a[r] = S::as_simd_f32s(&self.a[at + panels.start * LANES..at + panels.end * LANES]).0;
        }
        let mut sums = self.open::<S, R, Q, V>(simd, part, row, output);
        let size = self.m * LANES;
        let weights = &self.panels[panels.start * size..panels.end * size];
        for (panel, weights) in weights.chunks_exact(size).enumerate() {
            let (weights, _) = S::as_simd_f32s(&weights[output * LANES..][..Q * LANES]);
            for r in 0..R {
                let a = &a[r][panel * V..][..V];
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(a[v], weights[q * V + v], sums[r][q][v]);
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
                self.out[(row + r) * self.out_stride + output..][..Q].copy_from_slice(totals);
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

/// Rows of a product that are at hand: `n` rows of `values`, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) n: usize,
}

/// `out[p, r, lane] = Σ_b a[b, a_at + r] · b[b, b_at + 16·p + lane]` for all rows of all pairs in order;
/// `out` is `[n_panels, height, 16]`, at most `[4, 16, 16]`.
pub(super) struct Outer<'a, I> {
    pub(super) pairs: I,
    pub(super) a_at: usize,
    pub(super) b_at: usize,
    pub(super) height: usize,
    pub(super) n_panels: usize,
    pub(super) out: &'a mut [f32],
}

/// Panels and rows that one [`Outer`] takes at most.
pub(super) const OUTER_PANELS: usize = 4;
pub(super) const OUTER_HEIGHT: usize = 16;

impl<'m, I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone> WithSimd for Outer<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 8, 8, 4, 2, 2, 4>(simd),
            8 => self.run::<S, 6, 4, 2, 2, 2, 4>(simd),
            4 => self.run::<S, 6, 4, 2, 4, 4, 4>(simd),
            _ => self.run::<S, 1, 1, 1, 16, 16, 16>(simd),
        }
    }
}

impl<'m, I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone> Outer<'_, I> {
    /// High, middle and low tiles with the vectors that are beside each other in each: low ones take several panels, so
    /// that there are enough chains to hide the latency of an addition.
    #[inline(always)]
    fn run<
        S: Simd,
        const R: usize,
        const M: usize,
        const L: usize,
        const V: usize,
        const VM: usize,
        const VL: usize,
    >(
        mut self,
        simd: S,
    ) {
        let per_panel = LANES / S::F32_LANES;
        let mut row = 0;
        while row < self.height {
            let left = self.height - row;
            let height = if left >= R {
                self.panels::<S, R, V>(simd, row, V / per_panel);
                R
            } else if left >= M {
                self.panels::<S, M, VM>(simd, row, VM / per_panel);
                M
            } else if left >= L {
                self.panels::<S, L, VL>(simd, row, VL / per_panel);
                L
            } else {
                self.panels::<S, 1, VL>(simd, row, VL / per_panel);
                1
            };
            row += height;
        }
    }

    #[inline(always)]
    fn panels<S: Simd, const R: usize, const W: usize>(&mut self, simd: S, row: usize, at_once: usize) {
        let mut panel = 0;
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
                let factors = &a.values[i * a.stride + a_at..][..R];
                let (b, _) = S::as_simd_f32s(&b.values[i * b.stride + b_at..][..W * S::F32_LANES]);
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
        // The last ones have chains that go on from memory, and outputs in several blocks.
        for (n, m, n_panels) in [
            (1, 16, 1),
            (5, 3, 2),
            (15, 40, 3),
            (6, 10, 2 * PANELS + 3),
            (9, 31, PANELS + 1),
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
            let dot = |fast: bool| {
                let mut out = vec![9.0; n * out_stride];
                let op = Dot {
                    a: &x,
                    a_stride: x_stride,
                    n,
                    panels: &panels,
                    m,
                    out: &mut out,
                    out_stride,
                };
                if fast {
                    pulp::Arch::new().dispatch(op);
                } else {
                    op.with_simd(pulp::Scalar);
                }
                out
            };
            check(dot, &expected);
        }
    }

    #[test]
    fn outer_products_go_on_over_blocks() {
        for (height, n_panels) in [(1, 1), (2, 4), (5, 3), (16, 2), (9, 4)] {
            let (a_stride, b_stride) = (height + 2, n_panels * LANES + 8);
            let blocks = [4, 3].map(|n| (n, numbers(n * a_stride, n), numbers(n * b_stride, n + 1)));
            let pairs = blocks.iter().map(|(n, a, b)| {
                let matrix = |values, stride| Matrix {
                    values,
                    stride,
                    n: *n,
                };
                (matrix(a, a_stride), matrix(b, b_stride))
            });
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
