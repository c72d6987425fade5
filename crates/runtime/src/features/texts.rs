//! Texts to rows: tokens, batches of one length, the network, pooling.
//!
//! All threads fill the same buckets; whoever fills one up runs it. What is left at the end is run when no thread adds
//! texts any more, so that few batches are padded.

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use super::pipeline::Spent;
use super::store::RowId;
use super::work::Work;
use super::writer::Computed;
use crate::data::Content;
use crate::engine::Session;
use crate::error::Error;
use crate::onnx::Model;
use crate::text::{Buckets, TextBatch, TextEncoder, TextGraph, utf8};

/// What all threads share.
pub(super) struct Texts<'t> {
    work: &'t Work<'t>,
    encoder: &'t TextEncoder,
    model: &'t Model,
    graph: TextGraph,
    buckets: Mutex<Buckets<RowId>>,
    sessions: Mutex<Vec<Session>>,
}

impl<'t> Texts<'t> {
    /// # Errors
    /// As [`TextGraph::new`] and [`Buckets::new`].
    pub(super) fn new(
        work: &'t Work<'t>,
        encoder: &'t TextEncoder,
        model: &'t Model,
        batch_size: usize,
    ) -> Result<Texts<'t>, Error> {
        let graph = TextGraph::new(model)?;
        Ok(Texts {
            work,
            encoder,
            model,
            buckets: Buckets::new(encoder, &graph, batch_size)?.into(),
            graph,
            sessions: Mutex::default(),
        })
    }

    /// Computes the rows of all texts on `n_threads` threads, each with a session that `open` makes when it is needed.
    ///
    /// # Errors
    /// The first of a thread.
    pub(super) fn run(
        &self,
        spent: &Spent,
        n_threads: usize,
        sender: &mpsc::SyncSender<Computed>,
        open: &(dyn Fn() -> Result<Session, Error> + Sync),
    ) -> Result<(), Error> {
        let run = |batch: TextBatch<RowId>| self.run_batch(spent, &batch, sender, open);
        on_threads(n_threads, || {
            let result = self.work.take_samples(|reader, sample| {
                let start = Instant::now();
                let read = reader.read(sample);
                let (outcome, batch) = match read.and_then(|content| self.place(&content)) {
                    Ok((id, batch)) => (Ok(id), batch),
                    Err(reason) => (Err(reason), None),
                };
                Spent::add(&spent.preparing, start);
                self.work.note(sample, outcome);
                batch.map_or(Ok(()), &run)?;
                Ok(true)
            });
            if result.is_err() {
                self.work.halt();
            }
            result
        })?;
        on_threads(n_threads, || {
            while !self.work.is_stopped() {
                let batch = lock(&self.buckets).drain();
                let Some(batch) = batch else { break };
                if let Err(error) = run(batch) {
                    self.work.halt();
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    /// Puts a text among those of its length where its row is missing; a batch where it filled one.
    fn place(&self, content: &Content<'_>) -> Result<(RowId, Option<TextBatch<RowId>>), String> {
        let text = match content {
            Content::Text(text) => text.as_ref(),
            Content::Encoded(bytes) => utf8(bytes)?,
            Content::Pixels { .. } => return Err("this is a picture, and the network takes texts".to_owned()),
        };
        let id = content.id();
        if !self.work.is_missing(&id, 0) {
            return Ok((id, None));
        }
        let tokens = self.encoder.encode(text)?;
        self.work.count_miss();
        Ok((id, lock(&self.buckets).push(id, tokens)))
    }

    fn run_batch(
        &self,
        spent: &Spent,
        batch: &TextBatch<RowId>,
        sender: &mpsc::SyncSender<Computed>,
        open: &(dyn Fn() -> Result<Session, Error> + Sync),
    ) -> Result<(), Error> {
        let taken = lock(&self.sessions).pop();
        let mut session = match taken {
            Some(session) => session,
            None => {
                let session = open()?;
                spent.saw(&session);
                session
            }
        };
        let start = Instant::now();
        session.run_with(&self.graph.inputs(batch), |outputs| {
            Spent::add(&spent.running, start);
            for (entry, output) in outputs.iter().enumerate() {
                let values = self
                    .encoder
                    .pool(&output.shape, &output.values, batch)
                    .map_err(|reason| Error::Backbone {
                        path: self.model.path().to_owned(),
                        reason: format!("`{}`: {reason}", output.name),
                    })?;
                let computed = Computed {
                    entry,
                    ids: batch.keys.clone(),
                    shape: vec![values.len() / batch.keys.len().max(1)],
                    values,
                };
                // Where the writer has failed, it says so itself.
                if sender.send(computed).is_err() {
                    break;
                }
            }
            Ok::<(), Error>(())
        })??;
        lock(&self.sessions).push(session);
        Ok(())
    }
}

fn on_threads(n_threads: usize, work: impl Fn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads.max(1)).map(|_| scope.spawn(&work)).collect();
        let mut outcome = Ok(());
        for thread in threads {
            let result = thread.join().expect("threads that embed texts do not panic");
            outcome = outcome.and(result);
        }
        outcome
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
