//! From anything to what `torch.load(weights_only=True)` takes: numbers, text, containers, tensors.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

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
        Value::Module(class, state_dict) => {
            tell(format!("the module {class} became its state dict"));
            Value::from(state_dict)
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
        Value::Set(items) => Value::Set(list(items, name, changes)),
        Value::FrozenSet(items) => {
            tell("a frozenset became a set".to_owned());
            Value::Set(list(items, name, changes))
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

fn object(object: Object, name: &str, changes: &mut Vec<Change>) -> Value {
    let class = object.class.as_str();
    let mut tell = |what: String| {
        changes.push(Change {
            name: name.to_owned(),
            what,
        });
    };
    let as_dict = |items| {
        Value::Dict(Dict {
            items,
            ..Dict::default()
        })
    };
    if class.starts_with("pathlib.") && object.args.iter().all(|part| matches!(part, Value::Str(_))) {
        tell(format!("{class} became text"));
        let parts: Vec<&str> = object
            .args
            .iter()
            .filter_map(|part| match part {
                Value::Str(part) => Some(part.as_str()),
                _ => None,
            })
            .collect();
        // The first part of an absolute path is its slash.
        return Value::Str(match parts.split_first() {
            Some((&"/", rest)) => format!("/{}", rest.join("/")),
            _ => parts.join("/"),
        });
    }
    if matches!(class, "collections.defaultdict" | "collections.Counter") {
        tell(format!("{class} became a dict"));
        let mut items = Vec::new();
        for arg in object.args {
            if let Value::Dict(dict) = arg {
                items.extend(dict.items);
            }
        }
        items.extend(object.items);
        return as_dict(pairs(items, name, changes));
    }
    if class == "collections.deque" || (object.attributes.is_empty() && !object.appended.is_empty()) {
        tell(format!("{class} became a list"));
        return Value::List(list(object.appended, name, changes));
    }
    if object.attributes.is_empty() && !object.items.is_empty() {
        tell(format!("{class} became a dict"));
        return as_dict(pairs(object.items, name, changes));
    }
    if !object.attributes.is_empty() {
        tell(format!("{class} became a dict of its attributes"));
        let mut items = object.attributes;
        items.extend(object.items);
        return as_dict(pairs(items, name, changes));
    }
    // An object that only its class could explain.
    tell(format!("{class} became a dict of its class's name and arguments"));
    let text = |text: &str| Value::Str(text.to_owned());
    let mut items = vec![(text("class"), text(class))];
    if !object.args.is_empty() {
        items.push((text("args"), Value::Tuple(list(object.args, name, changes))));
    }
    if !object.states.is_empty() {
        items.push((text("state"), Value::Tuple(list(object.states, name, changes))));
    }
    as_dict(items)
}

fn list(items: Vec<Value>, name: &str, changes: &mut Vec<Change>) -> Vec<Value> {
    let each = |(i, item): (usize, Value)| match item {
        item @ (Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_)) => item,
        item => plain(item, &join(name, &i.to_string()), changes),
    };
    items.into_iter().enumerate().map(each).collect()
}

fn pairs(items: Vec<(Value, Value)>, name: &str, changes: &mut Vec<Change>) -> Vec<(Value, Value)> {
    let each = |(key, value): (Value, Value)| {
        let key = plain(key, name, changes);
        let name = match &key {
            Value::Str(key) => join(name, key),
            key => join(name, &key.to_string()),
        };
        (key, plain(value, &name, changes))
    };
    items.into_iter().map(each).collect()
}
