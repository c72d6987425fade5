//! What holds the pickle and the storages.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::finding::{Sink, refuse_high};
use crate::pickle::Arena;
use crate::pickle::read::Policy;
use crate::storage::{ByteOrder, Table, number};
use crate::{Backing, Error, Source, Storage};

pub(crate) mod directory;
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

/// How a checkpoint is opened. The default refuses whatever is doubtful.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Memory map or positional reads.
    pub backing: Backing,
    /// Read the tensors of a file that names code; nothing is ever run.
    pub allow_opaque: bool,
    /// Of equal keys of one dict take the last, as Python would.
    pub last_wins: bool,
    /// Accept bytes in front of a zip archive.
    pub allow_prefix: bool,
    /// The byte order of the storages, where the file is known to tell a wrong one or none: PyTorch 1.6 to 2.0 on big-endian machines.
    pub byte_order: Option<ByteOrder>,
}

impl OpenOptions {
    pub(crate) fn policy(&self) -> Policy {
        if self.allow_opaque {
            Policy::Read
        } else {
            Policy::Refuse
        }
    }
}

/// Python source text that a legacy file of a whole model carries for a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleSource {
    /// `module.name` of the class.
    pub class: String,
    /// The path of the file that it was in.
    pub file: String,
    /// Its text; never run.
    pub text: String,
}

/// A checkpoint, parsed but not interpreted.
pub(crate) struct Container<'s> {
    pub(crate) format: Format,
    pub(crate) arena: Arena<'s>,
    pub(crate) table: Arc<Table>,
    pub(crate) keys: Keys,
    /// Storages that the file lacks though it lists them, with the reason.
    pub(crate) unreadable: HashMap<String, String>,
    pub(crate) sources: Vec<ModuleSource>,
    /// Where bytes begin that belong to nothing, and how many they are.
    pub(crate) trailing: Option<(usize, usize)>,
}

impl Container<'_> {
    pub(crate) fn storage(&self, key: &[u8]) -> Option<Storage> {
        Some(self.table.storage(self.keys.get(key)?))
    }
}

/// Index of a storage by its key; most keys are the numbers from zero on.
pub(crate) struct Keys {
    numbered: Vec<u32>,
    others: HashMap<Vec<u8>, u32>,
}

const NO_STORAGE: u32 = u32::MAX;

impl Keys {
    pub(crate) fn new(n_storages: usize) -> Keys {
        Keys {
            numbered: vec![NO_STORAGE; n_storages],
            others: HashMap::new(),
        }
    }

    fn slot(&self, key: &[u8]) -> Option<usize> {
        let slot = usize::try_from(number(key)?).ok()?;
        (slot < self.numbered.len()).then_some(slot)
    }

    /// Returns whether the key was there already.
    pub(crate) fn insert(&mut self, key: &[u8], index: u32) -> bool {
        match self.slot(key).and_then(|slot| self.numbered.get_mut(slot)) {
            Some(place) => std::mem::replace(place, index) != NO_STORAGE,
            None => self.others.insert(key.to_owned(), index).is_some(),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<u32> {
        match self.slot(key) {
            Some(slot) => self
                .numbered
                .get(slot)
                .copied()
                .filter(|&index| index != NO_STORAGE),
            None => self.others.get(key).copied(),
        }
    }
}

/// Opens whatever container `source` is.
pub(crate) fn open<'s>(
    source: &'s Source,
    options: &OpenOptions,
    sink: Sink<'_>,
) -> Result<Container<'s>, Error> {
    if is_zip(source, options)? {
        zip::open(source, options, sink)
    } else {
        legacy::open(source, options)
    }
}

/// torch takes for a zip what begins like one. With bytes in front allowed, what ends like one is one too, unless it begins as
/// the older format does.
pub(crate) fn is_zip(source: &Source, options: &OpenOptions) -> Result<bool, Error> {
    if head(source)?.starts_with(b"PK\x03\x04") {
        return Ok(true);
    }
    Ok(options.allow_prefix && ends_as_zip(source) && !legacy::has_magic(source))
}

/// Whether a sound archive lies at the end of the file, whatever is in front of it.
pub(crate) fn ends_as_zip(source: &Source) -> bool {
    directory::read(source, true, &mut refuse_high).is_ok_and(|directory| !directory.members.is_empty())
}

/// The first bytes, for a look at what the file is.
pub(crate) fn head(source: &Source) -> Result<Vec<u8>, Error> {
    const HEAD_BYTES: usize = 4096;
    source
        .read(0..source.len().min(HEAD_BYTES))
        .map_err(|error| source.error(error).into())
}
