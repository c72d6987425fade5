//! Whether probabilities mean what they say, and the one number that mends most of it.
//!
//! Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (2017).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::multi_label::{sigmoid, softplus};
use super::{Judged, check};
use crate::error::Error;
use crate::head::{Head, Layer};
use crate::targets::{Targets, Task};

/// Bins of equal width that probabilities are sorted into.
pub const N_BINS: usize = 15;

/// What a head said with a certain confidence, and how often it was right.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Bin {
    /// Predictions in the bin.
    pub n: usize,
    /// Their mean probability; zero without any.
    pub confidence: f64,
    /// The share of them that came true; zero without any.
    pub accuracy: f64,
}

/// Predictions sorted by their probability into [`N_BINS`] bins: `0 ..= 1/15`, then each from above one edge up to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// From 0 to 1.
    pub bins: Vec<Bin>,
    /// `Σ (n / N) · |confidence - accuracy|` over the bins.
    pub ece: f64,
}

impl Reliability {
    /// Of what a head says: the likeliest class of each row, or each class of each row where they stand by themselves.
    ///
    /// # Errors
    /// [`Error::Features`] where logits and targets do not belong together; [`Error::Usage`] for a regression, which has no
    /// probabilities.
    pub fn new(
        task: Task,
        logits: &[f32],
        targets: &Targets,
        n_outputs: usize,
    ) -> Result<Reliability, Error> {
        check(task, logits, targets, n_outputs)?;
        match targets {
            Targets::Classes(labels) => Ok(Reliability::of(logits.chunks_exact(n_outputs).zip(labels).map(
                |(logits, &label)| {
                    let judged = Judged::new(logits);
                    (judged.probability(judged.class), judged.class == label as usize)
                },
            ))),
            Targets::Dense { values, .. } if task == Task::MultiLabel => {
                Ok(Reliability::of(logits.iter().zip(values).map(
                    |(logit, value)| (sigmoid(f64::from(*logit)), *value > 0.5),
                )))
            }
            Targets::Dense { .. } => Err(without_probabilities()),
        }
    }

    /// Of probabilities and whether they came true.
    pub fn of(predictions: impl Iterator<Item = (f64, bool)>) -> Reliability {
        let mut bins = vec![Bin::default(); N_BINS];
        let mut n_right = [0usize; N_BINS];
        for (probability, came_true) in predictions {
            let at = (probability * N_BINS as f64).ceil() as usize;
            let at = at.saturating_sub(1).min(N_BINS - 1);
            bins[at].n += 1;
            bins[at].confidence += probability;
            n_right[at] += usize::from(came_true);
        }
        let n: usize = bins.iter().map(|bin| bin.n).sum();
        let mut ece = 0.0;
        for (bin, n_right) in bins.iter_mut().zip(n_right) {
            let count = bin.n.max(1) as f64;
            bin.confidence /= count;
            bin.accuracy = n_right as f64 / count;
            ece += bin.n as f64 / n.max(1) as f64 * (bin.confidence - bin.accuracy).abs();
        }
        Reliability { bins, ece }
    }
}

/// What logits are divided by so that their probabilities mean what they say; decisions stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// The divisor: over 1 where the head was too sure, from 0.01 to 100.
    pub value: f64,
    /// Held-out rows that it was fitted on.
    pub n: usize,
    /// Mean cross-entropy of these rows before, in nats.
    pub log_loss_before: f64,
    /// And after, which is never more.
    pub log_loss_after: f64,
    /// Expected calibration error of these rows before.
    pub ece_before: f64,
    /// And after.
    pub ece_after: f64,
}

/// Limits of the temperature: where all rows are right the loss only falls towards 0, and where they are no better than
/// chance it only falls towards infinity.
const RANGE: (f64, f64) = (0.01, 100.0);

impl Temperature {
    /// The temperature with the least log loss on rows that the head was not trained on: `logits` `[N, C]` and what is
    /// wanted of them. The loss is convex in the inverse of the temperature; Newton's steps are taken while they stay inside
    /// the bracket that its slope gives, halvings else.
    ///
    /// # Errors
    /// [`Error::Features`] without rows or where logits and targets do not belong together; [`Error::Usage`] for a
    /// regression, which has no probabilities.
    pub fn fit(
        task: Task,
        logits: &[f32],
        targets: &Targets,
        n_outputs: usize,
    ) -> Result<Temperature, Error> {
        check(task, logits, targets, n_outputs)?;
        if task == Task::Regression {
            return Err(without_probabilities());
        }
        if targets.is_empty() {
            return Err(Error::Features(
                "there are no held-out rows to fit a temperature on".to_owned(),
            ));
        }
        let (mut low, mut high) = (1.0 / RANGE.1, 1.0 / RANGE.0);
        let at = |factor: f64| slopes(logits, targets, n_outputs, factor);
        let [log_loss_before, mut first, mut second] = at(1.0);
        let mut factor = 1.0;
        let mut slope_before = f64::INFINITY;
        // Every other step at worst halves the logarithm of the bracket; 128 of them use up all digits.
        for _ in 0..128 {
            match first {
                first if first > 0.0 => high = factor,
                first if first < 0.0 => low = factor,
                _ => break,
            }
            let newton = factor - first / second;
            // Where the slope is exponential, Newton's steps creep: they have to earn the next one.
            let is_better = first.abs() <= slope_before / 2.0;
            let is_inside = newton > low && newton < high;
            let next = if is_inside && is_better {
                newton
            } else {
                (low * high).sqrt()
            };
            slope_before = first.abs();
            let is_done = (next - factor).abs() <= 1e-12 * factor;
            factor = next;
            if is_done {
                break;
            }
            [_, first, second] = at(factor);
        }
        let [log_loss_after, ..] = at(factor);
        let scaled: Vec<f32> = logits
            .iter()
            .map(|logit| (f64::from(*logit) * factor) as f32)
            .collect();
        Ok(Temperature {
            value: 1.0 / factor,
            n: targets.len(),
            log_loss_before,
            log_loss_after,
            ece_before: Reliability::new(task, logits, targets, n_outputs)?.ece,
            ece_after: Reliability::new(task, &scaled, targets, n_outputs)?.ece,
        })
    }

    /// Divides logits by it.
    pub fn apply(&self, logits: &mut [f32]) {
        logits.iter_mut().for_each(|logit| *logit = self.divide(*logit));
    }

    /// The head whose logits are divided by it: its last layer's weight and bias are.
    ///
    /// # Errors
    /// None that a head that was made can have.
    pub fn fold(&self, head: &Head) -> Result<Head, Error> {
        let mut layers = head.layers().to_vec();
        if let Some(Layer::Linear(last)) = layers.last_mut() {
            self.apply(&mut last.weight);
            self.apply(&mut last.bias);
        }
        Head::new(head.task(), head.outputs().to_vec(), layers)
    }

    fn divide(&self, value: f32) -> f32 {
        (f64::from(value) / self.value) as f32
    }
}

fn without_probabilities() -> Error {
    Error::Usage("a regression has no probabilities to calibrate".to_owned())
}

/// Mean cross-entropy of `factor · logits`, and its first and second derivative by the factor.
///
/// Rows are summed in segments of a fixed size and these in order, so that threads change nothing.
fn slopes(logits: &[f32], targets: &Targets, n_outputs: usize, factor: f64) -> [f64; 3] {
    const SEGMENT_ROWS: usize = 1024;
    let add = |mut sum: [f64; 3], part: [f64; 3]| {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        sum
    };
    let segments = logits.par_chunks(SEGMENT_ROWS * n_outputs);
    let (segments, n_terms): (Vec<[f64; 3]>, usize) = match targets {
        Targets::Classes(labels) => {
            let segments = segments
                .zip(labels.par_chunks(SEGMENT_ROWS))
                .map(|(logits, labels)| {
                    let rows = logits.chunks_exact(n_outputs).zip(labels);
                    rows.map(|(logits, &label)| softmax_slopes(logits, label as usize, factor))
                        .fold([0.0; 3], add)
                });
            (segments.collect(), labels.len())
        }
        Targets::Dense { values, .. } => {
            let segments = segments.zip(values.par_chunks(SEGMENT_ROWS * n_outputs));
            let segments = segments.map(|(logits, labels)| {
                let entries = logits.iter().zip(labels);
                entries
                    .map(|(logit, label)| {
                        let (z, y) = (f64::from(*logit), f64::from(*label));
                        let p = sigmoid(factor * z);
                        [
                            softplus(factor * z) - y * factor * z,
                            (p - y) * z,
                            p * (1.0 - p) * z * z,
                        ]
                    })
                    .fold([0.0; 3], add)
            });
            (segments.collect(), values.len())
        }
    };
    segments
        .into_iter()
        .fold([0.0; 3], add)
        .map(|sum| sum / n_terms.max(1) as f64)
}

/// Cross-entropy of one row; its slope is the mean logit less the label's, its curvature the logits' variance.
fn softmax_slopes(logits: &[f32], label: usize, factor: f64) -> [f64; 3] {
    let top = logits
        .iter()
        .fold(f32::NEG_INFINITY, |top, logit| top.max(*logit));
    let top = f64::from(top);
    let (mut total, mut first, mut second) = (0.0, 0.0, 0.0);
    for logit in logits {
        // Measured from the largest, so that the variance loses no digits.
        let z = f64::from(*logit) - top;
        let e = (factor * z).exp();
        total += e;
        first += e * z;
        second += e * z * z;
    }
    let (mean, square) = (first / total, second / total);
    let own = f64::from(logits[label]) - top;
    [
        total.ln() - factor * own,
        mean - own,
        (square - mean * mean).max(0.0),
    ]
}
