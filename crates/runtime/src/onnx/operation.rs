//! A graph's nodes with their attributes, and the numbers of its initialisers, for whoever gives operators a meaning.

use std::borrow::Cow;
use std::collections::HashMap;

use super::cut::nearest;
use super::graph::Model;
use super::node::Node;
use super::tensor::{Initializer, Payload, is_float, type_name};
use super::wire::{self, Value};
use crate::error::Error;

/// A node, its attributes read.
#[derive(Debug, Clone)]
pub(crate) struct Operation<'m> {
    /// What the exporter called it, or else its first output.
    pub(crate) name: &'m str,
    pub(crate) op_type: &'m str,
    /// Empty for ONNX's own operators.
    pub(crate) domain: &'m str,
    /// An empty string stands for an input that is left out.
    pub(crate) inputs: &'m [String],
    pub(crate) outputs: &'m [String],
    attributes: HashMap<&'m str, Attribute>,
}

#[derive(Debug, Clone, Default)]
struct Attribute {
    float: Option<f32>,
    integer: Option<i64>,
    text: Option<String>,
    tensor: Option<Numbers>,
    floats: Vec<f32>,
    integers: Vec<i64>,
}

/// The numbers of a stored tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

/// Fractions of any width as float32, and integers and truth values as int64.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

impl Operation<'_> {
    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        self.attributes.get(name)?.integer
    }

    pub(crate) fn float(&self, name: &str) -> Option<f32> {
        self.attributes.get(name)?.float
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.text.as_deref()
    }

    pub(crate) fn integers(&self, name: &str) -> Option<&[i64]> {
        self.attributes.get(name).map(|found| found.integers.as_slice())
    }

    /// What a `Constant` stands for, or what a `ConstantOfShape` fills with.
    pub(crate) fn constant(&self) -> Option<Numbers> {
        let scalar = |values| Numbers {
            shape: Vec::new(),
            values,
        };
        let (name, found) = self
            .attributes
            .iter()
            .find(|(name, _)| name.starts_with("value"))?;
        match *name {
            "value" => found.tensor.clone(),
            "value_float" => Some(scalar(Values::Floats(vec![found.float?]))),
            "value_int" => Some(scalar(Values::Integers(vec![found.integer?]))),
            "value_floats" => Some(Numbers {
                shape: vec![found.floats.len()],
                values: Values::Floats(found.floats.clone()),
            }),
            "value_ints" => Some(Numbers {
                shape: vec![found.integers.len()],
                values: Values::Integers(found.integers.clone()),
            }),
            _ => None,
        }
    }
}

impl Model {
    /// The nodes that `outputs` need and `boundary` does not, in order.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] where the graph makes no such tensor.
    pub(crate) fn operations_behind(
        &self,
        boundary: &str,
        outputs: &[&str],
    ) -> Result<Vec<Operation<'_>>, Error> {
        let producers = self.producers();
        for name in outputs.iter().chain([&boundary]).copied() {
            let is_input = name == boundary && self.inputs.iter().any(|input| input.name == name);
            if !is_input && !producers.contains_key(name) {
                let names = self.nodes.iter().flat_map(|node| &node.outputs);
                return Err(Error::UnknownTensor {
                    path: self.path.clone(),
                    name: name.to_owned(),
                    suggestions: nearest(name, names.map(String::as_str), 5),
                });
            }
        }
        // From the outputs back, but not through the boundary.
        let mut needed = vec![false; self.nodes.len()];
        let mut pending = outputs.to_vec();
        while let Some(name) = pending.pop() {
            if name == boundary {
                continue;
            }
            if let Some(&node_idx) = producers.get(name)
                && !std::mem::replace(&mut needed[node_idx], true)
            {
                pending.extend(self.nodes[node_idx].reads());
            }
        }
        let nodes = self.nodes.iter().zip(needed).filter(|(_, needed)| *needed);
        Ok(nodes.map(|(node, _)| self.operation(node)).collect())
    }

    fn operation<'m>(&'m self, node: &'m Node) -> Operation<'m> {
        let attributes = node
            .attributes
            .iter()
            .map(|(name, span)| (name.as_str(), self.attribute(span.clone())));
        Operation {
            name: if node.name.is_empty() {
                node.outputs.first().map_or("", String::as_str)
            } else {
                &node.name
            },
            op_type: &node.op_type,
            domain: &node.domain,
            inputs: &node.inputs,
            outputs: &node.outputs,
            attributes: attributes.collect(),
        }
    }

    fn attribute(&self, span: std::ops::Range<usize>) -> Attribute {
        let mut read = Attribute::default();
        for part in wire::each(&self.bytes, span).flatten() {
            match (part.number, part.value) {
                (2, Value::Fixed32(bits)) => read.float = Some(f32::from_bits(bits)),
                (3, Value::Varint(value)) => read.integer = Some(value.cast_signed()),
                (4, Value::Bytes(span)) => {
                    read.text = Some(String::from_utf8_lossy(&self.bytes[span]).into_owned());
                }
                (5, Value::Bytes(span)) => {
                    read.tensor = Initializer::read(&self.bytes, span.clone(), span)
                        .ok()
                        .and_then(|found| self.numbers_of(&found));
                }
                (7, Value::Fixed32(bits)) => read.floats.push(f32::from_bits(bits)),
                (7, Value::Bytes(span)) => {
                    let (chunks, _) = self.bytes[span].as_chunks::<4>();
                    read.floats
                        .extend(chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)));
                }
                (8, Value::Varint(value)) => read.integers.push(value.cast_signed()),
                (8, Value::Bytes(span)) => {
                    let values = wire::packed(&self.bytes, span);
                    read.integers.extend(values.map(u64::cast_signed));
                }
                _ => {}
            }
        }
        read
    }

    /// The sizes of an initialiser that holds fractions.
    pub(crate) fn float_initializer(&self, name: &str) -> Option<&[usize]> {
        let found = self.initializers.get(name)?;
        is_float(found.dtype).then_some(found.shape.as_slice())
    }

    /// The numbers of an initialiser; none for strings, complex numbers and types below a byte.
    pub(crate) fn numbers(&self, name: &str) -> Option<Numbers> {
        self.numbers_of(self.initializers.get(name)?)
    }

    fn numbers_of(&self, found: &Initializer) -> Option<Numbers> {
        let bytes: Cow<'_, [u8]> = match found.payload {
            Payload::External(_) => {
                let external = self
                    .external
                    .iter()
                    .find(|external| external.name == found.name)?;
                Cow::Borrowed(external.bytes())
            }
            _ => found.raw(&self.bytes)?,
        };
        let values = match type_name(found.dtype) {
            "float32" => Values::Floats(each(&bytes, f32::from_le_bytes)),
            "float16" => Values::Floats(each(&bytes, |b| half::f16::from_le_bytes(b).to_f32())),
            "bfloat16" => Values::Floats(each(&bytes, |b| half::bf16::from_le_bytes(b).to_f32())),
            "float64" => Values::Floats(each(&bytes, |b| f64::from_le_bytes(b) as f32)),
            "int64" => Values::Integers(each(&bytes, i64::from_le_bytes)),
            "int32" => Values::Integers(each(&bytes, |b| i32::from_le_bytes(b).into())),
            "bool" | "uint8" => Values::Integers(bytes.iter().map(|&b| b.into()).collect()),
            _ => return None,
        };
        Some(Numbers {
            shape: found.shape.clone(),
            values,
        })
    }
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|bytes| read(*bytes))
        .collect()
}
