//! One deployable model: backbone and head in one graph, with the class names and the preprocessing inside it, and the
//! proof that it says what the trainer says.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::data::Dataset;
use crate::engine::{Device, Engine, SessionOptions};
use crate::error::Error;
use crate::features::{Pipeline, Spent, check_input, prepare, sessions_for};
use crate::head::Head;
use crate::image::Preprocess;
use crate::monitor::{Monitor, Stage};
use crate::onnx::{HeadWeights, Model, Reduction};

const CLASSES: &str = "graftwork.classes";
const PREPROCESS: &str = "graftwork.preprocess";

/// Backbone up to `boundary`, then the head; class names and preprocessing as JSON in the model's metadata.
///
/// # Errors
/// As [`Model::splice`].
pub fn assemble(
    backbone: &Model,
    boundary: &str,
    reduction: Reduction,
    head: &Head,
    preprocess: &Preprocess,
) -> Result<Model, Error> {
    let classes = serde_json::to_string(head.outputs()).expect("strings are JSON");
    let preprocess = serde_json::to_string(preprocess).expect("plain data is JSON");
    let linear = head
        .as_linear()
        .ok_or_else(|| Error::Usage("only a linear head can be put behind a graph yet".to_owned()))?;
    let weights = HeadWeights {
        weight: &linear.weight,
        bias: &linear.bias,
        n_classes: linear.n_out,
        n_features: linear.n_in,
    };
    backbone.splice(
        boundary,
        reduction,
        weights,
        &[(CLASSES, classes), (PREPROCESS, preprocess)],
    )
}

/// An exported model, ready to classify pictures.
#[derive(Debug)]
pub struct Classifier {
    model: Model,
    engine: Engine,
    classes: Vec<String>,
    preprocess: Preprocess,
    batch_size: usize,
    threads: usize,
    device: Device,
}

/// What the classifier says of one picture: its logits, or why it has none.
pub type Answer = Result<Vec<f32>, String>;

impl Classifier {
    /// Opens a model that [`assemble`] made.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it does not carry its classes and preprocessing; as [`Engine::open`].
    pub fn new(model: Model, engine: Engine, device: Device, threads: usize) -> Result<Classifier, Error> {
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
        let classes: Vec<String> =
            serde_json::from_str(&read(CLASSES)?).map_err(|error| bad(format!("`{CLASSES}`: {error}")))?;
        let preprocess: Preprocess = serde_json::from_str(&read(PREPROCESS)?)
            .map_err(|error| bad(format!("`{PREPROCESS}`: {error}")))?;
        preprocess
            .check()
            .map_err(|reason| bad(format!("`{PREPROCESS}`: {reason}")))?;
        let batch_size = check_input(&model, &preprocess, crate::job::DEFAULT_BATCH_SIZE)?;
        Ok(Classifier {
            model,
            engine,
            classes,
            preprocess,
            batch_size,
            threads: threads.max(1),
            device,
        })
    }

    /// Class names in order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Which ONNX Runtime is in use.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Classifies the pictures of these numbers in the data set; the answers are in their order.
    ///
    /// # Errors
    /// [`Error::Ort`] where the model fails; [`Error::Interrupted`] when the monitor cancels.
    pub fn classify(
        &self,
        data: &Dataset,
        pictures: &[usize],
        monitor: Monitor<'_>,
    ) -> Result<Vec<Answer>, Error> {
        let (n_sessions, intra_threads) = sessions_for(&self.model, self.device, self.threads);
        let n_threads = self.threads.min(pictures.len().div_ceil(self.batch_size)).max(1);
        let [channels, height, width] = self.preprocess.shape();
        let pipeline = Pipeline {
            engine: &self.engine,
            model: &self.model,
            options: SessionOptions {
                intra_threads,
                device: self.device,
            },
            n_sessions: n_sessions.min(n_threads),
            n_threads,
            shape: vec![self.batch_size, channels, height, width],
        };
        let next = AtomicUsize::new(0);
        let done = AtomicUsize::new(0);
        let answers: Mutex<Vec<Option<Answer>>> = Mutex::new(vec![None; pictures.len()]);
        let answer = |at: usize, answer: Answer| {
            answers.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(answer);
            let n_done = done.fetch_add(1, Ordering::Relaxed) + 1;
            monitor.at(Stage::Verify, n_done, pictures.len());
        };
        pipeline.run(
            &Spent::default(),
            |filler| {
                let mut reader = data.reader();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= pictures.len() || monitor.is_cancelled() {
                        return Ok(());
                    }
                    let filled = filler.fill(at, |out| {
                        prepare(&self.preprocess, &reader.read(pictures[at])?, None, out)
                    })?;
                    match filled {
                        None => return Ok(()),
                        Some(Ok(())) => {}
                        Some(Err(reason)) => answer(at, Err(reason)),
                    }
                }
            },
            |tags, outputs| {
                let n_classes = outputs[0].row_len();
                if n_classes != self.classes.len() {
                    return Err(Error::BadFile {
                        path: self.model.path().to_owned(),
                        reason: format!("it gives {n_classes} logits for {} classes", self.classes.len()),
                    });
                }
                for (&at, logits) in tags.iter().zip(outputs[0].values.chunks_exact(n_classes)) {
                    answer(at, Ok(logits.to_vec()));
                }
                Ok(())
            },
        )?;
        let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let total = answers.len();
        answers
            .into_iter()
            .collect::<Option<Vec<Answer>>>()
            .ok_or(Error::Interrupted {
                done: done.into_inner(),
                total,
            })
    }
}

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
        let scale = trained.iter().fold(0f32, |top, logit| top.max(logit.abs()));
        for ((&exported, &trained), slack) in exported.iter().zip(trained).zip(slack) {
            let diff = (exported - trained).abs();
            if diff.is_nan() || diff > 1e-3 * (1.0 + scale) + slack {
                return Err(Error::ExportMismatch {
                    path: PathBuf::from(data.name(picture).into_owned()),
                    exported,
                    trained,
                });
            }
            max_abs_logit_diff = max_abs_logit_diff.max(diff);
        }
    }
    Ok(Verified {
        n: expected.samples.len(),
        max_abs_logit_diff,
    })
}
