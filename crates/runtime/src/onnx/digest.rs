//! What a cached feature depends on: the content of the graph up to the boundary, not its file or its names.
//!
//! A Merkle digest from the boundary backwards: operator, domain, operator set, attributes, and the digests of the
//! inputs; a weight counts by its type, sizes and elements, wherever and however they are stored. Renaming tensors,
//! reordering nodes, moving weights to another file or replacing the classifier changes nothing; one weight's bit does.

use std::collections::HashMap;

use rayon::prelude::*;

use super::graph::Model;
use super::tensor::Initializer;
use crate::error::Error;

/// Tensors from this size on are hashed by several threads.
const PARALLEL_BYTES: usize = 1 << 20;

impl Model {
    /// The digest of everything that `boundary` is computed from.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] where no node makes `boundary`.
    pub fn prefix_digest(&self, boundary: &str) -> Result<blake3::Hash, Error> {
        let digests = self.prefix_digests(&[boundary])?;
        Ok(digests[0])
    }

    /// [`prefix_digest`](Model::prefix_digest) of each boundary; what they share is hashed once.
    ///
    /// # Errors
    /// As [`prefix_digest`](Model::prefix_digest).
    pub fn prefix_digests(&self, boundaries: &[&str]) -> Result<Vec<blake3::Hash>, Error> {
        for boundary in boundaries {
            self.check_boundary(boundary)?;
        }
        let digests = self.digests(&self.ancestors(boundaries))?;
        let whole = |boundary: &&str| self.with_what_always_counts(digests[*boundary]);
        Ok(boundaries.iter().map(whole).collect())
    }

    /// The tensor whose [`prefix_digest`](Model::prefix_digest) has these hexadecimal digits: the
    /// [`default_boundary`](Model::default_boundary) where it is one of several, else the first. None where the model
    /// computes no such tensor.
    ///
    /// # Errors
    /// [`Error::Backbone`] where the nodes are not in order.
    pub fn find_prefix(&self, prefix: &str) -> Result<Option<String>, Error> {
        let digests = self.digests(&vec![true; self.nodes.len()])?;
        let is_it = |name: &str| {
            let digest = digests.get(name);
            digest.is_some_and(|digest| self.with_what_always_counts(*digest).to_hex().as_str() == prefix)
        };
        if let Ok(default) = self.default_boundary()
            && is_it(&default)
        {
            return Ok(Some(default));
        }
        let made = self.nodes.iter().flat_map(|node| &node.outputs);
        Ok(made
            .map(String::as_str)
            .find(|name| is_it(name))
            .map(str::to_owned))
    }

    /// The digests of all that the `needed` nodes read and make, by name.
    fn digests(&self, needed: &[bool]) -> Result<HashMap<&str, blake3::Hash>, Error> {
        let producers = self.producers();
        let mut digests = self.weight_digests(needed);
        for (input_idx, input) in self.inputs.iter().enumerate() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"input").update(&input.elem_type.to_le_bytes());
            // Several inputs are told apart by their names, as those of encoders of texts are fed; one needs no name.
            match self.inputs.len() {
                1 => hasher.update(&(input_idx as u64).to_le_bytes()),
                _ => hasher.update(input.name.as_bytes()),
            };
            digests.insert(&input.name, hasher.finalize());
        }
        // `parse` has seen to topological order, so that every input has its digest by the time it is read.
        for (node, _) in self.nodes.iter().zip(needed).filter(|(_, needed)| **needed) {
            if let Some(constant) = self.constant(node) {
                digests.insert(&node.outputs[0], self.weight_digest(&constant));
                continue;
            }
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
            // An output without a name is left out; under none, inputs that are left out would find it.
            let named = node
                .outputs
                .iter()
                .enumerate()
                .filter(|(_, name)| !name.is_empty());
            for (output_idx, output) in named {
                let mut hasher = blake3::Hasher::new();
                put(&mut hasher, node_digest.as_bytes());
                put(&mut hasher, &(output_idx as u64).to_le_bytes());
                digests.insert(output, hasher.finalize());
            }
        }
        Ok(digests)
    }

    /// A tensor's digest with what decides it beside its nodes: functions of the model's own and sparse weights are rare, and
    /// all of them count, needed or not.
    fn with_what_always_counts(&self, digest: blake3::Hash) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        put(&mut hasher, digest.as_bytes());
        for function in self.top.iter().filter(|field| field.number == 25) {
            put(&mut hasher, &self.bytes[function.span.clone()]);
        }
        for sparse in self.graph.iter().filter(|field| field.number == 15) {
            put(&mut hasher, &self.bytes[sparse.span.clone()]);
        }
        hasher.finalize()
    }

    /// Digests of the weights that the `needed` nodes read, by name.
    fn weight_digests(&self, needed: &[bool]) -> HashMap<&str, blake3::Hash> {
        let read: std::collections::HashSet<&str> = self
            .nodes
            .iter()
            .zip(needed)
            .filter(|(_, needed)| **needed)
            .flat_map(|(node, _)| node.reads())
            .collect();
        let weights: Vec<(&str, &Initializer)> = read
            .into_iter()
            .filter_map(|name| Some((name, self.initializers.get(name)?)))
            .collect();
        weights
            .into_par_iter()
            .map(|(name, weight)| (name, self.weight_digest(weight)))
            .collect()
    }

    /// Type, sizes and elements; the same however they are stored.
    pub(super) fn weight_digest(&self, weight: &Initializer) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        put(&mut hasher, b"weight");
        put(&mut hasher, &weight.dtype.to_le_bytes());
        let sizes = weight.shape.iter().flat_map(|&size| (size as u64).to_le_bytes());
        put(&mut hasher, &sizes.collect::<Vec<u8>>());
        let elements = self.elements(weight);
        hasher.update(&(elements.len() as u64).to_le_bytes());
        if elements.len() >= PARALLEL_BYTES {
            hasher.update_rayon(&elements);
        } else {
            hasher.update(&elements);
        }
        hasher.finalize()
    }

    /// The elements of an initialiser as raw data, wherever they are.
    pub(super) fn elements(&self, weight: &Initializer) -> std::borrow::Cow<'_, [u8]> {
        weight.raw(&self.bytes).unwrap_or_else(|| {
            let external = self.external.iter().find(|external| external.name == weight.name);
            external.map_or_else(Default::default, |external| external.bytes().into())
        })
    }
}

/// Length before content, so that no two sequences of parts look alike.
fn put(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}
