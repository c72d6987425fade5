//! How good a classifier is: accuracy, log loss, confusion matrix, and precision, recall and F1 per class as
//! scikit-learn's `classification_report` defines them.

use serde::{Deserialize, Serialize};

/// One row of logits, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged<'l> {
    logits: &'l [f32],
    /// The class with the highest logit; the first of several.
    pub class: usize,
    log_total: f64,
}

impl<'l> Judged<'l> {
    /// Judges the logits of one picture.
    pub fn new(logits: &'l [f32]) -> Judged<'l> {
        let mut class = 0;
        for (idx, logit) in logits.iter().enumerate() {
            if *logit > logits[class] {
                class = idx;
            }
        }
        let top = f64::from(logits[class]);
        let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - top).exp()).sum();
        Judged {
            logits,
            class,
            log_total: top + total.ln(),
        }
    }

    /// Softmax of one class.
    pub fn probability(&self, class: usize) -> f64 {
        (f64::from(self.logits[class]) - self.log_total).exp()
    }

    /// `-log softmax[label]`, in nats.
    pub fn log_loss(&self, label: u32) -> f64 {
        self.log_total - f64::from(self.logits[label as usize])
    }
}

/// Classes up to which there is a confusion matrix.
const MAX_CONFUSION: usize = 2048;

/// A classifier's marks on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Pictures.
    pub n: usize,
    /// Share classified right.
    pub accuracy: f64,
    /// Mean cross-entropy in nats.
    pub log_loss: f64,
    /// Mean F1 of the classes that occur.
    pub macro_f1: f64,
    /// `confusion[true][predicted]`; empty beyond 2,048 classes, where it would be larger than the features.
    pub confusion: Vec<Vec<usize>>,
    /// One per class, in order.
    pub per_class: Vec<ClassMetrics>,
}

/// Marks of one class; a ratio without cases is zero, as in scikit-learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Its name.
    pub class: String,
    /// Right among those predicted as it.
    pub precision: f64,
    /// Right among those that are it.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Pictures that are it.
    pub support: usize,
}

impl Metrics {
    /// Marks `logits` `[N, C]` against `labels` `[N]`.
    pub fn new(logits: &[f32], labels: &[u32], classes: &[String]) -> Metrics {
        let k = classes.len();
        let mut confusion = if k <= MAX_CONFUSION {
            vec![vec![0usize; k]; k]
        } else {
            Vec::new()
        };
        let (mut right, mut support, mut predicted) = (vec![0usize; k], vec![0usize; k], vec![0usize; k]);
        let mut log_loss = 0.0;
        for (row, &label) in logits.chunks_exact(k).zip(labels) {
            let judged = Judged::new(row);
            let label_idx = label as usize;
            if let Some(row) = confusion.get_mut(label_idx) {
                row[judged.class] += 1;
            }
            support[label_idx] += 1;
            predicted[judged.class] += 1;
            right[label_idx] += usize::from(judged.class == label_idx);
            log_loss += judged.log_loss(label);
        }
        let n = labels.len();
        let ratio = |part: usize, whole: usize| {
            if whole == 0 {
                0.0
            } else {
                part as f64 / whole as f64
            }
        };
        let n_right: usize = right.iter().sum();
        let per_class: Vec<ClassMetrics> = (0..k)
            .map(|class| {
                let (right, support, predicted) = (right[class], support[class], predicted[class]);
                ClassMetrics {
                    class: classes[class].clone(),
                    precision: ratio(right, predicted),
                    recall: ratio(right, support),
                    f1: ratio(2 * right, predicted + support),
                    support,
                }
            })
            .collect();
        let present: Vec<f64> = per_class
            .iter()
            .filter(|class| class.support > 0)
            .map(|class| class.f1)
            .collect();
        Metrics {
            n,
            accuracy: ratio(n_right, n),
            log_loss: if n == 0 { 0.0 } else { log_loss / n as f64 },
            macro_f1: present.iter().sum::<f64>() / present.len().max(1) as f64,
            confusion,
            per_class,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_scikit_learns() {
        // y_true = [0, 0, 1, 1, 2], y_pred = [0, 1, 1, 1, 0]; figures by hand.
        let classes: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let logits = [2., 0., 0., 0., 2., 0., 0., 2., 0., 0., 2., 0., 2., 0., 0.];
        let marks = Metrics::new(&logits, &[0, 0, 1, 1, 2], &classes);
        assert_eq!(marks.confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 0]]);
        assert!((marks.accuracy - 0.6).abs() < 1e-12);
        assert!((marks.per_class[0].precision - 0.5).abs() < 1e-12);
        assert!((marks.per_class[1].precision - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(
            marks.per_class[2],
            ClassMetrics {
                class: "c".into(),
                precision: 0.,
                recall: 0.,
                f1: 0.,
                support: 1
            }
        );
        assert!((marks.macro_f1 - (0.5 + 0.8 + 0.0) / 3.0).abs() < 1e-12);
        let total = 2f64.exp() + 2.0;
        let expected = (3.0 * (total / 2f64.exp()).ln() + 2.0 * total.ln()) / 5.0;
        assert!((marks.log_loss - expected).abs() < 1e-9);
    }
}
