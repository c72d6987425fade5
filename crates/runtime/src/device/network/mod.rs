//! A head, or many linear heads beside each other, that learns on a device: the steps of an epoch as calls of a
//! [`Backend`]; of a long epoch a stretch of steps is recorded, anew for each epoch, and replayed.
//!
//! Weights, moments and sums are float32; where the features are half-width, so are the copies of weights, activations and
//! residuals that products read. Residuals are not divided by the batch's weight before the update, since half-width numbers
//! could not hold them.

mod backward;
mod forward;
mod parameter;
mod recipe;

pub(crate) use parameter::{State, Weights};
pub(crate) use recipe::{Activation, Epoch, Norm, Recipe, Rule, StepScalars, Totals};

use super::backend::{Arg, Backend, Kind, Shape, count, download, upload};
use super::rows::Rows;
use crate::error::Error;
use parameter::Parameter;

/// Steps of one recording.
const RECORDED: usize = 64;
/// Rows whose residuals one block adds up.
const COLUMN_ROWS: usize = 1024;
/// `torch.nn`'s default for both normalisations, and `BatchNorm1d`'s momentum.
const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

/// A linear layer with what a hidden one has behind it.
struct Layer<D: Backend> {
    n_in: usize,
    /// Numbers from one row of the weight to the next.
    in_stride: usize,
    /// Of all heads.
    n_out: usize,
    weight: Parameter<D>,
    bias: Parameter<D>,
    norm: Option<NormLayer<D>>,
    /// `[B, n_out]`: what the product gave with the bias, normalised, activated; the residual of the first.
    z: D::Buffer,
    normalised: Option<D::Buffer>,
    activated: D::Buffer,
    residual: D::Buffer,
}

struct NormLayer<D: Backend> {
    weight: Parameter<D>,
    bias: Parameter<D>,
    running_mean: D::Buffer,
    running_var: D::Buffer,
    mean: D::Buffer,
    inverse: D::Buffer,
}

/// A network on a device.
pub(crate) struct Network<'d, D: Backend> {
    device: &'d D,
    recipe: Recipe,
    kind: Kind,
    layers: Vec<Layer<D>>,
    /// `[B, padded features]`.
    input: D::Buffer,
    /// `[B, logit_stride]` float32.
    logits: D::Buffer,
    logit_stride: usize,
    partial: D::Buffer,
    stats: D::Buffer,
    totals: D::Buffer,
    faults: D::Buffer,
    scale: D::Buffer,
    norms: D::Buffer,
    clip: D::Buffer,
    rules: D::Buffer,
    class_weights: Option<D::Buffer>,
    cursor: D::Buffer,
}

impl<'d, D: Backend> Network<'d, D> {
    /// A network of zeros for the rows that it will learn from.
    ///
    /// # Errors
    /// [`Error::GpuMemory`]; [`Error::Usage`] for hidden layers in many heads.
    pub(crate) fn new(device: &'d D, recipe: Recipe, rows: &Rows<D>) -> Result<Network<'d, D>, Error> {
        if recipe.n_heads > 1 && !recipe.hidden.is_empty() {
            return Err(Error::Usage(
                "heads that are trained beside each other have no hidden layers".to_owned(),
            ));
        }
        let (kind, batch, heads) = (rows.kind, recipe.batch_size, recipe.n_heads);
        let n_bytes = kind.n_bytes();
        let logit_stride = kind.pad(heads * recipe.n_outputs);
        let mut layers = Vec::new();
        let (mut n_in, mut in_stride, mut n_partial) = (rows.n_features, rows.stride(), 0);
        for (at, n_out) in recipe
            .hidden
            .iter()
            .copied()
            .chain([heads * recipe.n_outputs])
            .enumerate()
        {
            let is_hidden = at < recipe.hidden.len();
            let parameter = |per_head: usize| Parameter::new(device, &recipe, kind, heads, per_head);
            let norm = (is_hidden && recipe.norm != Norm::None)
                .then(|| {
                    let moments = if recipe.norm == Norm::Layer { batch } else { n_out };
                    Ok::<_, Error>(NormLayer {
                        weight: parameter(n_out)?,
                        bias: parameter(n_out)?,
                        running_mean: device.zeros(n_out * 4)?,
                        running_var: upload(device, &vec![1f32; n_out])?,
                        mean: device.zeros(moments * 4)?,
                        inverse: device.zeros(moments * 4)?,
                    })
                })
                .transpose()?;
            let room = |yes: bool, width: usize| device.zeros(if yes { batch * width * n_bytes } else { 0 });
            // The last batch of an epoch is smaller, and may be cut into more segments.
            let segments = (1..=batch)
                .map(|n| device.segments(n_out, in_stride, n))
                .max()
                .unwrap_or(1);
            n_partial = n_partial
                .max(segments * n_out * in_stride)
                .max(batch.div_ceil(COLUMN_ROWS) * n_out);
            layers.push(Layer {
                n_in,
                in_stride,
                n_out,
                weight: parameter(n_out / heads * in_stride)?,
                bias: parameter(n_out / heads)?,
                z: room(is_hidden, n_out)?,
                normalised: if norm.is_some() {
                    Some(room(true, n_out)?)
                } else {
                    None
                },
                activated: room(is_hidden, n_out)?,
                residual: room(true, if is_hidden { n_out } else { logit_stride })?,
                norm,
            });
            (n_in, in_stride) = (n_out, n_out);
        }
        let class_weights = recipe
            .class_weights
            .as_ref()
            .map(|weights| upload(device, weights))
            .transpose()?;
        Ok(Network {
            device,
            kind,
            layers,
            input: device.zeros(batch * rows.stride() * n_bytes)?,
            logits: device.zeros(batch * logit_stride * 4)?,
            logit_stride,
            partial: device.zeros(n_partial * 4)?,
            stats: device.zeros(batch * heads * 16)?,
            totals: device.zeros(heads * 32)?,
            faults: device.zeros(heads * 4)?,
            scale: device.zeros(heads * 4)?,
            norms: device.zeros(heads * 8)?,
            clip: device.zeros(heads * 4)?,
            rules: upload(
                device,
                &recipe.rules.iter().flat_map(Rule::numbers).collect::<Vec<f32>>(),
            )?,
            class_weights,
            cursor: device.zeros(24)?,
            recipe,
        })
    }

    /// Heads beside each other.
    pub(crate) fn n_heads(&self) -> usize {
        self.recipe.n_heads
    }

    /// Sets what is kept of a head, first layer first; the running figures of a normalisation go with the weights.
    ///
    /// # Errors
    /// As the device.
    pub(crate) fn set(&self, state: State, head: usize, weights: &[Weights]) -> Result<(), Error> {
        let (device, kind) = (self.device, self.kind);
        for (layer, weights) in self.layers.iter().zip(weights) {
            let mut padded = vec![0f32; layer.weight.per_head];
            let rows = padded
                .chunks_exact_mut(layer.in_stride)
                .zip(weights.weight.chunks_exact(layer.n_in));
            rows.for_each(|(to, from)| to[..layer.n_in].copy_from_slice(from));
            layer.weight.set(device, kind, state, head, &padded)?;
            layer.bias.set(device, kind, state, head, &weights.bias)?;
            if let (Some(norm), Some([factor, summand, mean, variance])) = (&layer.norm, &weights.norm) {
                norm.weight.set(device, kind, state, head, factor)?;
                norm.bias.set(device, kind, state, head, summand)?;
                if state == State::Weights {
                    device.write(&norm.running_mean, 0, bytemuck::cast_slice(mean))?;
                    device.write(&norm.running_var, 0, bytemuck::cast_slice(variance))?;
                }
            }
        }
        Ok(())
    }

    /// What is kept of a head, empty where nothing is.
    ///
    /// # Errors
    /// As the device.
    pub(crate) fn get(&self, state: State, head: usize) -> Result<Vec<Weights>, Error> {
        let get = |parameter: &Parameter<D>| parameter.get(self.device, state, head);
        let of_layer = |layer: &Layer<D>| {
            let padded = get(&layer.weight)?;
            let rows = padded
                .chunks_exact(layer.in_stride)
                .flat_map(|row| &row[..layer.n_in]);
            let norm = layer.norm.as_ref().map(|norm| {
                let figures = |buffer| download(self.device, buffer, layer.n_out);
                let [mean, variance] = [figures(&norm.running_mean)?, figures(&norm.running_var)?];
                Ok::<_, Error>([get(&norm.weight)?, get(&norm.bias)?, mean, variance])
            });
            Ok(Weights {
                weight: rows.copied().collect(),
                bias: get(&layer.bias)?,
                norm: norm.transpose()?,
            })
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// One pass over the rows of an order; totals of each head.
    ///
    /// # Errors
    /// As the device.
    pub(crate) fn epoch(&self, rows: &Rows<D>, epoch: &Epoch<'_>) -> Result<Vec<Totals>, Error> {
        let (device, batch) = (self.device, self.recipe.batch_size);
        let n = epoch.order.len();
        let order = upload(device, epoch.order)?;
        let table = upload(
            device,
            &epoch
                .table
                .iter()
                .flat_map(StepScalars::numbers)
                .collect::<Vec<f32>>(),
        )?;
        let mixup = epoch
            .mixup
            .map(|(share, partner)| Ok::<_, Error>((upload(device, share)?, upload(device, partner)?)))
            .transpose()?;
        let source = Source {
            rows,
            order: &order,
            table: &table,
            mixup: mixup.as_ref(),
        };
        let start = [epoch.start as u32, (epoch.start >> 32) as u32];
        device.write(&self.cursor, 0, bytemuck::cast_slice(&[0, 0, start[0], start[1]]))?;
        device.clear(&self.totals)?;
        device.clear(&self.faults)?;
        let full = n / batch;
        let mut done = 0;
        if full > 2 * RECORDED {
            // The first step is not recorded: what the driver and cuBLASLt load when they are first used, they may not
            // load into a recording.
            self.step(&source, 0, 0, batch)?;
            self.advance(batch, 1)?;
            done = 1;
            let graph = device.record(&mut || {
                (0..RECORDED).try_for_each(|step| self.step(&source, step * batch, step, batch))?;
                self.advance(RECORDED * batch, RECORDED)
            })?;
            while done + RECORDED <= full {
                device.replay(&graph)?;
                done += RECORDED;
            }
        }
        for step in 0..n.div_ceil(batch) - done {
            let row0 = step * batch;
            self.step(&source, row0, step, batch.min(n - done * batch - row0))?;
        }
        self.read_totals()
    }

    fn read_totals(&self) -> Result<Vec<Totals>, Error> {
        let heads = self.recipe.n_heads;
        let totals: Vec<f64> = download(self.device, &self.totals, heads * 4)?;
        let faults: Vec<u32> = download(self.device, &self.faults, heads)?;
        let of = |(sums, fault): (&[f64], &u32)| Totals {
            loss: sums[0],
            weight: sums[1],
            top1: sums[2],
            top5: sums[3],
            fault: fault.checked_sub(1).map(|step| step as usize),
        };
        Ok(totals.chunks_exact(4).zip(&faults).map(of).collect())
    }

    fn advance(&self, n_rows: usize, n_steps: usize) -> Result<(), Error> {
        let shape = Shape {
            grid: [1, 1, 1],
            block: [1, 1],
        };
        self.device.launch(
            "advance",
            shape,
            &[Arg::Buffer(&self.cursor), count(n_rows), count(n_steps)],
        )
    }

    /// The totals of all rows, and the logits `[N, heads · outputs]` where `logits` is given.
    ///
    /// # Errors
    /// As the device.
    pub(crate) fn evaluate(
        &self,
        rows: &Rows<D>,
        mut logits: Option<&mut Vec<f32>>,
    ) -> Result<Vec<Totals>, Error> {
        let (device, batch) = (self.device, self.recipe.batch_size);
        device.write(&self.cursor, 0, &[0; 24])?;
        device.clear(&self.totals)?;
        device.clear(&self.faults)?;
        let width = self.recipe.n_heads * self.recipe.n_outputs;
        let output = self.layers.last().expect("a network has a layer");
        let bias: Vec<f32> = download(device, &output.bias.weights, width)?;
        for first in (0..rows.n_rows).step_by(batch) {
            let n = batch.min(rows.n_rows - first);
            self.forward(&rows.features, first * rows.stride(), 0, n, Mode::Evaluate)?;
            self.loss(rows, &rows.identity, None, first, n, Mode::Evaluate)?;
            self.batch_stats(0, n, Mode::Evaluate)?;
            if let Some(out) = logits.as_deref_mut() {
                let values: Vec<f32> = download(device, &self.logits, n * self.logit_stride)?;
                for row in values.chunks_exact(self.logit_stride) {
                    out.extend(row.iter().zip(&bias).map(|(z, b)| z + b));
                }
            }
        }
        self.read_totals()
    }

    /// A step of `n` rows, `row0` behind the cursor's.
    fn step(&self, source: &Source<'_, D>, row0: usize, step0: usize, n: usize) -> Result<(), Error> {
        self.gather(source, row0, step0, n)?;
        self.forward(&self.input, 0, step0, n, Mode::Train)?;
        self.loss(source.rows, source.order, source.mixup, row0, n, Mode::Train)?;
        self.batch_stats(step0, n, Mode::Train)?;
        self.backward(step0, n)?;
        self.update(source, step0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Train,
    Evaluate,
}

/// What the steps of an epoch read.
struct Source<'s, D: Backend> {
    rows: &'s Rows<D>,
    order: &'s D::Buffer,
    table: &'s D::Buffer,
    mixup: Option<&'s (D::Buffer, D::Buffer)>,
}

/// Blocks of 32 columns.
fn columns(width: usize, heads: usize) -> Shape {
    Shape {
        grid: [width.div_ceil(32), heads, 1],
        block: [32, 32],
    }
}
