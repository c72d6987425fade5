//! Squared errors: regression, and as a baseline the one-hot classes, solved directly.

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::fit::Fitted;
use super::gram::exact_gram;
use super::linalg::{matmul_transposed, transposed_matmul};
use super::precondition::MAX_DENSE;
use super::rows::{Rows, Scratch, Segments};
use crate::error::Error;
use crate::features::Features;
use crate::monitor::Monitor;
use crate::targets::Targets;

/// What is wanted of each row, as numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'w> {
    /// `[N, K]`.
    Numbers(&'w [f32], usize),
    /// One-hot: `[N]` of K.
    Classes(&'w [u32], usize),
}

impl<'w> Wanted<'w> {
    /// Of targets that have been checked.
    pub(super) fn new(targets: &'w Targets, n_outputs: usize) -> Wanted<'w> {
        match targets {
            Targets::Classes(labels) => Wanted::Classes(labels, n_outputs),
            Targets::Dense { values, n_outputs } => Wanted::Numbers(values, *n_outputs),
        }
    }

    /// K.
    pub(super) fn n_outputs(&self) -> usize {
        match self {
            Wanted::Numbers(_, k) | Wanted::Classes(_, k) => *k,
        }
    }

    /// Of some rows, `[n, K]`.
    pub(super) fn rows(&self, range: std::ops::Range<usize>, out: &mut Vec<f64>) {
        out.clear();
        match self {
            Wanted::Numbers(values, k) => {
                out.extend(
                    values[range.start * k..range.end * k]
                        .iter()
                        .map(|y| f64::from(*y)),
                );
            }
            Wanted::Classes(labels, k) => {
                out.resize(range.len() * k, 0.0);
                for (row, label) in labels[range].iter().enumerate() {
                    out[row * k + *label as usize] = 1.0;
                }
            }
        }
    }
}

/// # Errors
/// [`Error::Features`] where there are more features than can be solved for directly.
pub(super) fn check_size(features: &Features) -> Result<(), Error> {
    let d = features.n_features();
    if d <= MAX_DENSE {
        return Ok(());
    }
    Err(Error::Features(format!(
        "they have {d} numbers a row, and a closed form is for {MAX_DENSE} at most"
    )))
}

/// `Xᵀ Y` of prepared rows, `[K, stride]`.
pub(super) fn cross(rows: &Rows<'_>, wanted: Wanted<'_>) -> Vec<f64> {
    let (k, stride) = (wanted.n_outputs(), rows.stride);
    Segments::new(rows.n_rows(), k * stride, k * stride).sum(|range| {
        let mut sums = vec![0.0; k * stride];
        let mut product = vec![0.0; k * stride];
        let (mut scratch, mut wide, mut y) = (Scratch::default(), Vec::new(), Vec::new());
        for start in range.clone().step_by(rows.chunk_rows) {
            let here = start..(start + rows.chunk_rows).min(range.end);
            widen(rows.chunk(here.clone(), &mut scratch), &mut wide);
            wanted.rows(here, &mut y);
            transposed_matmul(&y, &wide, &mut product, k, stride);
            sums.iter_mut()
                .zip(&product)
                .for_each(|(sum, value)| *sum += value);
        }
        sums
    })
}

pub(super) fn widen(rows: &[f32], out: &mut Vec<f64>) {
    out.clear();
    out.extend(rows.iter().map(|x| f64::from(*x)));
}

/// One head for each C: `C Σ ‖y - ŷ‖² + ½ ‖W‖²`, which is scikit-learn's `Ridge(alpha = 1 / (2 C))`.
pub(super) fn path(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    cs: &[f64],
    standardise: bool,
    monitor: Monitor<'_>,
) -> Result<Vec<Fitted>, Error> {
    check_size(features)?;
    let rows = Rows::new(features, standardise);
    let wanted = Wanted::new(targets, n_outputs);
    let gram = exact_gram(&rows);
    let cross = cross(&rows, wanted);
    let one = |&c: &f64| match monitor.is_cancelled() {
        true => Err(Error::Cancelled),
        false => one(&rows, wanted, &gram, &cross, c),
    };
    cs.iter().map(one).collect()
}

pub(super) fn one(
    rows: &Rows<'_>,
    wanted: Wanted<'_>,
    gram: &[f64],
    cross: &[f64],
    c: f64,
) -> Result<Fitted, Error> {
    let (d, stride, k) = (rows.n_features(), rows.stride, wanted.n_outputs());
    let theta = solve(gram, cross, d, stride, 1.0 / (2.0 * c))?;
    // The errors by a pass of their own: as a difference of large sums they would lose their digits.
    let n_sums = k * stride;
    let mut sums = Segments::new(rows.n_rows(), n_sums, n_sums).sum(|range| {
        let mut sums = vec![0.0; n_sums + 1];
        let mut product = vec![0.0; n_sums];
        let (mut scratch, mut wide, mut y) = (Scratch::default(), Vec::new(), Vec::new());
        for start in range.clone().step_by(rows.chunk_rows) {
            let here = start..(start + rows.chunk_rows).min(range.end);
            widen(rows.chunk(here.clone(), &mut scratch), &mut wide);
            wanted.rows(here.clone(), &mut y);
            let mut errors = vec![0.0; here.len() * k];
            matmul_transposed(&wide, &theta, &mut errors, stride);
            errors.iter_mut().zip(&y).for_each(|(error, y)| *error -= y);
            sums[n_sums] += errors.iter().map(|error| error * error).sum::<f64>();
            transposed_matmul(&errors, &wide, &mut product, k, stride);
            sums.iter_mut()
                .zip(&product)
                .for_each(|(sum, value)| *sum += value);
        }
        sums
    });
    let squared = sums.pop().expect("the last one");
    let (mut penalty, mut gap_bound) = (0.0, 0.0);
    for (theta, gradient) in theta.chunks_exact(stride).zip(sums.chunks_exact(stride)) {
        penalty += theta[..d].iter().map(|w| w * w).sum::<f64>() / 2.0;
        for (w, g) in theta[..d].iter().zip(gradient) {
            gap_bound += (2.0 * c * g + w).powi(2) / 2.0;
        }
        gap_bound += c * gradient[d].powi(2) / rows.n_rows() as f64;
    }
    let (weight, bias) = unprepare(rows, &theta)?;
    Ok(Fitted {
        weight,
        bias,
        c,
        objective: c * squared + penalty,
        gap_bound,
        passes: 1,
        converged: true,
    })
}

/// `θ`, `[K, stride]`, with `(G + alpha I) θ = Xᵀ Y`, the bias free.
pub(super) fn solve(
    gram: &[f64],
    cross: &[f64],
    d: usize,
    stride: usize,
    alpha: f64,
) -> Result<Vec<f64>, Error> {
    let n = d + 1;
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        matrix[i * n..i * n + n].copy_from_slice(&gram[i * stride..i * stride + n]);
        if i < d {
            matrix[i * n + i] += alpha;
        }
    }
    let factor = Cholesky::new(matrix, n).ok_or_else(|| {
        Error::Features(
            "they depend on each other too closely to be solved for; regularise more (a smaller C)"
                .to_owned(),
        )
    })?;
    let mut theta = cross.to_vec();
    theta.par_chunks_exact_mut(stride).for_each(|theta| {
        factor.solve(&mut theta[..n]);
        factor.solve_transposed(&mut theta[..n]);
        theta[n..].fill(0.0);
    });
    Ok(theta)
}

/// Weights and biases that apply to the features as given.
pub(super) fn unprepare(rows: &Rows<'_>, theta: &[f64]) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let d = rows.n_features();
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for theta in theta.chunks_exact(rows.stride) {
        let mut shift = 0.0;
        for ((x, scale), centre) in theta[..d].iter().zip(&rows.scale).zip(&rows.centre) {
            let w = (x * f64::from(*scale)) as f32;
            // Of the weight as it is rounded, so that the bias makes up for that at the centre.
            shift += f64::from(w) * f64::from(*centre);
            weight.push(w);
        }
        bias.push((theta[d] - shift) as f32);
    }
    if weight.iter().chain(&bias).any(|value| !value.is_finite()) {
        let reason = "the head's numbers are beyond float32; the features' scale is too small or C too large";
        return Err(Error::Features(reason.to_owned()));
    }
    Ok((weight, bias))
}
