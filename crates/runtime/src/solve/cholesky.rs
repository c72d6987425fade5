//! The Cholesky factor of a symmetric positive definite matrix, by blocks.

use std::ops::Range;

use rayon::prelude::*;

use super::linalg::{dot, matmul_transposed};
use crate::panels::vectorised;

/// Rows of a block: its own factor is small beside the products with all others.
const BLOCK: usize = 64;

/// Columns whose contributions are taken away from all columns behind them at once: what is left is large, and read seldom.
const BAND: usize = 4 * BLOCK;

/// A lower-triangular L with `A = L Lᵀ`; `[d, d]` row-major, zeros above the diagonal.
#[derive(Debug, Clone)]
pub(super) struct Cholesky {
    lower: Vec<f64>,
    d: usize,
}

impl Cholesky {
    /// Factors `a`, of which only the lower triangle is read. `None` where it is not positive definite.
    pub(super) fn new(mut a: Vec<f64>, d: usize) -> Option<Cholesky> {
        assert_eq!(a.len(), d * d);
        for outer in (0..d).step_by(BAND) {
            let end = (outer + BAND).min(d);
            for start in (outer..end).step_by(BLOCK) {
                let n = BLOCK.min(end - start);
                let (above, below) = a.split_at_mut((start + n) * d);
                let diagonal = &mut above[start * d..];
                pulp::Arch::new().dispatch(FactorBlock {
                    rows: &mut *diagonal,
                    start,
                    n,
                    d,
                })?;
                let diagonal = &*diagonal;
                below.par_chunks_mut(BLOCK * d).for_each(|rows| {
                    pulp::Arch::new().dispatch(SolveRows {
                        diagonal,
                        rows,
                        start,
                        n,
                        d,
                    });
                });
                take_away(below, d, start..start + n, end);
            }
            take_away(&mut a[end * d..], d, outer..end, d);
        }
        a.par_chunks_mut(d)
            .enumerate()
            .for_each(|(row, values)| values[row + 1..].fill(0.0));
        Some(Cholesky { lower: a, d })
    }

    /// The least number on the diagonal of L: zero, but for rounding, where the matrix is singular.
    pub(super) fn least_pivot(&self) -> f64 {
        (0..self.d)
            .map(|i| self.lower[i * self.d + i])
            .fold(f64::INFINITY, f64::min)
    }

    /// Solves `L x = b` in place.
    pub(super) fn solve(&self, x: &mut [f64]) {
        for row in 0..self.d {
            let lower = &self.lower[row * self.d..row * self.d + row + 1];
            x[row] = (x[row] - dot(&lower[..row], &x[..row])) / lower[row];
        }
    }

    /// Solves `Lᵀ x = b` in place.
    pub(super) fn solve_transposed(&self, x: &mut [f64]) {
        for row in (0..self.d).rev() {
            let lower = &self.lower[row * self.d..row * self.d + row + 1];
            x[row] /= lower[row];
            let value = x[row];
            x[..row].iter_mut().zip(lower).for_each(|(x, l)| *x -= l * value);
        }
    }

    /// `L⁻¹`, lower triangular, `[d, d]`; for few columns.
    pub(super) fn inverse(&self) -> Vec<f64> {
        let mut inverse = vec![0.0; self.d * self.d];
        invert(&self.lower, self.d, &mut inverse);
        inverse
    }
}

vectorised! {
    /// The inverse of a lower-triangular matrix, `[d, d]`, in place of zeros.
    fn invert(lower: &'a [f64], d: usize, inverse: &'a mut [f64]) {
        for row in 0..d {
            let (above, current) = inverse.split_at_mut(row * d);
            let current = &mut current[..=row];
            current[row] = 1.0;
            let lower = &lower[row * d..][..row + 1];
            for (other, l) in above.chunks_exact(d).zip(lower) {
                for (x, other) in current.iter_mut().zip(other) {
                    *x -= l * other;
                }
            }
            for x in current {
                *x /= lower[row];
            }
        }
    }
}

/// Takes from what is left of the rows below some columns' own what those columns contribute to it, up to column `end`.
fn take_away(below: &mut [f64], d: usize, columns: Range<usize>, end: usize) {
    let (n, first) = (columns.len(), columns.end);
    if end == first {
        return;
    }
    let mut panel = vec![0.0; below.len() / d * n];
    let copy = |(to, row): (&mut [f64], &[f64])| to.copy_from_slice(&row[columns.clone()]);
    let both = panel.par_chunks_exact_mut(n).zip(below.par_chunks_exact(d));
    both.with_min_len(BLOCK).for_each(copy);
    let of_block = |(block, rows): (usize, &mut [f64])| {
        let height = rows.len() / d;
        let width = (block * BLOCK + height).min(end - first);
        let left = &panel[block * BLOCK * n..][..height * n];
        let mut product = vec![0.0; height * width];
        matmul_transposed(left, &panel[..width * n], &mut product, n);
        for (row, product) in rows.chunks_exact_mut(d).zip(product.chunks_exact(width)) {
            let left = row[first..first + width].iter_mut();
            left.zip(product).for_each(|(a, product)| *a -= product);
        }
    };
    below.par_chunks_mut(BLOCK * d).enumerate().for_each(of_block);
}

/// Factors the block of `n` rows that begins at its column `start`.
struct FactorBlock<'a> {
    rows: &'a mut [f64],
    start: usize,
    n: usize,
    d: usize,
}

// A type and not a closure: a closure would not be compiled for the wider vectors.
impl pulp::NullaryFnOnce for FactorBlock<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn call(self) -> Option<()> {
        for row in 0..self.n {
            let (above, current) = self.rows.split_at_mut(row * self.d);
            let current = &mut current[self.start..self.start + row + 1];
            for column in 0..row {
                let other = &above[column * self.d + self.start..][..column + 1];
                let sum = dot(&current[..column], &other[..column]);
                current[column] = (current[column] - sum) / other[column];
            }
            let pivot = current[row] - dot(&current[..row], &current[..row]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            current[row] = pivot.sqrt();
        }
        Some(())
    }
}

/// Solves rows below a factored block with it.
struct SolveRows<'a> {
    diagonal: &'a [f64],
    rows: &'a mut [f64],
    start: usize,
    n: usize,
    d: usize,
}

impl pulp::NullaryFnOnce for SolveRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for row in self.rows.chunks_exact_mut(self.d) {
            let row = &mut row[self.start..self.start + self.n];
            for column in 0..self.n {
                let lower = &self.diagonal[column * self.d + self.start..][..column + 1];
                let sum = dot(&row[..column], &lower[..column]);
                row[column] = (row[column] - sum) / lower[column];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definite(d: usize) -> Vec<f64> {
        let root: Vec<f64> = (0..d * d)
            .map(|n| ((n * 7919) % 31) as f64 / 31.0 - 0.5)
            .collect();
        let mut a = vec![0.0; d * d];
        for i in 0..d {
            for j in 0..d {
                a[i * d + j] = (0..d).map(|k| root[i * d + k] * root[j * d + k]).sum::<f64>()
                    + f64::from(u8::from(i == j));
            }
        }
        a
    }

    #[test]
    fn the_factor_solves_and_its_inverse_inverts() {
        for d in [1, 13, 64, 65, 200, 300] {
            let a = definite(d);
            let factor = Cholesky::new(a.clone(), d).unwrap();
            let x: Vec<f64> = (0..d).map(|n| n as f64 - 4.0).collect();
            let mut b: Vec<f64> = (0..d)
                .map(|i| (0..d).map(|j| a[i * d + j] * x[j]).sum())
                .collect();
            factor.solve(&mut b);
            factor.solve_transposed(&mut b);
            assert!(b.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-8), "{d}");
            let inverse = factor.inverse();
            for i in 0..d {
                for j in 0..d {
                    let sum: f64 = (0..d).map(|k| factor.lower[i * d + k] * inverse[k * d + j]).sum();
                    assert!(
                        (sum - f64::from(u8::from(i == j))).abs() < 1e-10,
                        "{d}: {i} {j} {sum}"
                    );
                }
            }
        }
        assert!(Cholesky::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
