//! From a problem to heads: one C, or a path of them.
//!
//! L-BFGS on preconditioned unknowns. A path goes from strong regularisation to weak, each C starting where the last one
//! ended: the loss there, its gradient and all that the search has learned of its curvature hold for every C, so that a
//! neighbouring C costs a few passes. The second moments are made once; for a C that is far from the last a factor is
//! made of them anew. (One eigendecomposition would serve all C alike, but costs as much as dozens of factors.)

use super::config::{SolverConfig, check_c};
use super::problem::Problem;
use super::ridge;
use super::solver::Solver;
use crate::error::Error;
use crate::features::Features;
use crate::monitor::{Monitor, Stage};
use crate::targets::{Targets, Task};

/// The bias of an output that no row asks for, and minus that of one that every row asks for: its best is infinite, and
/// float16 holds this.
pub(super) const NEVER: f32 = -1e4;

/// A fitted linear head: numbers that apply to the features as given.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// `[C, D]` row-major.
    pub weight: Vec<f32>,
    /// `[C]`.
    pub bias: Vec<f32>,
    /// The regularisation it was fitted with.
    pub c: f64,
    /// The objective at the end.
    pub objective: f64,
    /// About an upper bound of how far the objective is above its minimum: half the square of the gradient by the weights,
    /// as the penalty's curvature is one in every direction. The biases, which have no penalty, are counted with the mean
    /// curvature of the last pass, which is less sure; rounding of float32 sums is not counted.
    pub gap_bound: f64,
    /// Evaluations of objective and gradient.
    pub passes: usize,
    /// Whether the estimated gap came below the one asked for before the passes ran out.
    pub converged: bool,
}

/// Fits one head.
///
/// A class (or label) that no row has gets zero weights and a bias of -10,000, so that it is never predicted; fewer rows
/// than classes are fitted like any others.
///
/// # Errors
/// [`Error::Features`] for targets that do not fit, [`Error::Usage`] for settings that do not, [`Error::Cancelled`].
pub fn fit(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    c: f64,
    config: &SolverConfig,
    monitor: Monitor<'_>,
) -> Result<Fitted, Error> {
    let mut fitted = path(features, targets, n_outputs, &[c], config, monitor)?;
    Ok(fitted.pop().expect("one for each C"))
}

/// Fits one head for each of `cs`, in that order, at the price of a few.
///
/// # Errors
/// As [`fit`].
pub fn path(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    cs: &[f64],
    config: &SolverConfig,
    monitor: Monitor<'_>,
) -> Result<Vec<Fitted>, Error> {
    config.check(targets, features.n_rows(), n_outputs)?;
    cs.iter().try_for_each(|c| check_c(*c))?;
    if config.task == Task::Regression {
        return ridge::path(features, targets, n_outputs, cs, config.standardise, monitor);
    }
    let problem = Problem::new(features, targets, n_outputs, config);
    let mut order: Vec<usize> = (0..cs.len()).collect();
    order.sort_by(|a, b| cs[*a].total_cmp(&cs[*b]));
    let mut solver = Solver::new(&problem, n_outputs, config);
    let mut fitted: Vec<Option<Fitted>> = vec![None; cs.len()];
    for (done, at) in order.into_iter().enumerate() {
        monitor.at(Stage::Train, done, cs.len());
        fitted[at] = Some(solver.at(cs[at], monitor, &mut |_| {})?);
    }
    Ok(fitted.into_iter().flatten().collect())
}

/// Where a fit is after a pass.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// Passes so far.
    pub passes: usize,
    /// The objective.
    pub objective: f64,
}

/// [`fit`], telling `trace` of every pass: for benchmarks.
///
/// # Errors
/// As [`fit`].
pub fn fit_traced(
    features: &Features,
    targets: &Targets,
    n_outputs: usize,
    c: f64,
    config: &SolverConfig,
    trace: &mut dyn FnMut(Trace),
) -> Result<Fitted, Error> {
    config.check(targets, features.n_rows(), n_outputs)?;
    check_c(c)?;
    if config.task == Task::Regression {
        // Solved directly: there is nothing to tell.
        return fit(features, targets, n_outputs, c, config, Monitor::none());
    }
    let problem = Problem::new(features, targets, n_outputs, config);
    Solver::new(&problem, n_outputs, config).at(c, Monitor::none(), trace)
}
