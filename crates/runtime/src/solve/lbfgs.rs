//! Limited-memory BFGS (Nocedal and Wright, Algorithm 7.4) with a preconditioner as its first matrix, for
//! `C · loss + ½ ‖weights‖²`, as a machine that is told losses: several searches go through the data together.
//!
//! What it remembers of the loss does not depend on C, so that a search goes on at another C with all it knows.

use std::collections::VecDeque;

use super::rehearsal::Planned;
use super::vector::{add, add_and_dot, combine, dot, each_chunk, multiply};

/// A step and the change of the objective's gradient over it. Rounded to float32 they are those of a problem that differs
/// by as much, and as definite.
#[derive(Debug)]
struct Pair {
    step: Vec<f32>,
    change: Vec<f32>,
    /// One over their product.
    inverse: f64,
    /// The change's square in the preconditioner's metric.
    square: f64,
}

/// The longest step: far beyond the unit a sample knows little of the rows that it does not have.
const LONGEST: f64 = 4.0;

/// Which unknowns the penalty acts on: the first `d` of every `stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) d: usize,
    pub(super) stride: usize,
}

impl Layout {
    /// The gradient of the objective at `x`, of the loss's.
    fn slope(self, c: f64, gradient: &[f64], x: &[f64]) -> Vec<f64> {
        let mut out = gradient.to_vec();
        each_chunk(&mut out, x, self.stride, |out, x| {
            out.iter_mut().for_each(|out| *out *= c);
            out[..self.d].iter_mut().zip(x).for_each(|(out, x)| *out += x);
        });
        out
    }

    /// Half the sum of squares of the penalised ones.
    pub(super) fn penalty(self, x: &[f64]) -> f64 {
        let squares = x
            .chunks_exact(self.stride)
            .map(|x| dot(&x[..self.d], &x[..self.d]));
        squares.sum::<f64>() / 2.0
    }
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The search is there now.
    Taken,
    /// It was too long; a shorter one is to be tried.
    Shorter,
    /// No length is better by more than the rounding of the losses.
    Stuck,
}

/// One minimisation.
#[derive(Debug)]
pub(super) struct Search {
    layout: Layout,
    c: f64,
    /// Where it is.
    pub(super) x: Vec<f64>,
    loss: f64,
    /// Of the loss.
    gradient: Vec<f64>,
    /// Of the objective.
    slope_vector: Vec<f64>,
    pairs: VecDeque<Pair>,
    memory: usize,
    alphas: Vec<f64>,
    direction: Vec<f64>,
    slope: f64,
    length: f64,
    /// The first length that was tried, or 1 where that was longer.
    first: f64,
    /// The shortest and the longest step that a sample of the rows may ask for, at this C.
    shortest: f64,
    longest: f64,
}

impl Search {
    /// From `x`, where the loss and its gradient are known.
    pub(super) fn new(
        layout: Layout,
        memory: usize,
        c: f64,
        x: Vec<f64>,
        loss: f64,
        gradient: Vec<f64>,
    ) -> Search {
        Search {
            layout,
            c,
            direction: vec![0.0; x.len()],
            slope_vector: layout.slope(c, &gradient, &x),
            x,
            loss,
            gradient,
            pairs: VecDeque::new(),
            memory,
            alphas: Vec::new(),
            slope: 0.0,
            length: 1.0,
            first: 1.0,
            shortest: 0.0,
            longest: LONGEST,
        }
    }

    /// The objective where it is.
    pub(super) fn value(&self) -> f64 {
        self.c * self.loss + self.layout.penalty(&self.x)
    }

    /// The objective's gradient where it is.
    pub(super) fn slope_vector(&self) -> &[f64] {
        &self.slope_vector
    }

    /// Half the Newton decrement, as the search's own Hessian has it: the distance to the minimum that is to be expected.
    pub(super) fn expected_fall(&self) -> f64 {
        -self.slope / 2.0
    }

    /// Goes on with another C.
    pub(super) fn set_c(&mut self, c: f64) {
        let ratio = c / self.c;
        if ratio == 1.0 {
            return;
        }
        self.c = c;
        (self.shortest, self.longest) = (0.0, LONGEST);
        self.slope_vector = self.layout.slope(c, &self.gradient, &self.x);
        let Layout { d, stride } = self.layout;
        for pair in &mut self.pairs {
            // change = C · (change of the loss's gradient) + step, the last where there is a penalty.
            let rows = pair.change.chunks_exact_mut(stride);
            for (change, step) in rows.zip(pair.step.chunks_exact(stride)) {
                change.iter_mut().for_each(|y| *y *= ratio as f32);
                for (change, step) in change[..d].iter_mut().zip(step) {
                    *change += (1.0 - ratio) as f32 * step;
                }
            }
            pair.inverse = 1.0 / dot(&pair.step, &pair.change);
        }
    }

    /// Replaces what is known of the loss where it is, for instance by more exact numbers.
    pub(super) fn correct(&mut self, loss: f64, gradient: &[f64]) {
        self.loss = loss;
        self.gradient.copy_from_slice(gradient);
        self.slope_vector = self.layout.slope(self.c, gradient, &self.x);
    }

    /// How far `gradient` is from the loss's gradient that is known, times C.
    pub(super) fn disagreement(&self, gradient: &[f64]) -> Vec<f32> {
        combine(&self.gradient, gradient, |a, b| (self.c * (a - b)) as f32)
    }

    /// The last change of the gradient, whose square in the preconditioner's metric is to be told.
    pub(super) fn newest_change(&self) -> Option<&[f32]> {
        self.pairs.back().map(|pair| pair.change.as_slice())
    }

    /// See [`newest_change`](Search::newest_change).
    pub(super) fn set_newest_square(&mut self, square: f64) {
        if let Some(pair) = self.pairs.back_mut() {
            pair.square = square;
        }
    }

    /// The first half of the way to a direction: a vector that the preconditioner is to be applied to.
    pub(super) fn begin(&mut self) -> Vec<f64> {
        let mut q = combine(&self.slope_vector, &self.slope_vector, |g, _| -g);
        self.alphas.clear();
        let mut pairs = self.pairs.iter().rev().peekable();
        let mut product = pairs.peek().map_or(0.0, |pair| dot(&pair.step, &q));
        while let Some(pair) = pairs.next() {
            let alpha = pair.inverse * product;
            match pairs.peek() {
                Some(next) => product = add_and_dot(&mut q, -alpha, &pair.change, &next.step),
                None => add(&mut q, -alpha, &pair.change),
            }
            self.alphas.push(alpha);
        }
        q
    }

    /// The second half. Returns whether there is a way down; if not, what it remembers is forgotten and
    /// [`begin`](Search::begin) will give the steepest one.
    pub(super) fn finish(&mut self, mut q: Vec<f64>) -> bool {
        let gamma = match self.pairs.back() {
            Some(pair) => 1.0 / (pair.inverse * pair.square),
            None => 1.0,
        };
        multiply(&mut q, gamma);
        let mut pairs = self.pairs.iter().zip(self.alphas.iter().rev()).peekable();
        let mut product = pairs.peek().map_or(0.0, |(pair, _)| dot(&pair.change, &q));
        if self.pairs.is_empty() {
            self.slope = dot(&q, &self.slope_vector);
        }
        while let Some((pair, alpha)) = pairs.next() {
            let factor = alpha - pair.inverse * product;
            product = match pairs.peek() {
                Some((next, _)) => add_and_dot(&mut q, factor, &pair.step, &next.change),
                None => add_and_dot(&mut q, factor, &pair.step, &self.slope_vector),
            };
            self.slope = product;
        }
        self.direction = q;
        self.length = 1.0;
        self.first = 1.0;
        // Where nothing is remembered there is nothing to forget; no number is no step either.
        let down = self.slope < 0.0 || self.pairs.is_empty();
        if !down {
            self.pairs.clear();
        }
        down
    }

    /// The next step, whose length is to be found on a sample of the rows.
    pub(super) fn planned(&self) -> Planned<'_> {
        Planned {
            direction: &self.direction,
            slope: self.slope,
            stiffness: 2.0 * self.layout.penalty(&self.direction),
            c: self.c,
            longest: self.longest,
        }
    }

    /// How far it goes along its direction.
    pub(super) fn set_length(&mut self, length: f64) {
        self.length = length.max(self.shortest);
        self.first = self.length.min(1.0);
    }

    /// See [`set_length`](Search::set_length).
    pub(super) fn length(&self) -> f64 {
        self.length
    }

    /// Where the loss is to be evaluated.
    pub(super) fn trial(&self) -> Vec<f64> {
        combine(&self.x, &self.direction, |x, d| x + self.length * d)
    }

    /// Takes the loss and its gradient at `x`, the [`trial`](Search::trial); `rounding` is how exact the loss is.
    pub(super) fn observe(&mut self, x: Vec<f64>, loss: f64, gradient: &[f64], rounding: f64) -> Outcome {
        /// Where the slope after a step is still this part of the one before, or has become it, the sample was wrong.
        const FAR_OFF: f64 = 0.5;
        /// Armijo's: the share of the fall that the slope promises which is enough.
        const SUFFICIENT: f64 = 1e-4;
        /// Where values are equal to their rounding, the slope decides: Hager and Zhang's approximate condition (2005).
        const FLAT: f64 = 0.8;
        const SHORTEST: f64 = 1e-4;
        let before = self.value();
        let after = self.c * loss + self.layout.penalty(&x);
        let here = self.layout.slope(self.c, gradient, &x);
        let slope = dot(&here, &self.direction);
        let falls = after <= before + SUFFICIENT * self.length * self.slope;
        let level = after <= before + rounding * before.abs() && slope <= -FLAT * self.slope;
        if !(falls || level) {
            self.longest = 1.0;
            // Convex: the slope rises, and is zero at the secant's root.
            let root = self.length * self.slope / (self.slope - slope);
            self.length = if root.is_finite() {
                root.clamp(0.1 * self.length, 0.7 * self.length)
            } else {
                0.1 * self.length
            };
            return if self.length < SHORTEST * self.first {
                Outcome::Stuck
            } else {
                Outcome::Shorter
            };
        }
        // A sample that lacks rows that matter asks for too much each time, one that has too many of them for too little.
        if slope > -FAR_OFF * self.slope {
            self.longest = 1.0;
        }
        if slope < FAR_OFF * self.slope && self.length < 1.0 {
            self.shortest = 1.0;
        }
        let step: Vec<f32> = combine(&x, &self.x, |a, b| (a - b) as f32);
        let change: Vec<f32> = combine(&here, &self.slope_vector, |a, b| (a - b) as f32);
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * dot(&change, &change) {
            if self.pairs.len() == self.memory {
                self.pairs.pop_front();
            }
            let inverse = 1.0 / curvature;
            self.pairs.push_back(Pair {
                step,
                change,
                inverse,
                square: 1.0,
            });
        }
        self.x = x;
        self.loss = loss;
        self.gradient.copy_from_slice(gradient);
        self.slope_vector = here;
        Outcome::Taken
    }

    /// Forgets all pairs; returns whether there were any.
    pub(super) fn forget(&mut self) -> bool {
        let any = !self.pairs.is_empty();
        self.pairs.clear();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_badly_scaled_quadratic_is_minimised_for_one_c_after_another() {
        let layout = Layout { d: 29, stride: 30 };
        let scales: Vec<f64> = (0..30).map(|n| 10f64.powf(n as f64 / 10.0)).collect();
        let loss = |x: &[f64]| {
            let gradient: Vec<f64> = x.iter().zip(&scales).map(|(x, s)| s * (x - 1.0)).collect();
            let value: f64 = x.iter().zip(&gradient).map(|(x, g)| 0.5 * g * (x - 1.0)).sum();
            (value + 1.0, gradient)
        };
        let (start, gradient) = loss(&[0.0; 30]);
        let mut search = Search::new(layout, 20, 1.0, vec![0.0; 30], start, gradient);
        let mut passes = Vec::new();
        for c in [1.0, 1.5, 0.1] {
            search.set_c(c);
            let mut n = 0;
            loop {
                let q = search.begin();
                assert!(search.finish(q) || n == 0);
                if search.expected_fall() < 1e-13 {
                    break;
                }
                loop {
                    let x = search.trial();
                    let (value, gradient) = loss(&x);
                    n += 1;
                    match search.observe(x, value, &gradient, 1e-12) {
                        Outcome::Taken => break,
                        Outcome::Shorter => {}
                        Outcome::Stuck => panic!("stuck after {n}"),
                    }
                }
                let y = search.newest_change().unwrap();
                let square = dot(y, y);
                search.set_newest_square(square);
            }
            for (at, (x, s)) in search.x.iter().zip(&scales).enumerate() {
                let want = if at == 29 { 1.0 } else { c * s / (c * s + 1.0) };
                assert!((x - want).abs() < 1e-5, "{at}: {x} {want}");
            }
            passes.push(n);
        }
        assert!(passes[1] < passes[0] && passes[2] < passes[0] / 2, "{passes:?}");
    }
}
