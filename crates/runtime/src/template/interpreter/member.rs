//! What stands behind a dot or in brackets: attributes of modules, methods of values, items.

use std::rc::Rc;

use super::Interpreter;
use crate::template::call::Args;
use crate::template::fault::Fault;
use crate::template::functions;
use crate::template::value::{Base, Dim, ModuleId, Parent, Role, Stored, Tensor, Value};

/// Methods of every module that change nothing that a template tells of: values come from the checkpoint, and marks too.
const WITHOUT_EFFECT: [&str; 12] = [
    "parameters",
    "named_parameters",
    "modules",
    "named_modules",
    "apply",
    "train",
    "eval",
    "requires_grad_",
    "to",
    "load_state_dict",
    "reset_parameters",
    "_init_weights",
];
const MODULE_METHODS: [&str; 12] = [
    "add_module",
    "register_module",
    "register_buffer",
    "register_parameter",
    "append",
    "extend",
    "insert",
    "children",
    "named_children",
    "items",
    "values",
    "keys",
];

impl Interpreter<'_> {
    /// The value of `of.name`.
    pub(in crate::template) fn attribute(&mut self, of: &Value, name: &Rc<str>) -> Result<Value, Fault> {
        let missing = |what: &str| Fault::new(format!("{what} has no `{name}`"));
        match of {
            Value::Module(id) => self.module_attribute(*id, name),
            Value::Namespace => match &**name {
                "init" => Ok(Value::Ignored),
                "functional" | "nn" | "models" | "ops" | "misc" | "torch" | "layers" => Ok(Value::Namespace),
                "Tensor" | "dtype" | "float32" | "float" | "device" => Ok(Value::None),
                "inf" => Ok(Value::Float(f64::INFINITY)),
                "pi" => Ok(Value::Float(std::f64::consts::PI)),
                _ => self.seek_in_torch(name),
            },
            Value::Ignored => Ok(Value::Ignored),
            Value::Tensor(tensor) | Value::Parameter(tensor) => match &**name {
                "shape" => Ok(shape(tensor)),
                "ndim" => Ok(Value::Int(tensor.shape.len() as i64)),
                "data" => Ok(of.clone()),
                "T" => {
                    let axes = (0..tensor.shape.len() as i64).rev().map(Value::Int).collect();
                    let permute = Rc::<str>::from("permute");
                    self.call_value_method(
                        &Value::Tensor(tensor.clone()),
                        &permute,
                        Args::of(vec![Value::tuple(axes)]),
                    )
                }
                "dtype" | "device" => Ok(Value::None),
                _ => Ok(Value::KindMethod(Rc::new((of.clone(), name.clone())))),
            },
            Value::Super(id, parent) => {
                let parent = parent.clone().unwrap_or(Parent::Base(Base::Module));
                if &**name == "__init__" {
                    return Ok(Value::KindMethod(Rc::new((of.clone(), name.clone()))));
                }
                match Self::method(&parent, name) {
                    Some(method) => Ok(Value::Method(*id, method)),
                    None if &**name == "forward" => {
                        Ok(Value::KindMethod(Rc::new((of.clone(), name.clone()))))
                    }
                    None => self.module_attribute(*id, name),
                }
            }
            Value::Class(class) => match class.constants.get(name) {
                Some(value) => Ok(value.clone()),
                None => match &**name {
                    "__name__" => Ok(Value::Str(class.name.clone())),
                    _ => match class.methods.get(name) {
                        Some(method) => Ok(Value::Function(method.clone())),
                        None => Err(missing(&format!("`{}`", class.name))),
                    },
                },
            },
            Value::Function(closure) if &**name == "__name__" => {
                Ok(Value::Str(closure.function.name.clone()))
            }
            Value::List(_) | Value::Dict(_) | Value::Str(_) | Value::Tuple(_) => {
                Ok(Value::KindMethod(Rc::new((of.clone(), name.clone()))))
            }
            // `tensor.item()` of what is a number here.
            Value::Int(_) | Value::Float(_) | Value::Batch(_) if &**name == "item" => {
                Ok(Value::KindMethod(Rc::new((of.clone(), name.clone()))))
            }
            other => Err(missing(other.kind())),
        }
    }

    fn module_attribute(&self, id: ModuleId, name: &Rc<str>) -> Result<Value, Fault> {
        let module = &self.modules[id];
        if let Some(child) = module.children.get(name) {
            return Ok(child.map_or(Value::None, Value::Module));
        }
        if let Some(stored) = module.tensors.get(name) {
            return Ok(match stored {
                None => Value::None,
                Some(stored) => Value::tensor(Tensor {
                    name: self
                        .paths
                        .get(&id)
                        .map_or_else(String::new, |path| joined(path, name)),
                    shape: stored.shape.iter().map(|&n| Dim::fixed(n)).collect(),
                }),
            });
        }
        if let Some(value) = module.attributes.get(name) {
            return Ok(value.clone());
        }
        if let Some(class) = &module.class {
            let parent = Parent::Class(class.clone());
            if let Some(method) = Self::method(&parent, name) {
                return Ok(Value::Method(id, method));
            }
            let mut parent = parent;
            while let Parent::Class(class) = parent {
                if let Some(value) = class.constants.get(name) {
                    return Ok(value.clone());
                }
                parent = class.parent.clone();
            }
        }
        if &**name == "training" {
            return Ok(Value::Bool(false));
        }
        if &**name == "forward" || WITHOUT_EFFECT.contains(&&**name) || MODULE_METHODS.contains(&&**name) {
            return Ok(Value::KindMethod(Rc::new((Value::Module(id), name.clone()))));
        }
        let names = module
            .children
            .keys()
            .chain(module.tensors.keys())
            .chain(module.attributes.keys());
        let near = crate::onnx::nearest(name, names.map(|name| &**name), 1);
        let hint = near
            .first()
            .map_or_else(String::new, |near| format!("; the nearest name is `{near}`"));
        Err(Fault::new(format!(
            "`{}` has no `{name}`{hint}",
            module.class_name
        )))
    }

    /// `of.name = value`.
    pub(super) fn set_attribute(&mut self, of: &Value, name: &Rc<str>, value: Value) -> Result<(), Fault> {
        let Value::Module(id) = of else {
            return match of {
                // `param.requires_grad = False`: marks come from the checkpoint.
                Value::Tensor(_) | Value::Parameter(_) => Ok(()),
                other => Err(Fault::new(format!("{} takes no attributes", other.kind()))),
            };
        };
        let module = &mut self.modules[*id];
        match value {
            Value::Module(child) => {
                module.attributes.remove(name);
                module.children.insert(name.clone(), Some(child));
            }
            Value::Parameter(tensor) => {
                let stored = stored(&tensor, Role::Parameter)?;
                module.tensors.insert(name.clone(), Some(stored));
            }
            // A module's place that is emptied stays its place.
            Value::None if module.children.contains_key(name) => {
                module.children.insert(name.clone(), None);
            }
            value => {
                module.children.shift_remove(name);
                module.attributes.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// `of[key]`.
    pub(super) fn item(&mut self, of: &Value, key: &Value) -> Result<Value, Fault> {
        match of {
            Value::Tensor(tensor) => functions::index(self, tensor, key),
            Value::Module(id) => self.module_item(*id, key),
            Value::Dict(entries) => {
                let entries = entries.borrow();
                let found = entries.iter().find(|(name, _)| name.equals(key) == Some(true));
                found
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| Fault::new(format!("the dict has no `{key:?}`")))
            }
            // `Optional[Tensor]`, `Callable[..., nn.Module]`: what annotations are made of.
            Value::Namespace | Value::None => Ok(Value::None),
            other => {
                let Some(items) = other.items() else {
                    return Err(Fault::new(format!("{} has no items", other.kind())));
                };
                if let Value::Slice(bounds) = key {
                    let chosen = slice(bounds, items.len())?;
                    let chosen = chosen.into_iter().map(|at| items[at].clone()).collect();
                    return Ok(match other {
                        Value::Tuple(_) => Value::tuple(chosen),
                        _ => Value::list(chosen),
                    });
                }
                let at = position(key, items.len())?;
                Ok(items[at].clone())
            }
        }
    }

    fn module_item(&mut self, id: ModuleId, key: &Value) -> Result<Value, Fault> {
        let module = &self.modules[id];
        if let (Base::ModuleDict, Value::Str(name)) = (module.base, key) {
            return match module.children.get(name) {
                Some(Some(child)) => Ok(Value::Module(*child)),
                _ => Err(Fault::new(format!("the `ModuleDict` has no `{name}`"))),
            };
        }
        if module.base == Base::Module {
            return Err(Fault::new(format!("`{}` has no items", module.class_name)));
        }
        let children: Vec<ModuleId> = module.children.values().copied().flatten().collect();
        if let Value::Slice(bounds) = key {
            let chosen = slice(bounds, children.len())?;
            let chosen = chosen.into_iter().map(|at| Value::Module(children[at])).collect();
            let args = match module.base {
                Base::Sequential => Args::of(chosen),
                _ => Args::of(vec![Value::list(chosen)]),
            };
            return self.call(&Value::Base(module.base), args);
        }
        let at = position(key, children.len())?;
        Ok(Value::Module(children[at]))
    }

    /// `of[key] = value`.
    pub(super) fn set_item(&mut self, of: &Value, key: Value, value: Value) -> Result<(), Fault> {
        match (of, value) {
            (Value::Dict(entries), value) => {
                let mut entries = entries.borrow_mut();
                match entries
                    .iter_mut()
                    .find(|(name, _)| name.equals(&key) == Some(true))
                {
                    Some((_, old)) => *old = value,
                    None => entries.push((key, value)),
                }
                Ok(())
            }
            (Value::List(items), value) => {
                let mut items = items.borrow_mut();
                let at = position(&key, items.len())?;
                items[at] = value;
                Ok(())
            }
            (Value::Module(id), Value::Module(child)) if self.modules[*id].base != Base::Module => {
                let children = &mut self.modules[*id].children;
                if let Value::Str(name) = key {
                    children.insert(name, Some(child));
                } else {
                    let at = position(&key, children.len())?;
                    children[at] = Some(child);
                }
                Ok(())
            }
            (other, _) => Err(Fault::new(format!("items of {} cannot be set", other.kind()))),
        }
    }

    /// Calls a method that all values of a kind have.
    pub(super) fn call_value_method(
        &mut self,
        of: &Value,
        name: &Rc<str>,
        args: Args,
    ) -> Result<Value, Fault> {
        match of {
            Value::Super(id, parent) => {
                let parent = parent.clone().unwrap_or(Parent::Base(Base::Module));
                if &**name == "forward" {
                    return self.forward_base(*id, args);
                }
                self.initialise(*id, &parent, args)?;
                Ok(Value::None)
            }
            Value::Module(id) => self.call_module_method(*id, name, args),
            Value::Tensor(_) | Value::Parameter(_) => {
                let of = match of {
                    Value::Parameter(tensor) => Value::Tensor(tensor.clone()),
                    other => other.clone(),
                };
                if matches!(&**name, "size" | "dim" | "numel") {
                    return tensor_fact(&of, name, &args);
                }
                let Some(builtin) = functions::find(name).filter(|builtin| builtin.is_method()) else {
                    return Err(Fault::new(format!("tensors have no method `{name}` here")));
                };
                // `x.view(2, 3)` is `x.view((2, 3))`.
                let mut args = args;
                let is_list = functions::TAKES_SIZES.contains(&&**name)
                    && args
                        .positional
                        .iter()
                        .all(|arg| matches!(arg, Value::Int(_) | Value::Batch(_)))
                    && !args.positional.is_empty();
                if is_list {
                    args.positional = vec![Value::tuple(std::mem::take(&mut args.positional))];
                }
                self.call(&Value::Builtin(builtin), args.behind(of))
            }
            Value::Int(_) | Value::Float(_) | Value::Batch(_) => Ok(of.clone()),
            _ => functions::python::method(self, of, name, args),
        }
    }

    fn call_module_method(&mut self, id: ModuleId, name: &str, args: Args) -> Result<Value, Fault> {
        let first = args.positional.first().cloned();
        let second = args.positional.get(1).cloned();
        let wrong = || Fault::new(format!("`{name}` is given other values than it takes"));
        match name {
            "forward" => return self.forward_base(id, args),
            "append" => {
                let Some(Value::Module(child)) = first else {
                    return Err(wrong());
                };
                let children = &mut self.modules[id].children;
                children.insert(children.len().to_string().into(), Some(child));
                return Ok(Value::Module(id));
            }
            "extend" => {
                let items = self.iterate(&first.ok_or_else(wrong)?)?;
                for item in items {
                    self.call_module_method(id, "append", Args::of(vec![item]))?;
                }
                return Ok(Value::Module(id));
            }
            "add_module" | "register_module" => match (first, second) {
                (Some(Value::Str(name)), Some(Value::Module(child))) => {
                    self.modules[id].children.insert(name, Some(child));
                }
                (Some(Value::Str(name)), Some(Value::None)) => {
                    self.modules[id].children.insert(name, None);
                }
                _ => return Err(wrong()),
            },
            "register_buffer" | "register_parameter" => {
                let Some(Value::Str(name)) = first else {
                    return Err(wrong());
                };
                let named = |wanted: &[&str]| {
                    let found = args.named.iter().find(|(name, _)| wanted.contains(&&**name));
                    found.map(|(_, value)| value.clone())
                };
                let persistent = args.positional.get(2).cloned().or(named(&["persistent"]));
                let role = match &*name {
                    "num_batches_tracked" => Role::Counter,
                    _ => Role::Buffer,
                };
                let tensor = match second.or(named(&["tensor", "param"])) {
                    // In no state dict.
                    Some(Value::Tensor(tensor)) if matches!(persistent, Some(Value::Bool(false))) => {
                        let attributes = &mut self.modules[id].attributes;
                        attributes.insert(name, Value::Tensor(tensor));
                        return Ok(Value::None);
                    }
                    Some(Value::Tensor(tensor)) => Some(stored(&tensor, role)?),
                    Some(Value::Parameter(tensor)) => Some(stored(&tensor, Role::Parameter)?),
                    Some(Value::None) => None,
                    _ => return Err(wrong()),
                };
                self.modules[id].tensors.insert(name, tensor);
            }
            "children" | "values" => {
                let children = self.modules[id].children.values().copied().flatten();
                return Ok(Value::list(children.map(Value::Module).collect()));
            }
            "named_children" | "items" => {
                let children = self.modules[id].children.iter();
                let pairs = children.filter_map(|(name, child)| {
                    let pair = vec![Value::Str(name.clone()), Value::Module((*child)?)];
                    Some(Value::tuple(pair))
                });
                return Ok(Value::list(pairs.collect()));
            }
            "keys" => {
                let names = self.modules[id].children.keys().cloned();
                return Ok(Value::list(names.map(Value::Str).collect()));
            }
            "parameters" | "named_parameters" | "modules" | "named_modules" => {
                return Ok(Value::list(Vec::new()));
            }
            "insert" => return Err(Fault::new("`insert` would move names: make the list in order")),
            // The rest of what has no effect.
            _ => return Ok(Value::Module(id)),
        }
        Ok(Value::None)
    }
}

/// A name within a path.
pub(in crate::template) fn joined(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn shape(tensor: &Tensor) -> Value {
    Value::tuple(tensor.shape.iter().map(|&dim| Value::dim(dim)).collect())
}

fn tensor_fact(of: &Value, name: &str, args: &Args) -> Result<Value, Fault> {
    let Value::Tensor(tensor) = of else {
        return Ok(Value::None);
    };
    match (name, args.positional.first()) {
        ("dim", _) => Ok(Value::Int(tensor.shape.len() as i64)),
        ("size", None) => Ok(shape(tensor)),
        ("size", Some(axis)) => {
            let at = position(axis, tensor.shape.len())?;
            Ok(Value::dim(tensor.shape[at]))
        }
        _ => {
            let dims = tensor.shape.iter();
            let n = dims.clone().fold(1, |n: usize, dim| n.saturating_mul(dim.n));
            let is_batch = dims.clone().any(|dim| dim.is_batch);
            Ok(Value::dim(Dim { n, is_batch }))
        }
    }
}

/// The sizes that a checkpoint is to have.
fn stored(tensor: &Tensor, role: Role) -> Result<Stored, Fault> {
    if tensor.shape.iter().any(|dim| dim.is_batch) {
        return Err(Fault::new("a parameter cannot be as large as the batch"));
    }
    Ok(Stored {
        shape: tensor.shape.iter().map(|dim| dim.n).collect(),
        role,
    })
}

/// Which item a key means, counted from the end where it is negative.
pub(in crate::template) fn position(key: &Value, n: usize) -> Result<usize, Fault> {
    let Some(at) = key.int() else {
        return Err(Fault::new(format!(
            "an index is a whole number, and not {}",
            key.kind()
        )));
    };
    let wanted = if at < 0 { at + n as i64 } else { at };
    usize::try_from(wanted)
        .ok()
        .filter(|&at| at < n)
        .ok_or_else(|| Fault::new(format!("there is no item {at} among {n}")))
}

/// Which items a slice means.
pub(in crate::template) fn slice(bounds: &[Value; 3], n: usize) -> Result<Vec<usize>, Fault> {
    let bound = |value: &Value, otherwise: i64| match value {
        Value::None => Ok(otherwise),
        value => value
            .int()
            .ok_or_else(|| Fault::new(format!("a slice is of whole numbers, and not {}", value.kind()))),
    };
    let (n, step) = (n as i64, bound(&bounds[2], 1)?);
    if step <= 0 {
        return Err(Fault::new("a slice goes forward here"));
    }
    let clamped = |at: i64| if at < 0 { (at + n).max(0) } else { at.min(n) };
    let (from, to) = (clamped(bound(&bounds[0], 0)?), clamped(bound(&bounds[1], n)?));
    let mut out = Vec::new();
    let mut at = from;
    while at < to {
        out.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(out)
}
