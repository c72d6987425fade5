//! The same numbers in another shape or order, and parts of them.

use std::rc::Rc;

use super::{Builtin, axes, axis, int, ints, tensor, usize_of};
use crate::template::fault::Fault;
use crate::template::interpreter::{Interpreter, position, slice};
use crate::template::trace::{Attribute, Values};
use crate::template::value::{Dim, Tensor, Value};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "flatten",
        signature: "flatten(input, start_dim=0, end_dim=-1)",
        run: flatten,
    },
    Builtin {
        name: "view",
        signature: "view(input, shape)",
        run: reshape,
    },
    Builtin {
        name: "reshape",
        signature: "reshape(input, shape)",
        run: reshape,
    },
    Builtin {
        name: "permute",
        signature: "permute(input, dims)",
        run: permute,
    },
    Builtin {
        name: "transpose",
        signature: "transpose(input, dim0, dim1)",
        run: transpose,
    },
    Builtin {
        name: "unsqueeze",
        signature: "unsqueeze(input, dim)",
        run: unsqueeze,
    },
    Builtin {
        name: "squeeze",
        signature: "squeeze(input, dim)",
        run: squeeze,
    },
    Builtin {
        name: "expand",
        signature: "expand(input, size)",
        run: expand,
    },
    Builtin {
        name: "cat",
        signature: "cat(tensors, dim=0)",
        run: cat,
    },
    Builtin {
        name: "concat",
        signature: "concat(tensors, dim=0)",
        run: cat,
    },
    Builtin {
        name: "stack",
        signature: "stack(tensors, dim=0)",
        run: stack,
    },
    Builtin {
        name: "chunk",
        signature: "chunk(input, chunks, dim=0)",
        run: chunk,
    },
    Builtin {
        name: "split",
        signature: "split(input, split_size, dim=0)",
        run: split,
    },
    Builtin {
        name: "unbind",
        signature: "unbind(input, dim=0)",
        run: unbind,
    },
    Builtin {
        name: "channel_shuffle",
        signature: "channel_shuffle(input, groups)",
        run: channel_shuffle,
    },
    Builtin {
        name: "contiguous",
        signature: "contiguous(input)",
        run: |_, a| Ok(a[0].clone()),
    },
    Builtin {
        name: "clone",
        signature: "clone(input)",
        run: |_, a| Ok(a[0].clone()),
    },
    Builtin {
        name: "float",
        signature: "float(input)",
        run: as_float,
    },
    Builtin {
        name: "type_as",
        signature: "type_as(input, other)",
        run: |_, a| Ok(a[0].clone()),
    },
];

/// A tensor is float32 as it is; a number becomes one.
fn as_float(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    match args[0].float() {
        Some(number) => Ok(Value::Float(number)),
        None => Ok(args[0].clone()),
    }
}

fn numel(dims: &[Dim]) -> Result<Dim, Fault> {
    let mut n = 1usize;
    for dim in dims {
        n = n
            .checked_mul(dim.n)
            .ok_or_else(|| Fault::new("a tensor that is too large"))?;
    }
    match dims.iter().filter(|dim| dim.is_batch).count() {
        0 => Ok(Dim::fixed(n)),
        1 => Ok(Dim::batch(n)),
        _ => Err(Fault::new("two axes that are as large as the batch")),
    }
}

/// The shape that `wanted` means, where one size may be -1.
fn target(input: &Tensor, wanted: &[Value]) -> Result<Vec<Dim>, Fault> {
    let whole = numel(&input.shape)?;
    let odd = || Fault::new(format!("{} cannot be arranged as {:?}", input.sizes(), wanted));
    let mut shape = Vec::new();
    let mut open = None;
    for (at, value) in wanted.iter().enumerate() {
        shape.push(match value {
            Value::Batch(n) => Dim::batch(usize::try_from(*n).map_err(|_| odd())?),
            Value::Int(-1) if open.is_none() => {
                open = Some(at);
                Dim::fixed(1)
            }
            value => Dim::fixed(usize_of(value)?),
        });
    }
    let known = numel(&shape)?;
    if let Some(at) = open {
        if known.n == 0 || whole.n % known.n != 0 || known.is_batch && !whole.is_batch {
            return Err(odd());
        }
        shape[at] = Dim {
            n: whole.n / known.n,
            is_batch: whole.is_batch && !known.is_batch,
        };
    } else if known != whole {
        return Err(odd());
    }
    Ok(shape)
}

/// A node that arranges `input` as `shape`, which has as many elements.
fn arrange(interpreter: &mut Interpreter<'_>, input: &Tensor, shape: Vec<Dim>) -> Result<Rc<Tensor>, Fault> {
    if shape == input.shape {
        return Ok(Rc::new(input.clone()));
    }
    // 0 is the input's own size there, -1 what is left.
    let sizes: Vec<i64> = shape
        .iter()
        .enumerate()
        .map(|(at, dim)| match dim.is_batch {
            false => dim.n as i64,
            true if input.shape.get(at) == Some(dim) => 0,
            true => -1,
        })
        .collect();
    let sizes = interpreter.trace.ints("Reshape.shape", &sizes);
    interpreter.emit("Reshape", &[&input.name, &sizes], Vec::new(), shape)
}

fn reshape(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let wanted = args[1].items().unwrap_or_else(|| vec![args[1].clone()]);
    let shape = target(&input, &wanted)?;
    let is_rows = matches!(shape.as_slice(), [rows, columns] if rows.is_batch && !columns.is_batch);
    if is_rows && input.shape.first() == shape.first() && input.shape.len() > 2 {
        return rows(interpreter, &input);
    }
    arrange(interpreter, &input, shape).map(Value::Tensor)
}

/// Each sample's numbers as one row.
fn rows(interpreter: &mut Interpreter<'_>, input: &Tensor) -> Result<Value, Fault> {
    let shape = vec![input.shape[0], numel(&input.shape[1..])?];
    let attributes = vec![("axis", Attribute::Int(1))];
    interpreter
        .emit("Flatten", &[&input.name], attributes, shape)
        .map(Value::Tensor)
}

fn flatten(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let n_dims = input.shape.len();
    let (first, last) = (axis(&args[1], n_dims)?, axis(&args[2], n_dims)?);
    if first > last {
        return Err(Fault::new("`start_dim` is behind `end_dim`"));
    }
    if first == 1 && last + 1 == n_dims && n_dims > 2 {
        return rows(interpreter, &input);
    }
    let mut shape = input.shape[..first].to_vec();
    shape.push(numel(&input.shape[first..=last])?);
    shape.extend_from_slice(&input.shape[last + 1..]);
    arrange(interpreter, &input, shape).map(Value::Tensor)
}

fn permuted(interpreter: &mut Interpreter<'_>, input: &Tensor, order: &[usize]) -> Result<Rc<Tensor>, Fault> {
    let mut seen = vec![false; input.shape.len()];
    let is_order =
        order.len() == seen.len() && order.iter().all(|&at| !std::mem::replace(&mut seen[at], true));
    if !is_order {
        return Err(Fault::new(format!(
            "{order:?} is no order of the axes of {}",
            input.sizes()
        )));
    }
    let shape = order.iter().map(|&at| input.shape[at]).collect();
    interpreter.emit("Transpose", &[&input.name], vec![("perm", ints(order))], shape)
}

fn permute(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let order = axes(&args[1], input.shape.len())?;
    permuted(interpreter, &input, &order).map(Value::Tensor)
}

fn transpose(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let n_dims = input.shape.len();
    let mut order: Vec<usize> = (0..n_dims).collect();
    order.swap(axis(&args[1], n_dims)?, axis(&args[2], n_dims)?);
    permuted(interpreter, &input, &order).map(Value::Tensor)
}

fn unsqueeze(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let at = axis(&args[1], input.shape.len() + 1)?;
    let mut shape = input.shape.clone();
    shape.insert(at, Dim::fixed(1));
    let axes = interpreter.trace.ints("Unsqueeze.axes", &[at as i64]);
    interpreter
        .emit("Unsqueeze", &[&input.name, &axes], Vec::new(), shape)
        .map(Value::Tensor)
}

fn squeeze(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let chosen: Vec<usize> = axes(&args[1], input.shape.len())?
        .into_iter()
        .filter(|&at| input.shape[at] == Dim::fixed(1))
        .collect();
    if chosen.is_empty() {
        return Ok(args[0].clone());
    }
    let kept = input
        .shape
        .iter()
        .enumerate()
        .filter(|(at, _)| !chosen.contains(at));
    let shape = kept.map(|(_, &dim)| dim).collect();
    let numbers: Vec<i64> = chosen.iter().map(|&at| at as i64).collect();
    let axes = interpreter.trace.ints("Squeeze.axes", &numbers);
    interpreter
        .emit("Squeeze", &[&input.name, &axes], Vec::new(), shape)
        .map(Value::Tensor)
}

/// Axes of size 1 repeated; where one becomes the batch, its size is asked of the network's input.
fn expand(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let wanted = args[1].items().unwrap_or_else(|| vec![args[1].clone()]);
    let odd = || Fault::new(format!("{} cannot be expanded to {wanted:?}", input.sizes()));
    let new = wanted.len().checked_sub(input.shape.len()).ok_or_else(odd)?;
    let mut shape = Vec::new();
    for (at, value) in wanted.iter().enumerate() {
        let old = at.checked_sub(new).map_or(Dim::fixed(1), |at| input.shape[at]);
        let dim = match value {
            Value::Batch(n) => Dim::batch(usize::try_from(*n).map_err(|_| odd())?),
            value => match int(value)? {
                -1 => old,
                n => Dim::fixed(usize::try_from(n).map_err(|_| odd())?),
            },
        };
        if old != dim && old != Dim::fixed(1) {
            return Err(odd());
        }
        shape.push(dim);
    }
    if shape == input.shape {
        return Ok(args[0].clone());
    }
    let is_batch = shape.iter().any(|dim| dim.is_batch);
    let sizes: Vec<i64> = shape.iter().map(|dim| dim.n as i64).collect();
    let name = if is_batch && interpreter.is_tracing() {
        let input = interpreter.input_name();
        let trace = &mut interpreter.trace;
        let ends = vec![("end", Attribute::Int(1)), ("start", Attribute::Int(0))];
        let batch = trace.sizes_node("Shape", &[&input], ends);
        // As many times the batch where it is one of the sizes, and the size itself where it is not.
        let mut parts = Vec::new();
        for (dim, &n) in shape.iter().zip(&sizes) {
            parts.push(match (dim.is_batch, n) {
                (false, n) => trace.ints("Expand.size", &[n]),
                (true, 1) => batch.clone(),
                (true, n) => {
                    let times = trace.ints("Expand.times", &[n]);
                    trace.sizes_node("Mul", &[&batch, &times], Vec::new())
                }
            });
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        trace.sizes_node("Concat", &parts, vec![("axis", Attribute::Int(0))])
    } else {
        interpreter.trace.ints("Expand.shape", &sizes)
    };
    interpreter
        .emit("Expand", &[&input.name, &name], Vec::new(), shape)
        .map(Value::Tensor)
}

fn tensors(value: &Value) -> Result<Vec<Rc<Tensor>>, Fault> {
    let items = value
        .items()
        .filter(|items| !items.is_empty())
        .ok_or_else(|| Fault::new("a list of tensors is needed"))?;
    items.iter().map(tensor).collect()
}

fn joined(interpreter: &mut Interpreter<'_>, parts: &[Rc<Tensor>], at: usize) -> Result<Value, Fault> {
    let mut shape = parts[0].shape.clone();
    for part in &parts[1..] {
        let fits = part.shape.len() == shape.len()
            && (0..shape.len()).all(|axis| axis == at || part.shape[axis] == shape[axis])
            && part.shape[at].is_batch == shape[at].is_batch;
        if !fits {
            return Err(Fault::new(format!(
                "{} and {} cannot be joined along axis {at}",
                parts[0].sizes(),
                part.sizes()
            )));
        }
        shape[at].n += part.shape[at].n;
    }
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    interpreter
        .emit("Concat", &names, vec![("axis", Attribute::Int(at as i64))], shape)
        .map(Value::Tensor)
}

fn cat(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let parts = tensors(&args[0])?;
    let at = axis(&args[1], parts[0].shape.len())?;
    joined(interpreter, &parts, at)
}

fn stack(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let parts = tensors(&args[0])?;
    let at = axis(&args[1], parts[0].shape.len() + 1)?;
    let dim = Value::Int(at as i64);
    let mut wide = Vec::new();
    for part in parts {
        wide.push(tensor(&unsqueeze(
            interpreter,
            &[Value::Tensor(part), dim.clone()],
        )?)?);
    }
    joined(interpreter, &wide, at)
}

/// Parts of these sizes along an axis.
fn parts(
    interpreter: &mut Interpreter<'_>,
    input: &Tensor,
    at: usize,
    sizes: &[usize],
) -> Result<Value, Fault> {
    if input.shape[at].is_batch || sizes.iter().sum::<usize>() != input.shape[at].n {
        return Err(Fault::new(format!(
            "{} has no parts of {sizes:?} along axis {at}",
            input.sizes()
        )));
    }
    let shapes = sizes
        .iter()
        .map(|&n| {
            let mut shape = input.shape.clone();
            shape[at] = Dim::fixed(n);
            shape
        })
        .collect();
    let numbers: Vec<i64> = sizes.iter().map(|&n| n as i64).collect();
    let lengths = interpreter.trace.ints("Split.sizes", &numbers);
    let attributes = vec![("axis", Attribute::Int(at as i64))];
    let outputs = interpreter.emit_all("Split", &[&input.name, &lengths], attributes, shapes)?;
    Ok(Value::tuple(outputs.into_iter().map(Value::Tensor).collect()))
}

/// `n` cut into pieces of `size`, the last of which may be smaller.
fn pieces(n: usize, size: usize) -> Result<Vec<usize>, Fault> {
    if size == 0 {
        return Err(Fault::new("parts of nothing"));
    }
    Ok((0..n).step_by(size).map(|at| size.min(n - at)).collect())
}

fn chunk(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let at = axis(&args[2], input.shape.len())?;
    let n = usize_of(&args[1])?.max(1);
    let sizes = pieces(input.shape[at].n, input.shape[at].n.div_ceil(n))?;
    parts(interpreter, &input, at, &sizes)
}

fn split(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let at = axis(&args[2], input.shape.len())?;
    let sizes = match args[1].items() {
        Some(items) => items.iter().map(usize_of).collect::<Result<_, _>>()?,
        None => pieces(input.shape[at].n, usize_of(&args[1])?)?,
    };
    parts(interpreter, &input, at, &sizes)
}

fn unbind(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let at = axis(&args[1], input.shape.len())?;
    if input.shape[at].is_batch || input.shape[at].n > 1024 {
        return Err(Fault::new(format!(
            "{} cannot be taken apart along axis {at}",
            input.sizes()
        )));
    }
    let items = (0..input.shape[at].n).map(|n| gather(interpreter, &input, at, n).map(Value::Tensor));
    Ok(Value::tuple(items.collect::<Result<_, _>>()?))
}

fn channel_shuffle(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    super::check_dims(&input, 4, "`channel_shuffle`")?;
    let (groups, channels) = (usize_of(&args[1])?, input.shape[1].n);
    if groups == 0 || channels % groups != 0 {
        return Err(Fault::new(format!("{channels} channels are not {groups} groups")));
    }
    let mut wide = input.shape.clone();
    wide.splice(1..2, [Dim::fixed(groups), Dim::fixed(channels / groups)]);
    let grouped = arrange(interpreter, &input, wide)?;
    let turned = permuted(interpreter, &grouped, &[0, 2, 1, 3, 4])?;
    arrange(interpreter, &turned, input.shape.clone()).map(Value::Tensor)
}

/// One item of an axis, which is gone then.
fn gather(
    interpreter: &mut Interpreter<'_>,
    input: &Tensor,
    at: usize,
    n: usize,
) -> Result<Rc<Tensor>, Fault> {
    let index = interpreter
        .trace
        .constant("Gather.index", Vec::new(), Values::Int64(vec![n as i64]));
    let mut shape = input.shape.clone();
    shape.remove(at);
    let attributes = vec![("axis", Attribute::Int(at as i64))];
    interpreter.emit("Gather", &[&input.name, &index], attributes, shape)
}

/// `tensor[key]`: numbers, slices, `None` and `...`.
pub(in crate::template) fn index(
    interpreter: &mut Interpreter<'_>,
    input: &Rc<Tensor>,
    key: &Value,
) -> Result<Value, Fault> {
    let keys = match key {
        Value::Tuple(keys) => keys.to_vec(),
        other => vec![other.clone()],
    };
    let n_taken = keys
        .iter()
        .filter(|key| !matches!(key, Value::None | Value::Ellipsis))
        .count();
    if n_taken > input.shape.len() {
        return Err(Fault::new(format!("{} has no {n_taken} axes", input.sizes())));
    }
    let mut out = input.clone();
    let mut at = 0;
    for key in keys {
        match key {
            // Over the axes that no key takes.
            Value::Ellipsis => at += input.shape.len() - n_taken,
            Value::None => {
                let dim = Value::Int(at as i64);
                out = tensor(&unsqueeze(interpreter, &[Value::Tensor(out), dim])?)?;
                at += 1;
            }
            Value::Slice(bounds) => {
                if !bounds.iter().all(|bound| matches!(bound, Value::None)) {
                    out = sliced(interpreter, &out, at, &bounds)?;
                }
                at += 1;
            }
            key => {
                if out.shape[at].is_batch {
                    return Err(Fault::new("one sample of the batch cannot be taken"));
                }
                let n = position(&key, out.shape[at].n)?;
                out = gather(interpreter, &out, at, n)?;
            }
        }
    }
    Ok(Value::Tensor(out))
}

fn sliced(
    interpreter: &mut Interpreter<'_>,
    input: &Tensor,
    at: usize,
    bounds: &[Value; 3],
) -> Result<Rc<Tensor>, Fault> {
    if input.shape[at].is_batch {
        return Err(Fault::new("a part of the batch cannot be taken"));
    }
    let n = input.shape[at].n;
    let chosen = slice(bounds, n)?;
    let (Some(&first), Some(&last)) = (chosen.first(), chosen.last()) else {
        return Err(Fault::new("a slice of nothing"));
    };
    let step = chosen.get(1).map_or(1, |second| second - first);
    let mut shape = input.shape.clone();
    shape[at] = Dim::fixed(chosen.len());
    let mut inputs = vec![input.name.clone()];
    for (what, value) in [
        ("starts", first),
        ("ends", last + 1),
        ("axes", at),
        ("steps", step),
    ] {
        inputs.push(interpreter.trace.ints(&format!("Slice.{what}"), &[value as i64]));
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    interpreter.emit("Slice", &inputs, Vec::new(), shape)
}
