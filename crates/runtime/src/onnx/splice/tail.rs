//! Nodes and weights that are appended to a graph, each behind the one before.

use std::collections::HashSet;

use pth::Source;

use super::{FLOAT, Reduction};
use crate::onnx::attribute::{integer, integers};
use crate::onnx::external::{External, SMALL_BYTES, raw_tensor};
use crate::onnx::wire;
use crate::targets::Task;

/// What is put behind a boundary.
pub(super) struct Tail<'m> {
    /// Names of the model that stay.
    in_front: HashSet<&'m str>,
    /// Names that were given since.
    taken: HashSet<String>,
    nodes: Vec<Node>,
    weights: Vec<Weight>,
    outputs: Vec<(String, usize)>,
    /// The tensor that the next node reads.
    last: String,
    /// In front of the names of its numbers.
    module: String,
}

struct Node {
    op_type: &'static str,
    name: String,
    inputs: Vec<String>,
    output: String,
    /// `AttributeProto`s.
    attributes: Vec<Vec<u8>>,
}

struct Weight {
    name: String,
    dtype: i64,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl<'m> Tail<'m> {
    pub(super) fn behind(boundary: &str, module: &str, in_front: HashSet<&'m str>) -> Tail<'m> {
        Tail {
            in_front,
            taken: HashSet::new(),
            nodes: Vec::new(),
            weights: Vec::new(),
            outputs: Vec::new(),
            last: boundary.to_owned(),
            module: module.to_owned(),
        }
    }

    /// `wanted`, or a name near it where that is taken.
    fn free(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut n = 0;
        while self.in_front.contains(name.as_str()) || self.taken.contains(&name) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        self.taken.insert(name.clone());
        name
    }

    /// The tensor that the next node reads.
    pub(super) fn last(&self) -> String {
        self.last.clone()
    }

    /// A node that reads the last tensor and then `others`, and gives `head.<step>`.
    pub(super) fn node(
        &mut self,
        op_type: &'static str,
        step: &str,
        others: &[&str],
        attributes: Vec<Vec<u8>>,
    ) {
        let last = self.last();
        let inputs: Vec<&str> = std::iter::once(last.as_str())
            .chain(others.iter().copied())
            .collect();
        self.node_of(op_type, step, &inputs, attributes);
    }

    /// A node that reads these tensors, and gives `head.<step>`.
    pub(super) fn node_of(
        &mut self,
        op_type: &'static str,
        step: &str,
        inputs: &[&str],
        attributes: Vec<Vec<u8>>,
    ) {
        let output = self.free(&format!("head.{step}"));
        let scope = step
            .split_once('.')
            .map_or_else(String::new, |(layer, _)| format!("{layer}/"));
        let name = self.free(&format!("head/{scope}{op_type}"));
        self.last.clone_from(&output);
        self.nodes.push(Node {
            op_type,
            name,
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output,
            attributes,
        });
    }

    /// Numbers of the head, `<module>.<name>`; the name that nodes read them by.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        self.constant(
            name,
            FLOAT,
            shape,
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        )
    }

    fn constant(&mut self, name: &str, dtype: i64, shape: &[usize], bytes: Vec<u8>) -> String {
        let name = self.free(&format!("{}.{name}", self.module));
        self.weights.push(Weight {
            name: name.clone(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        });
        name
    }

    /// Makes rows of features of the boundary.
    pub(super) fn reduce(&mut self, reduction: Reduction) {
        if reduction == Reduction::MeanOfTokens {
            self.node("Transpose", "channels", &[], vec![integers("perm", &[0, 2, 1])]);
        }
        match reduction {
            Reduction::None => {}
            Reduction::MeanOfPositions | Reduction::MeanOfTokens => {
                self.node("GlobalAveragePool", "mean", &[], Vec::new());
            }
            Reduction::FirstToken => {
                const INT64: i64 = 7;
                let index = self.constant("first", INT64, &[], 0i64.to_le_bytes().to_vec());
                self.node("Gather", "token", &[&index], vec![integer("axis", 1)]);
            }
        }
        self.node("Flatten", "input", &[], vec![integer("axis", 1)]);
    }

    /// Makes probabilities of the last tensor, logits of `task`, and an output of them; nothing of a regression, which has
    /// none.
    pub(super) fn probabilities(&mut self, task: Task, n_outputs: usize) {
        match task {
            Task::SingleLabel => self.node("Softmax", "link", &[], vec![integer("axis", 1)]),
            Task::MultiLabel => self.node("Sigmoid", "link", &[], Vec::new()),
            Task::Regression => return,
        }
        self.output("probabilities", n_outputs);
    }

    /// Calls the last node's result `wanted` and makes it an output of `[n, C]` float32; the name that it got.
    pub(super) fn output(&mut self, wanted: &str, n_outputs: usize) -> String {
        let name = self.free(wanted);
        if let Some(node) = self.nodes.last_mut() {
            node.output.clone_from(&name);
        }
        self.last.clone_from(&name);
        self.outputs.push((name.clone(), n_outputs));
        name
    }

    /// About as many bytes as will be added.
    pub(super) fn n_bytes(&self) -> usize {
        const BYTES_PER_NODE: usize = 512;
        let weights = self
            .weights
            .iter()
            .map(|weight| weight.bytes.len() + BYTES_PER_NODE);
        weights.sum::<usize>() + (self.nodes.len() + self.outputs.len()) * BYTES_PER_NODE
    }

    /// Fields of `GraphProto`, and where `is_outside` the weights that are not in them.
    pub(super) fn finish(self, is_outside: bool) -> (Vec<u8>, Vec<External>) {
        let mut fields = Vec::new();
        for node in &self.nodes {
            wire::put_bytes(&mut fields, 1, &node.to_proto());
        }
        let mut externals = Vec::new();
        for weight in self.weights {
            if is_outside && weight.bytes.len() > SMALL_BYTES {
                let external = External {
                    name: weight.name,
                    dtype: weight.dtype,
                    shape: weight.shape,
                    data: Source::from_bytes(weight.bytes),
                };
                // Where they lie is decided when the model is saved; until then they are handed over beside it.
                wire::put_bytes(&mut fields, 5, &external.placed_tensor("head.data", 0));
                externals.push(external);
            } else {
                let tensor = raw_tensor(&weight.name, weight.dtype, &weight.shape, &weight.bytes);
                wire::put_bytes(&mut fields, 5, &tensor);
            }
        }
        for (name, n_outputs) in &self.outputs {
            wire::put_bytes(&mut fields, 12, &value_info(name, *n_outputs));
        }
        (fields, externals)
    }
}

impl Node {
    fn to_proto(&self) -> Vec<u8> {
        let mut node = Vec::new();
        for input in &self.inputs {
            wire::put_bytes(&mut node, 1, input.as_bytes());
        }
        wire::put_bytes(&mut node, 2, self.output.as_bytes());
        wire::put_bytes(&mut node, 3, self.name.as_bytes());
        wire::put_bytes(&mut node, 4, self.op_type.as_bytes());
        for attribute in &self.attributes {
            wire::put_bytes(&mut node, 5, attribute);
        }
        node
    }
}

/// `ValueInfoProto` of `[n, C]` float32.
fn value_info(name: &str, n_outputs: usize) -> Vec<u8> {
    let mut batch = Vec::new();
    wire::put_bytes(&mut batch, 2, b"n");
    let mut columns = Vec::new();
    wire::put_varint(&mut columns, 1, n_outputs as u64);
    let mut shape = Vec::new();
    wire::put_bytes(&mut shape, 1, &batch);
    wire::put_bytes(&mut shape, 1, &columns);
    let mut tensor = Vec::new();
    wire::put_varint(&mut tensor, 1, FLOAT.cast_unsigned());
    wire::put_bytes(&mut tensor, 2, &shape);
    let mut type_proto = Vec::new();
    wire::put_bytes(&mut type_proto, 1, &tensor);
    let mut out = Vec::new();
    wire::put_bytes(&mut out, 1, name.as_bytes());
    wire::put_bytes(&mut out, 2, &type_proto);
    out
}
