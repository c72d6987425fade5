//! The update of weights by a gradient: `torch.optim`'s SGD, Adam and AdamW, sixteen lanes at a time.
//!
//! Each lane has scalars of its own, so that the columns of one panel can belong to heads with different settings.

use pulp::{Simd, WithSimd};

use super::config::Optimiser;
use super::kernel::LANES;

/// Weights with what the optimiser keeps beside each: parallel slices, empty where it keeps nothing.
pub(crate) struct State<'s> {
    pub(crate) weights: &'s mut [f32],
    pub(crate) moments: [&'s mut [f32]; 2],
    pub(crate) ema: &'s mut [f32],
}

impl<'s> State<'s> {
    /// Of no weights.
    pub(crate) fn nothing() -> State<'s> {
        State {
            weights: &mut [],
            moments: [&mut [], &mut []],
            ema: &mut [],
        }
    }

    /// Both sides of a cut behind `at` weights.
    pub(crate) fn split(self, at: usize) -> (State<'s>, State<'s>) {
        fn cut(values: &mut [f32], at: usize) -> (&mut [f32], &mut [f32]) {
            let at = at.min(values.len());
            values.split_at_mut(at)
        }
        let (weights, more_weights) = cut(self.weights, at);
        let [first, second] = self.moments;
        let (first, more_first) = cut(first, at);
        let (second, more_second) = cut(second, at);
        let (ema, more_ema) = cut(self.ema, at);
        let left = State {
            weights,
            moments: [first, second],
            ema,
        };
        let right = State {
            weights: more_weights,
            moments: [more_first, more_second],
            ema: more_ema,
        };
        (left, right)
    }

    /// A part of it.
    pub(super) fn part(&mut self, at: usize, n: usize) -> State<'_> {
        fn cut(values: &mut [f32], at: usize, n: usize) -> &mut [f32] {
            if values.is_empty() {
                values
            } else {
                &mut values[at..at + n]
            }
        }
        let [first, second] = &mut self.moments;
        State {
            weights: cut(self.weights, at, n),
            moments: [cut(first, at, n), cut(second, at, n)],
            ema: cut(self.ema, at, n),
        }
    }
}

/// What a rule multiplies with in one step, per lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalars {
    /// SGD: the learning rate. Adam: `lr / (1 - β₁ᵗ)`.
    rate: [f32; LANES],
    /// SGD and Adam: weight decay. AdamW: `1 - lr · decay`.
    decay: [f32; LANES],
    /// What the gradient is multiplied with first: 1, or less where it is clipped.
    pub(super) clip: [f32; LANES],
}

impl Scalars {
    /// Those of sixteen outputs beside each other, by the head of each; where there is none, nothing moves.
    pub(super) fn of_lanes<'s>(head: impl Fn(usize) -> Option<&'s Scalars>) -> Scalars {
        let mut all = Scalars {
            rate: [0.0; LANES],
            decay: [0.0; LANES],
            clip: [0.0; LANES],
        };
        for lane in 0..LANES {
            if let Some(head) = head(lane) {
                all.rate[lane] = head.rate[lane];
                all.decay[lane] = head.decay[lane];
                all.clip[lane] = head.clip[lane];
            }
        }
        all
    }
}

/// The rule of one step, with what is the same for all lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    kind: Kind,
    /// Share of the new weights in the moving average.
    ema: f32,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Sgd,
    Momentum {
        momentum: f32,
        dampen: f32,
        nesterov: bool,
    },
    Adam {
        beta1: f32,
        beta2: f32,
        rest2: f32,
        root: f32,
        eps: f32,
        decoupled: bool,
    },
}

/// Settings of one head in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeadStep {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
}

impl Rule {
    /// The rule of step `step` (from 0) with the momentum or first beta that the schedule says.
    pub(crate) fn new(optimiser: Optimiser, momentum: Option<f64>, step: usize, ema: Option<f64>) -> Rule {
        let kind = match optimiser {
            Optimiser::Sgd { momentum: 0.0, .. } => Kind::Sgd,
            Optimiser::Sgd {
                momentum: own,
                dampening,
                nesterov,
            } => Kind::Momentum {
                // The buffer begins as the first gradient: as if it had been zero and nothing were dampened.
                momentum: momentum.unwrap_or(own) as f32,
                dampen: if step == 0 { 1.0 } else { (1.0 - dampening) as f32 },
                nesterov,
            },
            Optimiser::Adam { betas, eps } | Optimiser::AdamW { betas, eps } => {
                let correction = 1.0 - betas.1.powi(step as i32 + 1);
                Kind::Adam {
                    beta1: (1.0 - momentum.unwrap_or(betas.0)) as f32,
                    beta2: betas.1 as f32,
                    rest2: (1.0 - betas.1) as f32,
                    root: (1.0 / correction.sqrt()) as f32,
                    eps: eps as f32,
                    decoupled: matches!(optimiser, Optimiser::AdamW { .. }),
                }
            }
        };
        // The first average is the weights themselves.
        let ema = ema.map_or(0.0, |decay| if step == 0 { 1.0 } else { (1.0 - decay) as f32 });
        Rule { kind, ema }
    }

    /// What [`update`](Rule::update) takes for the weights of a head.
    pub(crate) fn scalars(
        optimiser: Optimiser,
        momentum: Option<f64>,
        step: usize,
        head: HeadStep,
    ) -> Scalars {
        let (rate, decay) = match optimiser {
            Optimiser::Sgd { .. } => (head.lr, head.weight_decay),
            Optimiser::Adam { betas, .. } | Optimiser::AdamW { betas, .. } => {
                let correction = 1.0 - momentum.unwrap_or(betas.0).powi(step as i32 + 1);
                let decay = match optimiser {
                    Optimiser::AdamW { .. } => 1.0 - head.lr * head.weight_decay,
                    _ => head.weight_decay,
                };
                (head.lr / correction, decay)
            }
        };
        Scalars {
            rate: [rate as f32; LANES],
            decay: [decay as f32; LANES],
            clip: [head.clip as f32; LANES],
        }
    }

    /// Updates rows of sixteen weights by their gradient, each with the scalars that `of_row` gives.
    #[inline(always)]
    pub(super) fn update<'s, S: Simd>(
        &self,
        simd: S,
        of_row: impl Fn(usize) -> &'s Scalars,
        state: &mut State<'_>,
        gradient: &[f32],
    ) {
        let per_row = LANES / S::F32_LANES;
        let (weights, _) = S::as_mut_simd_f32s(state.weights);
        let (gradient, _) = S::as_simd_f32s(gradient);
        let [first, second] = &mut state.moments;
        let (first, _) = S::as_mut_simd_f32s(first);
        let (second, _) = S::as_mut_simd_f32s(second);
        let (ema, _) = S::as_mut_simd_f32s(state.ema);
        let rows = weights
            .chunks_exact_mut(per_row)
            .zip(gradient.chunks_exact(per_row))
            .enumerate()
            .map(|(at, (w, g))| (Vectors::of(simd, of_row(at)), w, g));
        match self.kind {
            Kind::Sgd => {
                for (Vectors { rate, decay, clip }, w, g) in rows {
                    for i in 0..per_row {
                        let g = simd.mul_add_f32s(decay[i], w[i], simd.mul_f32s(g[i], clip[i]));
                        w[i] = simd.negate_mul_add_f32s(rate[i], g, w[i]);
                    }
                }
            }
            Kind::Momentum {
                momentum,
                dampen,
                nesterov,
            } => {
                let (momentum, dampen) = (simd.splat_f32s(momentum), simd.splat_f32s(dampen));
                for ((Vectors { rate, decay, clip }, w, g), buffer) in
                    rows.zip(first.chunks_exact_mut(per_row))
                {
                    for i in 0..per_row {
                        let g = simd.mul_add_f32s(decay[i], w[i], simd.mul_f32s(g[i], clip[i]));
                        let mut along = simd.mul_add_f32s(dampen, g, simd.mul_f32s(momentum, buffer[i]));
                        buffer[i] = along;
                        if nesterov {
                            along = simd.mul_add_f32s(momentum, along, g);
                        }
                        w[i] = simd.negate_mul_add_f32s(rate[i], along, w[i]);
                    }
                }
            }
            Kind::Adam {
                beta1,
                beta2,
                rest2,
                root,
                eps,
                decoupled,
            } => {
                let (beta1, beta2) = (simd.splat_f32s(beta1), simd.splat_f32s(beta2));
                let (rest2, root) = (simd.splat_f32s(rest2), simd.splat_f32s(root));
                let eps = simd.splat_f32s(eps);
                let moments = first
                    .chunks_exact_mut(per_row)
                    .zip(second.chunks_exact_mut(per_row));
                for ((Vectors { rate, decay, clip }, w, g), (m, v)) in rows.zip(moments) {
                    for i in 0..per_row {
                        let mut g = simd.mul_f32s(g[i], clip[i]);
                        let mut weight = w[i];
                        if decoupled {
                            weight = simd.mul_f32s(weight, decay[i]);
                        } else {
                            g = simd.mul_add_f32s(decay[i], weight, g);
                        }
                        m[i] = simd.mul_add_f32s(beta1, simd.sub_f32s(g, m[i]), m[i]);
                        v[i] = simd.mul_add_f32s(rest2, simd.mul_f32s(g, g), simd.mul_f32s(beta2, v[i]));
                        let scale = simd.mul_add_f32s(simd.sqrt_f32s(v[i]), root, eps);
                        let along = simd.div_f32s(m[i], scale);
                        w[i] = simd.negate_mul_add_f32s(rate[i], along, weight);
                    }
                }
            }
        }
        let share = simd.splat_f32s(self.ema);
        for (average, w) in ema.iter_mut().zip(weights) {
            *average = simd.mul_add_f32s(share, simd.sub_f32s(*w, *average), *average);
        }
    }
}

/// [`Scalars`] of one row as vectors.
struct Vectors<'s, S: Simd> {
    rate: &'s [S::f32s],
    decay: &'s [S::f32s],
    clip: &'s [S::f32s],
}

impl<'s, S: Simd> Vectors<'s, S> {
    #[inline(always)]
    fn of(_: S, scalars: &'s Scalars) -> Vectors<'s, S> {
        Vectors {
            rate: S::as_simd_f32s(&scalars.rate).0,
            decay: S::as_simd_f32s(&scalars.decay).0,
            clip: S::as_simd_f32s(&scalars.clip).0,
        }
    }
}

/// An update by itself.
pub(crate) struct Update<'u> {
    pub(crate) rule: &'u Rule,
    pub(crate) scalars: &'u Scalars,
    pub(crate) state: State<'u>,
    pub(crate) gradient: &'u [f32],
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        self.rule
            .update(simd, |_| self.scalars, &mut self.state, self.gradient);
    }
}
