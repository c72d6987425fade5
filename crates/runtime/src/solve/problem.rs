//! One pass over the data: the losses at some weights, and their gradient.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;

use super::config::SolverConfig;
use super::gram::{FLUSH_ROWS, gram};
use super::kernel::Weights;
use super::linalg::{matmul_transposed, transposed_matmul};
use super::loss::{Share, sigmoid, sigmoid_wide, softmax, softmax_wide};
use super::precondition::{MAX_DENSE, Preconditioner};
use super::rows::{Rows, Scratch, Segments};
use super::targets::{Likelihood, Model, Sigmoid};
use super::vector::{add, total};
use crate::error::Error;
use crate::features::Features;
use crate::panels::vectorised;
use crate::scratch::AlignedVec;
use crate::targets::Targets;

/// What products are made in; sums of rows are always float64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// float32: enough wherever losses are not tiny differences of large logits.
    Single,
    /// float64, at two to three times the price.
    Double,
}

/// Losses and their gradient.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// One for all outputs of a softmax, one for each output otherwise.
    pub(super) losses: Vec<f64>,
    /// `[outputs, stride]`.
    pub(super) gradient: Vec<f64>,
    /// The mean curvature of a row, over the outputs.
    pub(super) curvature: f64,
}

/// Second moments that several problems use.
#[derive(Debug)]
struct Moments {
    /// The lower triangle.
    gram: Vec<f64>,
    /// Rows that it stands for.
    n_rows: usize,
}

/// What does not depend on C.
#[derive(Debug)]
pub(super) struct Problem<'p> {
    pub(super) rows: Rows<'p>,
    pub(super) model: Model,
    /// Made when first asked for, by whichever part asks.
    gram: Arc<OnceLock<Moments>>,
    segments: Segments,
    rooms: Vec<Mutex<Room>>,
}

/// What a segment works in, kept from pass to pass.
#[derive(Debug, Default)]
struct Room {
    scratch: Scratch,
    panels: AlignedVec,
    logits: AlignedVec,
    product: AlignedVec,
    wide_rows: Vec<f64>,
    wide_logits: Vec<f64>,
    wide_product: Vec<f64>,
    sums: Vec<f64>,
    losses: Vec<f64>,
    curvature: f64,
}

impl<'p> Problem<'p> {
    /// Of targets that have been checked.
    pub(super) fn new(
        features: &'p Features,
        targets: &Targets,
        n_outputs: usize,
        config: &SolverConfig,
    ) -> Problem<'p> {
        let model = Model::new(targets, n_outputs, config);
        let rows = Rows::with_classes(features, config.standardise, model.classes());
        Problem::of(rows, model, Arc::default())
    }

    /// Of some of the rows. The moments of whichever part needs them first stand for all, which differ too little for a preconditioner to notice.
    pub(super) fn part<'q>(
        &self,
        features: &'q Features,
        targets: &Targets,
        n_outputs: usize,
        config: &SolverConfig,
    ) -> Problem<'q> {
        if config.standardise {
            // Another scale: nothing to share.
            return Problem::new(features, targets, n_outputs, config);
        }
        let model = Model::new(targets, n_outputs, config);
        let rows = Rows::centred(features, self.rows.centre.clone(), model.classes());
        Problem::of(rows, model, Arc::clone(&self.gram))
    }

    fn of(rows: Rows<'p>, model: Model, gram: Arc<OnceLock<Moments>>) -> Problem<'p> {
        let n_sums = model.n_fitted * rows.stride;
        let segments = Segments::new(rows.n_rows(), n_sums, n_sums);
        Problem {
            rooms: (0..segments.len()).map(|_| Mutex::default()).collect(),
            rows,
            model,
            gram,
            segments,
        }
    }

    /// An approximate inverse Hessian for a C and the curvature of a row.
    ///
    /// # Errors
    /// [`Error::Features`] where the numbers are beyond what can be factored.
    pub(super) fn preconditioner(&self, c: f64, curvature: f64) -> Result<Preconditioner, Error> {
        let d = self.rows.n_features();
        let weight = c * curvature.max(1e-30);
        let trace: f64 = self.rows.squares.iter().sum();
        // Where the penalty outweighs all features together, the diagonal is all there is to it.
        if d > MAX_DENSE || weight * trace < 0.5 {
            return Ok(Preconditioner::diagonal(&self.rows, weight));
        }
        let n_rows = self.rows.n_rows();
        let moments = self.gram.get_or_init(|| Moments {
            gram: gram(&self.rows, self.affordable_rows(), None),
            n_rows,
        });
        let share = n_rows as f64 / moments.n_rows as f64;
        Preconditioner::dense(&moments.gram, &self.rows, weight * share)
    }

    /// Rows that second moments are made of.
    fn affordable_rows(&self) -> usize {
        /// Passes that they may cost: of those over few outputs, reading the rows is most.
        const PASSES: usize = 4;
        const FEW_OUTPUTS: usize = 6;
        /// Rows for a feature. At two, fits on 20,000 rows of 2,048 features take one to six passes more than at three, which
        /// to a gap of 1e-4 are cheaper than that third; eighteen are as good as a hundred.
        const ROWS_PER_FEATURE: (usize, usize) = (2, 16);
        let (d, n) = (self.rows.n_features(), self.rows.n_rows());
        (PASSES * 4 * n * self.model.n_fitted.max(FEW_OUTPUTS) / d)
            .clamp(ROWS_PER_FEATURE.0 * d, ROWS_PER_FEATURE.1 * d)
            .min(n)
    }

    /// [`preconditioner`](Problem::preconditioner) with the curvature that each row has at `theta`. Where most rows are
    /// sure, as on data that can be separated, the few that are not are all that counts.
    ///
    /// # Errors
    /// As there.
    pub(super) fn preconditioner_at(&self, c: f64, theta: &[f64]) -> Result<Preconditioner, Error> {
        /// A little of every row keeps every direction of the features in the sum.
        const LEAST: f32 = 1e-3;
        /// Where a step went so far that all rows are sure, no row has a curvature, and yet the bias needs one.
        const LEAST_MEAN: f64 = 1e-6;
        let outputs: Vec<usize> = (0..self.model.n_fitted).collect();
        let mut weights = vec![0.0f32; self.rows.n_rows()];
        self.curvatures(theta, &outputs, &mut weights);
        let mean = weights.iter().map(|w| f64::from(*w)).sum::<f64>() / weights.len() as f64;
        let mean = mean.max(LEAST_MEAN);
        weights.iter_mut().for_each(|w| *w = w.max(LEAST * mean as f32));
        let moments = gram(&self.rows, self.affordable_rows(), Some(&weights));
        Preconditioner::dense(&moments, &self.rows, c)
    }

    /// One pass: `theta` is `[outputs, stride]`, weights and bias of the outputs that are named.
    pub(super) fn evaluate(&self, theta: &[f64], outputs: &[usize], precision: Precision) -> Evaluation {
        let stride = self.rows.stride;
        let k = outputs.len();
        assert_eq!(theta.len(), k * stride);
        let weights = match precision {
            Precision::Single => Weights::new(theta, stride),
            Precision::Double => Weights::new(&[], stride),
        };
        let n_losses = if self.model.is_separate() { k } else { 1 };
        self.segments.each(&self.rooms, |range, room| {
            room.sums.resize(k * stride, 0.0);
            room.losses.clear();
            room.losses.resize(n_losses, 0.0);
            room.curvature = 0.0;
            match precision {
                Precision::Single => self.pass(&weights, outputs, range, room),
                Precision::Double => self.wide_pass(theta, outputs, range, room),
            }
        });
        let rooms = self.rooms();
        let curvature: f64 = rooms.iter().map(|room| room.curvature).sum();
        Evaluation {
            losses: total_of(&rooms, |room| &room.losses),
            gradient: total_of(&rooms, |room| &room.sums),
            curvature: curvature / (self.rows.n_rows() * n_losses) as f64,
        }
    }

    /// [`evaluate`](Problem::evaluate) where outputs have no weights yet, at their biases. Where rows have one class, all of a
    /// class have the same residuals there, and their sum is enough.
    pub(super) fn evaluate_biases(&self, outputs: &[usize], biases: &[f64]) -> Evaluation {
        let (stride, d, k) = (self.rows.stride, self.rows.n_features(), biases.len());
        if let (Likelihood::Sigmoid(Sigmoid::Classes { masses, .. }), Some(sums)) =
            (&self.model.likelihood, self.rows.class_sums())
        {
            return self.evaluate_bias(masses, biases[0], sums);
        }
        let Likelihood::Softmax(by) = &self.model.likelihood else {
            let mut theta = vec![0.0; k * stride];
            for (theta, bias) in theta.chunks_exact_mut(stride).zip(biases) {
                theta[d] = *bias;
            }
            return self.evaluate(&theta, outputs, Precision::Single);
        };
        let top = biases.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = biases.iter().map(|bias| (bias - top).exp()).sum();
        let log_total = top + total.ln();
        let p: Vec<f64> = biases.iter().map(|bias| (bias - log_total).exp()).collect();
        let even = (1.0 - p.iter().map(|p| p * p).sum::<f64>()).max(0.0);
        let smooth: f64 = by.smooth.iter().zip(biases).map(|(s, b)| f64::from(*s) * b).sum();
        let sums = self.class_sums(&by.labels, k);
        let mut found = Evaluation {
            losses: vec![0.0],
            gradient: vec![0.0; k * stride],
            curvature: 0.0,
        };
        // A row of the class c has the residual (main_c + smooth_mass) p_k - smooth_k, less main_c where k = c.
        let (mut all, mut weighted) = (vec![0.0; stride], vec![0.0; stride]);
        for (class, sums) in sums.chunks_exact(stride).enumerate() {
            let (n, main) = (sums[d], f64::from(by.main[class]));
            let mass = main + by.smooth_mass;
            found.losses[0] += n * (main * (log_total - biases[class]) + by.smooth_mass * log_total - smooth);
            found.curvature += n * mass * even / (k - 1) as f64;
            add(&mut all, 1.0, sums);
            add(&mut weighted, mass, sums);
        }
        found.curvature /= self.rows.n_rows() as f64;
        let outputs = found.gradient.par_chunks_exact_mut(stride).enumerate();
        outputs.for_each(|(class, out)| {
            let own = &sums[class * stride..(class + 1) * stride];
            let (main, smooth) = (f64::from(by.main[class]), f64::from(by.smooth[class]));
            for (out, ((weighted, all), own)) in out.iter_mut().zip(weighted.iter().zip(&all).zip(own)) {
                *out = p[class] * weighted - smooth * all - main * own;
            }
        });
        found
    }

    /// Of two classes that one output tells apart.
    fn evaluate_bias(&self, masses: &[(f32, f32); 2], bias: f64, sums: &[f64]) -> Evaluation {
        let (stride, d) = (self.rows.stride, self.rows.n_features());
        let mut found = Evaluation {
            losses: vec![0.0],
            gradient: vec![0.0; stride],
            curvature: 0.0,
        };
        for (sums, (yes, no)) in sums.chunks_exact(stride).zip(*masses) {
            let (residual, share) = sigmoid_wide(bias, yes, no);
            found.losses[0] += sums[d] * share.loss;
            found.curvature += sums[d] * share.curvature;
            add(&mut found.gradient, residual, sums);
        }
        found.curvature /= self.rows.n_rows() as f64;
        found
    }

    /// Per class the sum of its prepared rows, `[K, stride]`.
    fn class_sums(&self, labels: &[u32], k: usize) -> Vec<f64> {
        if let Some(sums) = self.rows.class_sums() {
            return sums.to_vec();
        }
        let stride = self.rows.stride;
        self.segments.each(&self.rooms, |range, room| {
            room.sums.clear();
            room.sums.resize(k * stride, 0.0);
            for start in range.clone().step_by(self.rows.chunk_rows) {
                let chunk = start..(start + self.rows.chunk_rows).min(range.end);
                let labels = &labels[chunk.clone()];
                let rows = self.rows.chunk(chunk, &mut room.scratch).chunks_exact(stride);
                for (row, label) in rows.zip(labels) {
                    add(&mut room.sums[*label as usize * stride..][..stride], 1.0, row);
                }
            }
        });
        total_of(&self.rooms(), |room| &room.sums)
    }

    /// What the segments worked in.
    fn rooms(&self) -> Vec<MutexGuard<'_, Room>> {
        let rooms = self.rooms.iter();
        rooms
            .map(|room| room.lock().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    fn pass(&self, weights: &Weights, outputs: &[usize], range: std::ops::Range<usize>, room: &mut Room) {
        let stride = self.rows.stride;
        let chunk_rows = weights.chunk_rows(self.rows.chunk_rows);
        let k = outputs.len();
        room.logits.resize(k * chunk_rows);
        room.product.resize(k * stride);
        room.product.fill(0.0);
        let (mut n_unflushed, mut is_first) = (0, true);
        for start in range.clone().step_by(chunk_rows) {
            let end = (start + chunk_rows).min(range.end);
            let n = end - start;
            let rows = self.rows.chunk(start..end, &mut room.scratch);
            let chunk = weights.chunk(rows, &mut room.panels);
            let z = &mut room.logits;
            weights.logits(&chunk, z, chunk_rows);
            match &self.model.likelihood {
                Likelihood::Softmax(by) => {
                    let share = softmax(z, chunk_rows, n, start, by);
                    room.losses[0] += share.loss;
                    room.curvature += share.curvature;
                }
                Likelihood::Sigmoid(by) => {
                    let each = z.chunks_exact_mut(chunk_rows).zip(outputs).zip(&mut room.losses);
                    for ((z, output), loss) in each {
                        let share = sigmoid(&mut z[..n], start, *output, by);
                        *loss += share.loss;
                        room.curvature += share.curvature;
                    }
                }
            }
            chunk.accumulate(z, chunk_rows, stride, &mut room.product);
            n_unflushed += n;
            // A few rows more are not worth going through the sums once more.
            let is_enough = n_unflushed >= FLUSH_ROWS && range.end - end > FLUSH_ROWS / 2;
            if is_enough || end == range.end {
                flush(&mut room.product, &mut room.sums, is_first);
                (n_unflushed, is_first) = (0, false);
            }
        }
    }

    /// The mean curvature of each row over the outputs.
    fn curvatures(&self, theta: &[f64], outputs: &[usize], out: &mut [f32]) {
        let weights = Weights::new(theta, self.rows.stride);
        let chunk_rows = weights.chunk_rows(self.rows.chunk_rows);
        let k = outputs.len();
        out.par_chunks_mut(chunk_rows)
            .enumerate()
            .for_each_init(Room::default, |room, (chunk, out)| {
                let start = chunk * chunk_rows;
                room.logits.resize(k * chunk_rows);
                let rows = self.rows.chunk(start..start + out.len(), &mut room.scratch);
                let chunk = weights.chunk(rows, &mut room.panels);
                weights.logits(&chunk, &mut room.logits, chunk_rows);
                for (r, out) in out.iter_mut().enumerate() {
                    let z: Vec<f64> = (0..k)
                        .map(|k| f64::from(room.logits[k * chunk_rows + r]))
                        .collect();
                    *out = self.model.curvature(z, outputs, start + r) as f32;
                }
            });
    }

    fn wide_pass(&self, theta: &[f64], outputs: &[usize], range: std::ops::Range<usize>, room: &mut Room) {
        let (stride, chunk_rows) = (self.rows.stride, self.rows.chunk_rows);
        let k = outputs.len();
        room.wide_product.resize(k * stride, 0.0);
        room.sums.fill(0.0);
        for start in range.clone().step_by(chunk_rows) {
            let end = (start + chunk_rows).min(range.end);
            let n = end - start;
            let rows = self.rows.chunk(start..end, &mut room.scratch);
            room.wide_rows.clear();
            room.wide_rows.extend(rows.iter().map(|x| f64::from(*x)));
            room.wide_logits.resize(n * k, 0.0);
            let z = &mut room.wide_logits;
            matmul_transposed(&room.wide_rows, theta, z, stride);
            for (row, z) in (start..end).zip(z.chunks_exact_mut(k)) {
                match &self.model.likelihood {
                    Likelihood::Softmax(by) => {
                        let share = softmax_wide(z, row, by);
                        room.losses[0] += share.loss;
                        room.curvature += share.curvature;
                    }
                    Likelihood::Sigmoid(by) => {
                        for ((z, output), loss) in z.iter_mut().zip(outputs).zip(&mut room.losses) {
                            let (mut yes, mut no) = ([0.0], [0.0]);
                            by.masses(row, *output, &mut yes, &mut no);
                            let share: Share;
                            (*z, share) = sigmoid_wide(*z, yes[0], no[0]);
                            *loss += share.loss;
                            room.curvature += share.curvature;
                        }
                    }
                }
            }
            transposed_matmul(z, &room.wide_rows, &mut room.wide_product, k, stride);
            let sums = room.sums.iter_mut().zip(&room.wide_product);
            sums.for_each(|(sum, product)| *sum += product);
        }
    }
}

fn total_of(rooms: &[MutexGuard<'_, Room>], of: impl Fn(&Room) -> &[f64]) -> Vec<f64> {
    let vectors: Vec<&[f64]> = rooms.iter().map(|room| of(room)).collect();
    total(&vectors)
}

vectorised! {
    /// Adds float32 sums to those in float64, or puts them there where they are the first, and begins them anew.
    fn flush(product: &'a mut [f32], sums: &'a mut [f64], is_first: bool) {
        for (sum, product) in sums.iter_mut().zip(product) {
            *sum = f64::from(*product) + if is_first { 0.0 } else { *sum };
            *product = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::solve::config::ClassWeights;
    use crate::targets::Task;

    /// The loss of every row by its definition, in f64: torch's `CrossEntropyLoss` and `BCEWithLogitsLoss`, summed.
    fn loss_by_definition(
        logits: &[f64],
        label: usize,
        row: &[f32],
        config: &SolverConfig,
        weights: &[f64],
    ) -> f64 {
        let k = logits.len();
        let s = config.label_smoothing;
        if config.task == Task::SingleLabel {
            let total: f64 = logits.iter().map(|z| z.exp()).sum();
            let of_class = |class: usize| {
                let wanted = if class == label { 1.0 - s } else { 0.0 } + s / k as f64;
                -weights[class] * wanted * (logits[class] - total.ln())
            };
            return (0..k).map(of_class).sum();
        }
        let of_output = |output: usize| {
            let wanted = f64::from(row[output]) * (1.0 - s) + s / 2.0;
            let p = 1.0 / (1.0 + (-logits[output]).exp());
            -weights[output] * wanted * p.ln() - (1.0 - wanted) * (1.0 - p).ln()
        };
        (0..k).map(of_output).sum()
    }

    fn check(task: Task, k: usize, smoothing: f64, weights: Option<Vec<f64>>) {
        let (n, d) = (333, 20);
        let mut random = Random::new(4, "problem test");
        let mut uniform = || random.below(1 << 16) as f64 / 65536.0 - 0.5;
        let values = (0..n * d).map(|_| uniform() as f32).collect();
        let features = Features::new(values, d).unwrap();
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % k) as u32).collect();
        let dense: Vec<f32> = (0..n * k).map(|_| f32::from(u8::from(uniform() > 0.0))).collect();
        let targets = match task {
            Task::SingleLabel => Targets::Classes(labels.clone()),
            _ => Targets::dense(dense.clone(), k).unwrap(),
        };
        let config = SolverConfig {
            label_smoothing: smoothing,
            class_weights: weights.clone().map_or(ClassWeights::None, ClassWeights::Given),
            ..SolverConfig::new(task)
        };
        let weights = weights.unwrap_or(vec![1.0; k]);
        let problem = Problem::new(&features, &targets, k, &config);
        let one_vector = task == Task::SingleLabel && k == 2;
        let (m, stride) = (problem.model.n_fitted, problem.rows.stride);
        assert_eq!(m, if one_vector { 1 } else { k });
        let mut theta = vec![0.0; m * stride];
        (0..m * stride)
            .filter(|at| at % stride <= d)
            .for_each(|at| theta[at] = 4.0 * uniform());
        let outputs: Vec<usize> = (0..m).collect();
        let loss = |theta: &[f64]| -> f64 {
            let values = features.values();
            (0..n)
                .map(|row| {
                    let logit = |k: usize| {
                        let theta = &theta[k * stride..];
                        let terms = (0..d)
                            .map(|j| f64::from(values[row * d + j] - problem.rows.centre[j]) * theta[j]);
                        terms.sum::<f64>() + theta[d]
                    };
                    let mut logits: Vec<f64> = (0..m).map(logit).collect();
                    if one_vector {
                        logits.insert(0, 0.0);
                    }
                    loss_by_definition(
                        &logits,
                        labels[row] as usize,
                        &dense[row * k..],
                        &config,
                        &weights,
                    )
                })
                .sum()
        };
        let want = loss(&theta);
        // The masses of labels are float32 in both.
        for (precision, digits) in [(Precision::Single, 1e-6), (Precision::Double, 1e-7)] {
            let got = problem.evaluate(&theta, &outputs, precision);
            let total: f64 = got.losses.iter().sum();
            assert!(
                (total / want - 1.0).abs() < digits,
                "{precision:?}: {total} {want}"
            );
            assert!(got.curvature > 0.0 && got.curvature < 0.5 * weights.iter().copied().fold(1.0, f64::max));
            for at in (0..m * stride).filter(|at| at % stride <= d) {
                let mut moved = theta.clone();
                moved[at] += 1e-5;
                let above = loss(&moved);
                moved[at] -= 2e-5;
                let slope = (above - loss(&moved)) / 2e-5;
                let error = (got.gradient[at] - slope).abs();
                assert!(
                    error < 3e-6 * want.max(10.0),
                    "{precision:?} {at}: {} {slope}",
                    got.gradient[at]
                );
            }
        }
        let biases: Vec<f64> = (0..m).map(|_| 2.0 * uniform()).collect();
        theta.fill(0.0);
        (0..m).for_each(|k| theta[k * stride + d] = biases[k]);
        let want = problem.evaluate(&theta, &outputs, Precision::Double);
        let got = problem.evaluate_biases(&outputs, &biases);
        let pairs = got.losses.iter().zip(&want.losses);
        pairs
            .chain([(&got.curvature, &want.curvature)])
            .for_each(|(got, want)| {
                assert!((got / want - 1.0).abs() < 3e-6, "{got} {want}");
            });
        for (got, want) in got.gradient.iter().zip(&want.gradient) {
            assert!((got - want).abs() < 3e-6 * want.abs().max(100.0), "{got} {want}");
        }
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_definition() {
        check(Task::SingleLabel, 5, 0.0, None);
        check(Task::SingleLabel, 5, 0.1, Some(vec![1.0, 2.0, 0.5, 1.0, 3.0]));
        check(Task::SingleLabel, 2, 0.0, None);
        check(Task::SingleLabel, 2, 0.2, Some(vec![0.5, 3.0]));
        check(Task::MultiLabel, 3, 0.0, None);
        check(Task::MultiLabel, 3, 0.1, Some(vec![2.0, 1.0, 0.3]));
    }

    #[test]
    fn rows_that_are_all_sure_have_a_preconditioner_too() {
        let values = vec![0.0, 1.0, 0.0, -1.0, 1.0, 0.0, -1.0, 0.0];
        let (features, targets) = (
            Features::new(values, 2).unwrap(),
            Targets::Classes(vec![0, 1, 2, 3]),
        );
        let problem = Problem::new(&features, &targets, 4, &SolverConfig::new(Task::SingleLabel));
        let stride = problem.rows.stride;
        let mut theta = vec![0.0; 4 * stride];
        for (at, far) in [
            (1, 1e4),
            (stride + 1, -1e4),
            (2 * stride, 1e4),
            (3 * stride, -1e4),
        ] {
            theta[at] = far;
        }
        let found = problem.evaluate(&theta, &[0, 1, 2, 3], Precision::Single);
        assert!(found.losses[0] < 1e-30 && found.curvature == 0.0);
        let mut step = vec![1.0; 4 * stride];
        problem.preconditioner_at(1.0, &theta).unwrap().apply(&mut step);
        assert!(step.iter().all(|step| step.is_finite()));
    }
}
