//! What a training run says of itself as it goes: `metrics.jsonl`, a line per epoch, and a TensorBoard event file beside it.
//!
//! Both are appended to and made durable epoch by epoch. A run that is resumed drops what they say of epochs that will come
//! again, so that each epoch is there once, whatever killed the run before.

mod jsonl;
mod tensorboard;

use std::path::Path;

use pth::FileError;

use crate::error::Error;
use jsonl::Lines;
use tensorboard::EventFile;

/// The figures of one epoch, named as TensorBoard groups them: `loss/train`, `accuracy/val`, `lr`.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochScalars {
    /// Its number; the first is 1.
    pub epoch: u64,
    /// Name and value, in the order in which they are written. A value that is not finite is `null` in `metrics.jsonl`.
    pub scalars: Vec<(String, f64)>,
}

/// The name of the file with a line per epoch.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The history of a run, in its folder.
#[derive(Debug)]
pub struct History {
    lines: Lines,
    events: EventFile,
    epochs: Vec<EpochScalars>,
}

impl History {
    /// Opens the history in the run folder `folder`, keeping of it the epochs before `next_epoch`: 1 begins anew, and a run
    /// that is resumed after epoch n goes on with n + 1. A line or an event that a kill cut short is dropped too.
    ///
    /// # Errors
    /// The file system's; [`Error::BadFile`] where a file of that name holds something else.
    pub fn open(folder: &Path, next_epoch: u64) -> Result<History, Error> {
        let (lines, epochs) = Lines::open(&folder.join(METRICS_FILE), next_epoch)?;
        let events = EventFile::open(folder, next_epoch)?;
        // Both may be new.
        pth::sync_folder(&folder.join(METRICS_FILE));
        Ok(History {
            lines,
            events,
            epochs,
        })
    }

    /// Appends an epoch to both files; it is durable when this returns.
    ///
    /// # Errors
    /// The file system's; [`Error::Usage`] for an epoch that does not follow the last.
    pub fn append(&mut self, epoch: EpochScalars) -> Result<(), Error> {
        if let Some(last) = self.epochs.last()
            && last.epoch >= epoch.epoch
        {
            return Err(Error::Usage(format!(
                "epoch {} cannot follow epoch {}",
                epoch.epoch, last.epoch
            )));
        }
        self.events.append(&epoch)?;
        self.lines.append(&epoch)?;
        self.epochs.push(epoch);
        Ok(())
    }

    /// All epochs so far, those of before the run was resumed among them.
    pub fn epochs(&self) -> &[EpochScalars] {
        &self.epochs
    }
}

/// The epochs in a run folder's `metrics.jsonl`; a last line that was cut short is left out.
///
/// # Errors
/// The file system's; [`Error::BadFile`] where a line is none of ours.
pub fn read_history(folder: &Path) -> Result<Vec<EpochScalars>, Error> {
    let path = folder.join(METRICS_FILE);
    let text = std::fs::read(&path).map_err(FileError::at("read", &path))?;
    Ok(jsonl::parse(&path, &text)?
        .into_iter()
        .map(|(epoch, _)| epoch)
        .collect())
}

#[cfg(test)]
mod tests;
