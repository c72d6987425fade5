//! A cache entry: blocks of rows that appear whole or not at all, and an index of them.
//!
//! A block is never changed, so that any number of writers can add some without a lock, and an interruption loses at most
//! the block that was being filled. Rows are found by the BLAKE3 digest of what they were made of (a picture's bytes):
//! renaming or relabelling changes nothing.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use etcetera::BaseStrategy;
use pth::{AtomicFile, Existing, FileError};
use rayon::prelude::*;

use super::block::{Block, ENDING, PREFIX, Rows};
use super::index::RowIndex;
use super::key::{FeatureType, Key};
use super::matrix::{Features, Piece};
use crate::error::Error;

/// BLAKE3 of what a row was made of.
pub type RowId = [u8; 32];

/// Where cache entries go when the caller names no folder: `graftwork/features` in the user's cache folder
/// (`$XDG_CACHE_HOME` or `~/.cache` on Linux).
///
/// # Errors
/// [`Error::Usage`] where the user has no home folder.
pub fn default_cache() -> Result<PathBuf, Error> {
    let strategy = etcetera::choose_base_strategy()
        .map_err(|error| Error::Usage(format!("the user's cache folder is unknown ({error}); name one")))?;
    Ok(strategy.cache_dir().join("graftwork").join("features"))
}

/// How much more a cache may grow.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// What `cache` may grow until all its files together have `limit` bytes.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn new(cache: &Path, limit: u64) -> Result<Budget, Error> {
        Ok(Budget {
            limit,
            used: AtomicU64::new(folder_size(cache)?),
        })
    }

    /// Bytes that are left.
    pub(crate) fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Takes `n_bytes`; other processes that write at the same time are not seen.
    fn take(&self, cache: &Path, n_bytes: u64) -> Result<(), Error> {
        if self.used.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes <= self.limit {
            return Ok(());
        }
        Err(Error::CacheFull {
            path: cache.to_owned(),
            limit: self.limit,
        })
    }
}

/// Bytes of all files below a folder; 0 where there is none.
pub(super) fn folder_size(folder: &Path) -> Result<u64, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(FileError::at("read", folder)(error).into()),
    };
    let mut n_bytes = 0;
    for entry in entries {
        let entry = entry.map_err(FileError::at("read", folder))?;
        // What another process removes meanwhile counts nothing.
        let Ok(metadata) = entry.metadata() else { continue };
        n_bytes += if metadata.is_dir() {
            folder_size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(n_bytes)
}

/// An open cache entry.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    dtype: FeatureType,
    blocks: Vec<Block>,
    names: HashSet<String>,
    rows: RowIndex,
    row_shape: Option<Vec<usize>>,
    /// Locked as long as the entry is open, so that `gc` leaves it; where a file system has no locks nothing is lost but
    /// that.
    _in_use: Option<fs::File>,
}

impl Store {
    /// Opens the entry of `key` below `cache`, making it where it is not there yet.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the file.
    pub fn open(cache: &Path, key: &Key) -> Result<Store, Error> {
        let folder = cache.join(key.digest());
        fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
        let described = folder.join("key.json");
        if !described.exists() {
            write_whole(&described, &key.to_bytes())?;
        }
        Store::open_entry(&folder)
    }

    /// Opens an entry by its folder: every byte of its key and its blocks is checked.
    ///
    /// # Errors
    /// As [`Store::open`], and where the folder is no entry.
    pub fn open_entry(folder: &Path) -> Result<Store, Error> {
        let key = Key::open(folder)?;
        // What `cache gc` goes by; an entry that may not be written to is used all the same.
        let in_use = fs::File::create(folder.join(USED)).ok();
        if let Some(file) = &in_use {
            let _ = file.lock_shared();
        }
        let mut store = Store {
            _in_use: in_use,
            folder: folder.to_owned(),
            dtype: key.dtype(),
            blocks: Vec::new(),
            names: HashSet::new(),
            rows: RowIndex::default(),
            row_shape: None,
        };
        store.refresh()?;
        Ok(store)
    }

    /// Adds the blocks that were not there when the entry was opened, by this process or another.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn refresh(&mut self) -> Result<(), Error> {
        let mut names = block_names(&self.folder)?;
        names.retain(|name| !self.names.contains(name));
        let dtype = self.dtype;
        let blocks = names
            .par_iter()
            .map(|name| {
                let path = self.folder.join(name);
                match Block::open(&path, dtype) {
                    // `gc` has found its rows in other blocks meanwhile.
                    Err(_) if !path.exists() => Ok(None),
                    opened => opened.map(Some),
                }
            })
            .collect::<Result<Vec<Option<Block>>, Error>>()?;
        for (block, name) in blocks.into_iter().zip(names) {
            if let Some(block) = block {
                self.add(block, name)?;
            }
        }
        Ok(())
    }

    /// The entry's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The entry's name: its key's digest.
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Rows in the entry; one that several blocks hold counts once.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// The number type of the rows.
    pub fn dtype(&self) -> FeatureType {
        self.dtype
    }

    /// The shape of a row, once there is one.
    pub fn row_shape(&self) -> Option<&[usize]> {
        self.row_shape.as_deref()
    }

    /// D, the numbers of a row, once there is one.
    pub fn n_features(&self) -> Option<usize> {
        self.row_shape.as_ref().map(|shape| shape.iter().product())
    }

    /// Whether there is a row of that id.
    pub fn contains(&self, id: &RowId) -> bool {
        self.rows.contains(id)
    }

    /// Block and row of an id, none where there is no such row.
    pub(super) fn place(&self, id: &RowId) -> Option<(u32, u32)> {
        self.rows.place(id)
    }

    /// The rows of every block, mapped where they lie.
    ///
    /// # Errors
    /// A block's file cannot be read.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, Error> {
        self.blocks.iter().map(Block::piece).collect()
    }

    /// The rows of these ids, in order, where they lie; `name` is how an error calls one.
    ///
    /// # Errors
    /// [`Error::Features`] where one is not there or not finite.
    pub fn features(&self, ids: &[RowId], name: impl Fn(usize) -> String) -> Result<Features, Error> {
        let mut picked = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            let place = self.place(id);
            picked.push(
                place.ok_or_else(|| Error::Features(format!("{} is not in the cache entry", name(at))))?,
            );
        }
        Features::picked(
            self.pieces()?.into(),
            picked,
            self.n_features().unwrap_or(1),
            name,
        )
    }

    /// Makes rows durable as one block, which [`refresh`](Store::refresh) then adds to the index. Takes `&self`, so that
    /// readers need not wait for the disk.
    ///
    /// # Errors
    /// The file system's; [`Error::CacheFull`]. Nothing is half-written.
    pub(super) fn write_block(&self, rows: &Rows, note: &str, budget: Option<&Budget>) -> Result<(), Error> {
        let (name, bytes) = rows.to_file(note);
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(());
        }
        if let Some(budget) = budget {
            budget.take(self.folder.parent().unwrap_or(&self.folder), bytes.len() as u64)?;
        }
        Ok(write_whole(&path, &bytes)?)
    }

    fn add(&mut self, block: Block, name: String) -> Result<(), Error> {
        let path = self.folder.join(&name);
        let shape = block.row_shape();
        if *self.row_shape.get_or_insert_with(|| shape.to_vec()) != shape {
            let known = self.row_shape.as_deref().unwrap_or_default();
            return Err(bad(
                &path,
                format!("rows of shape {shape:?} among rows of {known:?}"),
            ));
        }
        let block_idx = u32::try_from(self.blocks.len())
            .map_err(|_| bad(&path, "more blocks than an entry's index can count"))?;
        self.rows.check_room(&block)?;
        let rows = &mut self.rows;
        block.for_each_id(|row, id| {
            // The first block that has a row gives it.
            let _ = rows.insert(id, (block_idx, row as u32));
        })?;
        self.names.insert(name);
        self.blocks.push(block);
        Ok(())
    }
}

/// Its time of change is when the entry was last used.
pub(super) const USED: &str = "used";

/// Whether a process has the entry open.
pub(super) fn is_in_use(folder: &Path) -> bool {
    let file = fs::File::options().write(true).open(folder.join(USED));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// Names of an entry's blocks in order.
pub(super) fn block_names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
        let entry = entry.map_err(FileError::at("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && name.ends_with(ENDING) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path, Existing::Replace)?;
    file.write_all(bytes).map_err(FileError::at("write", path))?;
    file.commit()
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadFile {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
