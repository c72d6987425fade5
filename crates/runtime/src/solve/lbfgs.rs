//! Limited-memory BFGS (Nocedal and Wright, Algorithm 7.4) with backtracking, for smooth convex functions.

use std::collections::VecDeque;

use super::linalg::dot;

/// The relative gap below which a failed line search is put down to the rounding of float32 products.
const NOISE_FLOOR: f64 = 1e-7;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// Estimated distance to the minimum, relative to the value: half the Newton decrement.
    pub(super) relative_gap: f64,
    /// Evaluations of value and gradient.
    pub(super) max_evaluations: usize,
    /// Pairs of steps and gradient changes that are kept.
    pub(super) memory: usize,
}

/// Where the search ended.
#[derive(Debug, Clone)]
pub(super) struct Minimum {
    pub(super) x: Vec<f64>,
    pub(super) value: f64,
    pub(super) evaluations: usize,
    pub(super) converged: bool,
}

/// Minimises `evaluate`, which returns the value at `x` and writes the gradient. `None` when `keep_going` says no.
pub(super) fn minimise(
    mut x: Vec<f64>,
    stop: Stop,
    mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64,
    mut keep_going: impl FnMut() -> bool,
) -> Option<Minimum> {
    let n = x.len();
    let mut gradient = vec![0.0; n];
    let mut value = evaluate(&x, &mut gradient);
    let mut evaluations = 1;
    let mut pairs: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
    let mut next_x = vec![0.0; n];
    let mut next_gradient = vec![0.0; n];
    let end = |x, value, evaluations, converged| {
        Some(Minimum {
            x,
            value,
            evaluations,
            converged,
        })
    };
    loop {
        if !keep_going() {
            return None;
        }
        let mut direction = two_loop(&pairs, &gradient);
        let mut slope = dot(&direction, &gradient);
        if slope.is_nan() || slope >= 0.0 {
            // Rounding has spoilt the pairs: steepest descent is always downhill.
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        let gap = -slope / 2.0 / value.abs().max(f64::MIN_POSITIVE);
        // Without pairs the estimate assumes a Hessian of one, which is only a bound.
        if gap <= stop.relative_gap && (!pairs.is_empty() || slope == 0.0) {
            return end(x, value, evaluations, true);
        }
        if evaluations >= stop.max_evaluations {
            return end(x, value, evaluations, false);
        }
        let mut length = 1.0;
        let next_value = loop {
            for (next, (x, d)) in next_x.iter_mut().zip(x.iter().zip(&direction)) {
                *next = x + length * d;
            }
            let next_value = evaluate(&next_x, &mut next_gradient);
            evaluations += 1;
            // Armijo's condition, with room for the rounding of the value itself.
            const ROUNDING: f64 = 1e-9;
            if next_value <= value + 1e-4 * length * slope + ROUNDING * value.abs() {
                break Some(next_value);
            }
            if evaluations >= stop.max_evaluations || length < 1e-6 {
                break None;
            }
            // The minimum of the parabola through what is known, kept within reason.
            let curvature = next_value - value - length * slope;
            let best = -slope * length * length / (2.0 * curvature);
            length = if best.is_finite() {
                best.clamp(0.1 * length, 0.5 * length)
            } else {
                0.5 * length
            };
        };
        let Some(next_value) = next_value else {
            // A step that is hidden by rounding: this is the minimum as far as these numbers tell it.
            if pairs.is_empty() || gap <= NOISE_FLOOR {
                return end(x, value, evaluations, gap <= NOISE_FLOOR);
            }
            pairs.clear();
            continue;
        };
        let step: Vec<f64> = next_x.iter().zip(&x).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * dot(&change, &change) {
            if pairs.len() == stop.memory {
                pairs.pop_front();
            }
            pairs.push_back((step, change, 1.0 / curvature));
        }
        std::mem::swap(&mut x, &mut next_x);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = next_value;
    }
}

/// `-H g` for the inverse Hessian that the pairs imply.
fn two_loop(pairs: &VecDeque<(Vec<f64>, Vec<f64>, f64)>, gradient: &[f64]) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for (step, change, inverse) in pairs.iter().rev() {
        let alpha = inverse * dot(step, &direction);
        direction
            .iter_mut()
            .zip(change)
            .for_each(|(d, y)| *d -= alpha * y);
        alphas.push(alpha);
    }
    if let Some((_, change, inverse)) = pairs.back() {
        let scale = 1.0 / (inverse * dot(change, change));
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for ((step, change, inverse), alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = inverse * dot(change, &direction);
        direction
            .iter_mut()
            .zip(step)
            .for_each(|(d, s)| *d += (alpha - beta) * s);
    }
    direction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_badly_scaled_quadratic_is_minimised() {
        let scales: Vec<f64> = (0..30).map(|n| 10f64.powf(n as f64 / 10.0)).collect();
        let stop = Stop {
            relative_gap: 1e-14,
            max_evaluations: 2000,
            memory: 20,
        };
        let found = minimise(
            vec![0.0; 30],
            stop,
            |x, gradient| {
                let mut value = 1.0;
                for ((g, x), scale) in gradient.iter_mut().zip(x).zip(&scales) {
                    *g = scale * (x - 1.0);
                    value += 0.5 * scale * (x - 1.0) * (x - 1.0);
                }
                value
            },
            || true,
        )
        .unwrap();
        assert!(found.converged && (found.value - 1.0).abs() < 1e-12, "{found:?}");
    }
}
