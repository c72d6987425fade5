//! Functions of each element alone, and softmax.

use std::rc::Rc;

use super::{Attributes, Builtin, axis, float, tensor};
use crate::template::fault::Fault;
use crate::template::interpreter::Interpreter;
use crate::template::trace::Attribute;
use crate::template::value::{Tensor, Value};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "relu",
        signature: "relu(input, inplace=False)",
        run: |i, a| plain(i, "Relu", &a[0]),
    },
    Builtin {
        name: "relu_",
        signature: "relu_(input)",
        run: |i, a| plain(i, "Relu", &a[0]),
    },
    Builtin {
        name: "sigmoid",
        signature: "sigmoid(input)",
        run: |i, a| plain(i, "Sigmoid", &a[0]),
    },
    Builtin {
        name: "tanh",
        signature: "tanh(input)",
        run: |i, a| plain(i, "Tanh", &a[0]),
    },
    Builtin {
        name: "exp",
        signature: "exp(input)",
        run: |i, a| plain(i, "Exp", &a[0]),
    },
    Builtin {
        name: "sqrt",
        signature: "sqrt(input)",
        run: sqrt,
    },
    Builtin {
        name: "erf",
        signature: "erf(input)",
        run: |i, a| plain(i, "Erf", &a[0]),
    },
    Builtin {
        name: "relu6",
        signature: "relu6(input, inplace=False)",
        run: |i, a| clip(i, &a[0], Some(0.0), Some(6.0)),
    },
    Builtin {
        name: "hardtanh",
        signature: "hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False)",
        run: |i, a| clip(i, &a[0], Some(float(&a[1])?), Some(float(&a[2])?)),
    },
    Builtin {
        name: "clamp",
        signature: "clamp(input, min=None, max=None)",
        run: clamp,
    },
    Builtin {
        name: "hardswish",
        signature: "hardswish(input, inplace=False)",
        run: |i, a| plain(i, "HardSwish", &a[0]),
    },
    Builtin {
        name: "hardsigmoid",
        signature: "hardsigmoid(input, inplace=False)",
        run: hardsigmoid,
    },
    Builtin {
        name: "silu",
        signature: "silu(input, inplace=False)",
        run: silu,
    },
    Builtin {
        name: "gelu",
        signature: "gelu(input, approximate='none')",
        run: gelu,
    },
    Builtin {
        name: "leaky_relu",
        signature: "leaky_relu(input, negative_slope=0.01, inplace=False)",
        run: |i, a| with_alpha(i, "LeakyRelu", &a[0], &a[1]),
    },
    Builtin {
        name: "elu",
        signature: "elu(input, alpha=1.0, inplace=False)",
        run: |i, a| with_alpha(i, "Elu", &a[0], &a[1]),
    },
    Builtin {
        name: "softmax",
        signature: "softmax(input, dim, dtype=None)",
        run: |i, a| along(i, "Softmax", a),
    },
    Builtin {
        name: "log_softmax",
        signature: "log_softmax(input, dim, dtype=None)",
        run: |i, a| along(i, "LogSoftmax", a),
    },
    Builtin {
        name: "dropout",
        signature: "dropout(input, p=0.5, training=False, inplace=False)",
        run: |_, a| Ok(a[0].clone()),
    },
    Builtin {
        name: "stochastic_depth",
        signature: "stochastic_depth(input, p, mode, training=False)",
        run: |_, a| Ok(a[0].clone()),
    },
];

fn apply(
    interpreter: &mut Interpreter<'_>,
    op_type: &'static str,
    input: &Tensor,
    attributes: Attributes,
) -> Result<Rc<Tensor>, Fault> {
    interpreter.emit(op_type, &[&input.name], attributes, input.shape.clone())
}

fn plain(interpreter: &mut Interpreter<'_>, op_type: &'static str, input: &Value) -> Result<Value, Fault> {
    let input = tensor(input)?;
    apply(interpreter, op_type, &input, Vec::new()).map(Value::Tensor)
}

/// Of a number, too: `math.sqrt`.
fn sqrt(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    match args[0].float() {
        Some(number) => Ok(Value::Float(number.sqrt())),
        None => plain(interpreter, "Sqrt", &args[0]),
    }
}

fn clip(
    interpreter: &mut Interpreter<'_>,
    input: &Value,
    least: Option<f64>,
    most: Option<f64>,
) -> Result<Value, Fault> {
    let input = tensor(input)?;
    let mut inputs = vec![input.name.clone()];
    match least {
        Some(least) => inputs.push(interpreter.trace.float("Clip.min", least)),
        None => inputs.push(interpreter.trace.float("Clip.min", f64::from(f32::MIN))),
    }
    if let Some(most) = most {
        inputs.push(interpreter.trace.float("Clip.max", most));
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    interpreter
        .emit("Clip", &inputs, Vec::new(), input.shape.clone())
        .map(Value::Tensor)
}

fn clamp(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        value => float(value).map(Some),
    };
    clip(interpreter, &args[0], bound(&args[1])?, bound(&args[2])?)
}

fn hardsigmoid(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let attributes = vec![
        ("alpha", Attribute::Float(1.0 / 6.0)),
        ("beta", Attribute::Float(0.5)),
    ];
    let input = tensor(&args[0])?;
    apply(interpreter, "HardSigmoid", &input, attributes).map(Value::Tensor)
}

fn silu(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let gate = apply(interpreter, "Sigmoid", &input, Vec::new())?;
    interpreter
        .emit("Mul", &[&input.name, &gate.name], Vec::new(), input.shape.clone())
        .map(Value::Tensor)
}

/// By the error function, as torch's exporter spells it before operator set 20; `tanh` is the approximation that GPT-2 has.
fn gelu(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let x = tensor(&args[0])?;
    let binary = |interpreter: &mut Interpreter<'_>, op_type, a: &str, b: &str| {
        interpreter.emit(op_type, &[a, b], Vec::new(), x.shape.clone())
    };
    let inner = match &args[1] {
        Value::Str(text) if &**text == "tanh" => {
            let three = interpreter.trace.float("Gelu.three", 3.0);
            let cubic = binary(interpreter, "Pow", &x.name, &three)?;
            let factor = interpreter.trace.float("Gelu.cubic", 0.044_715);
            let cubic = binary(interpreter, "Mul", &cubic.name, &factor)?;
            let sum = binary(interpreter, "Add", &x.name, &cubic.name)?;
            let scale = interpreter
                .trace
                .float("Gelu.scale", (2.0 / std::f64::consts::PI).sqrt());
            let scaled = binary(interpreter, "Mul", &sum.name, &scale)?;
            apply(interpreter, "Tanh", &scaled, Vec::new())?
        }
        _ => {
            let root = interpreter.trace.float("Gelu.root", std::f64::consts::SQRT_2);
            let scaled = binary(interpreter, "Div", &x.name, &root)?;
            apply(interpreter, "Erf", &scaled, Vec::new())?
        }
    };
    let one = interpreter.trace.float("Gelu.one", 1.0);
    let weight = binary(interpreter, "Add", &inner.name, &one)?;
    let product = binary(interpreter, "Mul", &x.name, &weight.name)?;
    let half = interpreter.trace.float("Gelu.half", 0.5);
    binary(interpreter, "Mul", &product.name, &half).map(Value::Tensor)
}

fn with_alpha(
    interpreter: &mut Interpreter<'_>,
    op_type: &'static str,
    input: &Value,
    alpha: &Value,
) -> Result<Value, Fault> {
    let input = tensor(input)?;
    let attributes = vec![("alpha", Attribute::Float(float(alpha)? as f32))];
    apply(interpreter, op_type, &input, attributes).map(Value::Tensor)
}

fn along(interpreter: &mut Interpreter<'_>, op_type: &'static str, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let axis = axis(&args[1], input.shape.len())?;
    let attributes = vec![("axis", Attribute::Int(axis as i64))];
    apply(interpreter, op_type, &input, attributes).map(Value::Tensor)
}
