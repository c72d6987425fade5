//! Losses of rows of logits, and the residuals that go back: `torch.nn.CrossEntropyLoss`, `BCEWithLogitsLoss` and `MSELoss`,
//! each averaged over a batch as torch does it.

use super::kernel::LANES;
use super::math::{dot, exp, exp_all, exp_row, max, sum, tree_sums};
use crate::error::Error;
use crate::solve::ClassWeights;
use crate::targets::{Targets, Task};

/// A loss with its settings.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    task: Task,
    smoothing: f32,
    /// Outputs of a head.
    n_outputs: usize,
    /// Per class what it counts; for several labels what its presence counts. Empty where all count one.
    weights: Vec<f32>,
    /// For several labels, what a label's absence counts.
    absence: Vec<f32>,
    sum_of_weights: f32,
}

/// What a row is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'t> {
    /// A class, and with mixup another one with what is left of 1.
    Class { first: u32, second: u32, share: f32 },
    /// Numbers.
    Numbers(&'t [f32]),
}

/// What a row of a head gave.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowLoss {
    /// The loss, not yet divided by anything.
    pub(crate) loss: f64,
    /// Right outputs: 1 or 0 where a row has one class.
    pub(crate) n_right: u32,
}

/// What of a row's target lies where.
struct Mass {
    q_first: f32,
    q_second: f32,
    /// On every class, times its weight.
    spread: f32,
    /// All of it.
    mass: f32,
}

impl Loss {
    /// # Errors
    /// [`Error::Features`] for balanced weights of a class that has no row.
    pub(crate) fn new(
        task: Task,
        smoothing: f32,
        class_weights: &ClassWeights,
        targets: &Targets,
        n_outputs: usize,
    ) -> Result<Loss, Error> {
        let (mut weights, mut absence) = (Vec::new(), Vec::new());
        match (class_weights, targets) {
            (ClassWeights::None, _) => {}
            (ClassWeights::Given(given), _) => {
                weights = given.iter().map(|w| *w as f32).collect();
                absence = vec![1.0; n_outputs];
            }
            (ClassWeights::Balanced, Targets::Classes(labels)) => {
                let mut counts = vec![0usize; n_outputs];
                labels.iter().for_each(|label| counts[*label as usize] += 1);
                weights = balanced(&counts, labels.len(), n_outputs)?;
            }
            (ClassWeights::Balanced, Targets::Dense { values, n_outputs: k }) => {
                let n = targets.len();
                let ones = (0..*k).map(|class| {
                    values
                        .iter()
                        .skip(class)
                        .step_by(*k)
                        .filter(|v| **v > 0.5)
                        .count()
                });
                let ones: Vec<usize> = ones.collect();
                let zeros: Vec<usize> = ones.iter().map(|ones| n - ones).collect();
                weights = balanced(&ones, n, 2)?;
                absence = balanced(&zeros, n, 2)?;
            }
        }
        Ok(Loss {
            task,
            smoothing,
            n_outputs,
            sum_of_weights: if weights.is_empty() {
                n_outputs as f32
            } else {
                sum(&weights)
            },
            weights,
            absence,
        })
    }

    /// What classes count, as kernels take it: for several labels presences and then absences. None where all count one.
    pub(super) fn class_weights(&self) -> Option<Vec<f32>> {
        match self.task {
            Task::MultiLabel => {
                (!self.weights.is_empty()).then(|| [&self.weights[..], &self.absence].concat())
            }
            Task::SingleLabel | Task::Regression => (!self.weights.is_empty()).then(|| self.weights.clone()),
        }
    }

    fn weight(&self, class: u32) -> f32 {
        self.weights.get(class as usize).copied().unwrap_or(1.0)
    }

    /// What a row adds to the number that the losses of a batch are divided by.
    pub(crate) fn denominator(&self, wanted: Wanted<'_>) -> f64 {
        match wanted {
            Wanted::Class { first, second, share } => {
                f64::from(share) * f64::from(self.weight(first))
                    + f64::from(1.0 - share) * f64::from(self.weight(second))
            }
            Wanted::Numbers(_) => self.n_outputs as f64,
        }
    }

    /// Turns the logits of one head into residuals, multiplied by `scale`.
    #[inline(always)]
    pub(crate) fn row(&self, logits: &mut [f32], wanted: Wanted<'_>, scale: f32) -> RowLoss {
        match (self.task, wanted) {
            (_, Wanted::Class { first, second, share }) => {
                self.cross_entropy(logits, first, second, share, scale)
            }
            (Task::Regression, Wanted::Numbers(wanted)) => squared(logits, wanted, scale),
            (_, Wanted::Numbers(wanted)) => self.binary(logits, wanted, scale),
        }
    }

    /// [`row`](Loss::row) for many heads that lie one after another, `[heads, outputs]`, to the bit; a head that `learns` does
    /// not name gets no residuals.
    #[inline(always)]
    pub(crate) fn rows(
        &self,
        logits: &mut [f32],
        wanted: Wanted<'_>,
        scale: f32,
        learns: impl Fn(usize) -> bool,
        losses: &mut [RowLoss],
    ) {
        /// Fewer heads than this are done sooner one by one.
        const MANY: usize = 4;
        let n = self.n_outputs;
        match wanted {
            Wanted::Class { first, second, share } if n <= LANES && losses.len() >= MANY => {
                let heads = logits.chunks_mut(LANES * n).zip(losses.chunks_mut(LANES));
                heads.for_each(|(logits, losses)| {
                    self.cross_entropies(logits, [first as usize, second as usize], share, scale, losses);
                });
            }
            _ => {
                let heads = logits.chunks_exact_mut(n).zip(losses.iter_mut()).enumerate();
                for (head, (logits, loss)) in heads {
                    if learns(head) {
                        *loss = self.row(logits, wanted, scale);
                    }
                }
            }
        }
        let heads = logits.chunks_exact_mut(n).zip(losses).enumerate();
        for (_, (logits, loss)) in heads.filter(|(head, _)| !learns(*head)) {
            *loss = RowLoss::default();
            logits.fill(0.0);
        }
    }

    /// q, the target distribution: the classes themselves, and a little of all.
    #[inline(always)]
    fn mass(&self, first: u32, second: u32, share: f32) -> Mass {
        let own = 1.0 - self.smoothing;
        let q_first = own * share * self.weight(first);
        let q_second = own * (1.0 - share) * self.weight(second);
        let spread = self.smoothing / self.n_outputs as f32;
        Mass {
            q_first,
            q_second,
            spread,
            mass: spread.mul_add(self.sum_of_weights, q_first + q_second),
        }
    }

    /// [`cross_entropy`](Loss::cross_entropy) of up to sixteen heads of up to sixteen classes, a lane for each head.
    #[inline(always)]
    fn cross_entropies(
        &self,
        logits: &mut [f32],
        [first, second]: [usize; 2],
        share: f32,
        scale: f32,
        losses: &mut [RowLoss],
    ) {
        let n = self.n_outputs;
        let Mass {
            q_first,
            q_second,
            spread,
            mass,
        } = self.mass(first as u32, second as u32, share);
        let mut z = [[0.0f32; LANES]; LANES];
        for (head, logits) in logits.chunks_exact(n).enumerate() {
            for (z, logit) in z.iter_mut().zip(logits) {
                z[head] = *logit;
            }
        }
        let mut top = [f32::NEG_INFINITY; LANES];
        for z in &z[..n] {
            for head in 0..LANES {
                top[head] = if z[head] > top[head] { z[head] } else { top[head] };
            }
        }
        let mut is_first = [true; LANES];
        for (class, z) in z[..n].iter_mut().enumerate() {
            for head in 0..LANES {
                z[head] -= top[head];
                is_first[head] &= class >= first || z[head] != 0.0;
            }
        }
        let (wanted, other) = (z[first], z[second]);
        let all = if spread > 0.0 {
            let mut terms = z;
            for (class, terms) in terms[..n].iter_mut().enumerate() {
                if let Some(weight) = self.weights.get(class) {
                    terms.iter_mut().for_each(|z| *z *= weight);
                }
            }
            tree_sums(terms)
        } else {
            [0.0; LANES]
        };
        for z in &mut z[..n] {
            exp_row(z);
        }
        let total = tree_sums(z);
        for (head, loss) in losses.iter_mut().enumerate() {
            let mut weighted =
                f64::from(q_first) * f64::from(wanted[head]) + f64::from(q_second) * f64::from(other[head]);
            if spread > 0.0 {
                weighted += f64::from(spread) * f64::from(all[head]);
            }
            *loss = RowLoss {
                loss: f64::from(mass) * f64::from(total[head]).ln() - weighted,
                n_right: u32::from(wanted[head] == 0.0 && is_first[head]),
            };
        }
        let factor = total.map(|total| scale * mass / total);
        for (class, z) in z[..n].iter_mut().enumerate() {
            let weight = self.weights.get(class).copied().unwrap_or(1.0);
            let shift = -(scale * spread) * weight;
            for head in 0..LANES {
                z[head] = factor[head].mul_add(z[head], shift);
            }
        }
        z[first].iter_mut().for_each(|z| *z -= scale * q_first);
        if q_second != 0.0 {
            z[second].iter_mut().for_each(|z| *z -= scale * q_second);
        }
        for (head, logits) in logits.chunks_exact_mut(n).enumerate() {
            for (z, logit) in z.iter().zip(logits) {
                *logit = z[head];
            }
        }
    }

    #[inline(always)]
    fn cross_entropy(&self, logits: &mut [f32], first: u32, second: u32, share: f32, scale: f32) -> RowLoss {
        let top = max(logits);
        for z in logits.iter_mut() {
            *z -= top;
        }
        let wanted = logits[first as usize];
        let is_right = wanted == 0.0 && !logits[..first as usize].contains(&0.0);
        let Mass {
            q_first,
            q_second,
            spread,
            mass,
        } = self.mass(first, second, share);
        let mut weighted =
            f64::from(q_first) * f64::from(wanted) + f64::from(q_second) * f64::from(logits[second as usize]);
        if spread > 0.0 {
            let all = if self.weights.is_empty() {
                sum(logits)
            } else {
                dot(logits, &self.weights)
            };
            weighted += f64::from(spread) * f64::from(all);
        }
        exp_all(logits);
        let total = sum(logits);
        let loss = f64::from(mass) * f64::from(total).ln() - weighted;
        // residual = scale · (mass · softmax - q)
        let factor = scale * mass / total;
        if spread > 0.0 && !self.weights.is_empty() {
            for (z, weight) in logits.iter_mut().zip(&self.weights) {
                *z = factor.mul_add(*z, -(scale * spread) * weight);
            }
        } else {
            let shift = -(scale * spread);
            for z in logits.iter_mut() {
                *z = factor.mul_add(*z, shift);
            }
        }
        logits[first as usize] -= scale * q_first;
        if q_second != 0.0 {
            logits[second as usize] -= scale * q_second;
        }
        RowLoss {
            loss,
            n_right: u32::from(is_right),
        }
    }

    #[inline(always)]
    fn binary(&self, logits: &mut [f32], wanted: &[f32], scale: f32) -> RowLoss {
        /// Factors in (1, 2] that a product of doubles takes before it could overflow.
        const FACTORS: usize = 512;
        let mut right = RowLoss::default();
        for (at, (logits, wanted)) in logits.chunks_mut(FACTORS).zip(wanted.chunks(FACTORS)).enumerate() {
            // Unweighted losses are max(z, 0) - z·y + ln(1 + exp(-|z|)): one logarithm serves for all.
            let mut product = 1.0f64;
            let mut linear = 0.0f64;
            for (i, (z, y)) in logits.iter_mut().zip(wanted).enumerate() {
                right.n_right += u32::from((*z > 0.0) == (*y > 0.5));
                let y = (1.0 - self.smoothing).mul_add(*y, 0.5 * self.smoothing);
                let small = exp(-z.abs());
                let p = if *z >= 0.0 {
                    1.0 / (1.0 + small)
                } else {
                    small / (1.0 + small)
                };
                if self.weights.is_empty() {
                    product *= 1.0 + f64::from(small);
                    linear += f64::from(z.max(0.0) - *z * y);
                    *z = scale * (p - y);
                } else {
                    let (presence, absence) =
                        (self.weights[at * FACTORS + i], self.absence[at * FACTORS + i]);
                    // Of -log p and -log (1 - p).
                    let log = f64::from(small).ln_1p();
                    let of_one = f64::from((-*z).max(0.0)) + log;
                    let of_zero = f64::from(z.max(0.0)) + log;
                    linear += f64::from(presence * y) * of_one + f64::from(absence * (1.0 - y)) * of_zero;
                    *z = scale * (absence * (1.0 - y) * p - presence * y * (1.0 - p));
                }
            }
            right.loss += linear + product.ln();
        }
        right
    }
}

#[inline(always)]
fn squared(logits: &mut [f32], wanted: &[f32], scale: f32) -> RowLoss {
    let mut loss = 0.0f64;
    for (z, y) in logits.iter_mut().zip(wanted) {
        let off = *z - y;
        loss += f64::from(off) * f64::from(off);
        *z = 2.0 * scale * off;
    }
    RowLoss { loss, n_right: 0 }
}

/// `N / (ways · count)` of each.
fn balanced(counts: &[usize], n: usize, ways: usize) -> Result<Vec<f32>, Error> {
    if let Some(class) = counts.iter().position(|count| *count == 0) {
        return Err(Error::Features(format!(
            "class {class} has no row, and balanced class weights divide by the rows of each"
        )));
    }
    let weight = |count: &usize| (n as f64 / (ways as f64 * *count as f64)) as f32;
    Ok(counts.iter().map(weight).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss by definition, in f64.
    fn exact(loss: &Loss, logits: &[f64], wanted: Wanted<'_>) -> f64 {
        let k = logits.len();
        let weight = |c: usize| loss.weights.get(c).map_or(1.0, |w| f64::from(*w));
        let eps = f64::from(loss.smoothing);
        match wanted {
            Wanted::Class { first, second, share } => {
                let total = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
                let share = f64::from(share);
                let q = |c: usize| {
                    let own = share * f64::from(u8::from(c == first as usize))
                        + (1.0 - share) * f64::from(u8::from(c == second as usize));
                    weight(c) * ((1.0 - eps) * own + eps / k as f64)
                };
                (0..k).map(|c| q(c) * (total - logits[c])).sum()
            }
            Wanted::Numbers(y) if loss.task == Task::Regression => logits
                .iter()
                .zip(y)
                .map(|(z, y)| (z - f64::from(*y)).powi(2))
                .sum(),
            Wanted::Numbers(y) => (0..k)
                .map(|c| {
                    let y = (1.0 - eps) * f64::from(y[c]) + eps / 2.0;
                    let absence = loss.absence.get(c).map_or(1.0, |w| f64::from(*w));
                    weight(c) * y * (-logits[c]).exp().ln_1p() + absence * (1.0 - y) * logits[c].exp().ln_1p()
                })
                .sum(),
        }
    }

    fn check(loss: &Loss, wanted: Wanted<'_>) {
        let logits: Vec<f64> = (0..loss.n_outputs)
            .map(|c| (c * 37 % 11) as f64 * 0.5 - 2.0)
            .collect();
        let mut row: Vec<f32> = logits.iter().map(|z| *z as f32).collect();
        let got = loss.row(&mut row, wanted, 0.25);
        let want = exact(loss, &logits, wanted);
        assert!(
            (got.loss - want).abs() < 1e-5 * want.abs().max(1.0),
            "{} {want}",
            got.loss
        );
        for c in 0..logits.len() {
            let moved = |by: f64| {
                let mut logits = logits.clone();
                logits[c] += by;
                exact(loss, &logits, wanted)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (f64::from(row[c]) - 0.25 * slope).abs() < 2e-6,
                "{loss:?} {c}: {} {slope}",
                row[c]
            );
        }
    }

    #[test]
    fn residuals_are_slopes_of_the_loss() {
        let given = |n: usize| ClassWeights::Given((0..n).map(|c| 0.5 + c as f64).collect());
        for n in [2, 5, 19] {
            let targets = Targets::Classes(vec![0, 1]);
            for weights in [ClassWeights::None, given(n)] {
                for (smoothing, share) in [(0.0, 1.0), (0.1, 1.0), (0.3, 0.7)] {
                    let loss = Loss::new(Task::SingleLabel, smoothing, &weights, &targets, n).unwrap();
                    check(
                        &loss,
                        Wanted::Class {
                            first: 1,
                            second: 0,
                            share,
                        },
                    );
                }
                let numbers: Vec<f32> = (0..n).map(|c| (c % 2) as f32).collect();
                for smoothing in [0.0, 0.2] {
                    let loss = Loss::new(Task::MultiLabel, smoothing, &weights, &targets, n).unwrap();
                    check(&loss, Wanted::Numbers(&numbers));
                }
            }
            let numbers: Vec<f32> = (0..n).map(|c| c as f32 * 0.3).collect();
            let loss = Loss::new(Task::Regression, 0.0, &ClassWeights::None, &targets, n).unwrap();
            check(&loss, Wanted::Numbers(&numbers));
        }
    }

    #[test]
    fn many_heads_are_each_as_if_alone() {
        let given = |n: usize| ClassWeights::Given((0..n).map(|c| 0.5 + c as f64 * 0.7).collect());
        for (n, heads) in [(2, 52), (3, 1), (10, 7), (16, 17), (21, 5)] {
            let targets = Targets::Classes(vec![0, 1]);
            for weights in [ClassWeights::None, given(n)] {
                for (smoothing, share, first) in [(0.0, 1.0, 1), (0.1, 1.0, 0), (0.3, 0.7, 1)] {
                    let loss = Loss::new(Task::SingleLabel, smoothing, &weights, &targets, n).unwrap();
                    let wanted = Wanted::Class {
                        first,
                        second: 0,
                        share,
                    };
                    // Ties and a class that is out of the question are among them.
                    let logits: Vec<f32> = (0..heads * n)
                        .map(|i| match i * 31 % 23 {
                            0 => -200.0,
                            v => (v / 2) as f32 * 0.7,
                        })
                        .collect();
                    let mut together = logits.clone();
                    let mut losses = vec![RowLoss::default(); heads];
                    loss.rows(&mut together, wanted, 0.25, |head| head != 1, &mut losses);
                    for head in 0..heads {
                        let mut alone = logits[head * n..][..n].to_vec();
                        let mut expected = loss.row(&mut alone, wanted, 0.25);
                        if head == 1 {
                            expected = RowLoss::default();
                            alone.fill(0.0);
                        }
                        assert_eq!(losses[head], expected, "{n} classes, head {head}");
                        assert_eq!(together[head * n..][..n], alone, "{n} classes, head {head}");
                    }
                }
            }
        }
    }

    #[test]
    fn balanced_weights_are_scikit_learns() {
        let targets = Targets::Classes(vec![0, 0, 0, 1]);
        let loss = Loss::new(Task::SingleLabel, 0.0, &ClassWeights::Balanced, &targets, 2).unwrap();
        assert_eq!(loss.weights, [4.0 / 6.0, 2.0]);
        let wanted = |first| Wanted::Class {
            first,
            second: 0,
            share: 1.0,
        };
        assert_eq!(loss.denominator(wanted(1)), 2.0);
        let error = Loss::new(Task::SingleLabel, 0.0, &ClassWeights::Balanced, &targets, 3).unwrap_err();
        assert!(error.to_string().contains("class 2 has no row"));
        let dense = Targets::dense(vec![1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 2).unwrap();
        let loss = Loss::new(Task::MultiLabel, 0.0, &ClassWeights::Balanced, &dense, 2).unwrap();
        assert_eq!(
            (&loss.weights[..], &loss.absence[..]),
            (&[4.0 / 6.0, 2.0][..], &[2.0, 4.0 / 6.0][..])
        );
    }

    #[test]
    fn the_first_of_equal_logits_is_the_answer() {
        let targets = Targets::Classes(vec![0, 1]);
        let loss = Loss::new(Task::SingleLabel, 0.0, &ClassWeights::None, &targets, 3).unwrap();
        let right = |first| {
            let mut row = [0.5, 0.5, 0.1];
            loss.row(
                &mut row,
                Wanted::Class {
                    first,
                    second: first,
                    share: 1.0,
                },
                1.0,
            )
            .n_right
        };
        assert_eq!([right(0), right(1), right(2)], [1, 0, 0]);
    }
}
