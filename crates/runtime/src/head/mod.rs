//! Heads: what is trained on features, a linear layer or a perceptron of several; on the features as the backbone gives them.

mod file;
mod layer;

use rayon::prelude::*;

pub use layer::{BatchNorm1d, Layer, LayerNorm, Linear};

use crate::error::Error;
use crate::features::Features;
use crate::targets::Task;

/// Rows at a time: enough for the products, small enough for the caches.
const CHUNK_ROWS: usize = 256;

/// Told of a stretch of rows: the number of its first, and the logits of all.
pub type EachStretch<'e> = dyn FnMut(usize, &[f32]) -> Result<(), Error> + 'e;

/// Layers with what their outputs mean, as `torch.nn.Sequential` would apply them.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    task: Task,
    outputs: Vec<String>,
    layers: Vec<Layer>,
    n_features: usize,
}

impl Head {
    /// Layers that end with a [`Linear`] of one output for each name in `outputs`.
    ///
    /// # Errors
    /// [`Error::Features`] where the sizes of two neighbours disagree.
    pub fn new(task: Task, outputs: Vec<String>, layers: Vec<Layer>) -> Result<Head, Error> {
        let wrong = |text: String| Err(Error::Features(text));
        let first = layers.iter().find_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear.n_in),
            Layer::BatchNorm1d(norm) => Some(norm.weight.len()),
            Layer::LayerNorm(norm) => Some(norm.weight.len()),
            _ => None,
        });
        let Some(n_features) = first.filter(|n| *n > 0) else {
            return wrong("a head without a layer that says how many numbers it takes".to_owned());
        };
        let mut width = n_features;
        for (at, layer) in layers.iter().enumerate() {
            let Some(n_out) = layer.n_out(width) else {
                return wrong(format!(
                    "layer {at} of the head does not take rows of {width} numbers"
                ));
            };
            width = n_out;
        }
        if !matches!(layers.last(), Some(Layer::Linear(_))) {
            return wrong("the last layer of the head is not linear".to_owned());
        }
        if width != outputs.len() {
            return wrong(format!("a head of {width} outputs for {} names", outputs.len()));
        }
        Ok(Head {
            task,
            outputs,
            layers,
            n_features,
        })
    }

    /// One linear layer: `weight` `[C, D]` row-major, `bias` `[C]`.
    ///
    /// # Errors
    /// As [`Head::new`].
    pub fn linear(task: Task, outputs: Vec<String>, weight: Vec<f32>, bias: Vec<f32>) -> Result<Head, Error> {
        let n_out = bias.len();
        let n_in = weight.len() / n_out.max(1);
        let layer = Linear {
            weight,
            bias,
            n_in,
            n_out,
        };
        Head::new(task, outputs, vec![Layer::Linear(layer)])
    }

    /// What its outputs mean.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Names of the outputs, in order: the classes, where there are such.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// From features to logits.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// D.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// C.
    pub fn n_outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The only layer, where it is linear.
    pub fn as_linear(&self) -> Option<&Linear> {
        match self.layers.as_slice() {
            [Layer::Linear(linear)] => Some(linear),
            _ => None,
        }
    }

    /// `[N, C]`. Rows do not depend on each other, nor on the number of threads.
    ///
    /// # Errors
    /// [`Error::Features`] where the features have another length.
    pub fn logits(&self, features: &Features) -> Result<Vec<f32>, Error> {
        self.check_takes(features)?;
        let mut logits = vec![0.0; features.n_rows() * self.n_outputs()];
        self.fill(features, 0, &mut logits);
        Ok(logits)
    }

    /// The same logits a stretch of rows at a time and in order, with the number of the stretch's first row: as much memory
    /// for a million rows as for a few thousand.
    ///
    /// # Errors
    /// As [`logits`](Head::logits); what `each` returns, after which no more rows are looked at.
    pub fn logits_each(&self, features: &Features, each: &mut EachStretch<'_>) -> Result<(), Error> {
        /// Chunks for each thread between two calls.
        const CHUNKS_PER_THREAD: usize = 4;
        self.check_takes(features)?;
        let stretch = CHUNK_ROWS * CHUNKS_PER_THREAD * rayon::current_num_threads().max(1);
        let mut logits = Vec::new();
        for first in (0..features.n_rows()).step_by(stretch) {
            let n_rows = stretch.min(features.n_rows() - first);
            logits.resize(n_rows * self.n_outputs(), 0.0);
            self.fill(features, first, &mut logits);
            each(first, &logits)?;
        }
        Ok(())
    }

    fn check_takes(&self, features: &Features) -> Result<(), Error> {
        if features.n_features() == self.n_features {
            return Ok(());
        }
        Err(Error::Features(format!(
            "they have {} numbers a row, and the head takes {}",
            features.n_features(),
            self.n_features
        )))
    }

    /// The logits of as many rows from `first` on as `logits` has room for.
    fn fill(&self, features: &Features, first: usize, logits: &mut [f32]) {
        logits
            .par_chunks_mut(CHUNK_ROWS * self.n_outputs())
            .enumerate()
            .for_each_init(Buffers::default, |buffers, (chunk, out)| {
                let start = first + chunk * CHUNK_ROWS;
                let end = start + out.len() / self.n_outputs();
                let rows = features.rows(start..end, &mut buffers.features);
                self.chunk_logits(rows, &mut buffers.rows, &mut buffers.next);
                out.copy_from_slice(&buffers.rows);
            });
    }

    /// Leaves the logits of `features` in `rows`.
    fn chunk_logits(&self, features: &[f32], rows: &mut Vec<f32>, next: &mut Vec<f32>) {
        let mut width = self.n_features;
        rows.clear();
        // The first product reads the features where they lie.
        let mut layers = self.layers.iter();
        if let Some(Layer::Linear(linear)) = self.layers.first() {
            linear.apply(features, rows);
            width = linear.n_out;
            layers.next();
        } else {
            rows.extend_from_slice(features);
        }
        for layer in layers {
            layer.apply(rows, width, next);
            std::mem::swap(rows, next);
            width = layer.n_out(width).expect("checked when the head was made");
        }
    }

    /// How far each logit `[N, C]` of a linear head may be off because its features were rounded to float16 when they were
    /// stored: half a unit in the last place of every product, all in one direction. For other heads, as far as the norms
    /// of their layers' weights let such an error grow at most.
    pub(crate) fn rounding_slack(&self, features: &Features) -> Vec<f32> {
        const HALF_UNIT: f32 = 1.0 / 2048.0;
        let n_outputs = self.n_outputs();
        let mut slack = Vec::with_capacity(features.n_rows() * n_outputs);
        let mut scratch = Vec::new();
        for row in 0..features.n_rows() {
            let mut error: Vec<f32> = features
                .rows(row..row + 1, &mut scratch)
                .iter()
                .map(|x| x.abs() * HALF_UNIT)
                .collect();
            for layer in &self.layers {
                error = layer.error_bound(&error);
            }
            slack.extend(error);
        }
        slack
    }
}

impl Layer {
    /// How far the outputs are off at most where the inputs are off by `error`.
    fn error_bound(&self, error: &[f32]) -> Vec<f32> {
        /// The steepest slope of `x · Φ(x)`, rounded up.
        const GELU_SLOPE: f32 = 1.13;
        match self {
            Layer::Linear(linear) => linear
                .weight
                .chunks_exact(linear.n_in)
                .map(|weight| weight.iter().zip(error).map(|(w, e)| w.abs() * e).sum())
                .collect(),
            Layer::BatchNorm1d(norm) => error
                .iter()
                .zip(norm.weight.iter().zip(&norm.running_var))
                .map(|(e, (weight, var))| e * (weight / (var + norm.eps).sqrt()).abs())
                .collect(),
            // Each number moves by its own error and by the shared mean and scale; the scale is at most 1/√eps.
            Layer::LayerNorm(norm) => {
                let shared = 2.0 * error.iter().map(|e| e * e).sum::<f32>().sqrt() / norm.eps.sqrt();
                norm.weight.iter().map(|weight| weight.abs() * shared).collect()
            }
            Layer::Gelu => error.iter().map(|e| e * GELU_SLOPE).collect(),
            Layer::Relu | Layer::Dropout { .. } => error.to_vec(),
        }
    }
}

/// What a thread reuses from chunk to chunk.
#[derive(Default)]
struct Buffers {
    features: Vec<f32>,
    rows: Vec<f32>,
    next: Vec<f32>,
}

#[cfg(test)]
mod tests;
