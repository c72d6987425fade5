//! A model into files: one where protobuf's limit of 2 GiB allows it, else the weights that lie outside in a second.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing, FileError};

use super::external::External;
use super::graph::{MAX_PROTOBUF_BYTES, Model};
use crate::error::Error;

/// Weights begin at multiples of this, so that readers can map them.
const ALIGNMENT: u64 = 4096;

impl Model {
    /// The model in one piece, what lies outside it taken in; `None` where that is over protobuf's limit of 2 GiB.
    ///
    /// # Errors
    /// None that a model that was opened can have.
    pub fn inlined(&self) -> Result<Option<Model>, Error> {
        self.inlined_below(MAX_PROTOBUF_BYTES)
    }

    fn inlined_below(&self, limit: u64) -> Result<Option<Model>, Error> {
        if self.external.is_empty() {
            return Ok(Some(self.clone()));
        }
        // Names, sizes and tags of the weights come on top; what stands for them now is about as long.
        let slack = 64 * self.external.len() as u64;
        if self.n_bytes() as u64 + slack > limit {
            return Ok(None);
        }
        let tensors: HashMap<&str, Vec<u8>> = self
            .external
            .iter()
            .map(|external| (external.name.as_str(), external.raw_tensor()))
            .collect();
        self.with_tensors(&tensors).map(Some)
    }

    /// Writes the model to `path`, and where it is over 2 GiB the weights that lie outside it to `path` with `.data`
    /// behind its name. Returns the files written.
    ///
    /// # Errors
    /// The file system's; each file appears whole or not at all, the model last.
    pub fn save(&self, path: &Path, existing: Existing) -> Result<Vec<PathBuf>, Error> {
        self.save_below(path, existing, MAX_PROTOBUF_BYTES)
    }

    pub(crate) fn save_below(
        &self,
        path: &Path,
        existing: Existing,
        limit: u64,
    ) -> Result<Vec<PathBuf>, Error> {
        if let Some(whole) = self.inlined_below(limit)? {
            let mut file = AtomicFile::create(path, existing)?;
            file.write_all(whole.bytes())
                .map_err(FileError::at("write", path))?;
            file.commit()?;
            return Ok(vec![path.to_owned()]);
        }
        let mut location = path.file_name().unwrap_or_default().to_os_string();
        location.push(".data");
        let data = path.with_file_name(&location);
        let location = location.to_string_lossy();
        let mut at = 0u64;
        let mut tensors = HashMap::new();
        let mut offsets = Vec::new();
        for external in &self.external {
            at = at.next_multiple_of(ALIGNMENT);
            tensors.insert(external.name.as_str(), external.placed_tensor(&location, at));
            offsets.push(at);
            at += external.bytes().len() as u64;
        }
        let model = self.with_tensors(&tensors)?;
        if existing == Existing::Refuse && path.exists() {
            let there = FileError::at("create", path)(io::ErrorKind::AlreadyExists.into());
            return Err(there.into());
        }
        let mut data_file = AtomicFile::create(&data, existing)?;
        write_data(&mut data_file, &self.external, &offsets).map_err(FileError::at("write", &data))?;
        let mut model_file = AtomicFile::create(path, existing)?;
        model_file
            .write_all(model.bytes())
            .map_err(FileError::at("write", path))?;
        if existing == Existing::Replace {
            // An old model must not be seen with new weights: a kill between the next lines leaves none.
            let old = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            match std::fs::remove_file(&old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::at("replace", path)(error).into());
                }
                _ => {}
            }
        }
        data_file.commit()?;
        model_file.commit()?;
        Ok(vec![path.to_owned(), data])
    }
}

fn write_data(file: &mut AtomicFile, external: &[External], offsets: &[u64]) -> io::Result<()> {
    let mut at = 0u64;
    for (external, &offset) in external.iter().zip(offsets) {
        let gap = vec![0; usize::try_from(offset - at).unwrap_or(0)];
        file.write_all(&gap)?;
        file.write_all(external.bytes())?;
        at = offset + external.bytes().len() as u64;
    }
    Ok(())
}
