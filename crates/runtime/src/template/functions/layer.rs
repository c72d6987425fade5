//! What layers with weights and windows do: convolutions, products, normalisations, pooling, attention.

use std::rc::Rc;

use super::{Builtin, check_dims, float, int, ints, is_true, optional_tensor, pair, tensor};
use crate::template::fault::Fault;
use crate::template::interpreter::Interpreter;
use crate::template::trace::{Attribute, Values};
use crate::template::value::{Dim, Tensor, Value};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "conv2d",
        signature: "conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
        run: conv2d,
    },
    Builtin {
        name: "linear",
        signature: "linear(input, weight, bias=None)",
        run: linear,
    },
    Builtin {
        name: "batch_norm",
        signature: "batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)",
        run: batch_norm,
    },
    Builtin {
        name: "layer_norm",
        signature: "layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5)",
        run: layer_norm,
    },
    Builtin {
        name: "max_pool2d",
        signature: "max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False)",
        run: max_pool2d,
    },
    Builtin {
        name: "avg_pool2d",
        signature: "avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)",
        run: avg_pool2d,
    },
    Builtin {
        name: "adaptive_avg_pool2d",
        signature: "adaptive_avg_pool2d(input, output_size)",
        run: adaptive_avg_pool2d,
    },
    Builtin {
        name: "scaled_dot_product_attention",
        signature: "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None)",
        run: attention,
    },
];

/// A window that moves over a picture.
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Before and after each axis.
    padding: [[usize; 2]; 2],
    dilation: [usize; 2],
    rounds_up: bool,
}

impl Window {
    /// Sizes behind it.
    fn over(&self, shape: &[Dim], what: &str) -> Result<[Dim; 2], Fault> {
        let mut out = [Dim::fixed(0); 2];
        for at in 0..2 {
            let n = shape[2 + at].n;
            let [before, after] = self.padding[at];
            let reach = self.dilation[at] * self.kernel[at].saturating_sub(1) + 1;
            let padded = n.saturating_add(before).saturating_add(after);
            if self.stride[at] == 0 || self.kernel[at] == 0 || padded < reach {
                return Err(Fault::new(format!(
                    "{what} of {:?} does not fit into {} x {}",
                    self.kernel, shape[2].n, shape[3].n
                )));
            }
            let rest = padded - reach;
            let mut steps = rest / self.stride[at];
            if self.rounds_up
                && !rest.is_multiple_of(self.stride[at])
                && (steps + 1) * self.stride[at] < n + before
            {
                // A last window must begin within the picture or its padding before it.
                steps += 1;
            }
            out[at] = Dim::fixed(steps + 1);
        }
        Ok(out)
    }

    fn pads(&self) -> Attribute {
        let [[top, bottom], [left, right]] = self.padding;
        ints(&[top, left, bottom, right])
    }
}

fn both(padding: [usize; 2]) -> [[usize; 2]; 2] {
    padding.map(|n| [n, n])
}

fn conv2d(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let (input, weight) = (tensor(&args[0])?, tensor(&args[1])?);
    let bias = optional_tensor(&args[2])?;
    check_dims(&input, 4, "a convolution")?;
    check_dims(&weight, 4, "a convolution's weight")?;
    let kernel = [weight.shape[2].n, weight.shape[3].n];
    let (stride, dilation) = (pair(&args[3])?, pair(&args[5])?);
    let groups = int(&args[6])?;
    let padding = match &args[4] {
        Value::Str(text) if &**text == "valid" => both([0, 0]),
        Value::Str(text) if &**text == "same" => {
            if stride != [1, 1] {
                return Err(Fault::new("`padding='same'` is for a stride of 1"));
            }
            [0, 1].map(|at| {
                let total = dilation[at] * (kernel[at] - 1);
                [total / 2, total - total / 2]
            })
        }
        other => both(pair(other)?),
    };
    let n_in = usize::try_from(groups)
        .ok()
        .and_then(|groups| groups.checked_mul(weight.shape[1].n));
    if groups < 1 || n_in != Some(input.shape[1].n) {
        return Err(Fault::new(format!(
            "a convolution of weight {} in {groups} groups does not take {}",
            weight.sizes(),
            input.sizes()
        )));
    }
    let window = Window {
        kernel,
        stride,
        padding,
        dilation,
        rounds_up: false,
    };
    let [height, width] = window.over(&input.shape, "a kernel")?;
    let attributes = vec![
        ("dilations", ints(&dilation)),
        ("group", Attribute::Int(groups)),
        ("kernel_shape", ints(&kernel)),
        ("pads", window.pads()),
        ("strides", ints(&stride)),
    ];
    let mut inputs = vec![input.name.as_str(), weight.name.as_str()];
    inputs.extend(bias.as_ref().map(|bias| bias.name.as_str()));
    let shape = vec![input.shape[0], weight.shape[0], height, width];
    interpreter
        .emit("Conv", &inputs, attributes, shape)
        .map(Value::Tensor)
}

/// `Gemm` of rows; of more axes a product with the weight's transpose, which is a constant of the graph.
fn linear(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let (input, weight) = (tensor(&args[0])?, tensor(&args[1])?);
    let bias = optional_tensor(&args[2])?;
    check_dims(&weight, 2, "a linear layer's weight")?;
    let last = input.shape.last().copied();
    if last != Some(weight.shape[1]) {
        return Err(Fault::new(format!(
            "a linear layer of weight {} does not take {}",
            weight.sizes(),
            input.sizes()
        )));
    }
    let mut shape = input.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = weight.shape[0];
    }
    if input.shape.len() == 2 {
        let mut inputs = vec![input.name.as_str(), weight.name.as_str()];
        inputs.extend(bias.as_ref().map(|bias| bias.name.as_str()));
        let attributes = vec![("transB", Attribute::Int(1))];
        return interpreter
            .emit("Gemm", &inputs, attributes, shape)
            .map(Value::Tensor);
    }
    let turned = vec![weight.shape[1], weight.shape[0]];
    let attributes = vec![("perm", Attribute::Ints(vec![1, 0]))];
    let turned = interpreter.emit("Transpose", &[&weight.name], attributes, turned)?;
    let product = interpreter.emit("MatMul", &[&input.name, &turned.name], Vec::new(), shape.clone())?;
    let Some(bias) = bias else {
        return Ok(Value::Tensor(product));
    };
    interpreter
        .emit("Add", &[&product.name, &bias.name], Vec::new(), shape)
        .map(Value::Tensor)
}

/// With running statistics; `momentum` is ONNX's, which is the share of the old.
fn batch_norm(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let parts = [&args[3], &args[4], &args[1], &args[2]]
        .into_iter()
        .map(tensor)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| {
            Fault::new("a batch normalisation has weight, bias, running_mean and running_var here")
        })?;
    let channels = input.shape.get(1).copied();
    if parts
        .iter()
        .any(|part| part.shape.as_slice() != channels.as_slice())
    {
        return Err(Fault::new(format!(
            "a batch normalisation of {} channels does not take {}",
            parts[0].sizes(),
            input.sizes()
        )));
    }
    let momentum = match &args[6] {
        Value::None => 0.1,
        value => float(value)?,
    };
    let attributes = vec![
        ("epsilon", Attribute::Float(float(&args[7])? as f32)),
        ("momentum", Attribute::Float((1.0 - momentum) as f32)),
    ];
    let mut inputs = vec![input.name.as_str()];
    inputs.extend(parts.iter().map(|part| part.name.as_str()));
    interpreter
        .emit("BatchNormalization", &inputs, attributes, input.shape.clone())
        .map(Value::Tensor)
}

fn layer_norm(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let normalised = match args[1].items() {
        Some(items) => items.iter().map(super::usize_of).collect::<Result<Vec<_>, _>>()?,
        None => vec![super::usize_of(&args[1])?],
    };
    let weight = optional_tensor(&args[2])?;
    let bias = optional_tensor(&args[3])?;
    let n_kept = input.shape.len().checked_sub(normalised.len());
    let fits = n_kept.is_some_and(|kept| {
        input.shape[kept..]
            .iter()
            .map(|dim| dim.n)
            .eq(normalised.iter().copied())
    });
    let (Some(kept), true) = (n_kept, fits) else {
        return Err(Fault::new(format!(
            "a layer normalisation of {normalised:?} does not take {}",
            input.sizes()
        )));
    };
    let weight_name = match &weight {
        Some(weight) => weight.name.clone(),
        None => {
            let n = normalised.iter().product();
            interpreter.trace.constant(
                "LayerNormalization.scale",
                normalised.clone(),
                Values::Float32(vec![1.0; n]),
            )
        }
    };
    let mut inputs = vec![input.name.as_str(), weight_name.as_str()];
    inputs.extend(bias.as_ref().map(|bias| bias.name.as_str()));
    let attributes = vec![
        ("axis", Attribute::Int(kept as i64 - input.shape.len() as i64)),
        ("epsilon", Attribute::Float(float(&args[4])? as f32)),
    ];
    interpreter
        .emit("LayerNormalization", &inputs, attributes, input.shape.clone())
        .map(Value::Tensor)
}

/// The stride of a pooling is its kernel where none is given.
fn pooling(args: &[Value], dilation: [usize; 2], rounds_up: bool) -> Result<Window, Fault> {
    let kernel = pair(&args[1])?;
    let stride = match &args[2] {
        Value::None => kernel,
        stride => pair(stride)?,
    };
    Ok(Window {
        kernel,
        stride,
        padding: both(pair(&args[3])?),
        dilation,
        rounds_up,
    })
}

fn pool(
    interpreter: &mut Interpreter<'_>,
    op_type: &'static str,
    input: &Tensor,
    window: &Window,
    more: Vec<(&'static str, Attribute)>,
) -> Result<Value, Fault> {
    check_dims(input, 4, "a pooling")?;
    let [height, width] = window.over(&input.shape, "a window")?;
    let mut attributes = vec![
        ("ceil_mode", Attribute::Int(i64::from(window.rounds_up))),
        ("kernel_shape", ints(&window.kernel)),
        ("pads", window.pads()),
        ("strides", ints(&window.stride)),
    ];
    attributes.extend(more);
    let shape = vec![input.shape[0], input.shape[1], height, width];
    interpreter
        .emit(op_type, &[&input.name], attributes, shape)
        .map(Value::Tensor)
}

fn max_pool2d(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let window = pooling(args, pair(&args[4])?, is_true(interpreter, &args[5])?)?;
    let more = vec![("dilations", ints(&window.dilation))];
    pool(interpreter, "MaxPool", &input, &window, more)
}

fn avg_pool2d(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let window = pooling(args, [1, 1], is_true(interpreter, &args[4])?)?;
    let counts = i64::from(is_true(interpreter, &args[5])?);
    let more = vec![("count_include_pad", Attribute::Int(counts))];
    pool(interpreter, "AveragePool", &input, &window, more)
}

/// To one position; in equal windows; or, where they are of different sizes, by a product with a matrix of means for each axis.
fn adaptive_avg_pool2d(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    check_dims(&input, 4, "a pooling")?;
    let from = [input.shape[2].n, input.shape[3].n];
    let to = match args[1].items().as_deref() {
        Some([height, width]) => {
            let size = |value: &Value, n: usize| match value {
                Value::None => Ok(n),
                value => super::usize_of(value),
            };
            [size(height, from[0])?, size(width, from[1])?]
        }
        _ => pair(&args[1])?,
    };
    if to.contains(&0) {
        return Err(Fault::new("a pooling to nothing"));
    }
    let shape = vec![
        input.shape[0],
        input.shape[1],
        Dim::fixed(to[0]),
        Dim::fixed(to[1]),
    ];
    if to == from {
        return Ok(Value::Tensor(input));
    }
    if to == [1, 1] {
        return interpreter
            .emit("GlobalAveragePool", &[&input.name], Vec::new(), shape)
            .map(Value::Tensor);
    }
    if (0..2).all(|at| from[at].is_multiple_of(to[at])) {
        let kernel = [from[0] / to[0], from[1] / to[1]];
        let window = Window {
            kernel,
            stride: kernel,
            padding: both([0, 0]),
            dilation: [1, 1],
            rounds_up: false,
        };
        return pool(interpreter, "AveragePool", &input, &window, Vec::new());
    }
    let rows = means(from[0], to[0]);
    let rows = interpreter.trace.constant(
        "AdaptiveAvgPool.rows",
        vec![to[0], from[0]],
        Values::Float32(rows),
    );
    let columns = means(from[1], to[1]);
    let turned = (0..from[1] * to[1])
        .map(|at| columns[at % to[1] * from[1] + at / to[1]])
        .collect();
    let columns = interpreter.trace.constant(
        "AdaptiveAvgPool.columns",
        vec![from[1], to[1]],
        Values::Float32(turned),
    );
    let between = vec![shape[0], shape[1], shape[2], input.shape[3]];
    let pooled = interpreter.emit("MatMul", &[&rows, &input.name], Vec::new(), between)?;
    interpreter
        .emit("MatMul", &[&pooled.name, &columns], Vec::new(), shape)
        .map(Value::Tensor)
}

/// Which share of each output is of each input: torch's windows begin at `floor(i * from / to)` and end at `ceil((i + 1) * from / to)`.
fn means(from: usize, to: usize) -> Vec<f32> {
    let mut out = vec![0.0; from * to];
    for (at, row) in out.chunks_exact_mut(from).enumerate() {
        let (start, end) = (at * from / to, ((at + 1) * from).div_ceil(to));
        row[start..end].fill(1.0 / (end - start) as f32);
    }
    out
}

/// `softmax(q k^T / sqrt(d)) v` over the last two axes.
fn attention(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let (q, k, v) = (tensor(&args[0])?, tensor(&args[1])?, tensor(&args[2])?);
    if !matches!(args[3], Value::None) || is_true(interpreter, &args[5])? {
        return Err(Fault::new("attention with a mask is not known"));
    }
    let n_dims = q.shape.len();
    if n_dims < 3
        || k.shape.len() != n_dims
        || v.shape.len() != n_dims
        || q.shape[n_dims - 1] != k.shape[n_dims - 1]
    {
        return Err(Fault::new(format!(
            "attention does not take {}, {} and {}",
            q.sizes(),
            k.sizes(),
            v.sizes()
        )));
    }
    let scale = match &args[6] {
        Value::None => 1.0 / (q.shape[n_dims - 1].n as f64).sqrt(),
        scale => float(scale)?,
    };
    let mut axes: Vec<i64> = (0..n_dims as i64).collect();
    axes.swap(n_dims - 1, n_dims - 2);
    let mut turned = k.shape.clone();
    turned.swap(n_dims - 1, n_dims - 2);
    let scale = interpreter.trace.float("Attention.scale", scale);
    let q: Rc<Tensor> = interpreter.emit("Mul", &[&q.name, &scale], Vec::new(), q.shape.clone())?;
    let k = interpreter.emit(
        "Transpose",
        &[&k.name],
        vec![("perm", Attribute::Ints(axes))],
        turned,
    )?;
    let mut shape = q.shape.clone();
    shape[n_dims - 1] = k.shape[n_dims - 1];
    let scores = interpreter.emit("MatMul", &[&q.name, &k.name], Vec::new(), shape.clone())?;
    let last = vec![("axis", Attribute::Int(-1))];
    let weights = interpreter.emit("Softmax", &[&scores.name], last, shape.clone())?;
    shape[n_dims - 1] = v.shape[n_dims - 1];
    interpreter
        .emit("MatMul", &[&weights.name, &v.name], Vec::new(), shape)
        .map(Value::Tensor)
}
