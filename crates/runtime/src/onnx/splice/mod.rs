//! Putting a trained head behind a boundary: what makes rows of features of it, the head's layers, one output or two.

mod fold;
mod layers;
mod tail;

use std::collections::HashSet;

use super::attribute::integer;
use super::graph::{MAX_PROTOBUF_BYTES, Model};
use super::wire;
use crate::error::Error;
use crate::head::Head;
use crate::targets::Task;
use tail::Tail;

/// `TensorProto.DataType` of float32.
const FLOAT: i64 = 1;

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

/// What a model with a head gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// `logits`, `[N, C]`.
    Logits,
    /// `logits`, and `probabilities` of them: softmax where a row has one class, sigmoid where it can have several. A
    /// regression has none, and only `logits`.
    LogitsAndProbabilities,
}

impl Model {
    /// The model that ends at `boundary`, followed by the head in evaluation mode. Its first output, `logits` (or a name near
    /// it where that is taken), is `[N, C]`; `metadata` is added to `metadata_props`. All bytes in front of the head are kept.
    ///
    /// The head's numbers are `head.weight` and `head.bias` of a linear head, `head.0.weight` and so on else, as its state
    /// dict counts them. Dropout is left out, and a batch normalisation beside a linear layer is folded into it.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a boundary that no node makes; [`Error::Backbone`] for an operator set that
    /// [`check_opset`](Model::check_opset) refuses.
    pub fn splice(
        &self,
        boundary: &str,
        reduction: Reduction,
        head: &Head,
        outputs: Outputs,
        metadata: &[(&str, String)],
    ) -> Result<Model, Error> {
        self.splice_below(
            boundary,
            reduction,
            head,
            outputs,
            metadata,
            MAX_PROTOBUF_BYTES as usize,
        )
    }

    /// As [`splice`](Model::splice), with logits alone and the head's numbers called `<module>.weight` and so on.
    ///
    /// # Errors
    /// As [`splice`](Model::splice).
    pub fn splice_as(
        &self,
        module: &str,
        boundary: &str,
        reduction: Reduction,
        head: &Head,
        metadata: &[(&str, String)],
    ) -> Result<Model, Error> {
        let tail = Tail::behind(boundary, module, self.names_in_front(boundary));
        let limit = MAX_PROTOBUF_BYTES as usize;
        self.splice_tail(tail, boundary, reduction, head, Outputs::Logits, metadata, limit)
    }

    /// As [`splice`](Model::splice); the head's numbers lie outside the bytes where these would reach `limit`.
    pub(super) fn splice_below(
        &self,
        boundary: &str,
        reduction: Reduction,
        head: &Head,
        outputs: Outputs,
        metadata: &[(&str, String)],
        limit: usize,
    ) -> Result<Model, Error> {
        let tail = Tail::behind(boundary, "head", self.names_in_front(boundary));
        self.splice_tail(tail, boundary, reduction, head, outputs, metadata, limit)
    }

    #[expect(clippy::too_many_arguments, reason = "what the two doors above are asked for")]
    fn splice_tail<'m>(
        &'m self,
        mut tail: Tail<'m>,
        boundary: &str,
        reduction: Reduction,
        head: &Head,
        outputs: Outputs,
        metadata: &[(&str, String)],
        limit: usize,
    ) -> Result<Model, Error> {
        self.check_boundary(boundary)?;
        self.check_opset()?;
        let about = self.infos.get(boundary).map(|info| info.about.elem_type);
        if about != Some(FLOAT) && (about.is_some() || self.input()?.elem_type != FLOAT || self.has_casts()) {
            // A graph of float16, wholly or inside; where the boundary is float32 all the same this does nothing.
            tail.node("Cast", "float32", &[], vec![integer("to", FLOAT)]);
        }
        tail.reduce(reduction);
        tail.layers(head, self.opset());
        tail.output("logits", head.n_outputs());
        if outputs == Outputs::LogitsAndProbabilities {
            tail.probabilities(head.task(), head.n_outputs());
        }

        let mut model_tail = Vec::new();
        for (key, value) in metadata {
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 1, key.as_bytes());
            wire::put_bytes(&mut entry, 2, value.as_bytes());
            wire::put_bytes(&mut model_tail, 14, &entry);
        }
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| *key).collect();
        // Tags and names of what is added come to far less than this.
        const SLACK: usize = 1 << 16;
        let is_outside = self.bytes.len() + model_tail.len() + tail.n_bytes() + SLACK > limit;
        let (graph_tail, outside) = tail.finish(is_outside);
        let mut model = self.remade(self.rebuild(&[boundary], &graph_tail, &model_tail, &keys))?;
        model.external.extend(outside);
        Ok(model)
    }

    /// The model with an output `probabilities` of its only output, which are the logits `[N, C]` of `task`; the same where
    /// these have none. Every byte that it has is kept, and a node and an output come behind them.
    ///
    /// # Errors
    /// [`Error::Usage`] where the model has several outputs; [`Error::Backbone`] as [`check_opset`](Model::check_opset).
    pub fn with_probabilities(&self, task: Task, n_outputs: usize) -> Result<Model, Error> {
        self.check_opset()?;
        let [logits] = self.outputs.as_slice() else {
            let text = format!(
                "`{}` has {} outputs, and probabilities are of the logits alone",
                self.path.display(),
                self.outputs.len()
            );
            return Err(Error::Usage(text));
        };
        let mut tail = Tail::behind(logits, "head", self.names_in_front(logits));
        tail.probabilities(task, n_outputs);
        let (graph_tail, _) = tail.finish(false);
        self.remade(self.with_graph_tail(&graph_tail))
    }

    /// Names that are taken in front of the boundary; those of the tail that is cut off are free again.
    fn names_in_front(&self, boundary: &str) -> HashSet<&str> {
        let needed = self.ancestors(&[boundary]);
        let kept = self.nodes.iter().zip(&needed).filter(|(_, needed)| **needed);
        kept.flat_map(|(node, _)| node.outputs.iter().map(String::as_str).chain(node.reads()))
            .chain(self.inputs.iter().map(|input| input.name.as_str()))
            .collect()
    }

    /// Version of the default operators.
    fn opset(&self) -> i64 {
        self.opsets.get("").copied().unwrap_or(1)
    }

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
        let opset = self.opset();
        if opset < 9 {
            return Err(Error::Backbone {
                path: self.path.clone(),
                reason: format!("its operator set {opset} is older than 9, which the head needs"),
            });
        }
        Ok(())
    }
}
