//! Samples to cached features.
//!
//! A sample is looked up by the digest of its bytes in every entry that is wanted (one per boundary and view); where a
//! row is missing it is prepared, goes through the network once for all boundaries, and its rows go to one thread that
//! makes them durable.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::key::{FeatureType, Key, KeySpec, Recipe, ViewKey};
use super::manifest::{Header, Line, Manifest, save_manifest};
use super::pipeline::{Filler, Pipeline, Spent};
use super::pool::Pool;
use super::shard::{Job, Plan, Shard};
use super::store::{Budget, RowId, Store};
use super::texts::Texts;
use super::writer::{Computed, Entry, Writer};
use crate::data::{Content, Dataset, LeftOut, Reader, Split};
use crate::engine::{Device, Engine, OutputView, SessionOptions};
use crate::error::Error;
use crate::image::{Augment, Pixels, Preprocess, View};
use crate::monitor::{Monitor, Stage};
use crate::onnx::Model;
use crate::text::TextEncoder;

/// A batch of pixels stays below this, whatever the graph or the caller asks for.
const MAX_BATCH_BYTES: usize = 1 << 30;
/// Samples that a thread takes at once: neighbours lie close in a tar or a folder.
const CHUNK: usize = 4;

/// A boundary whose features are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The tensor.
    pub boundary: String,
    /// What becomes of it where it is spatial.
    pub pool: Pool,
}

/// Random views of the training samples, beside the plain ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Views {
    /// What is random.
    pub augment: Augment,
    /// How many per sample.
    pub count: u32,
}

/// How samples become input.
#[derive(Debug, Clone, Copy)]
pub enum Preparation<'c> {
    /// Pictures, for a graph with one input `[N, 3, H, W]`.
    Pictures(&'c Preprocess),
    /// Texts, for a graph that takes `input_ids`.
    Texts(&'c TextEncoder),
}

impl Preparation<'_> {
    /// What of it belongs to a cache key.
    pub fn recipe(&self) -> Recipe {
        match self {
            Preparation::Pictures(preprocess) => Recipe::Picture((*preprocess).clone()),
            Preparation::Texts(encoder) => Recipe::Text(encoder.recipe().clone()),
        }
    }
}

/// How features are computed.
#[derive(Debug, Clone)]
pub struct ExtractConfig<'c> {
    /// Folder of cache entries.
    pub cache: &'c Path,
    /// The tensors to cut at, at least one; all are computed in one pass.
    pub taps: &'c [Tap],
    /// How samples become input.
    pub input: Preparation<'c>,
    /// Random views of the training samples.
    pub views: Option<&'c Views>,
    /// Stored number type.
    pub dtype: FeatureType,
    /// What runs the network.
    pub device: Device,
    /// Samples per run of the network, unless the network itself fixes that.
    pub batch_size: usize,
    /// Threads in all.
    pub threads: usize,
    /// Rows that are made durable at once, [`DEFAULT_BLOCK_ROWS`](super::DEFAULT_BLOCK_ROWS) where in doubt: what a crash
    /// can cost at most.
    pub block_rows: usize,
    /// What all files of the cache together may have, in bytes.
    pub max_cache_bytes: Option<u64>,
    /// The part of the samples that this process does.
    pub shard: Option<Shard>,
}

/// What became of each sample: 32 bytes each.
#[derive(Debug)]
struct Outcomes {
    ids: Vec<RowId>,
    left_out: std::collections::BTreeMap<usize, String>,
}

/// What came of an extraction.
#[derive(Debug)]
pub struct Extraction<'d> {
    data: &'d Dataset,
    first: usize,
    outcomes: Outcomes,
    /// The entry of each tap, with all rows.
    pub stores: Vec<Store>,
    /// The entries of random views of the first tap.
    pub views: Vec<Store>,
    view_names: Vec<Vec<String>>,
    /// Where the network was cut.
    pub boundaries: Vec<String>,
    /// Samples whose rows were all there.
    pub hits: usize,
    /// Samples for which something was computed.
    pub misses: usize,
    /// Samples that could not be read or listed.
    pub n_left_out: usize,
    /// Wall time.
    pub elapsed: Duration,
    /// What all threads together spent on reading, decoding and transforming.
    pub preparing: Duration,
    /// What all threads together spent in ONNX Runtime.
    pub running: Duration,
    /// Whether a GPU was asked for and some operators ran on the processor all the same.
    pub partly_on_cpu: bool,
    /// The part that was done, with its job.
    pub shard: Option<(Shard, Job)>,
}

impl Extraction<'_> {
    /// Whether a sample's features are there, by its number in the data set.
    pub fn has_row(&self, sample: usize) -> bool {
        sample.checked_sub(self.first).is_some_and(|offset| {
            offset < self.outcomes.ids.len() && !self.outcomes.left_out.contains_key(&offset)
        })
    }

    /// The entry of the first tap.
    pub fn store(&self) -> &Store {
        &self.stores[0]
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.outcomes.ids.iter().enumerate().map(|(offset, id)| {
            let sample = self.first + offset;
            let reason = self.outcomes.left_out.get(&offset);
            Line {
                name: self.data.name(sample),
                id: reason.is_none().then_some(*id),
                label: self.data.label(sample),
                split: self.data.split(sample),
                left_out: reason.map(|reason| reason.as_str().into()),
            }
        })
    }

    fn header(&self, tap: usize) -> Header {
        Header::new(
            self.data.source(),
            self.data.classes(),
            self.view_names[tap].clone(),
            self.outcomes.ids.len(),
        )
    }

    /// Which row is which sample, in memory.
    pub fn manifest(&self) -> Manifest {
        Manifest::new(self.header(0), self.lines())
    }

    /// Writes the label manifest into the entry of every tap, and returns the first's path.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_labels(&self) -> Result<PathBuf, Error> {
        let mut first = None;
        for (tap, store) in self.stores.iter().enumerate() {
            let path = save_manifest(store.folder(), &self.header(tap), || self.lines())?;
            first.get_or_insert(path);
        }
        Ok(first.expect("there is a tap"))
    }

    /// Samples of splits that are for neither training nor validation: which, and how many.
    pub fn set_aside(&self) -> &[(String, usize)] {
        self.data.set_aside()
    }

    /// Samples without features: those that could not be listed, then those that could not be read, in their order.
    pub fn left_out(&self) -> impl Iterator<Item = LeftOut> {
        let unread = self.outcomes.left_out.iter().map(|(offset, reason)| LeftOut {
            name: self.data.name(self.first + offset).into_owned(),
            reason: reason.clone(),
        });
        self.data.left_out().iter().cloned().chain(unread)
    }

    /// The ledger: one JSON object per sample that was left out.
    pub fn ledger(&self) -> String {
        #[derive(Serialize)]
        struct Entry<'e> {
            name: &'e str,
            reason: &'e str,
        }
        let mut text = String::new();
        for LeftOut { name, reason } in self.left_out() {
            let entry = Entry {
                name: &name,
                reason: &reason,
            };
            text.push_str(&serde_json::to_string(&entry).expect("strings are JSON"));
            text.push('\n');
        }
        text
    }
}

/// The keys of the entries that `config` fills: per tap the plain one, then those of its views.
///
/// # Errors
/// As [`Model::prefix_digest`].
pub fn keys(model: &Model, config: &ExtractConfig<'_>) -> Result<Vec<Vec<Key>>, Error> {
    let recipe = config.input.recipe();
    let boundaries: Vec<&str> = config.taps.iter().map(|tap| tap.boundary.as_str()).collect();
    let prefixes = model.prefix_digests(&boundaries)?;
    let spec = |pool, view| KeySpec {
        pool,
        recipe: &recipe,
        view,
        dtype: config.dtype,
        provider: config.device.class(),
    };
    config
        .taps
        .iter()
        .zip(prefixes)
        .map(|(tap, prefix)| {
            let plain = Key::new(prefix, spec(tap.pool, None));
            let views = config.views.iter().flat_map(|views| {
                (0..views.count).map(|index| {
                    Some(ViewKey {
                        augment: views.augment.clone(),
                        index,
                    })
                })
            });
            let views = views.map(|view| plain.with_view(view));
            Ok(std::iter::once(plain.clone()).chain(views).collect())
        })
        .collect()
}

/// Computes the features of every sample of `data` that the cache does not hold, and makes them durable.
///
/// # Errors
/// As [`Model::cut`] and [`Engine::session`]; [`Error::Interrupted`] when the monitor cancels; [`Error::Data`] where no
/// sample could be read. What was computed before an error is in the cache.
pub fn extract<'d>(
    model: &Model,
    data: &'d Dataset,
    engine: &Engine,
    config: &ExtractConfig<'_>,
    monitor: Monitor<'_>,
) -> Result<Extraction<'d>, Error> {
    let start = Instant::now();
    let batch_size = match config.input {
        Preparation::Pictures(preprocess) => check_input(model, preprocess, config.batch_size)?,
        Preparation::Texts(_) => check_text(config)?,
    };
    let keys = keys(model, config)?;
    let n_slots = keys[0].len();
    let mut entries = Vec::new();
    let mut names = Vec::new();
    for (tap, keys) in config.taps.iter().zip(&keys) {
        for key in keys {
            entries.push(Entry {
                store: Store::open(config.cache, key)?.into(),
                boundary: tap.boundary.clone(),
            });
        }
        names.push(keys.iter().map(Key::digest).collect::<Vec<String>>());
    }
    let shard = match config.shard {
        Some(shard) => {
            let plan = Plan::new(
                (
                    names.iter().map(|names| names[0].clone()).collect(),
                    names.iter().map(|names| names[1..].to_vec()).collect(),
                ),
                data.source(),
                (data.len(), data.listing_digest(), labels_digest(data)),
                data.classes(),
                shard,
            );
            Some((shard, Job::join(config.cache, plan)?))
        }
        None => None,
    };
    let range = shard
        .as_ref()
        .map_or(0..data.len(), |(shard, _)| shard.range(data.len()));
    let budget = config
        .max_cache_bytes
        .map(|limit| Budget::new(config.cache, limit))
        .transpose()?;
    let boundaries: Vec<&str> = config.taps.iter().map(|tap| tap.boundary.as_str()).collect();
    let cut = model.cut(&boundaries)?;
    let (n_sessions, intra_threads) = sessions_for(&cut, config.device, config.threads);
    let options = SessionOptions {
        intra_threads,
        device: config.device,
    };
    let work = Work {
        data,
        entries: &entries,
        n_slots,
        config,
        end: range.end,
        first: range.start,
        next: AtomicUsize::new(range.start),
        stop: AtomicBool::new(false),
        monitor,
        done: AtomicUsize::new(0),
        misses: AtomicUsize::new(0),
        outcomes: Mutex::new(Outcomes {
            ids: vec![RowId::default(); range.len()],
            left_out: std::collections::BTreeMap::new(),
        }),
    };
    let note = serde_json::json!({
        "graftwork": env!("CARGO_PKG_VERSION"),
        "onnxruntime": format!("1.{}", engine.found().minor),
        "device": config.device.class(),
    });
    let spent = Spent::default();
    let writer = Writer::new(&entries, note.to_string(), config.block_rows, budget.as_ref());
    match config.input {
        Preparation::Pictures(preprocess) => {
            let [channels, height, width] = preprocess.shape();
            let pipeline = Pipeline {
                engine,
                model: &cut,
                options,
                n_sessions,
                n_threads: config.threads.max(1),
                shape: vec![batch_size, channels, height, width],
            };
            work.run(writer, |sender| {
                let sink = |tags: &[Tag], outputs: &[OutputView<'_>]| work.hand_over(tags, outputs, sender);
                pipeline.run(&spent, |filler| work.fill(preprocess, filler), sink)
            })?;
        }
        Preparation::Texts(encoder) => {
            let texts = Texts::new(&work, encoder, &cut, batch_size)?;
            work.run(writer, |sender| {
                texts.run(&spent, n_sessions, sender, &|| engine.session(&cut, options))
            })?;
        }
    }
    if monitor.is_cancelled() {
        return Err(Error::Interrupted {
            done: work.done.into_inner(),
            total: range.len(),
        });
    }

    let misses = work.misses.into_inner();
    let outcomes = work.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut stores = entries
        .into_iter()
        .map(|entry| entry.store.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect::<Vec<Store>>()
        .into_iter();
    let (mut plain, mut views) = (Vec::new(), Vec::new());
    for tap in 0..config.taps.len() {
        plain.extend(stores.next());
        let own: Vec<Store> = stores.by_ref().take(n_slots - 1).collect();
        if tap == 0 {
            views = own;
        }
    }
    let duration = |counter: std::sync::atomic::AtomicU64| Duration::from_nanos(counter.into_inner());
    let extraction = Extraction {
        data,
        first: range.start,
        hits: range.len() - outcomes.left_out.len() - misses,
        misses,
        n_left_out: outcomes.left_out.len() + data.n_left_out(),
        outcomes,
        stores: plain,
        views,
        view_names: names.iter().map(|names| names[1..].to_vec()).collect(),
        boundaries: boundaries.into_iter().map(str::to_owned).collect(),
        elapsed: start.elapsed(),
        preparing: duration(spent.preparing),
        running: duration(spent.running),
        partly_on_cpu: spent.partly_on_cpu.into_inner(),
        shard,
    };
    let was_asked = !range.is_empty() || data.is_empty();
    if was_asked && extraction.hits + extraction.misses == 0 {
        let reason = match extraction.left_out().next() {
            Some(first) => format!(
                "no sample could be read; the first, `{}`: {}",
                first.name, first.reason
            ),
            None => "there is nothing in it".to_owned(),
        };
        return Err(Error::Data {
            path: data.source().to_owned(),
            reason,
        });
    }
    if let Some((shard, job)) = &extraction.shard {
        job.mark_done(*shard, || extraction.lines())?;
    }
    Ok(extraction)
}

/// Checks that pictures fit the graph's input; returns the batch size, which the graph may fix.
pub(crate) fn check_input(model: &Model, preprocess: &Preprocess, batch_size: usize) -> Result<usize, Error> {
    const FLOAT: i64 = 1;
    const FLOAT16: i64 = 10;
    preprocess.check().map_err(Error::Usage)?;
    let input = model.input()?;
    let reason = |reason: String| Error::Backbone {
        path: model.path().to_owned(),
        reason,
    };
    if !matches!(input.elem_type, FLOAT | FLOAT16) {
        return Err(reason(format!(
            "its input `{}` is neither float32 nor float16",
            input.name
        )));
    }
    let checked_batch = |fixed: Option<usize>| {
        let batch = fixed.unwrap_or(batch_size).max(1);
        match batch.checked_mul(preprocess.numel() * size_of::<f32>()) {
            Some(n_bytes) if n_bytes <= MAX_BATCH_BYTES => Ok(batch),
            _ => Err(Error::Usage(format!(
                "a batch of {batch} pictures is larger than 1 GiB"
            ))),
        }
    };
    let Some(shape) = &input.shape else {
        return checked_batch(None);
    };
    let [batch, channels, height, width] = shape.as_slice() else {
        return Err(reason(format!(
            "its input `{}` has {} axes; pictures have 4 (N, 3, H, W)",
            input.name,
            shape.len()
        )));
    };
    if channels.is_some_and(|channels| channels != 3) {
        return Err(reason(format!(
            "its input `{}` has {} channels, not 3",
            input.name,
            channels.unwrap_or(0)
        )));
    }
    let [_, crop_height, crop_width] = preprocess.shape();
    if height.is_some_and(|height| height != crop_height) || width.is_some_and(|width| width != crop_width) {
        let side = |side: &Option<usize>| side.map_or("?".to_owned(), |side| side.to_string());
        return Err(Error::CropMismatch {
            path: model.path().to_owned(),
            height: side(height),
            width: side(width),
            crop: if crop_height == crop_width {
                crop_height.to_string()
            } else {
                format!("{crop_height} x {crop_width}")
            },
        });
    }
    checked_batch(*batch)
}

/// What the parts of a job must agree on beside the samples' names.
fn labels_digest(data: &Dataset) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 labels and splits in order");
    for sample in 0..data.len() {
        let label = data.label(sample).map_or(u64::MAX, u64::from);
        hasher.update(&label.to_le_bytes());
        hasher.update(&[u8::from(data.split(sample) == Split::Train)]);
    }
    hasher.finalize()
}

/// Checks what is asked of texts; returns how many go into a batch.
fn check_text(config: &ExtractConfig<'_>) -> Result<usize, Error> {
    if config.taps.iter().any(|tap| tap.pool != Pool::None) {
        let text = "--pool is for pictures; texts are pooled as their model says, or by --text-pool";
        return Err(Error::Usage(text.to_owned()));
    }
    if config.views.is_some() {
        return Err(Error::Usage("random views are for pictures".to_owned()));
    }
    Ok(config.batch_size)
}

/// How many sessions of how many threads. On the processor each holds its own copy of the weights, and together they
/// stay below 2 GiB; a GPU has one.
pub(crate) fn sessions_for(model: &Model, device: Device, threads: usize) -> (usize, usize) {
    const SESSIONS_BYTES: usize = 2 << 30;
    if device != Device::Cpu {
        return (1, 1);
    }
    let n_sessions = (SESSIONS_BYTES / model.n_bytes().max(1)).clamp(1, threads.max(1));
    (n_sessions, (threads / n_sessions).max(1))
}

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

/// One row on its way through the network: which picture and which of its views.
type Tag = (RowId, usize);

pub(super) struct Work<'w> {
    data: &'w Dataset,
    /// Per tap, per slot.
    entries: &'w [Entry],
    /// The plain picture and its views.
    n_slots: usize,
    config: &'w ExtractConfig<'w>,
    first: usize,
    end: usize,
    next: AtomicUsize,
    stop: AtomicBool,
    monitor: Monitor<'w>,
    done: AtomicUsize,
    misses: AtomicUsize,
    outcomes: Mutex<Outcomes>,
}

impl Work<'_> {
    /// Lets `compute` send rows to a thread that makes them durable.
    fn run(
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
    fn fill(&self, preprocess: &Preprocess, filler: &mut Filler<'_, Tag>) -> Result<(), Error> {
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
            Err(reason) => drop(outcomes.left_out.insert(offset, reason)),
        }
        drop(outcomes);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.monitor.at(Stage::Extract, done, self.end - self.first);
    }

    /// Puts what is missing of a sample into the batch. `None` where there is no more to do.
    fn place(
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
                self.prepare(preprocess, content, &id, slot, out)
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

    fn prepare(
        &self,
        preprocess: &Preprocess,
        content: &Content<'_>,
        id: &RowId,
        slot: usize,
        out: &mut [f32],
    ) -> Result<(), String> {
        match self.config.views.filter(|_| slot > 0) {
            None => prepare(preprocess, content, None, out),
            Some(views) => {
                let size = match content {
                    Content::Encoded(bytes) => {
                        preprocess.source_size(bytes).map_err(|error| error.to_string())?
                    }
                    Content::Pixels { width, height, .. } => (*width, *height),
                    Content::Text(_) => (0, 0),
                };
                let view = views.augment.view(id, slot as u32 - 1, size);
                prepare(preprocess, content, Some(&view), out)
            }
        }
    }

    /// Rows of a batch to the writer, for every entry.
    fn hand_over(
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
