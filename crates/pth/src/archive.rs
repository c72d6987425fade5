//! The layout of a checkpoint before any tensor's bytes are known: where in the zip archive each storage lies, and all bytes around.
//!
//! Every record is stored and begins at a multiple of 64 bytes, as torch aligns them; sizes and CRCs stand in the local headers too.
//! torch's own `.format_version` and `.storage_alignment` records are left out: they promise a layout to the byte, by which torch
//! would compute offsets without looking. The same values give the same bytes.

use std::io;

use crate::pickle::write::{self, Planned};
use crate::save::Profile;
use crate::storage::ByteOrder;
use crate::{Error, Storage, Value};

/// The folder of all records. torch names it after the file; here the same values give the same bytes under every name.
const ROOT: &str = "archive";

/// Where the data of records begins: at multiples of this, as torch aligns them.
const ALIGNMENT: u64 = 64;

const LOCAL_BYTES: u64 = 30;
/// The zip64 field of a local header: id, length, two sizes.
const ZIP64_LOCAL_BYTES: u16 = 20;
/// The padding's id and length.
const PAD_FIELD_BYTES: u16 = 4;
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
/// Where in a local header the CRC stands.
const CRC_AT: u64 = 14;

/// The file of a value of which only the types and shapes need to be known: its size, the place of each storage, the bytes around.
///
/// Storages may be [promised](Storage::promised). [`save`](crate::save) writes the same bytes.
#[derive(Debug)]
pub struct Archive {
    data_pkl: Vec<u8>,
    slots: Vec<Slot>,
    /// `data.pkl` and `byteorder`, the storages, `version`.
    records: Vec<Record>,
    directory_at: u64,
    n_bytes: u64,
}

/// The place of one storage in the file. Its bytes are the whole storage, little-endian.
#[derive(Debug, Clone)]
pub struct Slot {
    /// What is to lie there; its size is the slot's.
    pub storage: Storage,
    /// Where its first byte lies in the file, a multiple of 64.
    pub offset: u64,
    /// The bytes of a number, which are to be turned round; 1 where the storage's bytes are right as they are.
    pub component: usize,
}

/// One member of the archive.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// Where its local header begins.
    header: u64,
    size: u64,
}

/// Records in front of the storages.
const N_BEFORE: usize = 2;

impl Archive {
    /// Lays out the file of `value`.
    ///
    /// # Errors
    /// A value that has no plain form (see [`Value::into_plain`]) or that the profile lacks.
    pub fn plan(value: &Value, profile: Profile) -> Result<Archive, Error> {
        let (data_pkl, planned) = write::write(value, profile)?;
        let n_records = planned.len() + N_BEFORE + 1;
        let mut archive = Archive {
            data_pkl,
            slots: Vec::with_capacity(planned.len()),
            records: Vec::with_capacity(n_records),
            directory_at: 0,
            n_bytes: 0,
        };
        let mut at = 0;
        for record in 0..n_records {
            let storage = record.checked_sub(N_BEFORE).and_then(|slot| planned.get(slot));
            let size = match storage {
                Some(planned) => size_of(planned.storage.nbytes()),
                None => size_of(archive.text(record).len()),
            };
            archive.records.push(Record { header: at, size });
            let name = name(record, planned.len());
            let data = padded(at, &name, size).0;
            if let Some(Planned {
                storage, component, ..
            }) = storage
            {
                let is_swapped = storage.byte_order() == ByteOrder::Big;
                archive.slots.push(Slot {
                    storage: storage.clone(),
                    offset: data,
                    component: if is_swapped { *component } else { 1 },
                });
            }
            at = data + size;
        }
        archive.directory_at = at;
        // CRCs change no size.
        let crcs = vec![0; planned.len()];
        let (tail_at, tail) = archive.tail(&crcs);
        archive.n_bytes = tail_at + size_of(tail.len());
        Ok(archive)
    }

    /// Size of the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The storages, each once, in the file's order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Passes all bytes outside of the slots on to `put`, with their place in the file, in ascending order.
    ///
    /// `crcs` are the CRC-32 of the slots' bytes, as they lie in the file.
    ///
    /// # Errors
    /// Those of `put`.
    ///
    /// # Panics
    /// There are not as many CRCs as slots.
    pub fn write_rest(
        &self,
        crcs: &[u32],
        put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        assert_eq!(crcs.len(), self.slots.len(), "a CRC for each slot");
        put(0, &self.head())?;
        for (slot, &crc) in crcs.iter().enumerate() {
            let (at, header) = self.slot_header(slot, crc);
            put(at, &header)?;
        }
        let (at, tail) = self.tail(crcs);
        put(at, &tail)
    }

    /// The bytes in front of the first slot's header.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = self.text_record(0);
        head.extend(self.text_record(1));
        head
    }

    /// The header of a slot, and where it lies: right in front of the slot.
    pub(crate) fn slot_header(&self, slot: usize, crc: u32) -> (u64, Vec<u8>) {
        let record = slot + N_BEFORE;
        (self.records[record].header, self.local_header(record, crc))
    }

    /// Where in the file the CRC of a slot stands.
    pub(crate) fn crc_at(&self, slot: usize) -> u64 {
        self.records[slot + N_BEFORE].header + CRC_AT
    }

    /// The bytes behind the last slot, and where they lie.
    pub(crate) fn tail(&self, crcs: &[u32]) -> (u64, Vec<u8>) {
        let last = self.records.len() - 1;
        let mut tail = self.text_record(last);
        let directory_from = tail.len();
        for record in 0..self.records.len() {
            let crc = match record.checked_sub(N_BEFORE).and_then(|slot| crcs.get(slot)) {
                Some(&crc) => crc,
                None => crc32fast::hash(self.text(record)),
            };
            self.directory_entry(&mut tail, record, crc);
        }
        let directory_size = size_of(tail.len() - directory_from);
        self.directory_end(&mut tail, directory_size);
        (self.records[last].header, tail)
    }

    /// The bytes of a record that is no storage.
    fn text(&self, record: usize) -> &[u8] {
        match record {
            0 => &self.data_pkl,
            1 => b"little",
            _ => b"3\n",
        }
    }

    fn text_record(&self, record: usize) -> Vec<u8> {
        let text = self.text(record);
        let mut bytes = self.local_header(record, crc32fast::hash(text));
        bytes.extend_from_slice(text);
        bytes
    }

    fn local_header(&self, record: usize, crc: u32) -> Vec<u8> {
        let Record { header: at, size } = self.records[record];
        let name = name(record, self.slots.len());
        let (_, pad) = padded(at, &name, size);
        let is_large = size >= ZIP64_FROM;
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
        put16(&mut header, length(&name));
        put16(
            &mut header,
            if is_large { ZIP64_LOCAL_BYTES } else { 0 } + PAD_FIELD_BYTES + pad,
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
        header
    }

    fn directory_entry(&self, out: &mut Vec<u8>, record: usize, crc: u32) {
        let Record { header, size } = self.records[record];
        let name = name(record, self.slots.len());
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
        put16(out, length(&name));
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
    }

    /// The end of a directory of `size` bytes.
    fn directory_end(&self, out: &mut Vec<u8>, size: u64) {
        let start = self.directory_at;
        let n_entries = size_of(self.records.len());
        let n_short = u16::try_from(n_entries).unwrap_or(u16::MAX);
        if n_entries >= 0xffff || start >= ZIP64_FROM || size >= ZIP64_FROM {
            out.extend_from_slice(b"PK\x06\x06");
            put64(out, 44);
            put16(out, VERSION_ZIP64);
            put16(out, VERSION_ZIP64);
            put64(out, 0);
            put64(out, n_entries);
            put64(out, n_entries);
            put64(out, size);
            put64(out, start);
            out.extend_from_slice(b"PK\x06\x07");
            put32(out, 0);
            put64(out, start + size);
            put32(out, 1);
        }
        out.extend_from_slice(b"PK\x05\x06");
        put32(out, 0);
        put16(out, n_short);
        put16(out, n_short);
        put32(out, short(size));
        put32(out, short(start));
        put16(out, 0);
    }
}

/// The name of a record of an archive with so many storages.
fn name(record: usize, n_slots: usize) -> String {
    match record.checked_sub(N_BEFORE) {
        None if record == 0 => format!("{ROOT}/data.pkl"),
        None => format!("{ROOT}/byteorder"),
        Some(key) if key < n_slots => format!("{ROOT}/data/{key}"),
        Some(_) => format!("{ROOT}/version"),
    }
}

/// Where the data begin of a record whose header is at `at`, and the bytes of padding in the header.
fn padded(at: u64, name: &str, size: u64) -> (u64, u16) {
    let zip64_len = if size >= ZIP64_FROM { ZIP64_LOCAL_BYTES } else { 0 };
    let unpadded = at + LOCAL_BYTES + size_of(name.len()) + u64::from(zip64_len + PAD_FIELD_BYTES);
    let data = unpadded.next_multiple_of(ALIGNMENT);
    let pad = u16::try_from(data - unpadded).expect("less than the alignment");
    (data, pad)
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
