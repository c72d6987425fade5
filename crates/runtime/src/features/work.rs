//! The work of one extraction, shared by its threads: sample after sample is read, looked up, prepared and sent on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use super::extract::{CHUNK, ExtractConfig, Views};
use super::extraction::Outcomes;
use super::pipeline::Filler;
use super::store::RowId;
use super::writer::{Computed, Entry, Writer};
use crate::data::{Content, Dataset, Reader, Split};
use crate::engine::OutputView;
use crate::error::Error;
use crate::image::{Pixels, Preprocess, View};
use crate::monitor::{Monitor, Stage};

/// Writes what the network sees of a sample into `out`.
///
/// # Errors
/// Why it cannot, in one sentence.
pub(crate) fn prepare(
    preprocess: &Preprocess,
    content: &Content<'_>,
    view: Option<&View>,
    out: &mut [f32],
) -> Result<(), String> {
    match content {
        Content::Encoded(bytes) => preprocess
            .prepare(bytes, view, out)
            .map_err(|error| error.to_string()),
        Content::Pixels { width, height, rgb } => {
            let pixels = Pixels::from_rgb(*width, *height, rgb).map_err(|error| error.to_string())?;
            preprocess.apply(&pixels, view, out);
            Ok(())
        }
        Content::Text(_) => Err("this is text, and the network takes pictures".to_owned()),
    }
}

/// Writes what the network sees of a sample's plain picture (slot 0) or of one of its views.
///
/// # Errors
/// As [`prepare`].
pub(super) fn prepare_slot(
    preprocess: &Preprocess,
    views: Option<&Views>,
    content: &Content<'_>,
    id: &RowId,
    slot: usize,
    out: &mut [f32],
) -> Result<(), String> {
    let Some(views) = views.filter(|_| slot > 0) else {
        return prepare(preprocess, content, None, out);
    };
    let size = match content {
        Content::Encoded(bytes) => preprocess.source_size(bytes).map_err(|error| error.to_string())?,
        Content::Pixels { width, height, .. } => (*width, *height),
        Content::Text(_) => (0, 0),
    };
    let view = views.augment.view(id, slot as u32 - 1, size);
    prepare(preprocess, content, Some(&view), out)
}

/// One row on its way through the network: which picture and which of its views.
pub(super) type Tag = (RowId, usize);

pub(super) struct Work<'w> {
    pub(super) data: &'w Dataset,
    /// Per tap, per slot.
    pub(super) entries: &'w [Entry],
    /// The plain picture and its views.
    pub(super) n_slots: usize,
    pub(super) config: &'w ExtractConfig<'w>,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) next: AtomicUsize,
    pub(super) stop: AtomicBool,
    pub(super) monitor: Monitor<'w>,
    pub(super) done: AtomicUsize,
    pub(super) misses: AtomicUsize,
    pub(super) outcomes: Mutex<Outcomes>,
}

impl Work<'_> {
    /// Lets `compute` send rows to a thread that makes them durable.
    pub(super) fn run(
        &self,
        mut writer: Writer<'_>,
        compute: impl FnOnce(&mpsc::SyncSender<Computed>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        /// How often the writer looks for blocks that have waited long.
        const TICK: Duration = Duration::from_secs(1);
        // Bounded: a slow disk holds the threads back instead of filling memory.
        let (sender, receiver) = mpsc::sync_channel::<Computed>(2 * self.config.threads.max(1));
        std::thread::scope(|scope| {
            let written = scope.spawn(move || {
                let mut outcome = Ok(());
                loop {
                    let step = match receiver.recv_timeout(TICK) {
                        Ok(computed) => writer.push(&computed).and_then(|()| writer.flush_old()),
                        Err(mpsc::RecvTimeoutError::Timeout) => writer.flush_old(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    };
                    if step.is_err() {
                        self.stop.store(true, Ordering::Relaxed);
                        outcome = step;
                        break;
                    }
                }
                // The threads may be waiting for room in the channel.
                while receiver.recv().is_ok() {}
                outcome.and(writer.flush())
            });
            let computed = compute(&sender);
            drop(sender);
            computed.and(written.join().expect("the writer does not panic"))
        })
    }

    /// Calls `each` with sample after sample until there are none, or it says that there is no more to do.
    pub(super) fn take_samples(
        &self,
        mut each: impl FnMut(&mut Reader<'_>, usize) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut reader = self.data.reader();
        loop {
            let first = self.next.fetch_add(CHUNK, Ordering::Relaxed);
            let last = (first + CHUNK).min(self.end);
            for sample in first..last {
                if self.is_stopped() || !each(&mut reader, sample)? {
                    return Ok(());
                }
            }
            if first >= self.end {
                return Ok(());
            }
        }
    }

    /// Whether someone has failed or cancelled.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.monitor.is_cancelled()
    }

    /// Makes all threads stop at their next sample.
    pub(super) fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether rows of a sample are missing in a slot.
    pub(super) fn is_missing(&self, id: &RowId, slot: usize) -> bool {
        let mut entries = self.entries.iter().skip(slot).step_by(self.n_slots);
        !entries.all(|entry| entry.contains(id))
    }

    /// Takes samples until there are none, and puts into batches what is missing of them.
    pub(super) fn fill(&self, preprocess: &Preprocess, filler: &mut Filler<'_, Tag>) -> Result<(), Error> {
        self.take_samples(|reader, sample| {
            let content = filler.prepare(|| reader.read(sample));
            let outcome = match content {
                Ok(content) => match self.place(preprocess, filler, sample, &content)? {
                    Some(outcome) => outcome,
                    None => return Ok(false),
                },
                Err(reason) => Err(reason),
            };
            self.note(sample, outcome);
            Ok(true)
        })
    }

    pub(super) fn note(&self, sample: usize, outcome: Result<RowId, String>) {
        let offset = sample - self.first;
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(id) => outcomes.ids[offset] = id,
            Err(reason) => outcomes.left_out.push(offset, &reason),
        }
        drop(outcomes);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.monitor.at(Stage::Extract, done, self.end - self.first);
    }

    /// Puts what is missing of a sample into the batch. `None` where there is no more to do.
    pub(super) fn place(
        &self,
        preprocess: &Preprocess,
        filler: &mut Filler<'_, Tag>,
        sample: usize,
        content: &Content<'_>,
    ) -> Result<Option<Result<RowId, String>>, Error> {
        let id = content.id();
        // Judged on the plain pictures, trained on the views too.
        let n_slots = match self.data.split(sample) {
            Split::Train => self.n_slots,
            _ => 1,
        };
        let mut is_miss = false;
        for slot in 0..n_slots {
            if !self.is_missing(&id, slot) {
                continue;
            }
            let placed = filler.fill((id, slot), |out| {
                prepare_slot(preprocess, self.config.views, content, &id, slot, out)
            })?;
            match placed {
                None => return Ok(None),
                Some(Err(reason)) => return Ok(Some(Err(reason))),
                Some(Ok(())) => is_miss = true,
            }
        }
        if is_miss {
            self.count_miss();
        }
        Ok(Some(Ok(id)))
    }

    pub(super) fn count_miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Rows of a batch to the writer, for every entry.
    pub(super) fn hand_over(
        &self,
        tags: &[Tag],
        outputs: &[OutputView<'_>],
        sender: &mpsc::SyncSender<Computed>,
    ) -> Result<(), Error> {
        for (tap_idx, (tap, output)) in self.config.taps.iter().zip(outputs).enumerate() {
            let sample_shape = &output.shape[1..];
            let shape = tap
                .pool
                .row_shape(sample_shape)
                .map_err(|reason| Error::Usage(format!("--pool on `{}`: {reason}", tap.boundary)))?;
            let row_len = output.row_len();
            for slot in 0..self.n_slots {
                let mut computed = Computed {
                    entry: tap_idx * self.n_slots + slot,
                    ids: Vec::new(),
                    shape: shape.clone(),
                    values: Vec::new(),
                };
                for ((id, of), row) in tags.iter().zip(output.values.chunks_exact(row_len)) {
                    if *of == slot {
                        computed.ids.push(*id);
                        tap.pool.append(sample_shape, row, &mut computed.values);
                    }
                }
                // Where the writer has failed, it says so itself.
                if !computed.ids.is_empty() && sender.send(computed).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
