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
use super::vector::{add, dot, narrow};
use crate::error::Error;
use crate::panels::{Place, Product, fair, pack, pack_transposed};
use crate::scratch;

/// Features up to which the whole matrix is factored, in memory and time that grow as its square and cube.
pub(crate) const MAX_DENSE: usize = 4096;

/// Columns of a block that is solved at once: panels enough for rows to be brought together.
const BLOCK: usize = 8 * LANES;

/// Rows that one thread solves at once.
const ROWS: usize = 112;

/// A lower-triangular L to solve with. Both `[stride, stride]` in panels of columns, with the inverses of L's blocks on the
/// diagonal, and minus what lies beside those.
#[derive(Debug)]
pub(super) struct Factor {
    /// As L lies.
    lower: Vec<f32>,
    /// As its transpose does.
    upper: Vec<f32>,
    stride: usize,
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
        let factor = factor(gram, stride, d, weight)?;
        Ok(Preconditioner::Dense(Factor::new(&factor, d + 1, stride)))
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
                q.fill(0.0);
                add(q, 1.0, &whole);
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
                blocks.map(|block| dot(block, block)).collect()
            }
        }
    }
}

impl Factor {
    /// Of the first `n` rows and columns; the rest is zero.
    fn new(factor: &Cholesky, n: usize, stride: usize) -> Factor {
        let values = factor.lower();
        let inverses: Vec<Vec<f64>> = (0..n)
            .into_par_iter()
            .step_by(BLOCK)
            .map(|first| factor.inverse_of_block(first, BLOCK.min(n - first)))
            .collect();
        // What lies in a row of `lower`, or in a column of `upper`.
        let row = |i: usize, out: &mut [f32]| {
            let first = i / BLOCK * BLOCK;
            let width = BLOCK.min(n - first);
            for (out, value) in out.iter_mut().zip(&values[i * n..i * n + first]) {
                *out = -*value as f32;
            }
            let inverse = &inverses[i / BLOCK][(i - first) * width..][..=i - first];
            for (out, value) in out[first..].iter_mut().zip(inverse) {
                *out = *value as f32;
            }
        };
        let mut rows = vec![0.0f32; stride * stride];
        rows.par_chunks_exact_mut(stride)
            .take(n)
            .enumerate()
            .for_each(|(i, out)| row(i, out));
        let (mut lower, mut upper) = (vec![0.0f32; stride * stride], vec![0.0f32; stride * stride]);
        let each = BLOCK * stride;
        lower.par_chunks_mut(each).enumerate().for_each(|(at, out)| {
            pack(&rows[at * BLOCK..], stride, stride, out.len() / stride, out);
        });
        upper.par_chunks_mut(each).enumerate().for_each(|(at, out)| {
            pack_transposed(&rows[at * each..], stride, stride, out.len() / stride, out);
        });
        Factor {
            lower,
            upper,
            stride,
        }
    }

    /// Does something to all rows of `q`, `[K, stride]`, on as many threads as that is worth. What becomes of a row does not
    /// depend on the others.
    fn each(&self, q: &mut [f32], work: impl Fn(&Factor, &mut [f32]) + Sync) {
        let (stride, n) = (self.stride, q.len() / self.stride);
        if n == 1 || q.len() * stride < 1 << 21 {
            return work(self, q);
        }
        q.par_chunks_mut(fair(n, ROWS) * stride).for_each(|rows| work(self, rows));
    }

    /// `L⁻¹` times each row.
    fn solve(&self, q: &mut [f32]) {
        for first in (0..self.stride).step_by(BLOCK) {
            self.block(&self.upper, first, 0..first, q);
        }
    }

    /// `L⁻ᵀ` times each row.
    fn solve_transposed(&self, q: &mut [f32]) {
        for first in (0..self.stride).step_by(BLOCK).rev() {
            let last = (first + BLOCK).min(self.stride);
            self.block(&self.lower, first, last..self.stride, q);
        }
    }

    /// The block of columns from `first` on: what the solved ones say of it is taken away, and it is solved itself.
    fn block(&self, matrix: &[f32], first: usize, solved: Range<usize>, q: &mut [f32]) {
        let stride = self.stride;
        let n = BLOCK.min(stride - first);
        let mut left = scratch::take(q.len() / stride * n);
        let left = left.as_mut();
        for (left, q) in left.chunks_exact_mut(n).zip(q.chunks_exact(stride)) {
            left.copy_from_slice(&q[first..first + n]);
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

/// The factor of `weight · gram + I`, without the one for the bias. Rounding can cost a nearly singular matrix its
/// definiteness; the factor only preconditions, so that a little more on the diagonal then does no harm.
fn factor(gram: &[f64], stride: usize, d: usize, weight: f64) -> Result<Cholesky, Error> {
    let n = d + 1;
    let top = (0..n).map(|i| weight * gram[i * stride + i]).fold(0.0, f64::max);
    for extra in [0.0, 1e-9, 1e-7, 1e-5, 1e-3] {
        let mut matrix = vec![0.0f64; n * n];
        matrix.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            let lower = row[..=i].iter_mut().zip(&gram[i * stride..]);
            lower.for_each(|(m, g)| *m = weight * g);
            row[i] += extra * top + f64::from(u8::from(i < d));
        });
        if let Some(factor) = Cholesky::new(matrix, n) {
            return Ok(factor);
        }
    }
    Err(Error::Features(
        "their scale is beyond what can be factored".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::random::Random;
    use crate::solve::gram::exact_gram;

    #[test]
    fn it_is_the_inverse_of_its_matrix() {
        // The second has more than a block of columns.
        [(200, 21), (900, 150)].into_iter().for_each(check_inverse);
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
        let gram = [1e9, 1e9 + 10.0, 0.0, 1e9 + 10.0, 1e9, 0.0, 0.0, 0.0, 1.0];
        assert!(Cholesky::new(vec![1e9 + 1.0, 0.0, 1e9 + 10.0, 1e9 + 1.0], 2).is_none());
        assert!(factor(&gram, 3, 2, 1.0).is_ok());
        assert!(factor(&[f64::NAN; 9], 3, 2, 1.0).is_err());
    }
}
