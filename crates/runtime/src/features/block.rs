//! A block: some rows of a cache entry as a small safetensors file, named by the digest of its bytes.
//!
//! The name is the checksum: whatever byte changes, header included, the file no longer is what it is called.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use pth::{Backing, DType, FileError, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::key::{FeatureType, digest_of};
use super::matrix::Piece;
use super::store::RowId;
use crate::error::Error;

/// How a block's file is called.
pub(super) const PREFIX: &str = "block-";
pub(super) const ENDING: &str = ".safetensors";

/// What is known of one block; its file is opened when its numbers are wanted.
#[derive(Debug)]
pub(super) struct Block {
    path: PathBuf,
    dtype: FeatureType,
    row_shape: Vec<usize>,
    n_rows: usize,
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

/// None where float16 cannot hold it.
fn to_half(value: f32) -> Option<half::f16> {
    let half = half::f16::from_f32(value);
    (half.is_finite() || !value.is_finite()).then_some(half)
}

/// Makes of numbers what is read back of them once they are stored.
///
/// # Errors
/// The number that float16 cannot hold.
pub(super) fn as_stored(dtype: FeatureType, values: &mut [f32]) -> Result<(), f32> {
    if dtype == FeatureType::Float16 {
        for value in values {
            *value = to_half(*value).ok_or(*value)?.to_f32();
        }
    }
    Ok(())
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
                    let Some(half) = to_half(value) else {
                        self.bytes.truncate(start);
                        return Err(value);
                    };
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
    /// Checks a block's digest and looks at its header. The file is closed again: there may be more blocks than files that
    /// a process may have open.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a byte of it has changed; [`Error::BadFile`] where it holds other rows than the entry's.
    pub(super) fn open(path: &Path, dtype: FeatureType) -> Result<Block, Error> {
        check_name(path)?;
        Block::look(path, dtype)
    }

    /// Looks at a block's header only.
    pub(super) fn look(path: &Path, dtype: FeatureType) -> Result<Block, Error> {
        let mut block = Block {
            path: path.to_owned(),
            dtype,
            row_shape: Vec::new(),
            n_rows: 0,
        };
        let tensors = block.tensors(Backing::Read)?;
        block.n_rows = tensors.ids.shape()[0];
        block.row_shape = tensors.features.shape()[1..].to_vec();
        Ok(block)
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Shape of one row.
    pub(super) fn row_shape(&self) -> &[usize] {
        &self.row_shape
    }

    /// Calls `each` with every row's id, in order.
    pub(super) fn for_each_id(&self, mut each: impl FnMut(usize, RowId)) -> Result<(), Error> {
        let ids = self.tensors(Backing::Read)?.ids;
        let bytes = ids.to_bytes().map_err(|error| self.bad(error))?;
        for (row, id) in bytes.chunks_exact(32).enumerate() {
            each(row, id.try_into().expect("chunks of 32"));
        }
        Ok(())
    }

    /// The stored bytes of a row.
    pub(super) fn row_bytes(&self, row: usize) -> Result<Vec<u8>, Error> {
        let features = self.tensors(Backing::Read)?.features;
        let row = features.select(row).map_err(|error| self.bad(error))?;
        Ok(row.to_bytes().map_err(|error| self.bad(error))?.into_owned())
    }

    /// All rows, mapped where they lie.
    pub(super) fn piece(&self) -> Result<Piece, Error> {
        let features = self.tensors(Backing::Detached)?.features;
        let storage = features.storage().clone();
        if !features.is_contiguous() || storage.nbytes() != features.nbytes() {
            return Err(self.bad("its rows do not lie one after another"));
        }
        let n_features = self.row_shape.iter().product();
        Piece::stored(storage, self.dtype, n_features).map_err(|error| self.bad(error))
    }

    fn tensors(&self, backing: Backing) -> Result<Tensors, Error> {
        let (tensors, _) = surgery::open_safetensors_with(&self.path, backing)?;
        let (Some(features), Some(ids)) = (tensors.get("features"), tensors.get("ids")) else {
            return Err(self.bad("a cache block without `features` and `ids`"));
        };
        let wanted = match self.dtype {
            FeatureType::Float16 => DType::Float16,
            FeatureType::Float32 => DType::Float32,
        };
        let shapes_agree = match (features.shape(), ids.shape()) {
            ([n_rows, row @ ..], [n_ids, 32]) => n_rows == n_ids && !row.is_empty() && !row.contains(&0),
            _ => false,
        };
        if features.dtype() != wanted || ids.dtype() != DType::Uint8 || !shapes_agree {
            return Err(self.bad("a cache block of another kind than its entry"));
        }
        Ok(Tensors {
            features: features.clone(),
            ids: ids.clone(),
        })
    }

    pub(super) fn bad(&self, reason: impl ToString) -> Error {
        Error::BadFile {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

/// What a block holds.
struct Tensors {
    /// `[n, ...]`.
    features: Tensor,
    /// `[n, 32]`.
    ids: Tensor,
}
