//! Arithmetic of tensors with tensors and numbers.

use super::{Builtin, Fault, Interpreter, Value, tensor};
use crate::template::value::{Dim, Tensor};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "add",
        signature: "add(input, other)",
        run: |i, a| arithmetic(i, "+", &a[0], &a[1]),
    },
    Builtin {
        name: "sub",
        signature: "sub(input, other)",
        run: |i, a| arithmetic(i, "-", &a[0], &a[1]),
    },
    Builtin {
        name: "mul",
        signature: "mul(input, other)",
        run: |i, a| arithmetic(i, "*", &a[0], &a[1]),
    },
    Builtin {
        name: "div",
        signature: "div(input, other)",
        run: |i, a| arithmetic(i, "/", &a[0], &a[1]),
    },
    Builtin {
        name: "pow",
        signature: "pow(input, exponent)",
        run: |i, a| arithmetic(i, "**", &a[0], &a[1]),
    },
    Builtin {
        name: "matmul",
        signature: "matmul(input, other)",
        run: |i, a| arithmetic(i, "@", &a[0], &a[1]),
    },
    Builtin {
        name: "bmm",
        signature: "bmm(input, mat2)",
        run: |i, a| arithmetic(i, "@", &a[0], &a[1]),
    },
    Builtin {
        name: "add_",
        signature: "add_(input, other)",
        run: |i, a| arithmetic(i, "+", &a[0], &a[1]),
    },
    Builtin {
        name: "mul_",
        signature: "mul_(input, other)",
        run: |i, a| arithmetic(i, "*", &a[0], &a[1]),
    },
];

/// `left sign right`, where at least one is a tensor.
pub(in crate::template) fn arithmetic(
    interpreter: &mut Interpreter<'_>,
    sign: &str,
    left: &Value,
    right: &Value,
) -> Result<Value, Fault> {
    let op_type = match sign {
        "+" => "Add",
        "-" => "Sub",
        "*" => "Mul",
        "/" => "Div",
        "**" => "Pow",
        "@" => return product(interpreter, left, right),
        _ => return Err(Fault::new(format!("`{sign}` is not for tensors"))),
    };
    // Sums of features and constants of no effect, such as `x + 0`, stay as they are written.
    let (name_left, shape_left) = operand(interpreter, left)?;
    let (name_right, shape_right) = operand(interpreter, right)?;
    let shape = broadcast(&shape_left, &shape_right).ok_or_else(|| {
        let sizes = |shape: &[Dim]| Tensor::unnamed(shape.to_vec()).sizes();
        Fault::new(format!(
            "`{sign}` does not go together for {} and {}",
            sizes(&shape_left),
            sizes(&shape_right)
        ))
    })?;
    interpreter
        .emit(op_type, &[&name_left, &name_right], Vec::new(), shape)
        .map(Value::Tensor)
}

/// A tensor's name and shape; a number becomes a constant.
fn operand(interpreter: &mut Interpreter<'_>, value: &Value) -> Result<(String, Vec<Dim>), Fault> {
    match value.float() {
        Some(number) => Ok((interpreter.trace.float("scalar", number), Vec::new())),
        None => {
            let tensor = tensor(value)?;
            Ok((tensor.name.clone(), tensor.shape.clone()))
        }
    }
}

/// The shape that two go together as, as numpy has it.
fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let n = a.len().max(b.len());
    let dim = |shape: &[Dim], at: usize| {
        (at + shape.len())
            .checked_sub(n)
            .map_or(Dim::fixed(1), |at| shape[at])
    };
    (0..n)
        .map(|at| match (dim(a, at), dim(b, at)) {
            (a, b) if a == b => Some(a),
            (a, b) if b == Dim::fixed(1) => Some(a),
            (a, b) if a == Dim::fixed(1) => Some(b),
            _ => None,
        })
        .collect()
}

/// Matrix product over the last two axes.
fn product(interpreter: &mut Interpreter<'_>, left: &Value, right: &Value) -> Result<Value, Fault> {
    let (a, b) = (tensor(left)?, tensor(right)?);
    let odd = || {
        Fault::new(format!(
            "`@` does not go together for {} and {}",
            a.sizes(),
            b.sizes()
        ))
    };
    let ([a_rest @ .., rows, inner], [b_rest @ .., depth, columns]) =
        (a.shape.as_slice(), b.shape.as_slice())
    else {
        return Err(odd());
    };
    if inner != depth {
        return Err(odd());
    }
    let mut shape = broadcast(a_rest, b_rest).ok_or_else(odd)?;
    shape.extend([*rows, *columns]);
    interpreter
        .emit("MatMul", &[&a.name, &b.name], Vec::new(), shape)
        .map(Value::Tensor)
}
