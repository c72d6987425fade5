//! The folder of a run: checked before the work, and written whole after it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing, FileError};

use crate::error::Error;
use crate::head::Head;
use crate::onnx::Model;

/// A run folder, checked before the work and written after it.
pub(super) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Whether the results may go to `path`: it is new, empty, or holds a run of the same settings.
    pub(super) fn open(path: &Path, settings: &str, existing: Existing) -> Result<RunFolder, Error> {
        let exists = |what: &str| Error::Exists {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        if path.is_file() {
            return Err(exists("a file"));
        }
        let is_empty = fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
        let same = fs::read_to_string(path.join("config.toml")).is_ok_and(|old| old == settings);
        if !is_empty && !same && existing == Existing::Refuse {
            let what = if path.join("config.toml").exists() {
                "a run of other settings"
            } else {
                "files that are no run"
            };
            return Err(exists(what));
        }
        Ok(RunFolder {
            path: path.to_owned(),
        })
    }

    /// Finishes all files in a folder beside them first, then gives them their names. A folder that is replaced loses the
    /// results that the new run does not have, and is without its `config.toml` until it is complete.
    pub(super) fn write(
        &self,
        head: &Head,
        model: Option<&Model>,
        files: &[(&str, Vec<u8>)],
    ) -> Result<(), Error> {
        let name = format!(".graftwork-{}.tmp", std::process::id());
        // In the folder itself where there is one: it may be a mount, into which no rename leads.
        let staging = if self.path.is_dir() {
            self.path.join(name)
        } else {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            fs::create_dir_all(parent).map_err(FileError::at("create", parent))?;
            parent.join(name)
        };
        let result = self.stage_and_move(&staging, head, model, files);
        let _ = fs::remove_dir_all(&staging);
        result
    }

    fn stage_and_move(
        &self,
        staging: &Path,
        head: &Head,
        model: Option<&Model>,
        files: &[(&str, Vec<u8>)],
    ) -> Result<(), Error> {
        const MODEL: &str = "model.onnx";
        const HEAD: &str = "head.safetensors";
        const CONFIG: &str = "config.toml";
        const RESULTS: [&str; 7] = [
            CONFIG,
            HEAD,
            "ledger.jsonl",
            "metrics.json",
            MODEL,
            "model.onnx.data",
            "report.html",
        ];
        fs::create_dir_all(staging).map_err(FileError::at("create", &self.path))?;
        head.save(&staging.join(HEAD))?;
        if let Some(model) = model {
            model.save(&staging.join(MODEL), Existing::Replace)?;
        }
        for (name, bytes) in files {
            let path = self.path.join(name);
            // Errors speak of the file that was wanted, not of the staging one.
            let mut file =
                AtomicFile::create(&staging.join(name), Existing::Replace).map_err(|error| FileError {
                    path: path.clone(),
                    ..error
                })?;
            file.write_all(bytes).map_err(FileError::at("write", &path))?;
            file.commit().map_err(|error| FileError {
                path: path.clone(),
                ..error
            })?;
        }
        if self.path.is_dir() {
            for name in RESULTS {
                let (new, old) = (staging.join(name), self.path.join(name));
                if (name == CONFIG || !new.exists()) && old.exists() {
                    fs::remove_file(&old).map_err(FileError::at("remove", &old))?;
                }
            }
            for name in RESULTS.into_iter().rev() {
                let (new, old) = (staging.join(name), self.path.join(name));
                if new.exists() {
                    fs::rename(&new, &old).map_err(FileError::at("create", &old))?;
                }
            }
        } else {
            fs::rename(staging, &self.path).map_err(FileError::at("create", &self.path))?;
        }
        // Makes the names durable where the file system can.
        if let Ok(folder) = fs::File::open(&self.path) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}
