//! A head, or many linear heads beside each other, that learns on a device: the steps of an epoch as calls of a
//! [`Backend`], recorded once and replayed.
//!
//! Weights, moments and sums are float32; where the features are half-width, so are the copies of weights, activations and
//! residuals that products read. Residuals are not divided by the batch's weight before the update, since half-width numbers
//! could not hold them.

use super::backend::{Arg, Backend, Kind, Operand, Product, Shape, count, download, maybe, upload};
use super::rows::Rows;
use crate::error::Error;
use crate::targets::Task;

/// Steps of one recording.
const RECORDED: usize = 64;
/// Rows whose residuals one block adds up.
const COLUMN_ROWS: usize = 1024;
/// `torch.nn`'s default for both normalisations, and `BatchNorm1d`'s momentum.
const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

/// What `kernels/layer.cu` calls an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Relu = 1,
    Gelu = 2,
}

/// Between a hidden layer and its activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norm {
    None,
    Batch,
    Layer,
}

/// What a network is and how it learns, but for what depends on the step.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) task: Task,
    pub(crate) hidden: Vec<usize>,
    pub(crate) n_outputs: usize,
    /// More than one only without hidden layers.
    pub(crate) n_heads: usize,
    pub(crate) activation: Activation,
    pub(crate) norm: Norm,
    pub(crate) dropout: f32,
    pub(crate) dropout_key: u64,
    pub(crate) noise: f32,
    pub(crate) noise_key: u64,
    pub(crate) smoothing: f32,
    /// What a class counts; for several labels what each one's presence and then what its absence does.
    pub(crate) class_weights: Option<Vec<f32>>,
    pub(crate) clip_norm: Option<f32>,
    /// Decay of the moving average.
    pub(crate) ema: Option<f32>,
    pub(crate) is_adam: bool,
    /// Of each head.
    pub(crate) rules: Vec<Rule>,
    pub(crate) batch_size: usize,
}

/// `Rule` of `kernels/optim.cu`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    pub(crate) weight_decay: f32,
    pub(crate) dampening: f32,
    pub(crate) nesterov: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    pub(crate) decoupled: f32,
}

/// `StepScalars` of `kernels/optim.cu`, one for each step and head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepScalars {
    pub(crate) rate: f32,
    pub(crate) momentum: f32,
    pub(crate) step_size: f32,
    pub(crate) root: f32,
    pub(crate) first: f32,
}

impl Rule {
    /// In the order of the kernels.
    fn numbers(&self) -> [f32; 6] {
        [
            self.weight_decay,
            self.dampening,
            self.nesterov,
            self.beta2,
            self.eps,
            self.decoupled,
        ]
    }
}

impl StepScalars {
    fn numbers(&self) -> [f32; 5] {
        [self.rate, self.momentum, self.step_size, self.root, self.first]
    }
}

/// Sums of an epoch or an evaluation for one head.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Totals {
    pub(crate) loss: f64,
    /// What the loss is divided by.
    pub(crate) weight: f64,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
    /// The step of the epoch, from 0, whose loss or gradient was not finite; the head has stood still since.
    pub(crate) fault: Option<usize>,
}

/// What an epoch is made with.
#[derive(Debug, Clone)]
pub(crate) struct Epoch<'e> {
    /// Rows in their order.
    pub(crate) order: &'e [u32],
    /// `[steps, heads]`.
    pub(crate) table: &'e [StepScalars],
    /// Steps before this epoch.
    pub(crate) start: u64,
    /// Share of each row of the order, and the position in its batch of the row that it is mixed with.
    pub(crate) mixup: Option<(&'e [f32], &'e [u32])>,
}

/// One tensor that learns: `[heads, per_head]`.
struct Parameter<D: Backend> {
    weights: D::Buffer,
    /// What products read, where it is not `weights`.
    half_width: Option<D::Buffer>,
    first: Option<D::Buffer>,
    second: Option<D::Buffer>,
    ema: Option<D::Buffer>,
    gradient: D::Buffer,
    per_head: usize,
}

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

/// Weights of a layer as torch has them: a linear layer, or a normalisation with its running figures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights {
    /// `[out, in]`.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    /// Factor, summand, running mean and variance of the normalisation behind it.
    pub(crate) norm: Option<[Vec<f32>; 4]>,
}

impl<D: Backend> Parameter<D> {
    fn new(
        device: &D,
        recipe: &Recipe,
        kind: Kind,
        n_heads: usize,
        per_head: usize,
    ) -> Result<Parameter<D>, Error> {
        let n = n_heads * per_head;
        let when = |yes: bool, n_bytes: usize| yes.then(|| device.zeros(n_bytes)).transpose();
        Ok(Parameter {
            weights: device.zeros(n * 4)?,
            half_width: when(kind != Kind::F32, n * 2)?,
            first: Some(device.zeros(n * 4)?),
            second: when(recipe.is_adam, n * 4)?,
            ema: when(recipe.ema.is_some(), n * 4)?,
            gradient: device.zeros(n * 4)?,
            per_head,
        })
    }

    /// What products read.
    fn operand(&self) -> &D::Buffer {
        self.half_width.as_ref().unwrap_or(&self.weights)
    }

    /// What it keeps, where it does.
    fn array(&self, state: State) -> Option<&D::Buffer> {
        match state {
            State::Weights => Some(&self.weights),
            State::First => self.first.as_ref(),
            State::Second => self.second.as_ref(),
            State::Ema => self.ema.as_ref(),
        }
    }

    /// Sets the numbers of one head, and the copies of weights.
    fn set(&self, device: &D, kind: Kind, state: State, head: usize, values: &[f32]) -> Result<(), Error> {
        let Some(array) = self.array(state) else {
            return Ok(());
        };
        device.write(array, head * self.per_head * 4, bytemuck::cast_slice(values))?;
        if state == State::Weights
            && let Some(copy) = &self.half_width
        {
            let n = self.per_head;
            let args = [
                Arg::At(copy, head * n * 2),
                Arg::At(&self.weights, head * n * 4),
                count(1),
                count(n),
                count(n),
                Arg::Null,
                Arg::Null,
            ];
            device.launch(&format!("convert_f32_{}", kind.suffix()), Shape::each(n), &args)?;
        }
        Ok(())
    }

    /// The numbers of one head; none where it does not keep them.
    fn get(&self, device: &D, state: State, head: usize) -> Result<Vec<f32>, Error> {
        let Some(array) = self.array(state) else {
            return Ok(Vec::new());
        };
        let mut values = vec![0f32; self.per_head];
        device.read(
            array,
            head * self.per_head * 4,
            bytemuck::cast_slice_mut(&mut values),
        )?;
        Ok(values)
    }
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
            let segments = device.segments(n_out, in_stride, batch);
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

    fn gather(&self, source: &Source<'_, D>, row0: usize, step0: usize, n: usize) -> Result<(), Error> {
        let Source {
            rows, order, mixup, ..
        } = *source;
        let stride = rows.stride();
        let begin = [
            Arg::Buffer(&self.input),
            Arg::Buffer(&rows.features),
            Arg::Buffer(order),
            Arg::Buffer(&self.cursor),
        ];
        if mixup.is_none() && self.recipe.noise == 0.0 {
            let words = stride * self.kind.n_bytes() / 16;
            let [out, features, order, cursor] = begin;
            let args = [out, features, order, cursor, count(row0), count(n), count(words)];
            return self.device.launch("gather_rows", Shape::each(n * words), &args);
        }
        let [out, features, order, cursor] = begin;
        let args = [
            out,
            features,
            order,
            cursor,
            count(row0),
            count(step0),
            count(n),
            count(rows.n_features),
            count(stride),
            maybe(mixup.map(|(share, _)| share)),
            maybe(mixup.map(|(_, partner)| partner)),
            Arg::F32(self.recipe.noise),
            Arg::U64(self.recipe.noise_key),
        ];
        self.device
            .launch(&self.named("gather_mix"), Shape::each(n * stride), &args)
    }

    fn named(&self, stem: &str) -> String {
        format!("{stem}_{}", self.kind.suffix())
    }

    /// The logits of `n` rows of `input`, without the last bias.
    fn forward(
        &self,
        input: &D::Buffer,
        offset: usize,
        step0: usize,
        n: usize,
        mode: Mode,
    ) -> Result<(), Error> {
        let n_hidden = self.layers.len() - 1;
        let (mut input, mut offset) = (input, offset);
        for (at, layer) in self.layers.iter().enumerate() {
            let is_hidden = at < n_hidden;
            self.device.multiply(&Product {
                kind: self.kind,
                out_kind: if is_hidden { self.kind } else { Kind::F32 },
                m: n,
                n: layer.n_out,
                k: layer.in_stride,
                a: Operand::rows(input, offset, layer.in_stride),
                b: Operand::rows(layer.weight.operand(), 0, layer.in_stride),
                out: if is_hidden { &layer.z } else { &self.logits },
                out_offset: 0,
                out_stride: if is_hidden { layer.n_out } else { self.logit_stride },
                n_segments: 1,
                alpha: 1.0,
                beta: 0.0,
            })?;
            if is_hidden {
                self.activate(layer, at, step0, n, mode)?;
                (input, offset) = (&layer.activated, 0);
            }
        }
        Ok(())
    }

    /// Bias, normalisation, activation and dropout of a hidden layer.
    fn activate(&self, layer: &Layer<D>, at: usize, step0: usize, n: usize, mode: Mode) -> Result<(), Error> {
        let (device, width) = (self.device, layer.n_out);
        let call = |out: Option<&D::Buffer>, z: &D::Buffer, bias: Option<&D::Buffer>| {
            let mut args = vec![maybe(out), Arg::Buffer(z), maybe(bias), count(n), count(width)];
            args.extend(self.activation_args(at, step0, mode));
            device.launch(&self.named("activation"), Shape::each(n * width), &args)
        };
        let Some(norm) = &layer.norm else {
            return call(Some(&layer.activated), &layer.z, Some(&layer.bias.weights));
        };
        call(None, &layer.z, Some(&layer.bias.weights))?;
        let by_row = self.recipe.norm == Norm::Layer;
        let (mut mean, z) = (&norm.mean, Arg::Buffer(&layer.z));
        let out = || [Arg::Buffer(&norm.mean), Arg::Buffer(&norm.inverse)];
        if by_row {
            let [a, b] = out();
            let args = [a, b, z, count(n), count(width), Arg::F32(EPS)];
            device.launch(&self.named("row_moments"), Shape::each(n * 32), &args)?;
        } else if mode == Mode::Train {
            let [a, b] = out();
            let running = [Arg::Buffer(&norm.running_mean), Arg::Buffer(&norm.running_var)];
            let [c, d] = running;
            let args = [
                a,
                b,
                c,
                d,
                z,
                count(n),
                count(width),
                Arg::F32(EPS),
                Arg::F32(MOMENTUM),
            ];
            device.launch(&self.named("column_moments"), columns(width, 1), &args)?;
        } else {
            mean = &norm.running_mean;
            let args = [
                Arg::Buffer(&norm.inverse),
                Arg::Buffer(&norm.running_var),
                count(width),
                Arg::F32(EPS),
            ];
            device.launch("inverse_roots", Shape::each(width), &args)?;
        }
        let normalised = layer.normalised.as_ref().expect("made with the norm");
        let args = [
            Arg::Buffer(normalised),
            Arg::Buffer(&layer.z),
            Arg::Buffer(mean),
            Arg::Buffer(&norm.inverse),
            Arg::Buffer(&norm.weight.weights),
            Arg::Buffer(&norm.bias.weights),
            count(n),
            count(width),
            Arg::I32(i32::from(by_row)),
            count(1),
        ];
        device.launch(&self.named("normalise"), Shape::each(n * width), &args)?;
        call(Some(&layer.activated), normalised, None)
    }

    /// From `kind` to `number0` of the activation kernels.
    fn activation_args(&self, at: usize, step0: usize, mode: Mode) -> [Arg<'_, D::Buffer>; 6] {
        let p = if mode == Mode::Train {
            self.recipe.dropout
        } else {
            0.0
        };
        [
            Arg::I32(self.recipe.activation as i32),
            Arg::F32(p),
            Arg::U64(self.recipe.dropout_key),
            Arg::Buffer(&self.cursor),
            count(step0),
            // As the trainer on the processor counts the numbers of a layer.
            Arg::U32((at as u32) << 28),
        ]
    }

    fn loss(
        &self,
        rows: &Rows<D>,
        order: &D::Buffer,
        mixup: Option<&(D::Buffer, D::Buffer)>,
        row0: usize,
        n: usize,
        mode: Mode,
    ) -> Result<(), Error> {
        let Recipe {
            n_heads, n_outputs, ..
        } = self.recipe;
        let stem = match self.recipe.task {
            Task::SingleLabel => "softmax_ce",
            Task::MultiLabel => "sigmoid_bce",
            Task::Regression => "squared_error",
        };
        let name = if self.kind == Kind::F32 {
            format!("{stem}_f32")
        } else {
            format!("{stem}_f32_{}", self.kind.suffix())
        };
        let output = self.layers.last().expect("a network has a layer");
        let width = match n_outputs {
            ..=4 => 4,
            5..=8 => 8,
            9..=16 => 16,
            _ => 32,
        };
        let args = [
            maybe((mode == Mode::Train).then_some(&output.residual)),
            Arg::Buffer(&self.logits),
            Arg::Buffer(&output.bias.weights),
            Arg::Buffer(&self.stats),
            Arg::Buffer(&rows.targets),
            Arg::Buffer(order),
            Arg::Buffer(&self.cursor),
            count(row0),
            count(n),
            count(n_heads),
            count(n_outputs),
            count(self.logit_stride),
            Arg::I32(width as i32),
            maybe(self.class_weights.as_ref()),
            Arg::F32(self.recipe.smoothing),
            maybe(mixup.map(|(share, _)| share)),
            maybe(mixup.map(|(_, partner)| partner)),
        ];
        self.device.launch(&name, Shape::each(n * n_heads * width), &args)
    }

    fn batch_stats(&self, step0: usize, n: usize, mode: Mode) -> Result<(), Error> {
        let heads = self.recipe.n_heads;
        let when = |buffer| maybe((mode == Mode::Train).then_some(buffer));
        let args = [
            Arg::Buffer(&self.totals),
            when(&self.scale),
            when(&self.faults),
            Arg::Buffer(&self.stats),
            count(n),
            count(heads),
            Arg::Buffer(&self.cursor),
            count(step0),
        ];
        let shape = Shape {
            grid: [heads, 1, 1],
            block: [256, 1],
        };
        self.device.launch("batch_stats", shape, &args)
    }

    /// Gradients of all parameters by the residual of the last layer.
    fn backward(&self, step0: usize, n: usize) -> Result<(), Error> {
        for (at, layer) in self.layers.iter().enumerate().rev() {
            let is_hidden = at + 1 < self.layers.len();
            let stride = if is_hidden { layer.n_out } else { self.logit_stride };
            let below = at.checked_sub(1).map(|below| &self.layers[below]);
            if is_hidden {
                self.activate_backward(layer, at, step0, n)?;
            }
            self.weight_gradient(
                layer,
                below.map_or(&self.input, |below| &below.activated),
                stride,
                n,
            )?;
            self.column_sums(layer, stride, step0, n)?;
            if let Some(below) = below {
                self.device.multiply(&Product {
                    kind: self.kind,
                    out_kind: self.kind,
                    m: n,
                    n: layer.n_in,
                    k: layer.n_out,
                    a: Operand::rows(&layer.residual, 0, stride),
                    b: Operand::columns(layer.weight.operand(), 0, layer.in_stride),
                    out: &below.residual,
                    out_offset: 0,
                    out_stride: below.n_out,
                    n_segments: 1,
                    alpha: 1.0,
                    beta: 0.0,
                })?;
            }
        }
        Ok(())
    }

    /// The residual of a hidden layer's product by that of its output, in place, and the gradient of its norm.
    fn activate_backward(&self, layer: &Layer<D>, at: usize, step0: usize, n: usize) -> Result<(), Error> {
        let (device, width) = (self.device, layer.n_out);
        let from = layer.normalised.as_ref().unwrap_or(&layer.z);
        let mut args = vec![
            Arg::Buffer(&layer.residual),
            Arg::Buffer(from),
            count(n),
            count(width),
        ];
        args.extend(self.activation_args(at, step0, Mode::Train));
        device.launch(&self.named("activation_backward"), Shape::each(n * width), &args)?;
        let Some(norm) = &layer.norm else { return Ok(()) };
        let by_row = self.recipe.norm == Norm::Layer;
        let sums = || {
            [
                Arg::Buffer(&norm.weight.gradient),
                Arg::Buffer(&norm.bias.gradient),
            ]
        };
        let seen = || {
            let [z, mean, inverse] = [&layer.z, &norm.mean, &norm.inverse].map(Arg::Buffer);
            (Arg::Buffer(&layer.residual), z, mean, inverse)
        };
        let ([of_weight, of_bias], (residual, z, mean, inverse)) = (sums(), seen());
        let sizes = [count(n), count(width), Arg::I32(i32::from(by_row)), count(1)];
        let mut args = vec![of_weight, of_bias, residual, z, mean, inverse];
        args.extend(sizes);
        device.launch(&self.named("normalise_sums"), columns(width, 1), &args)?;
        let ([of_weight, of_bias], (residual, z, mean, inverse)) = (sums(), seen());
        let weight = Arg::Buffer(&norm.weight.weights);
        if by_row {
            let args = [
                residual,
                z,
                mean,
                inverse,
                weight,
                count(n),
                count(width),
                count(1),
            ];
            return device.launch(&self.named("row_norm_backward"), Shape::each(n * 32), &args);
        }
        let args = [
            residual,
            z,
            mean,
            inverse,
            weight,
            of_weight,
            of_bias,
            count(n),
            count(width),
        ];
        device.launch(&self.named("column_norm_backward"), Shape::each(n * width), &args)
    }

    fn weight_gradient(
        &self,
        layer: &Layer<D>,
        input: &D::Buffer,
        stride: usize,
        n: usize,
    ) -> Result<(), Error> {
        let n_segments = self.device.segments(layer.n_out, layer.in_stride, n);
        let out = if n_segments == 1 {
            &layer.weight.gradient
        } else {
            &self.partial
        };
        self.device.multiply(&Product {
            kind: self.kind,
            out_kind: Kind::F32,
            m: layer.n_out,
            n: layer.in_stride,
            k: n,
            a: Operand::columns(&layer.residual, 0, stride),
            b: Operand::columns(input, 0, layer.in_stride),
            out,
            out_offset: 0,
            out_stride: layer.in_stride,
            n_segments,
            alpha: 1.0,
            beta: 0.0,
        })?;
        if n_segments == 1 {
            return Ok(());
        }
        let size = layer.n_out * layer.in_stride;
        let args = [
            Arg::Buffer(&layer.weight.gradient),
            Arg::Buffer(&self.partial),
            count(size),
            count(n_segments),
            Arg::Null,
            Arg::Null,
            count(0),
            count(size),
        ];
        self.device.launch("sum_segments", Shape::each(size), &args)
    }

    /// The gradient of a bias; what is not finite in a residual shows here, and marks the head before any update.
    fn column_sums(&self, layer: &Layer<D>, stride: usize, step0: usize, n: usize) -> Result<(), Error> {
        let (width, parts) = (layer.n_out, n.div_ceil(COLUMN_ROWS));
        let args = [
            Arg::Buffer(&self.partial),
            Arg::Buffer(&layer.residual),
            count(n),
            count(width),
            count(stride),
            count(COLUMN_ROWS),
        ];
        let shape = Shape {
            grid: [width.div_ceil(32), parts, 1],
            block: [32, 8],
        };
        self.device.launch(&self.named("column_sums"), shape, &args)?;
        let args = [
            Arg::Buffer(&layer.bias.gradient),
            Arg::Buffer(&self.partial),
            count(width),
            count(parts),
            Arg::Buffer(&self.faults),
            Arg::Buffer(&self.cursor),
            count(step0),
            count(width / self.recipe.n_heads),
        ];
        self.device.launch("sum_segments", Shape::each(width), &args)
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter<D>> {
        self.layers.iter().flat_map(|layer| {
            let norm = layer.norm.iter().flat_map(|norm| [&norm.weight, &norm.bias]);
            [&layer.weight, &layer.bias].into_iter().chain(norm)
        })
    }

    fn update(&self, source: &Source<'_, D>, step0: usize) -> Result<(), Error> {
        let heads = self.recipe.n_heads;
        if let Some(limit) = self.recipe.clip_norm {
            for (at, parameter) in self.parameters().enumerate() {
                let args = [
                    Arg::Buffer(&self.norms),
                    Arg::Buffer(&parameter.gradient),
                    count(parameter.per_head),
                    Arg::I32(i32::from(at > 0)),
                ];
                let shape = Shape {
                    grid: [heads, 1, 1],
                    block: [1024, 1],
                };
                self.device.launch("squares", shape, &args)?;
            }
            let [clip, norms, scale] = [&self.clip, &self.norms, &self.scale].map(Arg::Buffer);
            let args = [clip, norms, scale, count(heads), Arg::F32(limit)];
            self.device.launch("clip_factor", Shape::each(heads), &args)?;
        }
        let stem = if self.recipe.is_adam { "adam" } else { "sgd" };
        let name = format!("{stem}_{}", if self.kind == Kind::Bf16 { "bf16" } else { "f16" });
        for parameter in self.parameters() {
            let args = [
                Arg::Buffer(&parameter.weights),
                maybe(parameter.half_width.as_ref()),
                maybe(parameter.first.as_ref()),
                maybe(parameter.second.as_ref()),
                maybe(parameter.ema.as_ref()),
                Arg::Buffer(&parameter.gradient),
                Arg::Buffer(&self.scale),
                maybe(self.recipe.clip_norm.is_some().then_some(&self.clip)),
                Arg::Buffer(&self.faults),
                Arg::Buffer(&self.rules),
                Arg::Buffer(source.table),
                Arg::Buffer(&self.cursor),
                count(step0),
                count(heads),
                count(parameter.per_head),
                Arg::F32(self.recipe.ema.unwrap_or(0.0)),
            ];
            self.device
                .launch(&name, Shape::each(heads * parameter.per_head), &args)?;
        }
        Ok(())
    }
}

/// What is kept of each number that learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Weights,
    /// SGD's buffer or Adam's first moment.
    First,
    Second,
    /// The moving average.
    Ema,
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
