//! Models that are made here, of nodes and numbers.

use std::path::Path;

use pth::Source;

use super::external::{External, SMALL_BYTES, raw_tensor};
use super::graph::{Bytes, Model};
use super::wire;
use crate::error::Error;

/// `TensorProto.DataType` of float32.
const FLOAT: u64 = 1;
/// Operator set of what is made, and the IR version that came with it.
const OPSET: u64 = 17;
const IR_VERSION: u64 = 8;

/// What a model is made of.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// What the graph is called.
    pub(crate) name: String,
    /// In an order in which each reads what others before it made.
    pub(crate) nodes: Vec<MadeNode>,
    pub(crate) tensors: Vec<MadeTensor>,
    pub(crate) input: (String, Vec<Axis>),
    pub(crate) output: (String, Vec<Axis>),
    /// Sizes of what lies between.
    pub(crate) between: Vec<(String, Vec<Axis>)>,
}

/// A node of the default domain.
#[derive(Debug)]
pub(crate) struct MadeNode {
    pub(crate) op_type: &'static str,
    pub(crate) name: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    /// `AttributeProto`s.
    pub(crate) attributes: Vec<Vec<u8>>,
}

/// An initialiser.
#[derive(Debug)]
pub(crate) struct MadeTensor {
    pub(crate) name: String,
    /// `TensorProto.DataType`.
    pub(crate) dtype: i64,
    pub(crate) shape: Vec<usize>,
    /// Row-major, little-endian.
    pub(crate) bytes: Vec<u8>,
}

/// The size of an axis, or its name where any will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Axis {
    Size(usize),
    Named(String),
}

impl Model {
    /// A model of `made`; `path` is for messages. Large tensors lie outside its bytes, so that it may have any size.
    ///
    /// # Errors
    /// What [`Model::parse`] would say of it.
    pub(crate) fn made(path: &Path, made: Made) -> Result<Model, Error> {
        let mut graph = Vec::new();
        for node in &made.nodes {
            wire::put_bytes(&mut graph, 1, &node.to_proto());
        }
        wire::put_bytes(&mut graph, 2, made.name.as_bytes());
        let mut outside = Vec::new();
        for tensor in made.tensors {
            if tensor.bytes.len() <= SMALL_BYTES {
                let proto = raw_tensor(&tensor.name, tensor.dtype, &tensor.shape, &tensor.bytes);
                wire::put_bytes(&mut graph, 5, &proto);
                continue;
            }
            let external = External {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                data: Source::from_bytes(tensor.bytes),
            };
            // Where they lie is decided when the model is saved.
            wire::put_bytes(&mut graph, 5, &external.placed_tensor("weights", 0));
            outside.push(external);
        }
        wire::put_bytes(&mut graph, 11, &value_info(&made.input));
        wire::put_bytes(&mut graph, 12, &value_info(&made.output));
        for between in &made.between {
            wire::put_bytes(&mut graph, 13, &value_info(between));
        }
        let mut bytes = Vec::with_capacity(graph.len() + 64);
        wire::put_varint(&mut bytes, 1, IR_VERSION);
        wire::put_bytes(&mut bytes, 2, b"graftwork");
        wire::put_bytes(&mut bytes, 7, &graph);
        let mut opset = Vec::new();
        wire::put_bytes(&mut opset, 1, b"");
        wire::put_varint(&mut opset, 2, OPSET);
        wire::put_bytes(&mut bytes, 8, &opset);
        let mut model = Model::index(path, Bytes(Source::from_bytes(bytes)))?;
        model.external = outside;
        model.check()?;
        Ok(model)
    }
}

impl MadeNode {
    fn to_proto(&self) -> Vec<u8> {
        let mut node = Vec::new();
        for input in &self.inputs {
            wire::put_bytes(&mut node, 1, input.as_bytes());
        }
        for output in &self.outputs {
            wire::put_bytes(&mut node, 2, output.as_bytes());
        }
        wire::put_bytes(&mut node, 3, self.name.as_bytes());
        wire::put_bytes(&mut node, 4, self.op_type.as_bytes());
        for attribute in &self.attributes {
            wire::put_bytes(&mut node, 5, attribute);
        }
        node
    }
}

/// `ValueInfoProto` of float32.
fn value_info((name, axes): &(String, Vec<Axis>)) -> Vec<u8> {
    let mut shape = Vec::new();
    for axis in axes {
        let mut dim = Vec::new();
        match axis {
            Axis::Size(n) => wire::put_varint(&mut dim, 1, *n as u64),
            Axis::Named(name) => wire::put_bytes(&mut dim, 2, name.as_bytes()),
        }
        wire::put_bytes(&mut shape, 1, &dim);
    }
    let mut tensor = Vec::new();
    wire::put_varint(&mut tensor, 1, FLOAT);
    wire::put_bytes(&mut tensor, 2, &shape);
    let mut type_proto = Vec::new();
    wire::put_bytes(&mut type_proto, 1, &tensor);
    let mut out = Vec::new();
    wire::put_bytes(&mut out, 1, name.as_bytes());
    wire::put_bytes(&mut out, 2, &type_proto);
    out
}

#[cfg(test)]
impl Model {
    /// What the nodes are called, in order.
    pub(crate) fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// Whether a weight is called so.
    pub(crate) fn has_initializer(&self, name: &str) -> bool {
        self.initializers.contains_key(name)
    }
}
