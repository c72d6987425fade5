//! The two products of a pass over the data, in float32, for heads of any number of outputs.
//!
//! A pass reads a few hundred rows, multiplies them with the weights, makes residuals of the logits and multiplies those
//! with the rows again, while all of it lies in the second cache. Where a head has few outputs, general matrix products
//! spend their time on packing; [`logits`] and [`accumulate`] read both sides where they lie. Where it has many, rows and
//! weights are worth being put into [`panels`](crate::panels), and [`Weights`] does. Rows are padded to [`LANES`] numbers, so
//! that no loop has a rest.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::rows::{MANY_CHUNK, MAX_CHUNK};
use crate::panels::{Place, Product, pack, pack_transposed};
use crate::scratch::{self, AlignedVec};

/// Rows of features and of weights are padded to a multiple of this: the widest vector.
pub(super) const LANES: usize = crate::panels::LANES;

/// Outputs from which on rows are put into panels.
const MANY: usize = 32;

/// The weights of a pass, `[outputs, stride]`, and both products with them.
pub(super) struct Weights {
    values: AlignedVec,
    stride: usize,
    /// Those of the first outputs, a multiple of [`LANES`], in panels over the outputs; none where all are few.
    panels: AlignedVec,
}

/// Rows of a pass, `[n, stride]`, on their way through its products.
pub(super) struct Chunk<'c> {
    rows: &'c [f32],
    /// The first rows, a multiple of [`LANES`], in panels over the features.
    panels: &'c [f32],
}

impl Weights {
    pub(super) fn new(theta: &[f64], stride: usize) -> Weights {
        let mut values = AlignedVec::zeros(theta.len());
        values
            .par_chunks_mut(LANES * stride)
            .zip(theta.par_chunks(LANES * stride))
            .for_each(|(values, theta)| values.iter_mut().zip(theta).for_each(|(to, x)| *to = *x as f32));
        let n_outputs = values.len() / stride;
        let n = if n_outputs < MANY {
            0
        } else {
            n_outputs / LANES * LANES
        };
        let mut panels = AlignedVec::zeros(n * stride);
        panels
            .par_chunks_mut(LANES * stride)
            .zip(values.par_chunks(LANES * stride))
            .for_each(|(panel, rows)| pack_transposed(rows, stride, stride, LANES, panel));
        Weights {
            values,
            stride,
            panels,
        }
    }

    /// Rows that are taken at once, of which few outputs take `few`.
    pub(super) fn chunk_rows(&self, few: usize) -> usize {
        /// Numbers of a gradient that the second cache holds beside the rows.
        const NEAR: usize = 1 << 17;
        match self.panels.len() {
            0 => few,
            1..NEAR => MAX_CHUNK,
            _ => MANY_CHUNK,
        }
    }

    /// What both products want of some rows; `room` is for it.
    pub(super) fn chunk<'c>(&self, rows: &'c [f32], room: &'c mut AlignedVec) -> Chunk<'c> {
        let stride = self.stride;
        let n = if self.panels.is_empty() {
            0
        } else {
            rows.len() / stride / LANES * LANES
        };
        room.resize(n * stride);
        if n > 0 {
            pack(rows, stride, n, stride, room);
        }
        Chunk { rows, panels: room }
    }

    /// `out[k · out_stride + r] = Σ_d rows[r, d] · weights[k, d]`: logits, one output after another.
    pub(super) fn logits(&self, chunk: &Chunk<'_>, out: &mut [f32], out_stride: usize) {
        let stride = self.stride;
        let (n_rows, n_outputs) = (chunk.panels.len() / stride, self.panels.len() / stride);
        let (rows, rest) = chunk.rows.split_at(n_rows * stride);
        if n_rows > 0 {
            let mut done = scratch::take(n_rows * n_outputs);
            let done = done.as_mut();
            Product {
                a: chunk.panels,
                a_row: LANES,
                a_panel: n_rows * LANES,
                n_rows,
                depth: stride,
                b: &self.panels,
                b_panel: stride * LANES,
                out: done,
                place: Place {
                    row: LANES,
                    panel: n_rows * LANES,
                    n_columns: n_outputs,
                    is_added: false,
                },
            }
            .run();
            let panels = done.chunks_exact(n_rows * LANES);
            for (panel, out) in panels.zip(out.chunks_mut(LANES * out_stride)) {
                for (lane, out) in out.chunks_mut(out_stride).enumerate() {
                    for (out, panel) in out[..n_rows].iter_mut().zip(panel.chunks_exact(LANES)) {
                        *out = panel[lane];
                    }
                }
            }
            let (weights, out) = (
                &self.values[n_outputs * stride..],
                &mut out[n_outputs * out_stride..],
            );
            logits(rows, weights, stride, out, out_stride);
        }
        logits(rest, &self.values, stride, &mut out[n_rows..], out_stride);
    }
}

impl Chunk<'_> {
    /// `out[k · stride + d] += Σ_r residual[k · residual_stride + r] · rows[r, d]`, as [`accumulate`].
    pub(super) fn accumulate(
        &self,
        residual: &[f32],
        residual_stride: usize,
        stride: usize,
        out: &mut [f32],
    ) {
        let n_rows = self.panels.len() / stride;
        if n_rows > 0 {
            Product {
                a: residual,
                a_row: residual_stride,
                a_panel: LANES,
                n_rows: out.len() / stride,
                depth: n_rows,
                b: self.panels,
                b_panel: n_rows * LANES,
                out,
                place: Place {
                    row: stride,
                    panel: LANES,
                    n_columns: stride,
                    is_added: true,
                },
            }
            .run();
        }
        let rest = &self.rows[n_rows * stride..];
        if !rest.is_empty() {
            accumulate(&residual[n_rows..], residual_stride, rest, stride, out);
        }
    }
}

/// `out[k · out_stride + r] = Σ_d rows[r · stride + d] · weight[k · stride + d]`: logits, one output after another.
fn logits(rows: &[f32], weight: &[f32], stride: usize, out: &mut [f32], out_stride: usize) {
    assert!(
        stride.is_multiple_of(LANES)
            && rows.len().is_multiple_of(stride)
            && weight.len().is_multiple_of(stride)
    );
    let (n_rows, n_outputs) = (rows.len() / stride, weight.len() / stride);
    if n_rows == 0 || n_outputs == 0 {
        return;
    }
    assert!(n_rows <= out_stride && out.len() >= (n_outputs - 1) * out_stride + n_rows);
    pulp::Arch::new().dispatch(Logits {
        rows,
        weight,
        stride,
        out,
        out_stride,
    });
}

/// `out[k · stride + d] += Σ_r residual[k · residual_stride + r] · rows[r · stride + d]`: a product of residuals, one output
/// after another, and rows.
///
/// Each number is added to in the order of the rows, whatever the machine's vectors.
fn accumulate(residual: &[f32], residual_stride: usize, rows: &[f32], stride: usize, out: &mut [f32]) {
    assert!(stride.is_multiple_of(LANES));
    assert!(rows.len().is_multiple_of(stride) && out.len().is_multiple_of(stride));
    let n_outputs = out.len() / stride;
    let n_rows = rows.len() / stride;
    assert!(
        n_rows <= residual_stride && residual.len() >= n_outputs.saturating_sub(1) * residual_stride + n_rows
    );
    pulp::Arch::new().dispatch(Accumulate {
        residual,
        residual_stride,
        rows,
        stride,
        out,
    });
}

struct Logits<'a> {
    rows: &'a [f32],
    weight: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
    out_stride: usize,
}

impl WithSimd for Logits<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        /// Weights that all rows are multiplied with before the next: they stay in the second cache.
        const BLOCK_NUMBERS: usize = 48 << 10;
        let n_outputs = self.weight.len() / self.stride;
        // Whole tiles of five.
        let block = (BLOCK_NUMBERS / self.stride / 5 * 5).max(5);
        let mut k = 0;
        while k < n_outputs {
            let end = (k + block).min(n_outputs);
            self.block(simd, k, end);
            k = end;
        }
    }
}

impl Logits<'_> {
    /// The outputs `first..end` of all rows.
    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, first: usize, end: usize) {
        let n_rows = self.rows.len() / self.stride;
        // As many sums as the registers hold: more would go through memory, fewer would wait for each other.
        let wide = S::REGISTER_COUNT >= 32;
        let mut row = 0;
        while row < n_rows {
            let left = n_rows - row;
            let height = if end - first <= 2 && left >= 8 {
                8
            } else if left >= 4 {
                4
            } else {
                1
            };
            let mut k = first;
            while k < end {
                k += match (height, end - k) {
                    (8, 1) => self.tile::<S, 8, 1>(simd, row, k),
                    (8, _) => self.tile::<S, 8, 2>(simd, row, k),
                    (4, 5..) if wide => self.tile::<S, 4, 5>(simd, row, k),
                    (4, 4) if wide => self.tile::<S, 4, 4>(simd, row, k),
                    (4, 3..) => self.tile::<S, 4, 3>(simd, row, k),
                    (4, 2) => self.tile::<S, 4, 2>(simd, row, k),
                    (4, _) => self.tile::<S, 4, 1>(simd, row, k),
                    (_, 4..) => self.tile::<S, 1, 4>(simd, row, k),
                    _ => self.tile::<S, 1, 1>(simd, row, k),
                };
            }
            row += height;
        }
    }

    /// `R` rows by `K` outputs; returns `K`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const K: usize>(&mut self, simd: S, row: usize, k: usize) -> usize {
        let rows = vectors::<S, R>(self.rows, row, self.stride);
        let weights = vectors::<S, K>(self.weight, k, self.stride);
        let n = self.stride / S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); R]; K];
        for i in 0..n {
            let mut x = [simd.splat_f32s(0.0); R];
            for r in 0..R {
                x[r] = rows[r][i];
            }
            for j in 0..K {
                let w = weights[j][i];
                for r in 0..R {
                    sums[j][r] = simd.mul_add_e_f32s(x[r], w, sums[j][r]);
                }
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(k + j) * self.out_stride + row..][..R];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.reduce_sum_f32s(*sum);
            }
        }
        K
    }
}

/// `M` rows of a matrix from `first` on, as vectors.
#[inline(always)]
fn vectors<S: Simd, const M: usize>(values: &[f32], first: usize, stride: usize) -> [&[S::f32s]; M] {
    let mut rows: [&[S::f32s]; M] = [&[]; M];
    for (m, row) in rows.iter_mut().enumerate() {
        let values = &values[(first + m) * stride..][..stride];
        // The same length for all, so that one bound is checked for all.
        *row = &S::as_simd_f32s(values).0[..stride / S::F32_LANES];
    }
    rows
}

struct Accumulate<'a> {
    residual: &'a [f32],
    residual_stride: usize,
    rows: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n_outputs = self.out.len() / self.stride;
        let wide = S::REGISTER_COUNT >= 32;
        let mut k = 0;
        while k < n_outputs {
            k += match n_outputs - k {
                1 => self.band::<S, 1, 8>(simd, k),
                2 => self.band::<S, 2, 4>(simd, k),
                3 => self.band::<S, 3, 4>(simd, k),
                4 if wide => self.band::<S, 4, 4>(simd, k),
                5 if wide => self.band::<S, 5, 4>(simd, k),
                12.. if wide => self.band::<S, 12, 2>(simd, k),
                10.. if wide => self.band::<S, 10, 2>(simd, k),
                8.. if wide => self.band::<S, 8, 2>(simd, k),
                6.. => self.band::<S, 6, 2>(simd, k),
                5 => self.band::<S, 5, 2>(simd, k),
                _ => self.band::<S, 4, 2>(simd, k),
            };
        }
    }
}

impl Accumulate<'_> {
    /// `K` outputs over all columns, `V` vectors at a time; returns `K`.
    #[inline(always)]
    fn band<S: Simd, const K: usize, const V: usize>(&mut self, simd: S, k: usize) -> usize {
        let n = self.stride / S::F32_LANES;
        let mut column = 0;
        while column + V <= n {
            self.tile::<S, K, V>(simd, k, column);
            column += V;
        }
        while column < n {
            self.tile::<S, K, 1>(simd, k, column);
            column += 1;
        }
        K
    }

    #[inline(always)]
    fn tile<S: Simd, const K: usize, const V: usize>(&mut self, simd: S, k: usize, column: usize) {
        let n_rows = self.rows.len() / self.stride;
        let mut residuals: [&[f32]; K] = [&[]; K];
        for (j, residual) in residuals.iter_mut().enumerate() {
            *residual = &self.residual[(k + j) * self.residual_stride..][..n_rows];
        }
        let mut sums = [[simd.splat_f32s(0.0); V]; K];
        for (j, sums) in sums.iter_mut().enumerate() {
            let out = S::as_simd_f32s(&self.out[(k + j) * self.stride..][..self.stride]).0;
            sums.copy_from_slice(&out[column..column + V]);
        }
        for (r, row) in self.rows.chunks_exact(self.stride).enumerate().take(n_rows) {
            let row = &S::as_simd_f32s(row).0[column..column + V];
            let mut x = [simd.splat_f32s(0.0); V];
            x.copy_from_slice(row);
            for j in 0..K {
                let residual = simd.splat_f32s(residuals[j][r]);
                for v in 0..V {
                    sums[j][v] = simd.mul_add_e_f32s(residual, x[v], sums[j][v]);
                }
            }
        }
        for (j, sums) in sums.iter().enumerate() {
            let out = S::as_mut_simd_f32s(&mut self.out[(k + j) * self.stride..][..self.stride]).0;
            out[column..column + V].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_their_definition() {
        // Small whole numbers: every sum is exact in any order.
        let value = |seed: usize| move |i: usize| ((i * seed) % 17) as f32 - 8.0;
        let few = [(1, 1, 16), (9, 2, 48), (7, 3, 80), (12, 5, 32), (13, 29, 112)];
        let many = [(5, 40, 48), (16, 32, 16), (37, 45, 80), (130, 64, 144)];
        for (n_rows, n_outputs, stride) in few.into_iter().chain(many) {
            let out_stride = n_rows + 3;
            let rows: Vec<f32> = (0..n_rows * stride).map(value(5)).collect();
            let weight: Vec<f64> = (0..n_outputs * stride).map(value(11)).map(f64::from).collect();
            let mut out = vec![0.0; n_outputs * out_stride];
            let weights = Weights::new(&weight, stride);
            let mut room = AlignedVec::default();
            let chunk = weights.chunk(&rows, &mut room);
            weights.logits(&chunk, &mut out, out_stride);
            let mut product = vec![1.0; n_outputs * stride];
            chunk.accumulate(&out, out_stride, stride, &mut product);
            for k in 0..n_outputs {
                for r in 0..n_rows {
                    let want: f32 = (0..stride)
                        .map(|d| rows[r * stride + d] * weight[k * stride + d] as f32)
                        .sum();
                    assert_eq!(out[k * out_stride + r], want, "{n_rows} {n_outputs} {stride}");
                }
                for d in 0..stride {
                    let sum: f32 = (0..n_rows)
                        .map(|r| out[k * out_stride + r] * rows[r * stride + d])
                        .sum();
                    assert_eq!(
                        product[k * stride + d],
                        1.0 + sum,
                        "{n_rows} {n_outputs} {stride}"
                    );
                }
            }
        }
    }
}
