//! Parameters of a graph: the initialisers that training can change, by the names that a state dict has for them, and the
//! classifier among them.

use std::collections::{HashMap, HashSet};

use super::module_path::module_paths;
use super::names::{child, is_a_name, parent};
use super::resolve::Use;
use super::write::transposed;
use crate::onnx::boundary::Sweep;
use crate::onnx::graph::Model;
use crate::onnx::node::Node;
use crate::onnx::tensor::is_float;

/// An initialiser that training can change, or running statistics that it moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// As a state dict calls it.
    pub name: String,
    /// As the graph does.
    pub initializer: String,
    /// As the graph has it.
    pub shape: Vec<usize>,
    /// Whether a state dict holds the matrix transposed.
    pub is_transposed: bool,
    /// Running statistics of a batch normalisation, which no gradient changes.
    pub is_buffer: bool,
    /// The first node between input and output that depends on it.
    pub node_idx: usize,
}

impl Parameter {
    /// As a state dict has it.
    pub fn state_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_transposed {
            shape.reverse();
        }
        shape
    }

    /// Numbers of the graph in the order that a state dict has, or the other way round with the state dict's `shape`.
    pub(crate) fn turned(&self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        if !self.is_transposed {
            return values.to_vec();
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        floats(&transposed(&bytes, shape.last().copied().unwrap_or(1), 4))
    }
}

/// The linear layer that gives the output.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierLayer {
    /// Its module's name in a state dict.
    pub module: String,
    /// `[C, D]` row-major.
    pub weight: Vec<f32>,
    /// `[C]`; zeros where it has none.
    pub bias: Vec<f32>,
}

impl Model {
    /// All parameters between the input and the first output, in the order in which nodes read them. An initialiser whose
    /// name an exporter made up is called after the module that its node comes from, where that is told; what is neither
    /// named nor a layer's weight is a constant.
    pub fn parameters(&self) -> Vec<Parameter> {
        let sweep = Sweep::new(self);
        let uses = Use::all(self);
        let mut of_node: HashMap<usize, Vec<&Use<'_>>> = HashMap::new();
        for at in &uses {
            of_node.entry(at.node_idx).or_default().push(at);
        }
        let producers = self.producers();
        let mut found: Vec<Parameter> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for (node_idx, node) in self.nodes.iter().enumerate() {
            if !sweep.on_path[node_idx] {
                continue;
            }
            for at in of_node.get(&node_idx).into_iter().flatten() {
                let name = at.initializer.name.as_str();
                if !is_float(at.initializer.dtype) || seen.contains(name) {
                    continue;
                }
                let Some((state_name, is_transposed)) = self.state_name(at, node) else {
                    continue;
                };
                seen.insert(name);
                let is_buffer = node.op_type == "BatchNormalization" && matches!(at.input_idx, Some(3 | 4));
                found.push(Parameter {
                    name: state_name,
                    initializer: name.to_owned(),
                    shape: at.initializer.shape.clone(),
                    is_transposed,
                    is_buffer,
                    node_idx,
                });
            }
            // What is computed from weights alone, a transposition above all.
            let mut pending: Vec<&str> = node
                .reads()
                .filter(|name| !sweep.dependent.contains(name))
                .collect();
            let mut passed: HashSet<&str> = HashSet::new();
            while let Some(name) = pending.pop() {
                if !passed.insert(name) || sweep.dependent.contains(name) {
                    continue;
                }
                if let Some(&maker) = producers.get(name) {
                    pending.extend(self.nodes[maker].reads());
                }
                let Some(initializer) = self.initializers.get(name) else {
                    continue;
                };
                if is_float(initializer.dtype)
                    && is_parameter_name(name, initializer.numel())
                    && seen.insert(name)
                {
                    found.push(Parameter {
                        name: name.to_owned(),
                        initializer: name.to_owned(),
                        shape: initializer.shape.clone(),
                        is_transposed: false,
                        is_buffer: false,
                        node_idx,
                    });
                }
            }
        }
        let mut names: HashSet<String> = HashSet::new();
        for parameter in &mut found {
            if !names.insert(parameter.name.clone()) {
                parameter.name.clone_from(&parameter.initializer);
                parameter.is_transposed = false;
            }
        }
        found
    }

    /// What a state dict calls the operand, and whether it holds it transposed.
    fn state_name(&self, at: &Use<'_>, node: &Node) -> Option<(String, bool)> {
        let name = at.initializer.name.as_str();
        if is_parameter_name(name, at.initializer.numel()) {
            return Some((name.to_owned(), false));
        }
        let is_matrix = at.initializer.shape.len() == 2 && at.input_idx == Some(1);
        let is_transposed = match node.op_type.as_str() {
            "MatMul" => is_matrix,
            "Gemm" => is_matrix && self.integer(node, "transB") != Some(1),
            _ => false,
        };
        let module = module_paths(self, node).into_iter().next();
        match (module, at.leaf(node)) {
            (Some(module), Some(leaf)) if at.initializer.numel() > 1 => {
                Some((child(&module, leaf), is_transposed))
            }
            _ => at.is_weight_of(node).then(|| (name.to_owned(), false)),
        }
    }

    /// The linear layer whose input is `boundary` and whose weights are float32 initialisers: a `Gemm`, or a `MatMul` with
    /// or without an `Add` behind it. None where another node or several read the tensor.
    pub fn classifier_at(&self, boundary: &str) -> Option<ClassifierLayer> {
        let mut readers = self
            .nodes
            .iter()
            .filter(|node| node.reads().any(|name| name == boundary));
        let (Some(node), None) = (readers.next(), readers.next()) else {
            return None;
        };
        let [activation, weight, more @ ..] = node.inputs.as_slice() else {
            return None;
        };
        let is_linear = node.domain.is_empty() && matches!(node.op_type.as_str(), "Gemm" | "MatMul");
        if !is_linear || activation != boundary {
            return None;
        }
        let is_plain = |name: &str| self.float(node, name).is_none_or(|value| value == 1.0);
        if self.integer(node, "transA").unwrap_or(0) != 0 || !is_plain("alpha") || !is_plain("beta") {
            return None;
        }
        let [rows, columns] = self.initializers.get(weight)?.shape[..] else {
            return None;
        };
        let values = self.values(weight)?;
        let is_out_by_in = node.op_type == "Gemm" && self.integer(node, "transB") == Some(1);
        let (n_out, turned) = if is_out_by_in {
            (rows, values)
        } else {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (columns, floats(&transposed(&bytes, columns, 4)))
        };
        let bias = match more.first().filter(|name| !name.is_empty()) {
            Some(name) => self.values(name),
            None => self.added_to(node.outputs.first()?, n_out),
        };
        let bias = bias
            .filter(|bias| bias.len() == n_out)
            .unwrap_or_else(|| vec![0.0; n_out]);
        let named = is_parameter_name(weight, rows * columns).then(|| parent(weight).to_owned());
        let module = named.or_else(|| module_paths(self, node).into_iter().next());
        Some(ClassifierLayer {
            module: module
                .filter(|module| !module.is_empty())
                .unwrap_or_else(|| "head".to_owned()),
            weight: turned,
            bias,
        })
    }

    /// The numbers of a vector that an `Add` puts on a tensor.
    fn added_to(&self, tensor: &str, n: usize) -> Option<Vec<f32>> {
        let add = self
            .nodes
            .iter()
            .find(|node| node.op_type == "Add" && node.reads().any(|name| name == tensor))?;
        let other = add.reads().find(|name| *name != tensor)?;
        (self.initializers.get(other)?.numel() == n)
            .then(|| self.values(other))
            .flatten()
    }
}

/// Whether a state dict may have a tensor of this name; exporters' own have a slash, a colon or a number behind `val_`.
fn is_parameter_name(name: &str, numel: usize) -> bool {
    let is_word = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let is_made_up = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('_')
        .ends_with("val");
    is_a_name(name) || (is_word && !is_made_up && numel > 1)
}

/// Little-endian float32.
pub(in crate::onnx) fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four")))
        .collect()
}
