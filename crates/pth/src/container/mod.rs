//! What holds the pickle and the storages.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use crate::pickle::Arena;
use crate::storage::ByteOrder;
use crate::{Error, FileMap, Storage};

pub(crate) mod legacy;
pub(crate) mod zip;

/// How a checkpoint is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A zip archive with `data.pkl` and one record per storage: `torch.save` since 1.6.
    Zip,
    /// Pickles one after the other, then the storages: `torch.save` before 1.6.
    Legacy,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Zip => "pytorch zip",
            Format::Legacy => "pytorch legacy",
        })
    }
}

/// A checkpoint, parsed but not interpreted.
pub(crate) struct Contents {
    pub(crate) format: Format,
    pub(crate) arena: Arena,
    pub(crate) records: HashMap<String, Record>,
    pub(crate) byte_order: ByteOrder,
    pub(crate) map: FileMap,
}

/// Where the bytes of a storage are.
pub(crate) enum Record {
    Stored(Range<usize>),
    /// Compressed bytes, and how many they expand to.
    Deflated {
        index: usize,
        size: u64,
    },
    /// What keeps it from being read.
    Unreadable(String),
}

impl Contents {
    /// The storage called `key`, if the file has one.
    pub(crate) fn storage(&self, key: &str) -> Option<Result<Storage, String>> {
        let record = self.records.get(key)?;
        Some(match record {
            Record::Stored(range) => Storage::mapped(&self.map, range.clone(), key)
                .map(|storage| storage.labelled(self.byte_order, key))
                .ok_or_else(|| "it lies outside the file".to_owned()),
            Record::Deflated { index, size } => zip::inflate(&self.map, *index, *size)
                .map(|bytes| Storage::owned(bytes).labelled(self.byte_order, key)),
            Record::Unreadable(why) => Err(why.clone()),
        })
    }
}

/// Opens whatever container `map` is.
pub(crate) fn open(map: FileMap) -> Result<Contents, Error> {
    if map.as_bytes().starts_with(b"PK\x03\x04") {
        zip::open(map)
    } else {
        legacy::open(map)
    }
}
