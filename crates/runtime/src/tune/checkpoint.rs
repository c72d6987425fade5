//! The state of a run in a file, between two epochs: safetensors for what is numbers, JSON in its metadata for the rest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use pth::{AtomicFile, Existing, FileError};
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};
use serde::{Deserialize, Serialize};

use super::optimiser::Kept;
use super::run::{Snapshot, State};
use super::unfreeze::Unfreezing;
use crate::error::Error;
use crate::train::{EpochBits, EpochMetrics};

/// The form of the file.
const VERSION: u32 = 1;

/// What is not an array. Numbers that must come back to the bit are integers.
#[derive(Serialize, Deserialize)]
struct Progress {
    version: u32,
    /// What the run depends on.
    identity: String,
    epoch: usize,
    step: usize,
    is_over: bool,
    unfreezing: Unfreezing,
    start: EpochBits,
    history: Vec<EpochBits>,
    stages: Vec<usize>,
    norm_batches: BTreeMap<String, u64>,
    steps: BTreeMap<String, usize>,
    best: BestProgress,
}

#[derive(Serialize, Deserialize)]
struct BestProgress {
    epoch: usize,
    stage: usize,
    norm_batches: BTreeMap<String, u64>,
}

/// Replaces the file by the state of a run.
pub(super) fn save(path: &Path, identity: &str, state: &State) -> Result<(), Error> {
    let mut arrays: Vec<(String, &[f32])> = Vec::new();
    // Where the last epoch is the best one, both are one.
    let best = (state.best.epoch != state.epoch).then_some(("best", &state.best.weights));
    for (prefix, weights) in [("weights", &state.weights)].into_iter().chain(best) {
        arrays.extend(
            weights
                .iter()
                .map(|(name, values)| (format!("{prefix}.{name}"), values.as_slice())),
        );
    }
    for (name, kept) in &state.optimiser.kept {
        for (at, moment) in kept
            .moments
            .iter()
            .enumerate()
            .filter(|(_, moment)| !moment.is_empty())
        {
            arrays.push((format!("moment{at}.{name}"), moment));
        }
    }
    let steps = state.optimiser.kept.iter();
    let progress = Progress {
        version: VERSION,
        identity: identity.to_owned(),
        epoch: state.epoch,
        step: state.step,
        is_over: state.is_over,
        unfreezing: state.unfreezing,
        start: state.start.to_bits(),
        history: state.history.iter().map(|metrics| metrics.to_bits()).collect(),
        stages: state.stages.clone(),
        norm_batches: state.norm_batches.clone(),
        steps: steps.map(|(name, kept)| (name.clone(), kept.steps)).collect(),
        best: BestProgress {
            epoch: state.best.epoch,
            stage: state.best.stage,
            norm_batches: state.best.norm_batches.clone(),
        },
    };
    let progress = serde_json::to_string(&progress).expect("plain data is JSON");
    let bytes: Vec<(String, Vec<u8>)> = arrays
        .into_iter()
        .map(|(name, values)| {
            (
                name,
                values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)
            .expect("the shape is the number of values");
        (name.as_str(), view)
    });
    let bytes = serialize(views, Some([("progress".to_owned(), progress)].into())).map_err(|error| {
        Error::BadFile {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    })?;
    let mut file = AtomicFile::create(path, Existing::Replace)?;
    file.write_all(&bytes).map_err(FileError::at("write", path))?;
    file.commit()?;
    Ok(())
}

/// The state that the file was written of.
///
/// # Errors
/// [`Error::JobDiffers`] for that of another run; [`Error::BadFile`] for what is none.
pub(super) fn load(path: &Path, identity: &str) -> Result<State, Error> {
    let bad = |reason: &str| Error::BadFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let none = "it is not a checkpoint of a fine-tuning";
    let bytes = fs::read(path).map_err(FileError::at("read", path))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|_| bad(none))?;
    let metadata = metadata.metadata().clone().unwrap_or_default();
    let text = metadata.get("progress").ok_or_else(|| bad(none))?;
    let progress: Progress = serde_json::from_str(text).map_err(|_| bad(none))?;
    if progress.version != VERSION {
        return Err(bad("it was written by another version"));
    }
    if progress.identity != identity {
        return Err(Error::JobDiffers {
            path: path.to_owned(),
            reason: "its network, its settings or its targets are not these".to_owned(),
        });
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(&error.to_string()))?;
    let (mut weights, mut best) = (BTreeMap::new(), BTreeMap::new());
    let mut optimiser = super::optimiser::Optimiser::default();
    for (name, &steps) in &progress.steps {
        let kept = Kept {
            steps,
            ..Kept::default()
        };
        optimiser.kept.insert(name.clone(), kept);
    }
    for (name, view) in tensors.tensors() {
        let (kind, of) = name.split_once('.').ok_or_else(|| bad("its arrays disagree"))?;
        let values = view.data().chunks_exact(4);
        let values: Vec<f32> = values
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four")))
            .collect();
        match kind {
            "weights" => drop(weights.insert(of.to_owned(), values)),
            "best" => drop(best.insert(of.to_owned(), values)),
            "moment0" | "moment1" => {
                let kept = optimiser
                    .kept
                    .get_mut(of)
                    .ok_or_else(|| bad("its arrays disagree"))?;
                kept.moments[usize::from(kind == "moment1")] = values;
            }
            _ => return Err(bad("its arrays disagree")),
        }
    }
    if progress.best.epoch == progress.epoch {
        best.clone_from(&weights);
    }
    let history = progress.history.iter().enumerate();
    Ok(State {
        epoch: progress.epoch,
        step: progress.step,
        is_over: progress.is_over,
        unfreezing: progress.unfreezing,
        start: EpochMetrics::from_bits(0, progress.start),
        history: history
            .map(|(at, bits)| EpochMetrics::from_bits(at + 1, *bits))
            .collect(),
        stages: progress.stages,
        weights,
        optimiser,
        norm_batches: progress.norm_batches,
        best: Snapshot {
            epoch: progress.best.epoch,
            stage: progress.best.stage,
            weights: best,
            norm_batches: progress.best.norm_batches,
        },
    })
}
