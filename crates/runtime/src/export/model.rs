//! Backbone and head in one graph, with what is needed to use it in its metadata.

use crate::error::Error;
use crate::head::Head;
use crate::image::Preprocess;
use crate::onnx::{Model, Outputs, Reduction};
use crate::targets::Task;

/// Class names in order, as a JSON list; of a regression, the outputs' names.
const CLASSES: &str = "graftwork.classes";
/// How pictures become input, as JSON.
const PREPROCESS: &str = "graftwork.preprocess";
/// What the outputs mean: `"single-label"`, `"multi-label"` or `"regression"`.
const TASK: &str = "graftwork.task";

/// What a model that [`assemble`] made says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Class names in order; of a regression, the outputs' names.
    pub classes: Vec<String>,
    /// What the logits mean.
    pub task: Task,
    /// How pictures become input.
    pub preprocess: Preprocess,
}

impl About {
    /// Reads the model's metadata.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it does not carry its classes and preprocessing.
    pub fn of(model: &Model) -> Result<About, Error> {
        let bad = |reason: String| Error::BadFile {
            path: model.path().to_owned(),
            reason,
        };
        let read = |key: &str| {
            model.metadata(key).ok_or_else(|| {
                bad(format!(
                    "it was not exported by graftwork: no `{key}` in its metadata"
                ))
            })
        };
        let classes =
            serde_json::from_str(&read(CLASSES)?).map_err(|error| bad(format!("`{CLASSES}`: {error}")))?;
        // Models of before there were others do not say.
        let task = match model.metadata(TASK) {
            None => Task::SingleLabel,
            Some(text) => serde_json::from_str(&text).map_err(|error| bad(format!("`{TASK}`: {error}")))?,
        };
        let preprocess: Preprocess = serde_json::from_str(&read(PREPROCESS)?)
            .map_err(|error| bad(format!("`{PREPROCESS}`: {error}")))?;
        preprocess
            .check()
            .map_err(|reason| bad(format!("`{PREPROCESS}`: {reason}")))?;
        Ok(About {
            classes,
            task,
            preprocess,
        })
    }
}

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
    let metadata = metadata(head.outputs(), head.task(), preprocess);
    backbone.splice(boundary, reduction, head, outputs, &metadata)
}

/// What a model says of itself, under its keys.
pub(crate) fn metadata(
    outputs: &[String],
    task: Task,
    preprocess: &Preprocess,
) -> [(&'static str, String); 3] {
    let json = |value: Result<String, serde_json::Error>| value.expect("plain data is JSON");
    [
        (CLASSES, json(serde_json::to_string(outputs))),
        (TASK, json(serde_json::to_string(&task))),
        (PREPROCESS, json(serde_json::to_string(preprocess))),
    ]
}
