//! What makes the problem easy: a matrix near the inverse of its Hessian.
//!
//! The Hessian of the softmax loss is, row by row, `(diag p - p pᵀ) ⊗ x xᵀ`. One number in place of the first factor
//! makes it the same for every class: `C · curvature · Σ x xᵀ + I`, one `[D + 1, D + 1]` matrix. Its Cholesky factor is
//! inverted once and applied as two float32 products, which keeps it positive definite whatever is rounded.

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::kernel::accumulate;
use super::rows::Rows;
use crate::error::Error;

/// Features up to which the whole matrix is factored, in memory and time that grow as its square and cube.
pub(crate) const MAX_DENSE: usize = 4096;

/// An approximate inverse Hessian, the same for every output.
#[derive(Debug)]
pub(super) enum Preconditioner {
    /// `[stride]`, where the features are too many or the penalty outweighs them all.
    Diagonal(Vec<f64>),
    /// `R` with `Rᵀ R` the inverse, and its transpose; `[stride, stride]`.
    Dense {
        /// `R`.
        root: Vec<f32>,
        /// `Rᵀ`.
        transposed: Vec<f32>,
        /// Numbers of a row.
        stride: usize,
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
        let mut root = vec![0.0f32; stride * stride];
        let mut transposed = vec![0.0f32; stride * stride];
        for (i, row) in inverse.chunks_exact(d + 1).enumerate() {
            for (j, value) in row[..=i].iter().enumerate() {
                root[i * stride + j] = *value as f32;
                transposed[j * stride + i] = *value as f32;
            }
        }
        Ok(Preconditioner::Dense {
            root,
            transposed,
            stride,
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
            Preconditioner::Dense {
                root,
                transposed,
                stride,
            } => {
                let half = product(q, transposed, *stride);
                let whole = product_of(&half, root, *stride);
                q.iter_mut()
                    .zip(&whole)
                    .for_each(|(q, value)| *q = f64::from(*value));
            }
        }
    }

    /// Per row of `y` its square in this metric, summed over `rows_each` rows.
    pub(super) fn squares(&self, y: &[f64], rows_each: usize) -> Vec<f64> {
        match self {
            Preconditioner::Diagonal(inverse) => y
                .chunks_exact(rows_each * inverse.len())
                .map(|block| {
                    let squares = block.chunks_exact(inverse.len()).map(|row| {
                        let terms = row.iter().zip(inverse).map(|(y, inverse)| y * y * inverse);
                        terms.sum::<f64>()
                    });
                    squares.sum()
                })
                .collect(),
            Preconditioner::Dense {
                transposed, stride, ..
            } => product(y, transposed, *stride)
                .chunks_exact(rows_each * stride)
                .map(|block| block.iter().map(|u| f64::from(*u).powi(2)).sum())
                .collect(),
        }
    }
}

fn product(q: &[f64], matrix: &[f32], stride: usize) -> Vec<f32> {
    let narrow: Vec<f32> = q.iter().map(|q| *q as f32).collect();
    product_of(&narrow, matrix, stride)
}

/// `[K, stride]` times `[stride, stride]`.
fn product_of(q: &[f32], matrix: &[f32], stride: usize) -> Vec<f32> {
    /// Outputs at a time: the most that the kernel takes at once.
    const BAND: usize = 12;
    /// Rows of the matrix at a time, so that they are read from the second cache.
    const DEPTH: usize = 64;
    let mut out = vec![0.0f32; q.len()];
    let of_band = |(q, out): (&[f32], &mut [f32])| {
        for first in (0..stride).step_by(DEPTH) {
            let last = (first + DEPTH).min(stride);
            accumulate(
                &q[first..],
                stride,
                &matrix[first * stride..last * stride],
                stride,
                stride,
                out,
            );
        }
    };
    let n = BAND * stride;
    if q.len() * stride < 1 << 23 {
        q.chunks(n).zip(out.chunks_mut(n)).for_each(of_band);
    } else {
        q.par_chunks(n).zip(out.par_chunks_mut(n)).for_each(of_band);
    }
    out
}

/// The factor of `weight · gram + I`, without the one for the bias. Rounding can cost a nearly singular matrix its
/// definiteness; the factor only preconditions, so that a little more on the diagonal then does no harm.
fn factor(gram: &[f64], stride: usize, d: usize, weight: f64) -> Result<Cholesky, Error> {
    let n = d + 1;
    let top = (0..n).map(|i| weight * gram[i * stride + i]).fold(0.0, f64::max);
    for extra in [0.0, 1e-9, 1e-7, 1e-5, 1e-3] {
        let mut matrix = vec![0.0; n * n];
        for i in 0..n {
            let row = &mut matrix[i * n..=i * n + i];
            row.iter_mut()
                .zip(&gram[i * stride..])
                .for_each(|(m, g)| *m = weight * g);
            row[i] += extra * top + f64::from(u8::from(i < d));
        }
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
        let (n, d) = (200, 21);
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
        let squares = inverse.squares(&q, 7);
        for k in 0..14 {
            for i in 0..=d {
                let row = (0..=d).map(|j| 0.3 * gram[i * stride + j] * x[k * stride + j]);
                let got: f64 = row.sum::<f64>() + if i < d { x[k * stride + i] } else { 0.0 };
                assert!((got - q[k * stride + i]).abs() < 1e-4, "{got}");
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
