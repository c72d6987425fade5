//! Writing checkpoints: a zip archive that `torch.load(weights_only=True)` takes, mapped and not.
//!
//! [`Archive`] says which byte goes where; here they are written from the first to the last.

use std::io::{BufWriter, Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use crate::archive::Slot;
use crate::storage::ByteOrder;
use crate::{Archive, AtomicFile, Error, Existing, FileError, StateDict, Storage, Value};

/// Who is to read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Python's torch: ordered dicts, parameters, every element type.
    #[default]
    Torch,
    /// C++'s libtorch: plain dicts and tensors of the types that `torch::pickle_load` knows.
    LibTorch,
}

/// How a checkpoint is written.
#[derive(Debug, Clone, Copy)]
pub struct SaveOptions {
    /// Who is to read it.
    pub profile: Profile,
    /// What to do when the file is there.
    pub existing: Existing,
}

/// Storages up to this size are read before their header is written; of larger ones the CRC is put in afterwards.
const SMALL_BYTES: usize = 1 << 20;

/// Writes `value` to `path`, which appears whole or not at all; storages are streamed, and shared ones stay shared.
///
/// Returns the size of the file. A source that is mapped, also from `path` itself, stays intact.
///
/// # Errors
/// A value that has no plain form (see [`Value::into_plain`]) or that the profile lacks, before anything is written;
/// a tensor whose bytes cannot be read; the file exists and `existing` refuses; the disk.
pub fn save(path: &Path, value: &Value, options: &SaveOptions) -> Result<u64, Error> {
    let archive = Archive::plan(value, options.profile)?;
    let mut file = AtomicFile::create(path, options.existing)?;
    let out = BufWriter::with_capacity(1 << 20, &mut file);
    write_all(&archive, out).map_err(|error| match error {
        Error::Output { source } => FileError::at("write", path)(source).into(),
        error => error,
    })?;
    file.commit()?;
    Ok(archive.n_bytes())
}

/// As [`save`], of a state dict as `torch.save(model.state_dict())` writes it.
///
/// # Errors
/// As [`save`].
pub fn save_state_dict(path: &Path, tensors: &StateDict, options: &SaveOptions) -> Result<u64, Error> {
    save(path, &Value::from(tensors.clone()), options)
}

/// As [`save`], into memory.
///
/// # Errors
/// As [`save`].
pub fn save_to_bytes(value: &Value, profile: Profile) -> Result<Vec<u8>, Error> {
    let archive = Archive::plan(value, profile)?;
    let mut out = Cursor::new(Vec::new());
    write_all(&archive, &mut out)?;
    Ok(out.into_inner())
}

/// Writes an archive of storages that are there.
fn write_all<W: Write + Seek>(archive: &Archive, mut out: W) -> Result<(), Error> {
    let put = |source| Error::Output { source };
    let mut crcs = vec![0; archive.slots().len()];
    let mut late = Vec::new();
    for (i, slot) in archive.slots().iter().enumerate() {
        let n_bytes = slot.storage.nbytes();
        if n_bytes <= SMALL_BYTES {
            let bytes = little_endian(slot)?;
            crcs[i] = crc32fast::hash(&bytes);
            out.write_all(&archive.piece(i, &crcs)).map_err(put)?;
            out.write_all(&bytes).map_err(put)?;
            continue;
        }
        out.write_all(&archive.piece(i, &crcs)).map_err(put)?;
        crcs[i] = stream(slot, &mut out)?;
        late.push((archive.crc_at(i), crcs[i]));
    }
    out.write_all(&archive.piece(archive.slots().len(), &crcs))
        .map_err(put)?;
    for (at, crc) in late {
        out.seek(SeekFrom::Start(at)).map_err(put)?;
        out.write_all(&crc.to_le_bytes()).map_err(put)?;
    }
    out.flush().map_err(put)
}

fn is_swapped(storage: &Storage, component: usize) -> bool {
    storage.byte_order() == ByteOrder::Big && component > 1
}

/// All bytes of a slot.
fn little_endian(slot: &Slot) -> Result<std::borrow::Cow<'_, [u8]>, Error> {
    let mut bytes = slot.storage.read(0..slot.storage.nbytes())?;
    if is_swapped(&slot.storage, slot.component) {
        bytes
            .to_mut()
            .chunks_exact_mut(slot.component)
            .for_each(<[u8]>::reverse);
    }
    Ok(bytes)
}

/// Writes all bytes of a slot; returns their CRC.
fn stream(slot: &Slot, out: &mut impl Write) -> Result<u32, Error> {
    let put = |source| Error::Output { source };
    let is_swapped = is_swapped(&slot.storage, slot.component);
    let mut hasher = crc32fast::Hasher::new();
    let mut carry: Vec<u8> = Vec::new();
    slot.storage.stream(0..slot.storage.nbytes(), &mut |chunk| {
        if !is_swapped {
            hasher.update(chunk);
            return out.write_all(chunk).map_err(put);
        }
        // Chunks may end within a number.
        carry.extend_from_slice(chunk);
        let whole = carry.len() - carry.len() % slot.component;
        carry[..whole]
            .chunks_exact_mut(slot.component)
            .for_each(<[u8]>::reverse);
        hasher.update(&carry[..whole]);
        out.write_all(&carry[..whole]).map_err(put)?;
        carry.drain(..whole);
        Ok(())
    })?;
    Ok(hasher.finalize())
}
