//! `{"epoch":3,"loss/train":0.4312,…}`, a line per epoch.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use pth::FileError;
use serde_json::{Map, Value};

use super::EpochScalars;
use crate::error::Error;

const EPOCH: &str = "epoch";

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens the file behind its last line before `next_epoch`; with what these lines say.
    pub(super) fn open(path: &Path, next_epoch: u64) -> Result<(Lines, Vec<EpochScalars>), Error> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(FileError::at("read", path)(error).into()),
        };
        let mut kept = parse(path, &text)?;
        let n_kept = kept.partition_point(|(line, _)| line.epoch < next_epoch);
        kept.truncate(n_kept);
        let end = kept.last().map_or(0, |(_, end)| *end);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(FileError::at("open", path))?;
        // Appending begins at the end, wherever that was.
        file.set_len(end as u64).map_err(FileError::at("write", path))?;
        let lines = Lines {
            path: path.to_owned(),
            file,
        };
        Ok((lines, kept.into_iter().map(|(line, _)| line).collect()))
    }

    pub(super) fn append(&mut self, epoch: &EpochScalars) -> Result<(), Error> {
        let mut line = Map::new();
        line.insert(EPOCH.to_owned(), epoch.epoch.into());
        for (name, value) in &epoch.scalars {
            // What is not finite has no number in JSON.
            line.insert(name.clone(), Value::from(*value));
        }
        let line = format!("{}\n", Value::Object(line));
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        Ok(written.map_err(FileError::at("write", &self.path))?)
    }
}

/// The lines with where each ends. A last line without its end is left out.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Vec<(EpochScalars, usize)>, Error> {
    let mut lines: Vec<(EpochScalars, usize)> = Vec::new();
    let mut end = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        end += line.len();
        if line.last() != Some(&b'\n') {
            break;
        }
        let bad = |reason: &str| Error::BadFile {
            path: path.to_owned(),
            reason: format!("line {}{reason}", lines.len() + 1),
        };
        let object: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| bad(&format!(": {error}")))?;
        let epoch = object.get(EPOCH).and_then(Value::as_u64);
        let epoch = epoch.ok_or_else(|| bad(" does not say which epoch it is of"))?;
        if lines.last().is_some_and(|(last, _)| last.epoch >= epoch) {
            return Err(bad(" is of an epoch that is there already"));
        }
        let scalars = object.into_iter().filter(|(name, _)| name != EPOCH);
        let scalars = scalars.map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN)));
        lines.push((
            EpochScalars {
                epoch,
                scalars: scalars.collect(),
            },
            end,
        ));
    }
    Ok(lines)
}
