//! What an object takes for its state.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::machine::Machine;
use super::value::{DictKind, Id, Tensor, Value};
use super::{Fault, allowed, fault};

impl<'t> Machine<'t> {
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<(), Fault> {
        match self.heap.get(object) {
            Value::Tensor(tensor) if tensor.is_parameter => self.set_parameter(object, tensor, state),
            Value::Tensor(tensor) => {
                let state = self.heap.sequence(state)?;
                self.set_data(tensor, &state)
            }
            Value::Dict(DictKind::Ordered, _) => {
                self.pairs_of(state)?;
                Ok(())
            }
            value if value.class().is_some() => self.set_plain_state(value, state),
            other => fault(format!("BUILD of {}", other.class_name())),
        }
    }

    /// `Tensor.set_(*state)`.
    fn set_data(&mut self, tensor: Tensor, state: &[Id]) -> Result<(), Fault> {
        let (source, view) = match *state {
            [] => return in_place(tensor),
            [source] => (source, None),
            [source, offset, size] => {
                let stride = self.heap.push(Value::None);
                (source, Some([offset, size, stride]))
            }
            [source, offset, size, stride] => (source, Some([offset, size, stride])),
            _ => return fault(format!("the state of a tensor has {} fields", state.len())),
        };
        let (dtype, n_bytes) = match self.heap.get(source) {
            Value::Storage(dtype, n_bytes) => (dtype, n_bytes),
            Value::UntypedStorage(n_bytes) => (tensor.dtype, n_bytes),
            Value::Tensor(source) => (source.dtype, None),
            other => {
                return fault(format!(
                    "the state of a tensor begins with {}",
                    other.class_name()
                ));
            }
        };
        if dtype != tensor.dtype {
            return fault(format!(
                "a storage of {} in a tensor of {}",
                dtype.name, tensor.dtype.name
            ));
        }
        if let Some(view) = view {
            self.extent(dtype, n_bytes, view)?;
        }
        in_place(tensor)
    }

    /// `Tensor.__setstate__`, in its three historical forms.
    fn set_parameter(&mut self, object: Id, mut tensor: Tensor, state: Id) -> Result<(), Fault> {
        let state = self.heap.sequence(state)?;
        let requires_grad = match *state {
            [_, _, _, _] => return self.set_data(tensor, &state),
            [data, _, _, requires_grad, _] => {
                let Value::Tensor(data) = self.heap.get(data) else {
                    return fault(format!(
                        "the data of a Parameter is {}",
                        self.heap.class_name(data)
                    ));
                };
                if tensor.requires_grad && !data.dtype.has_gradients() {
                    return fault(super::call::no_gradients(data.dtype));
                }
                tensor.dtype = data.dtype;
                tensor.numel = data.numel;
                requires_grad
            }
            [requires_grad, _, _] => requires_grad,
            _ => return fault(format!("the state of a Parameter has {} fields", state.len())),
        };
        tensor.requires_grad = self.requires_grad(requires_grad, tensor.dtype)?;
        self.heap.set(object, Value::Tensor(tensor));
        Ok(())
    }

    /// As `pickle` sets a state: a dict of attributes, or a pair of that and of slots.
    fn set_plain_state(&mut self, object: Value<'t>, state: Id) -> Result<(), Fault> {
        let (attributes, slots) = match self.heap.get(state) {
            Value::Tuple(run) | Value::Size(run) if run.len == 2 => match *self.heap.run(run) {
                [attributes, slots] => (attributes, Some(slots)),
                _ => return fault("the state of an object is lost"),
            },
            _ => (state, None),
        };
        if self.heap.is_true(attributes)? {
            if !object.has_attributes() {
                return fault(format!("{} has no attributes", object.class_name()));
            }
            self.pairs_of(attributes)?;
        }
        match slots {
            Some(slots) if self.heap.is_true(slots)? => self.set_attributes(object, slots),
            _ => Ok(()),
        }
    }

    /// `_set_obj_state` of torch: the same, but each attribute is set for itself.
    pub(super) fn set_state(&mut self, object: Value<'t>, state: Id) -> Result<(), Fault> {
        let parts = match self.heap.get(state) {
            Value::Tuple(_) | Value::Size(_) => {
                let parts = self.heap.sequence(state)?;
                if parts.len() != 2 {
                    return fault(format!("a state of {} parts, expected 2", parts.len()));
                }
                parts
            }
            _ => vec![state],
        };
        for part in parts {
            if self.heap.is_true(part)? {
                self.set_attributes(object, part)?;
            }
        }
        Ok(())
    }

    fn set_attributes(&mut self, object: Value<'t>, from: Id) -> Result<(), Fault> {
        let Value::Dict(_, pairs) = self.heap.get(from) else {
            return fault(format!(
                "attributes in {}, expected a dict",
                self.heap.class_name(from)
            ));
        };
        for (name, value) in self.heap.pairs(pairs)? {
            let (Value::Str(name), true) = (self.heap.get(name), object.has_attributes()) else {
                return fault(format!(
                    "an attribute of {} named by {}",
                    object.class_name(),
                    self.heap.class_name(name)
                ));
            };
            let is_settable = match object {
                Value::Tensor(tensor) => self.is_settable(tensor, name, value),
                _ => name != b"__class__",
            };
            if !is_settable {
                return fault(format!(
                    "the attribute `{}` of {} cannot be {}",
                    String::from_utf8_lossy(name.get(..name.len().min(40)).unwrap_or_default()),
                    object.class_name(),
                    self.heap.class_name(value)
                ));
            }
        }
        Ok(())
    }

    fn is_settable(&self, tensor: Tensor, name: &[u8], value: Id) -> bool {
        let value = self.heap.get(value);
        match name {
            b"data" => matches!(value, Value::Tensor(_)),
            b"grad" | b"_grad" => matches!(value, Value::None | Value::Tensor(_)),
            b"grad_dtype" | b"_grad_fn" => matches!(value, Value::None),
            b"requires_grad" => match value {
                Value::Bool(wanted) => !wanted || tensor.dtype.has_gradients(),
                _ => false,
            },
            b"__dict__" => matches!(value, Value::Dict(..)),
            _ => !allowed::READ_ONLY.iter().any(|fixed| fixed.as_bytes() == name),
        }
    }
}

/// A leaf whose gradients are wanted may not be changed.
fn in_place(tensor: Tensor) -> Result<(), Fault> {
    if tensor.requires_grad {
        return fault("a tensor that requires gradients is filled in place");
    }
    Ok(())
}
