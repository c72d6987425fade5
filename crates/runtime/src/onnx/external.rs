//! Initialisers whose bytes lie outside the model's own.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path};

use pth::{Backing, Source};

use super::graph::{Model, span_of};
use super::tensor::{Initializer, Payload, n_bytes, type_name};
use super::wire::{self, Value};
use crate::error::Error;

/// An initialiser up to this size is taken into the model.
pub(super) const SMALL_BYTES: usize = 1024;

/// An initialiser that the graph names and whose bytes are handed to ONNX Runtime beside it. A clone shares the bytes.
#[derive(Clone)]
pub struct External {
    /// The tensor's name.
    pub name: String,
    /// `TensorProto.DataType`.
    pub dtype: i64,
    /// The sizes of its axes.
    pub shape: Vec<usize>,
    pub(super) data: Source,
}

impl External {
    /// Its elements, row-major, little-endian; the address stays when the struct moves.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_slice().unwrap_or_default()
    }
}

impl std::fmt::Debug for External {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("External")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("n_bytes", &self.data.len())
            .finish()
    }
}

impl Model {
    /// Initialisers whose bytes lie outside [`Model::bytes`].
    pub fn external(&self) -> &[External] {
        &self.external
    }
}

impl Model {
    /// Maps the files that initialisers lie in, and takes small ones into the model: shapes that are computed from must
    /// be there when ONNX Runtime looks at the graph, and a page per scale would be waste.
    pub(super) fn map_external(&mut self) -> Result<(), Error> {
        let folder = self.path.parent().unwrap_or(Path::new("")).to_owned();
        let mut files: HashMap<&str, Source> = HashMap::new();
        let mut found = Vec::new();
        for initializer in self.initializers.values() {
            let Payload::External(place) = &initializer.payload else {
                continue;
            };
            let refuse = |reason: String| Error::ExternalWeights {
                path: self.path.clone(),
                tensor: initializer.name.clone(),
                location: place.location.clone(),
                reason,
            };
            let is_below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            if place.location.is_empty() || !Path::new(&place.location).components().all(is_below) {
                return Err(refuse("which is not below the model's folder".to_owned()));
            }
            let file = match files.get(place.location.as_str()) {
                Some(file) => file,
                None => {
                    let file = Source::open(&folder.join(&place.location), Backing::Map).map_err(
                        |error| match error.source.kind() {
                            std::io::ErrorKind::NotFound => refuse("which is missing".to_owned()),
                            _ => refuse(format!("which cannot be read: {}", error.source)),
                        },
                    )?;
                    files.entry(&place.location).or_insert(file)
                }
            };
            let number = |text: &Option<String>, what: &str| match text {
                None => Ok(None),
                Some(text) => match text.trim().parse::<usize>() {
                    Ok(number) => Ok(Some(number)),
                    Err(_) => Err(refuse(format!("at {what} `{text}`, which is no number"))),
                },
            };
            let n_bytes = n_bytes(initializer.dtype, initializer.numel())
                .ok_or_else(|| refuse("where no strings can be".to_owned()))?;
            if let Some(length) = number(&place.length, "length")?
                && length != n_bytes
            {
                return Err(refuse(format!(
                    "where it has {length} bytes, and {} of {:?} has {n_bytes}",
                    type_name(initializer.dtype),
                    initializer.shape
                )));
            }
            let offset = number(&place.offset, "offset")?.unwrap_or(0);
            let data = offset
                .checked_add(n_bytes)
                .and_then(|end| file.part(offset..end))
                .ok_or_else(|| {
                    refuse(format!(
                        "which has {} bytes and would have to have {n_bytes} from byte {offset} on",
                        file.len()
                    ))
                })?;
            found.push((
                initializer.field.start,
                External {
                    name: initializer.name.clone(),
                    dtype: initializer.dtype,
                    shape: initializer.shape.clone(),
                    data,
                },
            ));
        }
        // The order of the file, so that nothing depends on a hash.
        found.sort_by_key(|(start, _)| *start);
        self.external = found.into_iter().map(|(_, external)| external).collect();
        let small: Vec<External> = self
            .external
            .iter()
            .filter(|external| external.bytes().len() <= SMALL_BYTES || !is_handed_over(external.dtype))
            .cloned()
            .collect();
        if !small.is_empty() {
            let small: Vec<_> = small
                .iter()
                .map(|external| (external.name.as_str(), external.raw_tensor()))
                .collect();
            *self = self.with_tensors(&small.into_iter().collect())?;
        }
        Ok(())
    }

    /// The model with its large weights outside its bytes, each at an address that suits its type: what a cut need not copy,
    /// and what all sessions of the model share.
    ///
    /// # Errors
    /// None that a model that was opened can have.
    pub fn with_weights_outside(&self) -> Result<Model, Error> {
        const LARGE_BYTES: usize = 1 << 12;
        let mut found: Vec<(usize, External)> = Vec::new();
        for initializer in self.initializers.values() {
            let Payload::Raw(span) = &initializer.payload else {
                continue;
            };
            if span.len() < LARGE_BYTES || !is_handed_over(initializer.dtype) {
                continue;
            }
            let bytes = &self.bytes[span.clone()];
            let item = n_bytes(initializer.dtype, 1).unwrap_or(1);
            let in_place = bytes
                .as_ptr()
                .addr()
                .is_multiple_of(item)
                .then(|| self.bytes.0.part(span.clone()));
            let data = in_place
                .flatten()
                .unwrap_or_else(|| Source::from_bytes(bytes.to_vec()));
            let external = External {
                name: initializer.name.clone(),
                dtype: initializer.dtype,
                shape: initializer.shape.clone(),
                data,
            };
            found.push((initializer.field.start, external));
        }
        if found.is_empty() {
            return Ok(self.clone());
        }
        found.sort_by_key(|(start, _)| *start);
        let tensors = found
            .iter()
            .map(|(_, external)| (external.name.as_str(), external.placed_tensor("weights", 0)))
            .collect();
        let mut model = self.with_tensors(&tensors)?;
        model
            .external
            .extend(found.into_iter().map(|(_, external)| external));
        Ok(model)
    }

    /// The model with `Constant` nodes whose tensors lie in other files as initialisers, which they are by another
    /// spelling.
    ///
    /// # Errors
    /// [`Error::Backbone`] for such tensors anywhere else: in subgraphs, functions and sparse weights.
    pub(super) fn lift_external(&mut self) -> Result<(), Error> {
        let unsound = |error: wire::WireError| self.not_onnx(error.to_string());
        let refuse = |what: String| Error::Backbone {
            path: self.path.clone(),
            reason: format!("{what} keeps numbers in another file, which only weights and constants can"),
        };
        let mut lifted: HashMap<usize, Vec<u8>> = HashMap::new();
        for (node_idx, node) in self.nodes.iter().enumerate() {
            let constant = self.constant(node);
            let is_outside = |found: &Initializer| matches!(found.payload, Payload::External(_));
            match (constant.filter(is_outside), node.outputs.first()) {
                (Some(constant), Some(name)) => {
                    let mut tensor = Vec::new();
                    for part in wire::each(&self.bytes, constant.field).flatten() {
                        if part.number != 8 {
                            tensor.extend_from_slice(&self.bytes[part.span]);
                        }
                    }
                    wire::put_bytes(&mut tensor, 8, name.as_bytes());
                    lifted.insert(node_idx, tensor);
                }
                _ => {
                    for (_, span) in &node.attributes {
                        if holds_external(&self.bytes, span.clone(), Kind::Attribute, 0).map_err(unsound)? {
                            return Err(refuse(format!("its {}", node.title())));
                        }
                    }
                }
            }
        }
        for (fields, number, kind, what) in [
            (&self.graph, 15, Kind::Sparse, "a sparse weight"),
            (&self.top, 25, Kind::Function, "a function of its own"),
        ] {
            for span in fields.iter().filter_map(|field| span_of(field, number)) {
                if holds_external(&self.bytes, span, kind, 0).map_err(unsound)? {
                    return Err(refuse(what.to_owned()));
                }
            }
        }
        if lifted.is_empty() {
            return Ok(());
        }
        let mut graph = Vec::with_capacity(self.bytes.len());
        let mut node_idxs = 0..;
        for field in &self.graph {
            let node_idx = (field.number == 1).then(|| node_idxs.next()).flatten();
            match node_idx.and_then(|node_idx| lifted.get(&node_idx)) {
                Some(tensor) => wire::put_bytes(&mut graph, 5, tensor),
                None => graph.extend_from_slice(&self.bytes[field.span.clone()]),
            }
        }
        *self = self.with_graph(&graph)?;
        Ok(())
    }

    /// The model with another graph message.
    pub(super) fn with_graph(&self, graph: &[u8]) -> Result<Model, Error> {
        let mut bytes = Vec::with_capacity(graph.len() + 4096);
        for field in &self.top {
            match field.number {
                7 => wire::put_bytes(&mut bytes, 7, graph),
                _ => bytes.extend_from_slice(&self.bytes[field.span.clone()]),
            }
        }
        self.remade(bytes)
    }

    /// The model with other `TensorProto`s under the names of its initialisers.
    pub(super) fn with_tensors(&self, tensors: &HashMap<&str, Vec<u8>>) -> Result<Model, Error> {
        let mut of_field: Vec<(usize, &Vec<u8>)> = tensors
            .iter()
            .filter_map(|(name, tensor)| Some((self.initializers.get(*name)?.field.start, tensor)))
            .collect();
        of_field.sort_unstable_by_key(|(start, _)| *start);
        let added: usize = tensors.values().map(Vec::len).sum();
        let mut graph = Vec::with_capacity(self.bytes.len() + added + 16 * tensors.len());
        let mut replaced = of_field.into_iter().peekable();
        for field in &self.graph {
            match replaced.next_if(|(start, _)| *start == field.span.start) {
                Some((_, tensor)) => wire::put_bytes(&mut graph, 5, tensor),
                None => graph.extend_from_slice(&self.bytes[field.span.clone()]),
            }
        }
        self.with_graph(&graph)
    }
}

impl External {
    /// A `TensorProto` that holds the bytes.
    pub(super) fn raw_tensor(&self) -> Vec<u8> {
        raw_tensor(&self.name, self.dtype, &self.shape, self.bytes())
    }

    /// A `TensorProto` that says where in `location` the bytes are.
    pub(super) fn placed_tensor(&self, location: &str, offset: u64) -> Vec<u8> {
        let mut tensor = head_of_tensor(&self.name, self.dtype, &self.shape);
        let entries = [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", self.bytes().len().to_string()),
        ];
        for (key, value) in entries {
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 1, key.as_bytes());
            wire::put_bytes(&mut entry, 2, value.as_bytes());
            wire::put_bytes(&mut tensor, 13, &entry);
        }
        wire::put_varint(&mut tensor, 14, 1);
        tensor
    }
}

/// What a message is, of those that tensors can be in.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Attribute,
    Graph,
    Node,
    Function,
    Tensor,
    Sparse,
}

/// Whether any tensor in a message, however deep, lies in another file.
fn holds_external(
    bytes: &[u8],
    span: Range<usize>,
    kind: Kind,
    depth: usize,
) -> Result<bool, wire::WireError> {
    const MAX_DEPTH: usize = 256;
    if depth > MAX_DEPTH {
        return Err(wire::WireError {
            offset: span.start,
            what: "messages nested over 256 deep",
        });
    }
    for field in wire::each(bytes, span) {
        let field = field?;
        if let (Kind::Tensor, 14, Value::Varint(1)) = (kind, field.number, &field.value) {
            return Ok(true);
        }
        let inner = match (kind, field.number) {
            (Kind::Attribute, 5 | 10) => Kind::Tensor,
            (Kind::Attribute, 22 | 23) => Kind::Sparse,
            (Kind::Attribute, 6 | 11) => Kind::Graph,
            (Kind::Graph, 5) => Kind::Tensor,
            (Kind::Graph, 15) => Kind::Sparse,
            (Kind::Sparse, 1 | 2) => Kind::Tensor,
            (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::Node, 5) => Kind::Attribute,
            _ => continue,
        };
        if let Value::Bytes(span) = field.value
            && holds_external(bytes, span, inner, depth + 1)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether ONNX Runtime takes weights of this type from outside: whole bytes, and no floats of 8 bits.
fn is_handed_over(dtype: i64) -> bool {
    matches!(dtype, 1..=7 | 9..=13 | 16)
}

/// A `TensorProto` that holds raw data.
pub(super) fn raw_tensor(name: &str, dtype: i64, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut tensor = head_of_tensor(name, dtype, shape);
    tensor.reserve(bytes.len() + 16);
    wire::put_bytes(&mut tensor, 9, bytes);
    tensor
}

fn head_of_tensor(name: &str, dtype: i64, shape: &[usize]) -> Vec<u8> {
    let mut tensor = Vec::new();
    for &size in shape {
        wire::put_varint(&mut tensor, 1, size as u64);
    }
    wire::put_varint(&mut tensor, 2, dtype.cast_unsigned());
    wire::put_bytes(&mut tensor, 8, name.as_bytes());
    tensor
}
