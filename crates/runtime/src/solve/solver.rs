//! Leads the searches of one problem from C to C: preconditions, steps, and judges whether float32 is enough.

use super::config::SolverConfig;
use super::fit::{Fitted, NEVER, Trace};
use super::lbfgs::{Layout, Outcome, Search};
use super::precondition::Preconditioner;
use super::problem::{Evaluation, Precision, Problem};
use super::progress::Progress;
use super::rehearsal::{Planned, Rehearsal};
use super::ridge;
use super::targets::Likelihood;
use crate::error::Error;
use crate::monitor::Monitor;

/// Searches on one problem, for one C after another.
#[derive(Debug)]
pub(super) struct Solver<'s> {
    problem: &'s Problem<'s>,
    pub(super) config: &'s SolverConfig,
    n_outputs: usize,
    layout: Layout,
    /// Outputs of one search: all of a softmax, one otherwise.
    outputs_each: usize,
    pub(super) searches: Vec<Search>,
    /// The output of a search, where it has one of its own.
    output_of: Vec<usize>,
    preconditioner: Option<(Preconditioner, f64)>,
    /// Made with the searches.
    rehearsal: Option<Rehearsal>,
    curvature: f64,
    /// The curvature that the preconditioner was made for.
    preconditioned_at: f64,
    pub(super) precision: Precision,
    /// The largest C at which float32 products were found to be exact enough.
    checked: f64,
}

/// Where the mean curvature of a row has fallen to this part, the rows differ so much that their own curvatures are
/// worth the second moments that they cost.
const SURE: f64 = 0.25;

/// Between two C of this ratio the search's own pairs make up for the difference.
const FAR: f64 = 8.0;

/// The precision of a loss that is a sum of many, as the line search counts on it.
pub(super) const ROUNDING: [f64; 2] = [2e-7, 1e-13];

impl<'s> Solver<'s> {
    pub(super) fn new(problem: &'s Problem<'s>, n_outputs: usize, config: &'s SolverConfig) -> Solver<'s> {
        let layout = Layout {
            d: problem.rows.n_features(),
            stride: problem.rows.stride,
        };
        let model = &problem.model;
        let separate = model.is_separate();
        Solver {
            problem,
            config,
            n_outputs,
            layout,
            outputs_each: if separate { 1 } else { model.n_fitted },
            searches: Vec::new(),
            output_of: (0..model.n_fitted)
                .filter(|&output| !separate || model.constant(output).is_none())
                .take(if separate { usize::MAX } else { 1 })
                .collect(),
            preconditioner: None,
            rehearsal: None,
            curvature: 0.0,
            preconditioned_at: 0.0,
            precision: Precision::Single,
            checked: 0.0,
        }
    }

    /// Goes to the minimum for `c`, from where it is.
    pub(super) fn at(
        &mut self,
        c: f64,
        monitor: Monitor<'_>,
        trace: &mut dyn FnMut(Trace),
    ) -> Result<Fitted, Error> {
        if self.output_of.is_empty() {
            // Every label is had by all rows or by none: there is nothing to search for.
            return self.fitted(c, 0, true);
        }
        let mut passes = 0;
        if self.searches.is_empty() {
            self.start(c);
            passes += 1;
        }
        self.searches.iter_mut().for_each(|search| search.set_c(c));
        self.precondition(c)?;
        let mut running = Progress::new(self);
        // What was exact enough for a neighbouring C is for this one.
        running.checked |= c <= FAR * self.checked;
        trace(running.trace(self, passes));
        let all: Vec<usize> = (0..self.searches.len()).collect();
        // Most problems are solved before this many passes; of others the preconditioner knows too little.
        let mut stale = 50;
        loop {
            if monitor.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.aim(&running.active);
            running.judge(self, self.config.relative_gap);
            // The first time that it is close: are float32 products exact enough for the rest of the way?
            if running.near && !running.checked && self.precision == Precision::Single {
                running.checked = true;
                passes += 1;
                if self.is_too_rough(&all) {
                    running.reopen(self);
                    continue;
                }
                self.checked = c;
            }
            running.drop_done();
            if running.active.is_empty() || passes >= self.config.max_passes {
                break;
            }
            passes += self.step(&mut running, passes);
            trace(running.trace(self, passes));
            if passes >= stale || self.curvature < SURE * self.preconditioned_at {
                stale = stale.max(2 * passes);
                self.precondition_here(c)?;
            }
        }
        self.fitted(c, passes, running.active.is_empty())
    }

    /// The first evaluation: no weights, and the biases that fit best without them.
    fn start(&mut self, c: f64) {
        let (stride, d) = (self.layout.stride, self.layout.d);
        let biases = self.problem.model.start(self.problem.rows.n_rows());
        let outputs = self.outputs(&(0..self.output_of.len()).collect::<Vec<_>>());
        let mut theta = vec![0.0; outputs.len() * stride];
        for (theta, output) in theta.chunks_exact_mut(stride).zip(&outputs) {
            theta[d] = biases[*output];
        }
        let biases: Vec<f64> = outputs.iter().map(|output| biases[*output]).collect();
        let first = self.problem.evaluate_biases(&outputs, &biases);
        self.curvature = first.curvature;
        self.rehearsal = Some(Rehearsal::new(self.problem, outputs, &biases, self.outputs_each));
        let each = self.outputs_each * stride;
        let unknowns = self.problem.model.n_fitted * stride;
        // Pairs of a large problem are as large as it; fewer are kept.
        let memory = if unknowns > 1 << 18 { 8 } else { 20 };
        let parts = theta
            .chunks_exact(each)
            .zip(first.gradient.chunks_exact(each))
            .zip(&first.losses);
        self.searches = parts
            .map(|((x, gradient), loss)| {
                Search::new(self.layout, memory, c, x.to_vec(), *loss, gradient.to_vec())
            })
            .collect();
    }

    /// Fitted outputs of some searches.
    fn outputs(&self, searches: &[usize]) -> Vec<usize> {
        if self.problem.model.is_separate() {
            searches.iter().map(|&search| self.output_of[search]).collect()
        } else {
            (0..self.problem.model.n_fitted).collect()
        }
    }

    /// Makes a preconditioner where there is none for a C like this.
    fn precondition(&mut self, c: f64) -> Result<(), Error> {
        let is_near = |made: f64| (made / FAR..=made * FAR).contains(&(c * self.curvature));
        if self
            .preconditioner
            .as_ref()
            .is_some_and(|(_, made)| is_near(*made))
        {
            return Ok(());
        }
        let made = self.problem.preconditioner(c, self.curvature)?;
        self.put(made, c);
        Ok(())
    }

    /// Makes a preconditioner of the curvatures that rows have where the searches are.
    fn precondition_here(&mut self, c: f64) -> Result<(), Error> {
        if !self.metric().is_dense() {
            self.preconditioned_at = self.curvature;
            return Ok(());
        }
        let (stride, each) = (self.layout.stride, self.outputs_each * self.layout.stride);
        let mut theta = vec![0.0; self.problem.model.n_fitted * stride];
        for (search, searched) in self.searches.iter().enumerate() {
            let at = if self.outputs_each == 1 {
                self.output_of[search]
            } else {
                0
            };
            theta[at * stride..at * stride + each].copy_from_slice(&searched.x);
        }
        let made = self.problem.preconditioner_at(c, &theta)?;
        self.put(made, c);
        Ok(())
    }

    fn put(&mut self, made: Preconditioner, c: f64) {
        for search in &mut self.searches {
            let square = search
                .newest_change()
                .map(|y| made.squares(y, self.outputs_each)[0]);
            square
                .into_iter()
                .for_each(|square| search.set_newest_square(square));
        }
        self.preconditioner = Some((made, c * self.curvature));
        self.preconditioned_at = self.curvature;
    }

    fn metric(&self) -> &Preconditioner {
        &self
            .preconditioner
            .as_ref()
            .expect("made before the first step")
            .0
    }

    /// Gives each of the searches a direction.
    fn aim(&mut self, active: &[usize]) {
        let mut left: Vec<usize> = active.to_vec();
        while !left.is_empty() {
            let mut q = self.searches[left[0]].begin();
            for &search in &left[1..] {
                q.append(&mut self.searches[search].begin());
            }
            self.metric().apply(&mut q);
            let each = self.outputs_each * self.layout.stride;
            let of_last = q.split_off(q.len() - each);
            let parts = q.chunks_exact(each).map(<[f64]>::to_vec).chain([of_last]);
            for (search, q) in std::mem::take(&mut left).into_iter().zip(parts) {
                if !self.searches[search].finish(q) {
                    left.push(search);
                }
            }
        }
    }

    /// Takes every active search one step on, or finds that there is none; returns the passes that took.
    fn step(&mut self, running: &mut Progress, before: usize) -> usize {
        self.rehearse(&running.active);
        let mut passes = 0;
        let mut left = running.active.clone();
        let mut stuck = Vec::new();
        let mut taken = Vec::new();
        while !left.is_empty() && before + passes < self.config.max_passes {
            let trials: Vec<Vec<f64>> = left.iter().map(|&search| self.searches[search].trial()).collect();
            let found = self.evaluate(&left, &trials.concat());
            passes += 1;
            let each = self.outputs_each * self.layout.stride;
            let parts = found.gradient.chunks_exact(each).zip(&found.losses);
            let mut again = Vec::new();
            for ((search, x), (gradient, loss)) in left.into_iter().zip(trials).zip(parts) {
                let rounding = ROUNDING[self.precision as usize];
                match self.searches[search].observe(x, *loss, gradient, rounding) {
                    Outcome::Taken => {
                        taken.push(search);
                        let length = self.searches[search].length();
                        self.rehearsal.iter_mut().for_each(|r| r.moved(search, length));
                    }
                    Outcome::Shorter => again.push(search),
                    Outcome::Stuck => stuck.push(search),
                }
            }
            left = again;
            self.curvature = found.curvature;
        }
        let mut changes = Vec::new();
        let mut owners = Vec::new();
        for &search in &taken {
            if let Some(change) = self.searches[search].newest_change() {
                changes.extend_from_slice(change);
                owners.push(search);
            }
        }
        let squares = self.metric().squares(&changes, self.outputs_each);
        for (search, square) in owners.into_iter().zip(squares) {
            self.searches[search].set_newest_square(square);
        }
        if !stuck.is_empty() {
            passes += self.loosen(running, &stuck);
        }
        passes
    }

    /// Finds on a sample of the rows how far the next steps should go.
    fn rehearse(&mut self, active: &[usize]) {
        let Some(rehearsal) = &mut self.rehearsal else {
            return;
        };
        let steps: Vec<Planned<'_>> = active
            .iter()
            .map(|&search| self.searches[search].planned())
            .collect();
        let lengths = rehearsal.lengths(active, &steps);
        for (&search, length) in active.iter().zip(lengths) {
            self.searches[search].set_length(length);
        }
    }

    /// What to do about searches that find no way down: more exact numbers, then a fresh start, then that is the minimum
    /// as far as these numbers tell it.
    fn loosen(&mut self, running: &mut Progress, stuck: &[usize]) -> usize {
        if self.precision == Precision::Single {
            let all: Vec<usize> = (0..self.searches.len()).collect();
            self.widen(&all);
            running.reopen(self);
            return 1;
        }
        for &search in stuck {
            if !self.searches[search].forget() {
                running.active.retain(|active| *active != search);
            }
        }
        0
    }

    fn evaluate(&self, searches: &[usize], theta: &[f64]) -> Evaluation {
        self.problem
            .evaluate(theta, &self.outputs(searches), self.precision)
    }

    /// Whether float32 products are too rough here; if so, all is float64 from now on.
    fn is_too_rough(&mut self, all: &[usize]) -> bool {
        let theta: Vec<f64> = all
            .iter()
            .flat_map(|&search| self.searches[search].x.iter().copied())
            .collect();
        let exact = self
            .problem
            .evaluate(&theta, &self.outputs(all), Precision::Double);
        let each = self.outputs_each * self.layout.stride;
        let mut errors = Vec::new();
        for (search, gradient) in self.searches.iter().zip(exact.gradient.chunks_exact(each)) {
            errors.append(&mut search.disagreement(gradient));
        }
        let value: f64 = self.searches.iter().map(Search::value).sum();
        let error: f64 = self.metric().squares(&errors, self.outputs_each).iter().sum();
        // Half the error's square in the metric is the gap that it could hide.
        if error / 2.0 <= 0.1 * self.config.relative_gap * value {
            return false;
        }
        self.take(&exact, each);
        true
    }

    fn widen(&mut self, all: &[usize]) {
        let theta: Vec<f64> = all
            .iter()
            .flat_map(|&search| self.searches[search].x.iter().copied())
            .collect();
        let exact = self
            .problem
            .evaluate(&theta, &self.outputs(all), Precision::Double);
        self.take(&exact, self.outputs_each * self.layout.stride);
    }

    fn take(&mut self, exact: &Evaluation, each: usize) {
        self.precision = Precision::Double;
        let parts = exact.gradient.chunks_exact(each).zip(&exact.losses);
        for (search, (gradient, loss)) in self.searches.iter_mut().zip(parts) {
            search.correct(*loss, gradient);
        }
    }

    /// The head, for the features as given.
    fn fitted(&self, c: f64, passes: usize, converged: bool) -> Result<Fitted, Error> {
        let (d, stride) = (self.layout.d, self.layout.stride);
        let rows = &self.problem.rows;
        let mut weight = vec![0.0f32; self.n_outputs * d];
        let mut bias = vec![NEVER; self.n_outputs];
        let model = &self.problem.model;
        let two = matches!(model.likelihood, Likelihood::Sigmoid(_)) && !model.present.is_empty();
        if two {
            // One vector against zero.
            bias[model.present[0]] = 0.0;
        }
        for (output, bias) in bias.iter_mut().enumerate().take(model.n_fitted) {
            if let Some(constant) = model.constant(output) {
                *bias = constant;
            }
        }
        let mut gap_bound = 0.0;
        let curvature = c * self.curvature.max(1e-30) * rows.n_rows() as f64;
        for (search, searched) in self.searches.iter().enumerate() {
            let slope = searched.slope_vector();
            let outputs = self.outputs(&[search]);
            let parts = searched
                .x
                .chunks_exact(stride)
                .zip(slope.chunks_exact(stride))
                .zip(outputs);
            for ((x, slope), output) in parts {
                let at = match (two, model.present.is_empty()) {
                    (true, _) => model.present[1],
                    (false, false) => model.present[output],
                    (false, true) => output,
                };
                let (of_output, shifted) = ridge::unprepare(rows, x)?;
                weight[at * d..(at + 1) * d].copy_from_slice(&of_output);
                bias[at] = shifted[0];
                gap_bound += slope[..d].iter().map(|g| g * g).sum::<f64>() / 2.0;
                gap_bound += slope[d] * slope[d] / (2.0 * curvature);
            }
        }
        Ok(Fitted {
            weight,
            bias,
            c,
            objective: self.searches.iter().map(Search::value).sum(),
            gap_bound,
            passes,
            converged,
        })
    }
}
