//! What makes the problem easy: a matrix near the inverse of its Hessian.
//!
//! The Hessian of the softmax loss is, row by row, `(diag p - p pᵀ) ⊗ x xᵀ`. One number in place of the first factor
//! makes it the same for every class: `C · curvature · Σ x xᵀ + I`, one `[D + 1, D + 1]` matrix. Its Cholesky factor is
//! inverted once and applied as two float32 products, which keeps it positive definite whatever is rounded. The factor's
//! inverse is triangular, so that a product takes half of a square matrix's.

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::kernel::LANES;
use super::rows::Rows;
use super::vector::{add, dot, narrow};
use crate::error::Error;
use crate::panels::{Place, Product};

/// Features up to which the whole matrix is factored, in memory and time that grow as its square and cube.
pub(crate) const MAX_DENSE: usize = 4096;

/// A triangular matrix, `[stride, stride]`, in panels of columns.
#[derive(Debug)]
pub(super) struct Triangle {
    panels: Vec<f32>,
    stride: usize,
    side: Side,
}

/// Where a triangular matrix has its numbers.
#[derive(Debug, Clone, Copy)]
enum Side {
    BelowDiagonal,
    AboveDiagonal,
}

/// An approximate inverse Hessian, the same for every output.
#[derive(Debug)]
pub(super) enum Preconditioner {
    /// `[stride]`, where the features are too many or the penalty outweighs them all.
    Diagonal(Vec<f64>),
    /// `R` with `Rᵀ R` the inverse, and its transpose; `[stride, stride]`.
    Dense {
        /// `R`.
        root: Triangle,
        /// `Rᵀ`.
        transposed: Triangle,
    },
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
        let inverse = factor.inverse();
        let root = Triangle::below(&inverse, d + 1, stride);
        Ok(Preconditioner::Dense {
            transposed: root.transposed(),
            root,
        })
    }

    /// Whether it knows more than the diagonal.
    pub(super) fn is_dense(&self) -> bool {
        matches!(self, Preconditioner::Dense { .. })
    }

    /// Multiplies each row of `q`, `[K, stride]`.
    pub(super) fn apply(&self, q: &mut [f64]) {
        match self {
            Preconditioner::Diagonal(inverse) => {
                for row in q.chunks_exact_mut(inverse.len()) {
                    row.iter_mut().zip(inverse).for_each(|(q, inverse)| *q *= inverse);
                }
            }
            Preconditioner::Dense { root, transposed } => {
                let whole = root.multiplied(&transposed.multiplied(&narrow(q)));
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
            Preconditioner::Dense { transposed, .. } => {
                let half = transposed.multiplied(y);
                let blocks = half.chunks_exact(rows_each * transposed.stride);
                blocks.map(|block| dot(block, block)).collect()
            }
        }
    }
}

impl Triangle {
    /// Of the lower triangle of the first `n` rows and columns; the rest is zero.
    fn below(values: &[f64], n: usize, stride: usize) -> Triangle {
        let mut panels = vec![0.0f32; stride * stride];
        let fill = |(panel, out): (usize, &mut [f32])| {
            let first = panel * LANES;
            let rows = values
                .chunks_exact(n)
                .zip(out.chunks_exact_mut(LANES))
                .enumerate();
            for (i, (row, out)) in rows.skip(first) {
                let row = &row[first..(first + LANES).min(i + 1)];
                out.iter_mut()
                    .zip(row)
                    .for_each(|(out, value)| *out = *value as f32);
            }
        };
        panels.par_chunks_mut(LANES * stride).enumerate().for_each(fill);
        Triangle {
            panels,
            stride,
            side: Side::BelowDiagonal,
        }
    }

    fn transposed(&self) -> Triangle {
        let stride = self.stride;
        let mut panels = vec![0.0f32; stride * stride];
        let fill = |(panel, out): (usize, &mut [f32])| {
            for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = self.panels[(row / LANES * stride + panel * LANES + lane) * LANES + row % LANES];
                }
            }
        };
        panels.par_chunks_mut(LANES * stride).enumerate().for_each(fill);
        Triangle {
            panels,
            stride,
            side: match self.side {
                Side::BelowDiagonal => Side::AboveDiagonal,
                Side::AboveDiagonal => Side::BelowDiagonal,
            },
        }
    }

    /// `q`, `[K, stride]`, times the matrix.
    fn multiplied(&self, q: &[f32]) -> Vec<f32> {
        /// Columns that one thread makes at once: few enough that little is multiplied beyond the diagonal.
        const COLUMNS: usize = 8 * LANES;
        let stride = self.stride;
        let n_rows = q.len() / stride;
        let of_columns = |first: usize| {
            let last = (first + COLUMNS).min(stride);
            let rows = match self.side {
                Side::BelowDiagonal => first..stride,
                Side::AboveDiagonal => 0..last,
            };
            let mut out = vec![0.0; n_rows * (last - first)];
            Product {
                a: &q[rows.start..],
                a_row: stride,
                a_panel: LANES,
                n_rows,
                depth: rows.len(),
                b: &self.panels[(first * stride + rows.start * LANES)..],
                b_panel: stride * LANES,
                out: &mut out,
                place: Place {
                    row: last - first,
                    panel: LANES,
                    n_columns: last - first,
                    is_added: false,
                },
            }
            .run();
            out
        };
        let starts: Vec<usize> = (0..stride).step_by(COLUMNS).collect();
        let parts: Vec<Vec<f32>> = if q.len() * stride < 1 << 21 {
            starts.into_iter().map(of_columns).collect()
        } else {
            starts.into_par_iter().map(of_columns).collect()
        };
        let mut out = vec![0.0; q.len()];
        let fill = |(row, out): (usize, &mut [f32])| {
            for (out, part) in out.chunks_mut(COLUMNS).zip(&parts) {
                let n = out.len();
                out.copy_from_slice(&part[row * n..][..n]);
            }
        };
        out.par_chunks_exact_mut(stride)
            .with_min_len(16)
            .enumerate()
            .for_each(fill);
        out
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
        // The second has more columns than one thread makes at once.
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
