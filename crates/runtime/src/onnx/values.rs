//! A graph's numbers taken out and put in again, by the initialisers' names.

use std::collections::HashMap;

use pth::Source;

use super::external::{External, raw_tensor};
use super::graph::Model;
use super::tensor::{Payload, n_bytes};
use super::weights::floats;
use super::wire::{self, Value};
use crate::error::Error;

/// `TensorProto.DataType` of float32.
const FLOAT: i64 = 1;

impl Model {
    /// The numbers of a float32 initialiser, row-major; none where there is no such.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let found = self.initializers.get(name).filter(|found| found.dtype == FLOAT)?;
        Some(floats(&self.elements(found)))
    }

    /// The graph with other numbers in float32 initialisers; all else keeps its bytes.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is no float32 initialiser of so many numbers.
    pub fn with_values(&self, values: &HashMap<String, Vec<f32>>) -> Result<Model, Error> {
        let mut inside: HashMap<&str, Vec<u8>> = HashMap::new();
        let mut outside: HashMap<&str, Vec<u8>> = HashMap::new();
        for (name, values) in values {
            let found = self
                .initializers
                .get(name)
                .filter(|found| found.dtype == FLOAT && found.numel() == values.len());
            let Some(found) = found else {
                let text = format!(
                    "`{}` has no `{name}` of {} float32 numbers",
                    self.path.display(),
                    values.len()
                );
                return Err(Error::Usage(text));
            };
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            debug_assert_eq!(n_bytes(FLOAT, found.numel()), Some(bytes.len()));
            if matches!(found.payload, Payload::External(_)) {
                outside.insert(name, bytes);
            } else {
                inside.insert(name, raw_tensor(name, FLOAT, &found.shape, &bytes));
            }
        }
        let mut model = if inside.is_empty() {
            self.clone()
        } else {
            self.with_tensors(&inside)?
        };
        for external in &mut model.external {
            if let Some(bytes) = outside.remove(external.name.as_str()) {
                external.data = Source::from_bytes(bytes);
            }
        }
        Ok(model)
    }

    /// The graph in which no `Identity` passes an initialiser on: each such name is an initialiser of its own. Exporters
    /// write one tensor for several that were equal, which training would make unequal.
    ///
    /// # Errors
    /// None that a model that was opened can have.
    pub fn untied(&self) -> Result<Model, Error> {
        let mut of: HashMap<&str, &str> = HashMap::new();
        let mut dropped = vec![false; self.nodes.len()];
        let mut added: Vec<(&str, &str)> = Vec::new();
        for (node_idx, node) in self.nodes.iter().enumerate() {
            let ("Identity", "", [input], [output]) = (
                node.op_type.as_str(),
                node.domain.as_str(),
                node.inputs.as_slice(),
                node.outputs.as_slice(),
            ) else {
                continue;
            };
            let input = of.get(input.as_str()).copied().unwrap_or(input);
            if self.initializers.contains_key(input) && !self.outputs.contains(output) {
                of.insert(output, input);
                added.push((output, input));
                dropped[node_idx] = true;
            }
        }
        if added.is_empty() {
            return Ok(self.clone());
        }
        let mut graph = Vec::with_capacity(self.bytes.len());
        let mut node_idx = 0;
        for field in &self.graph {
            let is_dropped = field.number == 1 && matches!(field.value, Value::Bytes(_)) && {
                node_idx += 1;
                dropped[node_idx - 1]
            };
            if !is_dropped {
                graph.extend_from_slice(&self.bytes[field.span.clone()]);
            }
        }
        let mut outside = Vec::new();
        for (name, like) in added {
            let like = &self.initializers[like];
            if matches!(like.payload, Payload::External(_)) {
                let external = External {
                    name: name.to_owned(),
                    dtype: like.dtype,
                    shape: like.shape.clone(),
                    data: Source::from_bytes(self.elements(like).into_owned()),
                };
                wire::put_bytes(&mut graph, 5, &external.placed_tensor("weights", 0));
                outside.push(external);
            } else {
                let tensor = raw_tensor(name, like.dtype, &like.shape, &self.elements(like));
                wire::put_bytes(&mut graph, 5, &tensor);
            }
        }
        let mut model = self.with_graph(&graph)?;
        model.external.extend(outside);
        Ok(model)
    }

    /// A graph that gives its input as it comes, under the name that is returned: what stands for the part in front of a
    /// network that is trained from its input on.
    ///
    /// # Errors
    /// As [`Model::input`].
    pub fn input_alone(&self) -> Result<(Model, String), Error> {
        const NAME: &str = "prepared_input";
        let input = self.input()?.name.clone();
        let mut node = Vec::new();
        wire::put_bytes(&mut node, 1, input.as_bytes());
        wire::put_bytes(&mut node, 2, NAME.as_bytes());
        wire::put_bytes(&mut node, 4, b"Identity");
        let mut graph = Vec::new();
        wire::put_bytes(&mut graph, 1, &node);
        for field in &self.graph {
            let Value::Bytes(span) = &field.value else {
                continue;
            };
            let is_input = field.number == 11
                && super::node::read_value_info(&self.bytes, span.clone())
                    .is_ok_and(|info| info.name == input);
            if is_input || field.number == 2 {
                graph.extend_from_slice(&self.bytes[field.span.clone()]);
            }
        }
        let mut output = Vec::new();
        wire::put_bytes(&mut output, 1, NAME.as_bytes());
        wire::put_bytes(&mut graph, 12, &output);
        Ok((self.with_graph(&graph)?, NAME.to_owned()))
    }
}
