//! One class of several: accuracy, log loss, Brier score, calibration error, confusion, and marks per class.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::calibration::Reliability;
use super::{Average, ratio};

/// One row of logits, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged<'l> {
    logits: &'l [f32],
    /// The class with the highest logit; the first of several.
    pub class: usize,
    log_total: f64,
    /// The sum of all classes' squared probabilities.
    sum_of_squares: f64,
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
        let (mut total, mut squares) = (0.0, 0.0);
        for logit in logits {
            let e = (f64::from(*logit) - top).exp();
            total += e;
            squares += e * e;
        }
        Judged {
            logits,
            class,
            log_total: top + total.ln(),
            sum_of_squares: squares / (total * total),
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

    /// `Σ_c (softmax[c] - [c = label])²`, from 0 to 2.
    pub fn brier(&self, label: u32) -> f64 {
        self.sum_of_squares - 2.0 * self.probability(label as usize) + 1.0
    }

    /// How many classes come before this one: higher logits, and equal ones of lower numbers, as [`class`](Judged::class)
    /// is chosen.
    pub fn rank(&self, class: usize) -> usize {
        let own = self.logits[class];
        let is_before = |(other, logit): (usize, &f32)| *logit > own || (*logit == own && other < class);
        self.logits
            .iter()
            .enumerate()
            .filter(|pair| is_before(*pair))
            .count()
    }
}

/// Classes up to which there is a confusion matrix.
const MAX_CONFUSION: usize = 2048;

/// The k of the accuracy that is reported beside the plain one.
const TOP: usize = 5;

/// A classifier's marks on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Pictures.
    pub n: usize,
    /// Share classified right (`accuracy_score`).
    pub accuracy: f64,
    /// Share whose class is among the five with the highest logits (`top_k_accuracy_score(k=5)`); absent for up to five
    /// classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5_accuracy: Option<f64>,
    /// Mean cross-entropy in nats (`log_loss`).
    pub log_loss: f64,
    /// Mean of `Σ_c (p_c - y_c)²` (`brier_score_loss(scale_by_half=False)`).
    pub brier: f64,
    /// Expected calibration error over 15 bins of equal width (Guo et al. 2017).
    pub ece: f64,
    /// Mean F1 of the classes that occur or are predicted (`f1_score(average="macro")`).
    pub macro_f1: f64,
    /// `confusion[true][predicted]` (`confusion_matrix`); empty beyond 2,048 classes, where it would be larger than the
    /// features.
    pub confusion: Vec<Vec<usize>>,
    /// One per class, in order (`precision_recall_fscore_support`).
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

/// What is kept of one row.
struct Row {
    class: u32,
    in_top: bool,
    log_loss: f64,
    brier: f64,
    confidence: f64,
}

impl Metrics {
    /// Marks `logits` `[N, C]` against `labels` `[N]`.
    ///
    /// # Panics
    /// Where a label is beyond the classes; [`Marks::new`](super::Marks::new) checks before.
    pub fn new(logits: &[f32], labels: &[u32], classes: &[String]) -> Metrics {
        let k = classes.len();
        let rows: Vec<Row> = logits
            .par_chunks_exact(k)
            .zip(labels)
            .map(|(logits, &label)| {
                let judged = Judged::new(logits);
                Row {
                    class: judged.class as u32,
                    in_top: k > TOP && judged.rank(label as usize) < TOP,
                    log_loss: judged.log_loss(label),
                    brier: judged.brier(label),
                    confidence: judged.probability(judged.class),
                }
            })
            .collect();
        let mut confusion = match k <= MAX_CONFUSION {
            true => vec![vec![0usize; k]; k],
            false => Vec::new(),
        };
        let (mut right, mut support, mut predicted) = (vec![0usize; k], vec![0usize; k], vec![0usize; k]);
        let (mut log_loss, mut brier, mut n_in_top) = (0.0, 0.0, 0);
        for (row, &label) in rows.iter().zip(labels) {
            let (label, class) = (label as usize, row.class as usize);
            if let Some(row) = confusion.get_mut(label) {
                row[class] += 1;
            }
            support[label] += 1;
            predicted[class] += 1;
            right[label] += usize::from(class == label);
            n_in_top += usize::from(row.in_top);
            log_loss += row.log_loss;
            brier += row.brier;
        }
        let n = rows.len();
        let mean = |sum: f64| sum / n.max(1) as f64;
        let n_right: usize = right.iter().sum();
        let averages: Vec<Average> = (0..k)
            .map(|class| Average::of(right[class], predicted[class], support[class]))
            .collect();
        let occurs = (0..k).filter(|&class| support[class] + predicted[class] > 0);
        let macro_f1 = Average::mean(occurs.map(|class| (averages[class], 1.0))).f1;
        let per_class = averages.iter().zip(classes).zip(&support);
        let per_class = per_class.map(|((average, class), &support)| ClassMetrics {
            class: class.clone(),
            precision: average.precision,
            recall: average.recall,
            f1: average.f1,
            support,
        });
        let judged = rows.iter().zip(labels);
        let judged = judged.map(|(row, &label)| (row.confidence, row.class == label));
        Metrics {
            n,
            accuracy: ratio(n_right, n),
            top5_accuracy: (k > TOP).then(|| ratio(n_in_top, n)),
            log_loss: mean(log_loss),
            brier: mean(brier),
            ece: Reliability::of(judged).ece,
            macro_f1,
            confusion,
            per_class: per_class.collect(),
        }
    }

    /// Means over all classes: each alike, and each by its pictures; the `macro avg` and `weighted avg` of scikit-learn's
    /// `classification_report`.
    pub fn averages(&self) -> [Average; 2] {
        let weighted_by = |weight: &dyn Fn(&ClassMetrics) -> f64| {
            let parts = self.per_class.iter().map(|class| {
                let average = Average {
                    precision: class.precision,
                    recall: class.recall,
                    f1: class.f1,
                };
                (average, weight(class))
            });
            Average::mean(parts)
        };
        [weighted_by(&|_| 1.0), weighted_by(&|class| class.support as f64)]
    }
}
