//! From rows to logits, their loss, and what the loss says of the logits.

use super::recipe::{Norm, Recipe};
use super::{EPS, Layer, MOMENTUM, Mode, Network, Source, columns};
use crate::device::backend::{Arg, Backend, Kind, Operand, Product, Shape, count, maybe};
use crate::device::rows::Rows;
use crate::error::Error;
use crate::targets::Task;

impl<D: Backend> Network<'_, D> {
    pub(super) fn gather(
        &self,
        source: &Source<'_, D>,
        row0: usize,
        step0: usize,
        n: usize,
    ) -> Result<(), Error> {
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

    pub(super) fn named(&self, stem: &str) -> String {
        format!("{stem}_{}", self.kind.suffix())
    }

    /// The logits of `n` rows of `input`, without the last bias.
    pub(super) fn forward(
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
    pub(super) fn activation_args(&self, at: usize, step0: usize, mode: Mode) -> [Arg<'_, D::Buffer>; 6] {
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

    pub(super) fn loss(
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

    pub(super) fn batch_stats(&self, step0: usize, n: usize, mode: Mode) -> Result<(), Error> {
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
}
