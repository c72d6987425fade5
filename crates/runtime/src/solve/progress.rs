//! When a fit is done: how far each search is from its minimum, as far as it can tell.

use super::fit::Trace;
use super::lbfgs::Search;
use super::solver::{ROUNDING, Solver};

/// Which searches still run at one C, and how their objectives fell.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) active: Vec<usize>,
    /// Those of them whose gap is not yet small enough.
    unfinished: Vec<usize>,
    /// Per search, the objective before each step.
    history: Vec<Vec<f64>>,
    /// Whether all are so close that float32 might not do.
    pub(super) near: bool,
    pub(super) checked: bool,
}

impl Progress {
    pub(super) fn new(solver: &Solver<'_>) -> Progress {
        let n = solver.searches.len();
        Progress {
            active: (0..n).collect(),
            unfinished: Vec::new(),
            history: vec![Vec::new(); n],
            near: false,
            // A coarse gap needs no more digits than float32 has, whatever the data.
            checked: solver.config.relative_gap > NEAR,
        }
    }

    /// After more exact numbers came in.
    pub(super) fn reopen(&mut self, solver: &Solver<'_>) {
        self.active = (0..solver.searches.len()).collect();
        self.history.iter_mut().for_each(Vec::clear);
    }

    pub(super) fn trace(&self, solver: &Solver<'_>, passes: usize) -> Trace {
        Trace {
            passes,
            objective: solver.searches.iter().map(Search::value).sum(),
        }
    }

    /// Finds the searches whose gap is small enough.
    pub(super) fn judge(&mut self, solver: &Solver<'_>, relative_gap: f64) {
        let total: f64 = solver.searches.iter().map(Search::value).sum();
        let share = total / solver.searches.len() as f64;
        self.near = true;
        self.unfinished.clear();
        for &search in &self.active {
            let value = solver.searches[search].value();
            self.history[search].push(value);
            let rounding = ROUNDING[solver.precision as usize] * value;
            let gap = expected_gap(
                solver.searches[search].expected_fall(),
                &self.history[search],
                rounding,
            );
            self.near &= gap <= NEAR.max(relative_gap) * share;
            if gap > relative_gap * share {
                self.unfinished.push(search);
            }
        }
    }

    pub(super) fn drop_done(&mut self) {
        self.active.clone_from(&self.unfinished);
    }
}

/// The relative gap from which on the rounding of float32 products may show.
const NEAR: f64 = 1e-6;

/// How far the objective is from its minimum, judged by the search's own Hessian and by how fast it has been falling.
fn expected_gap(decrement: f64, history: &[f64], rounding: f64) -> f64 {
    /// Half the Newton decrement of the search's Hessian is too small by up to this factor, on real features.
    const OPTIMISM: f64 = 20.0;
    /// What is left of that where falls are known over a long time.
    const SOBER: f64 = 4.0;
    /// Steps over which a fall is measured, where there have been as many: it comes in fits and starts.
    const SPAN: usize = 8;
    let span = (history.len().saturating_sub(1) / 2).min(SPAN);
    if span < 2 {
        return OPTIMISM * decrement;
    }
    let at = |back: usize| history[history.len() - 1 - back];
    let (before, now) = (at(2 * span) - at(span), at(span) - at(0));
    if now <= span as f64 * rounding {
        return OPTIMISM * decrement;
    }
    // The falls are a geometric series; where they grow, there is no telling but that it goes on.
    let ratio = now / before;
    let rest = if now < before {
        now * ratio / (1.0 - ratio)
    } else {
        now
    };
    let factor = if span == SPAN { SOBER } else { OPTIMISM };
    rest.max(factor * decrement)
}
