//! ONNX files made field by field.

use std::path::Path;

use crate::error::Error;
use crate::onnx::Model;
use crate::onnx::wire::{put_bytes, put_varint};

/// A graph in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    fields: Vec<(u32, Vec<u8>)>,
    opsets: Vec<(&'static str, u64)>,
    functions: Vec<Vec<u8>>,
}

pub(crate) fn graph() -> Graph {
    Graph {
        opsets: vec![("", 17)],
        ..Graph::default()
    }
}

impl Graph {
    pub(crate) fn field(mut self, number: u32, message: Vec<u8>) -> Graph {
        self.fields.push((number, message));
        self
    }

    pub(crate) fn input(self, name: &str, elem_type: u64, shape: &[u64]) -> Graph {
        self.field(11, value_info(name, elem_type, shape))
    }

    pub(crate) fn output(self, name: &str) -> Graph {
        self.field(12, value_info(name, 1, &[]))
    }

    pub(crate) fn node(self, op: &str, inputs: &[&str], outputs: &[&str]) -> Graph {
        self.field(1, node(op, "", "", inputs, outputs))
    }

    pub(crate) fn named(self, op: &str, name: &str, inputs: &[&str], output: &str) -> Graph {
        self.field(1, node(op, name, "", inputs, &[output]))
    }

    pub(crate) fn weight(self, name: &str, shape: &[u64], values: &[f32]) -> Graph {
        self.field(5, weight(name, shape, values))
    }

    /// The nodes in the order of the tensors that they make, in front of everything else.
    pub(crate) fn in_order(mut self, outputs: &[&str]) -> Graph {
        let place = |(number, message): &(u32, Vec<u8>)| {
            let made = crate::onnx::wire::each(message, 0..message.len())
                .flatten()
                .find_map(|part| match part.value {
                    crate::onnx::wire::Value::Bytes(span) if part.number == 2 => Some(span),
                    _ => None,
                });
            let made = made.filter(|_| *number == 1).map(|span| &message[span]);
            outputs.iter().position(|name| made == Some(name.as_bytes()))
        };
        self.fields
            .sort_by_key(|field| place(field).unwrap_or(outputs.len()));
        self
    }

    pub(crate) fn opsets(mut self, opsets: &[(&'static str, u64)]) -> Graph {
        self.opsets = opsets.to_vec();
        self
    }

    pub(crate) fn function(mut self, domain: &str, name: &str) -> Graph {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, name.as_bytes());
        put_bytes(&mut message, 10, domain.as_bytes());
        self.functions.push(message);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut graph = Vec::new();
        for (number, message) in &self.fields {
            put_bytes(&mut graph, *number, message);
        }
        let mut model = Vec::new();
        put_varint(&mut model, 1, 8);
        for (domain, version) in &self.opsets {
            let mut opset = Vec::new();
            put_bytes(&mut opset, 1, domain.as_bytes());
            put_varint(&mut opset, 2, *version);
            put_bytes(&mut model, 8, &opset);
        }
        put_bytes(&mut model, 7, &graph);
        for function in &self.functions {
            put_bytes(&mut model, 25, function);
        }
        model
    }

    pub(crate) fn parse(&self) -> Result<Model, Error> {
        Model::parse(Path::new("m.onnx"), self.bytes())
    }

    pub(crate) fn model(&self) -> Model {
        self.parse().unwrap()
    }
}

pub(crate) fn node(op: &str, name: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut message = Vec::new();
    for input in inputs {
        put_bytes(&mut message, 1, input.as_bytes());
    }
    for output in outputs {
        put_bytes(&mut message, 2, output.as_bytes());
    }
    put_bytes(&mut message, 3, name.as_bytes());
    put_bytes(&mut message, 4, op.as_bytes());
    if !domain.is_empty() {
        put_bytes(&mut message, 7, domain.as_bytes());
    }
    message
}

/// An entry of a node's `metadata_props`.
pub(crate) fn with_scopes(mut node: Vec<u8>, scopes: &str, fx_node: &str) -> Vec<u8> {
    for (key, value) in [
        ("pkg.torch.onnx.name_scopes", scopes),
        ("pkg.torch.onnx.fx_node", fx_node),
    ] {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, value.as_bytes());
        put_bytes(&mut node, 9, &entry);
    }
    node
}

pub(crate) fn value_info(name: &str, elem_type: u64, shape: &[u64]) -> Vec<u8> {
    let mut sizes = Vec::new();
    for &size in shape {
        let mut dim = Vec::new();
        // 0 stands for an axis of any size.
        if size > 0 {
            put_varint(&mut dim, 1, size);
        } else {
            put_bytes(&mut dim, 2, b"n");
        }
        put_bytes(&mut sizes, 1, &dim);
    }
    let mut tensor = Vec::new();
    put_varint(&mut tensor, 1, elem_type);
    if !shape.is_empty() {
        put_bytes(&mut tensor, 2, &sizes);
    }
    let mut ty = Vec::new();
    put_bytes(&mut ty, 1, &tensor);
    let mut info = Vec::new();
    put_bytes(&mut info, 1, name.as_bytes());
    put_bytes(&mut info, 2, &ty);
    info
}

/// The beginning of a `TensorProto`: sizes, type, name.
pub(crate) fn tensor(name: &str, dtype: u64, shape: &[u64]) -> Vec<u8> {
    let mut message = Vec::new();
    for &size in shape {
        put_varint(&mut message, 1, size);
    }
    put_varint(&mut message, 2, dtype);
    put_bytes(&mut message, 8, name.as_bytes());
    message
}

pub(crate) fn with(mut message: Vec<u8>, number: u32, bytes: &[u8]) -> Vec<u8> {
    put_bytes(&mut message, number, bytes);
    message
}

pub(crate) fn weight(name: &str, shape: &[u64], values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    with(tensor(name, 1, shape), 9, &raw)
}

/// A `TensorProto` whose elements lie in another file.
pub(crate) fn external(name: &str, shape: &[u64], entries: &[(&str, &str)]) -> Vec<u8> {
    let mut message = tensor(name, 1, shape);
    for (key, value) in entries {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, value.as_bytes());
        put_bytes(&mut message, 13, &entry);
    }
    put_varint(&mut message, 14, 1);
    message
}
