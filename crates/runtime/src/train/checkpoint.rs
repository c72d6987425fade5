//! The state of a run in a file: safetensors for what is numbers, JSON in its metadata for the rest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use pth::{AtomicFile, Existing, FileError};
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dense::Array;
use super::network::Network;
use super::run::Job;
use super::state::{EpochBits, EpochMetrics, HeadState, Outcome, Run};
use super::step::Totals;
use super::sweep::SweepHead;
use crate::error::Error;
use crate::features::{Features, Labelled};
use crate::head::Layer;
use crate::targets::Targets;

/// The form of the file.
const VERSION: u32 = 1;

/// What a run depends on; a checkpoint of another one is refused.
pub(super) struct Identity {
    settings: Value,
    features: String,
}

/// What is not an array. Numbers that must come back to the bit are integers.
#[derive(Serialize, Deserialize)]
struct Progress {
    version: u32,
    settings: Value,
    features: String,
    epoch: usize,
    cursor: usize,
    step: usize,
    columns: Vec<usize>,
    losses: Vec<u64>,
    n_right: Vec<u64>,
    denominator: u64,
    heads: Vec<HeadProgress>,
    /// Batches that each group's batch norms have seen.
    batches: BTreeMap<String, i64>,
}

#[derive(Serialize, Deserialize)]
struct HeadProgress {
    outcome: Outcome,
    best_epoch: Option<usize>,
    lowest: u64,
    stalled: usize,
    history: Vec<EpochBits>,
    is_ended: bool,
}

impl Identity {
    /// # Errors
    /// None that data in memory could cause.
    pub(super) fn new(job: &Job<'_>, heads: &[SweepHead]) -> Result<Identity, Error> {
        let json = |value: Result<Value, serde_json::Error>| value.expect("settings are plain data");
        let mut settings = json(serde_json::to_value(job.config));
        settings["outputs"] = json(serde_json::to_value(job.outputs));
        settings["heads"] = json(serde_json::to_value(heads));
        settings["halving"] = json(serde_json::to_value(job.halving));
        settings["start"] = Value::Null;
        if let Some(start) = job.start {
            let mut hasher = blake3::Hasher::new();
            each_array(start.layers(), |_, values| {
                hasher.update(bytemuck::cast_slice(values));
            });
            settings["start"] = Value::String(hasher.finalize().to_hex().to_string());
        }
        let mut hasher = blake3::Hasher::new();
        hash(&mut hasher, job.train);
        if let Some(val) = job.val {
            hash(&mut hasher, val);
        }
        // Once through JSON, so that both sides of a comparison have been there.
        let settings = serde_json::from_str(&settings.to_string()).expect("JSON that was just written");
        Ok(Identity {
            settings,
            features: hasher.finalize().to_hex().to_string(),
        })
    }

    fn check(&self, path: &Path, progress: &Progress) -> Result<(), Error> {
        let differs = |reason: String| Error::JobDiffers {
            path: path.to_owned(),
            reason,
        };
        if progress.features != self.features {
            return Err(differs("its features or targets are not these".to_owned()));
        }
        let (Value::Object(own), Value::Object(other)) = (&self.settings, &progress.settings) else {
            return Err(differs("it has no settings".to_owned()));
        };
        for (name, value) in own {
            let before = other.get(name).unwrap_or(&Value::Null);
            if before != value {
                return Err(differs(format!(
                    "its `{name}` is {before}, and {value} is asked for"
                )));
            }
        }
        Ok(())
    }
}

/// Everything that training reads of a split.
fn hash(hasher: &mut blake3::Hasher, labelled: &Labelled) {
    const CHUNK_ROWS: usize = 1024;
    let features: &Features = &labelled.features;
    let size = [features.n_rows() as u64, features.n_features() as u64];
    hasher.update(bytemuck::cast_slice(&size));
    let mut scratch = Vec::new();
    for start in (0..features.n_rows()).step_by(CHUNK_ROWS) {
        let end = (start + CHUNK_ROWS).min(features.n_rows());
        hasher.update_rayon(bytemuck::cast_slice(features.rows(start..end, &mut scratch)));
    }
    match &labelled.targets {
        Targets::Classes(labels) => hasher.update(bytemuck::cast_slice(labels)),
        Targets::Dense { values, n_outputs } => hasher
            .update(&(*n_outputs as u64).to_le_bytes())
            .update(bytemuck::cast_slice(values)),
    };
}

/// Calls `f` with a name and the numbers of each array of layers.
fn each_array<'l>(layers: &'l [Layer], mut f: impl FnMut(String, &'l [f32])) {
    for (at, layer) in layers.iter().enumerate() {
        match layer {
            Layer::Linear(linear) => {
                f(format!("{at}.weight"), &linear.weight);
                f(format!("{at}.bias"), &linear.bias);
            }
            Layer::BatchNorm1d(norm) => {
                f(format!("{at}.weight"), &norm.weight);
                f(format!("{at}.bias"), &norm.bias);
                f(format!("{at}.running_mean"), &norm.running_mean);
                f(format!("{at}.running_var"), &norm.running_var);
            }
            Layer::LayerNorm(norm) => {
                f(format!("{at}.weight"), &norm.weight);
                f(format!("{at}.bias"), &norm.bias);
            }
            Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
        }
    }
}

/// Layers of one head under a name.
struct Group {
    name: String,
    layers: Vec<Layer>,
}

fn groups(run: &Run) -> Vec<Group> {
    let mut groups = Vec::new();
    for (column, head) in run.columns.iter().enumerate() {
        for array in Array::ALL.into_iter().filter(|array| run.network.has(*array)) {
            let layers = run.network.layers(column, array);
            groups.push(Group {
                name: format!("{head}.{array:?}"),
                layers,
            });
        }
    }
    for (at, head) in run.heads.iter().enumerate() {
        if let Some((_, layers)) = &head.best {
            groups.push(Group {
                name: format!("{at}.best"),
                layers: layers.clone(),
            });
        }
        if let Some((last, ema)) = &head.ended {
            groups.push(Group {
                name: format!("{at}.last"),
                layers: last.clone(),
            });
            if let Some(layers) = ema {
                groups.push(Group {
                    name: format!("{at}.average"),
                    layers: layers.clone(),
                });
            }
        }
    }
    groups
}

/// Replaces the file by the state of a run.
pub(super) fn save(path: &Path, identity: &Identity, run: &Run) -> Result<(), Error> {
    let groups = groups(run);
    let mut arrays: Vec<(String, Vec<u8>)> = Vec::new();
    let mut batches = BTreeMap::new();
    for Group { name, layers } in &groups {
        each_array(layers, |array, values| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            arrays.push((format!("{name}.{array}"), bytes));
        });
        for layer in layers {
            if let Layer::BatchNorm1d(norm) = layer {
                batches.insert(name.clone(), norm.num_batches_tracked);
            }
        }
    }
    let progress = Progress {
        version: VERSION,
        settings: identity.settings.clone(),
        features: identity.features.clone(),
        epoch: run.epoch,
        cursor: run.cursor,
        step: run.step,
        columns: run.columns.clone(),
        losses: run.totals.losses.iter().map(|loss| loss.to_bits()).collect(),
        n_right: run.totals.n_right.clone(),
        denominator: run.totals.denominator.to_bits(),
        heads: run.heads.iter().map(HeadProgress::of).collect(),
        batches,
    };
    let progress = serde_json::to_string(&progress).expect("plain data is JSON");
    // One entry: those of several have no order.
    let metadata = [("progress".to_owned(), progress)].into();
    let views = arrays.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)
            .expect("the shape is the number of values");
        (name.as_str(), view)
    });
    let bytes = serialize(views, Some(metadata)).map_err(|error| Error::BadFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let mut file = AtomicFile::create(path, Existing::Replace)?;
    file.write_all(&bytes).map_err(FileError::at("write", path))?;
    file.commit()?;
    Ok(())
}

/// Brings a run to where the file was written.
pub(super) fn load(path: &Path, identity: &Identity, run: &mut Run, job: &Job<'_>) -> Result<(), Error> {
    let bad = |reason: &str| Error::BadFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let bytes = fs::read(path).map_err(FileError::at("read", path))?;
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|_| bad("it is not a checkpoint of a trainer"))?;
    let metadata = metadata.metadata().clone().unwrap_or_default();
    let text = metadata
        .get("progress")
        .ok_or_else(|| bad("it is not a checkpoint of a trainer"))?;
    let progress: Progress = serde_json::from_str(text).map_err(|_| bad("its progress cannot be read"))?;
    if progress.version != VERSION {
        return Err(bad("it was written by another version"));
    }
    identity.check(path, &progress)?;
    let n_heads = run.heads.len();
    let columns = &progress.columns;
    let agrees = progress.heads.len() == n_heads
        && columns.iter().all(|head| *head < n_heads)
        && progress.losses.len() == columns.len()
        && progress.n_right.len() == columns.len();
    if !agrees {
        return Err(bad("its parts disagree"));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(&error.to_string()))?;
    let template = run.network.layers(0, Array::Weights);
    let layers = |name: &str| {
        read_layers(&tensors, &template, name, &progress.batches).ok_or_else(|| bad("its arrays disagree"))
    };

    if !columns.is_empty() && columns.len() != n_heads {
        let n_features = run.network.output.n_in;
        run.network = Network::new(job.config, n_features, run.network.n_outputs, columns.len());
    }
    for (column, head) in columns.iter().enumerate() {
        for array in Array::ALL.into_iter().rev() {
            if !run.network.has(array) {
                continue;
            }
            // The weights come last: the way back is made of them.
            let layers = layers(&format!("{head}.{array:?}"))?;
            run.network.set_layers(column, array, &layers);
        }
    }
    for (at, (state, saved)) in run.heads.iter_mut().zip(&progress.heads).enumerate() {
        state.outcome = saved.outcome;
        state.lowest = f64::from_bits(saved.lowest);
        state.stalled = saved.stalled;
        state.history = saved
            .history
            .iter()
            .enumerate()
            .map(|(epoch, bits)| EpochMetrics::from_bits(epoch + 1, *bits))
            .collect();
        if let Some(epoch) = saved.best_epoch {
            state.best = Some((epoch, layers(&format!("{at}.best"))?));
        }
        if saved.is_ended {
            let ema = job
                .config
                .ema
                .map(|_| layers(&format!("{at}.average")))
                .transpose()?;
            state.ended = Some((layers(&format!("{at}.last"))?, ema));
        }
    }
    run.totals = Totals {
        losses: progress.losses.iter().map(|bits| f64::from_bits(*bits)).collect(),
        n_right: progress.n_right,
        denominator: f64::from_bits(progress.denominator),
    };
    (run.epoch, run.cursor, run.step) = (progress.epoch, progress.cursor, progress.step);
    run.columns = progress.columns;
    Ok(())
}

/// The arrays of a group in layers like those of `template`.
fn read_layers(
    tensors: &SafeTensors<'_>,
    template: &[Layer],
    name: &str,
    counts: &BTreeMap<String, i64>,
) -> Option<Vec<Layer>> {
    let mut layers = template.to_vec();
    let fill = |at: usize, array: &str, to: &mut Vec<f32>| {
        let view = tensors.tensor(&format!("{name}.{at}.{array}")).ok()?;
        let bytes = view.data();
        (view.dtype() == Dtype::F32 && bytes.len() == to.len() * 4).then_some(())?;
        for (to, bytes) in to.iter_mut().zip(bytes.chunks_exact(4)) {
            *to = f32::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(())
    };
    for (at, layer) in layers.iter_mut().enumerate() {
        match layer {
            Layer::Linear(linear) => {
                fill(at, "weight", &mut linear.weight)?;
                fill(at, "bias", &mut linear.bias)?;
            }
            Layer::BatchNorm1d(norm) => {
                fill(at, "weight", &mut norm.weight)?;
                fill(at, "bias", &mut norm.bias)?;
                fill(at, "running_mean", &mut norm.running_mean)?;
                fill(at, "running_var", &mut norm.running_var)?;
                norm.num_batches_tracked = *counts.get(name)?;
            }
            Layer::LayerNorm(norm) => {
                fill(at, "weight", &mut norm.weight)?;
                fill(at, "bias", &mut norm.bias)?;
            }
            Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
        }
    }
    Some(layers)
}

impl HeadProgress {
    fn of(state: &HeadState) -> HeadProgress {
        HeadProgress {
            outcome: state.outcome,
            best_epoch: state.best.as_ref().map(|(epoch, _)| *epoch),
            lowest: state.lowest.to_bits(),
            stalled: state.stalled,
            history: state.history.iter().map(|metrics| metrics.to_bits()).collect(),
            is_ended: state.ended.is_some(),
        }
    }
}
