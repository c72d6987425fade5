//! What stands between two linear layers: a norm, an activation, dropout; forward and backward, on rows of a block.

use pulp::Arch;

use super::config::{Activation, Norm};
use super::counter::{AT_ONCE, Counter};
use super::dense::Array;
use super::kernel::LANES;
use super::math::{erf, exp, sum};
use super::optimiser::State;

/// torch's default of both norms.
pub(super) const EPS: f32 = 1e-5;
/// torch's default share of a batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// `torch.nn.BatchNorm1d` or `torch.nn.LayerNorm` in training: factors and then summands `[2, width]`, `width` a multiple
/// of sixteen with zeros behind the n-th.
#[derive(Debug, Clone)]
pub(super) struct Norms {
    pub(super) kind: Norm,
    pub(super) n: usize,
    arrays: [Vec<f32>; 4],
    pub(super) gradient: Vec<f32>,
    /// Of a batch norm, `[width]`.
    pub(super) running_mean: Vec<f32>,
    pub(super) running_var: Vec<f32>,
    pub(super) n_batches: i64,
    /// Of the batch at hand: mean, `1 / √(var + ε)` and the unbiased variance, and for the way back the means of the gradient and of its product
    /// with the normalised numbers.
    mean: Vec<f32>,
    inverse: Vec<f32>,
    unbiased: Vec<f32>,
    mean_gradient: Vec<f32>,
    mean_product: Vec<f32>,
}

impl Norms {
    pub(super) fn new(kind: Norm, n: usize, n_moments: usize, has_ema: bool) -> Norms {
        let width = n.next_multiple_of(LANES);
        let array = |is_there: bool| vec![0.0; if is_there { 2 * width } else { 0 }];
        let mut weights = array(true);
        weights[..n].fill(1.0);
        let mut running_var = vec![0.0; width];
        running_var[..n].fill(1.0);
        Norms {
            kind,
            n,
            arrays: [
                weights,
                array(n_moments > 0),
                array(n_moments > 1),
                array(has_ema),
            ],
            gradient: array(true),
            running_mean: vec![0.0; width],
            running_var,
            n_batches: 0,
            mean: vec![0.0; width],
            inverse: vec![0.0; width],
            unbiased: vec![0.0; width],
            mean_gradient: vec![0.0; width],
            mean_product: vec![0.0; width],
        }
    }

    pub(super) fn width(&self) -> usize {
        self.n.next_multiple_of(LANES)
    }

    /// Factors and summands, `n` each.
    pub(super) fn export(&self, array: Array) -> [Vec<f32>; 2] {
        let (factors, summands) = self.arrays[array as usize].split_at(self.width());
        [factors[..self.n].to_vec(), summands[..self.n].to_vec()]
    }

    pub(super) fn import(&mut self, array: Array, factors: &[f32], summands: &[f32]) {
        let width = self.width();
        let (to_factors, to_summands) = self.arrays[array as usize].split_at_mut(width);
        to_factors[..self.n].copy_from_slice(factors);
        to_summands[..self.n].copy_from_slice(summands);
    }

    pub(super) fn state(&mut self) -> (State<'_>, &[f32]) {
        let [weights, first, second, ema] = &mut self.arrays;
        let state = State {
            weights,
            moments: [first, second],
            ema,
        };
        (state, &self.gradient)
    }

    fn factors(&self) -> &[f32] {
        &self.arrays[0][..self.width()]
    }

    fn summands(&self) -> &[f32] {
        &self.arrays[0][self.width()..]
    }

    /// Takes mean and variance of the batch's rows.
    pub(super) fn see<'r>(&mut self, rows: impl Iterator<Item = &'r [f32]> + Clone) {
        let count = rows.clone().count() as f64;
        let width = self.width();
        let mean = column_sums(rows.clone(), width, |x, _| x, &vec![0.0; width]);
        let mean: Vec<f64> = mean.iter().map(|sum| sum / count).collect();
        let squares = column_sums(rows, width, |x, mean| (x - mean) * (x - mean), &mean);
        for i in 0..self.n {
            let var = squares[i] / count;
            self.mean[i] = mean[i] as f32;
            self.inverse[i] = (1.0 / (var + f64::from(EPS)).sqrt()) as f32;
            self.unbiased[i] = (squares[i] / (count - 1.0)) as f32;
        }
    }

    /// Moves the running statistics towards the batch's.
    pub(super) fn remember(&mut self) {
        let moved =
            |old: f32, new: f32| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * f64::from(new)) as f32;
        for i in 0..self.n {
            self.running_mean[i] = moved(self.running_mean[i], self.mean[i]);
            self.running_var[i] = moved(self.running_var[i], self.unbiased[i]);
        }
        self.n_batches += 1;
    }

    /// Uses the running statistics.
    pub(super) fn recall(&mut self) {
        self.mean.copy_from_slice(&self.running_mean);
        for i in 0..self.n {
            self.inverse[i] = 1.0 / (self.running_var[i] + EPS).sqrt();
        }
    }

    /// Sums up the gradients of factors and summands over the batch: `pairs` are rows of the gradient behind the norm and
    /// the normalised numbers.
    pub(super) fn sum_up<'r>(&mut self, pairs: impl Iterator<Item = (&'r [f32], &'r [f32])> + Clone) {
        let width = self.width();
        let count = pairs.clone().count() as f64;
        let mut factors = vec![0.0f64; width];
        let mut summands = vec![0.0f64; width];
        for (gradient, normal) in pairs {
            for i in 0..width {
                factors[i] += f64::from(gradient[i]) * f64::from(normal[i]);
                summands[i] += f64::from(gradient[i]);
            }
        }
        for i in 0..self.n {
            self.gradient[i] = factors[i] as f32;
            self.gradient[width + i] = summands[i] as f32;
            self.mean_product[i] = (factors[i] / count) as f32;
            self.mean_gradient[i] = (summands[i] / count) as f32;
        }
    }
}

fn column_sums<'r>(
    rows: impl Iterator<Item = &'r [f32]>,
    width: usize,
    f: impl Fn(f64, f64) -> f64,
    with: &[f64],
) -> Vec<f64> {
    let mut sums = vec![0.0f64; width];
    for row in rows {
        for i in 0..width {
            sums[i] += f(f64::from(row[i]), with[i]);
        }
    }
    sums
}

/// Dropout of one layer in one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout {
    pub(super) counter: Counter,
    pub(super) p: f32,
    pub(super) step: u64,
    pub(super) layer: u32,
}

impl Dropout {
    /// What sixteen numbers of a row are multiplied with.
    #[inline(always)]
    fn factors(&self, row: u32, block: u32) -> [f32; AT_ONCE] {
        let keep = 1.0 / (1.0 - self.p);
        let uniform = self.counter.uniform(self.step, row, block | self.layer << 24);
        uniform.map(|u| if u < self.p { 0.0 } else { keep })
    }
}

/// Rows between two linear layers.
pub(super) struct Rows<'r> {
    pub(super) arch: Arch,
    pub(super) norms: Option<&'r Norms>,
    pub(super) activation: Activation,
    pub(super) dropout: Option<Dropout>,
    /// Numbers of a row that mean something, and from one row to the next.
    pub(super) n: usize,
    pub(super) stride: usize,
    /// The first row's place in the batch.
    pub(super) first: u32,
    /// What the linear layer gave; after the way forward the normalised numbers, where there is a norm.
    pub(super) inner: &'r mut [f32],
    /// `1 / σ` of each row of a layer norm.
    pub(super) inverse: &'r mut [f32],
    /// What the next layer takes, or on the way back the gradient.
    pub(super) outer: &'r mut [f32],
}

impl Rows<'_> {
    /// Forward: fills `outer`, each row with a one behind it.
    pub(super) fn forward(self) {
        self.arch.dispatch(Forward(self));
    }

    /// Back through dropout and activation, in place.
    pub(super) fn backward(self) {
        self.arch.dispatch(Backward(self));
    }

    /// Back through the norm, in place, once the batch has been summed up.
    pub(super) fn backward_norm(self) {
        match self.norms.map(|norms| norms.kind) {
            Some(Norm::Batch) => self.arch.dispatch(BackwardBatch(self)),
            Some(Norm::Layer) => self.arch.dispatch(BackwardLayer(self)),
            Some(Norm::None) | None => {}
        }
    }
}

struct Forward<'r>(Rows<'r>);

impl pulp::NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Rows {
            norms,
            activation,
            dropout,
            n,
            stride,
            first,
            inner,
            inverse,
            outer,
            ..
        } = self.0;
        let width = n.next_multiple_of(LANES);
        let rows = inner.chunks_exact_mut(stride).zip(outer.chunks_exact_mut(stride));
        for (row, (inner, outer)) in rows.enumerate() {
            let (inner, outer_row) = (&mut inner[..width], &mut outer[..width]);
            match norms {
                None => outer_row.copy_from_slice(inner),
                Some(norms) => {
                    if norms.kind == Norm::Layer {
                        let count = n as f32;
                        let mean = sum(&inner[..n]) / count;
                        inner[..n].iter_mut().for_each(|x| *x -= mean);
                        let square = super::math::dot(&inner[..n], &inner[..n]) / count;
                        inverse[row] = 1.0 / (square + EPS).sqrt();
                        inner[..n].iter_mut().for_each(|x| *x *= inverse[row]);
                    } else {
                        for i in 0..width {
                            inner[i] = (inner[i] - norms.mean[i]) * norms.inverse[i];
                        }
                    }
                    let (factors, summands) = (&norms.factors()[..width], &norms.summands()[..width]);
                    for i in 0..width {
                        outer_row[i] = factors[i].mul_add(inner[i], summands[i]);
                    }
                }
            }
            match activation {
                Activation::Relu => outer_row
                    .iter_mut()
                    .for_each(|y| *y = if *y > 0.0 { *y } else { 0.0 * *y }),
                Activation::Gelu => outer_row.iter_mut().for_each(|y| *y *= normal_share(*y)),
            }
            if let Some(dropout) = dropout {
                for (block, y) in outer_row.chunks_exact_mut(AT_ONCE).enumerate() {
                    let factors = dropout.factors(first + row as u32, block as u32);
                    y.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor);
                }
            }
            outer[n..].fill(0.0);
            outer[n] = 1.0;
        }
    }
}

/// Φ, the share of the standard normal distribution below `x`.
#[inline(always)]
fn normal_share(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

struct Backward<'r>(Rows<'r>);

impl pulp::NullaryFnOnce for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        /// `1 / √(2π)`.
        const DENSITY: f32 = 0.398_942_3;
        let Rows {
            norms,
            activation,
            dropout,
            n,
            stride,
            first,
            inner,
            outer,
            ..
        } = self.0;
        let width = n.next_multiple_of(LANES);
        let rows = inner.chunks_exact(stride).zip(outer.chunks_exact_mut(stride));
        for (row, (inner, outer)) in rows.enumerate() {
            let gradient = &mut outer[..width];
            if let Some(dropout) = dropout {
                for (block, g) in gradient.chunks_exact_mut(AT_ONCE).enumerate() {
                    let factors = dropout.factors(first + row as u32, block as u32);
                    g.iter_mut().zip(factors).for_each(|(g, factor)| *g *= factor);
                }
            }
            let before = |i: usize| match norms {
                None => inner[i],
                Some(norms) => norms.factors()[i].mul_add(inner[i], norms.summands()[i]),
            };
            for (i, g) in gradient.iter_mut().enumerate() {
                let y = before(i);
                *g *= match activation {
                    Activation::Relu => f32::from(u8::from(y > 0.0)),
                    Activation::Gelu => (y * DENSITY).mul_add(exp(-0.5 * y * y), normal_share(y)),
                };
            }
            outer[n..].fill(0.0);
        }
    }
}

struct BackwardLayer<'r>(Rows<'r>);

impl pulp::NullaryFnOnce for BackwardLayer<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Rows {
            norms,
            n,
            stride,
            inner,
            inverse,
            outer,
            ..
        } = self.0;
        let norms = norms.expect("called where there is a norm");
        let factors = &norms.factors()[..n];
        let rows = inner.chunks_exact(stride).zip(outer.chunks_exact_mut(stride));
        for ((normal, gradient), inverse) in rows.zip(inverse.iter()) {
            let (normal, gradient) = (&normal[..n], &mut gradient[..n]);
            gradient
                .iter_mut()
                .zip(factors)
                .for_each(|(g, factor)| *g *= factor);
            let mean = sum(gradient) / n as f32;
            let product = super::math::dot(gradient, normal) / n as f32;
            for (g, x) in gradient.iter_mut().zip(normal) {
                *g = inverse * ((-product).mul_add(*x, *g - mean));
            }
        }
    }
}

struct BackwardBatch<'r>(Rows<'r>);

impl pulp::NullaryFnOnce for BackwardBatch<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Rows {
            norms,
            n,
            stride,
            inner,
            outer,
            ..
        } = self.0;
        let norms = norms.expect("called where there is a norm");
        let factors = &norms.factors()[..n];
        let rows = inner.chunks_exact(stride).zip(outer.chunks_exact_mut(stride));
        for (normal, gradient) in rows {
            for i in 0..n {
                let centred =
                    (-norms.mean_product[i]).mul_add(normal[i], gradient[i] - norms.mean_gradient[i]);
                gradient[i] = factors[i] * norms.inverse[i] * centred;
            }
        }
    }
}
