//! One deployable model: backbone and head in one graph, with the class names and the preprocessing inside it, and the
//! proof that it says what the trainer says.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::{Device, Engine, Input, SessionOptions};
use crate::error::Error;
use crate::features::{check_input, sessions_for};
use crate::head::LinearHead;
use crate::image::{Preprocess, decode};
use crate::monitor::{Monitor, Stage};
use crate::onnx::Model;

const CLASSES: &str = "graftwork.classes";
const PREPROCESS: &str = "graftwork.preprocess";

/// Backbone up to `boundary`, then the head; class names and preprocessing as JSON in the model's metadata.
///
/// # Errors
/// As [`Model::splice`].
pub fn assemble(
    backbone: &Model,
    boundary: &str,
    head: &LinearHead,
    preprocess: &Preprocess,
) -> Result<Model, Error> {
    let classes = serde_json::to_string(head.classes()).expect("strings are JSON");
    let preprocess = serde_json::to_string(preprocess).expect("plain data is JSON");
    backbone.splice(
        boundary,
        head.weights(),
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

    /// Classifies pictures; the answers are in their order.
    ///
    /// # Errors
    /// [`Error::Ort`] where the model fails; [`Error::Interrupted`] when the monitor cancels.
    pub fn classify(
        &self,
        root: &Path,
        pictures: &[PathBuf],
        monitor: Monitor<'_>,
    ) -> Result<Vec<Answer>, Error> {
        let numel = self.preprocess.numel();
        let (n_sessions, intra_threads) = sessions_for(&self.model, self.threads);
        let next = AtomicUsize::new(0);
        let done = AtomicUsize::new(0);
        let answers: Mutex<Vec<Option<Answer>>> = Mutex::new(vec![None; pictures.len()]);
        let work = || -> Result<(), Error> {
            let options = SessionOptions {
                intra_threads,
                device: self.device,
            };
            let mut session = self.engine.session(&self.model, options)?;
            let mut pixels = vec![0.0; self.batch_size * numel];
            loop {
                let first = next.fetch_add(self.batch_size, Ordering::Relaxed);
                if first >= pictures.len() || monitor.is_cancelled() {
                    return Ok(());
                }
                let batch = &pictures[first..(first + self.batch_size).min(pictures.len())];
                pixels.fill(0.0);
                let read: Vec<Result<(), String>> = batch
                    .iter()
                    .zip(pixels.chunks_exact_mut(numel))
                    .map(|(path, out)| {
                        let bytes = std::fs::read(root.join(path))
                            .map_err(|error| format!("it cannot be read: {error}"))?;
                        self.preprocess
                            .apply(&decode(&bytes).map_err(|error| error.to_string())?, out);
                        Ok(())
                    })
                    .collect();
                let crop = self.preprocess.crop;
                let input = Input::F32 {
                    shape: &[self.batch_size, 3, crop, crop],
                    values: &pixels,
                };
                let output = session.run_rows(&[input], self.batch_size)?.swap_remove(0);
                let (n_classes, logits) = (output.row_len(), output.values);
                if n_classes != self.classes.len() {
                    return Err(Error::BadFile {
                        path: self.model.path().to_owned(),
                        reason: format!("it gives {n_classes} logits for {} classes", self.classes.len()),
                    });
                }
                let mut answers = answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (offset, (read, logits)) in
                    read.into_iter().zip(logits.chunks_exact(n_classes)).enumerate()
                {
                    answers[first + offset] = Some(read.map(|()| logits.to_vec()));
                }
                let n_done = done.fetch_add(batch.len(), Ordering::Relaxed) + batch.len();
                monitor.at(Stage::Verify, n_done, pictures.len());
            }
        };
        let n_workers = n_sessions.min(pictures.len().div_ceil(self.batch_size)).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..n_workers).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("workers do not panic"))
        })?;
        let answers = answers
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
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

/// Runs pictures through the exported model and compares with what the head says of their cached features:
/// every logit within a thousandth of one plus the picture's largest.
///
/// # Errors
/// [`Error::ExportMismatch`] with the first picture on which they differ.
pub fn verify(
    classifier: &Classifier,
    root: &Path,
    pictures: &[PathBuf],
    trained: &[f32],
    monitor: Monitor<'_>,
) -> Result<Verified, Error> {
    let n_classes = classifier.classes().len();
    let answers = classifier.classify(root, pictures, monitor)?;
    let mut max_abs_logit_diff = 0f32;
    for ((path, answer), trained) in pictures.iter().zip(answers).zip(trained.chunks_exact(n_classes)) {
        let exported = answer.map_err(|reason| Error::Data {
            path: root.join(path),
            reason,
        })?;
        let scale = trained.iter().fold(0f32, |top, logit| top.max(logit.abs()));
        for (&exported, &trained) in exported.iter().zip(trained) {
            let diff = (exported - trained).abs();
            if diff.is_nan() || diff > 1e-3 * (1.0 + scale) {
                return Err(Error::ExportMismatch {
                    path: path.clone(),
                    exported,
                    trained,
                });
            }
            max_abs_logit_diff = max_abs_logit_diff.max(diff);
        }
    }
    Ok(Verified {
        n: pictures.len(),
        max_abs_logit_diff,
    })
}
