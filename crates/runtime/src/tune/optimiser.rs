//! A tail's weights updated by a step's gradients: torch's rules, each parameter with its group's learning rate.

use indexmap::IndexMap;
use pulp::Arch;

use crate::grad::{Gradients, Weights};
use crate::train::TrainerConfig;
use crate::train::update::{HeadStep, LANES, Rule, Scalars, State, Update};

/// What an optimiser keeps beside the weights, by the initialisers' names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Optimiser {
    pub(super) kept: IndexMap<String, Kept>,
}

/// Of one parameter.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kept {
    /// Steps that it has made, which torch counts for each parameter too.
    pub(super) steps: usize,
    /// The momentum buffer, or Adam's two moments; empty where the rule has none.
    pub(super) moments: [Vec<f32>; 2],
}

/// Numbers that a thread takes at once, at least.
const PIECE: usize = 1 << 15;

impl Optimiser {
    /// One update of every parameter that has a gradient. `lr` is by the initialiser's name; `momentum` is what the schedule
    /// says. The same numbers on any number of threads.
    pub(super) fn step(
        &mut self,
        config: &TrainerConfig,
        weights: &mut Weights,
        gradients: &Gradients,
        lr: &(dyn Fn(&str) -> f64 + Sync),
        momentum: Option<f64>,
    ) {
        let clip = config.clip_norm.map_or(1.0, |most| clip(gradients, most));
        let arch = Arch::new();
        for (name, gradient) in gradients.iter() {
            let Some(values) = weights.get_mut(name) else {
                continue;
            };
            let kept = self.kept.entry(name.to_owned()).or_default();
            let n_moments = config.optimiser.n_moments();
            for moment in kept.moments.iter_mut().take(n_moments) {
                moment.resize(values.len(), 0.0);
            }
            let rule = Rule::new(config.optimiser, momentum, kept.steps, None);
            let step = HeadStep {
                lr: lr(name),
                weight_decay: config.weight_decay,
                clip,
            };
            let scalars = Rule::scalars(config.optimiser, momentum, kept.steps, step);
            kept.steps += 1;
            let [first, second] = &mut kept.moments;
            let state = State {
                weights: values,
                moments: [first, second],
                ema: &mut [],
            };
            update(arch, &rule, &scalars, state, gradient);
        }
    }
}

/// What `torch.nn.utils.clip_grad_norm_` multiplies all gradients by.
fn clip(gradients: &Gradients, most: f64) -> f64 {
    let squares = gradients.iter().map(|(_, gradient)| {
        let squares = gradient.iter().map(|g| f64::from(*g) * f64::from(*g));
        squares.sum::<f64>()
    });
    (most / (squares.sum::<f64>().sqrt() + 1e-6)).min(1.0)
}

/// Halves go to threads; what fills no vector is updated in one that is padded.
fn update(arch: Arch, rule: &Rule, scalars: &Scalars, state: State<'_>, gradient: &[f32]) {
    let n = gradient.len();
    if n > 2 * PIECE {
        let at = (n / 2).next_multiple_of(LANES);
        let (left, right) = state.split(at);
        let (first, second) = gradient.split_at(at);
        rayon::join(
            || update(arch, rule, scalars, left, first),
            || update(arch, rule, scalars, right, second),
        );
        return;
    }
    let whole = n / LANES * LANES;
    let (state, rest) = state.split(whole);
    arch.dispatch(Update {
        rule,
        scalars,
        state,
        gradient: &gradient[..whole],
    });
    if whole == n {
        return;
    }
    let State {
        weights,
        moments: [first, second],
        ..
    } = rest;
    let padded = |values: &[f32]| {
        let mut lanes = [0.0f32; LANES];
        lanes[..values.len()].copy_from_slice(values);
        lanes
    };
    let (mut w, mut m0, mut m1) = (padded(weights), padded(first), padded(second));
    let used = |values: &[f32], len: usize| if values.is_empty() { 0 } else { len };
    let (n0, n1) = (used(first, LANES), used(second, LANES));
    arch.dispatch(Update {
        rule,
        scalars,
        state: State {
            weights: &mut w,
            moments: [&mut m0[..n0], &mut m1[..n1]],
            ema: &mut [],
        },
        gradient: &padded(&gradient[whole..]),
    });
    weights.copy_from_slice(&w[..weights.len()]);
    first.copy_from_slice(&m0[..first.len()]);
    second.copy_from_slice(&m1[..second.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Task;
    use crate::train::Optimiser as Settings;

    /// Torch's formulas in f64, one number at a time.
    fn reference(config: &TrainerConfig, w: &mut f64, kept: &mut [f64; 2], g: f64, lr: f64, step: i32) {
        match config.optimiser {
            Settings::Sgd {
                momentum, nesterov, ..
            } => {
                let g = g + config.weight_decay * *w;
                kept[0] = if step == 0 { g } else { momentum * kept[0] + g };
                let along = if nesterov { g + momentum * kept[0] } else { kept[0] };
                *w -= lr * along;
            }
            Settings::AdamW { betas, eps } => {
                *w *= 1.0 - lr * config.weight_decay;
                kept[0] = betas.0 * kept[0] + (1.0 - betas.0) * g;
                kept[1] = betas.1 * kept[1] + (1.0 - betas.1) * g * g;
                let root = (kept[1] / (1.0 - betas.1.powi(step + 1))).sqrt() + eps;
                *w -= lr / (1.0 - betas.0.powi(step + 1)) * kept[0] / root;
            }
            Settings::Adam { .. } => unreachable!("not in the test"),
        }
    }

    #[test]
    fn every_number_of_every_length_is_updated_by_torchs_formulas() {
        let nesterov = Settings::Sgd {
            momentum: 0.9,
            dampening: 0.0,
            nesterov: true,
        };
        for optimiser in [Settings::sgd(0.9), nesterov, Settings::adamw()] {
            let config = TrainerConfig {
                optimiser,
                weight_decay: 0.1,
                ..TrainerConfig::notebook(Task::SingleLabel)
            };
            for n in [1usize, 15, 16, 37, 3 * PIECE + 5] {
                let value =
                    |at: usize, salt: usize| ((at * 7919 + salt * 104_729) % 1000) as f32 / 500.0 - 1.0;
                let mut weights: Vec<f32> = (0..n).map(|at| value(at, 0)).collect();
                let checked: Vec<usize> = (0..n).filter(|at| at % 997 == 0 || *at + 40 > n).collect();
                let mut exact: Vec<(f64, [f64; 2])> = checked
                    .iter()
                    .map(|&at| (f64::from(weights[at]), [0.0; 2]))
                    .collect();
                let mut moments = [
                    vec![0.0; n],
                    vec![0.0; if optimiser.n_moments() > 1 { n } else { 0 }],
                ];
                for step in 0..3 {
                    let gradient: Vec<f32> = (0..n).map(|at| value(at, step + 1)).collect();
                    let rule = Rule::new(optimiser, None, step, None);
                    let settings = HeadStep {
                        lr: 0.05,
                        weight_decay: 0.1,
                        clip: 1.0,
                    };
                    let scalars = Rule::scalars(optimiser, None, step, settings);
                    let [first, second] = &mut moments;
                    let state = State {
                        weights: &mut weights,
                        moments: [first, second],
                        ema: &mut [],
                    };
                    update(Arch::new(), &rule, &scalars, state, &gradient);
                    for (&at, (w, kept)) in checked.iter().zip(&mut exact) {
                        reference(&config, w, kept, f64::from(gradient[at]), 0.05, step as i32);
                        assert!(
                            (f64::from(weights[at]) - *w).abs() < 2e-5,
                            "{optimiser:?} {n} {at}"
                        );
                    }
                }
            }
        }
    }
}
