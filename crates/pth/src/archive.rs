//! The layout of a `.pth` before any tensor's bytes are known.
//!
//! Every record is stored and begins at a multiple of 64 bytes, as torch aligns them; sizes and CRCs stand in the local headers too.
//! torch's own `.format_version` and `.storage_alignment` records are left out: they promise a layout to the byte, by which torch
//! would compute offsets without looking. The same values give the same bytes.

use std::io;
use std::ops::Range;

use crate::pickle::write::{self, Planned};
use crate::{Error, Profile, Storage, Value};

/// The folder of all records. torch names it after the file; here the same values give the same bytes under every name.
const ROOT: &str = "archive";

/// Where the data of records begins: at multiples of this, as torch aligns them.
const ALIGNMENT: u64 = 64;

const LOCAL_BYTES: u64 = 30;
/// Where the CRC stands in a local header and in an entry of the directory.
const LOCAL_CRC_AT: usize = 14;
const ENTRY_CRC_AT: usize = 16;
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

/// A zip archive that torch loads, of which all is known but the bytes of the storages and their CRCs.
///
/// Between the slots, which [`slots`](Archive::slots) lists, the rest of the file is written by [`write_rest`](Archive::write_rest).
#[derive(Debug)]
pub struct Archive {
    /// All bytes outside the slots, one after the other; CRCs of slots are zero.
    rest: Vec<u8>,
    /// The part of `rest` in front of each slot, and behind the last.
    pieces: Vec<Range<usize>>,
    slots: Vec<Slot>,
    /// Where in `rest` the CRC of each slot stands: in its local header, and in the directory.
    crcs: Vec<[usize; 2]>,
    n_bytes: u64,
}

/// The place of one storage's bytes in an [`Archive`].
#[derive(Debug)]
pub struct Slot {
    /// The storage; perhaps one that is only promised.
    pub storage: Storage,
    /// The place of its first byte in the file.
    pub offset: u64,
    /// Bytes per number, which are to be little-endian.
    pub component: usize,
}

impl Archive {
    /// Lays out `value` for the readers of `profile`.
    ///
    /// # Errors
    /// A value that has no plain form (see [`Value::into_plain`]), or that the profile lacks.
    pub fn plan(value: &Value, profile: Profile) -> Result<Archive, Error> {
        let (data_pkl, storages) = write::write(value, profile)?;
        let mut zip = Zip {
            rest: Vec::with_capacity(data_pkl.len() + 128 * storages.len() + 512),
            slot_bytes: 0,
            directory: Vec::new(),
            n_entries: 0,
        };
        let mut archive = Archive {
            rest: Vec::new(),
            pieces: Vec::with_capacity(storages.len() + 1),
            slots: Vec::with_capacity(storages.len()),
            crcs: Vec::with_capacity(storages.len()),
            n_bytes: 0,
        };
        zip.record(&format!("{ROOT}/data.pkl"), &data_pkl);
        zip.record(&format!("{ROOT}/byteorder"), b"little");
        let mut piece_start = 0;
        for (
            key,
            Planned {
                storage, component, ..
            },
        ) in storages.into_iter().enumerate()
        {
            let n_bytes = size_of(storage.nbytes());
            let local = zip.rest.len();
            let entry = zip.directory.len();
            zip.header(&format!("{ROOT}/data/{key}"), n_bytes, 0);
            archive.crcs.push([local + LOCAL_CRC_AT, entry + ENTRY_CRC_AT]);
            archive.slots.push(Slot {
                storage,
                offset: zip.at(),
                component,
            });
            archive.pieces.push(piece_start..zip.rest.len());
            piece_start = zip.rest.len();
            zip.slot_bytes += n_bytes;
        }
        zip.record(&format!("{ROOT}/version"), b"3\n");
        let directory_at = zip.rest.len();
        zip.finish();
        for [_, entry] in &mut archive.crcs {
            *entry += directory_at;
        }
        archive.pieces.push(piece_start..zip.rest.len());
        archive.n_bytes = zip.at();
        archive.rest = zip.rest;
        Ok(archive)
    }

    /// Size of the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The storages in the order of the file, each once.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Passes on everything outside the slots, in order, each with its place in the file. `crcs` has the CRC of each slot's bytes.
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
        let mut rest = self.rest.clone();
        for (places, crc) in self.crcs.iter().zip(crcs) {
            for &at in places {
                rest[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            }
        }
        self.pieces
            .iter()
            .enumerate()
            .try_for_each(|(i, piece)| put(self.piece_at(i), &rest[piece.clone()]))
    }

    /// The part in front of slot `i`, or behind the last, with the CRCs that are known by now.
    pub(crate) fn piece(&self, i: usize, crcs: &[u32]) -> Vec<u8> {
        let piece = self.pieces[i].clone();
        let mut bytes = self.rest[piece.clone()].to_vec();
        let mut patch = |at: usize, crc: u32| {
            if piece.contains(&at) {
                let at = at - piece.start;
                bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            }
        };
        if i < self.slots.len() {
            crcs.get(i)
                .into_iter()
                .for_each(|&crc| patch(self.crcs[i][0], crc));
        } else {
            self.crcs
                .iter()
                .zip(crcs)
                .for_each(|(places, &crc)| patch(places[1], crc));
        }
        bytes
    }

    /// The place in the file of the CRC in front of slot `i`.
    pub(crate) fn crc_at(&self, i: usize) -> u64 {
        self.piece_at(i) + size_of(self.crcs[i][0] - self.pieces[i].start)
    }

    fn piece_at(&self, i: usize) -> u64 {
        match i.checked_sub(1).and_then(|before| self.slots.get(before)) {
            Some(slot) => slot.offset + size_of(slot.storage.nbytes()),
            None => 0,
        }
    }
}

/// Headers and directory, without the bytes of slots.
struct Zip {
    rest: Vec<u8>,
    slot_bytes: u64,
    directory: Vec<u8>,
    n_entries: u64,
}

impl Zip {
    /// The place in the file where the next byte goes.
    fn at(&self) -> u64 {
        size_of(self.rest.len()) + self.slot_bytes
    }

    fn record(&mut self, name: &str, bytes: &[u8]) {
        self.header(name, size_of(bytes.len()), crc32fast::hash(bytes));
        self.rest.extend_from_slice(bytes);
    }

    /// The header of a record of `size` bytes, and its entry in the directory.
    fn header(&mut self, name: &str, size: u64, crc: u32) {
        let header_at = self.at();
        let is_large = size >= ZIP64_FROM;
        let name_len = size_of(name.len());
        let zip64_len = if is_large { 20 } else { 0 };
        let unpadded = header_at + LOCAL_BYTES + name_len + zip64_len + 4;
        let pad =
            u16::try_from(unpadded.next_multiple_of(ALIGNMENT) - unpadded).expect("less than the alignment");
        let out = &mut self.rest;
        out.extend_from_slice(b"PK\x03\x04");
        put16(out, if is_large { VERSION_ZIP64 } else { VERSION });
        put16(out, FLAGS);
        put16(out, 0);
        put16(out, 0);
        put16(out, DATE);
        put32(out, crc);
        put32(out, short(size));
        put32(out, short(size));
        put16(out, length(name));
        put16(out, u16::try_from(zip64_len).expect("twenty at most") + 4 + pad);
        out.extend_from_slice(name.as_bytes());
        if is_large {
            put16(out, 1);
            put16(out, 16);
            put64(out, size);
            put64(out, size);
        }
        put16(out, PAD_ID);
        put16(out, pad);
        out.resize(out.len() + usize::from(pad), b'Z');
        self.entry(name, size, crc, header_at);
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

    /// The directory and its end.
    fn finish(&mut self) {
        let start = self.at();
        let directory = std::mem::take(&mut self.directory);
        self.rest.extend_from_slice(&directory);
        let size = size_of(directory.len());
        let n_short = u16::try_from(self.n_entries).unwrap_or(u16::MAX);
        let end = &mut self.rest;
        if self.n_entries >= 0xffff || start >= ZIP64_FROM || size >= ZIP64_FROM {
            end.extend_from_slice(b"PK\x06\x06");
            put64(end, 44);
            put16(end, VERSION_ZIP64);
            put16(end, VERSION_ZIP64);
            put64(end, 0);
            put64(end, self.n_entries);
            put64(end, self.n_entries);
            put64(end, size);
            put64(end, start);
            end.extend_from_slice(b"PK\x06\x07");
            put32(end, 0);
            put64(end, start + size);
            put32(end, 1);
        }
        end.extend_from_slice(b"PK\x05\x06");
        put32(end, 0);
        put16(end, n_short);
        put16(end, n_short);
        put32(end, short(size));
        put32(end, short(start));
        put16(end, 0);
    }
}

pub(crate) fn size_of(n: usize) -> u64 {
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
