//! Losses of rows, and what the logits become: the residuals, derivatives of the loss by the logits.
//!
//! Near certainty `1 - p` and `log p` lose all their digits and the sum of the other probabilities none; so that is what
//! everything is made of.

use super::rows::MAX_CHUNK;
use super::scalar::{exp, ln_1p};
use super::targets::{Sigmoid, Softmax};

/// What a chunk of rows adds to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    /// Losses.
    pub(super) loss: f64,
    /// Curvatures: the mean of the nonzero eigenvalues of the loss's second derivative by the logits.
    pub(super) curvature: f64,
}

/// Turns logits `[K, stride]` of `n` rows, the first of which is `first`, into residuals.
pub(super) fn softmax(z: &mut [f32], stride: usize, n: usize, first: usize, by: &Softmax) -> Share {
    let mut share = Share::default();
    for (at, labels) in by.labels[first..first + n].chunks(MAX_CHUNK).enumerate() {
        let part = pulp::Arch::new().dispatch(SoftmaxRows {
            z: &mut *z,
            stride,
            first: at * MAX_CHUNK,
            labels,
            by,
        });
        share.loss += part.loss;
        share.curvature += part.curvature;
    }
    share
}

struct SoftmaxRows<'a> {
    z: &'a mut [f32],
    stride: usize,
    /// The first of the rows among those of `z`.
    first: usize,
    labels: &'a [u32],
    by: &'a Softmax,
}

// A type and not a closure: a closure would not be compiled for the wider vectors.
impl pulp::NullaryFnOnce for SoftmaxRows<'_> {
    type Output = Share;

    #[inline(always)]
    fn call(self) -> Share {
        let SoftmaxRows {
            z,
            stride,
            first,
            labels,
            by,
        } = self;
        softmax_rows(z, stride, first, labels, by)
    }
}

#[inline(always)]
fn softmax_rows(z: &mut [f32], stride: usize, first: usize, labels: &[u32], by: &Softmax) -> Share {
    let n = labels.len();
    let here = first..first + n;
    let smooth = by.smooth_mass > 0.0;
    let (mut top, mut others, mut squares) = ([f32::MIN; MAX_CHUNK], [0f32; MAX_CHUNK], [0f32; MAX_CHUNK]);
    let (mut spread, mut at, mut wanted) = ([0f32; MAX_CHUNK], [0u32; MAX_CHUNK], [0f32; MAX_CHUNK]);
    at[..n].copy_from_slice(labels);
    for (row, k) in z.chunks_exact(stride).zip(&by.smooth) {
        let row = &row[here.clone()];
        for (top, z) in top[..n].iter_mut().zip(row) {
            *top = if *z > *top { *z } else { *top };
        }
        if smooth {
            for (spread, z) in spread[..n].iter_mut().zip(row) {
                *spread = k.mul_add(*z, *spread);
            }
        }
    }
    for (r, label) in labels.iter().enumerate() {
        wanted[r] = z[*label as usize * stride + first + r];
    }
    for (k, row) in z.chunks_exact_mut(stride).enumerate() {
        let k = k as u32;
        let row = &mut row[here.clone()];
        for r in 0..n {
            let e = exp(row[r] - top[r]);
            row[r] = e;
            squares[r] = e.mul_add(e, squares[r]);
            others[r] += if at[r] == k { 0.0 } else { e };
        }
    }
    let (mut odds, mut inverse, mut mine, mut factor) = (
        [0f32; MAX_CHUNK],
        [0f32; MAX_CHUNK],
        [0f32; MAX_CHUNK],
        [0f32; MAX_CHUNK],
    );
    for (r, label) in labels.iter().enumerate() {
        mine[r] = z[*label as usize * stride + first + r];
        factor[r] = by.main[*label as usize];
    }
    for r in 0..n {
        inverse[r] = 1.0 / (others[r] + mine[r]);
        odds[r] = ln_1p(others[r] / mine[r]);
    }
    let mut share = Share::default();
    let spread_classes = 1.0 / (by.main.len() - 1) as f64;
    for r in 0..n {
        let total = f64::from(others[r] + mine[r]);
        let log_odds = if wanted[r] - top[r] < -80.0 {
            // The exponential of the label's logit is not a number of float32's any more; its logarithm is.
            total.ln() + f64::from(top[r] - wanted[r])
        } else {
            f64::from(odds[r])
        };
        share.loss += f64::from(factor[r]) * log_odds;
        if smooth {
            share.loss += by.smooth_mass * (total.ln() + f64::from(top[r])) - f64::from(spread[r]);
        }
        let even = 1.0 - f64::from(squares[r]) * f64::from(inverse[r]).powi(2);
        share.curvature += (f64::from(factor[r]) + by.smooth_mass) * even.max(0.0) * spread_classes;
    }
    let smooth_mass = by.smooth_mass as f32;
    let mut scale = [0f32; MAX_CHUNK];
    for r in 0..n {
        scale[r] = (factor[r] + smooth_mass) * inverse[r];
    }
    for (row, k) in z.chunks_exact_mut(stride).zip(&by.smooth) {
        for (z, scale) in row[here.clone()].iter_mut().zip(&scale[..n]) {
            *z = z.mul_add(*scale, -*k);
        }
    }
    for (r, label) in labels.iter().enumerate() {
        let label = *label as usize;
        let smoothed = smooth_mass * mine[r] * inverse[r] - by.smooth[label];
        z[label * stride + first + r] = smoothed - factor[r] * others[r] * inverse[r];
    }
    share
}

/// Turns logits of one output into residuals; `r` of each is the row `first + r`.
pub(super) fn sigmoid(z: &mut [f32], first: usize, output: usize, by: &Sigmoid) -> Share {
    let mut share = Share::default();
    for (at, z) in z.chunks_mut(MAX_CHUNK).enumerate() {
        let n = z.len();
        let (mut positive, mut negative) = ([0f32; MAX_CHUNK], [0f32; MAX_CHUNK]);
        by.masses(
            first + at * MAX_CHUNK,
            output,
            &mut positive[..n],
            &mut negative[..n],
        );
        let part = pulp::Arch::new().dispatch(SigmoidRows {
            z,
            positive: &positive[..n],
            negative: &negative[..n],
        });
        share.loss += part.loss;
        share.curvature += part.curvature;
    }
    share
}

struct SigmoidRows<'a> {
    z: &'a mut [f32],
    positive: &'a [f32],
    negative: &'a [f32],
}

impl pulp::NullaryFnOnce for SigmoidRows<'_> {
    type Output = Share;

    #[inline(always)]
    fn call(self) -> Share {
        let n = self.z.len();
        let (positive, negative) = (&self.positive[..n], &self.negative[..n]);
        let (mut losses, mut curvatures) = ([0f32; MAX_CHUNK], [0f32; MAX_CHUNK]);
        for r in 0..n {
            let z = self.z[r];
            let e = exp(-z.abs());
            let (sure, unsure) = (1.0 / (1.0 + e), e / (1.0 + e));
            let log = ln_1p(e);
            let (yes, no) = if z >= 0.0 { (sure, unsure) } else { (unsure, sure) };
            let (over, under) = if z >= 0.0 { (z + log, log) } else { (log, log - z) };
            losses[r] = negative[r] * over + positive[r] * under;
            curvatures[r] = (positive[r] + negative[r]) * sure * unsure;
            self.z[r] = negative[r] * yes - positive[r] * no;
        }
        Share {
            loss: losses[..n].iter().map(|l| f64::from(*l)).sum(),
            curvature: curvatures[..n].iter().map(|c| f64::from(*c)).sum(),
        }
    }
}

/// [`softmax`] for one row in float64.
pub(super) fn softmax_wide(z: &mut [f64], row: usize, by: &Softmax) -> Share {
    let label = by.labels[row] as usize;
    let main = f64::from(by.main[label]);
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let wanted = z[label] - top;
    let mut share = Share::default();
    if by.smooth_mass > 0.0 {
        let spread: f64 = z.iter().zip(&by.smooth).map(|(z, k)| z * f64::from(*k)).sum();
        share.loss -= spread;
    }
    let (mut others, mut squares) = (0.0, 0.0);
    for (k, z) in z.iter_mut().enumerate() {
        *z = (*z - top).exp();
        squares += *z * *z;
        others += if k == label { 0.0 } else { *z };
    }
    let mine = z[label];
    let total = others + mine;
    if by.smooth_mass > 0.0 {
        share.loss += by.smooth_mass * (total.ln() + top);
    }
    // Far below the top the quotient would overflow.
    let log_odds = if mine > 1e-300 {
        (others / mine).ln_1p()
    } else {
        total.ln() - wanted
    };
    share.loss += main * log_odds;
    let even = 1.0 - squares / (total * total);
    share.curvature = (main + by.smooth_mass) * even.max(0.0) / (z.len() - 1) as f64;
    for (z, k) in z.iter_mut().zip(&by.smooth) {
        *z = *z / total * (main + by.smooth_mass) - f64::from(*k);
    }
    z[label] = by.smooth_mass * mine / total - f64::from(by.smooth[label]) - main * others / total;
    share
}

/// [`sigmoid`] for one number in float64: the residual, and its share.
pub(super) fn sigmoid_wide(z: f64, positive: f32, negative: f32) -> (f64, Share) {
    let (positive, negative) = (f64::from(positive), f64::from(negative));
    let e = (-z.abs()).exp();
    let (sure, unsure) = (1.0 / (1.0 + e), e / (1.0 + e));
    let log = e.ln_1p();
    let (yes, no) = if z >= 0.0 { (sure, unsure) } else { (unsure, sure) };
    let share = Share {
        loss: negative * (z.max(0.0) + log) + positive * ((-z).max(0.0) + log),
        curvature: (positive + negative) * sure * unsure,
    };
    (negative * yes - positive * no, share)
}
