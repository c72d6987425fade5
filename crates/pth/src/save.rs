//! Writing checkpoints: a zip archive that `torch.load(weights_only=True)` takes, mapped and not.
//!
//! Every record is stored and begins at a multiple of 64 bytes, as torch aligns them; sizes and CRCs stand in the local headers too.
//! torch's own `.format_version` and `.storage_alignment` records are left out: they promise a layout to the byte, by which torch
//! would compute offsets without looking. The same values give the same bytes.

use std::io::{self, BufWriter, Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use crate::pickle::write::{self, Planned};
use crate::storage::ByteOrder;
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

/// The folder of all records. torch names it after the file; here the same values give the same bytes under every name.
const ROOT: &str = "archive";

/// Where the data of records begins: at multiples of this, as torch aligns them.
const ALIGNMENT: u64 = 64;

/// Storages up to this size are read before their header is written; of larger ones the CRC is put in afterwards.
const SMALL_BYTES: usize = 1 << 20;

const LOCAL_BYTES: u64 = 30;
/// Names are UTF-8.
const FLAGS: u16 = 1 << 11;
/// 1 January 1980, the first day that the format knows: so that the same values give the same bytes.
const DATE: u16 = 0x21;
const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;
/// Sizes and offsets from here on are in the zip64 fields.
const ZIP64_FROM: u64 = 0xffff_ffff;
/// torch's id for the field that pads to the alignment.
const PAD_ID: u16 = 0x4246;

/// Writes `value` to `path`, which appears whole or not at all; storages are streamed, and shared ones stay shared.
///
/// Returns the size of the file. A source that is mapped, also from `path` itself, stays intact.
///
/// # Errors
/// A value that has no plain form (see [`Value::into_plain`]) or that the profile lacks, before anything is written;
/// a tensor whose bytes cannot be read; the file exists and `existing` refuses; the disk.
pub fn save(path: &Path, value: &Value, options: &SaveOptions) -> Result<u64, Error> {
    let (data_pkl, storages) = write::write(value, options.profile)?;
    let mut file = AtomicFile::create(path, options.existing)?;
    let out = BufWriter::with_capacity(1 << 20, &mut file);
    let n_bytes = archive(out, &data_pkl, &storages).map_err(|error| match error {
        Error::Output { source } => FileError::at("write", path)(source).into(),
        error => error,
    })?;
    file.commit()?;
    Ok(n_bytes)
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
    let (data_pkl, storages) = write::write(value, profile)?;
    let mut out = Cursor::new(Vec::new());
    archive(&mut out, &data_pkl, &storages)?;
    Ok(out.into_inner())
}

fn archive<W: Write + Seek>(out: W, data_pkl: &[u8], storages: &[Planned]) -> Result<u64, Error> {
    let mut zip = ZipWriter {
        out,
        at: 0,
        directory: Vec::new(),
        n_entries: 0,
        patches: Vec::new(),
    };
    zip.record(&format!("{ROOT}/data.pkl"), data_pkl)?;
    zip.record(&format!("{ROOT}/byteorder"), b"little")?;
    for (key, planned) in storages.iter().enumerate() {
        zip.storage(&format!("{ROOT}/data/{key}"), planned)?;
    }
    zip.record(&format!("{ROOT}/version"), b"3\n")?;
    zip.finish().map_err(|source| Error::Output { source })
}

struct ZipWriter<W> {
    out: W,
    at: u64,
    directory: Vec<u8>,
    n_entries: u64,
    /// Where CRCs are to be put in, and which.
    patches: Vec<(u64, u32)>,
}

impl<W: Write + Seek> ZipWriter<W> {
    fn record(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let put = |source| Error::Output { source };
        let crc = crc32fast::hash(bytes);
        let header = self.at;
        self.local_header(name, size_of(bytes.len()), crc).map_err(put)?;
        self.put(bytes).map_err(put)?;
        self.entry(name, size_of(bytes.len()), crc, header);
        Ok(())
    }

    /// The whole of a storage, little-endian.
    fn storage(&mut self, name: &str, planned: &Planned) -> Result<(), Error> {
        let storage = &planned.storage;
        let n_bytes = storage.nbytes();
        let is_swapped = storage.byte_order() == ByteOrder::Big && planned.component > 1;
        if n_bytes <= SMALL_BYTES {
            let mut bytes = storage.read(0..n_bytes)?;
            if is_swapped {
                bytes
                    .to_mut()
                    .chunks_exact_mut(planned.component)
                    .for_each(<[u8]>::reverse);
            }
            return self.record(name, &bytes);
        }
        let put = |source| Error::Output { source };
        let header = self.at;
        self.local_header(name, size_of(n_bytes), 0).map_err(put)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut carry: Vec<u8> = Vec::new();
        storage.stream(0..n_bytes, &mut |chunk| {
            if !is_swapped {
                hasher.update(chunk);
                return self.put(chunk).map_err(put);
            }
            // Chunks may end within a number.
            carry.extend_from_slice(chunk);
            let whole = carry.len() - carry.len() % planned.component;
            carry[..whole]
                .chunks_exact_mut(planned.component)
                .for_each(<[u8]>::reverse);
            hasher.update(&carry[..whole]);
            self.put(&carry[..whole]).map_err(put)?;
            carry.drain(..whole);
            Ok(())
        })?;
        let crc = hasher.finalize();
        self.patches.push((header + 14, crc));
        self.entry(name, size_of(n_bytes), crc, header);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += size_of(bytes.len());
        Ok(())
    }

    fn local_header(&mut self, name: &str, size: u64, crc: u32) -> io::Result<()> {
        let is_large = size >= ZIP64_FROM;
        let name_len = size_of(name.len());
        let zip64_len = if is_large { 20 } else { 0 };
        let unpadded = self.at + LOCAL_BYTES + name_len + zip64_len + 4;
        let pad =
            u16::try_from(unpadded.next_multiple_of(ALIGNMENT) - unpadded).expect("less than the alignment");
        let mut header = Vec::with_capacity(128 + name.len());
        header.extend_from_slice(b"PK\x03\x04");
        put16(&mut header, if is_large { VERSION_ZIP64 } else { VERSION });
        put16(&mut header, FLAGS);
        put16(&mut header, 0);
        put16(&mut header, 0);
        put16(&mut header, DATE);
        put32(&mut header, crc);
        put32(&mut header, short(size));
        put32(&mut header, short(size));
        put16(&mut header, length(name));
        put16(
            &mut header,
            u16::try_from(zip64_len).expect("twenty at most") + 4 + pad,
        );
        header.extend_from_slice(name.as_bytes());
        if is_large {
            put16(&mut header, 1);
            put16(&mut header, 16);
            put64(&mut header, size);
            put64(&mut header, size);
        }
        put16(&mut header, PAD_ID);
        put16(&mut header, pad);
        header.resize(header.len() + usize::from(pad), b'Z');
        self.put(&header)
    }

    fn entry(&mut self, name: &str, size: u64, crc: u32, header: u64) {
        let mut wide = Vec::new();
        if size >= ZIP64_FROM {
            put64(&mut wide, size);
            put64(&mut wide, size);
        }
        if header >= ZIP64_FROM {
            put64(&mut wide, header);
        }
        let version = if wide.is_empty() { VERSION } else { VERSION_ZIP64 };
        let extra_len = if wide.is_empty() { 0 } else { 4 + wide.len() };
        let out = &mut self.directory;
        out.extend_from_slice(b"PK\x01\x02");
        put16(out, version);
        put16(out, version);
        put16(out, FLAGS);
        put16(out, 0);
        put16(out, 0);
        put16(out, DATE);
        put32(out, crc);
        put32(out, short(size));
        put32(out, short(size));
        put16(out, length(name));
        put16(out, u16::try_from(extra_len).expect("28 at most"));
        // Comment, disk, attributes.
        out.extend_from_slice(&[0; 10]);
        put32(out, short(header));
        out.extend_from_slice(name.as_bytes());
        if !wide.is_empty() {
            put16(out, 1);
            put16(out, u16::try_from(wide.len()).expect("24 at most"));
            out.extend_from_slice(&wide);
        }
        self.n_entries += 1;
    }

    /// The directory and its end. Returns the size of the file.
    fn finish(mut self) -> io::Result<u64> {
        let start = self.at;
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        let size = size_of(directory.len());
        let n_short = u16::try_from(self.n_entries).unwrap_or(u16::MAX);
        let mut end = Vec::new();
        if self.n_entries >= 0xffff || start >= ZIP64_FROM || size >= ZIP64_FROM {
            end.extend_from_slice(b"PK\x06\x06");
            put64(&mut end, 44);
            put16(&mut end, VERSION_ZIP64);
            put16(&mut end, VERSION_ZIP64);
            put64(&mut end, 0);
            put64(&mut end, self.n_entries);
            put64(&mut end, self.n_entries);
            put64(&mut end, size);
            put64(&mut end, start);
            end.extend_from_slice(b"PK\x06\x07");
            put32(&mut end, 0);
            put64(&mut end, start + size);
            put32(&mut end, 1);
        }
        end.extend_from_slice(b"PK\x05\x06");
        put32(&mut end, 0);
        put16(&mut end, n_short);
        put16(&mut end, n_short);
        put32(&mut end, short(size));
        put32(&mut end, short(start));
        put16(&mut end, 0);
        self.put(&end)?;
        for (at, crc) in std::mem::take(&mut self.patches) {
            self.out.seek(SeekFrom::Start(at))?;
            self.out.write_all(&crc.to_le_bytes())?;
        }
        self.out.flush()?;
        Ok(self.at)
    }
}

fn size_of(n: usize) -> u64 {
    u64::try_from(n).expect("no machine addresses more than 64 bits")
}

/// The value, or the mark that it is in the zip64 field.
fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn length(name: &str) -> u16 {
    u16::try_from(name.len()).expect("the root and a number")
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
