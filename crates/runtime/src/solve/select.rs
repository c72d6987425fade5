//! Choosing C on held-out training rows; the validation split takes no part unless it is asked to, so that its marks are
//! honest.

use serde::Serialize;

use super::config::{SolverConfig, check_c};
use super::fit::{Fitted, NEVER};
use super::problem::Problem;
use super::ridge;
use super::solver::Solver;
use crate::error::Error;
use crate::features::Features;
use crate::head::Head;
use crate::metrics::{Judged, softplus};
use crate::monitor::{Monitor, Stage};
use crate::random::Random;
use crate::targets::{Targets, Task};

/// Half decades from 1e-4 to 1e4, scikit-learn's `LogisticRegressionCV` range at twice its density.
const GRID: std::ops::RangeInclusive<i32> = -8..=8;
/// Below this many rows one split is too noisy, and all five folds are used.
const FEW_ROWS: usize = 2000;
const N_FOLDS: usize = 5;
/// The grid is climbed from strong to weak regularisation until this many steps in a row were worse than the best.
const PATIENCE: usize = 2;
/// A selection needs the order of the candidates, not their last digits.
const GAP: f64 = 1e-5;

/// Which values are tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values<'v> {
    /// Half decades from 1e-4 to 1e4, until two in a row are worse than the best; of a regression all are tried.
    Climb,
    /// All of these.
    All(&'v [f64]),
}

/// What a candidate is judged on.
#[derive(Debug, Clone, Copy)]
pub enum HoldOut<'h> {
    /// A fifth of the rows, or each of five in turn below 2,000 rows; stratified where a row has one class.
    Auto,
    /// A fifth of the rows, stratified likewise.
    Fifth,
    /// Each of this many folds in turn, stratified likewise.
    KFold(usize),
    /// Rows of their own; all others are fitted on.
    Validation(&'h Features, &'h Targets),
}

/// How C is chosen.
#[derive(Debug, Clone, Copy)]
pub struct SelectConfig<'s> {
    /// Which values are tried.
    pub values: Values<'s>,
    /// What they are judged on.
    pub hold_out: HoldOut<'s>,
    /// Decides the splits.
    pub seed: u64,
}

/// One C that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// Its value.
    pub c: f64,
    /// Mean loss on held-out rows: the cross-entropy in nats; with several labels the mean of their binary ones; for a
    /// regression the mean squared error.
    pub held_out_log_loss: f64,
    /// Share of held-out rows that are classified right; with several labels the share of labels; for a regression the
    /// coefficient of determination.
    pub held_out_accuracy: f64,
}

/// The chosen C and how it was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Selection {
    /// The value with the least held-out loss.
    pub c: f64,
    /// All that were tried, in rising order of C.
    pub candidates: Vec<Candidate>,
    /// Held-out splits that were averaged.
    pub n_splits: usize,
    /// Held-out rows in all of them.
    pub n_held_out: usize,
}

/// Rows to fit on, and rows to judge on.
struct Fold {
    kept: (Features, Targets),
    held: (Features, Targets),
}

/// Tries values of C and keeps the one whose heads do best on rows that they were not fitted on.
///
/// Class weights and smoothing are for the fit; held-out rows count alike.
///
/// # Errors
/// As [`super::fit`]; [`Error::Features`] where there are too few rows to hold any out.
pub fn select(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    how: &SelectConfig<'_>,
    config: &SolverConfig,
    monitor: Monitor<'_>,
) -> Result<Selection, Error> {
    // Checks the data as a whole first, so that an error speaks of all rows and not of a fold's.
    config.check(targets, features.n_rows(), n_outputs)?;
    let mut cs = match how.values {
        Values::Climb => GRID
            .map(|exponent| 10f64.powf(f64::from(exponent) / 2.0))
            .collect(),
        Values::All(cs) => cs.to_vec(),
    };
    cs.iter().try_for_each(|c| check_c(*c))?;
    if cs.is_empty() {
        return Err(Error::Usage("there is no value of C to try".to_owned()));
    }
    cs.sort_by(f64::total_cmp);
    let folds = folds(features, targets, n_outputs, how, config.task)?;
    let n_held_out = folds.iter().map(|fold| fold.held.1.len()).sum();
    let config = SolverConfig {
        relative_gap: config.relative_gap.max(GAP),
        ..config.clone()
    };
    let candidates = if config.task == Task::Regression {
        regressions(&folds, n_outputs, &cs, &config, monitor)?
    } else {
        let climb = how.values == Values::Climb;
        let whole = Problem::new(features, targets, n_outputs, &config);
        classifiers(&whole, &folds, n_outputs, &cs, climb, &config, monitor)?
    };
    let least = |a: &&Candidate, b: &&Candidate| a.held_out_log_loss.total_cmp(&b.held_out_log_loss);
    let best = candidates.iter().min_by(least).expect("at least one C");
    Ok(Selection {
        c: best.c,
        n_splits: folds.len(),
        n_held_out,
        candidates,
    })
}

fn classifiers(
    whole: &Problem<'_>,
    folds: &[Fold],
    n_outputs: usize,
    cs: &[f64],
    climb: bool,
    config: &SolverConfig,
    monitor: Monitor<'_>,
) -> Result<Vec<Candidate>, Error> {
    let problems: Vec<Problem<'_>> = folds
        .iter()
        .map(|fold| whole.part(&fold.kept.0, &fold.kept.1, n_outputs, config))
        .collect();
    let mut solvers: Vec<Solver<'_>> = problems
        .iter()
        .map(|problem| Solver::new(problem, n_outputs, config))
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut best = 0;
    for (step, &c) in cs.iter().enumerate() {
        monitor.at(Stage::Select, step, cs.len());
        let mut marks = Marks::default();
        for (solver, fold) in solvers.iter_mut().zip(folds) {
            let fitted = solver.at(c, monitor, &mut |_| {})?;
            marks.add(&fitted, &fold.held, config.task)?;
        }
        candidates.push(marks.candidate(c));
        if candidates[step].held_out_log_loss < candidates[best].held_out_log_loss {
            best = step;
        } else if climb && step - best >= PATIENCE {
            break;
        }
    }
    Ok(candidates)
}

fn regressions(
    folds: &[Fold],
    n_outputs: usize,
    cs: &[f64],
    config: &SolverConfig,
    monitor: Monitor<'_>,
) -> Result<Vec<Candidate>, Error> {
    let mut marks: Vec<Marks> = cs.iter().map(|_| Marks::default()).collect();
    for fold in folds {
        let (features, targets) = &fold.kept;
        let heads = ridge::path(features, targets, n_outputs, cs, config.standardise, monitor)?;
        for (marks, fitted) in marks.iter_mut().zip(&heads) {
            marks.add(fitted, &fold.held, config.task)?;
        }
    }
    Ok(marks
        .iter()
        .zip(cs)
        .map(|(marks, &c)| marks.candidate(c))
        .collect())
}

/// Sums over held-out rows.
#[derive(Debug, Default)]
struct Marks {
    loss: f64,
    right: f64,
    /// What both are divided by.
    n: f64,
    /// Of a regression: the squares about the mean.
    spread: Option<f64>,
}

impl Marks {
    fn add(&mut self, fitted: &Fitted, held: &(Features, Targets), task: Task) -> Result<(), Error> {
        let k = fitted.bias.len();
        let outputs = (0..k).map(|output| output.to_string()).collect();
        let head = Head::linear(task, outputs, fitted.weight.clone(), fitted.bias.clone())?;
        let logits = head.logits(&held.0)?;
        match &held.1 {
            Targets::Classes(labels) => {
                for (row, &label) in logits.chunks_exact(k).zip(labels) {
                    let judged = Judged::new(row);
                    self.loss += judged.log_loss(label);
                    self.right += f64::from(u8::from(judged.class == label as usize));
                    self.n += 1.0;
                }
            }
            Targets::Dense { values, .. } if task == Task::MultiLabel => {
                let outputs = fitted.bias.iter().cycle();
                for ((z, y), bias) in logits.iter().zip(values).zip(outputs) {
                    // A label that all rows to fit on have, or none, says nothing about C.
                    if bias.abs() == -NEVER {
                        continue;
                    }
                    let towards = if *y != 0.0 { f64::from(*z) } else { -f64::from(*z) };
                    self.loss += softplus(-towards);
                    self.right += f64::from(u8::from((*z > 0.0) == (*y != 0.0)));
                    self.n += 1.0;
                }
            }
            Targets::Dense { values, .. } => {
                let n_rows = (values.len() / k) as f64;
                for output in 0..k {
                    let column = || values.iter().skip(output).step_by(k).map(|y| f64::from(*y));
                    let mean = column().sum::<f64>() / n_rows;
                    *self.spread.get_or_insert(0.0) += column().map(|y| (y - mean).powi(2)).sum::<f64>();
                }
                let errors = logits.iter().zip(values).map(|(z, y)| f64::from(z - y).powi(2));
                self.loss += errors.sum::<f64>();
                self.n += values.len() as f64;
            }
        }
        Ok(())
    }

    fn candidate(&self, c: f64) -> Candidate {
        Candidate {
            c,
            held_out_log_loss: self.loss / self.n.max(1.0),
            held_out_accuracy: match self.spread {
                Some(spread) => 1.0 - self.loss / spread,
                None => self.right / self.n.max(1.0),
            },
        }
    }
}

fn folds(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    how: &SelectConfig<'_>,
    task: Task,
) -> Result<Vec<Fold>, Error> {
    let n = features.n_rows();
    let (n_folds, n_used) = match how.hold_out {
        HoldOut::Validation(held, wanted) => {
            if held.n_features() != features.n_features() {
                let (got, want) = (held.n_features(), features.n_features());
                let text = format!("the validation rows have {got} numbers, and the training rows {want}");
                return Err(Error::Features(text));
            }
            if wanted.is_empty() {
                return Err(Error::Features("there are no validation rows".to_owned()));
            }
            wanted
                .fits(task, held.n_rows(), n_outputs)
                .map_err(|error| match error {
                    Error::Features(reason) => Error::Features(format!("those for validation: {reason}")),
                    other => other,
                })?;
            let kept = (features.clone(), targets.clone());
            let held = (held.clone(), wanted.clone());
            return Ok(vec![Fold { kept, held }]);
        }
        HoldOut::Auto if n < FEW_ROWS => (N_FOLDS, N_FOLDS),
        HoldOut::Auto | HoldOut::Fifth => (N_FOLDS, 1),
        HoldOut::KFold(k) if k >= 2 => (k, k),
        HoldOut::KFold(k) => return Err(Error::Usage(format!("{k} folds; at least 2 are needed"))),
    };
    let fold_of = deal(targets, n_outputs, n_folds, how.seed);
    let mut folds = Vec::new();
    for fold in 0..n_used {
        let (mut held, kept): (Vec<usize>, Vec<usize>) = (0..n).partition(|&row| fold_of[row] == fold);
        if let Some(labels) = targets.classes() {
            // A class of which no row is left to fit on says nothing about C.
            let mut is_kept = vec![false; n_outputs];
            kept.iter().for_each(|&row| is_kept[labels[row] as usize] = true);
            held.retain(|&row| is_kept[labels[row] as usize]);
        }
        let kept = (features.select(&kept), targets.select(&kept));
        let held = (features.select(&held), targets.select(&held));
        // A tiny class may leave a fold without a second class to fit; it has nothing to say then.
        if !held.1.is_empty() && kept.1.check(task, kept.0.n_rows(), n_outputs).is_ok() && !kept.1.is_empty()
        {
            folds.push(Fold { kept, held });
        }
    }
    if folds.is_empty() {
        let reason = "there are too few rows to hold any out; give --c a value".to_owned();
        return Err(Error::Features(reason));
    }
    Ok(folds)
}

/// A fold for every row: each class is shuffled and dealt out in turn; without classes, all rows.
fn deal(targets: &Targets, n_outputs: usize, n_folds: usize, seed: u64) -> Vec<usize> {
    let mut groups: Vec<Vec<usize>> = match targets {
        Targets::Classes(_) => vec![Vec::new(); n_outputs],
        Targets::Dense { .. } => vec![(0..targets.len()).collect()],
    };
    let labels = targets.classes().unwrap_or_default();
    labels
        .iter()
        .enumerate()
        .for_each(|(row, &label)| groups[label as usize].push(row));
    let mut random = Random::new(seed, "folds");
    let mut folds = vec![0; targets.len()];
    let mut dealt = 0;
    for mut rows in groups {
        random.shuffle(&mut rows);
        for row in rows {
            folds[row] = dealt % n_folds;
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
        let folds = deal(&Targets::Classes(labels.clone()), 2, 4, 1);
        for class in 0..2 {
            let mut counts = [0usize; 4];
            labels
                .iter()
                .zip(&folds)
                .filter(|(l, _)| **l == class)
                .for_each(|(_, f)| counts[*f] += 1);
            assert!(
                counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1,
                "{counts:?}"
            );
        }
    }

    /// 400 rows of 20 numbers, the first of which says `signal` about the class.
    fn data(signal: f32) -> (Features, Vec<u32>) {
        let mut random = Random::new(5, "select test");
        let labels: Vec<u32> = (0..400).map(|_| random.below(2) as u32).collect();
        let mut values = Vec::new();
        for &label in &labels {
            for j in 0..20 {
                let noise = random.below(1000) as f32 / 500.0 - 1.0;
                values.push(if j == 0 {
                    noise * 0.2 + signal * label as f32
                } else {
                    noise
                });
            }
        }
        (Features::new(values, 20).unwrap(), labels)
    }

    fn pick(features: &Features, targets: &Targets, task: Task, hold_out: HoldOut<'_>) -> Selection {
        let k = match targets {
            Targets::Classes(_) => 2,
            Targets::Dense { n_outputs, .. } => *n_outputs,
        };
        let how = SelectConfig {
            values: Values::Climb,
            hold_out,
            seed: 0,
        };
        let config = SolverConfig::new(task);
        select(features, targets, k, &how, &config, Monitor::none()).unwrap()
    }

    #[test]
    fn noise_wants_strong_regularisation_and_signal_weak() {
        let (noise, noise_labels) = data(0.0);
        let (signal, signal_labels) = data(1.0);
        let classes = |labels: &[u32]| Targets::Classes(labels.to_vec());
        for hold_out in [HoldOut::Auto, HoldOut::Fifth, HoldOut::KFold(3)] {
            let chosen = pick(&noise, &classes(&noise_labels), Task::SingleLabel, hold_out).c;
            // One fifth is 80 rows, too few to be sure about noise.
            assert!(
                chosen < 0.05 || matches!(hold_out, HoldOut::Fifth),
                "{hold_out:?}: {chosen}"
            );
            assert!(pick(&signal, &classes(&signal_labels), Task::SingleLabel, hold_out).c > 0.5);
        }
        let validation = classes(&signal_labels);
        let hold_out = HoldOut::Validation(&signal, &validation);
        let selection = pick(&signal, &validation, Task::SingleLabel, hold_out);
        assert!((selection.n_splits, selection.n_held_out) == (1, 400) && selection.c > 0.5);
    }

    #[test]
    fn several_labels_and_numbers_are_chosen_for_too() {
        let (signal, labels) = data(1.0);
        let dense: Vec<f32> = labels.iter().flat_map(|l| [*l as f32, 1.0 - *l as f32]).collect();
        let targets = Targets::dense(dense, 2).unwrap();
        let selection = pick(&signal, &targets, Task::MultiLabel, HoldOut::Auto);
        let best = selection.candidates.iter().find(|c| c.c == selection.c).unwrap();
        assert!(
            selection.c > 0.5 && best.held_out_accuracy > 0.95,
            "{selection:?}"
        );
        let selection = pick(&signal, &targets, Task::Regression, HoldOut::Auto);
        let best = selection.candidates.iter().find(|c| c.c == selection.c).unwrap();
        assert!(
            best.held_out_accuracy > 0.7 && best.held_out_accuracy < 1.0,
            "{selection:?}"
        );
    }

    #[test]
    fn what_cannot_be_chosen_is_said() {
        let (features, labels) = data(1.0);
        let targets = Targets::Classes(labels);
        let config = SolverConfig::new(Task::SingleLabel);
        let message = |values, hold_out| {
            let how = SelectConfig {
                values,
                hold_out,
                seed: 0,
            };
            select(&features, &targets, 2, &how, &config, Monitor::none())
                .unwrap_err()
                .to_string()
        };
        assert!(message(Values::All(&[]), HoldOut::Auto).contains("no value of C"));
        assert!(message(Values::All(&[0.0]), HoldOut::Auto).contains("C = 0"));
        assert!(message(Values::Climb, HoldOut::KFold(1)).contains("at least 2"));
        let other = Features::new(vec![0.0; 3], 3).unwrap();
        let one = Targets::Classes(vec![0]);
        assert!(message(Values::Climb, HoldOut::Validation(&other, &one)).contains("3 numbers"));
        let other = Features::new(vec![0.0; 20], 20).unwrap();
        let beyond = Targets::Classes(vec![2]);
        assert!(message(Values::Climb, HoldOut::Validation(&other, &beyond)).contains("row 0"));
    }
}
