//! A zip archive in which every field may lie.
//!
//! An [`Entry`] comes out true; a test then changes what it wants to be false. The `zip` crate would not write any of that.

use std::io::Write;

/// How an honest entry is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
}

/// The fields of a local header, or of a record of the central directory.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) version: u16,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc: u32,
    pub(crate) compressed: u32,
    pub(crate) size: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) extra: Vec<u8>,
}

/// What follows the data.
#[derive(Clone)]
pub(crate) enum Descriptor {
    None,
    /// CRC, compressed size and size.
    Bits32(u32, u32, u32),
    Bits64(u32, u64, u64),
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) local: Header,
    pub(crate) central: Header,
    /// What lies between the headers: compressed, if it is.
    pub(crate) data: Vec<u8>,
    pub(crate) descriptor: Descriptor,
    /// Where the central directory says that the local header is; none for the truth.
    pub(crate) offset: Option<u32>,
    /// Bytes between this entry and the next.
    pub(crate) gap: Vec<u8>,
    /// Left out of the central directory.
    pub(crate) is_hidden: bool,
    /// Only in the central directory.
    pub(crate) is_phantom: bool,
    /// Pads the local extra field as torch does, so that the data begins at a multiple of 64.
    pub(crate) is_aligned: bool,
}

impl Entry {
    pub(crate) fn new(name: &str, bytes: &[u8], method: Method) -> Entry {
        let data = match method {
            Method::Stored => bytes.to_vec(),
            Method::Deflated => deflate(bytes),
        };
        let header = Header {
            version: 0,
            flags: 0x0800,
            method: if method == Method::Stored { 0 } else { 8 },
            crc: crc32fast::hash(bytes),
            compressed: u32::try_from(data.len()).unwrap(),
            size: u32::try_from(bytes.len()).unwrap(),
            name: name.as_bytes().to_vec(),
            extra: Vec::new(),
        };
        Entry {
            local: header.clone(),
            central: header,
            data,
            descriptor: Descriptor::None,
            offset: None,
            gap: Vec::new(),
            is_hidden: false,
            is_phantom: false,
            is_aligned: false,
        }
    }

    pub(crate) fn stored(name: &str, bytes: &[u8]) -> Entry {
        Entry::new(name, bytes, Method::Stored)
    }

    pub(crate) fn deflated(name: &str, bytes: &[u8]) -> Entry {
        Entry::new(name, bytes, Method::Deflated)
    }

    /// As torch writes it: sizes and CRC behind the data, data aligned.
    pub(crate) fn streamed(name: &str, bytes: &[u8]) -> Entry {
        let mut entry = Entry::stored(name, bytes);
        entry.is_aligned = true;
        if !bytes.is_empty() {
            entry.both(|header| header.flags |= 8);
            entry.descriptor = Descriptor::Bits32(entry.local.crc, entry.local.compressed, entry.local.size);
            (entry.local.crc, entry.local.compressed, entry.local.size) = (0, 0, 0);
        }
        entry
    }

    /// Changes both headers alike.
    pub(crate) fn both(&mut self, change: impl Fn(&mut Header)) {
        change(&mut self.local);
        change(&mut self.central);
    }

    /// The entry after `change`.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Entry)) -> Entry {
        change(&mut self);
        self
    }
}

/// The record at the end; none for the truth.
#[derive(Default, Clone)]
pub(crate) struct End {
    pub(crate) disk: u16,
    pub(crate) directory_disk: u16,
    pub(crate) n_entries: Option<u16>,
    pub(crate) n_entries_total: Option<u16>,
    pub(crate) directory_size: Option<u32>,
    pub(crate) directory_offset: Option<u32>,
    pub(crate) comment_len: Option<u16>,
}

/// The zip64 record and its locator.
#[derive(Default, Clone)]
pub(crate) struct End64 {
    pub(crate) n_entries: Option<u64>,
    pub(crate) directory_size: Option<u64>,
    pub(crate) directory_offset: Option<u64>,
    /// Where the locator says that the record is.
    pub(crate) record_offset: Option<u64>,
    pub(crate) n_disks: Option<u32>,
}

#[derive(Default, Clone)]
pub(crate) struct Archive {
    pub(crate) prefix: Vec<u8>,
    /// Whether offsets count from the start of the file, prefix included.
    pub(crate) counts_prefix: bool,
    pub(crate) entries: Vec<Entry>,
    pub(crate) before_directory: Vec<u8>,
    pub(crate) end64: Option<End64>,
    pub(crate) end: End,
    pub(crate) comment: Vec<u8>,
    pub(crate) suffix: Vec<u8>,
}

impl Archive {
    pub(crate) fn of(entries: impl IntoIterator<Item = Entry>) -> Archive {
        Archive {
            entries: entries.into_iter().collect(),
            ..Archive::default()
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Archive)) -> Archive {
        change(&mut self);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.prefix.clone();
        let base = if self.counts_prefix { 0 } else { out.len() };
        let mut directory = Vec::new();
        let mut n_entries = 0_u16;
        for entry in &self.entries {
            let start = out.len() - base;
            if !entry.is_phantom {
                local(&mut out, entry, base);
            }
            if !entry.is_hidden {
                let offset = entry.offset.unwrap_or(u32::try_from(start).unwrap());
                central(&mut directory, &entry.central, offset);
                n_entries += 1;
            }
        }
        out.extend_from_slice(&self.before_directory);
        let directory_offset = u32::try_from(out.len() - base).unwrap();
        let directory_size = u32::try_from(directory.len()).unwrap();
        out.extend(directory);
        if let Some(end) = &self.end64 {
            let record = u64::try_from(out.len() - base).unwrap();
            let n_entries = end.n_entries.unwrap_or(n_entries.into());
            out.extend(b"PK\x06\x06");
            out.extend(44_u64.to_le_bytes());
            out.extend([0x1e, 3, 0x2d, 0]);
            out.extend([0; 8]);
            out.extend(n_entries.to_le_bytes());
            out.extend(n_entries.to_le_bytes());
            out.extend(end.directory_size.unwrap_or(directory_size.into()).to_le_bytes());
            out.extend(
                end.directory_offset
                    .unwrap_or(directory_offset.into())
                    .to_le_bytes(),
            );
            out.extend(b"PK\x06\x07");
            out.extend([0; 4]);
            out.extend(end.record_offset.unwrap_or(record).to_le_bytes());
            out.extend(end.n_disks.unwrap_or(1).to_le_bytes());
        }
        let end = &self.end;
        let comment_len = u16::try_from(self.comment.len()).unwrap();
        out.extend(b"PK\x05\x06");
        out.extend(end.disk.to_le_bytes());
        out.extend(end.directory_disk.to_le_bytes());
        out.extend(end.n_entries.unwrap_or(n_entries).to_le_bytes());
        out.extend(
            end.n_entries_total
                .or(end.n_entries)
                .unwrap_or(n_entries)
                .to_le_bytes(),
        );
        out.extend(end.directory_size.unwrap_or(directory_size).to_le_bytes());
        out.extend(end.directory_offset.unwrap_or(directory_offset).to_le_bytes());
        out.extend(end.comment_len.unwrap_or(comment_len).to_le_bytes());
        out.extend_from_slice(&self.comment);
        out.extend_from_slice(&self.suffix);
        out
    }
}

fn local(out: &mut Vec<u8>, entry: &Entry, base: usize) {
    /// Bytes of a local header without name and extra field, and of an extra field's own header.
    const FIXED: usize = 30 + 4;
    let header = &entry.local;
    let mut extra = header.extra.clone();
    if entry.is_aligned {
        let start = out.len() - base + FIXED + header.name.len() + extra.len();
        let n_pad = start.next_multiple_of(64) - start;
        extra.extend(b"FB");
        extra.extend(u16::try_from(n_pad).unwrap().to_le_bytes());
        extra.extend(vec![b'Z'; n_pad]);
    }
    out.extend(b"PK\x03\x04");
    common(out, header, extra.len());
    out.extend_from_slice(&header.name);
    out.extend(extra);
    out.extend_from_slice(&entry.data);
    match entry.descriptor {
        Descriptor::None => {}
        Descriptor::Bits32(crc, compressed, size) => {
            out.extend(b"PK\x07\x08");
            for field in [crc, compressed, size] {
                out.extend(field.to_le_bytes());
            }
        }
        Descriptor::Bits64(crc, compressed, size) => {
            out.extend(b"PK\x07\x08");
            out.extend(crc.to_le_bytes());
            out.extend(compressed.to_le_bytes());
            out.extend(size.to_le_bytes());
        }
    }
    out.extend_from_slice(&entry.gap);
}

fn central(out: &mut Vec<u8>, header: &Header, offset: u32) {
    out.extend(b"PK\x01\x02\0\0");
    common(out, header, header.extra.len());
    // No comment, first disk, no attributes.
    out.extend([0; 10]);
    out.extend(offset.to_le_bytes());
    out.extend_from_slice(&header.name);
    out.extend_from_slice(&header.extra);
}

/// The fields that both headers share, from the version needed to the length of the extra field.
fn common(out: &mut Vec<u8>, header: &Header, extra_len: usize) {
    out.extend(header.version.to_le_bytes());
    out.extend(header.flags.to_le_bytes());
    out.extend(header.method.to_le_bytes());
    out.extend([0; 4]);
    out.extend(header.crc.to_le_bytes());
    out.extend(header.compressed.to_le_bytes());
    out.extend(header.size.to_le_bytes());
    out.extend(u16::try_from(header.name.len()).unwrap().to_le_bytes());
    out.extend(u16::try_from(extra_len).unwrap().to_le_bytes());
}

/// An extra field.
pub(crate) fn extra(id: u16, data: &[u8]) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend(u16::try_from(data.len()).unwrap().to_le_bytes());
    out.extend_from_slice(data);
    out
}

pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
