//! Operators with weights, normalisations, pools, products and softmax.

use super::{Layout, Lower, Lowered, Tensor};
use crate::grad::op::{
    AveragePool, BatchNorm, Conv, Geometry, LayerNorm, Linear, MatMul, MaxPool, Reduce, Softmax,
};
use crate::grad::program::Source;
use crate::grad::shape::{Dim, describe, numel};
use crate::grad::weights::ParameterKind;
use crate::onnx::Operation;

/// What ONNX's operators leave out means.
const EPS: f32 = 1e-5;

impl Lower<'_> {
    /// Lowers the node if it is one of these; says whether it was.
    pub(super) fn layer(&mut self, operation: &Operation<'_>) -> Lowered<bool> {
        let input = |at: usize| operation.inputs.get(at).map_or("", String::as_str);
        let tensor = match operation.op_type {
            "Conv" => self.conv(operation)?,
            "BatchNormalization" => self.batch_norm(operation, None, None)?,
            "MaxPool" | "AveragePool" => self.pool(operation)?,
            "GlobalAveragePool" => {
                let x = self.picture(input(0))?;
                let [h, w, c] = x.picture()?;
                let op = Reduce {
                    size: Dim::fixed(h * w),
                    inner: Dim::fixed(c),
                    is_mean: true,
                };
                let shape = vec![x.shape[0], x.shape[1], Dim::ONE, Dim::ONE];
                self.emit(op, vec![x.source], shape, Layout::Plain)
            }
            "Gemm" => self.gemm(operation)?,
            "MatMul" => self.product(operation, None)?,
            "LayerNormalization" => {
                let x = self.tensor(input(0))?;
                let axis = operation.integer("axis").unwrap_or(-1);
                if axis.rem_euclid(x.shape.len() as i64) as usize != x.shape.len() - 1 {
                    return Err(format!(
                        "it normalises {} from axis {axis} on, not the last",
                        describe(&x.shape)
                    ));
                }
                let shift = (!input(2).is_empty()).then(|| input(2));
                let eps = operation.float("epsilon").unwrap_or(EPS);
                self.layer_norm(input(0), input(1), shift, eps)?
            }
            "Softmax" | "LogSoftmax" => {
                let x = self.tensor(input(0))?;
                let x = self.plain(&x)?;
                let axis = operation.integer("axis").unwrap_or(-1);
                if axis.rem_euclid(x.shape.len() as i64) as usize != x.shape.len() - 1 {
                    return Err(format!(
                        "it goes along axis {axis} of {}, not the last",
                        describe(&x.shape)
                    ));
                }
                let op = Softmax {
                    width: x.width()?,
                    is_log: operation.op_type == "LogSoftmax",
                };
                self.emit(op, vec![x.source], x.shape.clone(), Layout::Plain)
            }
            _ => return Ok(false),
        };
        self.set(&operation.outputs[0], tensor);
        Ok(true)
    }

    fn conv(&mut self, operation: &Operation<'_>) -> Lowered<Tensor> {
        let x = self.picture(&operation.inputs[0])?;
        let weight = self.tensor_as(&operation.inputs[1], ParameterKind::Weight)?;
        let weight = self.plain(&weight)?;
        let [h, w, c] = x.picture()?;
        let [k, group_c, kh, kw] = weight.shape[..] else {
            return Err(format!("its kernel is {}", describe(&weight.shape)));
        };
        let groups = operation.integer("group").unwrap_or(1).max(1) as usize;
        if group_c.size * groups != c || !k.size.is_multiple_of(groups) {
            return Err(format!(
                "{groups} groups of a kernel {} on {c} channels",
                describe(&weight.shape)
            ));
        }
        let window = Window::read(operation, [kh.size, kw.size], [h, w])?;
        let geometry = window.geometry([h, w], c, k.size, groups)?;
        let mut inputs = vec![x.source, weight.source];
        if let Some(bias) = operation.inputs.get(2).filter(|name| !name.is_empty()) {
            inputs.push(self.tensor_as(bias, ParameterKind::Bias)?.source);
        }
        let shape = vec![x.shape[0], k, Dim::fixed(geometry.oh), Dim::fixed(geometry.ow)];
        let is_pixel = geometry.kernel == [1, 1] && geometry.stride == [1, 1] && geometry.pad == [0, 0];
        if is_pixel && groups == 1 && geometry.oh == h && geometry.ow == w {
            let op = Linear {
                n_in: c,
                n_out: k.size,
                is_transposed: false,
            };
            return Ok(self.emit(op, inputs, shape, Layout::ChannelsLast));
        }
        Ok(self.emit(Conv::new(geometry), inputs, shape, Layout::ChannelsLast))
    }

    /// With what is added to its result, and the bounds of the activation behind that.
    pub(super) fn batch_norm(
        &mut self,
        operation: &Operation<'_>,
        residual: Option<&str>,
        clamp: Option<[f32; 2]>,
    ) -> Lowered<Tensor> {
        let x = self.tensor(&operation.inputs[0])?;
        let (x, n_channels) = match x.shape[..] {
            [_, c, _, _] => (self.picture(&operation.inputs[0])?, c),
            [_, c] => (self.plain(&x)?, c),
            _ => return Err(format!("it normalises {}", describe(&x.shape))),
        };
        let mut inputs = vec![x.source];
        let kinds = [
            ParameterKind::NormScale,
            ParameterKind::NormShift,
            ParameterKind::RunningMean,
            ParameterKind::RunningVar,
        ];
        for (name, kind) in operation.inputs[1..].iter().zip(kinds) {
            let parameter = self.tensor_as(name, kind)?;
            if parameter.numel() != n_channels {
                return Err(format!(
                    "`{name}` is {}, for {} channels",
                    describe(&parameter.shape),
                    n_channels.size
                ));
            }
            inputs.push(parameter.source);
        }
        if let Some(residual) = residual {
            let residual = match x.layout {
                Layout::ChannelsLast => self.picture(residual)?,
                _ => {
                    let residual = self.tensor(residual)?;
                    self.plain(&residual)?
                }
            };
            if residual.shape != x.shape {
                return Err(format!(
                    "{} is added to {}",
                    describe(&residual.shape),
                    describe(&x.shape)
                ));
            }
            inputs.push(residual.source);
        }
        let op = BatchNorm {
            n_channels: n_channels.size,
            eps: operation.float("epsilon").unwrap_or(EPS),
            momentum: 1.0 - f64::from(operation.float("momentum").unwrap_or(0.9)),
            clamp,
        };
        Ok(self.push(Box::new(op), inputs, x.shape.clone(), x.layout, true))
    }

    fn pool(&mut self, operation: &Operation<'_>) -> Lowered<Tensor> {
        let x = self.picture(&operation.inputs[0])?;
        let [h, w, c] = x.picture()?;
        let Some(&[kh, kw]) = operation.integers("kernel_shape") else {
            return Err("its window has not two axes".to_owned());
        };
        let window = Window::read(operation, [kh as usize, kw as usize], [h, w])?;
        let window = window.geometry([h, w], c, c, c)?;
        let shape = vec![
            x.shape[0],
            x.shape[1],
            Dim::fixed(window.oh),
            Dim::fixed(window.ow),
        ];
        Ok(if operation.op_type == "MaxPool" {
            self.emit(MaxPool(window), vec![x.source], shape, Layout::ChannelsLast)
        } else {
            let op = AveragePool {
                window,
                counts_padding: operation.integer("count_include_pad") == Some(1),
            };
            self.emit(op, vec![x.source], shape, Layout::ChannelsLast)
        })
    }

    fn gemm(&mut self, operation: &Operation<'_>) -> Lowered<Tensor> {
        let is_one = |name: &str| operation.float(name).is_none_or(|factor| factor == 1.0);
        if !is_one("alpha") || !is_one("beta") || operation.integer("transA") == Some(1) {
            return Err("its factors are not one, or its rows are columns".to_owned());
        }
        let x = self.tensor(&operation.inputs[0])?;
        let x = self.plain(&x)?;
        let weight = self.tensor_as(&operation.inputs[1], ParameterKind::Weight)?;
        let bias = operation.inputs.get(2).filter(|name| !name.is_empty()).cloned();
        let is_transposed = operation.integer("transB") == Some(1);
        self.linear(&x, &weight, is_transposed, bias.as_deref())
    }

    /// `weight` is `[in, out]`, or `[out, in]` where it is to be transposed.
    fn linear(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        is_transposed: bool,
        bias: Option<&str>,
    ) -> Lowered<Tensor> {
        // As it lies in memory: a parameter may be seen through a transpose already.
        let lies_out_first = is_transposed != (weight.layout == Layout::Transposed);
        let [a, b] = weight.shape[..] else {
            return Err(format!("its weight is {}", describe(&weight.shape)));
        };
        let (n_in, n_out) = if is_transposed { (b, a) } else { (a, b) };
        let width = x.width()?;
        if n_in != Dim::fixed(width) || n_out.is_batched {
            return Err(format!(
                "{} times {}",
                describe(&x.shape),
                describe(&weight.shape)
            ));
        }
        let mut inputs = vec![x.source, weight.source];
        if let Some(bias) = bias {
            let bias = self.tensor_as(bias, ParameterKind::Bias)?;
            if bias.numel() != n_out {
                return Err(format!(
                    "a bias of {} for {} outputs",
                    describe(&bias.shape),
                    n_out.size
                ));
            }
            inputs.push(bias.source);
        }
        let mut shape = x.shape.clone();
        let op = Linear {
            n_in: width,
            n_out: n_out.size,
            is_transposed: !lies_out_first,
        };
        *shape.last_mut().expect("it has a width") = n_out;
        Ok(self.emit(op, inputs, shape, Layout::Plain))
    }

    pub(super) fn product(&mut self, operation: &Operation<'_>, bias: Option<&str>) -> Lowered<Tensor> {
        let [a, b] = operation.inputs else {
            return Err("it has not two inputs".to_owned());
        };
        let a = self.tensor(a)?;
        let b = self.tensor_as(b, ParameterKind::Weight)?;
        let is_fixed = matches!(b.source, Source::Parameter(_) | Source::Constant(_))
            && b.layout != Layout::ChannelsLast;
        if b.shape.len() == 2 && is_fixed {
            let a = self.plain(&a)?;
            return self.linear(&a, &b, false, bias);
        }
        let mut sides = [a, b];
        for side in &mut sides {
            if side.layout == Layout::ChannelsLast {
                *side = self.plain(side)?;
            }
            if side.shape.len() < 2 {
                return Err(format!("a product with {}", describe(&side.shape)));
            }
        }
        let [a, b] = &sides;
        let split = |tensor: &Tensor| {
            let (outer, matrix) = tensor.shape.split_at(tensor.shape.len() - 2);
            (outer.to_vec(), matrix[0], matrix[1])
        };
        let (a_outer, rows, depth) = split(a);
        let (b_outer, b_depth, columns) = split(b);
        let counts = [numel(&a_outer), numel(&b_outer)];
        let fits = depth == b_depth && (a_outer == b_outer || counts[0] == Dim::ONE || counts[1] == Dim::ONE);
        if !fits {
            return Err(format!("{} times {}", describe(&a.shape), describe(&b.shape)));
        }
        let mut shape = if a_outer.len() >= b_outer.len() && counts[0] != Dim::ONE || counts[1] == Dim::ONE {
            a_outer
        } else {
            b_outer
        };
        shape.extend([rows, columns]);
        let op = MatMul {
            counts,
            rows,
            depth,
            columns,
            is_transposed: [a, b].map(|side| side.layout == Layout::Transposed),
        };
        let inputs = vec![a.source, b.source];
        let tensor = self.emit(op, inputs, shape, Layout::Plain);
        match bias {
            Some(bias) => {
                let bias = self.tensor_as(bias, ParameterKind::Bias)?;
                self.binary(crate::grad::op::BinaryKind::Add, &tensor, &bias)
            }
            None => Ok(tensor),
        }
    }

    pub(super) fn layer_norm(
        &mut self,
        x: &str,
        scale: &str,
        shift: Option<&str>,
        eps: f32,
    ) -> Lowered<Tensor> {
        let x = self.tensor(x)?;
        let x = self.plain(&x)?;
        let width = x.width()?;
        let scale = self.tensor_as(scale, ParameterKind::NormScale)?;
        let shift = match shift {
            Some(shift) => self.tensor_as(shift, ParameterKind::NormShift)?,
            None => {
                self.constants.push(vec![0.0; width]);
                Tensor {
                    source: Source::Constant(self.constants.len() - 1),
                    ..scale.clone()
                }
            }
        };
        if scale.numel() != Dim::fixed(width) || shift.numel() != scale.numel() {
            return Err(format!(
                "a scale of {} for rows of {width}",
                describe(&scale.shape)
            ));
        }
        let inputs = vec![x.source, scale.source, shift.source];
        Ok(self.emit(LayerNorm { width, eps }, inputs, x.shape.clone(), Layout::Plain))
    }
}

/// What a window's attributes say.
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Above, left, below, right.
    pads: [usize; 4],
    rounds_up: bool,
}

impl Window {
    fn read(operation: &Operation<'_>, kernel: [usize; 2], size: [usize; 2]) -> Lowered<Window> {
        let pair = |name: &str| -> Lowered<[usize; 2]> {
            match operation.integers(name) {
                None | Some([]) => Ok([1, 1]),
                Some(&[y, x]) if y > 0 && x > 0 => Ok([y as usize, x as usize]),
                Some(other) => Err(format!("{name} {other:?}")),
            }
        };
        let (stride, dilation) = (pair("strides")?, pair("dilations")?);
        let reach = [0, 1].map(|axis| dilation[axis] * (kernel[axis] - 1) + 1);
        let pads = match operation.text("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => match operation.integers("pads") {
                None | Some([]) => [0; 4],
                Some(&[a, b, c, d]) if [a, b, c, d].iter().all(|pad| *pad >= 0) => {
                    [a, b, c, d].map(|pad| pad as usize)
                }
                Some(other) => return Err(format!("pads {other:?}")),
            },
            "VALID" => [0; 4],
            way @ ("SAME_UPPER" | "SAME_LOWER") => {
                let [y, x] = [0, 1].map(|axis| {
                    let outputs = size[axis].div_ceil(stride[axis]);
                    let total = ((outputs - 1) * stride[axis] + reach[axis]).saturating_sub(size[axis]);
                    let less = total / 2;
                    if way == "SAME_UPPER" {
                        (less, total - less)
                    } else {
                        (total - less, less)
                    }
                });
                [y.0, x.0, y.1, x.1]
            }
            other => return Err(format!("auto_pad {other}")),
        };
        Ok(Window {
            kernel,
            stride,
            dilation,
            pads,
            rounds_up: operation.integer("ceil_mode") == Some(1),
        })
    }

    fn geometry(&self, size: [usize; 2], c: usize, k: usize, groups: usize) -> Lowered<Geometry> {
        let out = [0, 1].map(|axis| {
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let room = (size[axis] + self.pads[axis] + self.pads[axis + 2]).checked_sub(reach)?;
            let stride = self.stride[axis];
            let n = if self.rounds_up {
                room.div_ceil(stride)
            } else {
                room / stride
            } + 1;
            // A window that would begin behind the padded input is left out, as in torch.
            let is_outside = self.rounds_up && (n - 1) * stride >= size[axis] + self.pads[axis];
            Some(if is_outside { n - 1 } else { n })
        });
        let [Some(oh), Some(ow)] = out else {
            return Err(format!("a window of {:?} on {size:?}", self.kernel));
        };
        Ok(Geometry {
            h: size[0],
            w: size[1],
            c,
            oh,
            ow,
            k,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pad: [self.pads[0], self.pads[1]],
            groups,
        })
    }
}
