//! The three products of a step, on rows of 16 lanes.
//!
//! Each number that comes out is one chain of fused multiply-adds in an order that only the problem decides (for
//! [`Dot`] sixteen chains, added up in a fixed tree). Tiles, vector width and threads only choose what is computed at the
//! same time, so that the bits are the same on every machine, and those of a head the same whatever heads lie beside it.
//!
//! A *panel* is `[m, 16]`: sixteen outputs of a layer for all its inputs, or sixteen inputs for all its outputs.

use std::ops::Range;

use pulp::{Simd, WithSimd};

/// Numbers of a row of a panel.
pub(crate) const LANES: usize = 16;

/// `out[b, 16·p + lane] = Σ_m a[b, m] · panels[p, m, lane]` for `n` rows.
pub(super) struct Spread<'a> {
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) n: usize,
    pub(super) panels: &'a [f32],
    pub(super) m: usize,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

/// Terms of a chain that are added before the next rows' turn: what they take of a panel stays in the innermost cache.
const TERMS: usize = 256;

impl WithSimd for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n_panels = self.panels.len() / (self.m * LANES);
        match S::F32_LANES {
            16 => {
                let mut panel = 0;
                while panel + 2 <= n_panels {
                    self.chains::<S, 14, 2, 1>(simd, panel);
                    panel += 2;
                }
                if panel < n_panels {
                    self.chains::<S, 14, 1, 1>(simd, panel);
                }
            }
            8 => (0..n_panels).for_each(|panel| self.chains::<S, 6, 1, 2>(simd, panel)),
            4 => (0..n_panels).for_each(|panel| self.chains::<S, 6, 1, 4>(simd, panel)),
            _ => (0..n_panels).for_each(|panel| self.chains::<S, 1, 1, 16>(simd, panel)),
        }
    }
}

impl Spread<'_> {
    /// A chain goes on from memory, which does not change a bit of it.
    #[inline(always)]
    fn chains<S: Simd, const R: usize, const Q: usize, const V: usize>(&mut self, simd: S, panel: usize) {
        for start in (0..self.m).step_by(TERMS) {
            let terms = start..(start + TERMS).min(self.m);
            let mut row = 0;
            while row + R <= self.n {
                self.tile::<S, R, Q, V>(simd, terms.clone(), row, panel);
                row += R;
            }
            // What is left of a batch: a few tiles of lower height.
            if R > 8 && row + 8 <= self.n {
                self.tile::<S, 8, Q, V>(simd, terms.clone(), row, panel);
                row += 8;
            }
            while row + 4 <= self.n {
                self.tile::<S, 4, Q, V>(simd, terms.clone(), row, panel);
                row += 4;
            }
            while row + 2 <= self.n {
                self.tile::<S, 2, Q, V>(simd, terms.clone(), row, panel);
                row += 2;
            }
            if row < self.n {
                self.tile::<S, 1, Q, V>(simd, terms, row, panel);
            }
        }
    }

    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "the sums stay in registers only where plain numbers index them"
    )]
    fn tile<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        terms: Range<usize>,
        row: usize,
        panel: usize,
    ) {
        let mut a = [&self.a[..0]; R];
        for r in 0..R {
            a[r] = &self.a[(row + r) * self.a_stride..][terms.clone()];
        }
        let mut weights = [&[[0.0f32; LANES]; 0][..]; Q];
        for q in 0..Q {
            let panel = &self.panels[(panel + q) * self.m * LANES..][..self.m * LANES];
            weights[q] = &panel.as_chunks::<LANES>().0[terms.clone()];
        }
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        if terms.start > 0 {
            for r in 0..R {
                for q in 0..Q {
                    let out = &self.out[(row + r) * self.out_stride + (panel + q) * LANES..][..LANES];
                    let (out, _) = S::as_simd_f32s(out);
                    sums[r][q].copy_from_slice(&out[..V]);
                }
            }
        }
        for k in 0..terms.len() {
            let mut factors = [[simd.splat_f32s(0.0); V]; Q];
            for q in 0..Q {
                let (vectors, _) = S::as_simd_f32s(&weights[q][k]);
                factors[q].copy_from_slice(&vectors[..V]);
            }
            for r in 0..R {
                let factor = simd.splat_f32s(a[r][k]);
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(factor, factors[q][v], sums[r][q][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for q in 0..Q {
                let out = &mut self.out[(row + r) * self.out_stride + (panel + q) * LANES..][..LANES];
                let (out, _) = S::as_mut_simd_f32s(out);
                out[..V].copy_from_slice(&sums[r][q]);
            }
        }
    }
}

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

impl WithSimd for Dot<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 4, 4, 1>(simd),
            8 => self.run::<S, 2, 2, 2>(simd),
            4 => self.run::<S, 2, 2, 4>(simd),
            _ => self.run::<S, 1, 1, 16>(simd),
        }
    }
}

impl Dot<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize, const Q: usize, const V: usize>(&mut self, simd: S) {
        let mut row = 0;
        while row + R <= self.n {
            self.outputs::<S, R, Q, V>(simd, row);
            row += R;
        }
        while row < self.n {
            self.outputs::<S, 1, Q, V>(simd, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn outputs<S: Simd, const R: usize, const Q: usize, const V: usize>(&mut self, simd: S, row: usize) {
        let mut output = 0;
        while output + Q <= self.m {
            self.tile::<S, R, Q, V>(simd, row, output);
            output += Q;
        }
        while output + 2 <= self.m {
            self.tile::<S, R, 2, V>(simd, row, output);
            output += 2;
        }
        while output < self.m {
            self.tile::<S, R, 1, V>(simd, row, output);
            output += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        output: usize,
    ) {
        let width = self.panels.len() / self.m;
        let mut a = [S::as_simd_f32s(&self.a[..0]).0; R];
        for r in 0..R {
            a[r] = S::as_simd_f32s(&self.a[(row + r) * self.a_stride..][..width]).0;
        }
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        for (panel, weights) in self.panels.chunks_exact(self.m * LANES).enumerate() {
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
        for r in 0..R {
            for q in 0..Q {
                let mut lanes = [0.0f32; LANES];
                let (to, _) = S::as_mut_simd_f32s(&mut lanes);
                to[..V].copy_from_slice(&sums[r][q]);
                self.out[(row + r) * self.out_stride + output + q] = tree_sum(&lanes);
            }
        }
    }
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
    fn products_are_their_definitions_to_the_bit_with_and_without_vectors() {
        // The last ones have chains that go on from memory, and rows left for tiles of every height.
        let cases = [(1, 16, 1), (5, 3, 2), (15, 40, 3), (33, 7, 5), (14, 21, 1)];
        for (n, m, n_panels) in cases.into_iter().chain([(29, 300, 3), (10, 600, 2)]) {
            let (a_stride, out_stride) = (m + 3, n_panels * LANES + 5);
            let a = numbers(n * a_stride, 1);
            let panels = numbers(n_panels * m * LANES, 2);
            let expected: Vec<f64> = (0..n * out_stride)
                .map(|at| {
                    let (row, column) = (at / out_stride, at % out_stride);
                    let term = |k: usize| {
                        f64::from(a[row * a_stride + k])
                            * f64::from(panels[((column / LANES) * m + k) * LANES + column % LANES])
                    };
                    if column < n_panels * LANES {
                        (0..m).map(term).sum()
                    } else {
                        9.0
                    }
                })
                .collect();
            let spread = |fast: bool| {
                let mut out = vec![9.0; n * out_stride];
                let op = Spread {
                    a: &a,
                    a_stride,
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
            check(spread, &expected);

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
