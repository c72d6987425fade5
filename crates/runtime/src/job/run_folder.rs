//! The folder of a run: checked before the work, and written whole after it.
//!
//! What a run by mini-batches goes on from after an interruption lies in `unfinished/` inside; the results of an earlier
//! run stay beside it until the new ones are complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing, FileError};
use surgery::{LazyStateDict, OutputFormat, WriteOptions};

use crate::error::Error;
use crate::head::Head;
use crate::history::{EpochScalars, History, METRICS_FILE};
use crate::onnx::Model;

const CONFIG: &str = "config.toml";
const HEAD: &str = "head.safetensors";
const MODEL: &str = "model.onnx";
const UNFINISHED: &str = "unfinished";
/// How the names of TensorBoard's files begin.
const EVENTS: &str = "events.out.tfevents.";
/// All that a run may leave, in the order in which old ones are removed; the settings come first there, and last when new
/// ones are put in place, so that a folder that has them is complete.
const RESULTS: [&str; 12] = [
    CONFIG,
    HEAD,
    "last.safetensors",
    "ledger.jsonl",
    "metrics.json",
    METRICS_FILE,
    MODEL,
    "model.onnx.data",
    "model.pth",
    "model.safetensors",
    "report.html",
    "suspects.csv",
];

/// A run folder, checked before the work and written after it.
pub(super) struct RunFolder {
    path: PathBuf,
    existing: Existing,
}

/// What a run leaves.
#[derive(Default)]
pub(super) struct Results<'r> {
    /// What stands on features as they are given, where the run has such.
    pub(super) head: Option<&'r Head>,
    pub(super) model: Option<&'r Model>,
    /// By the files' names, which end in `.pth` or `.safetensors`.
    pub(super) state_dicts: Vec<(&'static str, &'r LazyStateDict)>,
    /// Names and bytes.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// The place of a run that can be interrupted, locked against a second one.
pub(super) struct Unfinished {
    path: PathBuf,
    /// Held open for its lock.
    _lock: File,
}

/// The history of an unfinished run, opened by its first epoch; what goes wrong is said at the end.
pub(super) struct Lines<'u> {
    folder: &'u Path,
    history: Result<Option<History>, Error>,
}

/// Whether a name in a run folder is that of work, not of results.
fn is_work(name: &str) -> bool {
    name == UNFINISHED || is_staging(name)
}

fn is_staging(name: &str) -> bool {
    name.starts_with(".graftwork-") && name.ends_with(".tmp")
}

/// The names in a folder; none where there is no such folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
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
        let is_empty = names(path).iter().all(|name| is_work(name));
        let same = fs::read_to_string(path.join(CONFIG)).is_ok_and(|old| old == settings);
        if !is_empty && !same && existing == Existing::Refuse {
            let what = if path.join(CONFIG).exists() {
                "a run of other settings"
            } else {
                "files that are no run"
            };
            return Err(exists(what));
        }
        Ok(RunFolder {
            path: path.to_owned(),
            existing,
        })
    }

    /// The place for what an interrupted run of these settings goes on from.
    ///
    /// # Errors
    /// [`Error::Exists`] where an unfinished run of other settings lies there and may not be replaced; [`Error::Usage`]
    /// where another process is at it.
    pub(super) fn unfinished(&self, settings: &str) -> Result<Unfinished, Error> {
        let path = self.path.join(UNFINISHED);
        fs::create_dir_all(&path).map_err(FileError::at("create", &path))?;
        let lock = path.join("lock");
        let file = File::create(&lock).map_err(FileError::at("create", &lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let text = format!("another process is training in `{}`", self.path.display());
                return Err(Error::Usage(text));
            }
            // A file system without locks.
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(fs::TryLockError::Error(error)) => {
                return Err(FileError::at("lock", &lock)(error).into());
            }
        }
        let config = path.join(CONFIG);
        let old = fs::read_to_string(&config);
        let is_same = old.as_ref().is_ok_and(|old| old == settings);
        if !is_same {
            if old.is_ok() && self.existing == Existing::Refuse {
                return Err(Error::Exists {
                    path: self.path.clone(),
                    what: "an unfinished run of other settings".to_owned(),
                });
            }
            for name in names(&path).iter().filter(|name| *name != "lock") {
                let old = path.join(name);
                fs::remove_file(&old).map_err(FileError::at("remove", &old))?;
            }
            let mut file = AtomicFile::create(&config, Existing::Replace)?;
            file.write_all(settings.as_bytes())
                .map_err(FileError::at("write", &config))?;
            file.commit()?;
        }
        Ok(Unfinished { path, _lock: file })
    }

    /// Finishes all files in a folder beside them first, then gives them their names. A folder that is replaced loses the
    /// results that the new run does not have, and is without its `config.toml` until it is complete.
    pub(super) fn write(
        &self,
        mut results: Results<'_>,
        unfinished: Option<Unfinished>,
    ) -> Result<(), Error> {
        if let Some(unfinished) = &unfinished {
            results.files.extend(unfinished.lines()?);
        }
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
        let result = self.stage_and_move(&staging, &results);
        let _ = fs::remove_dir_all(&staging);
        result?;
        // All that is left of this run, and of others that were killed.
        if let Some(unfinished) = &unfinished {
            let _ = fs::remove_file(unfinished.checkpoint());
        }
        drop(unfinished);
        for name in names(&self.path).iter().filter(|name| is_staging(name)) {
            let _ = fs::remove_dir_all(self.path.join(name));
        }
        Ok(())
    }

    fn stage_and_move(&self, staging: &Path, results: &Results<'_>) -> Result<(), Error> {
        fs::create_dir_all(staging).map_err(FileError::at("create", &self.path))?;
        if let Some(head) = results.head {
            head.save(&staging.join(HEAD))?;
        }
        if let Some(model) = results.model {
            model.save(&staging.join(MODEL), Existing::Replace)?;
        }
        for (name, tensors) in &results.state_dicts {
            let path = staging.join(name);
            let format = OutputFormat::of(&path).expect("a state dict's name ends as one's does");
            surgery::write(&path, tensors, &WriteOptions::new(format))?;
        }
        for (name, bytes) in &results.files {
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
            let events = |folder: &Path| {
                let names = names(folder).into_iter();
                names.filter(|name| name.starts_with(EVENTS)).collect::<Vec<_>>()
            };
            let results = RESULTS.map(str::to_owned);
            for name in results.iter().chain(&events(&self.path)) {
                let (new, old) = (staging.join(name), self.path.join(name));
                if (name == CONFIG || !new.exists()) && old.exists() {
                    fs::remove_file(&old).map_err(FileError::at("remove", &old))?;
                }
            }
            for name in events(staging).iter().chain(results.iter().rev()) {
                let (new, old) = (staging.join(name), self.path.join(name));
                if new.exists() {
                    fs::rename(&new, &old).map_err(FileError::at("create", &old))?;
                }
            }
        } else {
            fs::rename(staging, &self.path).map_err(FileError::at("create", &self.path))?;
        }
        // Makes the names durable where the file system can.
        if let Ok(folder) = File::open(&self.path) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Unfinished {
    /// The file that the trainer keeps its state in.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// What is said of each epoch.
    pub(super) fn history(&self) -> Lines<'_> {
        Lines {
            folder: &self.path,
            history: Ok(None),
        }
    }

    /// The files of the history, with their names.
    fn lines(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let is_line = |name: &String| name == METRICS_FILE || name.starts_with(EVENTS);
        let names = names(&self.path).into_iter().filter(is_line);
        names
            .map(|name| {
                let path = self.path.join(&name);
                let bytes = fs::read(&path).map_err(FileError::at("read", &path))?;
                Ok((name, bytes))
            })
            .collect()
    }
}

/// Without a state to go on from there is nothing worth keeping: the run is complete, or it never began.
impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.checkpoint().exists() {
            return;
        }
        let _ = fs::remove_dir_all(&self.path);
        // Goes only where it is empty: a run folder that was made for this.
        if let Some(run) = self.path.parent() {
            let _ = fs::remove_dir(run);
        }
    }
}

impl Lines<'_> {
    /// Adds an epoch. The first one says from where on earlier lines are replaced.
    pub(super) fn append(&mut self, epoch: EpochScalars) {
        let Ok(history) = &mut self.history else { return };
        let result = match history {
            Some(history) => history.append(epoch),
            None => History::open(self.folder, epoch.epoch).and_then(|mut opened| {
                opened.append(epoch)?;
                *history = Some(opened);
                Ok(())
            }),
        };
        if let Err(error) = result {
            self.history = Err(error);
        }
    }

    /// What went wrong on the way, if something did.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.history.map(|_| ())
    }
}
