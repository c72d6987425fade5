//! Which of a text encoder's inputs is which.

use crate::engine::Input;
use crate::error::Error;
use crate::onnx::Model;

use super::batch::TextBatch;

/// What a graph's input takes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Ids,
    Mask,
    TypeIds,
    Positions,
}

/// The inputs of a text encoder, by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextGraph {
    roles: Vec<Role>,
    fixed_batch: Option<usize>,
    fixed_len: Option<usize>,
}

impl TextGraph {
    /// Finds out what `model` takes: `input_ids`, and of `attention_mask`, `token_type_ids` and `position_ids` those that
    /// it has.
    ///
    /// # Errors
    /// [`Error::Backbone`] where it takes no `input_ids`, or something that is no token's.
    pub fn new(model: &Model) -> Result<TextGraph, Error> {
        let misfit = |reason: String| Error::Backbone {
            path: model.path().to_owned(),
            reason,
        };
        let mut graph = TextGraph {
            roles: Vec::new(),
            fixed_batch: None,
            fixed_len: None,
        };
        for input in model.inputs() {
            let role = match input.name.as_str() {
                "input_ids" => Role::Ids,
                "attention_mask" | "input_mask" => Role::Mask,
                "token_type_ids" | "segment_ids" => Role::TypeIds,
                "position_ids" => Role::Positions,
                other => {
                    return Err(misfit(format!(
                        "its input `{other}` is none of a text's (input_ids, attention_mask, token_type_ids, position_ids)"
                    )));
                }
            };
            if let Some(shape) = &input.shape {
                let [batch, len] = shape.as_slice() else {
                    return Err(misfit(format!(
                        "its input `{}` has {} axes; tokens have 2 (texts, tokens)",
                        input.name,
                        shape.len()
                    )));
                };
                graph.fixed_batch = graph.fixed_batch.or(*batch);
                graph.fixed_len = graph.fixed_len.or(*len);
            }
            graph.roles.push(role);
        }
        if !graph.roles.contains(&Role::Ids) {
            return Err(misfit(
                "it takes no `input_ids`, so that it is no text encoder".to_owned(),
            ));
        }
        if graph.fixed_len.is_some() && !graph.has_mask() {
            return Err(misfit(
                "it takes texts of one length and no `attention_mask`, so that padding could not be told from text"
                    .to_owned(),
            ));
        }
        Ok(graph)
    }

    /// Whether a model takes `input_ids`, as text encoders do and others do not.
    pub fn is_for_text(model: &Model) -> bool {
        model.inputs().iter().any(|input| input.name == "input_ids")
    }

    /// Whether the graph is told which tokens are padding. Where it is not, [`Buckets`](super::Buckets) pads nothing:
    /// only texts of equally many tokens share a batch.
    pub fn has_mask(&self) -> bool {
        self.roles.contains(&Role::Mask)
    }

    /// Texts per run, where the graph fixes it.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.fixed_batch
    }

    /// Tokens per text, where the graph fixes it.
    pub fn fixed_len(&self) -> Option<usize> {
        self.fixed_len
    }

    /// The arrays of a batch in the graph's order, for [`Session::run`](crate::engine::Session::run).
    pub fn inputs<'b, K>(&self, batch: &'b TextBatch<K>) -> Vec<Input<'b>> {
        let arrays = self.roles.iter().map(|role| match role {
            Role::Ids => &batch.ids,
            Role::Mask => &batch.mask,
            Role::TypeIds => &batch.type_ids,
            Role::Positions => &batch.positions,
        });
        arrays
            .map(|values| Input::I64 {
                shape: &batch.shape,
                values,
            })
            .collect()
    }
}
