//! A head in training, or many linear ones whose outputs lie beside each other: their layers, and numbers in and out.

use pulp::Arch;

use super::batch::Block;
use super::config::{Activation, Init, Norm, TrainerConfig};
use super::counter::{AT_ONCE, Counter, Purpose};
use super::dense::{Array, Dense, NARROW};
use super::hidden::{EPS, Norms};
use super::optimiser::Scalars;
use crate::head::{BatchNorm1d, Layer, LayerNorm, Linear};

/// Layers and the buffers of a step.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) arch: Arch,
    pub(super) hidden: Vec<Hidden>,
    pub(super) output: Dense,
    /// Heads beside each other, and outputs of each.
    pub(super) heads: usize,
    pub(super) n_outputs: usize,
    pub(super) activation: Activation,
    pub(super) dropout: Option<(f32, Counter)>,
    pub(super) blocks: Vec<Block>,
    pub(super) scalars: Vec<Scalars>,
}

#[derive(Debug, Clone)]
pub(super) struct Hidden {
    pub(super) dense: Dense,
    pub(super) norms: Option<Norms>,
}

impl Network {
    /// A network of zeros for `heads` heads beside each other; more than one only without hidden layers.
    pub(super) fn new(config: &TrainerConfig, n_features: usize, n_outputs: usize, heads: usize) -> Network {
        let n_moments = config.optimiser.n_moments();
        let has_ema = config.ema.is_some();
        let mut n_in = n_features;
        let hidden = config.hidden.iter().map(|&width| {
            let dense = Dense::new(n_in, width, width < NARROW, n_moments, has_ema);
            n_in = width;
            let norms =
                (config.norm != Norm::None).then(|| Norms::new(config.norm, width, n_moments, has_ema));
            Hidden { dense, norms }
        });
        let hidden: Vec<Hidden> = hidden.collect();
        let output = Dense::new(n_in, heads * n_outputs, n_outputs < NARROW, n_moments, has_ema);
        let dropout =
            (config.dropout > 0.0).then(|| (config.dropout, Counter::new(config.seed, Purpose::Dropout)));
        Network {
            arch: Arch::new(),
            hidden,
            output,
            heads,
            n_outputs,
            activation: config.activation,
            dropout,
            blocks: Vec::new(),
            scalars: Vec::new(),
        }
    }

    /// Draws the first weights of a head.
    pub(super) fn init(&mut self, head: usize, init: Init, seed: u64) {
        let counter = Counter::new(seed, Purpose::Init);
        let n_outputs = self.n_outputs;
        let n_hidden = self.hidden.len();
        let draw = |layer: usize, dense: &mut Dense, first: usize, n: usize| {
            let mut values = vec![0.0f32; n * (dense.n_in + 1)];
            match init {
                Init::Zeros => {}
                Init::Uniform => {
                    // kaiming_uniform_(a=√5) and the bias of the same bound.
                    let bound = 1.0 / (dense.n_in as f32).sqrt();
                    for (block, values) in values.chunks_mut(AT_ONCE).enumerate() {
                        let uniform = counter.uniform(block as u64, layer as u32, 0);
                        values
                            .iter_mut()
                            .zip(uniform)
                            .for_each(|(v, u)| *v = bound * (2.0 * u - 1.0));
                    }
                }
                Init::Normal { std } => {
                    for (block, values) in values[..n * dense.n_in].chunks_mut(AT_ONCE).enumerate() {
                        let normal = counter.normal(block as u64, layer as u32, 0);
                        values.iter_mut().zip(normal).for_each(|(v, x)| *v = std * x);
                    }
                }
            }
            dense.import(Array::Weights, first..first + n, &values);
        };
        for (layer, hidden) in self.hidden.iter_mut().enumerate() {
            let n = hidden.dense.n_out;
            draw(layer, &mut hidden.dense, 0, n);
        }
        draw(n_hidden, &mut self.output, head * n_outputs, n_outputs);
        self.transpose();
    }

    /// Makes what the way back reads; after each change of the weights.
    pub(super) fn transpose(&mut self) {
        let dense = self.hidden.iter_mut().map(|hidden| &mut hidden.dense);
        // The first layer has no one to tell.
        dense.skip(1).for_each(Dense::transpose);
        if !self.hidden.is_empty() {
            self.output.transpose();
        }
    }

    /// A head's layers, by its weights or their moving average.
    pub(super) fn layers(&self, head: usize, array: Array) -> Vec<Layer> {
        let linear = |dense: &Dense, first: usize, n: usize| {
            let mut weight = dense.export(array, first..first + n);
            let bias = weight.split_off(n * dense.n_in);
            Layer::Linear(Linear {
                weight,
                bias,
                n_in: dense.n_in,
                n_out: n,
            })
        };
        let mut layers = Vec::new();
        for hidden in &self.hidden {
            layers.push(linear(&hidden.dense, 0, hidden.dense.n_out));
            if let Some(norms) = &hidden.norms {
                let [weight, bias] = norms.export(array);
                layers.push(match norms.kind {
                    Norm::Batch => Layer::BatchNorm1d(BatchNorm1d {
                        weight,
                        bias,
                        running_mean: norms.running_mean[..norms.n].to_vec(),
                        running_var: norms.running_var[..norms.n].to_vec(),
                        num_batches_tracked: norms.n_batches,
                        eps: EPS,
                    }),
                    _ => Layer::LayerNorm(LayerNorm {
                        weight,
                        bias,
                        eps: EPS,
                    }),
                });
            }
            layers.push(match self.activation {
                Activation::Relu => Layer::Relu,
                Activation::Gelu => Layer::Gelu,
            });
            if let Some((p, _)) = self.dropout {
                layers.push(Layer::Dropout { p });
            }
        }
        layers.push(linear(&self.output, head * self.n_outputs, self.n_outputs));
        layers
    }

    /// Takes the numbers of layers that [`layers`](Network::layers) gave, or of such a kind.
    pub(super) fn set_layers(&mut self, head: usize, array: Array, layers: &[Layer]) {
        let first = head * self.n_outputs;
        let outputs = first..first + self.n_outputs;
        let mut dense = self.hidden.iter_mut();
        let mut norms: Option<&mut Norms> = None;
        for layer in layers {
            match layer {
                Layer::Linear(linear) => {
                    let numbers = [&linear.weight[..], &linear.bias].concat();
                    match dense.next() {
                        Some(hidden) => {
                            hidden.dense.import(array, 0..linear.n_out, &numbers);
                            norms = hidden.norms.as_mut();
                        }
                        None => self.output.import(array, outputs.clone(), &numbers),
                    }
                }
                Layer::BatchNorm1d(norm) => {
                    if let Some(norms) = norms.as_mut() {
                        norms.import(array, &norm.weight, &norm.bias);
                        norms.running_mean[..norm.running_mean.len()].copy_from_slice(&norm.running_mean);
                        norms.running_var[..norm.running_var.len()].copy_from_slice(&norm.running_var);
                        norms.n_batches = norm.num_batches_tracked;
                    }
                }
                Layer::LayerNorm(norm) => {
                    if let Some(norms) = norms.as_mut() {
                        norms.import(array, &norm.weight, &norm.bias);
                    }
                }
                Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
            }
        }
        if array == Array::Weights {
            self.transpose();
        }
    }

    /// Whether anything keeps this array.
    pub(super) fn has(&self, array: Array) -> bool {
        self.output.has(array)
    }

    /// Copies what belongs to a head of another network of the same kind.
    pub(super) fn copy_head(&mut self, to: usize, other: &Network, from: usize) {
        let of = |head: usize, n: usize| head * n..(head + 1) * n;
        for array in Array::ALL {
            if self.output.has(array) {
                let numbers = other.output.export(array, of(from, self.n_outputs));
                self.output.import(array, of(to, self.n_outputs), &numbers);
            }
        }
    }
}
