//! From anything to what `torch.load(weights_only=True)` takes: numbers, text, containers, tensors.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashSet;

use crate::numpy::Number;
use crate::record::RecordKind;
use crate::value::{Dict, Object, Value};
use crate::walk::join;

/// A value that is not what it was, so that it can be loaded without code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The value's dotted name; empty for the root.
    pub name: String,
    /// What became of it, as a phrase: `argparse.Namespace became a dict of its attributes`.
    pub what: String,
}

impl Value {
    /// The same as plain values, and what had to be changed for it.
    ///
    /// numpy scalars become Python's numbers, arrays become tensors, `Namespace`s and other objects become dicts of their
    /// attributes, `defaultdict`s become dicts, classes their names, whole modules their state dicts.
    pub fn into_plain(self) -> (Value, Vec<Change>) {
        let mut changes = Vec::new();
        let value = plain(self, "", &mut changes);
        (value, changes)
    }
}

/// Values are at most 200 deep, by the reader's bound.
fn plain(value: Value, name: &str, changes: &mut Vec<Change>) -> Value {
    let mut tell = |what: String| {
        changes.push(Change {
            name: name.to_owned(),
            what,
        });
    };
    match value {
        Value::Array(array) => {
            if let Some(number) = array.number() {
                tell("a numpy scalar became a Python number".to_owned());
                return match number {
                    Number::Bool(value) => Value::Bool(value),
                    Number::Int(value) => match i64::try_from(value) {
                        Ok(value) => Value::Int(value),
                        Err(_) => Value::BigInt(value.to_le_bytes().to_vec()),
                    },
                    Number::Float(value) => Value::Float(value),
                    Number::Complex(re, im) => Value::Complex(re, im),
                };
            }
            if let Some(text) = array.text() {
                tell("a numpy scalar became text".to_owned());
                return Value::Str(text);
            }
            match array.tensor() {
                Some(tensor) => {
                    tell("a numpy array became a tensor".to_owned());
                    Value::Tensor(tensor)
                }
                None => {
                    tell(format!("a numpy array of `{}` became its bytes", array.descr));
                    Value::Bytes(array.bytes)
                }
            }
        }
        Value::Global(global) => {
            tell("a class or function became its name".to_owned());
            Value::Str(global)
        }
        Value::Module(module) => {
            tell(format!("the module {} became its state dict", module.class));
            if !module.left_out.is_empty() {
                tell(format!(
                    "tensors of it that no state dict has were left out: {}",
                    module.left_out.join(", ")
                ));
            }
            Value::from(module.state_dict)
        }
        Value::Record(record)
            if matches!(
                record.kind,
                RecordKind::Nested | RecordKind::Jagged | RecordKind::Subclass { .. }
            ) =>
        {
            tell(format!(
                "a {} tensor became a dict of its parts",
                record.kind.as_str()
            ));
            let text = |text: &str| Value::Str(text.to_owned());
            let mut items = vec![(text("kind"), text(record.kind.as_str()))];
            for (fact, value) in record.kind.facts() {
                items.push((text(&fact), text(&value)));
            }
            items.push((text("dtype"), text(&record.dtype)));
            let shape = record
                .shape
                .iter()
                .map(|&size| Value::Int(i64::try_from(size).unwrap_or(i64::MAX)));
            items.push((text("shape"), Value::Tuple(shape.collect())));
            let parts = record.parts.into_iter();
            items.extend(parts.map(|(part, tensor)| (Value::Str(part), Value::Tensor(tensor))));
            Value::Dict(Dict {
                items,
                ..Dict::default()
            })
        }
        Value::Tuple(items) => Value::Tuple(list(items, name, changes)),
        Value::List(items) => Value::List(list(items, name, changes)),
        Value::Set(items) => Value::Set(keys(items, name, changes)),
        Value::FrozenSet(items) => {
            tell("a frozenset became a set".to_owned());
            Value::Set(keys(items, name, changes))
        }
        Value::Dict(dict) => Value::Dict(Dict {
            items: pairs(dict.items, name, changes),
            is_ordered: dict.is_ordered,
            attributes: pairs(dict.attributes, name, changes),
        }),
        Value::Object(object) => self::object(*object, name, changes),
        other => other,
    }
}

/// The parts of an object that hold something, by the names they get where there are several.
const PARTS: [&str; 5] = ["args", "attributes", "state", "items", "appended"];

fn object(mut object: Object, name: &str, changes: &mut Vec<Change>) -> Value {
    let class = object.class.clone();
    let mut tell = |what: String| {
        changes.push(Change {
            name: name.to_owned(),
            what,
        });
    };
    if class.starts_with("pathlib.") && object.args.iter().all(|part| matches!(part, Value::Str(_))) {
        tell(format!("{class} became text"));
        let parts: Vec<&str> = object.args.iter().filter_map(as_text).collect();
        // The first part of an absolute path is its slash.
        return Value::Str(match parts.split_first() {
            Some((&"/", rest)) => format!("/{}", rest.join("/")),
            _ => parts.join("/"),
        });
    }
    // (content, position, attributes)
    if class == "_io.BytesIO"
        && let [Value::Tuple(state)] = object.states.as_slice()
        && let [Value::Bytes(bytes), ..] = state.as_slice()
    {
        tell("a BytesIO became its bytes".to_owned());
        return Value::Bytes(bytes.clone());
    }
    match class.as_str() {
        // The factory is code, and how long a deque may get says nothing of what is in it.
        "collections.defaultdict" => object
            .args
            .retain(|arg| !matches!(arg, Value::Global(_) | Value::None)),
        "collections.deque" => object.args.retain(|arg| !is_empty_or_number(arg)),
        "collections.Counter" if object.items.is_empty() => {
            if let [Value::Dict(dict)] = object.args.as_mut_slice() {
                object.items = std::mem::take(&mut dict.items);
                object.args.clear();
            }
        }
        _ => {}
    }
    let is_filled = [
        !object.args.is_empty(),
        !object.attributes.is_empty(),
        !object.states.is_empty(),
        !object.items.is_empty(),
        !object.appended.is_empty(),
    ];
    let as_dict = |items| {
        Value::Dict(Dict {
            items,
            ..Dict::default()
        })
    };
    match is_filled {
        [false, true, false, false, false] => {
            tell(format!("{class} became a dict of its attributes"));
            as_dict(pairs(object.attributes, name, changes))
        }
        [false, false, false, _, false] if is_filled.contains(&true) || class.starts_with("collections.") => {
            tell(format!("{class} became a dict"));
            as_dict(pairs(object.items, name, changes))
        }
        [false, false, false, false, true] => {
            tell(format!("{class} became a list"));
            Value::List(list(object.appended, name, changes))
        }
        // Only its class could explain it, so that all of it is kept side by side.
        _ => {
            tell(format!("{class} became a dict of its class's name and its parts"));
            let text = |text: &str| Value::Str(text.to_owned());
            let attributes = as_dict(pairs(object.attributes, name, changes));
            let items = as_dict(pairs(object.items, name, changes));
            let parts = [
                Value::Tuple(list(object.args, name, changes)),
                attributes,
                Value::Tuple(list(object.states, name, changes)),
                items,
                Value::List(list(object.appended, name, changes)),
            ];
            let mut entries = vec![(text("class"), text(&class))];
            for ((part, value), is_filled) in PARTS.into_iter().zip(parts).zip(is_filled) {
                if is_filled {
                    entries.push((text(part), value));
                }
            }
            as_dict(entries)
        }
    }
}

fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::Str(text) => Some(text),
        _ => None,
    }
}

fn is_empty_or_number(value: &Value) -> bool {
    match value {
        Value::Tuple(items) | Value::List(items) => items.is_empty(),
        Value::Int(_) | Value::None => true,
        _ => false,
    }
}

/// What Python takes for a key or into a set: an object becomes text, and a set a tuple.
fn key(value: Value, name: &str, changes: &mut Vec<Change>) -> Value {
    match value {
        Value::Object(object) => {
            changes.push(Change {
                name: name.to_owned(),
                what: format!("a key of class {} became text", object.class),
            });
            let args: Vec<String> = object.args.iter().map(ToString::to_string).collect();
            Value::Str(format!("{}({})", object.class, args.join(", ")))
        }
        Value::Tuple(items) => Value::Tuple(keys(items, name, changes)),
        Value::Set(items) | Value::FrozenSet(items) => {
            changes.push(Change {
                name: name.to_owned(),
                what: "a frozenset as a key became a tuple".to_owned(),
            });
            Value::Tuple(keys(items, name, changes))
        }
        other => plain(other, name, changes),
    }
}

fn keys(items: Vec<Value>, name: &str, changes: &mut Vec<Change>) -> Vec<Value> {
    items.into_iter().map(|item| key(item, name, changes)).collect()
}

fn list(items: Vec<Value>, name: &str, changes: &mut Vec<Change>) -> Vec<Value> {
    let each = |(i, item): (usize, Value)| match item {
        item @ (Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_)) => item,
        item => plain(item, &join(name, &i.to_string()), changes),
    };
    items.into_iter().enumerate().map(each).collect()
}

fn pairs(items: Vec<(Value, Value)>, name: &str, changes: &mut Vec<Change>) -> Vec<(Value, Value)> {
    // Texts that objects became, which may be equal where the objects were not.
    let mut made: HashSet<String> = HashSet::new();
    let mut each = |(old_key, value): (Value, Value)| {
        let is_made = !matches!(old_key, Value::Str(_));
        let mut new_key = key(old_key, name, changes);
        if let (true, Value::Str(text)) = (is_made, &mut new_key) {
            while !made.insert(text.clone()) {
                text.push('\'');
            }
        }
        let name = match &new_key {
            Value::Str(key) => join(name, key),
            key => join(name, &key.to_string()),
        };
        (new_key, plain(value, &name, changes))
    };
    items.into_iter().map(&mut each).collect()
}
