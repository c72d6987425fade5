//! Samples to cached features.
//!
//! A sample is looked up by the digest of its bytes in every entry that is wanted (one per boundary and view); where a
//! row is missing it is prepared, goes through the network once for all boundaries, and its rows go to one thread that
//! makes them durable.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::extraction::{Extraction, Outcomes};
use super::job::{Job, Plan};
use super::key::{FeatureType, Key, KeySpec, Recipe, ViewKey};
use super::pipeline::{Kept, Pipeline, Spent};
use super::pool::Pool;
use super::reasons::Reasons;
use super::shard::Shard;
use super::store::{Budget, RowId, Store};
use super::texts::Texts;
use super::work::{Tag, Work};
use super::writer::{Entry, Writer};
use crate::data::{Dataset, Split};
use crate::engine::{Device, Engine, OutputView, SessionOptions};
use crate::error::Error;
use crate::image::{Augment, Preprocess};
use crate::monitor::Monitor;
use crate::onnx::Model;
use crate::text::TextEncoder;

/// A batch of pixels stays below this, whatever the graph or the caller asks for.
const MAX_BATCH_BYTES: usize = 1 << 30;
/// Samples that a thread takes at once: neighbours lie close in a tar or a folder.
pub(super) const CHUNK: usize = 4;

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

impl Views {
    /// Whether every part is in range and no view is a picture that is there already; says which is not.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        self.augment.check()?;
        let n = self.count;
        if self.augment.is_random() {
            Ok(())
        } else if self.augment.crop.is_none() && self.augment.flip == 0.0 {
            Err("a view that is neither cropped nor mirrored is the plain picture once more".to_owned())
        } else if n > 1 {
            Err(format!(
                "nothing of these views is random: all {n} would be the same picture, and one is enough"
            ))
        } else {
            Ok(())
        }
    }
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
    if let Some(views) = config.views {
        views.check().map_err(Error::Usage)?;
    }
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
    let cut = model.with_weights_outside()?.cut(&boundaries)?;
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
            left_out: Reasons::default(),
        }),
    };
    let spent = Spent::default();
    let is_own = |boundary: &str| {
        spent
            .own
            .get()
            .is_some_and(|own| own.iter().any(|name| name == boundary))
    };
    let note = |boundary: &str| {
        let mut note = serde_json::json!({
            "graftwork": env!("CARGO_PKG_VERSION"),
            "device": config.device.class(),
        });
        // What computed the rows; graftwork's own kernels where it is not named.
        if !is_own(boundary) {
            note["onnxruntime"] = format!("1.{}", engine.found().minor).into();
        }
        note.to_string()
    };
    let writer = Writer::new(&entries, &note, config.block_rows, budget.as_ref());
    match config.input {
        Preparation::Pictures(preprocess) => {
            let pipeline = pipeline_of(&cut, preprocess, engine, config, batch_size);
            work.run(writer, |sender| {
                let sink = |tags: &[Tag], outputs: &[OutputView<'_>]| work.hand_over(tags, outputs, sender);
                pipeline.run(
                    &Kept::default(),
                    &spent,
                    |filler| work.fill(preprocess, filler),
                    sink,
                )
            })?;
        }
        Preparation::Texts(encoder) => {
            let texts = Texts::new(&work, encoder, &cut, batch_size)?;
            let (n_sessions, options) = options_for(&cut, config);
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
    let mut outcomes = work.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.left_out.sort();
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
        own: spent.own.into_inner().unwrap_or_default(),
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

/// How pictures go through a graph.
pub(super) fn pipeline_of<'p>(
    cut: &'p Model,
    preprocess: &Preprocess,
    engine: &'p Engine,
    config: &ExtractConfig<'_>,
    batch_size: usize,
) -> Pipeline<'p> {
    let [channels, height, width] = preprocess.shape();
    let (n_sessions, options) = options_for(cut, config);
    Pipeline {
        engine,
        model: cut,
        options,
        may_be_own: true,
        n_sessions,
        n_threads: config.threads.max(1),
        shape: vec![batch_size, channels, height, width],
    }
}

fn options_for(cut: &Model, config: &ExtractConfig<'_>) -> (usize, SessionOptions) {
    let (n_sessions, intra_threads) = sessions_for(cut, config.device, config.threads);
    let options = SessionOptions {
        intra_threads,
        device: config.device,
    };
    (n_sessions, options)
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

/// How many sessions of how many threads. On the processor each of ONNX Runtime's holds its own copy of the weights, and together
/// they stay below 2 GiB; a GPU has one.
pub(crate) fn sessions_for(model: &Model, device: Device, threads: usize) -> (usize, usize) {
    const SESSIONS_BYTES: usize = 2 << 30;
    if device != Device::Cpu {
        return (1, 1);
    }
    let n_sessions = (SESSIONS_BYTES / model.n_bytes().max(1)).clamp(1, threads.max(1));
    (n_sessions, (threads / n_sessions).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RandomCrop;

    #[test]
    fn views_that_would_be_one_picture_are_refused() {
        let check = |crop: Option<(f64, f64)>, flip: f64, count: u32| {
            let crop = crop.map(|(scale, ratio)| RandomCrop {
                scale: [scale, 1.0],
                ratio: [1.0, ratio],
            });
            let augment = Augment { seed: 0, crop, flip };
            Views { augment, count }.check().err().unwrap_or_default()
        };
        for random in [
            check(Some((0.08, 1.0)), 0.0, 9),
            check(Some((1.0, 1.5)), 0.0, 9),
            check(Some((1.0, 1.0)), 0.5, 9),
            check(None, 0.5, 9),
            // One picture each, and another than the plain one.
            check(None, 1.0, 1),
            check(Some((1.0, 1.0)), 0.0, 1),
        ] {
            assert_eq!(random, "");
        }
        let all_alike =
            "nothing of these views is random: all 2 would be the same picture, and one is enough";
        assert_eq!(check(None, 1.0, 2), all_alike);
        assert_eq!(check(Some((1.0, 1.0)), 1.0, 2), all_alike);
        let plain = "a view that is neither cropped nor mirrored is the plain picture once more";
        assert_eq!(check(None, 0.0, 1), plain);
    }
}
