//! How long a step should be, found on a sample of the rows before all of them are read.
//!
//! Along a direction the loss is a function of one number. What its slope is where the direction begins, all rows have told;
//! how the slope changes from there, a few hundred rows tell nearly as well as all, unless a few others are all that matters; the
//! search sees that, and goes steps of length one. (The difference between a sample's slope and its own at the beginning, added to
//! that of all rows: the control variate of Johnson and Zhang, "Accelerating stochastic gradient descent using predictive
//! variance reduction", 2013.)

use rayon::prelude::*;

use super::kernel::{LANES, Weights};
use super::loss::{sigmoid, softmax};
use super::problem::Problem;
use super::rows::{MAX_CHUNK, Scratch, spread};
use super::targets::{Likelihood, Model};
use super::vector::dot;
use crate::panels::vectorised;
use crate::scratch::AlignedVec;

/// Rows of one search's sample.
#[derive(Debug)]
struct Part {
    /// `[n, stride]`.
    rows: AlignedVec,
    n: usize,
    /// Of these rows.
    model: Model,
    /// Per search and output a logit for each row, where the search is: `[outputs, n]`.
    logits: Vec<f32>,
    /// What the logits change by over one length of the direction.
    change: Vec<f32>,
}

/// A sample of the rows, and what the searches make of it.
#[derive(Debug)]
pub(super) struct Rehearsal {
    parts: Vec<Part>,
    /// All rows over those of the sample.
    scale: f64,
    stride: usize,
    /// Of all searches.
    outputs: Vec<usize>,
    outputs_each: usize,
}

/// A step that is to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned<'a> {
    /// `[outputs, stride]`.
    pub(super) direction: &'a [f64],
    /// The objective's slope along it, of all rows; below zero.
    pub(super) slope: f64,
    /// What the penalty adds to the slope over one length.
    pub(super) stiffness: f64,
    /// The weight of the loss.
    pub(super) c: f64,
    pub(super) longest: f64,
}

/// One row of so many is in the sample.
const ONE_OF: usize = 32;

/// The least rows of a sample, as far as there are as many and they do not have too many numbers.
const LEAST: usize = 128;

/// Numbers of a sample with its logits: 32 MiB, beside which are its labels.
const MAX_NUMBERS: usize = 8 << 20;

/// Logits from which on a second thread is worth waking, and multiplications.
const WORTH: usize = 1 << 14;
const FEW: usize = 1 << 20;

impl Rehearsal {
    /// For searches of these outputs that begin without weights, at the biases of all of them.
    pub(super) fn new(
        problem: &Problem<'_>,
        outputs: Vec<usize>,
        biases: &[f64],
        outputs_each: usize,
    ) -> Rehearsal {
        let (rows, stride) = (&problem.rows, problem.rows.stride);
        let most = MAX_NUMBERS / (stride + 2 * biases.len());
        let n = (rows.n_rows() / ONE_OF)
            .max(LEAST)
            .min(rows.n_rows())
            .min(most.max(1));
        let chosen = spread(rows.n_rows(), n);
        let each = n.div_ceil(8).next_multiple_of(LANES).min(MAX_CHUNK);
        let of_part = |chosen: &[usize]| {
            let mut scratch = Scratch::default();
            let mut own = AlignedVec::zeros(chosen.len() * stride);
            for (row, out) in chosen.iter().zip(own.chunks_exact_mut(stride)) {
                out.copy_from_slice(rows.chunk(*row..*row + 1, &mut scratch));
            }
            let n = chosen.len();
            let logits = biases
                .iter()
                .flat_map(|bias| std::iter::repeat_n(*bias as f32, n));
            Part {
                rows: own,
                n,
                model: problem.model.of_rows(chosen),
                logits: logits.collect(),
                change: vec![0.0; biases.len() * n],
            }
        };
        Rehearsal {
            parts: chosen.par_chunks(each).map(of_part).collect(),
            scale: rows.n_rows() as f64 / n as f64,
            stride,
            outputs,
            outputs_each,
        }
    }

    /// The length at which the objective should be least, for a step of each of `searches`.
    pub(super) fn lengths(&mut self, searches: &[usize], steps: &[Planned<'_>]) -> Vec<f64> {
        self.try_on(searches, steps);
        if let ([search], [step]) = (searches, steps) {
            return vec![self.length(*search, step)];
        }
        let both = searches.par_iter().zip(steps);
        both.map(|(search, step)| self.length(*search, step)).collect()
    }

    /// Multiplies the sample with the directions.
    fn try_on(&mut self, searches: &[usize], steps: &[Planned<'_>]) {
        let directions: Vec<&[f64]> = steps.iter().map(|step| step.direction).collect();
        let directions = directions.concat();
        let weights = Weights::new(&directions, self.stride);
        let each = self.outputs_each;
        let of_part = |room: &mut AlignedVec, part: &mut Part| {
            let n = part.n;
            let mut found = vec![0.0; searches.len() * each * n];
            let chunk = weights.chunk(&part.rows, room);
            weights.logits(&chunk, &mut found, n);
            for (search, found) in searches.iter().zip(found.chunks_exact(each * n)) {
                part.change[search * each * n..][..each * n].copy_from_slice(found);
            }
        };
        let n_rows: usize = self.parts.iter().map(|part| part.n).sum();
        if n_rows * directions.len() < FEW {
            let mut room = AlignedVec::default();
            self.parts.iter_mut().for_each(|part| of_part(&mut room, part));
        } else {
            self.parts
                .par_iter_mut()
                .for_each_init(AlignedVec::default, of_part);
        }
    }

    /// Where the slope along a step is zero: by secants within a bracket, one end of which is given less weight each time
    /// that it stays (the Illinois method).
    fn length(&self, search: usize, step: &Planned<'_>) -> f64 {
        /// A slope that is this small a part of the first one is zero.
        const ENOUGH: f64 = 0.1;
        const TRIES: usize = 6;
        /// Logits that change by less than this leave the loss a parabola; and float32 must tell the change.
        const NEAR: f32 = 0.05;
        let at_start = self.loss_slope(search, 0.0);
        let reach = self.reach(search);
        if reach < NEAR {
            if reach == 0.0 {
                return 1.0;
            }
            let far = f64::from(NEAR / reach);
            let bend = step.c * self.scale * (self.loss_slope(search, far) - at_start) / far + step.stiffness;
            return if bend > 0.0 {
                (-step.slope / bend).min(step.longest)
            } else {
                step.longest
            };
        }
        let slope = |length: f64| {
            step.slope
                + step.c * self.scale * (self.loss_slope(search, length) - at_start)
                + length * step.stiffness
        };
        let (mut low, mut at_low) = (0.0, step.slope);
        let mut high: Option<(f64, f64)> = None;
        // Whether the low end was the last to move.
        let mut moved_low = None;
        let mut length = 1.0;
        for _ in 0..TRIES {
            let here = slope(length);
            if here.abs() <= ENOUGH * step.slope.abs() || !here.is_finite() {
                break;
            }
            if here < 0.0 {
                if let (Some((_, at_high)), Some(true)) = (&mut high, moved_low) {
                    *at_high /= 2.0;
                }
                (low, at_low) = (length, here);
            } else {
                if moved_low == Some(false) {
                    at_low /= 2.0;
                }
                high = Some((length, here));
            }
            moved_low = Some(here < 0.0);
            let next = match high {
                Some((high, at_high)) => low + (high - low) * at_low / (at_low - at_high),
                // As if the slope went on in a straight line from where the direction begins.
                None => length * step.slope / (step.slope - here).min(-f64::MIN_POSITIVE),
            };
            if length.min(next) >= step.longest {
                return step.longest;
            }
            length = next.min(step.longest);
        }
        length
    }

    /// The most that a logit changes by over one length.
    fn reach(&self, search: usize) -> f32 {
        let each = self.outputs_each;
        let changes = self
            .parts
            .iter()
            .flat_map(|part| &part.change[search * each * part.n..(search + 1) * each * part.n]);
        changes.fold(0.0, |most, change| most.max(change.abs()))
    }

    /// The slope of the sample's loss along a step, at a length.
    fn loss_slope(&self, search: usize, length: f64) -> f64 {
        let each = self.outputs_each;
        let of_part = |part: &Part| {
            let n = part.n;
            let here = search * each * n..(search + 1) * each * n;
            let (logits, change) = (&part.logits[here.clone()], &part.change[here]);
            let mut z = logits.to_vec();
            go(&mut z, length as f32, change);
            match &part.model.likelihood {
                Likelihood::Softmax(by) => {
                    softmax(&mut z, n, n, 0, by);
                }
                Likelihood::Sigmoid(by) => {
                    sigmoid(&mut z, 0, self.outputs[search], by);
                }
            }
            dot(&z, change)
        };
        let n_numbers: usize = self.parts.iter().map(|part| part.n * each).sum();
        if n_numbers < WORTH {
            return self.parts.iter().map(of_part).sum();
        }
        let slopes: Vec<f64> = self.parts.par_iter().map(of_part).collect();
        slopes.iter().sum()
    }

    /// A search has gone as far as this along its direction.
    pub(super) fn moved(&mut self, search: usize, length: f64) {
        let each = self.outputs_each;
        for part in &mut self.parts {
            let here = search * each * part.n..(search + 1) * each * part.n;
            go(&mut part.logits[here.clone()], length as f32, &part.change[here]);
        }
    }
}

vectorised! {
    /// `z += length · change`.
    fn go(z: &'a mut [f32], length: f32, change: &'a [f32]) {
        for (z, change) in z.iter_mut().zip(change) {
            *z = length.mul_add(*change, *z);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::random::Random;
    use crate::solve::config::SolverConfig;
    use crate::solve::problem::Precision;
    use crate::targets::{Targets, Task};

    /// Goes along the objective's steepest direction twice, and looks at the slope of all rows where it ends.
    fn check(task: Task, n: usize, k: usize, c: f64, digits: f64) {
        let d = 20;
        let mut random = Random::new(9, "rehearsal test");
        let mut uniform = || random.below(1 << 16) as f64 / 65536.0 - 0.5;
        let values: Vec<f32> = (0..n * d).map(|_| 4.0 * uniform() as f32).collect();
        // Classes in turn: every so-many-th row would be of one.
        let targets = match task {
            Task::SingleLabel => Targets::Classes((0..n).map(|row| (row % k) as u32).collect()),
            _ => {
                let of_row =
                    |row: usize| (0..k).map(move |k| f32::from(u8::from((row + k).is_multiple_of(k + 2))));
                Targets::dense((0..n).flat_map(of_row).collect(), k).unwrap()
            }
        };
        // Rows of a class have something in common.
        let values = values
            .iter()
            .enumerate()
            .map(|(at, x)| x + ((at / d % k + at % d) % 4) as f32);
        let features = Features::new(values.collect(), d).unwrap();
        let problem = Problem::new(&features, &targets, k, &SolverConfig::new(task));
        let (m, stride) = (problem.model.n_fitted, problem.rows.stride);
        // With several labels, one is not searched for.
        let outputs: Vec<usize> = (0..m).skip(usize::from(task == Task::MultiLabel)).collect();
        let m = outputs.len();
        let each = if problem.model.is_separate() { 1 } else { m };
        let biases: Vec<f64> = (0..m).map(|_| uniform()).collect();
        let mut rehearsal = Rehearsal::new(&problem, outputs.clone(), &biases, each);
        let mut theta = vec![0.0; m * stride];
        (0..m).for_each(|k| theta[k * stride + d] = biases[k]);
        let mut gradient = problem.evaluate_biases(&outputs, &biases).gradient;
        for _ in 0..2 {
            let is_free = |at: usize| at % stride >= d;
            let penalty = |theta: &[f64], at: usize| if is_free(at) { 0.0 } else { theta[at] };
            let slope_at = |gradient: &[f64], theta: &[f64], at: usize| c * gradient[at] + penalty(theta, at);
            let directions: Vec<f64> = (0..theta.len())
                .map(|at| -slope_at(&gradient, &theta, at) / (1.0 + c * n as f64))
                .collect();
            let slopes = |gradient: &[f64], theta: &[f64]| -> Vec<f64> {
                let of_search = |search: usize| {
                    let all = search * each * stride..(search + 1) * each * stride;
                    all.map(|at| directions[at] * slope_at(gradient, theta, at)).sum()
                };
                (0..m / each).map(of_search).collect()
            };
            let before = slopes(&gradient, &theta);
            let steps = directions.chunks_exact(each * stride).zip(&before);
            let steps: Vec<Planned<'_>> = steps
                .map(|(direction, slope)| Planned {
                    direction,
                    slope: *slope,
                    stiffness: (0..direction.len())
                        .map(|at| penalty(direction, at).powi(2))
                        .sum(),
                    c,
                    longest: f64::INFINITY,
                })
                .collect();
            let searches: Vec<usize> = (0..steps.len()).collect();
            let lengths = rehearsal.lengths(&searches, &steps);
            for (search, length) in lengths.iter().enumerate() {
                rehearsal.moved(search, *length);
                let here = search * each * stride..(search + 1) * each * stride;
                let both = theta[here.clone()].iter_mut().zip(&directions[here]);
                both.for_each(|(theta, direction)| *theta += length * direction);
            }
            gradient = problem.evaluate(&theta, &outputs, Precision::Double).gradient;
            for (before, after) in before.iter().zip(slopes(&gradient, &theta)) {
                assert!(after.abs() < digits * before.abs(), "{n} {k}: {before} {after}");
            }
        }
    }

    #[test]
    fn steps_end_where_the_slope_of_all_rows_is_all_but_zero() {
        // The sample is all rows, and their slope zero to a tenth.
        for c in [1.0, 0.01] {
            check(Task::SingleLabel, 120, 5, c, 0.1);
            check(Task::SingleLabel, 120, 2, c, 0.1);
            check(Task::MultiLabel, 120, 3, c, 0.1);
        }
        // So strong a penalty that logits hardly change.
        check(Task::SingleLabel, 120, 5, 1e-6, 0.01);
        check(Task::MultiLabel, 120, 3, 1e-6, 0.01);
        // One row of 32.
        check(Task::SingleLabel, 6400, 4, 1.0, 0.4);
        check(Task::MultiLabel, 6400, 3, 1.0, 0.4);
    }
}
