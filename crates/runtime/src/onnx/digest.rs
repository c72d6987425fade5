//! What a cached feature depends on: the content of the graph up to the boundary, not its file or its names.
//!
//! A Merkle digest from the boundary backwards: operator, domain, operator set, attributes, and the digests of the
//! inputs; an initialiser counts by its type, shape and bytes. Renaming tensors, reordering nodes or replacing the
//! classifier changes nothing; one weight's bit does.

use std::collections::HashMap;

use super::graph::Model;
use super::wire::{self, Value};
use crate::error::Error;

impl Model {
    /// The digest of everything that `boundary` is computed from.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] where no node makes `boundary`.
    pub fn prefix_digest(&self, boundary: &str) -> Result<blake3::Hash, Error> {
        self.check_boundary(boundary)?;
        let mut digests: HashMap<&str, blake3::Hash> = HashMap::new();
        for (input_idx, input) in self.inputs.iter().enumerate() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"input").update(&(input_idx as u64).to_le_bytes());
            digests.insert(&input.name, hasher.finalize());
        }
        let needed = self.ancestors(boundary);
        let producers = self.producers();
        // ONNX demands topological order, so that every input has its digest by the time it is read.
        for (node, _) in self.nodes.iter().zip(&needed).filter(|(_, needed)| **needed) {
            let mut hasher = blake3::Hasher::new();
            let opset = self.opsets.get(&node.domain).copied().unwrap_or(1);
            put(&mut hasher, node.domain.as_bytes());
            put(&mut hasher, node.op_type.as_bytes());
            put(&mut hasher, &opset.to_le_bytes());
            let mut attributes: Vec<_> = node.attributes.iter().collect();
            attributes.sort_by(|a, b| a.0.cmp(&b.0));
            for (_, span) in attributes {
                put(&mut hasher, &self.bytes[span.clone()]);
            }
            for name in node.inputs.iter().chain(&node.captured) {
                match digests.get(name.as_str()) {
                    Some(digest) => put(&mut hasher, digest.as_bytes()),
                    None if self.initializers.contains_key(name) => {
                        let digest = self.initializer_digest(name);
                        put(&mut hasher, digest.as_bytes());
                        digests.insert(name, digest);
                    }
                    None if producers.contains_key(name.as_str()) => {
                        return Err(Error::Backbone {
                            path: self.path.clone(),
                            reason: format!("`{name}` is read before it is made; its nodes are not in order"),
                        });
                    }
                    // An optional input that is left out, or a name inside a subgraph.
                    None => put(&mut hasher, b"none"),
                }
            }
            let node_digest = hasher.finalize();
            for (output_idx, output) in node.outputs.iter().enumerate() {
                let mut hasher = blake3::Hasher::new();
                put(&mut hasher, node_digest.as_bytes());
                put(&mut hasher, &(output_idx as u64).to_le_bytes());
                digests.insert(output, hasher.finalize());
            }
        }
        // Functions of the model's own and sparse weights are rare: all of them count, needed or not.
        let mut hasher = blake3::Hasher::new();
        put(&mut hasher, digests[boundary].as_bytes());
        for function in self.top.iter().filter(|field| field.number == 25) {
            put(&mut hasher, &self.bytes[function.span.clone()]);
        }
        for sparse in self.graph.iter().filter(|field| field.number == 15) {
            put(&mut hasher, &self.bytes[sparse.span.clone()]);
        }
        Ok(hasher.finalize())
    }

    fn initializer_digest(&self, name: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let span = self.initializers[name].clone();
        let outer = wire::fields(&self.bytes, span).expect("indexed by parse");
        let Some(Value::Bytes(tensor)) = outer.first().map(|field| field.value.clone()) else {
            return hasher.finalize();
        };
        // All of `TensorProto` but its name (8) and doc string (12).
        for field in wire::fields(&self.bytes, tensor).expect("indexed by parse") {
            if !matches!(field.number, 8 | 12) {
                put(&mut hasher, &self.bytes[field.span]);
            }
        }
        hasher.finalize()
    }
}

/// Length before content, so that no two sequences of parts look alike.
fn put(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}
