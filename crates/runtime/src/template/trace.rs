//! What a network does with its input, written down while its `forward` is read: ONNX nodes, and the calls of modules.
//!
//! Nodes have the names that torch's own exporter gives them: the path of the modules that are being called, then the operator.

use std::collections::HashMap;

use super::value::{Dim, ModuleId, Tensor};

/// A graph in the making.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) nodes: Vec<Node>,
    pub(super) constants: Vec<Constant>,
    /// What the nodes give, of float32.
    pub(super) tensors: Vec<Tensor>,
    /// In the order in which they began.
    pub(super) calls: Vec<Call>,
    /// Calls that have not ended.
    open: Vec<usize>,
    /// Names of modules that are being called, as in a node's name.
    scopes: Vec<String>,
    used: HashMap<String, usize>,
}

/// An ONNX node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) op_type: &'static str,
    pub(super) name: String,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
}

/// Numbers that no checkpoint holds: sizes to reshape to, bounds of a clip.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Int64(Vec<i64>),
    Float32(Vec<f32>),
}

/// A module that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) module: ModuleId,
    /// Sizes of what it was given first.
    pub(super) input: Vec<Dim>,
    /// Sizes of what it gave, of the first where it gave several; empty until it ends.
    pub(super) output: Vec<Dim>,
}

impl Trace {
    /// Begins a call of a module that is at `path` in the network; empty for the network itself.
    pub(super) fn enter(&mut self, module: ModuleId, path: &str, input: Vec<Dim>) {
        self.open.push(self.calls.len());
        self.calls.push(Call {
            module,
            input,
            output: Vec::new(),
        });
        let name = scope_name(path);
        if self.scopes.is_empty() && name.is_empty() {
            self.scopes.push(String::new());
            return;
        }
        let outer = self.scopes.last().cloned().unwrap_or_default();
        let scope = self.free(&format!("{outer}/{name}"));
        self.scopes.push(scope);
    }

    /// Ends the call that began last.
    pub(super) fn exit(&mut self, output: &[Dim]) {
        self.scopes.pop();
        if let Some(call) = self.open.pop() {
            self.calls[call].output = output.to_vec();
        }
    }

    /// `wanted`, or the same with a number behind it.
    fn free(&mut self, wanted: &str) -> String {
        let n = self.used.entry(wanted.to_owned()).or_default();
        *n += 1;
        match *n - 1 {
            0 => wanted.to_owned(),
            n => format!("{wanted}_{n}"),
        }
    }

    /// A node with an output for each of `shapes`.
    pub(super) fn node_of(
        &mut self,
        op_type: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
        shapes: Vec<Vec<Dim>>,
    ) -> Vec<Tensor> {
        let scope = self.scopes.last().cloned().unwrap_or_default();
        let name = self.free(&format!("{scope}/{op_type}"));
        let tensors: Vec<Tensor> = shapes
            .into_iter()
            .enumerate()
            .map(|(at, shape)| Tensor {
                name: format!("{name}_output_{at}"),
                shape,
            })
            .collect();
        self.nodes.push(Node {
            op_type,
            name,
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            attributes,
        });
        self.tensors.extend(tensors.iter().cloned());
        tensors
    }

    /// A node whose one output are whole numbers: sizes that are known when the network runs.
    pub(super) fn sizes_node(
        &mut self,
        op_type: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        let n_listed = self.tensors.len();
        let outputs = self.node_of(op_type, inputs, attributes, vec![Vec::new()]);
        self.tensors.truncate(n_listed);
        outputs
            .into_iter()
            .next()
            .map_or_else(String::new, |output| output.name)
    }

    /// Whole numbers for the next node; the name that it reads them by.
    pub(super) fn ints(&mut self, what: &str, values: &[i64]) -> String {
        self.constant(what, vec![values.len()], Values::Int64(values.to_vec()))
    }

    /// A number for the next node.
    pub(super) fn float(&mut self, what: &str, value: f64) -> String {
        self.constant(what, Vec::new(), Values::Float32(vec![value as f32]))
    }

    /// An array for the next node.
    pub(super) fn constant(&mut self, what: &str, shape: Vec<usize>, values: Values) -> String {
        let scope = self.scopes.last().cloned().unwrap_or_default();
        let name = self.free(&format!("{scope}/{what}"));
        self.constants.push(Constant {
            name: name.clone(),
            shape,
            values,
        });
        name
    }
}

/// The last name of a path that is no number, with the numbers behind it: `layer1.0.conv1` is `conv1`, and `layer1.0` is itself.
fn scope_name(path: &str) -> &str {
    let mut start = path.len();
    for part in path.rsplit('.') {
        start -= part.len();
        if !part.starts_with(|c: char| c.is_ascii_digit()) {
            break;
        }
        start = start.saturating_sub(1);
    }
    path[start..].trim_start_matches('.')
}

#[cfg(test)]
mod tests {
    use super::scope_name;

    #[test]
    fn scopes_are_called_as_torchs_exporter_calls_them() {
        for (path, scope) in [
            ("conv1", "conv1"),
            ("layer1.0", "layer1.0"),
            ("layer1.0.conv1", "conv1"),
            ("features.0.0", "features.0.0"),
            ("layer2.0.downsample.1", "downsample.1"),
            ("0", "0"),
            ("1.0", "1.0"),
            ("", ""),
        ] {
            assert_eq!(scope_name(path), scope, "{path}");
        }
    }
}
