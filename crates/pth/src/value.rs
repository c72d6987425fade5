//! Everything that a checkpoint can hold, as typed values.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::checkpoint;
use crate::container::Container;
use crate::numpy::{self, Array};
use crate::pickle::{Arena, Node, NodeId, render};
use crate::rebuild::{Made, Rebuilder};
use crate::walk::{Found, Walk, join, key_text};
use crate::{Entry, Error, Record, StateDict, Tensor, limits, objects};

/// Values nested deeper are not read: owned trees are dropped by recursion.
const MAX_DEPTH: usize = 200;

/// A Python value, as far as it is data. What only code could make stays an [`Object`] of its class's name.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Value {
    /// `None`
    None,
    /// `True` and `False`
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A larger one, little-endian two's complement.
    BigInt(Vec<u8>),
    /// A float.
    Float(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
    /// Text.
    Str(String),
    /// Text with lone surrogates, which Python allows: its bytes, as UTF-8 with the surrogates encoded like other characters.
    RawStr(Vec<u8>),
    /// `bytes` or `bytearray`
    Bytes(Vec<u8>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A list.
    List(Vec<Value>),
    /// A set.
    Set(Vec<Value>),
    /// A frozenset.
    FrozenSet(Vec<Value>),
    /// A dict or an `OrderedDict`.
    Dict(Dict),
    /// A tensor or parameter.
    Tensor(Tensor),
    /// A tensor that is not one strided array.
    Record(Box<Record>),
    /// A storage on its own, as a tensor of one dimension over all of it.
    Storage(Tensor),
    /// A pickled `nn.Module`.
    Module(Box<Module>),
    /// `torch.float32`, by its name without the prefix.
    DType(String),
    /// `torch.device`, as torch prints it: `cuda:0`.
    Device(String),
    /// `torch.Size`
    Size(Vec<i64>),
    /// A numpy array or scalar.
    Array(Array),
    /// A class or function, by `module.name`.
    Global(String),
    /// An instance of anything else.
    Object(Box<Object>),
}

/// Keys and values in insertion order.
#[derive(Debug, Clone, Default)]
pub struct Dict {
    /// Keys and values.
    pub items: Vec<(Value, Value)>,
    /// Whether it is a `collections.OrderedDict`.
    pub is_ordered: bool,
    /// Attributes of an `OrderedDict`, such as `_metadata`.
    pub attributes: Vec<(Value, Value)>,
}

/// A pickled `nn.Module`.
#[derive(Debug, Clone)]
pub struct Module {
    /// `module.name` of its class.
    pub class: String,
    /// What its `state_dict()` would return.
    pub state_dict: StateDict,
    /// Names of the tensors that are no part of it: buffers that are not persistent, plain attributes.
    pub left_out: Vec<String>,
}

/// An instance of a class that is only a name here.
#[derive(Debug, Clone, Default)]
pub struct Object {
    /// `module.name`
    pub class: String,
    /// What it was made with.
    pub args: Vec<Value>,
    /// Its attributes.
    pub attributes: Vec<(Value, Value)>,
    /// Its state, where that is no dict of attributes.
    pub states: Vec<Value>,
    /// What was set by key, for classes that are mappings.
    pub items: Vec<(Value, Value)>,
    /// What was appended, for classes that are sequences.
    pub appended: Vec<Value>,
}

impl Value {
    /// The value of the last entry of that text key, in a dict.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(dict) = self else {
            return None;
        };
        let is_it = |(k, _): &&(Value, Value)| matches!(k, Value::Str(text) if text == key);
        dict.items.iter().rev().find(is_it).map(|(_, value)| value)
    }
}

impl From<StateDict> for Value {
    /// An `OrderedDict` with torch's `_metadata`, as `state_dict()` returns it.
    fn from(state_dict: StateDict) -> Value {
        let version = |version: Option<i64>| {
            let items = version.map(|version| (Value::Str("version".to_owned()), Value::Int(version)));
            Value::Dict(Dict {
                items: items.into_iter().collect(),
                ..Dict::default()
            })
        };
        let metadata: Vec<(Value, Value)> = state_dict
            .metadata()
            .iter()
            .map(|entry| (Value::Str(entry.module.clone()), version(entry.version)))
            .collect();
        let mut attributes = Vec::new();
        if !metadata.is_empty() {
            let metadata = Value::Dict(Dict {
                items: metadata,
                is_ordered: true,
                attributes: Vec::new(),
            });
            attributes.push((Value::Str("_metadata".to_owned()), metadata));
        }
        let value = |entry| match entry {
            Entry::Tensor(tensor) => Value::Tensor(tensor),
            Entry::Record(record) => Value::Record(record),
        };
        Value::Dict(Dict {
            items: state_dict
                .into_iter()
                .map(|(name, entry)| (Value::Str(name), value(entry)))
                .collect(),
            is_ordered: true,
            attributes,
        })
    }
}

/// All of a checkpoint.
pub(crate) fn read(container: &Container<'_>) -> Result<Value, Error> {
    let mut rebuilder = Rebuilder::new(container);
    let mut reader = Reader {
        arena: &container.arena,
        rebuilder: &mut rebuilder,
        path: Vec::new(),
        n_visits: 0,
    };
    reader.value(container.arena.root(), "")
}

struct Reader<'a, 'r> {
    arena: &'a Arena<'a>,
    rebuilder: &'r mut Rebuilder<'a>,
    path: Vec<NodeId>,
    n_visits: usize,
}

type Pairs = Vec<(Value, Value)>;

impl<'a> Reader<'a, '_> {
    fn value(&mut self, node: NodeId, name: &str) -> Result<Value, Error> {
        let limit = limits::max_visits(self.arena.n_bytes());
        let n_text_bytes = self.arena.str_bytes(node).map_or(0, <[u8]>::len);
        let n_text_bytes = n_text_bytes.saturating_add(name.len());
        self.n_visits = self.n_visits.saturating_add(limits::visits_for(n_text_bytes));
        if self.n_visits > limit || self.path.len() >= MAX_DEPTH {
            let limit = if self.n_visits > limit { limit } else { MAX_DEPTH };
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            return Err(Error::Limit {
                what: format!("reading `{name}`, which repeats or nests beyond all measure,"),
                needed: limit.saturating_add(1),
                limit,
            });
        }
        match self.rebuilder.tensor(node) {
            Some(Ok(Made::Tensor(tensor))) if matches!(self.arena.node(node), Node::Persistent(_)) => {
                return Ok(Value::Storage(tensor));
            }
            Some(Ok(Made::Tensor(tensor))) => return Ok(Value::Tensor(tensor)),
            Some(Ok(Made::Record(record))) => return Ok(Value::Record(record)),
            Some(Err(fault)) => {
                let name = name.to_owned();
                return Err(Error::Tensor { name, fault });
            }
            None => {}
        }
        Ok(match self.arena.node(node) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(value),
            Node::Int(value) => Value::Int(value),
            Node::BigInt(span) => Value::BigInt(self.arena.bytes(span).to_vec()),
            Node::Float(value) => Value::Float(value),
            Node::Str(span) => match std::str::from_utf8(self.arena.bytes(span)) {
                Ok(text) => Value::Str(text.to_owned()),
                Err(_) => Value::RawStr(self.arena.bytes(span).to_vec()),
            },
            Node::Bytes(span) => Value::Bytes(self.arena.bytes(span).to_vec()),
            Node::Global | Node::Persistent(_) => self.global(node),
            _ => {
                if self.path.contains(&node) {
                    return Err(Error::Inexpressible {
                        name: name.to_owned(),
                        fault: "it holds itself".to_owned(),
                    });
                }
                self.path.push(node);
                let value = self.compound(node, name);
                self.path.pop();
                value?
            }
        })
    }

    fn global(&self, node: NodeId) -> Value {
        match self.arena.global_name(node) {
            Some(("torch", name)) if crate::DType::from_name(name).is_some() || is_other_dtype(name) => {
                Value::DType(name.to_owned())
            }
            Some((module, name)) => Value::Global(format!("{module}.{name}")),
            None => Value::Global("an unnamed class".to_owned()),
        }
    }

    fn compound(&mut self, node: NodeId, name: &str) -> Result<Value, Error> {
        let arena = self.arena;
        match arena.node(node) {
            Node::Tuple => return Ok(Value::Tuple(self.list(arena.items(node), name)?)),
            Node::List => return Ok(Value::List(self.list(arena.items(node), name)?)),
            Node::Set => return Ok(Value::Set(self.list(arena.items(node), name)?)),
            Node::FrozenSet => return Ok(Value::FrozenSet(self.list(arena.items(node), name)?)),
            Node::Dict => {
                return Ok(Value::Dict(Dict {
                    items: self.pairs(&objects::pairs(arena.items(node)), name)?,
                    ..Dict::default()
                }));
            }
            _ => {}
        }
        if objects::is_module(arena, node) {
            return self.module(node, name);
        }
        if let Some(array) = numpy::array(arena, node) {
            return Ok(Value::Array(array));
        }
        if let Some(bytes) = numpy::encoded(arena, node) {
            return Ok(Value::Bytes(bytes));
        }
        let args = arena.args(node);
        match arena.callee_name(node) {
            Some(("collections" | "_collections", "OrderedDict")) => {
                let entries = objects::mapping(arena, node).unwrap_or_default();
                let attributes = objects::attributes(arena, node).unwrap_or_default();
                return Ok(Value::Dict(Dict {
                    items: self.pairs(&entries, name)?,
                    is_ordered: true,
                    attributes: self.pairs(&attributes, name)?,
                }));
            }
            Some(("torch", "Size")) => {
                let sizes = objects::sequence(arena, node).unwrap_or_default();
                return Ok(Value::Size(
                    sizes.iter().filter_map(|&size| arena.int(size)).collect(),
                ));
            }
            Some(("torch", "device")) => {
                let kind = args.first().and_then(|&kind| arena.str(kind)).unwrap_or_default();
                return Ok(Value::Device(
                    match args.get(1).and_then(|&index| arena.int(index)) {
                        Some(index) => format!("{kind}:{index}"),
                        None => kind.into_owned(),
                    },
                ));
            }
            Some(("builtins" | "__builtin__", class @ ("set" | "frozenset"))) => {
                let items = self.list(objects::sequence(arena, node).unwrap_or_default(), name)?;
                return Ok(match class {
                    "set" => Value::Set(items),
                    _ => Value::FrozenSet(items),
                });
            }
            Some(("builtins" | "__builtin__", "complex")) => {
                if let [re, im] = args
                    && let (Node::Float(re), Node::Float(im)) = (arena.node(*re), arena.node(*im))
                {
                    return Ok(Value::Complex(re, im));
                }
            }
            _ => {}
        }
        self.object(node, name)
    }

    fn object(&mut self, node: NodeId, name: &str) -> Result<Value, Error> {
        let arena = self.arena;
        let class = match arena.callee_name(node) {
            Some((module, class)) => format!("{module}.{class}"),
            None => "an unnamed class".to_owned(),
        };
        let attributes = objects::attributes(arena, node).unwrap_or_default();
        let states: Vec<NodeId> = objects::opaque_states(arena, node).collect();
        Ok(Value::Object(Box::new(Object {
            class,
            args: self.list(arena.args(node), name)?,
            attributes: self.pairs(&attributes, name)?,
            states: self.list(&states, name)?,
            items: self.pairs(&objects::pairs(arena.items(node)), name)?,
            appended: self.list(arena.appended(node), name)?,
        })))
    }

    fn module(&mut self, node: NodeId, name: &str) -> Result<Value, Error> {
        let class = match self.arena.callee_name(node) {
            Some((module, class)) => format!("{module}.{class}"),
            None => "an unnamed class".to_owned(),
        };
        let mut state_dict = StateDict::new();
        let mut left_out = Vec::new();
        let mut walk = Walk::new(self.arena, self.rebuilder, false);
        walk.run(node, "", true, &mut |inner, found, in_state_dict| {
            let entry = match found {
                Found::Tensor(tensor) => Entry::Tensor(tensor),
                Found::Record(record) => Entry::Record(record),
                Found::Fault(fault) if in_state_dict => {
                    let name = join(name, inner);
                    return Err(Error::Tensor { name, fault });
                }
                _ => return Ok(()),
            };
            if in_state_dict {
                state_dict.insert_entry(inner, entry);
            } else {
                left_out.push(inner.to_owned());
            }
            Ok(())
        })?;
        let mut metadata = checkpoint::metadata(self.arena, node);
        metadata.append(&mut walk.modules);
        Ok(Value::Module(Box::new(Module {
            class,
            state_dict: state_dict.with_metadata(metadata),
            left_out,
        })))
    }

    fn list(&mut self, nodes: &[NodeId], name: &str) -> Result<Vec<Value>, Error> {
        let mut values = Vec::with_capacity(nodes.len());
        for (i, &node) in nodes.iter().enumerate() {
            // Names are for messages: those of plain values are not made.
            values.push(match node.is_stored() {
                true => self.value(node, &join(name, &i.to_string()))?,
                false => self.value(node, name)?,
            });
        }
        Ok(values)
    }

    fn pairs(&mut self, entries: &[(NodeId, NodeId)], name: &str) -> Result<Pairs, Error> {
        let mut pairs = Vec::with_capacity(entries.len());
        for &(key, node) in entries {
            let value = match node.is_stored() {
                true => self.value(node, &join(name, &key_text(self.arena, key)))?,
                false => self.value(node, name)?,
            };
            pairs.push((self.value(key, name)?, value));
        }
        Ok(pairs)
    }
}

/// Types of torch that no tensor is read of, but that occur as values.
fn is_other_dtype(name: &str) -> bool {
    matches!(name, "qint8" | "quint8" | "qint32" | "quint4x2" | "quint2x4")
        || name
            .strip_prefix("uint")
            .or_else(|| name.strip_prefix("int"))
            .is_some_and(|bits| matches!(bits.as_bytes(), [b'1'..=b'7']))
}

impl std::fmt::Display for Value {
    /// A short text in Python's spelling for plain values; the kind of anything else.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(true) => f.write_str("True"),
            Value::Bool(false) => f.write_str("False"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) => f.write_str(&render::float_repr(*value)),
            Value::Str(text) => write!(f, "'{}'", text.escape_debug()),
            Value::DType(name) => write!(f, "torch.{name}"),
            Value::Device(name) => write!(f, "device('{name}')"),
            Value::Array(array) => write!(f, "{array}"),
            Value::Global(name) => f.write_str(name),
            Value::Tensor(tensor) => write!(f, "<tensor {}{:?}>", tensor.dtype(), tensor.shape()),
            Value::Module(module) => write!(f, "<module {}>", module.class),
            Value::RawStr(bytes) => write!(f, "'{}'", String::from_utf8_lossy(bytes).escape_debug()),
            Value::Object(object) => write!(f, "<{}>", object.class),
            Value::BigInt(bytes) => write!(f, "<integer of {} bytes>", bytes.len()),
            Value::Complex(re, im) => write!(f, "({re}{im:+}j)"),
            Value::Bytes(bytes) => write!(f, "<{} bytes>", bytes.len()),
            Value::Tuple(items) => write!(f, "<tuple of {}>", items.len()),
            Value::List(items) => write!(f, "<list of {}>", items.len()),
            Value::Set(items) => write!(f, "<set of {}>", items.len()),
            Value::FrozenSet(items) => write!(f, "<frozenset of {}>", items.len()),
            Value::Dict(dict) => write!(f, "<dict of {}>", dict.items.len()),
            Value::Record(record) => write!(f, "<{} tensor>", record.kind.as_str()),
            Value::Storage(tensor) => write!(f, "<storage of {} bytes>", tensor.nbytes()),
            Value::Size(sizes) => write!(f, "torch.Size({sizes:?})"),
        }
    }
}
