//! A cache entry: blocks of rows, each a small safetensors file that appears whole or not at all.
//!
//! A block is named by the digest of its content and carries that digest, so that any number of writers can add blocks
//! without a lock, a damaged block is noticed when it is read, and an interruption loses at most one block.
//! Rows are found by the BLAKE3 digest of the picture's bytes: renaming or relabelling a picture changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use pth::{AtomicFile, DType, Existing, FileError, StateDict, Tensor};
use rayon::prelude::*;

use super::key::Key;
use crate::error::Error;

/// BLAKE3 of a picture's file.
pub type RowId = [u8; 32];

const DIGEST: &str = "blake3";

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

/// An open cache entry.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    blocks: Vec<Block>,
    rows: HashMap<RowId, (usize, usize)>,
    n_features: Option<usize>,
}

#[derive(Debug)]
struct Block {
    features: Tensor,
    ids: Vec<RowId>,
}

impl Store {
    /// Opens the entry of `key` below `cache`, making it where it is not there yet.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a damaged block, which is named.
    pub fn open(cache: &Path, key: &Key) -> Result<Store, Error> {
        let folder = cache.join(key.digest());
        fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
        let described = folder.join("key.json");
        if !described.exists() {
            let text = serde_json::to_vec_pretty(key).expect("plain data is JSON");
            write_whole(&described, &text)?;
        }
        Store::open_entry(&folder)
    }

    /// Opens an entry by its folder.
    ///
    /// # Errors
    /// As [`Store::open`], and where the folder is no entry.
    pub fn open_entry(folder: &Path) -> Result<Store, Error> {
        if !folder.join("key.json").is_file() {
            return Err(bad(
                folder,
                "this is no feature cache entry: it holds no `key.json`",
            ));
        }
        let mut names: Vec<PathBuf> = fs::read_dir(folder)
            .map_err(FileError::at("read", folder))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("block-") && name.ends_with(".safetensors")
            })
            .collect();
        names.sort();
        let blocks = names
            .par_iter()
            .map(|path| read_block(path))
            .collect::<Result<Vec<Block>, Error>>()?;
        let mut store = Store {
            folder: folder.to_owned(),
            blocks: Vec::new(),
            rows: HashMap::new(),
            n_features: None,
        };
        for (block, path) in blocks.into_iter().zip(&names) {
            store.add(block, path)?;
        }
        Ok(store)
    }

    /// The entry's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Rows in the entry.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// D, once there is a row.
    pub fn n_features(&self) -> Option<usize> {
        self.n_features
    }

    /// Whether there is a row for a picture.
    pub fn contains(&self, id: &RowId) -> bool {
        self.rows.contains_key(id)
    }

    /// Appends the row of a picture to `into`; `false` where there is none.
    ///
    /// # Errors
    /// The block's file went away.
    pub fn read(&self, id: &RowId, into: &mut Vec<f32>) -> Result<bool, Error> {
        let (Some(&(block_idx, row)), Some(n_features)) = (self.rows.get(id), self.n_features) else {
            return Ok(false);
        };
        let block = &self.blocks[block_idx];
        let bytes = block
            .features
            .to_bytes()
            .map_err(|error| bad(&self.folder, error.to_string()))?;
        let start = row * n_features * 4;
        let row = bytes[start..start + n_features * 4].chunks_exact(4);
        into.extend(row.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four"))));
        Ok(true)
    }

    /// Makes rows durable as one block, which [`load`](Store::load) then adds to the index. Takes `&self`, so that readers
    /// need not wait for the disk.
    ///
    /// # Errors
    /// The file system's; nothing is half-written.
    pub fn write_block(&self, ids: &[RowId], features: &[f32]) -> Result<PathBuf, Error> {
        let n_features = features.len() / ids.len().max(1);
        let feature_bytes: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
        let id_bytes = ids.concat();
        let digest = digest(&id_bytes, &feature_bytes);
        let path = self.folder.join(format!("block-{}.safetensors", &digest[..16]));
        let tensor = |dtype, shape: &[usize], bytes| {
            Tensor::from_bytes(dtype, shape, bytes).expect("the shape is the number of values")
        };
        let mut tensors = StateDict::new();
        tensors.insert(
            "features",
            tensor(DType::Float32, &[ids.len(), n_features], feature_bytes),
        );
        tensors.insert("ids", tensor(DType::Uint8, &[ids.len(), 32], id_bytes));
        let metadata = BTreeMap::from([(DIGEST.to_owned(), digest)]);
        surgery::save_safetensors(&path, &tensors, &metadata, Existing::Replace)?;
        Ok(path)
    }

    /// Adds a block's rows to the index; the rows themselves stay in the file.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn load(&mut self, block: &Path) -> Result<(), Error> {
        self.add(read_block(block)?, block)
    }

    fn add(&mut self, block: Block, path: &Path) -> Result<(), Error> {
        let n_features = block.features.shape()[1];
        if *self.n_features.get_or_insert(n_features) != n_features {
            let reason = format!(
                "rows of {n_features} numbers among rows of {}",
                self.n_features.unwrap_or(0)
            );
            return Err(bad(path, reason));
        }
        let block_idx = self.blocks.len();
        for (row, id) in block.ids.iter().enumerate() {
            self.rows.entry(*id).or_insert((block_idx, row));
        }
        self.blocks.push(block);
        Ok(())
    }
}

pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    use std::io::Write;
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

fn digest(ids: &[u8], features: &[u8]) -> String {
    blake3::Hasher::new()
        .update(ids)
        .update(features)
        .finalize()
        .to_hex()
        .to_string()
}

fn read_block(path: &Path) -> Result<Block, Error> {
    let (tensors, metadata) = surgery::open_safetensors(path)?;
    let part = |name: &str| {
        tensors
            .get(name)
            .ok_or_else(|| bad(path, format!("a cache block without `{name}`")))
    };
    let (features, ids) = (part("features")?, part("ids")?);
    let shapes_agree = match (features.shape(), ids.shape()) {
        ([n_rows, _], [n_ids, 32]) => n_rows == n_ids,
        _ => false,
    };
    if features.dtype() != DType::Float32 || ids.dtype() != DType::Uint8 || !shapes_agree {
        return Err(bad(path, "a cache block of another kind"));
    }
    let read = |tensor: &Tensor| tensor.to_bytes().map(std::borrow::Cow::into_owned);
    let id_bytes = read(ids).map_err(|error| bad(path, error.to_string()))?;
    let feature_bytes = features
        .to_bytes()
        .map_err(|error| bad(path, error.to_string()))?;
    if metadata.get(DIGEST) != Some(&digest(&id_bytes, &feature_bytes)) {
        return Err(bad(
            path,
            "the block is damaged: its content does not match its checksum",
        ));
    }
    let ids = id_bytes
        .chunks_exact(32)
        .map(|id| id.try_into().expect("chunks of 32"))
        .collect();
    Ok(Block {
        features: features.clone(),
        ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let entry = dir.path().join("entry");
        fs::create_dir(&entry).unwrap();
        write_whole(&entry.join("key.json"), b"{}").unwrap();
        (dir, entry)
    }

    fn append(store: &mut Store, ids: &[RowId], features: &[f32]) -> Result<(), Error> {
        let path = store.write_block(ids, features)?;
        store.load(&path)
    }

    #[test]
    fn rows_come_back_in_another_process_and_duplicates_count_once() {
        let (_dir, entry) = store();
        let mut first = Store::open_entry(&entry).unwrap();
        append(
            &mut first,
            &[[1; 32], [2; 32]],
            &[1.0, 2.0, 3.0, f32::MIN_POSITIVE],
        )
        .unwrap();
        append(
            &mut first,
            &[[2; 32], [3; 32]],
            &[3.0, f32::MIN_POSITIVE, 5.0, 6.0],
        )
        .unwrap();
        let again = Store::open_entry(&entry).unwrap();
        assert_eq!(again.n_rows(), 3);
        let mut row = Vec::new();
        assert!(again.read(&[2; 32], &mut row).unwrap());
        assert_eq!(row, [3.0, f32::MIN_POSITIVE]);
        assert!(!again.read(&[9; 32], &mut row).unwrap());
    }

    #[test]
    fn every_flipped_byte_of_a_block_is_noticed() {
        let (_dir, entry) = store();
        let mut first = Store::open_entry(&entry).unwrap();
        append(&mut first, &[[1; 32], [2; 32]], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let path = fs::read_dir(&entry)
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .find(|p| p.to_string_lossy().contains("block-"))
            .unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x04;
            write_whole(&path, &bytes).unwrap();
            match Store::open_entry(&entry) {
                Err(_) => {}
                // A flip in the header may leave a file that says the same in other words.
                Ok(read) => {
                    let mut rows = Vec::new();
                    assert!(
                        read.read(&[1; 32], &mut rows).unwrap() && read.read(&[2; 32], &mut rows).unwrap()
                    );
                    assert_eq!(rows, [1.0, 2.0, 3.0, 4.0], "byte {at}");
                }
            }
        }
    }
}
