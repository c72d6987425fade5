//! The layers of a head, each `torch.nn`'s of the same name, in evaluation mode.

use serde::{Deserialize, Serialize};

use crate::solve::matmul_transposed;

/// One step from features to logits.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// `y = x · weightᵀ + bias`.
    Linear(Linear),
    /// Normalisation of each feature by statistics of the training rows.
    BatchNorm1d(BatchNorm1d),
    /// Normalisation of each row.
    LayerNorm(LayerNorm),
    /// `max(x, 0)`.
    Relu,
    /// `x · Φ(x)` with the error function, torch's default.
    Gelu,
    /// Nothing, outside of training.
    Dropout {
        /// The probability that a number is dropped.
        p: f32,
    },
}

/// `torch.nn.Linear`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[out, in]` row-major.
    pub weight: Vec<f32>,
    /// `[out]`.
    pub bias: Vec<f32>,
    /// Numbers that it takes.
    pub n_in: usize,
    /// Numbers that it gives.
    pub n_out: usize,
}

/// `torch.nn.BatchNorm1d`; all arrays `[D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm1d {
    /// Factor after normalisation.
    pub weight: Vec<f32>,
    /// Summand after normalisation.
    pub bias: Vec<f32>,
    /// Mean of the training rows.
    pub running_mean: Vec<f32>,
    /// Variance of the training rows.
    pub running_var: Vec<f32>,
    /// Batches that went into both.
    pub num_batches_tracked: i64,
    /// Added to the variance.
    pub eps: f32,
}

/// `torch.nn.LayerNorm`; all arrays `[D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// Factor after normalisation.
    pub weight: Vec<f32>,
    /// Summand after normalisation.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

/// What a layer is, without its numbers: how a file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(super) enum Kind {
    Linear,
    BatchNorm1d { eps: f32 },
    LayerNorm { eps: f32 },
    Relu,
    Gelu,
    Dropout { p: f32 },
}

impl Layer {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Layer::Linear(_) => Kind::Linear,
            Layer::BatchNorm1d(norm) => Kind::BatchNorm1d { eps: norm.eps },
            Layer::LayerNorm(norm) => Kind::LayerNorm { eps: norm.eps },
            Layer::Relu => Kind::Relu,
            Layer::Gelu => Kind::Gelu,
            Layer::Dropout { p } => Kind::Dropout { p: *p },
        }
    }

    /// Numbers that it gives for rows of `n_in`; none where it does not take those or its own arrays disagree.
    pub(super) fn n_out(&self, n_in: usize) -> Option<usize> {
        match self {
            Layer::Linear(linear) => {
                let fits = linear.n_in == n_in
                    && linear.n_out > 0
                    && linear.bias.len() == linear.n_out
                    && Some(linear.weight.len()) == linear.n_in.checked_mul(linear.n_out);
                fits.then_some(linear.n_out)
            }
            Layer::BatchNorm1d(norm) => {
                let arrays = [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var];
                arrays.iter().all(|array| array.len() == n_in).then_some(n_in)
            }
            Layer::LayerNorm(norm) => (norm.weight.len() == n_in && norm.bias.len() == n_in).then_some(n_in),
            Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => Some(n_in),
        }
    }

    /// Applies the layer to rows of `n_in` numbers; `out` is what comes of them, `rows` may be changed.
    pub(super) fn apply(&self, rows: &mut Vec<f32>, n_in: usize, out: &mut Vec<f32>) {
        match self {
            Layer::Linear(linear) => {
                linear.apply(rows, out);
                return;
            }
            Layer::BatchNorm1d(norm) => {
                let scales: Vec<f32> = norm
                    .weight
                    .iter()
                    .zip(&norm.running_var)
                    .map(|(weight, var)| weight / (var + norm.eps).sqrt())
                    .collect();
                for row in rows.chunks_exact_mut(n_in) {
                    for (((x, mean), scale), bias) in row
                        .iter_mut()
                        .zip(&norm.running_mean)
                        .zip(&scales)
                        .zip(&norm.bias)
                    {
                        *x = (*x - mean) * scale + bias;
                    }
                }
            }
            Layer::LayerNorm(norm) => {
                for row in rows.chunks_exact_mut(n_in) {
                    let n = n_in as f64;
                    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
                    let var = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
                    let scale = (1.0 / (var + f64::from(norm.eps)).sqrt()) as f32;
                    let mean = mean as f32;
                    for ((x, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
                        *x = (*x - mean) * scale * weight + bias;
                    }
                }
            }
            Layer::Relu => rows.iter_mut().for_each(|x| *x = x.max(0.0)),
            Layer::Gelu => rows.iter_mut().for_each(|x| *x = gelu(*x)),
            Layer::Dropout { .. } => {}
        }
        std::mem::swap(rows, out);
    }
}

impl Linear {
    /// `[N, out]` of `[N, in]`.
    pub(super) fn apply(&self, rows: &[f32], out: &mut Vec<f32>) {
        out.resize(rows.len() / self.n_in * self.n_out, 0.0);
        matmul_transposed(rows, &self.weight, out, self.n_in);
        for row in out.chunks_exact_mut(self.n_out) {
            row.iter_mut()
                .zip(&self.bias)
                .for_each(|(out, bias)| *out += bias);
        }
    }
}

/// `x · Φ(x)`.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}
