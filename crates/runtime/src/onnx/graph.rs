//! The index of an ONNX file: nodes, initialisers, inputs and outputs as spans of its bytes.
//!
//! Source of the field numbers: `onnx/onnx.proto3` (IR version 13).

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pth::{Backing, FileError, Source};

use super::external::External;
use super::node::{Input, Node, read_node, read_value_info};
use super::tensor::{Initializer, Payload, text};
use super::wire::{self, Field, Value};
use crate::error::Error;

/// Protobuf's own limit, and ONNX Runtime's.
pub(super) const MAX_PROTOBUF_BYTES: u64 = i32::MAX as u64;

/// A model's bytes, mapped or owned; a clone shares them.
#[derive(Debug, Clone)]
pub(super) struct Bytes(pub(super) Source);

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// An ONNX model, mapped or in memory, with an index of its graph. A clone shares the bytes.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) path: PathBuf,
    pub(super) bytes: Bytes,
    /// Fields of `ModelProto` in file order; the graph is one of them.
    pub(super) top: Vec<Field>,
    /// Fields of `GraphProto` in file order.
    pub(super) graph: Vec<Field>,
    pub(super) nodes: Vec<Node>,
    pub(super) initializers: HashMap<String, Initializer>,
    /// Names of initialisers that are stored sparse.
    pub(super) sparse: HashSet<String>,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<String>,
    /// What the file says of tensors, by name: outputs, and those between.
    pub(super) infos: HashMap<String, Info>,
    /// Operator set version per domain; the default domain is the empty string.
    pub(super) opsets: HashMap<String, i64>,
    /// Domain and name of the functions that the model brings along.
    pub(super) functions: HashSet<(String, String)>,
    pub(super) external: Vec<External>,
}

/// A value info with the span of its message.
#[derive(Debug, Clone)]
pub(super) struct Info {
    pub(super) span: Range<usize>,
    pub(super) about: Input,
}

impl Model {
    /// Reads an ONNX file; weights in files beside it are mapped, not read.
    ///
    /// # Errors
    /// [`Error::NotOnnx`] where the bytes are no sound ONNX model; [`Error::ExternalWeights`] where a file with weights
    /// is missing, too short, or outside the model's folder.
    pub fn open(path: &Path) -> Result<Model, Error> {
        let n_bytes = std::fs::metadata(path)
            .map_err(FileError::at("read", path))?
            .len();
        if n_bytes > MAX_PROTOBUF_BYTES {
            return Err(Error::NotOnnx {
                path: path.to_owned(),
                reason: format!(
                    "it has {n_bytes} bytes, and a protobuf file ends at 2 GiB; larger models keep their weights in files beside them"
                ),
            });
        }
        Model::of_source(path, Source::open(path, Backing::Map)?)
    }

    /// Indexes an ONNX model that is already in memory; `path` is for messages, and weights in other files lie beside it.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Model, Error> {
        Model::of_source(path, Source::from_bytes(bytes))
    }

    fn of_source(path: &Path, source: Source) -> Result<Model, Error> {
        let mut model = Model::index(path, Bytes(source))?;
        model.lift_external()?;
        model.map_external()?;
        model.check()?;
        Ok(model)
    }

    /// Indexes bytes that were made of this model's; what lies outside them is this model's.
    pub(super) fn remade(&self, bytes: Vec<u8>) -> Result<Model, Error> {
        let mut model = Model::index(&self.path, Bytes(Source::from_bytes(bytes)))?;
        model.external = self
            .external
            .iter()
            .filter(|external| model.is_external(&external.name))
            .cloned()
            .collect();
        Ok(model)
    }

    pub(super) fn is_external(&self, name: &str) -> bool {
        let found = self.initializers.get(name);
        found.is_some_and(|found| matches!(found.payload, Payload::External(_)))
    }

    pub(super) fn not_onnx(&self, reason: String) -> Error {
        Error::NotOnnx {
            path: self.path.clone(),
            reason,
        }
    }

    pub(super) fn index(path: &Path, bytes: Bytes) -> Result<Model, Error> {
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
            sparse: HashSet::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            infos: HashMap::new(),
            opsets: HashMap::new(),
            functions: HashSet::new(),
            graph: Vec::new(),
            bytes: bytes.clone(),
            external: Vec::new(),
        };
        for field in &top {
            let pair = |span: Range<usize>, name_number: u32, domain_number: u32| {
                let parts = read(span)?;
                let part = |number| {
                    let found = parts.iter().find_map(|part| span_of(part, number));
                    found.map(|span| text(&bytes, &span)).unwrap_or_default()
                };
                Ok::<_, Error>((default_domain(part(domain_number)), part(name_number)))
            };
            if let Some(span) = span_of(field, 8) {
                let version = read(span.clone())?.iter().find_map(|part| match part.value {
                    Value::Varint(version) if part.number == 2 => Some(version.cast_signed()),
                    _ => None,
                });
                let (domain, _) = pair(span, 1, 1)?;
                model.opsets.insert(domain, version.unwrap_or(1));
            } else if let Some(span) = span_of(field, 25) {
                model.functions.insert(pair(span, 1, 10)?);
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
            let wire_error = |error: wire::WireError| not_onnx(error.to_string());
            match field.number {
                1 => model
                    .nodes
                    .push(read_node(&bytes, span.clone()).map_err(wire_error)?),
                5 => {
                    let found = Initializer::read(&bytes, field.span.clone(), span.clone())
                        .map_err(|reason| not_onnx(format!("its initialiser {reason}")))?;
                    let name = found.name.clone();
                    if model.initializers.insert(name.clone(), found).is_some() {
                        return Err(not_onnx(format!("two of its initialisers are called `{name}`")));
                    }
                }
                11 => model
                    .inputs
                    .push(read_value_info(&bytes, span.clone()).map_err(wire_error)?),
                12 | 13 => {
                    let about = read_value_info(&bytes, span.clone()).map_err(wire_error)?;
                    if field.number == 12 {
                        model.outputs.push(about.name.clone());
                    }
                    let info = Info {
                        span: span.clone(),
                        about,
                    };
                    model.infos.insert(info.about.name.clone(), info);
                }
                15 => {
                    let values = read(span.clone())?.iter().find_map(|part| span_of(part, 1));
                    for part in values.map(read).transpose()?.unwrap_or_default() {
                        if let Some(span) = span_of(&part, 8) {
                            model.sparse.insert(text(&bytes, &span));
                        }
                    }
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
        Ok(model)
    }

    /// Where the model was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model as ONNX bytes; what [`external`](Model::external) lists is not in them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size of the model with its weights, wherever they lie.
    pub fn n_bytes(&self) -> usize {
        let outside: usize = self.external.iter().map(|external| external.bytes().len()).sum();
        self.bytes.len() + outside
    }

    /// The graph's inputs that are not initialisers.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
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

    /// An integer among a node's attributes.
    pub(super) fn integer(&self, node: &Node, name: &str) -> Option<i64> {
        let (_, span) = node.attributes.iter().find(|(found, _)| found == name)?;
        let mut parts = wire::each(&self.bytes, span.clone()).flatten();
        parts.find_map(|part| match part.value {
            Value::Varint(value) if part.number == 3 => Some(value.cast_signed()),
            _ => None,
        })
    }

    /// A number among a node's attributes.
    pub(super) fn float(&self, node: &Node, name: &str) -> Option<f32> {
        let (_, span) = node.attributes.iter().find(|(found, _)| found == name)?;
        let mut parts = wire::each(&self.bytes, span.clone()).flatten();
        parts.find_map(|part| match part.value {
            Value::Fixed32(bits) if part.number == 2 => Some(f32::from_bits(bits)),
            _ => None,
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

    /// Which nodes `targets` need, as a mask over `nodes`.
    pub(super) fn ancestors<'t>(&'t self, targets: &[&'t str]) -> Vec<bool> {
        let producers = self.producers();
        let mut needed = vec![false; self.nodes.len()];
        let mut pending = targets.to_vec();
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
    pub(crate) fn constants(&self) -> HashSet<&str> {
        let stored = self.initializers.keys().chain(&self.sparse);
        let mut constants: HashSet<&str> = stored.map(String::as_str).collect();
        // Nodes stand in topological order, as ONNX demands.
        for node in &self.nodes {
            if node.reads().all(|name| constants.contains(name)) && !node.op_type.starts_with("Random") {
                constants.extend(node.outputs.iter().map(String::as_str));
            }
        }
        constants
    }

    /// The tensor of a `Constant` node: an initialiser by another spelling.
    pub(super) fn constant(&self, node: &Node) -> Option<Initializer> {
        let [(name, span)] = node.attributes.as_slice() else {
            return None;
        };
        if node.op_type != "Constant" || !node.domain.is_empty() || name != "value" || node.outputs.len() != 1
        {
            return None;
        }
        let tensor = wire::each(&self.bytes, span.clone())
            .flatten()
            .find_map(|part| match part.value {
                Value::Bytes(tensor) if part.number == 5 => Some(tensor),
                _ => None,
            })?;
        Initializer::read(&self.bytes, tensor.clone(), tensor).ok()
    }
}

pub(super) fn span_of(field: &Field, number: u32) -> Option<Range<usize>> {
    match &field.value {
        Value::Bytes(span) if field.number == number => Some(span.clone()),
        _ => None,
    }
}

/// The default domain has two names.
pub(super) fn default_domain(domain: String) -> String {
    if domain == "ai.onnx" {
        String::new()
    } else {
        domain
    }
}
