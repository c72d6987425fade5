//! A folder of cache entries as a whole: what is in it, whether it is sound, what can go, and why something was missed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pth::FileError;
use rayon::prelude::*;
use serde::Serialize;

use super::block::{Block, check_name};
use super::index::RowIndex;
use super::job::{JOBS, Job};
use super::key::{Difference, Key};
use super::manifest::Manifest;
use super::store::{USED, block_names, folder_size, is_in_use};
use crate::error::Error;

/// One entry, from names and headers alone: no row is read.
#[derive(Debug, Serialize)]
pub struct EntryInfo {
    /// Its folder's name.
    pub name: String,
    /// Its key, or why it has none.
    #[serde(flatten)]
    pub key: KeyState,
    /// Rows in its blocks, duplicates included.
    pub n_rows: usize,
    /// Shape of a row, once there is one.
    pub row_shape: Vec<usize>,
    /// Number of blocks.
    pub n_blocks: usize,
    /// Label manifests.
    pub n_manifests: usize,
    /// Bytes of all its files.
    pub n_bytes: u64,
    /// When a job last opened it.
    #[serde(skip)]
    pub last_used: SystemTime,
}

/// What `key.json` says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// The key.
    Key(Box<Key>),
    /// Why it cannot be read.
    Problem(String),
}

/// The entries below a cache folder, the last used first.
///
/// # Errors
/// A folder that cannot be read.
pub fn list_entries(cache: &Path) -> Result<Vec<EntryInfo>, Error> {
    let mut entries = Vec::new();
    for folder in entry_folders(cache)? {
        let (key, dtype) = match Key::open(&folder) {
            Ok(key) => {
                let dtype = key.dtype();
                (KeyState::Key(Box::new(key)), Some(dtype))
            }
            Err(error) => (KeyState::Problem(error.to_string()), None),
        };
        let names = block_names(&folder)?;
        let mut info = EntryInfo {
            name: folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            key,
            n_rows: 0,
            row_shape: Vec::new(),
            n_blocks: names.len(),
            n_manifests: Manifest::list(&folder)?.len(),
            n_bytes: folder_size(&folder)?,
            last_used: last_used(&folder),
        };
        for name in names {
            // A damaged block is `verify`'s to name.
            if let Some(Ok(block)) = dtype.map(|dtype| Block::look(&folder.join(name), dtype)) {
                info.n_rows += block.n_rows();
                info.row_shape = block.row_shape().to_vec();
            }
        }
        entries.push(info);
    }
    entries.sort_by(|a, b| b.last_used.cmp(&a.last_used).then(a.name.cmp(&b.name)));
    Ok(entries)
}

fn last_used(folder: &Path) -> SystemTime {
    let of = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    of(&folder.join(USED))
        .or_else(|_| of(folder))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Folders that hold a `key.json` or a block, in order of names.
fn entry_folders(cache: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(cache).map_err(FileError::at("read", cache))? {
        let path = entry.map_err(FileError::at("read", cache))?.path();
        let is_jobs = path.file_name().is_some_and(|name| name == JOBS);
        if path.is_dir() && !is_jobs && (path.join("key.json").exists() || !block_names(&path)?.is_empty()) {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// A file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in one sentence.
    pub reason: String,
    /// Whether its bytes are not those that were written; otherwise it could not be read, or another version wrote it.
    pub is_damage: bool,
}

/// What [`verify_cache`] saw.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Entries.
    pub n_entries: usize,
    /// Blocks whose every byte was read.
    pub n_blocks: usize,
    /// Distinct rows in sound blocks.
    pub n_rows: usize,
    /// Beyond them, rows that are there again with equal bytes: racing writers leave such.
    pub n_duplicates: usize,
    /// Files whose every byte was read: blocks, keys, manifests, shard markers.
    pub n_files: usize,
    /// Beyond them, rows that are there again with other numbers: another processor, ONNX Runtime or batch size computed them.
    pub n_disagreeing: usize,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Reads every byte of every file of a cache and compares it with the digests.
///
/// # Errors
/// A folder that cannot be read; what is wrong with files is among the problems.
pub fn verify_cache(cache: &Path) -> Result<Verification, Error> {
    let mut seen = Verification::default();
    for folder in entry_folders(cache)? {
        seen.n_entries += 1;
        seen.n_files += 1;
        let key = match Key::open(&folder) {
            Ok(key) => Some(key),
            Err(error) => {
                seen.problems.push(problem(&folder.join("key.json"), &error));
                None
            }
        };
        let names = block_names(&folder)?;
        let blocks: Vec<Result<Option<Block>, Problem>> = names
            .par_iter()
            .map(|name| {
                let path = folder.join(name);
                match &key {
                    Some(key) => Block::open(&path, key.dtype()).map(Some),
                    None => check_name(&path).map(|()| None),
                }
                .map_err(|error| problem(&path, &error))
            })
            .collect();
        let mut rows = RowIndex::default();
        let mut sound: Vec<Block> = Vec::new();
        for (block, name) in blocks.into_iter().zip(&names) {
            seen.n_files += 1;
            match block {
                Ok(None) => seen.n_blocks += 1,
                Ok(Some(block)) => {
                    seen.n_blocks += 1;
                    let path = folder.join(name);
                    compare_rows(&mut seen, &mut rows, &sound, &block, &path);
                    sound.push(block);
                }
                Err(problem) => seen.problems.push(problem),
            }
        }
        seen.n_rows += rows.len();
        for path in Manifest::list(&folder)? {
            seen.n_files += 1;
            if let Err(error) = Manifest::open(&path) {
                seen.problems.push(problem(&path, &error));
            }
        }
    }
    for job in Job::list(cache)? {
        seen.n_files += 1;
        match Job::open(&job) {
            Err(error) => seen.problems.push(problem(&job, &error)),
            Ok(job) => {
                for path in job.marker_files()? {
                    seen.n_files += 1;
                    if let Err(error) = check_name(&path) {
                        seen.problems.push(problem(&path, &error));
                    }
                }
            }
        }
    }
    Ok(seen)
}

/// Adds a block's rows; those that are there already must have equal bytes.
fn compare_rows(seen: &mut Verification, rows: &mut RowIndex, sound: &[Block], block: &Block, path: &Path) {
    let mut repeated = Vec::new();
    let read = rows.check_room(block).and_then(|()| {
        block.for_each_id(|row, id| {
            if let Err(known) = rows.insert(id, (sound.len() as u32, row as u32)) {
                // In this very block perhaps.
                let (of, first) = rows.place_at(known);
                repeated.push((row, of as usize, first as usize));
            }
        })
    });
    if let Err(error) = read {
        seen.problems.push(problem(path, &error));
    }
    for (row, of, first) in repeated {
        let other = sound.get(of).unwrap_or(block);
        match (block.row_bytes(row), other.row_bytes(first)) {
            (Ok(ours), Ok(theirs)) if ours == theirs => seen.n_duplicates += 1,
            (Ok(_), Ok(_)) => seen.n_disagreeing += 1,
            (Err(error), _) | (_, Err(error)) => seen.problems.push(problem(path, &error)),
        }
    }
}

fn problem(path: &Path, error: &Error) -> Problem {
    let is_damage = matches!(error, Error::Damaged { .. });
    let reason = match error {
        Error::BadFile { reason, .. } | Error::Damaged { reason, .. } => reason.clone(),
        other => {
            let mut reason = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                reason = format!("{reason}: {cause}");
                source = cause.source();
            }
            reason
        }
    };
    Problem {
        path: path.to_owned(),
        reason,
        is_damage,
    }
}

/// What [`collect_garbage`] may take away.
#[derive(Debug, Clone, Copy, Default)]
pub struct GarbageOptions {
    /// Entries go, the least recently used first, until the cache is at most this large.
    pub max_bytes: Option<u64>,
    /// Entries go that no job has opened for this long.
    pub unused_for: Option<Duration>,
    /// Damaged blocks and manifests go, so that the next extraction computes their rows again.
    pub damaged: bool,
    /// Nothing is removed; what would be is returned.
    pub dry_run: bool,
}

/// Something that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The file or folder.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
    /// Why it went.
    pub reason: String,
}

/// A temporary file this old belongs to no running writer.
const STALE: Duration = Duration::from_secs(3600);

/// Removes leftovers of killed writers, blocks whose rows are all in other blocks, and what `options` name. All of it is
/// decided before anything goes, so that a dry run tells what a real one does.
///
/// # Errors
/// A folder that cannot be read, a file that cannot be removed.
pub fn collect_garbage(cache: &Path, options: GarbageOptions) -> Result<Vec<Removed>, Error> {
    let planned = Sweep::of(cache, options)?.removed;
    if options.dry_run {
        return Ok(planned);
    }
    let mut removed = Vec::new();
    for item in planned {
        let is_folder = item.path.is_dir();
        // Someone may have opened it since.
        if is_folder && is_in_use(&item.path) {
            continue;
        }
        let done = if is_folder {
            fs::remove_dir_all(&item.path)
        } else {
            fs::remove_file(&item.path)
        };
        match done {
            Ok(()) => removed.push(item),
            // Another collector was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::at("remove", &item.path)(error).into()),
        }
    }
    Ok(removed)
}

/// What is to go, none of it twice.
#[derive(Debug, Default)]
struct Sweep {
    removed: Vec<Removed>,
}

impl Sweep {
    fn of(cache: &Path, options: GarbageOptions) -> Result<Sweep, Error> {
        let mut sweep = Sweep::default();
        let folders = entry_folders(cache)?;
        for folder in folders.iter().chain(&Job::list(cache)?) {
            for path in stale_files(folder)? {
                sweep.add(path, "left by a writer that was killed")?;
            }
        }
        if options.damaged {
            let problems = verify_cache(cache)?.problems.into_iter();
            for problem in problems.filter(|problem| problem.is_damage) {
                // Without its key nobody knows what the rows of an entry are.
                let path = match problem.path.parent() {
                    Some(entry) if problem.path.ends_with("key.json") => entry.to_owned(),
                    _ => problem.path,
                };
                if !is_in_use(&path) {
                    sweep.add(path, &problem.reason)?;
                }
            }
        }
        for folder in &folders {
            for name in redundant_blocks(folder)? {
                sweep.add(folder.join(name), "all its rows are in other blocks")?;
            }
        }
        let mut entries: Vec<(PathBuf, SystemTime)> = folders
            .into_iter()
            .filter(|folder| !is_in_use(folder))
            .map(|folder| {
                let used = last_used(&folder);
                (folder, used)
            })
            .collect();
        // The last used first.
        entries.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        if let Some(unused_for) = options.unused_for {
            let now = SystemTime::now();
            for (folder, used) in &entries {
                if now.duration_since(*used).is_ok_and(|age| age > unused_for) {
                    sweep.add(folder.clone(), "not used for that long")?;
                }
            }
        }
        if let Some(max_bytes) = options.max_bytes {
            let in_all = folder_size(cache)?;
            while in_all.saturating_sub(sweep.n_bytes()) > max_bytes {
                let Some((folder, _)) = entries.pop() else { break };
                sweep.add(folder, "the least recently used, to make room")?;
            }
        }
        Ok(sweep)
    }

    /// Adds a file or a folder; a folder takes the place of what was to go from it.
    fn add(&mut self, path: PathBuf, reason: &str) -> Result<(), Error> {
        if self.removed.iter().any(|known| path.starts_with(&known.path)) {
            return Ok(());
        }
        self.removed.retain(|known| !known.path.starts_with(&path));
        let n_bytes = if path.is_dir() {
            folder_size(&path)?
        } else {
            fs::metadata(&path).map_or(0, |metadata| metadata.len())
        };
        self.removed.push(Removed {
            path,
            n_bytes,
            reason: reason.to_owned(),
        });
        Ok(())
    }

    fn n_bytes(&self) -> u64 {
        self.removed.iter().map(|item| item.n_bytes).sum()
    }
}

fn stale_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let now = SystemTime::now();
    let files = fs::read_dir(folder).map_err(FileError::at("read", folder))?;
    Ok(files
        .flatten()
        .filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.starts_with('.') && name.ends_with(".tmp")
        })
        .filter(|file| {
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > STALE))
        })
        .map(|file| file.path())
        .collect())
}

/// Blocks that add nothing, the small ones first asked: several writers leave some.
fn redundant_blocks(folder: &Path) -> Result<Vec<String>, Error> {
    let Ok(key) = Key::open(folder) else {
        return Ok(Vec::new());
    };
    let mut rows = RowIndex::default();
    // Per distinct row, the blocks that hold it.
    let mut n_holders: Vec<u32> = Vec::new();
    let mut blocks: Vec<(String, Block)> = Vec::new();
    for name in block_names(folder)? {
        // A damaged one must not be what makes a sound one look redundant.
        let Ok(block) = Block::open(&folder.join(&name), key.dtype()) else {
            continue;
        };
        let Ok(own) = distinct_rows(&block, &mut rows) else {
            continue;
        };
        n_holders.resize(rows.len(), 0);
        own.iter().for_each(|&row| n_holders[row] += 1);
        blocks.push((name, block));
    }
    blocks.sort_by(|a, b| a.1.n_rows().cmp(&b.1.n_rows()).then(a.0.cmp(&b.0)));
    let mut redundant = Vec::new();
    for (name, block) in blocks {
        let Ok(own) = distinct_rows(&block, &mut rows) else {
            continue;
        };
        n_holders.resize(rows.len(), 0);
        if own.iter().all(|&row| n_holders[row] > 1) {
            own.iter().for_each(|&row| n_holders[row] -= 1);
            redundant.push(name);
        }
    }
    Ok(redundant)
}

/// The rows of a block, each once, as `rows` counts them; those that are new to it are added.
fn distinct_rows(block: &Block, rows: &mut RowIndex) -> Result<Vec<usize>, Error> {
    let mut own = Vec::with_capacity(block.n_rows());
    rows.check_room(block)?;
    block.for_each_id(|_, id| {
        let next = rows.len();
        // Where a row lies is not asked here: all of them make one run.
        own.push(rows.insert(id, (0, next as u32)).err().unwrap_or(next));
    })?;
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// The other entries of a cache and in what their keys differ from `key`, the nearest first.
///
/// # Errors
/// A folder that cannot be read.
pub fn explain(cache: &Path, key: &Key) -> Result<Vec<(String, Vec<Difference>)>, Error> {
    let mut found = Vec::new();
    if !cache.exists() {
        return Ok(found);
    }
    let own = key.digest();
    for folder in entry_folders(cache)? {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name == own {
            continue;
        }
        if let Ok(other) = Key::open(&folder) {
            found.push((name, key.differences(&other)));
        }
    }
    found.sort_by(|a, b| a.1.len().cmp(&b.1.len()).then(a.0.cmp(&b.0)));
    Ok(found)
}
