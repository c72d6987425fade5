//! What names stand for while a template is read: numbers, lists, modules, tensors of which only the sizes are known.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use indexmap::IndexMap;

use super::call::Args;
use super::functions::Builtin;
use super::syntax::Function;

/// A value of the language.
#[derive(Clone)]
pub(super) enum Value {
    None,
    Ellipsis,
    Bool(bool),
    Int(i64),
    /// So many times the batch, which is known when the network runs.
    Batch(i64),
    Float(f64),
    Str(Rc<str>),
    List(Rc<RefCell<Vec<Value>>>),
    Tuple(Rc<[Value]>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    Slice(Rc<[Value; 3]>),
    Tensor(Rc<Tensor>),
    /// `torch.nn.Parameter(tensor)`, before it has a name.
    Parameter(Rc<Tensor>),
    Module(ModuleId),
    Class(Rc<Class>),
    Base(Base),
    Function(Rc<Closure>),
    Builtin(&'static Builtin),
    /// A function with some of its arguments.
    Partial(Rc<(Value, Args)>),
    /// A method of a module that its class defines.
    Method(ModuleId, Rc<Closure>),
    /// A method that all values of its kind have.
    KindMethod(Rc<(Value, Rc<str>)>),
    /// `super()` in a method of a class.
    Super(ModuleId, Option<Parent>),
    /// `torch`, `nn`, `F` and what is imported: one space of all names.
    Namespace,
    /// `nn.init`, whose functions change values, which come from the checkpoint: they do nothing.
    Ignored,
}

/// Index of a module among all that were made.
pub(super) type ModuleId = usize;

/// The size of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dim {
    pub(super) n: usize,
    /// Whether it is `n` times the batch.
    pub(super) is_batch: bool,
}

/// A float32 tensor by its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Its name in the graph; empty before there is one.
    pub(super) name: String,
    pub(super) shape: Vec<Dim>,
}

/// A class of torch's own that others are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Module,
    Sequential,
    ModuleList,
    ModuleDict,
}

/// What a class inherits from.
#[derive(Clone)]
pub(super) enum Parent {
    Base(Base),
    Class(Rc<Class>),
}

/// A class of a template.
pub(super) struct Class {
    pub(super) name: Rc<str>,
    pub(super) parent: Parent,
    pub(super) methods: HashMap<Rc<str>, Rc<Closure>>,
    pub(super) constants: HashMap<Rc<str>, Value>,
}

/// A function with the names around it.
pub(super) struct Closure {
    pub(super) function: Rc<Function>,
    /// The text that it is in.
    pub(super) file: usize,
    /// Variables of the function around it.
    pub(super) around: Option<Rc<Scope>>,
    /// The class whose method it is.
    pub(super) class: RefCell<std::rc::Weak<Class>>,
}

/// Local variables.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<HashMap<Rc<str>, Value>>,
    pub(super) around: Option<Rc<Scope>>,
    /// Of a method: its class and the module.
    pub(super) method: Option<(Rc<Class>, ModuleId)>,
}

/// An `nn.Module`.
pub(super) struct Module {
    pub(super) class_name: Rc<str>,
    pub(super) class: Option<Rc<Class>>,
    pub(super) base: Base,
    pub(super) attributes: HashMap<Rc<str>, Value>,
    /// `None` where a name was given to nothing.
    pub(super) children: IndexMap<Rc<str>, Option<ModuleId>>,
    pub(super) tensors: IndexMap<Rc<str>, Option<Stored>>,
}

/// A parameter or buffer of a module.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Parameter,
    Buffer,
    /// A buffer that a state dict may lack: how often a batch normalisation was trained.
    Counter,
}

impl Dim {
    pub(super) fn fixed(n: usize) -> Dim {
        Dim { n, is_batch: false }
    }

    pub(super) fn batch(n: usize) -> Dim {
        Dim { n, is_batch: true }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.is_batch, self.n) {
            (true, 1) => f.write_str("batch"),
            (true, n) => write!(f, "{n} * batch"),
            (false, n) => write!(f, "{n}"),
        }
    }
}

impl Tensor {
    /// A tensor that is in no graph.
    pub(super) fn unnamed(shape: Vec<Dim>) -> Tensor {
        Tensor {
            name: String::new(),
            shape,
        }
    }

    /// Its sizes for people.
    pub(super) fn sizes(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("[{}]", sizes.join(", "))
    }
}

impl Value {
    pub(super) fn str(text: &str) -> Value {
        Value::Str(text.into())
    }

    pub(super) fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(RefCell::new(items)))
    }

    pub(super) fn tuple(items: Vec<Value>) -> Value {
        Value::Tuple(items.into())
    }

    pub(super) fn tensor(tensor: Tensor) -> Value {
        Value::Tensor(Rc::new(tensor))
    }

    pub(super) fn dim(dim: Dim) -> Value {
        let n = i64::try_from(dim.n).unwrap_or(i64::MAX);
        if dim.is_batch {
            Value::Batch(n)
        } else {
            Value::Int(n)
        }
    }

    /// What kind of value it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Ellipsis => "...",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Batch(_) => "the batch",
            Value::Float(_) => "a float",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Slice(_) => "a slice",
            Value::Tensor(_) => "a tensor",
            Value::Parameter(_) => "a parameter",
            Value::Module(_) => "a module",
            Value::Class(_) | Value::Base(_) => "a class",
            Value::Function(_)
            | Value::Builtin(_)
            | Value::Partial(_)
            | Value::Method(..)
            | Value::KindMethod(_) => "a function",
            Value::Super(..) => "super()",
            Value::Namespace | Value::Ignored => "a module of Python",
        }
    }

    /// The items of a list or tuple.
    pub(super) fn items(&self) -> Option<Vec<Value>> {
        match self {
            Value::List(items) => Some(items.borrow().clone()),
            Value::Tuple(items) => Some(items.to_vec()),
            _ => None,
        }
    }

    /// `int` where it is one.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// The number where it is one.
    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            other => other.int().map(|value| value as f64),
        }
    }

    /// Whether two values are the same to Python's `==`; `None` where only the run can tell.
    pub(super) fn equals(&self, other: &Value) -> Option<bool> {
        if let (Some(a), Some(b)) = (self.float(), other.float()) {
            return Some(a == b);
        }
        Some(match (self, other) {
            (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::Module(a), Value::Module(b)) => a == b,
            (Value::Base(a), Value::Base(b)) => a == b,
            (Value::Class(a), Value::Class(b)) => Rc::ptr_eq(a, b),
            (Value::Batch(a), Value::Batch(b)) => a == b,
            (Value::Batch(_), other) | (other, Value::Batch(_)) if other.int().is_some() => return None,
            (Value::List(_), Value::List(_)) | (Value::Tuple(_), Value::Tuple(_)) => {
                let (a, b) = (self.items()?, other.items()?);
                if a.len() != b.len() {
                    return Some(false);
                }
                for (a, b) in a.iter().zip(&b) {
                    if !a.equals(b)? {
                        return Some(false);
                    }
                }
                true
            }
            _ => false,
        })
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(value) => f.write_str(if *value { "True" } else { "False" }),
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value:?}"),
            Value::Str(text) => write!(f, "{text}"),
            Value::List(items) => f.debug_list().entries(items.borrow().iter()).finish(),
            Value::Tuple(items) => f.debug_list().entries(items.iter()).finish(),
            Value::Tensor(tensor) => write!(f, "a tensor {}", tensor.sizes()),
            other => f.write_str(other.kind()),
        }
    }
}
