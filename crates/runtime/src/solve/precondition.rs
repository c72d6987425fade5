//! What makes the problem easy: a matrix near the inverse of its Hessian.
//!
//! The Hessian of the softmax loss is, row by row, `(diag p - p pᵀ) ⊗ x xᵀ`. One number in place of the first factor
//! makes it the same for every class: `C · curvature · Σ x xᵀ + I`, one `[D + 1, D + 1]` matrix. What is solved with its
//! Cholesky factor, in float32 and block by block, is a product with a matrix and then with its transpose, so that it stays
//! positive definite whatever is rounded.

use std::ops::Range;

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::kernel::LANES;
use super::rows::Rows;
use super::vector::{dot, narrow, set};
use crate::error::Error;
use crate::panels::{Place, Product, fair};
use crate::scratch::{self, AlignedVec};

/// Features up to which the whole matrix is factored, in memory and time that grow as its square and cube.
pub(crate) const MAX_DENSE: usize = 4096;

/// Columns of a block that is factored and solved at once: panels enough for rows to be brought together.
const BLOCK: usize = 8 * LANES;

/// Rows that one thread takes at once.
const ROWS: usize = 112;

/// `weight · gram + scale · I`, without the bias's part of I: a Hessian, times a number that keeps it within float32's range.
struct Hessian<'g> {
    /// `[stride, stride]`, the lower triangle.
    gram: &'g [f64],
    stride: usize,
    d: usize,
    weight: f64,
    scale: f64,
}

/// The Cholesky factor L of a Hessian, to solve with. Both arrays are `[stride, stride]` in panels of columns.
#[derive(Debug)]
pub(super) struct Factor {
    /// L; in place of its blocks on the diagonal, minus their inverses.
    lower: AlignedVec,
    /// Minus the transpose of L; in place of its blocks on the diagonal, their inverses'.
    upper: AlignedVec,
    stride: usize,
    /// The Hessian's own.
    scale: f64,
}

/// An approximate inverse Hessian, the same for every output.
#[derive(Debug)]
pub(super) enum Preconditioner {
    /// `[stride]`, where the features are too many or the penalty outweighs them all.
    Diagonal(Vec<f64>),
    /// L, with `L Lᵀ` the Hessian.
    Dense(Factor),
}

impl Preconditioner {
    /// Of the diagonal alone; `weight` is C times the curvature of a row.
    pub(super) fn diagonal(rows: &Rows<'_>, weight: f64) -> Preconditioner {
        let mut inverse = vec![0.0; rows.stride];
        for (inverse, square) in inverse.iter_mut().zip(&rows.squares) {
            *inverse = 1.0 / (1.0 + weight * square);
        }
        inverse[rows.n_features()] = 1.0 / (weight * rows.n_rows() as f64);
        Preconditioner::Diagonal(inverse)
    }

    /// Of the lower triangle of `gram`, `[stride, stride]`.
    ///
    /// # Errors
    /// [`Error::Features`] where the numbers are beyond what can be factored.
    pub(super) fn dense(gram: &[f64], rows: &Rows<'_>, weight: f64) -> Result<Preconditioner, Error> {
        let (d, stride) = (rows.n_features(), rows.stride);
        // Rounding can cost a nearly singular matrix its definiteness; the factor only preconditions, so that a little more on
        // the diagonal then does no harm.
        let top = (0..=d).map(|i| weight * gram[i * stride + i]).fold(1.0, f64::max);
        let hessian = Hessian {
            gram,
            stride,
            d,
            weight: weight / top,
            scale: 1.0 / top,
        };
        [0.0, 1e-7, 1e-6, 1e-5, 1e-3]
            .into_iter()
            .find_map(|extra| Factor::new(&hessian, extra))
            .map(Preconditioner::Dense)
            .ok_or_else(|| Error::Features("their scale is beyond what can be factored".to_owned()))
    }

    /// Whether it knows more than the diagonal.
    pub(super) fn is_dense(&self) -> bool {
        matches!(self, Preconditioner::Dense(_))
    }

    /// Multiplies each row of `q`, `[K, stride]`.
    pub(super) fn apply(&self, q: &mut [f64]) {
        match self {
            Preconditioner::Diagonal(inverse) => {
                for row in q.chunks_exact_mut(inverse.len()) {
                    row.iter_mut().zip(inverse).for_each(|(q, inverse)| *q *= inverse);
                }
            }
            Preconditioner::Dense(factor) => {
                let mut whole = narrow(q);
                factor.each(&mut whole, |factor, rows| {
                    factor.solve(rows);
                    factor.solve_transposed(rows);
                });
                set(q, factor.scale, &whole);
            }
        }
    }

    /// Per row of `y` its square in this metric, summed over `rows_each` rows.
    pub(super) fn squares(&self, y: &[f32], rows_each: usize) -> Vec<f64> {
        match self {
            Preconditioner::Diagonal(inverse) => y
                .chunks_exact(rows_each * inverse.len())
                .map(|block| {
                    let squares = block.chunks_exact(inverse.len()).map(|row| {
                        let terms = row
                            .iter()
                            .zip(inverse)
                            .map(|(y, inverse)| f64::from(*y).powi(2) * inverse);
                        terms.sum::<f64>()
                    });
                    squares.sum()
                })
                .collect(),
            Preconditioner::Dense(factor) => {
                let mut half = y.to_vec();
                factor.each(&mut half, Factor::solve);
                let blocks = half.chunks_exact(rows_each * factor.stride);
                blocks.map(|block| factor.scale * dot(block, block)).collect()
            }
        }
    }
}

impl Factor {
    /// Factors a Hessian with something more on its diagonal, column block by column block (the left-looking algorithm: Golub
    /// and Van Loan, "Matrix Computations", 4.2.9). `None` where it is not positive definite.
    fn new(hessian: &Hessian<'_>, extra: f64) -> Option<Factor> {
        let (stride, n) = (hessian.stride, hessian.d + 1);
        let mut factor = Factor {
            lower: AlignedVec::zeros(stride * stride),
            upper: AlignedVec::zeros(stride * stride),
            stride,
            scale: hessian.scale,
        };
        let mut left = vec![0.0; n * BLOCK];
        for first in (0..n).step_by(BLOCK) {
            let width = BLOCK.min(n - first);
            let each = fair(n - first, ROWS);
            left.truncate((n - first) * BLOCK);
            left.par_chunks_mut(each * BLOCK)
                .enumerate()
                .for_each(|(part, left)| factor.left_of(hessian, first + part * each, first, left));
            let (own, below) = left.split_at(width * BLOCK);
            let mut block = vec![0.0; width * width];
            for (row, (out, own)) in block
                .chunks_exact_mut(width)
                .zip(own.chunks_exact(BLOCK))
                .enumerate()
            {
                out.iter_mut()
                    .zip(own)
                    .for_each(|(out, own)| *out = f64::from(*own));
                out[row] += extra;
            }
            let inverse = Cholesky::new(block, width)?.inverse();
            for (row, inverse) in inverse.chunks_exact(width).enumerate() {
                for (column, value) in inverse[..=row].iter().enumerate() {
                    factor.lower[place(stride, first + row, first + column)] = -*value as f32;
                    factor.upper[place(stride, first + column, first + row)] = *value as f32;
                }
            }
            let parts: Vec<Vec<f32>> = below
                .par_chunks(each * BLOCK)
                .map(|left| factor.solved(left, first))
                .collect();
            factor.put(&parts, first + width, first);
        }
        Some(factor)
    }

    /// What is left of the Hessian's rows from `row` on in the block of columns from `first` on, `[rows, BLOCK]`.
    fn left_of(&self, hessian: &Hessian<'_>, row: usize, first: usize, left: &mut [f32]) {
        let stride = self.stride;
        for (row, out) in (row..).zip(left.chunks_exact_mut(BLOCK)) {
            let end = (first + BLOCK).min(row + 1);
            let (own, rest) = out.split_at_mut(end - first);
            for (out, moment) in own.iter_mut().zip(&hessian.gram[row * stride..][first..end]) {
                *out = (hessian.weight * moment) as f32;
            }
            rest.fill(0.0);
            if row < first + BLOCK && row < hessian.d {
                out[row - first] += hessian.scale as f32;
            }
        }
        if first > 0 {
            Product {
                a: &self.lower[row * LANES..],
                a_row: LANES,
                a_panel: stride * LANES,
                n_rows: left.len() / BLOCK,
                depth: first,
                b: &self.upper[first * stride..],
                b_panel: stride * LANES,
                out: left,
                place: Place {
                    row: BLOCK,
                    panel: LANES,
                    n_columns: BLOCK.min(stride - first),
                    is_added: true,
                },
            }
            .run();
        }
    }

    /// Rows of L below the block on the diagonal from `first` on, of what was left of the Hessian's; both `[rows, BLOCK]`.
    fn solved(&self, left: &[f32], first: usize) -> Vec<f32> {
        let mut out = vec![0.0; left.len()];
        let n_columns = BLOCK.min(self.stride - first);
        Product {
            a: left,
            a_row: BLOCK,
            a_panel: LANES,
            n_rows: left.len() / BLOCK,
            depth: n_columns,
            b: &self.upper[first * self.stride + first * LANES..],
            b_panel: self.stride * LANES,
            out: &mut out,
            place: Place {
                row: BLOCK,
                panel: LANES,
                n_columns,
                is_added: false,
            },
        }
        .run();
        out
    }

    /// Puts rows of L, parts of `[rows, BLOCK]` from `row` on, where both arrays have them.
    fn put(&mut self, parts: &[Vec<f32>], row: usize, first: usize) {
        let stride = self.stride;
        let rows = || parts.iter().flat_map(|part| part.chunks_exact(BLOCK));
        let of_panel = |(panel, out): (usize, &mut [f32])| {
            for (out, from) in out[row * LANES..].chunks_exact_mut(LANES).zip(rows()) {
                out.copy_from_slice(&from[panel * LANES..][..LANES]);
            }
        };
        let panels = self.lower[first * stride..].par_chunks_exact_mut(stride * LANES);
        panels.take(BLOCK / LANES).enumerate().for_each(of_panel);
        let from: Vec<&[f32]> = rows().collect();
        let panels = self.upper.par_chunks_exact_mut(stride * LANES).enumerate();
        panels.skip(row / LANES).for_each(|(panel, out)| {
            for lane in 0..LANES {
                let Some(from) = (panel * LANES + lane)
                    .checked_sub(row)
                    .and_then(|at| from.get(at))
                else {
                    continue;
                };
                let out = out[first * LANES..].chunks_exact_mut(LANES);
                out.zip(*from).for_each(|(out, value)| out[lane] = -value);
            }
        });
    }

    /// Does something to all rows of `q`, `[K, stride]`, on as many threads as that is worth; one row is one thread's. What
    /// becomes of a row does not depend on the others.
    fn each(&self, q: &mut [f32], work: impl Fn(&Factor, &mut [f32]) + Sync) {
        let (stride, n) = (self.stride, q.len() / self.stride);
        if n == 1 || q.len() * stride < 1 << 21 {
            return work(self, q);
        }
        q.par_chunks_mut(fair(n, ROWS) * stride)
            .for_each(|rows| work(self, rows));
    }

    /// `L⁻¹` times each row.
    fn solve(&self, q: &mut [f32]) {
        for first in (0..self.stride).step_by(BLOCK) {
            self.block(&self.upper, 1.0, first, 0..first, q);
        }
    }

    /// `L⁻ᵀ` times each row.
    fn solve_transposed(&self, q: &mut [f32]) {
        for first in (0..self.stride).step_by(BLOCK).rev() {
            let last = (first + BLOCK).min(self.stride);
            self.block(&self.lower, -1.0, first, last..self.stride, q);
        }
    }

    /// The block of columns from `first` on: what the solved ones say of it is taken away, and it is solved itself.
    fn block(&self, matrix: &[f32], sign: f32, first: usize, solved: Range<usize>, q: &mut [f32]) {
        let stride = self.stride;
        let n = BLOCK.min(stride - first);
        let mut left = scratch::take(q.len() / stride * n);
        let left = left.as_mut();
        for (left, q) in left.chunks_exact_mut(n).zip(q.chunks_exact(stride)) {
            left.iter_mut()
                .zip(&q[first..])
                .for_each(|(left, q)| *left = sign * q);
        }
        let columns = &matrix[first * stride..];
        let n_rows = q.len() / stride;
        if !solved.is_empty() {
            Product {
                a: &q[solved.start..],
                a_row: stride,
                a_panel: LANES,
                n_rows,
                depth: solved.len(),
                b: &columns[solved.start * LANES..],
                b_panel: stride * LANES,
                out: &mut *left,
                place: Place {
                    row: n,
                    panel: LANES,
                    n_columns: n,
                    is_added: true,
                },
            }
            .run();
        }
        Product {
            a: left,
            a_row: n,
            a_panel: LANES,
            n_rows,
            depth: n,
            b: &columns[first * LANES..],
            b_panel: stride * LANES,
            out: &mut q[first..],
            place: Place {
                row: stride,
                panel: LANES,
                n_columns: n,
                is_added: false,
            },
        }
        .run();
    }
}

/// Where panels of columns have a number.
fn place(stride: usize, row: usize, column: usize) -> usize {
    (column / LANES * stride + row) * LANES + column % LANES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::random::Random;
    use crate::solve::gram::exact_gram;

    #[test]
    fn it_is_the_inverse_of_its_matrix() {
        // The second has more than a block of columns, the third more than two.
        [(200, 21), (900, 150), (700, 300)]
            .into_iter()
            .for_each(check_inverse);
    }

    fn check_inverse((n, d): (usize, usize)) {
        let mut random = Random::new(2, "precondition test");
        let values = (0..n * d)
            .map(|_| random.below(1000) as f32 / 500.0 - 1.0)
            .collect();
        let features = Features::new(values, d).unwrap();
        let rows = Rows::new(&features, false);
        let gram = exact_gram(&rows);
        let inverse = Preconditioner::dense(&gram, &rows, 0.3).unwrap();
        let stride = rows.stride;
        let mut q = vec![0.0; 14 * stride];
        (0..14).for_each(|k| (0..=d).for_each(|i| q[k * stride + i] = ((k + i) % 5) as f64 - 2.0));
        let mut x = q.clone();
        inverse.apply(&mut x);
        let squares = inverse.squares(&narrow(&q), 7);
        for k in 0..14 {
            for i in 0..=d {
                let row = (0..=d).map(|j| 0.3 * gram[i * stride + j] * x[k * stride + j]);
                let got: f64 = row.sum::<f64>() + if i < d { x[k * stride + i] } else { 0.0 };
                assert!((got - q[k * stride + i]).abs() < 1e-4, "{d}: {got}");
            }
        }
        let want: f64 = q[..7 * stride].iter().zip(&x).map(|(q, x)| q * x).sum();
        assert!((squares[0] / want - 1.0).abs() < 1e-5 && squares.len() == 2);
    }

    #[test]
    fn a_matrix_that_rounding_made_indefinite_is_factored_all_the_same() {
        // Eigenvalues 2e9 + 11 and -9 with the identity added: what float32 products make of collinear features.
        let features = Features::new(vec![1.0, 2.0, 3.0, 4.0], 2).unwrap();
        let rows = Rows::new(&features, false);
        let mut gram = vec![0.0; rows.stride * rows.stride];
        for (row, column, value) in [(0, 0, 1e9), (1, 0, 1e9 + 10.0), (1, 1, 1e9), (2, 2, 1.0)] {
            gram[row * rows.stride + column] = value;
        }
        let hessian = Hessian {
            gram: &gram,
            stride: rows.stride,
            d: 2,
            weight: 1e-9,
            scale: 1e-9,
        };
        assert!(Factor::new(&hessian, 0.0).is_none(), "indefinite as it is");
        let mut q = vec![1.0; rows.stride];
        Preconditioner::dense(&gram, &rows, 1.0).unwrap().apply(&mut q);
        assert!(q.iter().all(|q| q.is_finite()));
        gram.fill(f64::NAN);
        assert!(Preconditioner::dense(&gram, &rows, 1.0).is_err());
    }
}
