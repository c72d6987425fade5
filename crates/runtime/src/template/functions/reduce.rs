//! Axes that become one number.

use super::{Builtin, Fault, Interpreter, Value, axes, ints, is_true, tensor};
use crate::template::trace::Attribute;
use crate::template::value::Dim;

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "mean",
        signature: "mean(input, dim, keepdim=False)",
        run: |i, a| reduce(i, "ReduceMean", a),
    },
    Builtin {
        name: "amax",
        signature: "amax(input, dim, keepdim=False)",
        run: |i, a| reduce(i, "ReduceMax", a),
    },
    Builtin {
        name: "norm",
        signature: "norm(input, dim, keepdim=False)",
        run: |i, a| reduce(i, "ReduceL2", a),
    },
];

/// The axes are an attribute, as operator set 17 has it.
fn reduce(interpreter: &mut Interpreter<'_>, op_type: &'static str, args: &[Value]) -> Result<Value, Fault> {
    let input = tensor(&args[0])?;
    let axes = axes(&args[1], input.shape.len())?;
    if axes.iter().any(|&at| input.shape[at].is_batch) {
        return Err(Fault::new("the samples of a batch do not depend on each other"));
    }
    let keeps = is_true(interpreter, &args[2])?;
    let mut shape = Vec::new();
    for (at, &dim) in input.shape.iter().enumerate() {
        match (axes.contains(&at), keeps) {
            (false, _) => shape.push(dim),
            (true, true) => shape.push(Dim::fixed(1)),
            (true, false) => {}
        }
    }
    let attributes = vec![
        ("axes", ints(&axes)),
        ("keepdims", Attribute::Int(i64::from(keeps))),
    ];
    interpreter
        .emit(op_type, &[&input.name], attributes, shape)
        .map(Value::Tensor)
}
