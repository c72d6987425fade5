//! Multinomial logistic regression with scikit-learn's objective: `C · Σ cross-entropy + ½ ‖W‖²`, bias free.
//!
//! Features are used as given; centring and the preconditioner act on the unknowns only, so that the minimum is the
//! same. With two classes scikit-learn fits one weight vector (`½ ‖w‖²`); the head returned then is `[0; w]`, at
//! which the formula above has scikit-learn's value.

use std::borrow::Cow;

use rayon::prelude::*;

use super::lbfgs::{Stop, minimise};
use super::linalg::{Real, matmul_transposed, transposed_matmul};
use super::precondition::{Curvature, Preconditioner};
use crate::error::Error;
use crate::features::Features;
use crate::monitor::Monitor;

/// Rows per product: enough for the kernels, small enough for the cache.
pub(super) const CHUNK_ROWS: usize = 512;

/// Passes with one preconditioner. Easy problems need fewer; on separable data Boehning's bound is far off by then.
const STAGE_PASSES: usize = 60;

/// Up to this many features the products are made in f64: that costs little there, and carries separable data, whose
/// losses are tiny differences of large logits, to the last digits. Beyond, in f32 with f64 sums.
const MAX_WIDE: usize = 4 << 20;

/// When the solver stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolverOptions {
    /// Estimated distance of the objective to its minimum, relative to it.
    pub relative_gap: f64,
    /// Passes over the data.
    pub max_passes: usize,
}

/// A fitted linear head: numbers that apply to the features as given.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// `[C, D]` row-major.
    pub weight: Vec<f32>,
    /// `[C]`.
    pub bias: Vec<f32>,
    /// The objective at the end.
    pub objective: f64,
    /// Evaluations of objective and gradient.
    pub passes: usize,
    /// Whether the options' gap was reached before the passes ran out.
    pub converged: bool,
}

/// What does not depend on C.
#[derive(Debug)]
pub(super) struct Problem<'p> {
    features: &'p Features,
    labels: &'p [u32],
    n_classes: usize,
    curvature: Curvature,
    /// The features in f64, where they are few.
    wide: Option<Vec<f64>>,
}

/// Fits one head.
///
/// # Errors
/// [`Error::Features`] for fewer than two classes, a label beyond them, or counts that disagree; [`Error::Cancelled`].
pub fn fit(
    features: &Features,
    labels: &[u32],
    n_classes: usize,
    c: f64,
    options: SolverOptions,
    monitor: Monitor<'_>,
) -> Result<Fitted, Error> {
    Problem::new(features, labels, n_classes)?.fit(c, options, None, monitor)
}

impl<'p> Problem<'p> {
    /// Whether a head can be fitted at all.
    pub(super) fn check(features: &Features, labels: &[u32], n_classes: usize) -> Result<(), Error> {
        if labels.len() != features.n_rows() {
            return Err(Error::Features(format!(
                "{} rows and {} labels",
                features.n_rows(),
                labels.len()
            )));
        }
        if let Some((row, label)) = labels
            .iter()
            .enumerate()
            .find(|(_, label)| **label as usize >= n_classes)
        {
            return Err(Error::Features(format!(
                "row {row} has label {label}, and there are {n_classes} classes"
            )));
        }
        let first = labels.first().copied();
        if n_classes < 2 || labels.iter().all(|&label| Some(label) == first) {
            return Err(Error::Features(
                "all rows are of one class; a classifier needs at least two".to_owned(),
            ));
        }
        Ok(())
    }

    pub(super) fn new(
        features: &'p Features,
        labels: &'p [u32],
        n_classes: usize,
    ) -> Result<Problem<'p>, Error> {
        Problem::check(features, labels, n_classes)?;
        let values = features.values();
        let wide = (values.len() <= MAX_WIDE).then(|| values.iter().map(|value| f64::from(*value)).collect());
        Ok(Problem {
            features,
            labels,
            n_classes,
            curvature: Curvature::bound(features),
            wide,
        })
    }

    /// Fits for one C, starting from `start` (a head on the same features) or from zero.
    pub(super) fn fit(
        &self,
        c: f64,
        options: SolverOptions,
        start: Option<&Fitted>,
        monitor: Monitor<'_>,
    ) -> Result<Fitted, Error> {
        if !(c > 0.0 && c.is_finite()) {
            return Err(Error::Usage(format!("C = {c} is not a positive number")));
        }
        let (d, k) = (self.features.n_features(), self.n_classes);
        // Two classes: the symmetric softmax with C/2 has the minimum of the one-vector problem with C.
        let c = if k == 2 { c / 2.0 } else { c };
        let (mut weight, mut bias) = match start {
            None => (vec![0.0; k * d], vec![0.0; k]),
            Some(start) => (widen(&start.weight), widen(&start.bias)),
        };
        // The sum over the classes is free in the loss and zero at the minimum; a head [0; w] is shifted there.
        for column in 0..d {
            let mean = (0..k).map(|class| weight[class * d + column]).sum::<f64>() / k as f64;
            (0..k).for_each(|class| weight[class * d + column] -= mean);
        }
        let mean = bias.iter().sum::<f64>() / k as f64;
        bias.iter_mut().for_each(|bias| *bias -= mean);

        let mut curvature = Cow::Borrowed(&self.curvature);
        let mut passes = 0;
        let mut found;
        loop {
            let preconditioner = Preconditioner::new(&curvature, c, k)?;
            let stop = Stop {
                relative_gap: options.relative_gap,
                max_evaluations: STAGE_PASSES.min(options.max_passes.saturating_sub(passes)).max(1),
                memory: if k * d > 1 << 20 { 8 } else { 20 },
            };
            let objective = |x: &[f64], gradient: &mut [f64]| {
                let (weight, bias) = preconditioner.unpack(x);
                let (loss, by_weight_and_bias) = self.loss(&weight, &bias);
                let penalty: f64 = weight.iter().map(|w| w * w).sum::<f64>() / 2.0;
                gradient.copy_from_slice(&by_weight_and_bias);
                preconditioner.gradient(&weight, gradient);
                c * loss + penalty
            };
            let x = preconditioner.pack(&weight, &bias);
            found = minimise(x, stop, objective, || !monitor.is_cancelled()).ok_or(Error::Cancelled)?;
            passes += found.evaluations;
            (weight, bias) = preconditioner.unpack(&found.x);
            if found.converged || passes >= options.max_passes {
                break;
            }
            // The bound has served; the probabilities at hand say how curved the loss is where it matters now.
            let weights = self.row_curvatures(&weight, &bias);
            curvature = Cow::Owned(Curvature::weighted(self.features, |row| weights[row]));
        }

        let mut objective = found.value;
        if k == 2 {
            let (first, second) = weight.split_at_mut(d);
            second.iter_mut().zip(first.iter()).for_each(|(w1, w0)| *w1 -= w0);
            first.fill(0.0);
            bias = vec![0.0, bias[1] - bias[0]];
            objective *= 2.0;
        }
        Ok(Fitted {
            weight: weight.iter().map(|w| *w as f32).collect(),
            bias: bias.iter().map(|b| *b as f32).collect(),
            objective,
            passes,
            converged: found.converged,
        })
    }

    /// Per row the mean of the nonzero eigenvalues of `diag p - p pᵀ`.
    fn row_curvatures(&self, weight: &[f64], bias: &[f64]) -> Vec<f64> {
        /// Rows of which the head is sure have none; a little keeps every direction of the features in the sum.
        const LEAST: f64 = 1e-6;
        let (d, k) = (self.features.n_features(), self.n_classes);
        let weight: Vec<f32> = weight.iter().map(|w| *w as f32).collect();
        let of_chunk = |rows: &[f32]| {
            let mut logits = vec![0.0f32; rows.len() / d * k];
            matmul_transposed(rows, &weight, &mut logits, d);
            let of_row = |row: &mut [f32]| {
                cross_entropy(row, bias, 0);
                // What is left in the row is p - e_0.
                row[0] += 1.0;
                let squares: f64 = row.iter().map(|p| f64::from(*p) * f64::from(*p)).sum();
                ((1.0 - squares) / (k - 1) as f64).max(LEAST)
            };
            logits.chunks_exact_mut(k).map(of_row).collect::<Vec<f64>>()
        };
        self.features
            .values()
            .par_chunks(CHUNK_ROWS * d)
            .flat_map_iter(of_chunk)
            .collect()
    }

    /// The sum of the cross-entropies and, per class, the sums of `residual · x` and of `residual`.
    fn loss(&self, weight: &[f64], bias: &[f64]) -> (f64, Vec<f64>) {
        match &self.wide {
            Some(values) => self.loss_of(values, weight, bias),
            None => self.loss_of(&self.features.values(), weight, bias),
        }
    }

    fn loss_of<T: Real>(&self, values: &[T], weight: &[f64], bias: &[f64]) -> (f64, Vec<f64>) {
        let (d, k) = (self.features.n_features(), self.n_classes);
        let weight: Vec<T> = weight.iter().map(|w| T::from_f64(*w)).collect();
        let partial = |first: usize, segment: &[T]| {
            // k·d sums for the weights, k for the biases, one for the loss.
            let mut sums = vec![0.0f64; k * d + k + 1];
            let mut logits = vec![T::ZERO; CHUNK_ROWS * k];
            let mut product = vec![T::ZERO; k * d];
            for (chunk, rows) in segment.chunks(CHUNK_ROWS * d).enumerate() {
                let n_rows = rows.len() / d;
                let start = first + chunk * CHUNK_ROWS;
                let logits = &mut logits[..n_rows * k];
                matmul_transposed(rows, &weight, logits, d);
                for (row, &label) in logits
                    .chunks_exact_mut(k)
                    .zip(&self.labels[start..start + n_rows])
                {
                    sums[k * d + k] += cross_entropy(row, bias, label as usize);
                    let residuals = &mut sums[k * d..k * d + k];
                    residuals
                        .iter_mut()
                        .zip(row.iter())
                        .for_each(|(sum, residual)| *sum += residual.to_f64());
                }
                transposed_matmul(logits, rows, &mut product, k, d);
                sums.iter_mut()
                    .zip(&product)
                    .for_each(|(sum, value)| *sum += value.to_f64());
            }
            sums
        };
        let mut sums = sum_segments(values, d, segments(self.features.n_rows(), k * d), partial);
        let loss = sums.pop().expect("the loss is last");
        (loss, sums)
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Adds the bias, turns the logits of one row into residuals (`softmax - one-hot`) and returns `-log softmax[label]`.
fn cross_entropy<T: Real>(row: &mut [T], bias: &[f64], label: usize) -> f64 {
    let mut top = f64::NEG_INFINITY;
    for (logit, bias) in row.iter().zip(bias) {
        top = top.max(logit.to_f64() + bias);
    }
    let wanted = row[label].to_f64() + bias[label] - top;
    // The label is kept apart: near certainty `1 - p` and `log p` lose all their digits, the sum of the others none.
    let mut others = 0.0;
    let mut label_value = 0.0;
    for (class, (logit, bias)) in row.iter_mut().zip(bias).enumerate() {
        let value = (logit.to_f64() + bias - top).exp();
        if class == label {
            label_value = value;
        } else {
            others += value;
        }
        *logit = T::from_f64(value);
    }
    let total = others + label_value;
    row.iter_mut()
        .for_each(|value| *value = T::from_f64(value.to_f64() / total));
    row[label] = T::from_f64(-others / total);
    // Far below the top the quotient would overflow.
    if label_value > 1e-300 {
        (others / label_value).ln_1p()
    } else {
        total.ln() - wanted
    }
}

/// How many segments the rows are split into: a function of the problem alone, so that the result is too. Each holds
/// `n_sums` numbers while the sums are made.
pub(super) fn segments(n_rows: usize, n_sums: usize) -> usize {
    const MAX_SEGMENTS: usize = 32;
    const MAX_NUMBERS: usize = 32 << 20;
    (MAX_NUMBERS / n_sums.max(1))
        .clamp(2, MAX_SEGMENTS)
        .min(n_rows.div_ceil(CHUNK_ROWS))
}

/// Runs `partial` (first row, rows) over `n_segments` runs of whole rows and adds up the results in order.
pub(super) fn sum_segments<T: Real>(
    values: &[T],
    d: usize,
    n_segments: usize,
    partial: impl Fn(usize, &[T]) -> Vec<f64> + Sync,
) -> Vec<f64> {
    let n_rows = values.len() / d;
    let segment_rows = n_rows.div_ceil(CHUNK_ROWS).div_ceil(n_segments.max(1)) * CHUNK_ROWS;
    let parts: Vec<Vec<f64>> = values
        .par_chunks(segment_rows * d)
        .enumerate()
        .map(|(segment, rows)| partial(segment * segment_rows, rows))
        .collect();
    let mut parts = parts.into_iter();
    let mut total = parts.next().expect("at least one row");
    for part in parts {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::solve::linalg::Cholesky;

    const OPTIONS: SolverOptions = SolverOptions {
        relative_gap: 1e-8,
        max_passes: 1000,
    };

    /// Correlated features of very different scales with labels that depend on them.
    fn data(n: usize, d: usize, k: usize) -> (Features, Vec<u32>) {
        let mut random = Random::new(3, "solver test");
        let mut uniform = || random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let label = ((uniform() + 0.5) * k as f32) as usize % k;
            let common = uniform();
            for j in 0..d {
                let signal = if j % k == label { 0.4 } else { 0.0 };
                values.push((common + 0.3 * uniform() + signal) * 10f32.powi(j as i32 % 3 - 1) + 2.0);
            }
            labels.push(label as u32);
        }
        (Features::new(values, d).unwrap(), labels)
    }

    /// The objective and its gradient by definition, in f64.
    fn objective(
        features: &Features,
        labels: &[u32],
        k: usize,
        c: f64,
        weight: &[f64],
        bias: &[f64],
    ) -> (f64, Vec<f64>) {
        let d = features.n_features();
        let mut value = weight.iter().map(|w| w * w).sum::<f64>() / 2.0;
        let mut gradient: Vec<f64> = weight.iter().copied().chain(bias.iter().map(|_| 0.0)).collect();
        for (row, &label) in labels.iter().enumerate() {
            let x = &features.values()[row * d..(row + 1) * d];
            let logits: Vec<f64> = (0..k)
                .map(|j| {
                    bias[j]
                        + x.iter()
                            .zip(&weight[j * d..])
                            .map(|(x, w)| f64::from(*x) * w)
                            .sum::<f64>()
                })
                .collect();
            let top = logits.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
            value += c * (total.ln() + top - logits[label as usize]);
            for j in 0..k {
                let residual = (logits[j] - top).exp() / total - f64::from(u8::from(j == label as usize));
                for (i, x) in x.iter().enumerate() {
                    gradient[j * d + i] += c * residual * f64::from(*x);
                }
                gradient[k * d + j] += c * residual;
            }
        }
        (value, gradient)
    }

    /// Newton's method with the whole Hessian and halved steps, in f64: slow, and obviously right.
    fn newton(features: &Features, labels: &[u32], k: usize, c: f64) -> f64 {
        let d = features.n_features();
        let n = k * d + k;
        let split = |x: &[f64]| objective(features, labels, k, c, &x[..k * d], &x[k * d..]);
        let mut x = vec![0.0; n];
        let (mut value, mut gradient) = split(&x);
        for _ in 0..60 {
            // The bias direction that all classes share is free: a little is added to the diagonal for it.
            let mut hessian: Vec<f64> = (0..n * n)
                .map(|at| f64::from(u8::from(at % (n + 1) == 0)))
                .collect();
            (k * d..n).for_each(|at| hessian[at * n + at] = 1e-9);
            for row in 0..labels.len() {
                let row_x: Vec<f64> = features.values()[row * d..(row + 1) * d]
                    .iter()
                    .map(|v| f64::from(*v))
                    .chain([1.0])
                    .collect();
                let at = |class: usize, i: usize| if i < d { class * d + i } else { k * d + class };
                let logits: Vec<f64> = (0..k)
                    .map(|class| (0..=d).map(|i| row_x[i] * x[at(class, i)]).sum::<f64>())
                    .collect();
                let top = logits.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
                let p: Vec<f64> = logits.iter().map(|l| (l - top).exp() / total).collect();
                for a in 0..k {
                    for b in 0..k {
                        let curvature = c * p[a] * (f64::from(u8::from(a == b)) - p[b]);
                        for i in 0..=d {
                            for j in 0..=d {
                                hessian[at(a, i) * n + at(b, j)] += curvature * row_x[i] * row_x[j];
                            }
                        }
                    }
                }
            }
            let factor = Cholesky::new(hessian, n).unwrap();
            let mut step = gradient.clone();
            factor.solve(&mut step);
            factor.solve_transposed(&mut step);
            let mut length = 1.0;
            loop {
                let next: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x - length * s).collect();
                let (next_value, next_gradient) = split(&next);
                if next_value <= value || length < 1e-9 {
                    (x, value, gradient) = (next, next_value.min(value), next_gradient);
                    break;
                }
                length /= 2.0;
            }
        }
        value
    }

    fn check_minimum(n: usize, d: usize, k: usize, c: f64) {
        let (features, labels) = data(n, d, k);
        let fitted = fit(&features, &labels, k, c, OPTIONS, Monitor::none()).unwrap();
        assert!(
            fitted.converged,
            "k {k} C {c}: not converged in {} passes",
            fitted.passes
        );
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (value, _) = objective(
            &features,
            &labels,
            k,
            c,
            &wide(&fitted.weight),
            &wide(&fitted.bias),
        );
        // Two classes have one vector: that problem is the symmetric one with half the C, and twice its value.
        let least = if k == 2 {
            2.0 * newton(&features, &labels, k, c / 2.0)
        } else {
            newton(&features, &labels, k, c)
        };
        let gap = (value - least) / least;
        assert!(gap.abs() < 1e-6, "k {k} C {c}: relative gap {gap:e}");
        assert!((fitted.objective - value).abs() < 1e-6 * value);
    }

    #[test]
    fn the_minimum_is_newtons() {
        check_minimum(700, 9, 3, 0.01);
        check_minimum(700, 9, 3, 1.0);
        check_minimum(300, 6, 5, 10.0);
    }

    #[test]
    fn two_classes_are_scikit_learns_one_vector() {
        check_minimum(300, 6, 2, 1.0);
        let (features, labels) = data(300, 6, 2);
        let fitted = fit(&features, &labels, 2, 1.0, OPTIONS, Monitor::none()).unwrap();
        assert!(fitted.weight[..6].iter().all(|w| *w == 0.0) && fitted.bias[0] == 0.0);
    }

    #[test]
    fn the_same_bits_for_any_number_of_threads() {
        let (features, labels) = data(3000, 12, 4);
        let run = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| fit(&features, &labels, 4, 1.0, OPTIONS, Monitor::none()).unwrap())
        };
        let bits = |fitted: &Fitted| fitted.weight.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
        let one = run(1);
        for n in [2, 3, 5] {
            assert_eq!(bits(&run(n)), bits(&one), "{n} threads");
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_said() {
        let (features, labels) = data(20, 3, 3);
        let check = |labels: &[u32], k, message: &str| {
            let error = fit(&features, labels, k, 1.0, OPTIONS, Monitor::none())
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&labels[1..], 3, "20 rows and 19 labels");
        check(&[1; 20], 3, "all rows are of one class");
        check(&labels, 2, "and there are 2 classes");
        assert!(fit(&features, &labels, 3, -1.0, OPTIONS, Monitor::none()).is_err());
    }
}
