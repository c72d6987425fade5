//! Each class by itself: average precision per class and its mean, and F1 where a class is predicted from one half on.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::calibration::Reliability;
use super::{Average, ratio};

/// Marks of a head with a sigmoid for each class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MultiLabelMetrics {
    /// Rows.
    pub n: usize,
    /// Mean average precision of the classes that some row has (`average_precision_score(average="macro")` of those).
    pub mean_average_precision: f64,
    /// F1 of all decisions together (`f1_score(average="micro")`).
    pub micro_f1: f64,
    /// Mean F1 of all classes (`f1_score(average="macro")`).
    pub macro_f1: f64,
    /// Share of rows whose classes are all right (`accuracy_score`).
    pub exact_match: f64,
    /// Mean binary cross-entropy of a decision in nats (`torch.nn.BCEWithLogitsLoss`).
    pub log_loss: f64,
    /// Mean of `(p - y)²` over all decisions (`mean_squared_error` of the probabilities).
    pub brier: f64,
    /// Expected calibration error of the probabilities over 15 bins of equal width.
    pub ece: f64,
    /// All decisions together, the mean over classes, the mean by the classes' rows, the mean over rows: scikit-learn's
    /// `micro avg`, `macro avg`, `weighted avg` and `samples avg`.
    pub averages: [Average; 4],
    /// One per class, in order.
    pub per_class: Vec<LabelMetrics>,
}

/// Marks of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// Its name.
    pub class: String,
    /// Area below precision over recall as steps (`average_precision_score`); absent where no row has the class.
    pub average_precision: Option<f64>,
    /// Right among those predicted to have it.
    pub precision: f64,
    /// Right among those that have it.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Rows that have it.
    pub support: usize,
}

#[derive(Default)]
struct RowSums {
    log_loss: f64,
    brier: f64,
    is_exact: bool,
    average: Average,
}

impl MultiLabelMetrics {
    /// Marks `logits` `[N, C]` against `labels` `[N, C]` of zeros and ones. A class is predicted where its logit is over 0,
    /// that is its probability over 0.5.
    ///
    /// # Panics
    /// Where there are no classes.
    pub fn new(logits: &[f32], labels: &[f32], classes: &[String]) -> MultiLabelMetrics {
        let k = classes.len();
        let rows: Vec<RowSums> = logits
            .par_chunks_exact(k)
            .zip(labels.par_chunks_exact(k))
            .map(|(logits, labels)| row_sums(logits, labels))
            .collect();
        let n = rows.len();
        let per_class: Vec<(LabelMetrics, [usize; 3])> = classes
            .par_iter()
            .enumerate()
            .map(|(at, class)| {
                let scored: Vec<(f32, bool)> = logits
                    .chunks_exact(k)
                    .zip(labels.chunks_exact(k))
                    .map(|(logits, labels)| (logits[at], labels[at] > 0.5))
                    .collect();
                let counts = counts(scored.iter().map(|&(logit, has)| (logit > 0.0, has)));
                let [right, predicted, support] = counts;
                let average = Average::of(right, predicted, support);
                let marks = LabelMetrics {
                    class: class.clone(),
                    average_precision: average_precision(scored),
                    precision: average.precision,
                    recall: average.recall,
                    f1: average.f1,
                    support,
                };
                (marks, counts)
            })
            .collect();
        let mut all = [0; 3];
        for (_, counts) in &per_class {
            all.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        let per_class: Vec<LabelMetrics> = per_class.into_iter().map(|(marks, _)| marks).collect();
        let precisions: Vec<f64> = per_class
            .iter()
            .filter_map(|class| class.average_precision)
            .collect();
        let over_classes = |weight: &dyn Fn(&LabelMetrics) -> f64| {
            Average::mean(per_class.iter().map(|class| {
                let (precision, recall, f1) = (class.precision, class.recall, class.f1);
                (
                    Average {
                        precision,
                        recall,
                        f1,
                    },
                    weight(class),
                )
            }))
        };
        let averages = [
            Average::of(all[0], all[1], all[2]),
            over_classes(&|_| 1.0),
            over_classes(&|class| class.support as f64),
            Average::mean(rows.iter().map(|row| (row.average, 1.0))),
        ];
        let n_decisions = (n * k).max(1) as f64;
        let entries = logits.iter().zip(labels);
        let entries = entries.map(|(logit, label)| (sigmoid(f64::from(*logit)), *label > 0.5));
        MultiLabelMetrics {
            n,
            mean_average_precision: precisions.iter().sum::<f64>() / precisions.len().max(1) as f64,
            micro_f1: averages[0].f1,
            macro_f1: averages[1].f1,
            exact_match: ratio(rows.iter().filter(|row| row.is_exact).count(), n),
            log_loss: rows.iter().map(|row| row.log_loss).sum::<f64>() / n_decisions,
            brier: rows.iter().map(|row| row.brier).sum::<f64>() / n_decisions,
            ece: Reliability::of(entries).ece,
            averages,
            per_class,
        }
    }
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    // Of two forms the one whose exponential does not overflow.
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `log(1 + exp(x))`.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn row_sums(logits: &[f32], labels: &[f32]) -> RowSums {
    let mut sums = RowSums::default();
    for (logit, label) in logits.iter().zip(labels) {
        let (logit, label) = (f64::from(*logit), f64::from(*label));
        sums.log_loss += softplus(logit) - label * logit;
        sums.brier += (sigmoid(logit) - label).powi(2);
    }
    let pairs = logits.iter().zip(labels);
    let pairs = pairs.map(|(logit, label)| (*logit > 0.0, *label > 0.5));
    sums.is_exact = pairs.clone().all(|(predicted, has)| predicted == has);
    let [right, predicted, support] = counts(pairs);
    sums.average = Average::of(right, predicted, support);
    sums
}

/// Right, predicted, there.
fn counts(pairs: impl Iterator<Item = (bool, bool)>) -> [usize; 3] {
    let mut counts = [0; 3];
    for (predicted, has) in pairs {
        counts[0] += usize::from(predicted && has);
        counts[1] += usize::from(predicted);
        counts[2] += usize::from(has);
    }
    counts
}

/// `Σ_n (R_n - R_(n-1)) · P_n` over the distinct scores, from the highest down.
fn average_precision(mut scored: Vec<(f32, bool)>) -> Option<f64> {
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let n_positive = scored.iter().filter(|(_, has)| *has).count();
    if n_positive == 0 {
        return None;
    }
    let (mut n_seen, mut n_right) = (0, 0);
    let mut area = 0.0;
    // -0.0 and 0.0 are one score, whatever order they were sorted in.
    for equal in scored.chunk_by(|a, b| a.0 == b.0) {
        let n_new = equal.iter().filter(|(_, has)| *has).count();
        n_seen += equal.len();
        n_right += n_new;
        area += ratio(n_new, n_positive) * ratio(n_right, n_seen);
    }
    Some(area)
}
