//! Choosing a boundary and keeping only what it needs.
//!
//! The graph is cut, not given a further output: the tail would cost time and memory on every picture.

use super::graph::Model;
use super::tensor::text;
use super::wire;
use crate::error::Error;

impl Model {
    /// The tensor that goes into the classifier: the input of the last `Gemm` or `MatMul` that multiplies an
    /// activation by a constant weight. A graph without one was exported without its classifier: its output then.
    ///
    /// # Errors
    /// [`Error::Backbone`] where the graph has several outputs and no classifier to choose by.
    pub fn default_boundary(&self) -> Result<String, Error> {
        // An encoder of texts ends in what is wanted of it: one vector per text or per token.
        if self.inputs.iter().any(|input| input.name == "input_ids") {
            let whole = self.outputs.iter().find(|name| *name == "sentence_embedding");
            return Ok(whole.unwrap_or(&self.outputs[0]).clone());
        }
        let constants = self.constants();
        let producers = self.producers();
        let output = &self.outputs[0];
        let needed = self.ancestors(&[output]);
        let classifier = self.nodes.iter().zip(&needed).rev().find_map(|(node, &needed)| {
            let [activation, weight, ..] = node.inputs.as_slice() else {
                return None;
            };
            let linear = node.domain.is_empty() && matches!(node.op_type.as_str(), "Gemm" | "MatMul");
            let fits = needed && linear && constants.contains(weight.as_str());
            let made = producers.contains_key(activation.as_str());
            (fits && made && !constants.contains(activation.as_str())).then(|| activation.clone())
        });
        match classifier {
            Some(name) => Ok(name),
            None if self.outputs.len() == 1 => Ok(output.clone()),
            None => Err(Error::Backbone {
                path: self.path.clone(),
                reason: "it ends in no classifier, and has several outputs to choose from".to_owned(),
            }),
        }
    }

    /// The model that ends at `boundaries`: what they need only, and they are the outputs, in the order given. One may be
    /// needed by another.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] with the nearest names, where no node makes a boundary; [`Error::Usage`] for none, or one
    /// that is named twice.
    pub fn cut(&self, boundaries: &[&str]) -> Result<Model, Error> {
        if boundaries.is_empty() {
            return Err(Error::Usage("there is no tensor to cut at".to_owned()));
        }
        let mut tail = Vec::new();
        for (idx, boundary) in boundaries.iter().enumerate() {
            self.check_boundary(boundary)?;
            if boundaries[..idx].contains(boundary) {
                return Err(Error::Usage(format!("`{boundary}` is given twice to cut at")));
            }
            wire::put_bytes(&mut tail, 12, &self.output_info(boundary));
        }
        self.remade(self.rebuild(boundaries, &tail, &[], &[]))
    }

    /// The `ValueInfoProto` of a tensor that becomes an output: the file's own where it has one. Without, there is the
    /// name alone, and ONNX Runtime finds the type itself.
    fn output_info(&self, name: &str) -> Vec<u8> {
        match self.infos.get(name) {
            Some(info) => self.bytes[info.span.clone()].to_vec(),
            None => {
                let mut info = Vec::new();
                wire::put_bytes(&mut info, 1, name.as_bytes());
                info
            }
        }
    }

    pub(super) fn check_boundary(&self, boundary: &str) -> Result<(), Error> {
        let producers = self.producers();
        let constants = self.constants();
        let maker = match producers.get(boundary) {
            Some(&node_idx) => &self.nodes[node_idx].op_type,
            None if constants.contains(boundary) => "nothing: it is a weight",
            None => {
                let names = self.nodes.iter().flat_map(|node| &node.outputs);
                return Err(Error::UnknownTensor {
                    path: self.path.clone(),
                    name: boundary.to_owned(),
                    suggestions: nearest(boundary, names.map(String::as_str), 5),
                });
            }
        };
        if constants.contains(boundary) {
            return Err(Error::Backbone {
                path: self.path.clone(),
                reason: format!("`{boundary}` (made by {maker}) does not depend on the input"),
            });
        }
        Ok(())
    }

    /// The file again with only what `boundaries` need; `graph_tail` and `model_tail` are appended to the two
    /// messages, and metadata under `dropped_keys` is left out.
    pub(super) fn rebuild(
        &self,
        boundaries: &[&str],
        graph_tail: &[u8],
        model_tail: &[u8],
        dropped_keys: &[&str],
    ) -> Vec<u8> {
        let needed = self.ancestors(boundaries);
        let mut used = std::collections::HashSet::new();
        for (node, _) in self.nodes.iter().zip(&needed).filter(|(_, needed)| **needed) {
            used.extend(node.reads());
            used.extend(node.outputs.iter().map(String::as_str));
        }
        let mut kept_nodes = needed.iter();
        let mut graph = Vec::with_capacity(self.bytes.len());
        for field in &self.graph {
            let named = |number| {
                let wire::Value::Bytes(span) = &field.value else {
                    return false;
                };
                let name = wire::each(&self.bytes, span.clone()).flatten().find_map(|part| {
                    super::graph::span_of(&part, number).map(|span| text(&self.bytes, &span))
                });
                name.is_some_and(|name| used.contains(name.as_str()))
            };
            let keep = match field.number {
                1 => *kept_nodes.next().expect("one flag per node field"),
                5 => named(8),
                11 => named(1),
                // The old outputs go; value infos of tensors that stay, stay.
                12 => false,
                13 => named(1),
                14 => named(1),
                _ => true,
            };
            if keep {
                graph.extend_from_slice(&self.bytes[field.span.clone()]);
            }
        }
        graph.extend_from_slice(graph_tail);
        let mut bytes = Vec::with_capacity(graph.len() + 4096);
        for field in &self.top {
            match field.number {
                7 => wire::put_bytes(&mut bytes, 7, &graph),
                14 if self
                    .metadata_key(field)
                    .is_some_and(|key| dropped_keys.contains(&key.as_str())) => {}
                _ => bytes.extend_from_slice(&self.bytes[field.span.clone()]),
            }
        }
        bytes.extend_from_slice(model_tail);
        bytes
    }

    /// The file again with fields added at the end of its graph; all that it has keeps its bytes.
    pub(super) fn with_graph_tail(&self, graph_tail: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + graph_tail.len() + 16);
        for field in &self.top {
            match &field.value {
                wire::Value::Bytes(graph) if field.number == 7 => {
                    wire::put_bytes(&mut bytes, 7, &[&self.bytes[graph.clone()], graph_tail].concat());
                }
                _ => bytes.extend_from_slice(&self.bytes[field.span.clone()]),
            }
        }
        bytes
    }

    fn metadata_key(&self, field: &wire::Field) -> Option<String> {
        let wire::Value::Bytes(span) = &field.value else {
            return None;
        };
        let parts = wire::fields(&self.bytes, span.clone()).ok()?;
        parts.iter().find_map(|part| match &part.value {
            wire::Value::Bytes(span) if part.number == 1 => Some(text(&self.bytes, span)),
            _ => None,
        })
    }
}

/// The `n` names nearest to `wanted`: those that contain it (or are contained) first, then by edit distance.
pub(crate) fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>, n: usize) -> Vec<String> {
    let lower = wanted.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let other = name.to_lowercase();
            let contained = !lower.is_empty() && (other.contains(&lower) || lower.contains(&other));
            let score = if contained {
                other.len().abs_diff(lower.len()) / 8
            } else {
                2 + surgery::edit_distance(&lower, &other)
            };
            (score, name)
        })
        .collect();
    scored.sort();
    scored.dedup();
    scored
        .into_iter()
        .take(n)
        .map(|(_, name)| name.to_owned())
        .collect()
}
