//! Backbone and head in one graph, with what is needed to use it in its metadata.

use crate::error::Error;
use crate::head::Head;
use crate::image::Preprocess;
use crate::onnx::{Model, Outputs, Reduction};

/// Class names in order, as a JSON list; of a regression, the outputs' names.
pub(super) const CLASSES: &str = "graftwork.classes";
/// How pictures become input, as JSON.
pub(super) const PREPROCESS: &str = "graftwork.preprocess";
/// What the outputs mean: `"single-label"`, `"multi-label"` or `"regression"`.
pub(super) const TASK: &str = "graftwork.task";

/// Backbone up to `boundary`, then the head; class names, task and preprocessing as JSON in the model's metadata.
///
/// # Errors
/// As [`Model::splice`].
pub fn assemble(
    backbone: &Model,
    boundary: &str,
    reduction: Reduction,
    head: &Head,
    outputs: Outputs,
    preprocess: &Preprocess,
) -> Result<Model, Error> {
    let json = |value: Result<String, serde_json::Error>| value.expect("plain data is JSON");
    let metadata = [
        (CLASSES, json(serde_json::to_string(head.outputs()))),
        (TASK, json(serde_json::to_string(&head.task()))),
        (PREPROCESS, json(serde_json::to_string(preprocess))),
    ];
    backbone.splice(boundary, reduction, head, outputs, &metadata)
}
