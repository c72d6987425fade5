//! Targets as the losses take them: masses that weights and smoothing have been worked into.

use super::config::{ClassWeights, SolverConfig};
use super::fit::NEVER;
use super::loss::{sigmoid_wide, softmax_wide};
use super::rows::Classes;
use crate::targets::Targets;

/// Cross-entropy of the softmax against a target distribution that depends on the label alone:
/// `main[y]` on the label, and `smooth[k]` on every class.
#[derive(Debug)]
pub(super) struct Softmax {
    /// `[N]`.
    pub(super) labels: Vec<u32>,
    /// `[K]`: `(1 - s) w`.
    pub(super) main: Vec<f32>,
    /// `[K]`: `s w / K`.
    pub(super) smooth: Vec<f32>,
    /// The sum of `smooth`.
    pub(super) smooth_mass: f64,
}

/// Binary cross-entropies.
#[derive(Debug)]
pub(super) enum Sigmoid {
    /// One output: what a row of each of two classes has for it and against it.
    Classes {
        /// `[N]`, 0 or 1.
        labels: Vec<u32>,
        /// For and against.
        masses: [(f32, f32); 2],
    },
    /// Several outputs.
    Dense {
        /// `[N, K]`, zeros and ones.
        values: Vec<f32>,
        /// `[K]`: for and against where the label is 0, and where it is 1.
        masses: Vec<[(f32, f32); 2]>,
    },
}

impl Sigmoid {
    /// What some rows have for an output and against it.
    pub(super) fn masses(&self, first: usize, output: usize, positive: &mut [f32], negative: &mut [f32]) {
        let out = positive.iter_mut().zip(negative).enumerate();
        match self {
            Sigmoid::Classes { labels, masses } => {
                for ((_, (positive, negative)), label) in out.zip(&labels[first..]) {
                    (*positive, *negative) = masses[*label as usize];
                }
            }
            Sigmoid::Dense { values, masses } => {
                let k = masses.len();
                for (r, (positive, negative)) in out {
                    let yes = values[(first + r) * k + output] != 0.0;
                    (*positive, *negative) = masses[output][usize::from(yes)];
                }
            }
        }
    }
}

/// The loss of a problem.
#[derive(Debug)]
pub(super) enum Likelihood {
    /// One block of K outputs that belong together.
    Softmax(Softmax),
    /// Outputs that have nothing to do with each other.
    Sigmoid(Sigmoid),
}

/// A likelihood, and which outputs of the head its own stand for.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) likelihood: Likelihood,
    /// Outputs that are fitted.
    pub(super) n_fitted: usize,
    /// Of a softmax: the classes that occur, in order. A class without rows (or weight) is not fitted.
    pub(super) present: Vec<usize>,
}

impl Model {
    /// Of targets that have been checked.
    pub(super) fn new(targets: &Targets, n_outputs: usize, config: &SolverConfig) -> Model {
        match targets {
            Targets::Classes(labels) => Model::of_classes(labels, n_outputs, config),
            Targets::Dense { values, n_outputs } => Model::of_labels(values, *n_outputs, config),
        }
    }

    /// The class of each row where that is all that its loss depends on.
    pub(super) fn classes(&self) -> Option<Classes<'_>> {
        match &self.likelihood {
            Likelihood::Softmax(by) => Some((&by.labels, self.n_fitted)),
            Likelihood::Sigmoid(Sigmoid::Classes { labels, .. }) => Some((labels, 2)),
            Likelihood::Sigmoid(Sigmoid::Dense { .. }) => None,
        }
    }

    fn of_classes(labels: &[u32], n_outputs: usize, config: &SolverConfig) -> Model {
        let mut counts = vec![0usize; n_outputs];
        labels.iter().for_each(|label| counts[*label as usize] += 1);
        let present: Vec<usize> = (0..n_outputs).filter(|&class| counts[class] > 0).collect();
        let mut place = vec![0u32; n_outputs];
        present
            .iter()
            .enumerate()
            .for_each(|(at, &class)| place[class] = at as u32);
        let labels: Vec<u32> = labels.iter().map(|label| place[*label as usize]).collect();
        let k = present.len();
        let weight: Vec<f64> = present
            .iter()
            .map(|&class| match &config.class_weights {
                ClassWeights::None => 1.0,
                ClassWeights::Balanced => labels.len() as f64 / (k as f64 * counts[class] as f64),
                ClassWeights::Given(weights) => weights[class],
            })
            .collect();
        let s = config.label_smoothing;
        let main: Vec<f32> = weight.iter().map(|w| (w * (1.0 - s)) as f32).collect();
        let smooth: Vec<f32> = weight.iter().map(|w| (w * s / k as f64) as f32).collect();
        let likelihood = if k == 2 {
            let masses = [(smooth[1], smooth[0] + main[0]), (smooth[1] + main[1], smooth[0])];
            Likelihood::Sigmoid(Sigmoid::Classes { labels, masses })
        } else {
            Likelihood::Softmax(Softmax {
                labels,
                smooth_mass: smooth.iter().map(|k| f64::from(*k)).sum(),
                main,
                smooth,
            })
        };
        Model {
            likelihood,
            n_fitted: if k == 2 { 1 } else { k },
            present,
        }
    }

    fn of_labels(values: &[f32], k: usize, config: &SolverConfig) -> Model {
        let n = (values.len() / k) as f64;
        let half = config.label_smoothing / 2.0;
        let masses = (0..k).map(|output| {
            let n_yes = values
                .iter()
                .skip(output)
                .step_by(k)
                .filter(|v| **v != 0.0)
                .count() as f64;
            let (yes, no) = match &config.class_weights {
                ClassWeights::None => (1.0, 1.0),
                // A label that all rows have, or none, has nothing to be balanced against.
                ClassWeights::Balanced if n_yes == 0.0 || n_yes == n => (1.0, 1.0),
                ClassWeights::Balanced => (n / (2.0 * n_yes), n / (2.0 * (n - n_yes))),
                ClassWeights::Given(weights) => (weights[output], 1.0),
            };
            [
                ((yes * half) as f32, (no * (1.0 - half)) as f32),
                ((yes * (1.0 - half)) as f32, (no * half) as f32),
            ]
        });
        let masses = masses.collect();
        let values = values.to_vec();
        Model {
            likelihood: Likelihood::Sigmoid(Sigmoid::Dense { values, masses }),
            n_fitted: k,
            present: Vec::new(),
        }
    }

    /// The same loss of some of the rows.
    pub(super) fn of_rows(&self, rows: &[usize]) -> Model {
        let labels_of = |labels: &[u32]| rows.iter().map(|row| labels[*row]).collect();
        let likelihood = match &self.likelihood {
            Likelihood::Softmax(by) => Likelihood::Softmax(Softmax {
                labels: labels_of(&by.labels),
                main: by.main.clone(),
                smooth: by.smooth.clone(),
                smooth_mass: by.smooth_mass,
            }),
            Likelihood::Sigmoid(Sigmoid::Classes { labels, masses }) => {
                Likelihood::Sigmoid(Sigmoid::Classes {
                    labels: labels_of(labels),
                    masses: *masses,
                })
            }
            Likelihood::Sigmoid(Sigmoid::Dense { values, masses }) => {
                let k = masses.len();
                Likelihood::Sigmoid(Sigmoid::Dense {
                    values: rows
                        .iter()
                        .flat_map(|row| &values[row * k..(row + 1) * k])
                        .copied()
                        .collect(),
                    masses: masses.clone(),
                })
            }
        };
        Model {
            likelihood,
            n_fitted: self.n_fitted,
            present: self.present.clone(),
        }
    }

    /// The bias of an output that all rows ask for, or none, whatever the features.
    pub(super) fn constant(&self, output: usize) -> Option<f32> {
        let Likelihood::Sigmoid(Sigmoid::Dense { values, masses }) = &self.likelihood else {
            return None;
        };
        // With smoothing, each row is a little for and against.
        let smooth = masses[output][0].0 > 0.0;
        let mut column = values.iter().skip(output).step_by(masses.len());
        let first = column.next()?;
        let constant = !smooth && column.all(|value| value == first);
        constant.then_some(if *first == 0.0 { NEVER } else { -NEVER })
    }

    /// Whether its outputs are fitted each by itself.
    pub(super) fn is_separate(&self) -> bool {
        matches!(self.likelihood, Likelihood::Sigmoid(_))
    }

    /// The mean curvature of a row with these logits of some outputs.
    pub(super) fn curvature(&self, mut z: Vec<f64>, outputs: &[usize], row: usize) -> f64 {
        match &self.likelihood {
            Likelihood::Softmax(by) => softmax_wide(&mut z, row, by).curvature,
            Likelihood::Sigmoid(by) => {
                let of_output = |(z, output): (&f64, &usize)| {
                    let (mut yes, mut no) = ([0.0], [0.0]);
                    by.masses(row, *output, &mut yes, &mut no);
                    sigmoid_wide(*z, yes[0], no[0]).1.curvature
                };
                z.iter().zip(outputs).map(of_output).sum::<f64>() / outputs.len() as f64
            }
        }
    }

    /// `[n_fitted]`: the biases that fit best where all weights are zero.
    pub(super) fn start(&self, n_rows: usize) -> Vec<f64> {
        match &self.likelihood {
            Likelihood::Softmax(by) => {
                let mut masses = vec![0.0f64; by.main.len()];
                by.labels
                    .iter()
                    .for_each(|label| masses[*label as usize] += f64::from(by.main[*label as usize]));
                let spread = by.smooth.iter().map(|s| f64::from(*s) * n_rows as f64);
                let logs: Vec<f64> = masses.iter().zip(spread).map(|(m, s)| (m + s).ln()).collect();
                let mean = logs.iter().sum::<f64>() / logs.len() as f64;
                logs.iter().map(|log| log - mean).collect()
            }
            Likelihood::Sigmoid(by) => (0..self.n_fitted)
                .map(|output| {
                    let (mut positive, mut negative) = (0.0, 0.0);
                    let (mut yes, mut no) = ([0f32], [0f32]);
                    for row in 0..n_rows {
                        by.masses(row, output, &mut yes, &mut no);
                        positive += f64::from(yes[0]);
                        negative += f64::from(no[0]);
                    }
                    // A label that all rows have, or none, has its best bias at infinity: half a row stands against.
                    (positive.max(0.5) / negative.max(0.5)).ln()
                })
                .collect(),
        }
    }
}
