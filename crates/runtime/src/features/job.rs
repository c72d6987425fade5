//! What the parts of a job agree on, and which of them are done.
//!
//! `CACHE/jobs/<job>/job.json` is made by the first part and compared by the others; a part writes its marker last, with
//! the samples it has done.

use std::fs;
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing, FileError};
use serde::{Deserialize, Serialize};

use super::block::check_name;
use super::key::digest_of;
use super::manifest::{Header, Line, Manifest, save_lines, save_manifest};
use super::shard::Shard;
use super::store::Store;
use crate::data::Split;
use crate::error::Error;

/// Where jobs lie in a cache.
pub(super) const JOBS: &str = "jobs";
const MARKER: &str = "done-";

/// What all parts of a job must agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    format: u32,
    /// Cache entries that are filled.
    pub entries: Vec<String>,
    /// Per entry those of its random views.
    pub views: Vec<Vec<String>>,
    /// What the samples are read from.
    pub source: PathBuf,
    /// How many samples there are.
    pub n: usize,
    /// Digest of their names in order.
    pub listing: String,
    /// Digest of their labels and splits in order.
    pub labels: String,
    /// How many parts.
    pub shards: usize,
    /// Class names in order.
    pub classes: Vec<String>,
}

impl Plan {
    /// The plan of a job on `n` samples of `source`.
    pub fn new(
        (entries, views): (Vec<String>, Vec<Vec<String>>),
        source: &Path,
        (n, listing, labels): (usize, blake3::Hash, blake3::Hash),
        classes: &[String],
        shard: Shard,
    ) -> Plan {
        // However the path was written, and from wherever: a pattern of tars is no path that could be resolved.
        let source = fs::canonicalize(source)
            .or_else(|_| std::path::absolute(source))
            .unwrap_or_else(|_| source.to_owned());
        Plan {
            format: 1,
            entries,
            views,
            source,
            n,
            listing: listing.to_hex().to_string(),
            labels: labels.to_hex().to_string(),
            shards: shard.count,
            classes: classes.to_vec(),
        }
    }

    /// The same entries and the same source are the same job.
    fn name(&self) -> String {
        let identity =
            serde_json::json!({ "entries": self.entries, "views": self.views, "source": self.source });
        digest_of(identity.to_string().as_bytes())[..16].to_owned()
    }

    fn digest(&self) -> String {
        digest_of(&serde_json::to_vec(self).expect("plain data is JSON"))
    }

    /// In what another plan of the same job differs, in words.
    fn disagreement(&self, begun: &Plan) -> Option<String> {
        if self.shards != begun.shards {
            return Some(format!(
                "it was begun with {} shards, and this is one of {}",
                begun.shards, self.shards
            ));
        }
        if self.n != begun.n {
            return Some(format!(
                "its source had {} samples when it was begun, and has {} now",
                begun.n, self.n
            ));
        }
        if self.listing != begun.listing {
            return Some(
                "its source had samples of other names, or in another order, when it was begun".to_owned(),
            );
        }
        if self.classes != begun.classes {
            return Some("its source had other classes when it was begun".to_owned());
        }
        if self.labels != begun.labels {
            return Some("its samples had other labels or another split when it was begun".to_owned());
        }
        (self != begun).then(|| "it was begun by another version of graftwork".to_owned())
    }
}

/// `job.json`: a plan and its digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    plan: Plan,
    blake3: String,
}

/// The head of a marker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkerHead {
    shard: usize,
    n: usize,
}

/// A job in a cache.
#[derive(Debug)]
pub struct Job {
    folder: PathBuf,
    plan: Plan,
}

/// How far a job is.
#[derive(Debug, Clone, Serialize)]
pub struct JobStatus {
    /// Its name.
    pub job: String,
    /// What the samples are read from.
    pub source: PathBuf,
    /// Parts in all.
    pub shards: usize,
    /// Parts with a marker whose rows can still be there.
    pub done: usize,
    /// Samples in all.
    pub n: usize,
    /// Samples of the parts that are done.
    pub n_done: usize,
    /// Of those, samples that were left out.
    pub n_left_out: usize,
    /// Parts that are to be run, in order: those without a marker, and all of them where an entry is absent.
    pub missing: Vec<usize>,
    /// Entries of the job, those of its views among them, that are not in the cache any more.
    pub absent_entries: Vec<String>,
}

impl Job {
    /// Begins a job, or joins it.
    ///
    /// # Errors
    /// [`Error::JobDiffers`] where it was begun with something else; [`Error::Damaged`] for its `job.json`.
    pub fn join(cache: &Path, plan: Plan) -> Result<Job, Error> {
        let folder = cache.join(JOBS).join(plan.name());
        fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
        let path = folder.join("job.json");
        let sealed = Sealed {
            blake3: plan.digest(),
            plan: plan.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&sealed).expect("plain data is JSON");
        bytes.push(b'\n');
        match create_new(&path, &bytes) {
            Ok(()) => return Ok(Job { folder, plan }),
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        let begun = Job::open(&folder)?;
        match plan.disagreement(&begun.plan) {
            None => Ok(begun),
            Some(reason) => Err(Error::JobDiffers { path: folder, reason }),
        }
    }

    /// Opens a job by its folder.
    ///
    /// # Errors
    /// [`Error::Damaged`] for its `job.json`.
    pub fn open(folder: &Path) -> Result<Job, Error> {
        let path = folder.join("job.json");
        let bytes = fs::read(&path).map_err(FileError::at("read", &path))?;
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let mut again = serde_json::to_vec_pretty(&sealed).expect("plain data is JSON");
        again.push(b'\n');
        if sealed.plan.digest() != sealed.blake3 || again != bytes {
            return Err(damaged("its content does not match its checksum".to_owned()));
        }
        Ok(Job {
            folder: folder.to_owned(),
            plan: sealed.plan,
        })
    }

    /// Folders of the jobs in a cache, in order of names.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(cache: &Path) -> Result<Vec<PathBuf>, Error> {
        let folder = cache.join(JOBS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(FileError::at("read", &folder)(error).into()),
        };
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.join("job.json").exists())
            .collect();
        found.sort();
        Ok(found)
    }

    /// Its name.
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What its parts agreed on.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Marks a part as done: the last thing it does.
    ///
    /// # Errors
    /// The file system's.
    pub fn mark_done<'l, I: Iterator<Item = Line<'l>>>(
        &self,
        shard: Shard,
        lines: impl Fn() -> I,
    ) -> Result<(), Error> {
        let prefix = marker_prefix(shard.index);
        let head = MarkerHead {
            shard: shard.index,
            n: shard.range(self.plan.n).len(),
        };
        // Two runs of one part that see the same write the same file. Where they do not, what lies longest goes.
        let written = save_lines(&self.folder, &prefix, &head, lines)?;
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let since = modified(&written);
        for old in self.markers_of(shard.index)? {
            if old != written && modified(&old) < since {
                match fs::remove_file(&old) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(FileError::at("remove", &old)(error).into());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// All marker files.
    pub(super) fn marker_files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.folder)
            .map_err(FileError::at("read", &self.folder))?
            .flatten()
            .filter(|file| file.file_name().to_string_lossy().starts_with(MARKER))
            .map(|file| file.path())
            .collect();
        found.sort();
        Ok(found)
    }

    fn markers_of(&self, index: usize) -> Result<Vec<PathBuf>, Error> {
        let prefix = marker_prefix(index);
        let mut files = self.marker_files()?;
        files.retain(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(&prefix)
        });
        // The newest last.
        files.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        Ok(files)
    }

    /// The samples of a part that is done, as a manifest; none where there is no marker.
    fn part(&self, index: usize) -> Result<Option<Manifest>, Error> {
        let Some(path) = self.markers_of(index)?.pop() else {
            return Ok(None);
        };
        check_name(&path)?;
        let text = fs::read_to_string(&path).map_err(FileError::at("read", &path))?;
        let bad = |line: usize, reason: String| Error::BadFile {
            path: path.clone(),
            reason: format!("line {line}: {reason}"),
        };
        let mut texts = text.lines();
        let head: MarkerHead = serde_json::from_str(texts.next().unwrap_or_default())
            .map_err(|error| bad(1, error.to_string()))?;
        let lines = texts
            .enumerate()
            .map(|(at, line)| serde_json::from_str(line).map_err(|error| bad(at + 2, error.to_string())))
            .collect::<Result<Vec<Line<'_>>, Error>>()?;
        let expected = Shard {
            index,
            count: self.plan.shards,
        }
        .range(self.plan.n)
        .len();
        if head.shard != index || lines.len() != expected {
            return Err(bad(
                1,
                format!("{} samples, where the shard has {expected}", lines.len()),
            ));
        }
        let header = Header::new(&self.plan.source, &self.plan.classes, Vec::new(), lines.len());
        Ok(Some(Manifest::new(header, lines.into_iter())))
    }

    /// Entries of the job that are not in its cache.
    fn absent_entries(&self) -> Vec<String> {
        let cache = self.folder.ancestors().nth(2).unwrap_or(Path::new(""));
        let views = self.plan.views.iter().flatten();
        let names = self.plan.entries.iter().chain(views);
        names
            .filter(|name| !cache.join(name).join("key.json").exists())
            .cloned()
            .collect()
    }

    /// How far the job is. An entry that was removed since takes the rows of all parts with it.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a marker.
    pub fn status(&self) -> Result<JobStatus, Error> {
        let mut status = JobStatus {
            job: self.name(),
            source: self.plan.source.clone(),
            shards: self.plan.shards,
            done: 0,
            n: self.plan.n,
            n_done: 0,
            n_left_out: 0,
            missing: Vec::new(),
            absent_entries: self.absent_entries(),
        };
        if !status.absent_entries.is_empty() {
            status.missing.extend(0..self.plan.shards);
            return Ok(status);
        }
        for index in 0..self.plan.shards {
            match self.part(index)? {
                None => status.missing.push(index),
                Some(part) => {
                    status.done += 1;
                    status.n_done += part.len();
                    status.n_left_out += part.lines().filter(|line| line.id.is_none()).count();
                }
            }
        }
        Ok(status)
    }

    /// Puts the parts together: checks that every part is done and every row is there, and writes the label manifest that
    /// one process would have written. Returns the entries' folders and the manifest in the first of them.
    ///
    /// # Errors
    /// [`Error::JobUnfinished`] with the parts that are missing; [`Error::Damaged`]; [`Error::Features`] for
    /// a row that is not there.
    pub fn finalize(&self, cache: &Path) -> Result<Finalized, Error> {
        let mut whole = Manifest::new(
            Header::new(&self.plan.source, &self.plan.classes, Vec::new(), self.plan.n),
            std::iter::empty(),
        );
        let mut missing = Vec::new();
        for index in 0..self.plan.shards {
            match self.part(index)? {
                None => missing.push(index),
                Some(part) => whole.extend(&part),
            }
        }
        if !missing.is_empty() {
            return Err(Error::JobUnfinished {
                path: self.folder.clone(),
                missing,
                shards: self.plan.shards,
            });
        }
        let mut entries = Vec::new();
        let mut manifest = PathBuf::new();
        for (name, views) in self.plan.entries.iter().zip(&self.plan.views) {
            whole.header.views = views.clone();
            let store = Store::open_entry(&cache.join(name))?;
            for line in whole.lines() {
                if line.id.is_some_and(|id| !store.contains(&id)) {
                    let text = format!(
                        "the row of `{}` is not in `{}`",
                        line.name,
                        store.folder().display()
                    );
                    return Err(Error::Features(text));
                }
            }
            for view in views {
                let store = Store::open_entry(&cache.join(view))?;
                let mut train = whole.lines().filter(|line| line.split == Split::Train);
                if let Some(line) = train.find(|line| line.id.is_some_and(|id| !store.contains(&id))) {
                    let text = format!(
                        "a view of `{}` is not in `{}`",
                        line.name,
                        store.folder().display()
                    );
                    return Err(Error::Features(text));
                }
            }
            let path = save_manifest(store.folder(), &whole.header, || whole.lines())?;
            if entries.is_empty() {
                manifest = path;
            }
            entries.push(store.folder().to_owned());
        }
        let n_left_out = whole.lines().filter(|line| line.id.is_none()).count();
        Ok(Finalized {
            entries,
            manifest,
            n: whole.len(),
            n_left_out,
        })
    }
}

/// What [`Job::finalize`] made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finalized {
    /// Folders of the entries.
    pub entries: Vec<PathBuf>,
    /// The label manifest in the first.
    pub manifest: PathBuf,
    /// Samples.
    pub n: usize,
    /// Of those, left out.
    pub n_left_out: usize,
}

fn marker_prefix(index: usize) -> String {
    format!("{MARKER}{index:05}-")
}

fn create_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    use std::io::Write;
    let mut file = AtomicFile::create(path, Existing::Refuse)?;
    file.write_all(bytes).map_err(FileError::at("write", path))?;
    file.commit()
}
