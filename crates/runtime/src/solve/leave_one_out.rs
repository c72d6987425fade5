//! Ridge regression on the targets (one-hot for classes) with the exact error of leaving each row out, for any number of
//! penalties from one eigendecomposition; and by that, which labels are likely wrong.
//!
//! A row's residual without itself is its residual with itself over one minus its leverage: no row is left out in fact.

use rayon::prelude::*;
use serde::Serialize;

use super::eigen::Eigen;
use super::fit::Fitted;
use super::gram::exact_gram;
use super::linalg::matmul_transposed;
use super::ridge::{self, Wanted, check_size, cross, widen};
use super::rows::{Rows, Scratch, Segments};
use crate::error::Error;
use crate::features::Features;
use crate::targets::{Targets, Task};

/// One penalty that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Penalty {
    /// scikit-learn's alpha: `Σ ‖y - ŷ‖² + alpha ‖W‖²`.
    pub alpha: f64,
    /// The mean over rows and outputs of the squared error that a row has when it is left out.
    pub squared_error: f64,
    /// Share of rows whose class is right when they are left out; none for other targets.
    pub accuracy: Option<f64>,
}

/// A row whose label the others do not bear out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suspect {
    /// Which.
    pub row: usize,
    /// The class it is said to have.
    pub label: u32,
    /// The class that all others speak for.
    pub predicted: u32,
    /// By how much that class outdoes the label: the larger, the likelier the label is wrong.
    pub score: f32,
}

/// A ridge head and what is known without it.
#[derive(Debug, Clone)]
pub struct LeaveOneOut {
    /// All penalties, as they were given.
    pub penalties: Vec<Penalty>,
    /// The one with the least error.
    pub alpha: f64,
    /// Its head; `c` is `1 / (2 alpha)`.
    pub fitted: Fitted,
    /// `[N]`: how much each row weighs in its own prediction, between 0 and 1.
    pub leverage: Vec<f32>,
    /// Rows that are misjudged when they are left out, the most suspicious first; none for other targets than classes.
    pub suspects: Vec<Suspect>,
}

/// Fits ridge regression for the best of `alphas`, judged by leaving each row out (`sklearn.linear_model.RidgeCV`).
///
/// # Errors
/// [`Error::Features`] for targets that do not fit, and beyond 4,096 features; [`Error::Usage`] for a penalty that is not
/// above zero.
pub fn leave_one_out(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    alphas: &[f64],
) -> Result<LeaveOneOut, Error> {
    let task = match targets {
        Targets::Classes(_) => Task::SingleLabel,
        Targets::Dense { .. } => Task::Regression,
    };
    targets.check(task, features.n_rows(), n_outputs)?;
    check_size(features)?;
    if alphas.is_empty() || alphas.iter().any(|alpha| !(*alpha > 0.0 && alpha.is_finite())) {
        return Err(Error::Usage(
            "the penalties are to be positive numbers, at least one".to_owned(),
        ));
    }
    let rows = Rows::new(features, false);
    let wanted = Wanted::new(targets, n_outputs);
    let spectrum = Spectrum::new(&rows, wanted)?;
    let errors = spectrum.errors(wanted, alphas);
    let n = rows.n_rows() as f64;
    let penalties: Vec<Penalty> = alphas
        .iter()
        .zip(errors.chunks_exact(2))
        .map(|(&alpha, sums)| Penalty {
            alpha,
            squared_error: sums[0] / (n * n_outputs as f64),
            accuracy: targets.classes().map(|_| sums[1] / n),
        })
        .collect();
    let least = |a: &&Penalty, b: &&Penalty| a.squared_error.total_cmp(&b.squared_error);
    let alpha = penalties.iter().min_by(least).expect("at least one").alpha;
    let (leverage, suspects) = spectrum.judge(wanted, alpha);
    Ok(LeaveOneOut {
        penalties,
        alpha,
        fitted: ridge::one(
            &rows,
            wanted,
            &spectrum.gram,
            &spectrum.cross,
            1.0 / (2.0 * alpha),
        )?,
        leverage,
        suspects,
    })
}

/// The eigendecomposition of the centred second moments, and the targets in its directions.
struct Spectrum<'s> {
    rows: &'s Rows<'s>,
    gram: Vec<f64>,
    cross: Vec<f64>,
    /// `[D]`: what the rows' mean is off zero, since the centre is rounded to float32.
    mean: Vec<f64>,
    /// `[K]`: means of the targets.
    means: Vec<f64>,
    eigen: Eigen,
    /// `[K, D]`: the centred targets times the rotated rows.
    rotated: Vec<f64>,
}

/// What is known of some rows under one penalty.
struct Chunk<'c> {
    /// `[n]`.
    leverage: &'c [f64],
    /// `[n, K]`: targets less predictions.
    residual: &'c [f64],
}

impl<'s> Spectrum<'s> {
    fn new(rows: &'s Rows<'s>, wanted: Wanted<'_>) -> Result<Spectrum<'s>, Error> {
        let (d, stride, k) = (rows.n_features(), rows.stride, wanted.n_outputs());
        let n = rows.n_rows() as f64;
        let gram = exact_gram(rows);
        let cross = cross(rows, wanted);
        let mean: Vec<f64> = gram[d * stride..d * stride + d]
            .iter()
            .map(|sum| sum / n)
            .collect();
        let means: Vec<f64> = cross.chunks_exact(stride).map(|cross| cross[d] / n).collect();
        let mut centred = vec![0.0; d * d];
        for i in 0..d {
            for j in 0..d {
                centred[i * d + j] = gram[i * stride + j] - n * mean[i] * mean[j];
            }
        }
        let eigen = Eigen::new(centred, d)?;
        let mut about = vec![0.0; k * d];
        for ((about, cross), target) in about
            .chunks_exact_mut(d)
            .zip(cross.chunks_exact(stride))
            .zip(&means)
        {
            for ((about, cross), mean) in about.iter_mut().zip(cross).zip(&mean) {
                *about = cross - n * target * mean;
            }
        }
        let mut rotated = vec![0.0; k * d];
        matmul_transposed(&about, &eigen.vectors, &mut rotated, d);
        Ok(Spectrum {
            rows,
            gram,
            cross,
            mean,
            means,
            eigen,
            rotated,
        })
    }

    /// One over the penalised eigenvalues; rounding may have made the smallest negative.
    fn inverse(&self, alpha: f64) -> Vec<f64> {
        self.eigen
            .values
            .iter()
            .map(|value| 1.0 / (value.max(0.0) + alpha))
            .collect()
    }

    /// Goes through a run of rows and tells `see` of each chunk and penalty: the first row, which penalty, what is known.
    fn visit(
        &self,
        wanted: Wanted<'_>,
        range: std::ops::Range<usize>,
        alphas: &[f64],
        mut see: impl FnMut(usize, usize, Chunk<'_>),
    ) {
        let (d, stride, k) = (self.rows.n_features(), self.rows.stride, wanted.n_outputs());
        let inverses: Vec<Vec<f64>> = alphas.iter().map(|alpha| self.inverse(*alpha)).collect();
        let heads: Vec<Vec<f64>> = inverses
            .iter()
            .map(|inverse| {
                let rows = self.rotated.chunks_exact(d);
                rows.flat_map(|row| row.iter().zip(inverse).map(|(b, inverse)| b * inverse))
                    .collect()
            })
            .collect();
        let (mut scratch, mut wide, mut y) = (Scratch::default(), Vec::new(), Vec::new());
        let chunk_rows = self.rows.chunk_rows;
        for start in range.clone().step_by(chunk_rows) {
            let end = (start + chunk_rows).min(range.end);
            let n = end - start;
            widen(self.rows.chunk(start..end, &mut scratch), &mut wide);
            let centred: Vec<f64> = wide
                .chunks_exact(stride)
                .flat_map(|row| row.iter().zip(&self.mean).map(|(x, mean)| x - mean))
                .collect();
            let mut z = vec![0.0; n * d];
            matmul_transposed(&centred, &self.eigen.vectors, &mut z, d);
            wanted.rows(start..end, &mut y);
            for (which, (inverse, head)) in inverses.iter().zip(&heads).enumerate() {
                let leverage: Vec<f64> = z
                    .chunks_exact(d)
                    .map(|z| {
                        let terms = z.iter().zip(inverse).map(|(z, inverse)| z * z * inverse);
                        1.0 / self.rows.n_rows() as f64 + terms.sum::<f64>()
                    })
                    .collect();
                let mut residual = vec![0.0; n * k];
                matmul_transposed(&z, head, &mut residual, d);
                for (residual, y) in residual.chunks_exact_mut(k).zip(y.chunks_exact(k)) {
                    for ((residual, y), mean) in residual.iter_mut().zip(y).zip(&self.means) {
                        *residual = y - mean - *residual;
                    }
                }
                let (leverage, residual) = (leverage.as_slice(), residual.as_slice());
                see(start, which, Chunk { leverage, residual });
            }
        }
    }

    /// Per penalty, the sum of squared errors and the number of rows that are right.
    fn errors(&self, wanted: Wanted<'_>, alphas: &[f64]) -> Vec<f64> {
        let k = wanted.n_outputs();
        let segments = Segments::new(self.rows.n_rows(), self.rotated.len(), 2 * alphas.len());
        segments.sum(|range| {
            let mut sums = vec![0.0; 2 * alphas.len()];
            self.visit(wanted, range, alphas, |first, which, chunk| {
                let rows = chunk.residual.chunks_exact(k).zip(chunk.leverage).enumerate();
                for (row, (residual, leverage)) in rows {
                    let without = 1.0 / (1.0 - leverage).max(f64::EPSILON);
                    sums[2 * which] += residual.iter().map(|r| (r * without).powi(2)).sum::<f64>();
                    if let Wanted::Classes(labels, _) = wanted {
                        let (predicted, _) = verdict(residual, without, labels[first + row]);
                        sums[2 * which + 1] += f64::from(u8::from(predicted == labels[first + row]));
                    }
                }
            });
            sums
        })
    }

    /// Leverages of all rows, and the rows that are misjudged without themselves.
    fn judge(&self, wanted: Wanted<'_>, alpha: f64) -> (Vec<f32>, Vec<Suspect>) {
        let k = wanted.n_outputs();
        let segments = Segments::new(self.rows.n_rows(), self.rotated.len(), 1);
        let parts: Vec<(Vec<f32>, Vec<Suspect>)> = (0..segments.len())
            .into_par_iter()
            .map(|segment| {
                let (mut leverages, mut suspects) = (Vec::new(), Vec::new());
                self.visit(wanted, segments.rows(segment), &[alpha], |first, _, chunk| {
                    leverages.extend(chunk.leverage.iter().map(|leverage| *leverage as f32));
                    let Wanted::Classes(labels, _) = wanted else {
                        return;
                    };
                    let rows = chunk.residual.chunks_exact(k).zip(chunk.leverage).enumerate();
                    for (at, (residual, leverage)) in rows {
                        let (row, without) = (first + at, 1.0 / (1.0 - leverage).max(f64::EPSILON));
                        let label = labels[row];
                        let (predicted, score) = verdict(residual, without, label);
                        if predicted != label {
                            let score = score as f32;
                            suspects.push(Suspect {
                                row,
                                label,
                                predicted,
                                score,
                            });
                        }
                    }
                });
                (leverages, suspects)
            })
            .collect();
        let (mut leverage, mut suspects) = (Vec::new(), Vec::new());
        for (mut some, mut more) in parts {
            leverage.append(&mut some);
            suspects.append(&mut more);
        }
        suspects.sort_by(|a: &Suspect, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
        (leverage, suspects)
    }
}

/// The class that a row would be given without itself, and by how much it outdoes the label.
fn verdict(residual: &[f64], without: f64, label: u32) -> (u32, f64) {
    let of_class = |class: usize| f64::from(u8::from(class == label as usize)) - residual[class] * without;
    let mut best = 0;
    for class in 1..residual.len() {
        if of_class(class) > of_class(best) {
            best = class;
        }
    }
    (best as u32, of_class(best) - of_class(label as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::tests::data;

    #[test]
    fn leaving_rows_out_is_what_it_says() {
        let (features, labels) = data(60, 7, 3);
        let targets = Targets::Classes(labels.clone());
        let alphas = [0.01, 1.0, 100.0];
        let found = leave_one_out(&features, &targets, 3, &alphas).unwrap();
        for (alpha, penalty) in alphas.iter().zip(&found.penalties) {
            let (mut squares, mut right) = (0.0, 0.0);
            for (out, label) in labels.iter().enumerate() {
                let others: Vec<usize> = (0..60).filter(|row| *row != out).collect();
                let (kept, left) = (features.select(&others), targets.select(&others));
                let rows = Rows::new(&kept, false);
                let wanted = Wanted::new(&left, 3);
                let (gram, cross) = (exact_gram(&rows), cross(&rows, wanted));
                let head = ridge::one(&rows, wanted, &gram, &cross, 1.0 / (2.0 * alpha)).unwrap();
                let mut scratch = Vec::new();
                let x = features.rows(out..out + 1, &mut scratch);
                let z: Vec<f64> = (0..3)
                    .map(|k| {
                        let w = &head.weight[k * 7..][..7];
                        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        terms.sum::<f64>() + f64::from(head.bias[k])
                    })
                    .collect();
                let label = *label as usize;
                squares += (0..3)
                    .map(|k| (z[k] - f64::from(u8::from(k == label))).powi(2))
                    .sum::<f64>();
                right += f64::from(u8::from((0..3).all(|k| k == label || z[k] < z[label])));
            }
            let want = squares / 180.0;
            assert!(
                (penalty.squared_error / want - 1.0).abs() < 1e-4,
                "{penalty:?} {want}"
            );
            assert!((penalty.accuracy.unwrap() - right / 60.0).abs() < 1e-9);
        }
        let sum: f32 = found.leverage.iter().sum();
        assert!(sum > 1.0 && sum < 8.0 && found.leverage.iter().all(|h| *h > 0.0 && *h < 1.0));
    }

    #[test]
    fn labels_that_were_swapped_come_first() {
        let (features, mut labels) = data(600, 9, 3);
        let swapped = [5, 100, 222, 400, 555];
        swapped
            .iter()
            .for_each(|&row| labels[row] = (labels[row] + 1) % 3);
        let targets = Targets::Classes(labels);
        let found = leave_one_out(&features, &targets, 3, &[0.1, 1.0]).unwrap();
        let first: Vec<usize> = found.suspects.iter().take(8).map(|suspect| suspect.row).collect();
        assert!(swapped.iter().all(|row| first.contains(row)), "{first:?}");
        assert!(found.suspects.windows(2).all(|two| two[0].score >= two[1].score));
    }

    #[test]
    fn penalties_are_positive() {
        let (features, labels) = data(20, 3, 3);
        let targets = Targets::Classes(labels);
        let message = |alphas: &[f64]| {
            leave_one_out(&features, &targets, 3, alphas)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&[]).contains("at least one"));
        assert!(message(&[0.0]).contains("positive"));
    }
}
