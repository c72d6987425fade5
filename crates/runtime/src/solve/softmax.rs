//! Multinomial logistic regression with scikit-learn's objective: `C · Σ cross-entropy + ½ ‖W‖²`, bias free.
//!
//! Features are used as given; centring and the preconditioner act on the unknowns only, so that the minimum is the
//! same. With two classes scikit-learn fits one weight vector (`½ ‖w‖²`); the head returned then is `[0; w]`, at
//! which the formula above has scikit-learn's value.

use rayon::prelude::*;

use super::lbfgs::{Stop, minimise};
use super::linalg::{Cholesky, matmul_transposed, transposed_matmul};
use crate::error::Error;
use crate::features::Features;
use crate::monitor::Monitor;

/// Rows per product: enough for the kernels, small enough for the cache.
const CHUNK_ROWS: usize = 512;

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

/// What does not depend on C: the mean and the Gram matrix of the centred features.
#[derive(Debug)]
pub(super) struct Problem<'p> {
    features: &'p Features,
    labels: &'p [u32],
    n_classes: usize,
    mean: Vec<f64>,
    gram: Vec<f64>,
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
        let (n, d) = (features.n_rows(), features.n_features());
        let mut mean = vec![0.0f64; d];
        for row in features.values().chunks_exact(d) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(mean, value)| *mean += f64::from(*value));
        }
        mean.iter_mut().for_each(|mean| *mean /= n as f64);
        // Segments of a fixed number, whatever the threads: the sums and so the result are the same bit for bit.
        let partial = |_: usize, segment: &[f32]| {
            let mut gram = vec![0.0f64; d * d];
            let mut product = vec![0.0f32; d * d];
            let mut centred = Vec::with_capacity(CHUNK_ROWS * d);
            for rows in segment.chunks(CHUNK_ROWS * d) {
                centred.clear();
                centred.extend(rows.chunks_exact(d).flat_map(|row| {
                    row.iter()
                        .zip(&mean)
                        .map(|(value, mean)| (f64::from(*value) - mean) as f32)
                }));
                transposed_matmul(&centred, &centred, &mut product, d, d);
                gram.iter_mut()
                    .zip(&product)
                    .for_each(|(gram, product)| *gram += f64::from(*product));
            }
            gram
        };
        let gram = sum_segments(features.values(), d, segments(n, d * d), partial);
        Ok(Problem {
            features,
            labels,
            n_classes,
            mean,
            gram,
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
        let (n, d, k) = (self.features.n_rows(), self.features.n_features(), self.n_classes);
        // Two classes: the symmetric softmax with C/2 has the minimum of the one-vector problem with C.
        let c = if k == 2 { c / 2.0 } else { c };
        let mut bound: Vec<f64> = self.gram.iter().map(|g| g * c / 2.0).collect();
        (0..d).for_each(|i| bound[i * d + i] += 1.0);
        let factor = Cholesky::new(bound, d)
            .ok_or_else(|| Error::Features("their scale is beyond what can be factored".to_owned()))?;
        let bias_scale = 1.0 / (c * n as f64 / 2.0).sqrt();

        // Unknowns: per class V = Lᵀ w, then the biases of centred features over their scale.
        let mut x = vec![0.0; k * d + k];
        if let Some(start) = start {
            for class in 0..k {
                let weight = &start.weight[class * d..(class + 1) * d];
                let v = &mut x[class * d..(class + 1) * d];
                v.iter_mut().zip(weight).for_each(|(v, w)| *v = f64::from(*w));
                let shift: f64 = v.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum();
                factor.multiply_transposed(v);
                x[k * d + class] = (f64::from(start.bias[class]) + shift) / bias_scale;
            }
        }
        // The sum of all classes' weights is free in the loss and zero at the minimum; a head [0; w] is shifted there.
        for column in 0..d + 1 {
            let at = |class: usize| {
                if column < d {
                    class * d + column
                } else {
                    k * d + class
                }
            };
            let mean = (0..k).map(|class| x[at(class)]).sum::<f64>() / k as f64;
            (0..k).for_each(|class| x[at(class)] -= mean);
        }

        let unpack = |x: &[f64]| {
            let mut weight = x[..k * d].to_vec();
            weight
                .par_chunks_exact_mut(d)
                .for_each(|w| factor.solve_transposed(w));
            let bias: Vec<f64> = (0..k)
                .map(|class| {
                    let w = &weight[class * d..(class + 1) * d];
                    x[k * d + class] * bias_scale
                        - w.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum::<f64>()
                })
                .collect();
            (weight, bias)
        };
        let stop = Stop {
            relative_gap: options.relative_gap,
            max_evaluations: options.max_passes,
            memory: if k * d > 1 << 20 { 8 } else { 20 },
        };
        let found = minimise(
            x,
            stop,
            |x, gradient| {
                let (weight, bias) = unpack(x);
                let (loss, weight_gradient) = self.loss(&weight, &bias);
                let penalty: f64 = weight.iter().map(|w| w * w).sum::<f64>() / 2.0;
                gradient.copy_from_slice(&weight_gradient);
                for class in 0..k {
                    let residual = gradient[k * d + class];
                    let g = &mut gradient[class * d..(class + 1) * d];
                    let w = &weight[class * d..(class + 1) * d];
                    for ((g, w), mean) in g.iter_mut().zip(w).zip(&self.mean) {
                        *g = c * (*g - mean * residual) + w;
                    }
                    gradient[k * d + class] = c * residual * bias_scale;
                }
                gradient[..k * d]
                    .par_chunks_exact_mut(d)
                    .for_each(|g| factor.solve(g));
                c * loss + penalty
            },
            || !monitor.is_cancelled(),
        )
        .ok_or(Error::Cancelled)?;

        let (mut weight, mut bias) = unpack(&found.x);
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
            passes: found.evaluations,
            converged: found.converged,
        })
    }

    /// The sum of the cross-entropies and, per class, the sums of `residual · x` and of `residual`.
    fn loss(&self, weight: &[f64], bias: &[f64]) -> (f64, Vec<f64>) {
        let (d, k) = (self.features.n_features(), self.n_classes);
        let weight: Vec<f32> = weight.iter().map(|w| *w as f32).collect();
        let values = self.features.values();
        let partial = |first: usize, segment: &[f32]| {
            // k·d sums for the weights, k for the biases, one for the loss.
            let mut sums = vec![0.0f64; k * d + k + 1];
            let mut logits = vec![0.0f32; CHUNK_ROWS * k];
            let mut product = vec![0.0f32; k * d];
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
                        .for_each(|(sum, residual)| *sum += f64::from(*residual));
                }
                transposed_matmul(logits, rows, &mut product, k, d);
                sums.iter_mut()
                    .zip(&product)
                    .for_each(|(sum, value)| *sum += f64::from(*value));
            }
            sums
        };
        let mut sums = sum_segments(values, d, segments(self.features.n_rows(), k * d), partial);
        let loss = sums.pop().expect("the loss is last");
        (loss, sums)
    }
}

/// Adds the bias, turns the logits of one row into residuals (`softmax - one-hot`) and returns `-log softmax[label]`.
fn cross_entropy(row: &mut [f32], bias: &[f64], label: usize) -> f64 {
    let mut top = f64::NEG_INFINITY;
    for (logit, bias) in row.iter().zip(bias) {
        top = top.max(f64::from(*logit) + bias);
    }
    let wanted = f64::from(row[label]) + bias[label] - top;
    let mut total = 0.0;
    for (logit, bias) in row.iter_mut().zip(bias) {
        let value = (f64::from(*logit) + bias - top).exp();
        total += value;
        *logit = value as f32;
    }
    let inverse = (1.0 / total) as f32;
    row.iter_mut().for_each(|value| *value *= inverse);
    row[label] -= 1.0;
    total.ln() - wanted
}

/// How many segments the rows are split into: a function of the problem alone, so that the result is too. Each holds
/// `n_sums` numbers while the sums are made.
fn segments(n_rows: usize, n_sums: usize) -> usize {
    const MAX_SEGMENTS: usize = 32;
    const MAX_NUMBERS: usize = 32 << 20;
    (MAX_NUMBERS / n_sums.max(1))
        .clamp(2, MAX_SEGMENTS)
        .min(n_rows.div_ceil(CHUNK_ROWS))
}

/// Runs `partial` (first row, rows) over `n_segments` runs of whole rows and adds up the results in order.
fn sum_segments(
    values: &[f32],
    d: usize,
    n_segments: usize,
    partial: impl Fn(usize, &[f32]) -> Vec<f64> + Sync,
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
            let x = features.row(row);
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
                let row_x: Vec<f64> = features
                    .row(row)
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
