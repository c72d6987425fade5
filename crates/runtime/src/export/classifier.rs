//! An exported model at work: pictures to logits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::model::About;
use crate::data::Dataset;
use crate::engine::{Device, Engine, SessionOptions};
use crate::error::Error;
use crate::features::{Kept, Pipeline, Spent, check_input, prepare, sessions_for};
use crate::image::Preprocess;
use crate::monitor::{Monitor, Stage};
use crate::onnx::Model;
use crate::targets::Task;

/// An exported model, ready to classify pictures.
#[derive(Debug)]
pub struct Classifier {
    model: Model,
    engine: Engine,
    classes: Vec<String>,
    task: Task,
    preprocess: Preprocess,
    batch_size: usize,
    threads: usize,
    device: Device,
}

/// What the classifier says of one picture: its logits, or why it has none.
pub type Answer = Result<Vec<f32>, String>;

impl Classifier {
    /// Opens a model that [`assemble`](super::assemble) made.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it does not carry its classes and preprocessing; as [`Engine::open`].
    pub fn new(model: Model, engine: Engine, device: Device, threads: usize) -> Result<Classifier, Error> {
        let About {
            classes,
            task,
            preprocess,
        } = About::of(&model)?;
        let batch_size = check_input(&model, &preprocess, crate::job::DEFAULT_BATCH_SIZE)?;
        Ok(Classifier {
            model,
            engine,
            classes,
            task,
            preprocess,
            batch_size,
            threads: threads.max(1),
            device,
        })
    }

    /// A part of a model that ends in a tensor of `n` numbers a picture, which are its answers.
    ///
    /// # Errors
    /// As [`Engine::open`]; [`Error::CropMismatch`].
    pub(crate) fn of_tensor(
        model: Model,
        n: usize,
        preprocess: &Preprocess,
        engine: Engine,
        threads: usize,
    ) -> Result<Classifier, Error> {
        let batch_size = check_input(&model, preprocess, crate::job::DEFAULT_BATCH_SIZE)?;
        Ok(Classifier {
            model,
            engine,
            classes: vec![String::new(); n],
            task: Task::Regression,
            preprocess: preprocess.clone(),
            batch_size,
            threads: threads.max(1),
            device: Device::Cpu,
        })
    }

    /// Class names in order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What the logits mean.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Which ONNX Runtime is in use.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Classifies the pictures of these numbers in the data set; the answers are in their order.
    ///
    /// # Errors
    /// As [`classify_each`](Classifier::classify_each).
    pub fn classify(
        &self,
        data: &Dataset,
        pictures: &[usize],
        monitor: Monitor<'_>,
    ) -> Result<Vec<Answer>, Error> {
        let mut answers = Vec::with_capacity(pictures.len());
        self.classify_each(data, pictures, monitor, &mut |_, answer| {
            answers.push(answer);
            Ok(())
        })?;
        Ok(answers)
    }

    /// Classifies the pictures of these numbers in the data set and hands each answer on with the picture's number, in
    /// their order and as soon as those before it are there: a million of them take no more memory than a few.
    ///
    /// # Errors
    /// [`Error::Ort`] where the model fails; [`Error::Interrupted`] when the monitor cancels; what `each` returns.
    pub fn classify_each(
        &self,
        data: &Dataset,
        pictures: &[usize],
        monitor: Monitor<'_>,
        each: &mut (dyn FnMut(usize, Answer) -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
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
            // What is classified here is to be seen through ONNX Runtime, as its users will.
            may_be_own: false,
            n_sessions: n_sessions.min(n_threads),
            n_threads,
            shape: vec![self.batch_size, channels, height, width],
        };
        let next = AtomicUsize::new(0);
        let in_order = Mutex::new(InOrder {
            n_handed_on: 0,
            waiting: BTreeMap::new(),
            each,
        });
        let answer = |at: usize, answer: Answer| {
            let mut in_order = in_order.lock().unwrap_or_else(PoisonError::into_inner);
            in_order.waiting.insert(at, answer);
            while let Some((at, answer)) = in_order.take() {
                (in_order.each)(pictures[at], answer)?;
                monitor.at(Stage::Verify, at + 1, pictures.len());
            }
            Ok::<(), Error>(())
        };
        pipeline.run(
            &Kept::default(),
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
                        Some(Err(reason)) => answer(at, Err(reason))?,
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
                    answer(at, Ok(logits.to_vec()))?;
                }
                Ok(())
            },
        )?;
        let done = in_order
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .n_handed_on;
        if done < pictures.len() {
            let total = pictures.len();
            return Err(Error::Interrupted { done, total });
        }
        Ok(())
    }
}

/// Answers that came before their turn, and who gets them.
struct InOrder<'e> {
    n_handed_on: usize,
    waiting: BTreeMap<usize, Answer>,
    each: &'e mut (dyn FnMut(usize, Answer) -> Result<(), Error> + Send),
}

impl InOrder<'_> {
    /// The answer whose turn it is, where it is there.
    fn take(&mut self) -> Option<(usize, Answer)> {
        let at = self.n_handed_on;
        let answer = self.waiting.remove(&at)?;
        self.n_handed_on += 1;
        Some((at, answer))
    }
}
