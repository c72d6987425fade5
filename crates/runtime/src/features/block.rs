//! A block: some rows of a cache entry as a small safetensors file, named by the digest of its bytes.
//!
//! The name is the checksum: whatever byte changes, header included, the file no longer is what it is called.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use pth::{DType, FileError, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::key::{FeatureType, digest_of};
use super::matrix::Piece;
use super::store::RowId;
use crate::error::Error;

/// How a block's file is called.
pub(super) const PREFIX: &str = "block-";
pub(super) const ENDING: &str = ".safetensors";

/// Rows of one block, mapped.
#[derive(Debug)]
pub(super) struct Block {
    /// `[n, ...]`.
    features: Tensor,
    /// `[n, 32]`.
    ids: Tensor,
}

/// Rows on their way into a block.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    pub(super) ids: Vec<RowId>,
    /// Little-endian numbers of the entry's type.
    pub(super) bytes: Vec<u8>,
    /// Of one row.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: FeatureType,
}

impl Rows {
    pub(super) fn new(dtype: FeatureType, shape: Vec<usize>) -> Rows {
        Rows {
            ids: Vec::new(),
            bytes: Vec::new(),
            shape,
            dtype,
        }
    }

    /// Appends a row.
    ///
    /// # Errors
    /// The number that float16 cannot hold.
    pub(super) fn push(&mut self, id: RowId, values: &[f32]) -> Result<(), f32> {
        match self.dtype {
            FeatureType::Float32 => {
                self.bytes
                    .extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            FeatureType::Float16 => {
                let start = self.bytes.len();
                for &value in values {
                    let half = half::f16::from_f32(value);
                    if half.is_infinite() && value.is_finite() {
                        self.bytes.truncate(start);
                        return Err(value);
                    }
                    self.bytes.extend_from_slice(&half.to_le_bytes());
                }
            }
        }
        self.ids.push(id);
        Ok(())
    }

    /// The file's name and bytes. `note` says what computed the rows and goes into the metadata.
    pub(super) fn to_file(&self, note: &str) -> (String, Vec<u8>) {
        let ids = self.ids.concat();
        let dtype = match self.dtype {
            FeatureType::Float16 => Dtype::F16,
            FeatureType::Float32 => Dtype::F32,
        };
        let shape = std::iter::once(self.ids.len()).chain(self.shape.iter().copied());
        let features = TensorView::new(dtype, shape.collect(), &self.bytes)
            .expect("each row has as many numbers as its shape says");
        let id_view = TensorView::new(Dtype::U8, vec![self.ids.len(), 32], &ids).expect("32 bytes each");
        // One key: a hash map has no order, and the same rows should give the same bytes.
        let metadata = HashMap::from([("graftwork".to_owned(), note.to_owned())]);
        let bytes = safetensors::serialize([("features", features), ("ids", id_view)], Some(metadata))
            .expect("two tensors with different names");
        (format!("{PREFIX}{}{ENDING}", digest_of(&bytes)), bytes)
    }
}

/// Whether a file is what its name says; the digest is of all its bytes, read through a buffer.
///
/// # Errors
/// [`Error::Damaged`] where it is not.
pub(super) fn check_name(path: &Path) -> Result<(), Error> {
    const BUFFER: usize = 1 << 18;
    let mut file = File::open(path).map_err(FileError::at("read", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n_bytes) => hasher.update(&buffer[..n_bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::at("read", path)(error).into()),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stated = name.rsplit('-').next().and_then(|rest| rest.split('.').next());
    if stated == Some(&hasher.finalize().to_hex()[..32]) {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        reason: "its content does not match the digest in its name".to_owned(),
    })
}

impl Block {
    /// Checks a block's digest and maps it.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a byte of it has changed; [`Error::BadFile`] where it holds other rows than the entry's.
    pub(super) fn open(path: &Path, dtype: FeatureType) -> Result<Block, Error> {
        check_name(path)?;
        Block::map(path, dtype)
    }

    /// Maps a block without looking at its rows.
    pub(super) fn map(path: &Path, dtype: FeatureType) -> Result<Block, Error> {
        let (tensors, _) = surgery::open_safetensors(path)?;
        let bad = |reason: &str| Error::BadFile {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let (Some(features), Some(ids)) = (tensors.get("features"), tensors.get("ids")) else {
            return Err(bad("a cache block without `features` and `ids`"));
        };
        let wanted = match dtype {
            FeatureType::Float16 => DType::Float16,
            FeatureType::Float32 => DType::Float32,
        };
        let shapes_agree = match (features.shape(), ids.shape()) {
            ([n_rows, row @ ..], [n_ids, 32]) => n_rows == n_ids && !row.is_empty() && !row.contains(&0),
            _ => false,
        };
        if features.dtype() != wanted || ids.dtype() != DType::Uint8 || !shapes_agree {
            return Err(bad("a cache block of another kind than its entry"));
        }
        Ok(Block {
            features: features.clone(),
            ids: ids.clone(),
        })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.ids.shape()[0]
    }

    /// Shape of one row.
    pub(super) fn row_shape(&self) -> &[usize] {
        &self.features.shape()[1..]
    }

    /// Calls `each` with every row's id, in order.
    pub(super) fn for_each_id(&self, mut each: impl FnMut(usize, RowId)) -> Result<(), String> {
        let bytes = self.ids.to_bytes().map_err(|error| error.to_string())?;
        for (row, id) in bytes.chunks_exact(32).enumerate() {
            each(row, id.try_into().expect("chunks of 32"));
        }
        Ok(())
    }

    /// The stored bytes of a row.
    pub(super) fn row_bytes(&self, row: usize) -> Result<Vec<u8>, String> {
        let bytes = self.features.to_bytes().map_err(|error| error.to_string())?;
        let n_bytes = bytes.len() / self.n_rows().max(1);
        Ok(bytes[row * n_bytes..(row + 1) * n_bytes].to_vec())
    }

    /// Whether a row has that id: the index of an entry knows half of it.
    pub(super) fn check_id(&self, row: usize, id: &RowId) -> Result<(), String> {
        let ids = self.ids.to_bytes().map_err(|error| error.to_string())?;
        if ids.get(row * 32..(row + 1) * 32) != Some(id) {
            return Err("two pictures share half a digest".to_owned());
        }
        Ok(())
    }

    /// All rows, where they lie.
    pub(super) fn piece(&self, dtype: FeatureType) -> Result<Piece, String> {
        let n_features = self.row_shape().iter().product();
        let storage = self.features.storage().clone();
        if !self.features.is_contiguous() || storage.nbytes() != self.features.nbytes() {
            return Err("its rows do not lie one after another".to_owned());
        }
        Piece::stored(storage, dtype, n_features).map_err(|error| error.to_string())
    }
}
