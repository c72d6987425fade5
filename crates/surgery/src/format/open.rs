//! Any supported file of tensors, by content.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use pth::{Checkpoint, ModuleSource, OpenOptions, Other, Problem, Source, StateDict};

use super::folder::{self, Place};
use super::pieces::Pieces;
use super::{adapter, dcp, read, sharded, ties};
use crate::{Error, marks};

/// What a file of tensors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A PyTorch checkpoint.
    Pth(pth::Format),
    /// safetensors.
    Safetensors,
    /// safetensors in several files, with an index.
    ShardedSafetensors {
        /// How many files.
        n_shards: usize,
    },
    /// PyTorch checkpoints in several files, with an index.
    ShardedPth {
        /// How many files.
        n_shards: usize,
    },
    /// A folder of `torch.distributed.checkpoint`.
    Dcp,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Pth(format) => format.fmt(f),
            Format::Safetensors => f.write_str("safetensors"),
            Format::ShardedSafetensors { n_shards } => write!(f, "safetensors, {}", shards(*n_shards)),
            Format::ShardedPth { n_shards } => write!(f, "pytorch, {}", shards(*n_shards)),
            Format::Dcp => f.write_str("pytorch distributed"),
        }
    }
}

fn shards(n: usize) -> String {
    format!("{n} shard{}", if n == 1 { "" } else { "s" })
}

/// An open file of tensors: its state dict and an account of all else.
#[derive(Debug)]
pub struct Opened {
    /// What the file is.
    pub format: Format,
    /// The model's tensors.
    pub state_dict: StateDict,
    /// The model's tensors that lie in pieces, with their places among the others.
    pub pieces: Vec<Pieces>,
    /// Where in a checkpoint the state dict was found; empty for the root.
    pub wrapper: String,
    /// `__metadata__` of safetensors; of a set, those of the index and of all shards, without sizes. What is not text is JSON.
    pub metadata: BTreeMap<String, String>,
    /// Values that are no tensors.
    pub others: Vec<Other>,
    /// Tensors beside the state dict.
    pub other_tensors: StateDict,
    /// What could not be read.
    pub problems: Vec<Problem>,
    /// Python source texts that a legacy file of a whole model carries.
    pub sources: Vec<ModuleSource>,
}

impl Opened {
    /// An open file of which nothing is read yet.
    pub(super) fn new(format: Format) -> Opened {
        Opened {
            format,
            state_dict: StateDict::new(),
            pieces: Vec::new(),
            wrapper: String::new(),
            metadata: BTreeMap::new(),
            others: Vec::new(),
            other_tensors: StateDict::new(),
            problems: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Puts the tensors that lie in pieces into the state dict, each at its place and in memory of its own.
    ///
    /// # Errors
    /// A piece that cannot be read.
    pub fn assemble(&mut self) -> Result<(), Error> {
        self.place_pieces(Pieces::assemble)
    }

    /// As [`assemble`](Opened::assemble), with nothing read: these tensors have names, shapes and types, and no bytes.
    ///
    /// # Errors
    /// A shape that no tensor can have.
    pub fn outline(&mut self) -> Result<(), Error> {
        self.place_pieces(|pieces| {
            let storage = pth::Storage::promised(pieces.nbytes());
            let tensor = pth::Tensor::contiguous(storage, pieces.dtype(), pieces.shape())?;
            Ok(match pieces.requires_grad() {
                true => tensor.into_parameter(true),
                false => tensor,
            })
        })
    }

    fn place_pieces(
        &mut self,
        make: impl Fn(&Pieces) -> Result<pth::Tensor, pth::Error>,
    ) -> Result<(), Error> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let metadata = self.state_dict.metadata().to_vec();
        let mut whole = StateDict::new();
        whole.reserve(self.state_dict.len() + self.pieces.len());
        let mut pieces = self.pieces.iter().peekable();
        let entries = std::mem::take(&mut self.state_dict).into_iter().map(Some);
        for (place, entry) in entries.chain([None]).enumerate() {
            while let Some(pieces) = pieces.next_if(|pieces| pieces.place() <= place || entry.is_none()) {
                let tensor = make(pieces).map_err(|source| Error::Tensor {
                    name: pieces.name().to_owned(),
                    source,
                })?;
                whole.insert(pieces.name(), tensor);
            }
            if let Some((name, entry)) = entry {
                whole.insert_entry(name, entry);
            }
        }
        self.state_dict = whole.with_metadata(metadata);
        self.pieces.clear();
        Ok(())
    }

    /// Carries out what the metadata say of the tensors: ties and marks.
    pub(super) fn finish(&mut self) {
        ties::apply(&mut self.state_dict, &mut self.metadata);
        if let Some(patterns) = self.metadata.get(marks::KEY) {
            marks::apply(&mut self.state_dict, &marks::parse(patterns));
        }
    }
}

/// Opens `path`, whatever it is called: a PyTorch checkpoint of any container, safetensors, the index of a set of either, or a folder
/// with one of these in it.
///
/// # Errors
/// The file cannot be read, or is none of these; a set is not complete, or not what its index says.
pub fn open(path: &Path) -> Result<Opened, Error> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], in another way than the default.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let place = if path.is_dir() {
        folder::find(path)?
    } else if is_index(path) {
        Place::Index(path.to_owned())
    } else {
        Place::File(path.to_owned())
    };
    let mut opened = match place {
        Place::Index(path) => return sharded::open(&path, options),
        Place::File(path) => {
            let mut opened = file(&path, options)?;
            if let Some(config) = adapter::config_beside(&path)? {
                opened.metadata.insert(adapter::CONFIG_KEY.to_owned(), config);
            }
            opened
        }
        Place::Dcp(path) => dcp::open(&path, options)?,
        // What else it is, the checkpoint's reader knows.
        Place::Unknown => checkpoint(path, options)?,
    };
    opened.finish();
    Ok(opened)
}

/// Opens one file; ties and marks are left in the metadata.
fn file(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let source = Source::open(path, options.backing)?;
    if is_safetensors(&source) {
        return read::file(&source, path);
    }
    pth_file(source, path, options)
}

/// Opens one checkpoint.
pub(super) fn pth_file(source: Source, path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    taken(Checkpoint::from_source(source, options), path)
}

fn checkpoint(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    taken(Checkpoint::open_with(path, options), path)
}

fn taken(checkpoint: Result<Checkpoint, pth::Error>, path: &Path) -> Result<Opened, Error> {
    let checkpoint = checkpoint.map_err(|source| match source {
        pth::Error::File(error) => Error::File(error),
        source => Error::Checkpoint {
            path: path.to_owned(),
            source,
        },
    })?;
    Ok(Opened {
        format: Format::Pth(checkpoint.format()),
        wrapper: checkpoint.wrapper().to_owned(),
        metadata: BTreeMap::new(),
        pieces: Vec::new(),
        others: checkpoint.others().to_vec(),
        other_tensors: checkpoint.other_tensors().clone(),
        problems: checkpoint.problems().to_vec(),
        sources: checkpoint.sources().to_vec(),
        state_dict: checkpoint.into_state_dict(),
    })
}

/// Whether the file is called like an index, and begins like JSON.
fn is_index(path: &Path) -> bool {
    let is_named = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(folder::is_index_name);
    if !is_named {
        return false;
    }
    let mut head = [0; 64];
    let n = File::open(path)
        .and_then(|mut file| file.read(&mut head))
        .unwrap_or(0);
    head[..n].trim_ascii_start().first() == Some(&b'{')
}

/// Whether `source` begins like a safetensors file: a length that the format allows, then the `{` that it demands.
pub fn is_safetensors(source: &Source) -> bool {
    let mut head = [0; 9];
    if source.read_at(0, &mut head).is_err() {
        return false;
    }
    let [length @ .., brace] = head;
    (2..=100_000_000).contains(&u64::from_le_bytes(length)) && brace == b'{'
}
