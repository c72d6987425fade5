//! Choosing C on held-out training rows; the validation split takes no part, so that its accuracy is honest.

use serde::Serialize;

use super::softmax::{Fitted, Problem, SolverOptions};
use crate::error::Error;
use crate::features::Features;
use crate::head::Head;
use crate::monitor::{Monitor, Stage};
use crate::random::Random;
use crate::targets::Task;

/// Half decades from 1e-4 to 1e4, scikit-learn's `LogisticRegressionCV` range at twice its density.
const GRID: std::ops::RangeInclusive<i32> = -8..=8;
/// Below this many rows one split is too noisy, and all five folds are used.
const FEW_ROWS: usize = 2000;
const N_FOLDS: usize = 5;
/// The grid is climbed from strong to weak regularisation until this many steps in a row were worse than the best.
const PATIENCE: usize = 2;
/// A selection needs the order of the candidates, not their last digits.
const SELECTION: SolverOptions = SolverOptions {
    relative_gap: 1e-5,
    max_passes: 300,
};

/// One C that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// Its value.
    pub c: f64,
    /// Mean cross-entropy on held-out rows, in nats.
    pub held_out_log_loss: f64,
    /// Share of held-out rows that are classified right.
    pub held_out_accuracy: f64,
}

/// The chosen C and how it was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Selection {
    /// The value with the least held-out log loss.
    pub c: f64,
    /// All that were tried, in rising order of C.
    pub candidates: Vec<Candidate>,
    /// Held-out splits that were averaged.
    pub n_splits: usize,
    /// Held-out rows in all of them.
    pub n_held_out: usize,
}

/// Tries values of C on stratified held-out fifths of the rows: one of them, or all five below 2,000 rows.
///
/// # Errors
/// As [`super::fit`].
pub fn select_c(
    features: &Features,
    labels: &[u32],
    n_classes: usize,
    seed: u64,
    monitor: Monitor<'_>,
) -> Result<Selection, Error> {
    // Checks the data as a whole first, so that an error speaks of all rows and not of a fold's.
    Problem::check(features, labels, n_classes)?;
    let folds = folds(labels, n_classes, seed);
    let n_splits = if labels.len() < FEW_ROWS { N_FOLDS } else { 1 };
    let mut splits = Vec::new();
    for fold in 0..n_splits as u8 {
        let (held, kept): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|&row| folds[row] == fold);
        // A class of which no row is left to fit on says nothing about C.
        let mut is_kept = vec![false; n_classes];
        kept.iter().for_each(|&row| is_kept[labels[row] as usize] = true);
        let held: Vec<usize> = held
            .into_iter()
            .filter(|&row| is_kept[labels[row] as usize])
            .collect();
        let pick = |rows: &[usize]| {
            (
                features.select(rows),
                rows.iter().map(|&row| labels[row]).collect::<Vec<u32>>(),
            )
        };
        let (kept, held) = (pick(&kept), pick(&held));
        // A tiny class may leave a fold without a second class to fit; it has nothing to say then.
        if !held.1.is_empty() && kept.1.iter().any(|label| *label != kept.1[0]) {
            splits.push((kept, held));
        }
    }
    if splits.is_empty() {
        let reason = "there are too few rows to hold any out; give --c a value".to_owned();
        return Err(Error::Features(reason));
    }
    let problems = splits
        .iter()
        .map(|((kept, kept_labels), _)| Problem::new(kept, kept_labels, n_classes))
        .collect::<Result<Vec<_>, Error>>()?;
    let n_held_out = splits.iter().map(|(_, (_, labels))| labels.len()).sum();

    let mut candidates: Vec<Candidate> = Vec::new();
    let mut starts: Vec<Option<Fitted>> = vec![None; splits.len()];
    let mut best = 0;
    for (step, exponent) in GRID.enumerate() {
        monitor.at(Stage::Select, step, GRID.count());
        let c = 10f64.powf(f64::from(exponent) / 2.0);
        let (mut log_loss, mut n_right) = (0.0, 0);
        for ((problem, start), (_, (held, held_labels))) in problems.iter().zip(&mut starts).zip(&splits) {
            let fitted = problem.fit(c, SELECTION, start.as_ref(), monitor)?;
            let outputs = (0..n_classes).map(|class| class.to_string()).collect();
            let head = Head::linear(
                Task::SingleLabel,
                outputs,
                fitted.weight.clone(),
                fitted.bias.clone(),
            )?;
            let logits = head.logits(held)?;
            for (row, &label) in logits.chunks_exact(n_classes).zip(held_labels) {
                let judged = crate::metrics::Judged::new(row);
                log_loss += judged.log_loss(label);
                n_right += usize::from(judged.class == label as usize);
            }
            *start = Some(fitted);
        }
        candidates.push(Candidate {
            c,
            held_out_log_loss: log_loss / n_held_out as f64,
            held_out_accuracy: n_right as f64 / n_held_out as f64,
        });
        if candidates[step].held_out_log_loss < candidates[best].held_out_log_loss {
            best = step;
        } else if step - best >= PATIENCE {
            break;
        }
    }
    Ok(Selection {
        c: candidates[best].c,
        candidates,
        n_splits: splits.len(),
        n_held_out,
    })
}

/// A fold for every row: each class is shuffled and dealt out in turn.
fn folds(labels: &[u32], n_classes: usize, seed: u64) -> Vec<u8> {
    let mut by_class: Vec<Vec<usize>> = vec![Vec::new(); n_classes];
    labels
        .iter()
        .enumerate()
        .for_each(|(row, &label)| by_class[label as usize].push(row));
    let mut random = Random::new(seed, "folds");
    let mut folds = vec![0; labels.len()];
    let mut dealt = 0;
    for mut rows in by_class {
        random.shuffle(&mut rows);
        for row in rows {
            folds[row] = (dealt % N_FOLDS) as u8;
            dealt += 1;
        }
    }
    folds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_stratified() {
        let labels: Vec<u32> = (0..103).map(|row| u32::from(row % 3 == 0)).collect();
        let folds = folds(&labels, 2, 1);
        for class in 0..2 {
            let mut counts = [0usize; N_FOLDS];
            labels
                .iter()
                .zip(&folds)
                .filter(|(l, _)| **l == class)
                .for_each(|(_, f)| counts[usize::from(*f)] += 1);
            assert!(
                counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn noise_wants_strong_regularisation_and_signal_weak() {
        let mut random = Random::new(5, "select test");
        let mut make = |signal: f32| {
            let labels: Vec<u32> = (0..400).map(|_| random.below(2) as u32).collect();
            let values = labels
                .iter()
                .flat_map(|&label| {
                    (0..20)
                        .map(|j| {
                            let noise = random.below(1000) as f32 / 500.0 - 1.0;
                            if j == 0 {
                                noise * 0.2 + signal * label as f32
                            } else {
                                noise
                            }
                        })
                        .collect::<Vec<_>>()
                })
                .collect();
            (Features::new(values, 20).unwrap(), labels)
        };
        let (noise, noise_labels) = make(0.0);
        let (signal, signal_labels) = make(1.0);
        let pick = |features: &Features, labels: &[u32]| {
            select_c(features, labels, 2, 0, Monitor::none()).unwrap().c
        };
        assert!(pick(&noise, &noise_labels) < 0.05);
        assert!(pick(&signal, &signal_labels) > 0.5);
    }
}
