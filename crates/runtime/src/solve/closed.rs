//! Classifiers in closed form: what a head is worth before anything is fitted.

use super::cholesky::Cholesky;
use super::fit::NEVER;
use super::gram::exact_gram;
use super::ridge::{Wanted, check_size, cross, unprepare};
use super::rows::Rows;
use crate::error::Error;
use crate::features::Features;
use crate::targets::{Targets, Task};

/// A linear head in closed form: numbers that apply to the features as given.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// `[C, D]` row-major.
    pub weight: Vec<f32>,
    /// `[C]`; -10,000 for a class without rows.
    pub bias: Vec<f32>,
}

/// The class whose mean is nearest by Euclid's distance: `sklearn.neighbors.NearestCentroid`. The logits are half the
/// squared distance to the rows' mean less half the squared distance to the class's.
///
/// # Errors
/// [`Error::Features`] for labels that do not fit.
pub fn nearest_mean(features: &Features, labels: &[u32], n_classes: usize) -> Result<Closed, Error> {
    let classes = Classes::new(features, labels, n_classes)?;
    let stride = classes.rows.stride;
    let d = classes.rows.n_features();
    let mut theta = classes.means.clone();
    for theta in theta.chunks_exact_mut(stride) {
        theta[d] = -theta[..d].iter().map(|m| m * m).sum::<f64>() / 2.0;
    }
    classes.head(&theta)
}

/// Linear discriminant analysis with one covariance for all classes:
/// `sklearn.discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=…)`. `shrinkage` in `0..=1` moves the
/// covariance towards its mean variance times the identity.
///
/// # Errors
/// [`Error::Features`] for labels that do not fit, beyond 4,096 features, and for a covariance that is singular without
/// shrinkage; [`Error::Usage`] for a shrinkage out of range.
pub fn lda(features: &Features, labels: &[u32], n_classes: usize, shrinkage: f64) -> Result<Closed, Error> {
    if !(0.0..=1.0).contains(&shrinkage) {
        return Err(Error::Usage(format!(
            "the shrinkage is {shrinkage}, not in 0..=1"
        )));
    }
    check_size(features)?;
    let classes = Classes::new(features, labels, n_classes)?;
    let (d, stride) = (classes.rows.n_features(), classes.rows.stride);
    let n = features.n_rows() as f64;
    let gram = exact_gram(&classes.rows);
    let mut covariance = vec![0.0; d * d];
    for i in 0..d {
        let row = &mut covariance[i * d..=i * d + i];
        row.copy_from_slice(&gram[i * stride..=i * stride + i]);
        for (mean, count) in classes.means.chunks_exact(stride).zip(&classes.counts) {
            row.iter_mut()
                .zip(mean)
                .for_each(|(c, m)| *c -= count * mean[i] * m);
        }
        row.iter_mut().for_each(|c| *c *= (1.0 - shrinkage) / n);
    }
    let trace: f64 = (0..d).map(|i| covariance[i * d + i]).sum();
    if shrinkage > 0.0 {
        // The trace has been shrunk with the rest.
        let all = if shrinkage < 1.0 {
            trace / (1.0 - shrinkage)
        } else {
            let means = classes.means.chunks_exact(stride).zip(&classes.counts);
            let between: f64 = means
                .map(|(m, count)| count * m[..d].iter().map(|m| m * m).sum::<f64>())
                .sum();
            ((0..d).map(|i| gram[i * stride + i]).sum::<f64>() - between) / n
        };
        (0..d).for_each(|i| covariance[i * d + i] += shrinkage * all / d as f64);
    }
    let largest = (0..d).map(|i| covariance[i * d + i]).fold(0.0, f64::max);
    let factor = Cholesky::new(covariance, d)
        // What is left of a direction without variance is the rounding of the largest.
        .filter(|factor| factor.least_pivot() > largest.sqrt() * 1e-7)
        .ok_or_else(|| {
            let reason = "their covariance within the classes is singular; give a shrinkage above 0";
            Error::Features(reason.to_owned())
        })?;
    let mut theta = classes.means.clone();
    for (theta, (mean, count)) in theta
        .chunks_exact_mut(stride)
        .zip(classes.means.chunks_exact(stride).zip(&classes.counts))
    {
        factor.solve(&mut theta[..d]);
        factor.solve_transposed(&mut theta[..d]);
        let along: f64 = theta[..d].iter().zip(mean).map(|(w, m)| w * m).sum();
        theta[d] = (count / n).ln() - along / 2.0;
    }
    classes.head(&theta)
}

/// Counts and means of classes, about the rows' centre.
struct Classes<'f> {
    rows: Rows<'f>,
    /// `[C]`.
    counts: Vec<f64>,
    /// `[C, stride]`.
    means: Vec<f64>,
}

impl<'f> Classes<'f> {
    fn new(features: &'f Features, labels: &[u32], n_classes: usize) -> Result<Classes<'f>, Error> {
        let targets = Targets::Classes(labels.to_vec());
        targets.check(Task::SingleLabel, features.n_rows(), n_classes)?;
        let rows = Rows::new(features, false);
        let mut means = cross(&rows, Wanted::Classes(labels, n_classes));
        let (d, stride) = (rows.n_features(), rows.stride);
        let counts: Vec<f64> = means.chunks_exact(stride).map(|sums| sums[d]).collect();
        for (sums, count) in means.chunks_exact_mut(stride).zip(&counts) {
            sums[d] = 0.0;
            sums.iter_mut().for_each(|sum| *sum /= count.max(1.0));
        }
        Ok(Classes { rows, counts, means })
    }

    fn head(&self, theta: &[f64]) -> Result<Closed, Error> {
        let d = self.rows.n_features();
        let mut theta = theta.to_vec();
        for (theta, count) in theta.chunks_exact_mut(self.rows.stride).zip(&self.counts) {
            if *count == 0.0 {
                theta.fill(0.0);
                theta[d] = f64::from(NEVER);
            }
        }
        let (weight, bias) = unprepare(&self.rows, &theta)?;
        Ok(Closed { weight, bias })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::tests::data;

    fn predicted(head: &Closed, features: &Features) -> Vec<usize> {
        let d = features.n_features();
        let values = features.values();
        let rows = values.chunks_exact(d).map(|x| {
            let logit = |k: usize| {
                let terms = x
                    .iter()
                    .zip(&head.weight[k * d..])
                    .map(|(x, w)| f64::from(*x) * f64::from(*w));
                terms.sum::<f64>() + f64::from(head.bias[k])
            };
            (0..head.bias.len())
                .max_by(|a, b| logit(*a).total_cmp(&logit(*b)))
                .unwrap()
        });
        rows.collect()
    }

    #[test]
    fn the_nearest_mean_is_nearest() {
        let (features, labels) = data(200, 9, 3);
        // Class 1 has no rows.
        let labels: Vec<u32> = labels.iter().map(|l| [0, 2, 3][*l as usize]).collect();
        let head = nearest_mean(&features, &labels, 4).unwrap();
        assert_eq!(head.bias[1], NEVER);
        let values = features.values();
        let mean = |class: u32| -> Vec<f64> {
            let rows: Vec<&[f32]> = values
                .chunks_exact(9)
                .zip(&labels)
                .filter(|(_, l)| **l == class)
                .map(|(x, _)| x)
                .collect();
            (0..9)
                .map(|j| rows.iter().map(|x| f64::from(x[j])).sum::<f64>() / rows.len() as f64)
                .collect()
        };
        let means: Vec<(usize, Vec<f64>)> = [0, 2, 3].iter().map(|c| (*c as usize, mean(*c))).collect();
        for (x, got) in values.chunks_exact(9).zip(predicted(&head, &features)) {
            let distance = |m: &[f64]| {
                m.iter()
                    .zip(x)
                    .map(|(m, x)| (m - f64::from(*x)).powi(2))
                    .sum::<f64>()
            };
            let want = means
                .iter()
                .min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1)))
                .unwrap()
                .0;
            assert_eq!(got, want);
        }
    }

    #[test]
    fn discriminants_are_told_from_scaled_features_too() {
        let (features, labels) = data(600, 9, 3);
        let right = |head: &Closed| {
            let hits = predicted(head, &features)
                .iter()
                .zip(&labels)
                .filter(|(p, l)| **p == **l as usize)
                .count();
            hits as f64 / 600.0
        };
        let plain = right(&lda(&features, &labels, 3, 0.0).unwrap());
        let mean = right(&nearest_mean(&features, &labels, 3).unwrap());
        assert!(plain > 0.95 && plain > mean, "{plain} {mean}");
        // All shrunk: no covariance but the mean variance.
        assert!((right(&lda(&features, &labels, 3, 1.0).unwrap()) - mean).abs() < 0.05);
        let flat = Features::new([1.0, 2.0, 1.0, 3.0, 1.0, 5.0, 1.0, 1.0].to_vec(), 2).unwrap();
        let error = lda(&flat, &[0, 1, 0, 1], 2, 0.0).unwrap_err().to_string();
        assert!(error.contains("singular"), "{error}");
        assert!(lda(&flat, &[0, 1, 0, 1], 2, 0.5).is_ok());
        assert!(
            lda(&flat, &[0, 1, 0, 1], 2, 2.0)
                .unwrap_err()
                .to_string()
                .contains("not in 0..=1")
        );
    }
}
