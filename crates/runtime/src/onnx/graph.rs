//! The index of an ONNX file: nodes, initialisers, inputs and outputs as spans of its bytes.
//!
//! Source of the field numbers: `onnx/onnx.proto3` (IR version 13).

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pth::FileError;

use super::wire::{self, Field, Value};
use crate::error::Error;

/// An ONNX model in memory with an index of its graph.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    /// Fields of `ModelProto` in file order; the graph is one of them.
    pub(super) top: Vec<Field>,
    /// Fields of `GraphProto` in file order.
    pub(super) graph: Vec<Field>,
    pub(super) nodes: Vec<Node>,
    pub(super) initializers: HashMap<String, Range<usize>>,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<String>,
    /// Operator set version per domain; the default domain is the empty string.
    pub(super) opsets: HashMap<String, i64>,
}

/// A graph input that is not an initialiser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The tensor's name.
    pub name: String,
    /// `TensorProto.DataType`; 1 is float32.
    pub elem_type: i64,
    /// Fixed sizes, `None` where an axis is symbolic; `None` as a whole where the file gives no shape.
    pub shape: Option<Vec<Option<usize>>>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) op_type: String,
    pub(super) domain: String,
    /// Tensor names; an empty string stands for an optional input that is left out.
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    /// Name and span of each `AttributeProto`.
    pub(super) attributes: Vec<(String, Range<usize>)>,
    /// Tensors of this graph that subgraphs of the node (If, Loop, Scan) read by name.
    pub(super) captured: Vec<String>,
}

impl Node {
    pub(super) fn reads(&self) -> impl Iterator<Item = &str> {
        self.inputs
            .iter()
            .chain(&self.captured)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

impl Model {
    /// Reads an ONNX file.
    ///
    /// # Errors
    /// [`Error::NotOnnx`] where the bytes are no ONNX model; [`Error::ExternalWeights`] where weights lie beside the file.
    pub fn open(path: &Path) -> Result<Model, Error> {
        let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
        Model::parse(path, bytes)
    }

    /// Indexes an ONNX model that is already in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Model, Error> {
        let not_onnx = |reason: String| Error::NotOnnx {
            path: path.to_owned(),
            reason,
        };
        let read =
            |span: Range<usize>| wire::fields(&bytes, span).map_err(|error| not_onnx(error.to_string()));
        let top = read(0..bytes.len())?;
        let graph_span = top
            .iter()
            .find_map(|field| span_of(field, 7))
            .ok_or_else(|| not_onnx("it holds no graph".to_owned()))?;
        let graph = read(graph_span)?;
        let mut model = Model {
            path: path.to_owned(),
            top: Vec::new(),
            nodes: Vec::new(),
            initializers: HashMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            opsets: HashMap::new(),
            graph: Vec::new(),
            bytes: Vec::new(),
        };
        for field in &top {
            if let Some(span) = span_of(field, 8) {
                let mut domain = String::new();
                let mut version = 1;
                for part in read(span)? {
                    match (&part.number, &part.value) {
                        (1, Value::Bytes(span)) => domain = text(&bytes, span),
                        (2, Value::Varint(value)) => version = value.cast_signed(),
                        _ => {}
                    }
                }
                model.opsets.insert(
                    if domain == "ai.onnx" {
                        String::new()
                    } else {
                        domain
                    },
                    version,
                );
            }
        }
        for field in &graph {
            let Value::Bytes(span) = &field.value else {
                if matches!(field.number, 1 | 5 | 11..=16) {
                    return Err(not_onnx(format!(
                        "field {} of its graph is a number",
                        field.number
                    )));
                }
                continue;
            };
            match field.number {
                1 => model
                    .nodes
                    .push(read_node(&bytes, span.clone()).map_err(|e| not_onnx(e.to_string()))?),
                5 => {
                    let mut name = String::new();
                    for part in read(span.clone())? {
                        match (part.number, &part.value) {
                            (8, Value::Bytes(span)) => name = text(&bytes, span),
                            (14, Value::Varint(1)) => {
                                return Err(Error::ExternalWeights {
                                    path: path.to_owned(),
                                });
                            }
                            _ => {}
                        }
                    }
                    model.initializers.insert(name, field.span.clone());
                }
                11 => model
                    .inputs
                    .push(read_value_info(&bytes, span.clone()).map_err(|e| not_onnx(e.to_string()))?),
                12 => {
                    let info = read_value_info(&bytes, span.clone()).map_err(|e| not_onnx(e.to_string()))?;
                    model.outputs.push(info.name);
                }
                _ => {}
            }
        }
        // Before IR version 4 every initialiser was listed as an input too.
        model
            .inputs
            .retain(|input| !model.initializers.contains_key(&input.name));
        if model.nodes.is_empty() || model.outputs.is_empty() {
            return Err(not_onnx("its graph holds no nodes".to_owned()));
        }
        model.top = top;
        model.graph = graph;
        model.bytes = bytes;
        Ok(model)
    }

    /// Where the model was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model as ONNX bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The one input that pictures go into.
    ///
    /// # Errors
    /// [`Error::Backbone`] where the graph has no input or several.
    pub fn input(&self) -> Result<&Input, Error> {
        match self.inputs.as_slice() {
            [input] => Ok(input),
            inputs => Err(Error::Backbone {
                path: self.path.clone(),
                reason: format!(
                    "it takes {} inputs ({}), not one",
                    inputs.len(),
                    inputs
                        .iter()
                        .map(|input| format!("`{}`", input.name))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }),
        }
    }

    /// Names of the graph's outputs.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// The value stored under `key` in the model's `metadata_props`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.top
            .iter()
            .filter_map(|field| span_of(field, 14))
            .find_map(|span| {
                let entry = wire::fields(&self.bytes, span).ok()?;
                let part = |number| {
                    entry
                        .iter()
                        .find_map(|field| span_of(field, number))
                        .map(|s| text(&self.bytes, &s))
                };
                (part(1)? == key).then(|| part(2)).flatten()
            })
    }

    /// Index of the node that makes each tensor.
    pub(super) fn producers(&self) -> HashMap<&str, usize> {
        let mut producers = HashMap::new();
        for (node_idx, node) in self.nodes.iter().enumerate() {
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                producers.insert(output.as_str(), node_idx);
            }
        }
        producers
    }

    /// Which nodes `target` needs, as a mask over `nodes`.
    pub(super) fn ancestors(&self, target: &str) -> Vec<bool> {
        let producers = self.producers();
        let mut needed = vec![false; self.nodes.len()];
        let mut pending = vec![target];
        while let Some(name) = pending.pop() {
            if let Some(&node_idx) = producers.get(name)
                && !std::mem::replace(&mut needed[node_idx], true)
            {
                pending.extend(self.nodes[node_idx].reads());
            }
        }
        needed
    }

    /// Tensors that follow from initialisers and constants alone, whatever the input.
    pub(super) fn constants(&self) -> HashSet<&str> {
        let mut constants: HashSet<&str> = self.initializers.keys().map(String::as_str).collect();
        // Nodes stand in topological order, as ONNX demands.
        for node in &self.nodes {
            if node.reads().all(|name| constants.contains(name)) && !node.op_type.starts_with("Random") {
                constants.extend(node.outputs.iter().map(String::as_str));
            }
        }
        constants
    }
}

pub(super) fn span_of(field: &Field, number: u32) -> Option<Range<usize>> {
    match &field.value {
        Value::Bytes(span) if field.number == number => Some(span.clone()),
        _ => None,
    }
}

pub(super) fn text(bytes: &[u8], span: &Range<usize>) -> String {
    String::from_utf8_lossy(&bytes[span.clone()]).into_owned()
}

fn read_node(bytes: &[u8], span: Range<usize>) -> Result<Node, wire::WireError> {
    let mut node = Node {
        op_type: String::new(),
        domain: String::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        attributes: Vec::new(),
        captured: Vec::new(),
    };
    for field in wire::fields(bytes, span)? {
        let Value::Bytes(span) = &field.value else {
            continue;
        };
        match field.number {
            1 => node.inputs.push(text(bytes, span)),
            2 => node.outputs.push(text(bytes, span)),
            4 => node.op_type = text(bytes, span),
            5 => {
                let mut name = String::new();
                for part in wire::fields(bytes, span.clone())? {
                    match (part.number, &part.value) {
                        (1, Value::Bytes(span)) => name = text(bytes, span),
                        (6 | 11, Value::Bytes(span)) => capture(bytes, span.clone(), &mut node.captured, 0)?,
                        _ => {}
                    }
                }
                node.attributes.push((name, span.clone()));
            }
            7 => node.domain = text(bytes, span),
            _ => {}
        }
    }
    if node.domain == "ai.onnx" {
        node.domain.clear();
    }
    Ok(node)
}

/// Collects the names that the nodes of a subgraph read. Names made inside are among them and do no harm: the cut
/// looks each up in the outer graph, where they are unknown.
fn capture(
    bytes: &[u8],
    graph: Range<usize>,
    into: &mut Vec<String>,
    depth: usize,
) -> Result<(), wire::WireError> {
    const MAX_DEPTH: usize = 64;
    if depth > MAX_DEPTH {
        return Err(wire::WireError {
            offset: graph.start,
            what: "subgraphs nested over 64 deep",
        });
    }
    for field in wire::fields(bytes, graph)? {
        if let Some(node) = span_of(&field, 1) {
            for part in wire::fields(bytes, node)? {
                if let Some(span) = span_of(&part, 1) {
                    into.push(text(bytes, &span));
                } else if let Some(attribute) = span_of(&part, 5) {
                    for part in wire::fields(bytes, attribute)? {
                        if let Some(inner) = span_of(&part, 6).or_else(|| span_of(&part, 11)) {
                            capture(bytes, inner, into, depth + 1)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn read_value_info(bytes: &[u8], span: Range<usize>) -> Result<Input, wire::WireError> {
    let mut info = Input {
        name: String::new(),
        elem_type: 0,
        shape: None,
    };
    for field in wire::fields(bytes, span)? {
        if let Some(span) = span_of(&field, 1) {
            info.name = text(bytes, &span);
        } else if let Some(type_span) = span_of(&field, 2) {
            for field in wire::fields(bytes, type_span)? {
                let Some(tensor_span) = span_of(&field, 1) else {
                    continue;
                };
                for field in wire::fields(bytes, tensor_span)? {
                    match (&field.number, &field.value) {
                        (1, Value::Varint(value)) => info.elem_type = value.cast_signed(),
                        (2, Value::Bytes(shape_span)) => {
                            let mut shape = Vec::new();
                            for dim in wire::fields(bytes, shape_span.clone())? {
                                let Some(dim_span) = span_of(&dim, 1) else {
                                    continue;
                                };
                                let size = wire::fields(bytes, dim_span)?.iter().find_map(|field| {
                                    match (field.number, &field.value) {
                                        (1, Value::Varint(size)) => usize::try_from(*size).ok(),
                                        _ => None,
                                    }
                                });
                                // 0 and -1 are written by some exporters for "any".
                                shape.push(size.filter(|&size| size > 0 && size < 1 << 40));
                            }
                            info.shape = Some(shape);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(info)
}
