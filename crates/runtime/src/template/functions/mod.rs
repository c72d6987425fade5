//! What templates call that is not written in their language: functions of torch on tensors, and of Python on numbers and lists.

mod activation;
mod arrange;
mod create;
mod layer;
pub(super) mod python;
mod reduce;
mod value;

pub(super) use arrange::index;
pub(super) use value::arithmetic;

use std::rc::Rc;

use super::fault::Fault;
use super::interpreter::Interpreter;
use super::parse::parse_signature;
use super::syntax::Param;
use super::trace::Attribute;
use super::value::{Dim, Tensor, Value};

/// A function of this crate.
pub(super) struct Builtin {
    pub(super) name: &'static str,
    /// Its parameters with their defaults, as Python has them.
    signature: &'static str,
    /// Takes a value for each parameter.
    pub(super) run: fn(&mut Interpreter<'_>, &[Value]) -> Result<Value, Fault>,
}

/// Methods whose sizes may stand as several arguments or as one list.
pub(super) const TAKES_SIZES: [&str; 5] = ["view", "reshape", "permute", "expand", "repeat"];

const TABLES: [&[Builtin]; 7] = [
    activation::TABLE,
    arrange::TABLE,
    create::TABLE,
    layer::TABLE,
    python::TABLE,
    reduce::TABLE,
    value::TABLE,
];

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Builtin> {
    TABLES.into_iter().flatten().find(|builtin| builtin.name == name)
}

/// All their names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().flatten().map(|builtin| builtin.name)
}

impl Builtin {
    /// What it takes.
    pub(super) fn params(&self) -> Result<Rc<[Param]>, Fault> {
        Ok(parse_signature(self.signature)?.into())
    }

    /// Whether tensors have it as a method.
    pub(super) fn is_method(&self) -> bool {
        self.signature.contains("(input")
    }
}

type Attributes = Vec<(&'static str, Attribute)>;

impl Interpreter<'_> {
    /// A node of the trace; only sizes where nothing is traced, as in `__init__`.
    pub(super) fn emit(
        &mut self,
        op_type: &'static str,
        inputs: &[&str],
        attributes: Attributes,
        shape: Vec<Dim>,
    ) -> Result<Rc<Tensor>, Fault> {
        let mut outputs = self.emit_all(op_type, inputs, attributes, vec![shape])?;
        Ok(outputs.pop().expect("one for each shape"))
    }

    /// As [`emit`](Interpreter::emit), with an output for each of `shapes`.
    pub(super) fn emit_all(
        &mut self,
        op_type: &'static str,
        inputs: &[&str],
        attributes: Attributes,
        shapes: Vec<Vec<Dim>>,
    ) -> Result<Vec<Rc<Tensor>>, Fault> {
        if !self.is_tracing() {
            return Ok(shapes
                .into_iter()
                .map(|shape| Rc::new(Tensor::unnamed(shape)))
                .collect());
        }
        if inputs.iter().any(|input| input.is_empty()) {
            return Err(Fault::new(
                "a tensor that is neither computed from the input nor a parameter nor a buffer of the network",
            ));
        }
        let outputs = self.trace.node_of(op_type, inputs, attributes, shapes);
        Ok(outputs.into_iter().map(Rc::new).collect())
    }
}

pub(super) fn tensor(value: &Value) -> Result<Rc<Tensor>, Fault> {
    match value {
        Value::Tensor(tensor) | Value::Parameter(tensor) => Ok(tensor.clone()),
        other => Err(Fault::new(format!(
            "a tensor is needed, and not {}",
            other.kind()
        ))),
    }
}

fn optional_tensor(value: &Value) -> Result<Option<Rc<Tensor>>, Fault> {
    match value {
        Value::None => Ok(None),
        value => tensor(value).map(Some),
    }
}

fn int(value: &Value) -> Result<i64, Fault> {
    value
        .int()
        .ok_or_else(|| Fault::new(format!("a whole number is needed, and not {}", value.kind())))
}

fn usize_of(value: &Value) -> Result<usize, Fault> {
    let n = int(value)?;
    usize::try_from(n).map_err(|_| Fault::new(format!("{n} is below zero")))
}

fn float(value: &Value) -> Result<f64, Fault> {
    value
        .float()
        .ok_or_else(|| Fault::new(format!("a number is needed, and not {}", value.kind())))
}

/// A number for both axes, or two.
fn pair(value: &Value) -> Result<[usize; 2], Fault> {
    match value.items().as_deref() {
        None => {
            let n = usize_of(value)?;
            Ok([n, n])
        }
        Some([n]) => Ok([usize_of(n)?; 2]),
        Some([a, b]) => Ok([usize_of(a)?, usize_of(b)?]),
        Some(items) => Err(Fault::new(format!(
            "two numbers are needed, and not {}",
            items.len()
        ))),
    }
}

/// One axis or several, counted from the beginning.
fn axes(value: &Value, n_dims: usize) -> Result<Vec<usize>, Fault> {
    match value.items() {
        Some(items) => items.iter().map(|item| axis(item, n_dims)).collect(),
        None => Ok(vec![axis(value, n_dims)?]),
    }
}

fn axis(value: &Value, n_dims: usize) -> Result<usize, Fault> {
    let at = int(value)?;
    let wanted = if at < 0 { at + n_dims as i64 } else { at };
    usize::try_from(wanted)
        .ok()
        .filter(|&at| at < n_dims)
        .ok_or_else(|| Fault::new(format!("a tensor of {n_dims} axes has no axis {at}")))
}

fn ints(values: &[usize]) -> Attribute {
    Attribute::Ints(values.iter().map(|&value| value as i64).collect())
}

fn is_true(interpreter: &Interpreter<'_>, value: &Value) -> Result<bool, Fault> {
    interpreter.truth(value)
}

/// A tensor of so many axes, for messages that name the function.
fn check_dims(tensor: &Tensor, n_dims: usize, what: &str) -> Result<(), Fault> {
    if tensor.shape.len() == n_dims {
        return Ok(());
    }
    Err(Fault::new(format!(
        "{what} takes a tensor of {n_dims} axes, and this is {}",
        tensor.sizes()
    )))
}
