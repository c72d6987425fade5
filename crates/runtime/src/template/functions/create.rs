//! Tensors that hold what the checkpoint will say, and questions to the checkpoint.

use super::{Builtin, tensor, usize_of};
use crate::template::fault::Fault;
use crate::template::interpreter::Interpreter;
use crate::template::value::{Dim, Tensor, Value};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "zeros",
        signature: "zeros(*size, dtype=None, device=None, requires_grad=False)",
        run: |_, a| sized(&a[0]),
    },
    Builtin {
        name: "ones",
        signature: "ones(*size, dtype=None, device=None, requires_grad=False)",
        run: |_, a| sized(&a[0]),
    },
    Builtin {
        name: "empty",
        signature: "empty(*size, dtype=None, device=None, requires_grad=False)",
        run: |_, a| sized(&a[0]),
    },
    Builtin {
        name: "randn",
        signature: "randn(*size, dtype=None, device=None, requires_grad=False)",
        run: |_, a| sized(&a[0]),
    },
    Builtin {
        name: "rand",
        signature: "rand(*size, dtype=None, device=None, requires_grad=False)",
        run: |_, a| sized(&a[0]),
    },
    Builtin {
        name: "full",
        signature: "full(size, fill_value, dtype=None, device=None)",
        run: |_, a| sized(&Value::tuple(vec![a[0].clone()])),
    },
    Builtin {
        name: "tensor",
        signature: "tensor(data, dtype=None, device=None)",
        run: literal,
    },
    Builtin {
        name: "Parameter",
        signature: "Parameter(data, requires_grad=True)",
        run: |_, a| tensor(&a[0]).map(Value::Parameter),
    },
    Builtin {
        name: "linspace",
        signature: "linspace(start, end, steps)",
        run: linspace,
    },
    Builtin {
        name: "pair",
        signature: "pair(value)",
        run: pair,
    },
    Builtin {
        name: "size",
        signature: "size(name, axis, otherwise)",
        run: size,
    },
    Builtin {
        name: "count",
        signature: "count(name, otherwise=0)",
        run: count,
    },
    Builtin {
        name: "has",
        signature: "has(name)",
        run: has,
    },
];

/// The sizes as several arguments, or as one list.
fn sized(args: &Value) -> Result<Value, Fault> {
    let mut items = args.items().unwrap_or_default();
    if let [only] = items.as_slice()
        && let Some(inner) = only.items()
    {
        items = inner;
    }
    let shape = items
        .iter()
        .map(|item| usize_of(item).map(Dim::fixed))
        .collect::<Result<_, _>>()?;
    Ok(Value::tensor(Tensor::unnamed(shape)))
}

/// The sizes of nested lists.
fn literal(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let mut shape = Vec::new();
    let mut value = args[0].clone();
    while let Some(items) = value.items() {
        shape.push(Dim::fixed(items.len()));
        match items.first() {
            Some(first) => value = first.clone(),
            None => break,
        }
    }
    Ok(Value::tensor(Tensor::unnamed(shape)))
}

/// A number for both axes as two.
fn pair(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let numbers = super::pair(&args[0])?.map(|n| Value::Int(i64::try_from(n).unwrap_or(i64::MAX)));
    Ok(Value::tuple(numbers.to_vec()))
}

/// Rates of stochastic depth; numbers, and no tensor.
fn linspace(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let (start, end, n) = (
        super::float(&args[0])?,
        super::float(&args[1])?,
        usize_of(&args[2])?,
    );
    if n > 1_000_000 {
        return Err(Fault::new("more than a million steps"));
    }
    let step = if n > 1 {
        (end - start) / (n - 1) as f64
    } else {
        0.0
    };
    Ok(Value::list(
        (0..n).map(|at| Value::Float(start + step * at as f64)).collect(),
    ))
}

fn name_of(value: &Value) -> Result<&str, Fault> {
    match value {
        Value::Str(name) => Ok(name),
        other => Err(Fault::new(format!(
            "a tensor's name is needed, and not {}",
            other.kind()
        ))),
    }
}

/// The size of an axis of the checkpoint's tensor of that name, or `otherwise` where there is none.
fn size(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let sizes = (interpreter.sizes)(name_of(&args[0])?);
    let at = usize_of(&args[1])?;
    Ok(match sizes.and_then(|sizes| sizes.get(at).copied()) {
        Some(n) => Value::Int(i64::try_from(n).unwrap_or(i64::MAX)),
        None => args[2].clone(),
    })
}

/// How many tensors the checkpoint has with 0, 1, 2 and so on in the place of `{}`.
fn count(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    const MOST: usize = 10_000;
    let pattern = name_of(&args[0])?;
    let is_there = |n: &usize| (interpreter.sizes)(&pattern.replace("{}", &n.to_string())).is_some();
    let n = (0..MOST).take_while(is_there).count();
    Ok(match n {
        0 => args[1].clone(),
        n => Value::Int(n as i64),
    })
}

/// Whether the checkpoint has a tensor of that name.
fn has(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    Ok(Value::Bool((interpreter.sizes)(name_of(&args[0])?).is_some()))
}
