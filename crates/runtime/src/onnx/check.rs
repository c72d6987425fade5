//! What makes an ONNX file unsound or unusable, said before ONNX Runtime says it in its own words.

use std::collections::HashSet;

use super::graph::Model;
use super::node::Node;
use crate::error::Error;

/// Domains that ONNX Runtime has operators of; all others are somebody's own.
const KNOWN_DOMAINS: [&str; 9] = [
    "",
    "ai.onnx.ml",
    "ai.onnx.training",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "org.pytorch.aten",
];

impl Model {
    /// Whether every tensor is made once, and before it is read.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.opsets.is_empty() {
            return Err(self.not_onnx("it does not say which operator set it is written in".to_owned()));
        }
        if !self.opsets.contains_key("")
            && let Some(node) = self.nodes.iter().find(|node| node.domain.is_empty())
        {
            let reason = format!(
                "it names no operator set of ONNX itself, which its {} is of",
                node.title()
            );
            return Err(self.not_onnx(reason));
        }
        let inputs = self.inputs.iter().map(|input| &input.name);
        let stored = self.initializers.keys().chain(&self.sparse);
        let mut made: HashSet<&str> = stored.chain(inputs).map(String::as_str).collect();
        for (node_idx, node) in self.nodes.iter().enumerate() {
            let reads = node.inputs.iter().map(String::as_str);
            if let Some(name) = reads
                .filter(|name| !name.is_empty())
                .find(|name| !made.contains(name))
            {
                return Err(self.not_onnx(self.unmade(node_idx, name)));
            }
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                if !made.insert(output) {
                    return Err(self.not_onnx(format!(
                        "`{output}` is made twice, the second time by its {}",
                        node.title()
                    )));
                }
            }
        }
        match self.outputs.iter().find(|output| !made.contains(output.as_str())) {
            Some(output) => Err(self.not_onnx(format!("nothing makes its output `{output}`"))),
            None => Ok(()),
        }
    }

    /// Why a node's input is not there yet.
    fn unmade(&self, node_idx: usize, name: &str) -> String {
        let node = &self.nodes[node_idx];
        if !self.producers().contains_key(name) {
            return format!("its {} reads `{name}`, which nothing makes", node.title());
        }
        if self.ancestors(&[name])[node_idx] {
            return format!(
                "its graph has a cycle: the {} needs its own result through `{name}`",
                node.title()
            );
        }
        format!(
            "its nodes are not in order: the {} reads `{name}`, which a later node makes",
            node.title()
        )
    }

    /// Whether ONNX Runtime can know every operator.
    ///
    /// # Errors
    /// [`Error::Backbone`] with the first node of a domain that is neither ONNX's nor ONNX Runtime's, and that the model
    /// brings no function for.
    pub fn check_operators(&self) -> Result<(), Error> {
        for node in &self.nodes {
            let domain = node.domain.as_str();
            let is_own = self
                .functions
                .contains(&(node.domain.clone(), node.op_type.clone()));
            let reason = if is_own {
                continue;
            } else if !KNOWN_DOMAINS.contains(&domain) {
                format!(
                    "its {} is a custom operator of domain `{domain}`, which ONNX Runtime does not have",
                    node.title()
                )
            } else if !self.opsets.contains_key(domain) && !domain.is_empty() {
                format!(
                    "it names no operator set of domain `{domain}`, which its {} is of",
                    node.title()
                )
            } else {
                continue;
            };
            return Err(Error::Backbone {
                path: self.path.clone(),
                reason,
            });
        }
        Ok(())
    }

    /// The node that ONNX Runtime means when it refuses a graph with `message`: the first whose operator it names.
    pub fn culprit(&self, message: &str) -> Option<String> {
        let words: HashSet<&str> = message
            .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.')
            .collect();
        let is_named = |node: &&Node| !node.name.is_empty() && message.contains(&node.name);
        let is_meant = |node: &&Node| words.contains(node.op_type.as_str());
        let found = self.nodes.iter().filter(is_meant).find(is_named);
        let node = found.or_else(|| self.nodes.iter().find(is_meant))?;
        let domain = match node.domain.as_str() {
            "" => "ONNX's own domain".to_owned(),
            domain => format!("domain `{domain}`"),
        };
        let opset = self.opsets.get(&node.domain).copied().unwrap_or(1);
        Some(format!("{} ({domain}, operator set {opset})", node.title()))
    }
}

impl Node {
    /// How a message calls it: its operator, and its name or what it makes.
    pub(super) fn title(&self) -> String {
        match (self.name.as_str(), self.outputs.first()) {
            ("", Some(output)) => format!("{} that makes `{output}`", self.op_type),
            ("", None) => self.op_type.clone(),
            (name, _) => format!("{} `{name}`", self.op_type),
        }
    }
}
