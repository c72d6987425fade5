//! Pictures to cached features: each worker decodes, transforms and runs its own batches, so that the processor is
//! never waiting for one stage; one thread makes finished rows durable.

use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

use super::key::Key;
use super::manifest::{Manifest, Row};
use super::store::{RowId, Store, write_whole};
use crate::data::Dataset;
use crate::engine::{Device, Engine, Input, Session, SessionOptions};
use crate::error::Error;
use crate::image::{Preprocess, decode};
use crate::monitor::{Monitor, Stage};
use crate::onnx::Model;

/// Rows in a block; also what a crash can cost at most.
const BLOCK_ROWS: usize = 1024;
/// A slow backbone fills a block slowly: then this long is what a crash can cost.
const BLOCK_AGE: Duration = Duration::from_secs(30);
/// A batch of pixels stays below this, whatever the graph or the caller asks for.
const MAX_BATCH_BYTES: usize = 1 << 30;

/// How features are computed.
#[derive(Debug, Clone)]
pub struct ExtractConfig<'c> {
    /// Folder of cache entries.
    pub cache: &'c Path,
    /// The tensor to cut at; [`Model::default_boundary`] where none is given.
    pub boundary: Option<&'c str>,
    /// How pictures become input.
    pub preprocess: &'c Preprocess,
    /// Pictures per run of the network, unless the network itself fixes that.
    pub batch_size: usize,
    /// Threads in all.
    pub threads: usize,
    /// What runs the network.
    pub device: Device,
}

/// A picture without features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Path below the data set's root.
    pub path: PathBuf,
    /// Why, in one sentence.
    pub reason: String,
}

/// What came of an extraction.
#[derive(Debug)]
pub struct Extraction {
    /// The entry with all rows.
    pub store: Store,
    /// Which row is which picture, with labels and splits.
    pub manifest: Manifest,
    /// Pictures that could not be decoded, by path.
    pub left_out: Vec<LeftOut>,
    /// Where the network was cut.
    pub boundary: String,
    /// Pictures whose features were there.
    pub hits: usize,
    /// Pictures whose features were computed.
    pub misses: usize,
    /// Wall time.
    pub elapsed: Duration,
}

impl Extraction {
    /// Pictures read per second, hits and misses together.
    pub fn images_per_second(&self) -> f64 {
        (self.hits + self.misses) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The ledger: one JSON object per picture that was left out.
    pub fn ledger(&self) -> String {
        let mut text = String::new();
        for entry in &self.left_out {
            text.push_str(&serde_json::to_string(entry).expect("strings are JSON"));
            text.push('\n');
        }
        text
    }

    /// Writes labels and ledger into the cache entry, and returns the labels' path.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_labels(&self) -> Result<PathBuf, Error> {
        let labels = self.manifest.save(self.store.folder())?;
        write_whole(&labels.with_extension("ledger.jsonl"), self.ledger().as_bytes())?;
        Ok(labels)
    }
}

/// Computes the features of every picture of `data` that the cache does not hold, and makes them durable.
///
/// # Errors
/// As [`Model::cut`] and [`Engine::session`]; [`Error::Interrupted`] when the monitor cancels; [`Error::Data`] where no
/// picture could be read. What was computed before an error is in the cache.
pub fn extract(
    model: &Model,
    data: &Dataset,
    engine: &Engine,
    config: &ExtractConfig<'_>,
    monitor: Monitor<'_>,
) -> Result<Extraction, Error> {
    let start = Instant::now();
    let boundary = match config.boundary {
        Some(name) => name.to_owned(),
        None => model.default_boundary()?,
    };
    let batch_size = check_input(model, config.preprocess, config.batch_size)?;
    let key = Key::new(model, &boundary, config.preprocess, config.device)?;
    let store = RwLock::new(Store::open(config.cache, &key)?);
    let cut = model.cut(&[boundary.as_str()])?;

    let (n_sessions, intra_threads) = sessions_for(&cut, config.threads);
    let job = Job {
        data,
        store: &store,
        cut: &cut,
        config,
        batch_size,
        engine,
        intra_threads,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        monitor,
        done: AtomicUsize::new(0),
    };
    let total = data.pictures.len();
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    outcomes.resize_with(total, || None);
    let mut misses = 0;
    let mut failure = None;
    std::thread::scope(|scope| {
        // Bounded: a slow disk holds the workers back instead of filling memory.
        let (sender, receiver) = mpsc::sync_channel::<Result<Finished, Error>>(2 * n_sessions);
        for _ in 0..n_sessions {
            let (sender, job) = (sender.clone(), &job);
            scope.spawn(move || {
                if let Err(error) = job.work(&sender) {
                    job.stop.store(true, Ordering::Relaxed);
                    let _ = sender.send(Err(error));
                }
            });
        }
        drop(sender);
        let mut block = Block::default();
        for finished in receiver {
            let result = finished.and_then(|finished| {
                misses += finished.rows.len();
                for (picture, outcome) in finished.outcomes {
                    outcomes[picture] = Some(outcome);
                }
                block.ids.extend(finished.rows);
                block.features.extend(finished.features);
                if block.is_due() {
                    block.flush(&store)
                } else {
                    Ok(())
                }
            });
            if let Err(error) = result {
                job.stop.store(true, Ordering::Relaxed);
                failure.get_or_insert(error);
            }
        }
        if let Err(error) = block.flush(&store) {
            failure.get_or_insert(error);
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    if monitor.is_cancelled() {
        let done = job.done.into_inner();
        return Err(Error::Interrupted { done, total });
    }

    let store = store
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut manifest = Manifest {
        root: data.root.clone(),
        classes: data.classes.clone(),
        rows: Vec::new(),
    };
    let mut left_out = Vec::new();
    for (picture, outcome) in data.pictures.iter().zip(outcomes) {
        match outcome.expect("every picture was worked on") {
            Outcome::Row(id) => manifest.rows.push(Row {
                id,
                path: picture.path.clone(),
                label: picture.label,
                split: picture.split,
            }),
            Outcome::Broken(reason) => left_out.push(LeftOut {
                path: picture.path.clone(),
                reason,
            }),
        }
    }
    if manifest.rows.is_empty() {
        let reason = match left_out.first() {
            Some(first) => format!(
                "no picture could be read; the first, `{}`: {}",
                first.path.display(),
                first.reason
            ),
            None => "there are no pictures in it".to_owned(),
        };
        return Err(Error::Data {
            path: data.root.clone(),
            reason,
        });
    }
    let hits = manifest.rows.len() - misses;
    Ok(Extraction {
        store,
        manifest,
        left_out,
        boundary,
        hits,
        misses,
        elapsed: start.elapsed(),
    })
}

/// Checks that pictures fit the graph's input; returns the batch size, which the graph may fix.
pub(crate) fn check_input(model: &Model, preprocess: &Preprocess, batch_size: usize) -> Result<usize, Error> {
    const FLOAT: i64 = 1;
    preprocess.check().map_err(Error::Usage)?;
    let input = model.input()?;
    let reason = |reason: String| Error::Backbone {
        path: model.path().to_owned(),
        reason,
    };
    if input.elem_type != FLOAT {
        return Err(reason(format!("its input `{}` is not float32", input.name)));
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
    let crop = preprocess.crop;
    if height.is_some_and(|height| height != crop) || width.is_some_and(|width| width != crop) {
        let side = |side: &Option<usize>| side.map_or("?".to_owned(), |side| side.to_string());
        return Err(Error::CropMismatch {
            path: model.path().to_owned(),
            height: side(height),
            width: side(width),
            crop,
        });
    }
    checked_batch(*batch)
}

/// How many sessions of how many threads: each holds its own copy of the weights, and together they stay below 2 GiB.
pub(crate) fn sessions_for(model: &Model, threads: usize) -> (usize, usize) {
    const SESSIONS_BYTES: usize = 2 << 30;
    let n_sessions = (SESSIONS_BYTES / model.n_bytes().max(1)).clamp(1, threads.max(1));
    (n_sessions, (threads / n_sessions).max(1))
}

enum Outcome {
    Row(RowId),
    Broken(String),
}

/// What a worker hands over after a batch.
#[derive(Default)]
struct Finished {
    outcomes: Vec<(usize, Outcome)>,
    rows: Vec<RowId>,
    features: Vec<f32>,
}

struct Job<'j> {
    data: &'j Dataset,
    store: &'j RwLock<Store>,
    cut: &'j Model,
    config: &'j ExtractConfig<'j>,
    batch_size: usize,
    engine: &'j Engine,
    intra_threads: usize,
    next: AtomicUsize,
    stop: AtomicBool,
    monitor: Monitor<'j>,
    done: AtomicUsize,
}

enum Seen {
    Hit(RowId),
    Miss(RowId),
    Broken(String),
}

impl Job<'_> {
    /// Takes pictures until there are none, batch by batch.
    fn work(&self, sender: &mpsc::SyncSender<Result<Finished, Error>>) -> Result<(), Error> {
        let numel = self.config.preprocess.numel();
        let pool = match self.intra_threads {
            1 => None,
            n => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(n)
                    .build()
                    .map_err(|error| Error::Usage(format!("{n} threads could not be started: {error}")))?,
            ),
        };
        let mut session: Option<Session> = None;
        let mut pixels = vec![0.0; self.batch_size * numel];
        let mut finished = Finished::default();
        loop {
            // Fill the rest of the batch; hits and broken pictures leave room, which the next round fills.
            let free = self.batch_size - finished.rows.len();
            let first = self.next.fetch_add(free, Ordering::Relaxed);
            let last = (first + free).min(self.data.pictures.len());
            let exhausted = first >= last || self.stop.load(Ordering::Relaxed) || self.monitor.is_cancelled();
            if !exhausted {
                let slots = pixels[finished.rows.len() * numel..].chunks_exact_mut(numel);
                let work: Vec<(usize, &mut [f32])> = (first..last).zip(slots).collect();
                let seen: Vec<Seen> = match &pool {
                    None => work
                        .into_iter()
                        .map(|(picture, out)| self.prepare(picture, out))
                        .collect(),
                    Some(pool) => pool.install(|| {
                        work.into_par_iter()
                            .map(|(picture, out)| self.prepare(picture, out))
                            .collect()
                    }),
                };
                let base = finished.rows.len();
                for (offset, seen) in seen.into_iter().enumerate() {
                    let outcome = match seen {
                        Seen::Hit(id) => Outcome::Row(id),
                        Seen::Broken(reason) => Outcome::Broken(reason),
                        Seen::Miss(id) => {
                            let (from, to) = (base + offset, finished.rows.len());
                            pixels.copy_within(from * numel..(from + 1) * numel, to * numel);
                            finished.rows.push(id);
                            Outcome::Row(id)
                        }
                    };
                    finished.outcomes.push((first + offset, outcome));
                }
            }
            let n_rows = finished.rows.len();
            if n_rows == self.batch_size || (exhausted && n_rows > 0) {
                let session = match &mut session {
                    Some(session) => session,
                    empty => empty.insert(self.engine.session(
                        self.cut,
                        SessionOptions {
                            intra_threads: self.intra_threads,
                            device: self.config.device,
                        },
                    )?),
                };
                // A short batch is padded: a row's value must not depend on what else is in its batch.
                pixels[n_rows * numel..].fill(0.0);
                let crop = self.config.preprocess.crop;
                let input = Input::F32 {
                    shape: &[self.batch_size, 3, crop, crop],
                    values: &pixels,
                };
                let mut output = session.run_rows(&[input], self.batch_size)?.swap_remove(0);
                let n_features = output.row_len();
                output.values.truncate(n_rows * n_features);
                finished.features = output.values;
            }
            if n_rows == self.batch_size || exhausted || finished.outcomes.len() >= BLOCK_ROWS {
                let keep = n_rows != self.batch_size && !exhausted;
                let mut handed = std::mem::take(&mut finished);
                if keep {
                    // Only hits and broken pictures are reported; the rows of the unfinished batch stay here.
                    finished.rows = std::mem::take(&mut handed.rows);
                }
                let n_done = handed.outcomes.len();
                if sender.send(Ok(handed)).is_err() {
                    return Ok(());
                }
                let done = self.done.fetch_add(n_done, Ordering::Relaxed) + n_done;
                self.monitor.at(Stage::Extract, done, self.data.pictures.len());
            }
            if exhausted {
                return Ok(());
            }
        }
    }

    /// Reads a picture; where its features are missing, writes its pixels to `out`.
    fn prepare(&self, picture: usize, out: &mut [f32]) -> Seen {
        let path = self.data.root.join(&self.data.pictures[picture].path);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Seen::Broken(format!("it cannot be read: {error}")),
        };
        let id = RowId::from(blake3::hash(&bytes));
        if read(self.store).contains(&id) {
            return Seen::Hit(id);
        }
        match decode(&bytes) {
            Ok(pixels) => {
                self.config.preprocess.apply(&pixels, out);
                Seen::Miss(id)
            }
            Err(error) => Seen::Broken(error.to_string()),
        }
    }
}

/// Rows on their way to the disk.
struct Block {
    ids: Vec<RowId>,
    features: Vec<f32>,
    since: Instant,
}

impl Default for Block {
    fn default() -> Block {
        Block {
            ids: Vec::new(),
            features: Vec::new(),
            since: Instant::now(),
        }
    }
}

impl Block {
    fn is_due(&self) -> bool {
        self.ids.len() >= BLOCK_ROWS || self.since.elapsed() >= BLOCK_AGE
    }

    fn flush(&mut self, store: &RwLock<Store>) -> Result<(), Error> {
        let block = std::mem::take(self);
        if block.ids.is_empty() {
            return Ok(());
        }
        let path = read(store).write_block(&block.ids, &block.features)?;
        store
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .load(&path)
    }
}

fn read(store: &RwLock<Store>) -> std::sync::RwLockReadGuard<'_, Store> {
    store.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}
