//! Writing checkpoints: a zip archive that `torch.load(weights_only=True)` takes, mapped and not.
//!
//! [`Archive`] lays the file out; here the storages are streamed into it.

use std::io::{BufWriter, Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use crate::archive::{Archive, Slot};
use crate::{AtomicFile, Error, Existing, FileError, StateDict, Value};

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
    write(out, &archive).map_err(|error| match error {
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
    write(&mut out, &archive)?;
    Ok(out.into_inner())
}

/// Writes the file from its beginning to its end.
fn write<W: Write + Seek>(mut out: W, archive: &Archive) -> Result<(), Error> {
    let failed = |source| Error::Output { source };
    let mut crcs = Vec::with_capacity(archive.slots().len());
    // CRCs that are put in afterwards.
    let mut patches: Vec<(u64, u32)> = Vec::new();
    out.write_all(&archive.head()).map_err(failed)?;
    for (i, slot) in archive.slots().iter().enumerate() {
        if slot.storage.nbytes() <= SMALL_BYTES {
            let mut bytes = slot.storage.read(0..slot.storage.nbytes())?;
            if slot.component > 1 {
                turn_round(bytes.to_mut(), slot.component);
            }
            let crc = crc32fast::hash(&bytes);
            out.write_all(&archive.slot_header(i, crc).1).map_err(failed)?;
            out.write_all(&bytes).map_err(failed)?;
            crcs.push(crc);
            continue;
        }
        out.write_all(&archive.slot_header(i, 0).1).map_err(failed)?;
        let crc = stream(&mut out, slot)?;
        patches.push((archive.crc_at(i), crc));
        crcs.push(crc);
    }
    out.write_all(&archive.tail(&crcs).1).map_err(failed)?;
    for (at, crc) in patches {
        out.seek(SeekFrom::Start(at)).map_err(failed)?;
        out.write_all(&crc.to_le_bytes()).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

/// Writes the whole of a storage, little-endian. Returns its CRC.
fn stream(out: &mut impl Write, slot: &Slot) -> Result<u32, Error> {
    let failed = |source| Error::Output { source };
    let mut hasher = crc32fast::Hasher::new();
    let mut carry: Vec<u8> = Vec::new();
    slot.storage.stream(0..slot.storage.nbytes(), &mut |chunk| {
        if slot.component == 1 {
            hasher.update(chunk);
            return out.write_all(chunk).map_err(failed);
        }
        // Chunks may end within a number.
        carry.extend_from_slice(chunk);
        let whole = carry.len() - carry.len() % slot.component;
        turn_round(&mut carry[..whole], slot.component);
        hasher.update(&carry[..whole]);
        out.write_all(&carry[..whole]).map_err(failed)?;
        carry.drain(..whole);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

fn turn_round(bytes: &mut [u8], component: usize) {
    bytes.chunks_exact_mut(component).for_each(<[u8]>::reverse);
}
