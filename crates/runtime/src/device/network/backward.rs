//! From what the loss says of the logits to gradients, and from those to new weights.

use super::parameter::Parameter;
use super::recipe::Norm;
use super::{COLUMN_ROWS, Layer, Mode, Network, Source, columns};
use crate::device::backend::{Arg, Backend, Kind, Operand, Product, Shape, count, maybe};
use crate::error::Error;

impl<D: Backend> Network<'_, D> {
    /// Gradients of all parameters by the residual of the last layer.
    pub(super) fn backward(&self, step0: usize, n: usize) -> Result<(), Error> {
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

    pub(super) fn update(&self, source: &Source<'_, D>, step0: usize) -> Result<(), Error> {
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
