//! What makes the problem easy: unknowns in which its Hessian is nearly the identity.
//!
//! The Hessian of the softmax loss is, row by row, `(diag p - p pᵀ) ⊗ x xᵀ`. One number per row in place of the first
//! factor makes it the same for every class: one `[D, D]` matrix, whose Cholesky factor gives the new unknowns. At the
//! start that number is Boehning's bound (1992), one half; where it turns out to be far off, as on separable data, it
//! is taken from the probabilities at hand.

use rayon::prelude::*;

use super::linalg::{Cholesky, transposed_matmul};
use super::softmax::{CHUNK_ROWS, segments, sum_segments};
use crate::error::Error;
use crate::features::Features;

/// Weighted second moments of the features about their weighted mean, and the sum of the weights.
#[derive(Debug, Clone)]
pub(super) struct Curvature {
    mean: Vec<f64>,
    /// `[D, D]`; beyond [`MAX_DENSE`] features its diagonal alone, `[D]`.
    gram: Vec<f64>,
    total: f64,
}

/// Features up to which the whole matrix is factored, in memory and time that grow as its square and cube.
const MAX_DENSE: usize = 4096;

impl Curvature {
    /// With Boehning's bound for every row.
    pub(super) fn bound(features: &Features) -> Curvature {
        Curvature::weighted(features, |_| 0.5)
    }

    /// With a weight for each row.
    pub(super) fn weighted(features: &Features, weight: impl Fn(usize) -> f64 + Sync) -> Curvature {
        let (n, d) = (features.n_rows(), features.n_features());
        let total: f64 = (0..n).map(&weight).sum();
        let mut mean = vec![0.0f64; d];
        for (row, values) in features.values().chunks_exact(d).enumerate() {
            let share = weight(row) / total;
            mean.iter_mut()
                .zip(values)
                .for_each(|(mean, value)| *mean += share * f64::from(*value));
        }
        let diagonal = |first: usize, segment: &[f32]| {
            let mut sums = vec![0.0f64; d];
            for (row, values) in segment.chunks_exact(d).enumerate() {
                let weight = weight(first + row);
                for ((sum, value), mean) in sums.iter_mut().zip(values).zip(&mean) {
                    *sum += weight * (f64::from(*value) - mean).powi(2);
                }
            }
            sums
        };
        let dense = |first: usize, segment: &[f32]| {
            let mut gram = vec![0.0f64; d * d];
            let mut product = vec![0.0f32; d * d];
            let mut centred = Vec::with_capacity(CHUNK_ROWS * d);
            for (chunk, rows) in segment.chunks(CHUNK_ROWS * d).enumerate() {
                centred.clear();
                for (row, values) in rows.chunks_exact(d).enumerate() {
                    let root = weight(first + chunk * CHUNK_ROWS + row).sqrt();
                    let values = values.iter().zip(&mean);
                    centred.extend(values.map(|(value, mean)| (root * (f64::from(*value) - mean)) as f32));
                }
                transposed_matmul(&centred, &centred, &mut product, d, d);
                gram.iter_mut()
                    .zip(&product)
                    .for_each(|(gram, product)| *gram += f64::from(*product));
            }
            gram
        };
        // Segments of a fixed number, whatever the threads: the sums and so the result are the same bit for bit.
        let gram = if d > MAX_DENSE {
            sum_segments(&features.values(), d, segments(n, d), diagonal)
        } else {
            sum_segments(&features.values(), d, segments(n, d * d), dense)
        };
        Curvature { mean, gram, total }
    }
}

/// New unknowns for one curvature and one C: `V = Lᵀ w` per class, and the biases of centred features over their scale.
#[derive(Debug)]
pub(super) struct Preconditioner<'c> {
    mean: &'c [f64],
    factor: Factor,
    bias_scale: f64,
    c: f64,
    n_classes: usize,
}

impl<'c> Preconditioner<'c> {
    pub(super) fn new(
        curvature: &'c Curvature,
        c: f64,
        n_classes: usize,
    ) -> Result<Preconditioner<'c>, Error> {
        let d = curvature.mean.len();
        let bound: Vec<f64> = curvature.gram.iter().map(|g| g * c).collect();
        Ok(Preconditioner {
            mean: &curvature.mean,
            factor: factor(&bound, d)?,
            bias_scale: 1.0 / (c * curvature.total).sqrt(),
            c,
            n_classes,
        })
    }

    /// Weights `[C, D]` and biases `[C]` to unknowns.
    pub(super) fn pack(&self, weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let d = self.mean.len();
        let mut x = weight.to_vec();
        for (v, bias) in weight.chunks_exact(d).zip(bias) {
            let shift: f64 = v.iter().zip(self.mean).map(|(w, mean)| w * mean).sum();
            x.push((bias + shift) / self.bias_scale);
        }
        x[..self.n_classes * d]
            .par_chunks_exact_mut(d)
            .for_each(|w| self.factor.multiply_transposed(w));
        x
    }

    /// Unknowns to weights `[C, D]` and biases `[C]`.
    pub(super) fn unpack(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.mean.len();
        let mut weight = x[..self.n_classes * d].to_vec();
        weight
            .par_chunks_exact_mut(d)
            .for_each(|w| self.factor.solve_transposed(w));
        let bias = weight
            .chunks_exact(d)
            .zip(&x[self.n_classes * d..])
            .map(|(w, scaled)| {
                let shift: f64 = w.iter().zip(self.mean).map(|(w, mean)| w * mean).sum();
                scaled * self.bias_scale - shift
            });
        let bias = bias.collect();
        (weight, bias)
    }

    /// Turns the loss's gradient by weights and biases, in `gradient`, into the objective's by the unknowns.
    pub(super) fn gradient(&self, weight: &[f64], gradient: &mut [f64]) {
        let d = self.mean.len();
        let (by_weight, by_bias) = gradient.split_at_mut(self.n_classes * d);
        for ((g, w), residual) in by_weight
            .chunks_exact_mut(d)
            .zip(weight.chunks_exact(d))
            .zip(by_bias)
        {
            for ((g, w), mean) in g.iter_mut().zip(w).zip(self.mean) {
                *g = self.c * (*g - mean * *residual) + w;
            }
            *residual *= self.c * self.bias_scale;
        }
        by_weight
            .par_chunks_exact_mut(d)
            .for_each(|g| self.factor.solve(g));
    }
}

/// L with `L Lᵀ = bound + I`.
#[derive(Debug)]
enum Factor {
    Dense(Cholesky),
    /// The diagonal of a diagonal L.
    Diagonal(Vec<f64>),
}

impl Factor {
    fn solve(&self, x: &mut [f64]) {
        match self {
            Factor::Dense(factor) => factor.solve(x),
            Factor::Diagonal(roots) => x.iter_mut().zip(roots).for_each(|(x, root)| *x /= root),
        }
    }

    fn solve_transposed(&self, x: &mut [f64]) {
        match self {
            Factor::Dense(factor) => factor.solve_transposed(x),
            Factor::Diagonal(_) => self.solve(x),
        }
    }

    fn multiply_transposed(&self, x: &mut [f64]) {
        match self {
            Factor::Dense(factor) => factor.multiply_transposed(x),
            Factor::Diagonal(roots) => x.iter_mut().zip(roots).for_each(|(x, root)| *x *= root),
        }
    }
}

/// The factor of `bound + I`. Rounding can cost a nearly singular matrix its definiteness; the factor only
/// preconditions, so that a little more on the diagonal then does no harm.
fn factor(bound: &[f64], d: usize) -> Result<Factor, Error> {
    if bound.len() == d && d > 1 {
        return Ok(Factor::Diagonal(bound.iter().map(|b| (b + 1.0).sqrt()).collect()));
    }
    let top = (0..d).map(|i| bound[i * d + i]).fold(0.0, f64::max);
    for extra in [0.0, 1e-9, 1e-7, 1e-5, 1e-3] {
        let mut shifted = bound.to_vec();
        (0..d).for_each(|i| shifted[i * d + i] += 1.0 + extra * top);
        if let Some(factor) = Cholesky::new(shifted, d) {
            return Ok(Factor::Dense(factor));
        }
    }
    Err(Error::Features(
        "their scale is beyond what can be factored".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_rounding_made_indefinite_is_factored_all_the_same() {
        // Eigenvalues 2e9 + 11 and -9 with the identity added: what float32 products make of collinear features.
        let bound = [1e9, 1e9 + 10.0, 1e9 + 10.0, 1e9];
        let plain: Vec<f64> = bound
            .iter()
            .enumerate()
            .map(|(at, b)| b + f64::from(u8::from(at % 3 == 0)))
            .collect();
        assert!(Cholesky::new(plain, 2).is_none());
        assert!(matches!(factor(&bound, 2), Ok(Factor::Dense(_))));
        assert!(factor(&[f64::NAN, 0.0, 0.0, 1.0], 2).is_err());
    }
}
