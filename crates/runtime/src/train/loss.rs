//! Losses of rows of logits, and the residuals that go back: `torch.nn.CrossEntropyLoss`, `BCEWithLogitsLoss` and `MSELoss`,
//! each averaged over a batch as torch does it.

use super::kernel::LANES;
use super::math::{dot, exp, exp_all, exp_row, ln_of_finite, max, sum, tree_sums};
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
    /// All of it.
    mass: f32,
}

/// Logits of rows, which become residuals, and losses of rows, `[rows, heads]`.
pub(super) struct Outputs<'o> {
    pub(super) values: &'o mut [f32],
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) heads: usize,
    pub(super) losses: &'o mut [RowLoss],
}

/// Logits of up to sixteen classes that wait until there are sixteen of them: a lane each takes as long as one alone.
#[derive(Default)]
struct Lanes {
    n: usize,
    /// Where logits begin, and where their loss is to be.
    places: [(usize, usize); LANES],
    first: [u32; LANES],
    second: [u32; LANES],
    q_first: [f32; LANES],
    q_second: [f32; LANES],
    mass: [f32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn push(&mut self, place: (usize, usize), [first, second]: [u32; 2], mass: &Mass) {
        let lane = self.n;
        self.places[lane] = place;
        (self.first[lane], self.second[lane]) = (first, second);
        (self.q_first[lane], self.q_second[lane], self.mass[lane]) = (mass.q_first, mass.q_second, mass.mass);
        self.n += 1;
    }
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

    /// [`row`](Loss::row) for rows that want classes, and for all heads of each, to the bit; `wanted` is by row, and a head that
    /// `learns` does not name gets no residuals.
    #[inline(always)]
    pub(super) fn rows(
        &self,
        mut outputs: Outputs<'_>,
        scale: f32,
        wanted: impl Fn(usize) -> Wanted<'static>,
        learns: impl Fn(usize) -> bool,
    ) {
        let (n, heads) = (self.n_outputs, outputs.heads);
        let mut lanes = Lanes::default();
        for row in 0..outputs.losses.len() / heads {
            let wanted = wanted(row);
            let of_class = match wanted {
                Wanted::Class { first, second, share } if n <= LANES => {
                    Some(([first, second], self.mass(first, second, share)))
                }
                _ => None,
            };
            for head in 0..heads {
                let place = (row * outputs.stride + head * n, row * heads + head);
                if !learns(head) {
                    outputs.values[place.0..][..n].fill(0.0);
                    outputs.losses[place.1] = RowLoss::default();
                } else if let Some((classes, mass)) = &of_class {
                    lanes.push(place, *classes, mass);
                    if lanes.n == LANES {
                        self.cross_entropies(&mut lanes, scale, &mut outputs);
                    }
                } else {
                    outputs.losses[place.1] = self.row(&mut outputs.values[place.0..][..n], wanted, scale);
                }
            }
        }
        if lanes.n > 0 {
            self.cross_entropies(&mut lanes, scale, &mut outputs);
        }
    }

    /// What of a target lies on every class, times its weight.
    #[inline(always)]
    fn spread(&self) -> f32 {
        self.smoothing / self.n_outputs as f32
    }

    /// q, the target distribution: the classes themselves, and a little of all.
    #[inline(always)]
    fn mass(&self, first: u32, second: u32, share: f32) -> Mass {
        let own = 1.0 - self.smoothing;
        let q_first = own * share * self.weight(first);
        let q_second = own * (1.0 - share) * self.weight(second);
        Mass {
            q_first,
            q_second,
            mass: self.spread().mul_add(self.sum_of_weights, q_first + q_second),
        }
    }

    /// [`cross_entropy`](Loss::cross_entropy) of what waits.
    #[inline(always)]
    fn cross_entropies(&self, lanes: &mut Lanes, scale: f32, outputs: &mut Outputs<'_>) {
        let n = self.n_outputs;
        let spread = self.spread();
        let mut z = [[0.0f32; LANES]; LANES];
        for (lane, (at, _)) in lanes.places[..lanes.n].iter().enumerate() {
            for (z, logit) in z.iter_mut().zip(&outputs.values[*at..][..n]) {
                z[lane] = *logit;
            }
        }
        let mut top = [f32::NEG_INFINITY; LANES];
        for z in &z[..n] {
            for lane in 0..LANES {
                top[lane] = if z[lane] > top[lane] { z[lane] } else { top[lane] };
            }
        }
        let (mut wanted, mut other) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut is_first = [true; LANES];
        for (class, z) in z[..n].iter_mut().enumerate() {
            for lane in 0..LANES {
                z[lane] -= top[lane];
                is_first[lane] &= class as u32 >= lanes.first[lane] || z[lane] != 0.0;
                wanted[lane] = if class as u32 == lanes.first[lane] {
                    z[lane]
                } else {
                    wanted[lane]
                };
                other[lane] = if class as u32 == lanes.second[lane] {
                    z[lane]
                } else {
                    other[lane]
                };
            }
        }
        let all = if spread > 0.0 {
            let mut terms = z;
            for (class, terms) in terms[..n].iter_mut().enumerate() {
                if let Some(weight) = self.weights.get(class) {
                    terms.iter_mut().for_each(|z| *z *= weight);
                }
            }
            tree_sums(&terms[..n])
        } else {
            [0.0; LANES]
        };
        for z in &mut z[..n] {
            exp_row(z);
        }
        let total = tree_sums(&z[..n]);
        let mut log = total;
        for log in &mut log {
            *log = ln_of_finite(*log);
        }
        for (lane, (_, at)) in lanes.places[..lanes.n].iter().enumerate() {
            let mut weighted = f64::from(lanes.q_first[lane]) * f64::from(wanted[lane])
                + f64::from(lanes.q_second[lane]) * f64::from(other[lane]);
            if spread > 0.0 {
                weighted += f64::from(spread) * f64::from(all[lane]);
            }
            outputs.losses[*at] = RowLoss {
                loss: f64::from(lanes.mass[lane]) * f64::from(log[lane]) - weighted,
                n_right: u32::from(wanted[lane] == 0.0 && is_first[lane]),
            };
        }
        let mut factor = [0.0f32; LANES];
        for lane in 0..LANES {
            factor[lane] = scale * lanes.mass[lane] / total[lane];
        }
        for (class, z) in z[..n].iter_mut().enumerate() {
            let weight = self.weights.get(class).copied().unwrap_or(1.0);
            let shift = -(scale * spread) * weight;
            for lane in 0..LANES {
                let is = |wanted: u32, q: f32| if class as u32 == wanted { scale * q } else { 0.0 };
                let residual =
                    factor[lane].mul_add(z[lane], shift) - is(lanes.first[lane], lanes.q_first[lane]);
                z[lane] = residual - is(lanes.second[lane], lanes.q_second[lane]);
            }
        }
        for (lane, (at, _)) in lanes.places[..lanes.n].iter().enumerate() {
            for (z, logit) in z.iter().zip(&mut outputs.values[*at..][..n]) {
                *logit = z[lane];
            }
        }
        lanes.n = 0;
    }

    #[inline(always)]
    fn cross_entropy(&self, logits: &mut [f32], first: u32, second: u32, share: f32, scale: f32) -> RowLoss {
        let top = max(logits);
        for z in logits.iter_mut() {
            *z -= top;
        }
        let wanted = logits[first as usize];
        let is_right = wanted == 0.0 && !logits[..first as usize].contains(&0.0);
        let spread = self.spread();
        let Mass {
            q_first,
            q_second,
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
        let loss = f64::from(mass) * f64::from(ln_of_finite(total)) - weighted;
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
    fn a_logit_that_is_no_number_is_seen_in_the_loss_alone_and_beside_others() {
        let targets = Targets::Classes(vec![0, 1]);
        for n in [1, 2, 3, 7, 16, 17] {
            let loss = Loss::new(Task::SingleLabel, 0.0, &ClassWeights::None, &targets, n).unwrap();
            for bad in [f32::NAN, f32::INFINITY] {
                for at in 0..n {
                    let wanted = Wanted::Class {
                        first: 0,
                        second: 0,
                        share: 1.0,
                    };
                    // The second row of three has it.
                    let mut values: Vec<f32> = (0..3 * n).map(|c| (c % 5) as f32 - 2.0).collect();
                    values[n + at] = bad;
                    let alone: Vec<bool> = (values.clone().chunks_exact_mut(n))
                        .map(|row| loss.row(row, wanted, 1.0).loss.is_finite())
                        .collect();
                    let mut losses = [RowLoss::default(); 3];
                    let outputs = Outputs {
                        values: &mut values,
                        stride: n,
                        heads: 1,
                        losses: &mut losses,
                    };
                    loss.rows(outputs, 1.0, |_| wanted, |_| true);
                    assert_eq!(alone, [true, false, true], "{bad} at {at} of {n}");
                    assert_eq!(losses.map(|row| row.loss.is_finite()), [true, false, true]);
                }
            }
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
    fn rows_and_heads_are_each_as_if_alone() {
        let given = |n: usize| ClassWeights::Given((0..n).map(|c| 0.5 + c as f64 * 0.7).collect());
        for (n, heads, n_rows) in [(2, 52, 3), (3, 1, 37), (10, 7, 2), (16, 17, 5), (21, 5, 3)] {
            let targets = Targets::Classes(vec![0, 1]);
            for weights in [ClassWeights::None, given(n)] {
                for (smoothing, share) in [(0.0, 1.0), (0.1, 1.0), (0.3, 0.7)] {
                    let loss = Loss::new(Task::SingleLabel, smoothing, &weights, &targets, n).unwrap();
                    // In some rows both classes are one.
                    let wanted = |row: usize| Wanted::Class {
                        first: (row * 5 % n) as u32,
                        second: ((row * 3 + 1) % n) as u32,
                        share: if row == 1 { 1.0 } else { share },
                    };
                    // Ties and a class that is out of the question are among them.
                    let stride = heads * n + 3;
                    let logits: Vec<f32> = (0..n_rows * stride)
                        .map(|i| match i * 31 % 23 {
                            0 => -200.0,
                            v => (v / 2) as f32 * 0.7,
                        })
                        .collect();
                    let mut together = logits.clone();
                    let mut losses = vec![RowLoss::default(); n_rows * heads];
                    let outputs = Outputs {
                        values: &mut together,
                        stride,
                        heads,
                        losses: &mut losses,
                    };
                    loss.rows(outputs, 0.25, wanted, |head| head != 1);
                    for (row, head) in (0..n_rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
                        let at = row * stride + head * n;
                        let mut alone = logits[at..][..n].to_vec();
                        let mut expected = loss.row(&mut alone, wanted(row), 0.25);
                        if head == 1 {
                            expected = RowLoss::default();
                            alone.fill(0.0);
                        }
                        assert_eq!(
                            losses[row * heads + head],
                            expected,
                            "{n} classes, row {row}, head {head}"
                        );
                        assert_eq!(together[at..][..n], alone, "{n} classes, row {row}, head {head}");
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
