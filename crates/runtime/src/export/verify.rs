//! The proof that the exported model says what the trainer says.

use std::path::PathBuf;

use super::classifier::Classifier;
use crate::data::Dataset;
use crate::error::Error;
use crate::monitor::Monitor;

/// How far the exported model is from the trainer.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verified {
    /// Pictures that were run through the exported model.
    pub n: usize,
    /// The largest difference of a logit.
    pub max_abs_logit_diff: f32,
}

/// What the trainer says of some samples.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Their numbers in the data set.
    pub samples: Vec<usize>,
    /// `[N, C]`.
    pub logits: Vec<f32>,
    /// `[N, C]`: how far a logit may be off because its features were rounded when they were stored.
    pub slack: Vec<f32>,
}

/// Runs pictures through the exported model and compares with what the head says of their cached features:
/// every logit within a thousandth of one plus the picture's largest, and what storing the features may have cost.
///
/// # Errors
/// [`Error::ExportMismatch`] with the first picture on which they differ.
pub fn verify(
    classifier: &Classifier,
    data: &Dataset,
    expected: &Expected,
    monitor: Monitor<'_>,
) -> Result<Verified, Error> {
    let n_classes = classifier.classes().len();
    let n_logits = expected.samples.len() * n_classes;
    if (expected.logits.len(), expected.slack.len()) != (n_logits, n_logits) {
        let (n_got, n_slack) = (expected.logits.len(), expected.slack.len());
        let text = format!(
            "{n_got} logits with {n_slack} slacks are not {n_classes} for each of {} pictures",
            expected.samples.len()
        );
        return Err(Error::Features(text));
    }
    let answers = classifier.classify(data, &expected.samples, monitor)?;
    let mut max_abs_logit_diff = 0f32;
    let rows = expected
        .logits
        .chunks_exact(n_classes)
        .zip(expected.slack.chunks_exact(n_classes));
    for ((&picture, answer), (trained, slack)) in expected.samples.iter().zip(answers).zip(rows) {
        let exported = answer.map_err(|reason| Error::Data {
            path: data.source().join(&*data.name(picture)),
            reason,
        })?;
        match largest_difference(trained, &exported, slack) {
            Ok(diff) => max_abs_logit_diff = max_abs_logit_diff.max(diff),
            Err((exported, trained)) => {
                return Err(Error::ExportMismatch {
                    path: PathBuf::from(data.name(picture).into_owned()),
                    exported,
                    trained,
                });
            }
        }
    }
    Ok(Verified {
        n: expected.samples.len(),
        max_abs_logit_diff,
    })
}

/// How far the logits of a picture are apart at most, which is a thousandth of one plus the largest, and the slack; else the
/// first pair that is further apart.
pub(super) fn largest_difference(
    trained: &[f32],
    exported: &[f32],
    slack: &[f32],
) -> Result<f32, (f32, f32)> {
    let scale = trained.iter().fold(0f32, |top, logit| top.max(logit.abs()));
    let mut largest = 0f32;
    for ((&exported, &trained), slack) in exported.iter().zip(trained).zip(slack) {
        let diff = (exported - trained).abs();
        if diff.is_nan() || diff > 1e-3 * (1.0 + scale) + slack {
            return Err((exported, trained));
        }
        largest = largest.max(diff);
    }
    Ok(largest)
}
