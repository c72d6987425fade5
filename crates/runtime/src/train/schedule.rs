//! Learning rate and momentum over time, by the formulas of `torch.optim.lr_scheduler`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A schedule, and a linear warm-up before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// How the learning rate goes.
    pub curve: Curve,
    /// What [`curve`](Schedule::curve) and [`warmup`](Schedule::warmup) count; one-cycle always counts steps.
    pub unit: Unit,
    /// Time of `LinearLR(start_factor=1/3)` at the beginning, after which the curve begins, as `SequentialLR` puts them
    /// together.
    pub warmup: usize,
    /// The factor at the beginning of the warm-up.
    pub warmup_start: f64,
}

/// The form of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Curve {
    /// The same always.
    Constant,
    /// `StepLR`.
    Step {
        /// Time between two falls.
        step_size: usize,
        /// Factor of each.
        gamma: f64,
    },
    /// `CosineAnnealingLR` over all the time that is left after the warm-up.
    Cosine {
        /// Learning rate at the end.
        min_lr: f64,
    },
    /// `OneCycleLR` with cosine annealing and two phases; its `max_lr` is the learning rate of the settings.
    OneCycle {
        /// Share of the steps in which the rate rises.
        pct_start: f64,
        /// The first rate is the highest over this.
        div_factor: f64,
        /// The last rate is the first over this.
        final_div_factor: f64,
        /// `base_momentum` and `max_momentum` between which momentum (or the first beta) moves against the rate.
        momentum: Option<(f64, f64)>,
    },
}

/// What a schedule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// It moves after each epoch.
    Epoch,
    /// It moves after each step.
    Step,
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Step since the beginning, from 0.
    pub step: usize,
    /// Epochs of the run.
    pub epochs: usize,
    /// Steps of the run.
    pub steps: usize,
}

impl Schedule {
    /// The same learning rate always.
    pub fn constant() -> Schedule {
        Schedule::of(Curve::Constant, Unit::Epoch)
    }

    /// `StepLR`, counted in epochs.
    pub fn step(step_size: usize, gamma: f64) -> Schedule {
        Schedule::of(Curve::Step { step_size, gamma }, Unit::Epoch)
    }

    /// `CosineAnnealingLR` down to zero.
    pub fn cosine(unit: Unit) -> Schedule {
        Schedule::of(Curve::Cosine { min_lr: 0.0 }, unit)
    }

    /// `OneCycleLR` with its defaults.
    pub fn one_cycle() -> Schedule {
        let curve = Curve::OneCycle {
            pct_start: 0.3,
            div_factor: 25.0,
            final_div_factor: 1e4,
            momentum: Some((0.85, 0.95)),
        };
        Schedule::of(curve, Unit::Step)
    }

    fn of(curve: Curve, unit: Unit) -> Schedule {
        Schedule {
            curve,
            unit,
            warmup: 0,
            warmup_start: 1.0 / 3.0,
        }
    }

    /// Whether it can be followed for `epochs`.
    ///
    /// # Errors
    /// [`Error::Usage`] names the setting.
    pub fn check(&self, epochs: usize) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Usage(text));
        let is_positive = |value: f64| value > 0.0 && value.is_finite();
        if self.warmup > 0 && !(self.warmup_start > 0.0 && self.warmup_start <= 1.0) {
            return wrong(format!(
                "the warm-up starts at {}, which is not in (0, 1]",
                self.warmup_start
            ));
        }
        if self.unit == Unit::Epoch && self.warmup >= epochs {
            return wrong(format!(
                "a warm-up of {} epochs leaves none of {epochs}",
                self.warmup
            ));
        }
        match self.curve {
            Curve::Constant => {}
            Curve::Step { step_size, gamma } => {
                if step_size == 0 || !is_positive(gamma) {
                    return wrong("the schedule's step size begins at 1, and gamma above 0".to_owned());
                }
            }
            Curve::Cosine { min_lr } => {
                if !(min_lr >= 0.0 && min_lr.is_finite()) {
                    return wrong(format!("the cosine's lowest rate is {min_lr}"));
                }
            }
            Curve::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
                momentum,
            } => {
                if !(0.0..=1.0).contains(&pct_start)
                    || !is_positive(div_factor)
                    || !is_positive(final_div_factor)
                {
                    return wrong("one-cycle needs pct_start in [0, 1] and positive divisors".to_owned());
                }
                if let Some((base, max)) = momentum
                    && !((0.0..1.0).contains(&base) && (0.0..1.0).contains(&max))
                {
                    return wrong("one-cycle's momenta are in [0, 1)".to_owned());
                }
                if self.warmup > 0 {
                    return wrong("one-cycle has a warm-up of its own".to_owned());
                }
            }
        }
        Ok(())
    }

    /// The learning rate of a step for the rate `lr` of the settings.
    pub fn lr(&self, lr: f64, time: Time) -> f64 {
        let (now, end) = self.clock(time);
        if now < self.warmup {
            let share = now as f64 / self.warmup as f64;
            return lr * (self.warmup_start + (1.0 - self.warmup_start) * share);
        }
        let (now, end) = (now - self.warmup, end - self.warmup);
        match self.curve {
            Curve::Constant => lr,
            Curve::Step { step_size, gamma } => {
                lr * gamma.powi(i32::try_from(now / step_size).unwrap_or(i32::MAX))
            }
            Curve::Cosine { min_lr } => {
                let turn = (PI * now as f64 / end.max(1) as f64).cos();
                min_lr + (lr - min_lr) * (1.0 + turn) / 2.0
            }
            Curve::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
                ..
            } => {
                let first = lr / div_factor;
                one_cycle(pct_start, now, end, [first, lr, first / final_div_factor])
            }
        }
    }

    /// The momentum (or first beta) of a step, where the schedule says one.
    pub fn momentum(&self, time: Time) -> Option<f64> {
        match self.curve {
            Curve::OneCycle {
                pct_start,
                momentum: Some((base, max)),
                ..
            } => {
                let (now, end) = self.clock(time);
                Some(one_cycle(pct_start, now, end, [max, base, max]))
            }
            _ => None,
        }
    }

    /// Now and the end, in the schedule's unit.
    fn clock(&self, time: Time) -> (usize, usize) {
        match (self.unit, self.curve) {
            (Unit::Step, _) | (_, Curve::OneCycle { .. }) => (time.step, time.steps.max(self.warmup)),
            (Unit::Epoch, _) => (time.epoch, time.epochs),
        }
    }
}

/// `OneCycleLR`'s two phases with `anneal_strategy='cos'` between three values.
fn one_cycle(pct_start: f64, now: usize, end: usize, [first, top, last]: [f64; 3]) -> f64 {
    let anneal = |from: f64, to: f64, share: f64| to + (from - to) / 2.0 * ((PI * share).cos() + 1.0);
    // A phase without length is at its end.
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 1.0 };
    let rise_end = pct_start * end as f64 - 1.0;
    let fall_end = end as f64 - 1.0;
    let now = now as f64;
    if now <= rise_end {
        anneal(first, top, share(now, rise_end))
    } else {
        anneal(top, last, share(now - rise_end, fall_end - rise_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates at `steps` of a run of 4 epochs of 5 steps.
    fn rates(schedule: Schedule, steps: &[usize]) -> Vec<f64> {
        let time = |step| Time {
            epoch: step / 5,
            step,
            epochs: 4,
            steps: 20,
        };
        steps.iter().map(|&step| schedule.lr(0.1, time(step))).collect()
    }

    fn check_rates(schedule: Schedule, steps: &[usize], expected: &[f64]) {
        for (rate, want) in rates(schedule, steps).iter().zip(expected) {
            assert!((rate - want).abs() < 1e-9, "{schedule:?}: {rate} {want}");
        }
    }

    #[test]
    fn rates_are_torchs() {
        check_rates(Schedule::constant(), &[0, 19], &[0.1, 0.1]);
        check_rates(Schedule::step(2, 0.5), &[0, 9, 10, 19], &[0.1, 0.1, 0.05, 0.05]);
        check_rates(
            Schedule::cosine(Unit::Epoch),
            &[0, 5, 10],
            &[0.1, 0.085_355_339, 0.05],
        );
        // LinearLR(1/3, total_iters=2) and then CosineAnnealingLR(T_max=18).
        let warm = Schedule {
            warmup: 2,
            ..Schedule::cosine(Unit::Step)
        };
        check_rates(warm, &[0, 1, 2, 11], &[0.033_333_333, 0.066_666_667, 0.1, 0.05]);
        // OneCycleLR(max_lr=0.1, total_steps=20).
        check_rates(Schedule::one_cycle(), &[0, 5, 19], &[0.004, 0.1, 0.000_000_4]);
    }

    #[test]
    fn momentum_moves_against_the_rate() {
        let time = |step| Time {
            epoch: 0,
            step,
            epochs: 1,
            steps: 20,
        };
        let schedule = Schedule::one_cycle();
        let momenta = [0, 5, 19].map(|step| schedule.momentum(time(step)).unwrap());
        for (momentum, want) in momenta.iter().zip([0.95, 0.85, 0.95]) {
            assert!((momentum - want).abs() < 1e-12);
        }
        assert_eq!(Schedule::constant().momentum(time(3)), None);
    }

    #[test]
    fn warm_ups_that_leave_nothing_are_refused() {
        let warm = Schedule {
            warmup: 4,
            ..Schedule::constant()
        };
        assert!(
            warm.check(4)
                .unwrap_err()
                .to_string()
                .contains("leaves none of 4")
        );
        let both = Schedule {
            warmup: 1,
            ..Schedule::one_cycle()
        };
        assert!(both.check(4).unwrap_err().to_string().contains("of its own"));
    }
}
