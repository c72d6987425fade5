//! Putting a trained head behind a boundary: `Flatten` where the features are spatial, one `Gemm`, one output.

use super::graph::Model;
use super::wire;
use crate::error::Error;

/// `TensorProto.DataType` of float32.
const FLOAT: i64 = 1;

/// A linear head as ONNX stores it; borrowed from the trained head.
#[derive(Debug, Clone, Copy)]
pub struct HeadWeights<'h> {
    /// `[C, D]` row-major.
    pub weight: &'h [f32],
    /// `[C]`.
    pub bias: &'h [f32],
    /// C.
    pub n_classes: usize,
    /// D.
    pub n_features: usize,
}

/// What stands between a boundary and a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Nothing: all numbers of a sample are features.
    None,
    /// `[N, C, H, W]` to its mean over positions.
    MeanOfPositions,
    /// `[N, T, C]` to its mean over tokens.
    MeanOfTokens,
    /// `[N, T, C]` to its first token.
    FirstToken,
}

impl Model {
    /// The model that ends at `boundary`, followed by the head. Its one output, `logits` (or a name near it where that
    /// is taken), is `[N, C]`; `metadata` is added to `metadata_props`. All bytes in front of the head are kept.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a boundary that no node makes; [`Error::Backbone`] for an operator set that
    /// [`check_opset`](Model::check_opset) refuses.
    pub fn splice(
        &self,
        boundary: &str,
        reduction: Reduction,
        head: HeadWeights<'_>,
        metadata: &[(&str, String)],
    ) -> Result<Model, Error> {
        self.check_boundary(boundary)?;
        self.check_opset()?;
        // Names of the tail that is cut off are free again.
        let needed = self.ancestors(&[boundary]);
        let stays: std::collections::HashSet<&str> = self
            .nodes
            .iter()
            .zip(&needed)
            .filter(|(_, needed)| **needed)
            .flat_map(|(node, _)| node.outputs.iter().map(String::as_str).chain(node.reads()))
            .chain(self.inputs.iter().map(|input| input.name.as_str()))
            .collect();
        let free = |wanted: &str| {
            let mut name = wanted.to_owned();
            let mut n = 0;
            while stays.contains(name.as_str()) {
                n += 1;
                name = format!("{wanted}_{n}");
            }
            name
        };
        let (logits, weight, bias) = (free("logits"), free("head.weight"), free("head.bias"));
        let flat = free("head.input");

        let mut tail = Vec::new();
        let mut last = boundary.to_owned();
        let about = self.infos.get(boundary).map(|info| info.about.elem_type);
        if about != Some(FLOAT) && (about.is_some() || self.input()?.elem_type != FLOAT || self.has_casts()) {
            // A graph of float16, wholly or inside; where the boundary is float32 all the same this does nothing.
            let single = free("head.float32");
            let cast = node(
                "Cast",
                "head/Cast",
                &[&last],
                &single,
                &[("to", FLOAT.cast_unsigned())],
            );
            wire::put_bytes(&mut tail, 1, &cast);
            last = single;
        }
        if reduction == Reduction::MeanOfTokens {
            let turned = free("head.channels");
            let order: &[u64] = &[0, 2, 1];
            let transpose = node_with_list("Transpose", "head/Transpose", &[&last], &turned, ("perm", order));
            wire::put_bytes(&mut tail, 1, &transpose);
            last = turned;
        }
        match reduction {
            Reduction::None => {}
            Reduction::MeanOfPositions | Reduction::MeanOfTokens => {
                let mean = free("head.mean");
                let pool = node(
                    "GlobalAveragePool",
                    "head/GlobalAveragePool",
                    &[&last],
                    &mean,
                    &[],
                );
                wire::put_bytes(&mut tail, 1, &pool);
                last = mean;
            }
            Reduction::FirstToken => {
                let (first, index) = (free("head.token"), free("head.first"));
                let gather = node("Gather", "head/Gather", &[&last, &index], &first, &[("axis", 1)]);
                wire::put_bytes(&mut tail, 1, &gather);
                wire::put_bytes(&mut tail, 5, &zero_index(&index));
                last = first;
            }
        }
        wire::put_bytes(
            &mut tail,
            1,
            &node("Flatten", "head/Flatten", &[&last], &flat, &[("axis", 1)]),
        );
        wire::put_bytes(
            &mut tail,
            1,
            &node(
                "Gemm",
                "head/Gemm",
                &[&flat, &weight, &bias],
                &logits,
                &[("transB", 1)],
            ),
        );
        wire::put_bytes(
            &mut tail,
            5,
            &tensor(&weight, &[head.n_classes, head.n_features], head.weight),
        );
        wire::put_bytes(&mut tail, 5, &tensor(&bias, &[head.n_classes], head.bias));
        wire::put_bytes(&mut tail, 12, &output(&logits, head.n_classes));

        let mut model_tail = Vec::new();
        for (key, value) in metadata {
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 1, key.as_bytes());
            wire::put_bytes(&mut entry, 2, value.as_bytes());
            wire::put_bytes(&mut model_tail, 14, &entry);
        }
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| *key).collect();
        self.remade(self.rebuild(&[boundary], &tail, &model_tail, &keys))
    }
}

impl Model {
    /// Whether numbers change their type somewhere, so that the input's tells nothing about a boundary's.
    fn has_casts(&self) -> bool {
        self.nodes
            .iter()
            .any(|node| matches!(node.op_type.as_str(), "Cast" | "CastLike"))
    }

    /// Whether the head's operators are in the model's operator set.
    ///
    /// # Errors
    /// [`Error::Backbone`] before 9, in which `Flatten` did not take every type.
    pub fn check_opset(&self) -> Result<(), Error> {
        let opset = self.opsets.get("").copied().unwrap_or(1);
        if opset < 9 {
            return Err(Error::Backbone {
                path: self.path.clone(),
                reason: format!("its operator set {opset} is older than 9, which the head needs"),
            });
        }
        Ok(())
    }
}

/// `NodeProto` with integer attributes.
fn node(op_type: &str, name: &str, inputs: &[&str], output: &str, attributes: &[(&str, u64)]) -> Vec<u8> {
    /// `AttributeProto.AttributeType.INT`.
    const INT: u64 = 2;
    let mut out = Vec::new();
    for input in inputs {
        wire::put_bytes(&mut out, 1, input.as_bytes());
    }
    wire::put_bytes(&mut out, 2, output.as_bytes());
    wire::put_bytes(&mut out, 3, name.as_bytes());
    wire::put_bytes(&mut out, 4, op_type.as_bytes());
    for (name, value) in attributes {
        let mut attribute = Vec::new();
        wire::put_bytes(&mut attribute, 1, name.as_bytes());
        wire::put_varint(&mut attribute, 3, *value);
        wire::put_varint(&mut attribute, 20, INT);
        wire::put_bytes(&mut out, 5, &attribute);
    }
    out
}

/// `NodeProto` with one attribute that is a list of integers.
fn node_with_list(
    op_type: &str,
    name: &str,
    inputs: &[&str],
    output: &str,
    (list, values): (&str, &[u64]),
) -> Vec<u8> {
    /// `AttributeProto.AttributeType.INTS`.
    const INTS: u64 = 7;
    let mut out = node(op_type, name, inputs, output, &[]);
    let mut attribute = Vec::new();
    wire::put_bytes(&mut attribute, 1, list.as_bytes());
    for &value in values {
        wire::put_varint(&mut attribute, 8, value);
    }
    wire::put_varint(&mut attribute, 20, INTS);
    wire::put_bytes(&mut out, 5, &attribute);
    out
}

/// `TensorProto` of the int64 scalar 0.
fn zero_index(name: &str) -> Vec<u8> {
    const INT64: u64 = 7;
    let mut out = Vec::new();
    wire::put_varint(&mut out, 2, INT64);
    wire::put_bytes(&mut out, 8, name.as_bytes());
    wire::put_bytes(&mut out, 9, &0i64.to_le_bytes());
    out
}

/// `TensorProto` of float32 as raw little-endian data.
fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    for &size in shape {
        wire::put_varint(&mut out, 1, size as u64);
    }
    wire::put_varint(&mut out, 2, 1);
    wire::put_bytes(&mut out, 8, name.as_bytes());
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    wire::put_bytes(&mut out, 9, &raw);
    out
}

/// `ValueInfoProto` of `[n, C]` float32.
fn output(name: &str, n_classes: usize) -> Vec<u8> {
    let mut batch = Vec::new();
    wire::put_bytes(&mut batch, 2, b"n");
    let mut classes = Vec::new();
    wire::put_varint(&mut classes, 1, n_classes as u64);
    let mut shape = Vec::new();
    wire::put_bytes(&mut shape, 1, &batch);
    wire::put_bytes(&mut shape, 1, &classes);
    let mut tensor = Vec::new();
    wire::put_varint(&mut tensor, 1, 1);
    wire::put_bytes(&mut tensor, 2, &shape);
    let mut type_proto = Vec::new();
    wire::put_bytes(&mut type_proto, 1, &tensor);
    let mut out = Vec::new();
    wire::put_bytes(&mut out, 1, name.as_bytes());
    wire::put_bytes(&mut out, 2, &type_proto);
    out
}
