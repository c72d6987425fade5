//! Any supported file or set of tensors, by content.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pth::{Checkpoint, ModuleSource, OpenOptions, Other, Problem, Source, StateDict};

use super::{adapter, safetensors, sharded};
use crate::Error;

/// What a file of tensors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A PyTorch checkpoint.
    Pth(pth::Format),
    /// safetensors.
    Safetensors,
    /// Several safetensors files with an index.
    ShardedSafetensors {
        /// How many.
        n_shards: usize,
    },
    /// Several PyTorch checkpoints with an index.
    ShardedPth {
        /// How many.
        n_shards: usize,
    },
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Pth(format) => format.fmt(f),
            Format::Safetensors => f.write_str("safetensors"),
            Format::ShardedSafetensors { n_shards } => write!(f, "safetensors, {n_shards} shards"),
            Format::ShardedPth { n_shards } => write!(f, "PyTorch checkpoints, {n_shards} shards"),
        }
    }
}

/// An open file of tensors: its state dict and an account of all else.
#[derive(Debug)]
pub struct Opened {
    /// What the file is.
    pub format: Format,
    /// The model's tensors.
    pub state_dict: StateDict,
    /// Where in a checkpoint the state dict was found; empty for the root.
    pub wrapper: String,
    /// `__metadata__` of safetensors.
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

/// Opens `path`, whatever it is called: a PyTorch checkpoint of any container, safetensors, the index of a set of either, or the
/// folder of one.
///
/// # Errors
/// The file cannot be read, or is none of these; the files of a set are not those that its index lists.
pub fn open(path: &Path) -> Result<Opened, Error> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], in another way than the default.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let path = &match path.is_dir() {
        true => in_folder(path, options)?,
        false => path.to_owned(),
    };
    let mut opened = if sharded::is_index(path) {
        sharded::open(path, options)?
    } else {
        open_file(path, options)?
    };
    safetensors::apply_metadata(&mut opened.state_dict, &mut opened.metadata);
    if let Some(config) = adapter::config_beside(path)? {
        opened.metadata.insert(adapter::CONFIG_KEY.to_owned(), config);
    }
    Ok(opened)
}

/// One file; marks and ties in its metadata are left for the caller.
pub(super) fn open_file(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let source = Source::open(path, options.backing)?;
    if is_safetensors(&source) {
        let (state_dict, metadata) = safetensors::read(&source, path)?;
        return Ok(Opened {
            format: Format::Safetensors,
            state_dict,
            wrapper: String::new(),
            metadata,
            others: Vec::new(),
            other_tensors: StateDict::new(),
            problems: Vec::new(),
            sources: Vec::new(),
        });
    }
    let checkpoint = Checkpoint::from_source(source, options).map_err(|source| named(path, source))?;
    Ok(Opened {
        format: Format::Pth(checkpoint.format()),
        wrapper: checkpoint.wrapper().to_owned(),
        metadata: BTreeMap::new(),
        others: checkpoint.others().to_vec(),
        other_tensors: checkpoint.other_tensors().clone(),
        problems: checkpoint.problems().to_vec(),
        sources: checkpoint.sources().to_vec(),
        state_dict: checkpoint.into_state_dict(),
    })
}

fn named(path: &Path, source: pth::Error) -> Error {
    match source {
        pth::Error::File(error) => Error::File(error),
        source => Error::Checkpoint {
            path: path.to_owned(),
            source,
        },
    }
}

/// The file of a folder that stands for all of it, under the names that transformers gives: an index before a single file,
/// safetensors before pickles.
fn in_folder(folder: &Path, options: &OpenOptions) -> Result<PathBuf, Error> {
    let names = [
        "model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
    ];
    if let Some(path) = names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
    {
        return Ok(path);
    }
    let read = pth::FileError::at("read", folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(&read)? {
        paths.push(entry.map_err(&read)?.path());
    }
    paths.sort();
    let ends = |end: &str| {
        let mut found = paths.iter().filter(|path| path.to_string_lossy().ends_with(end));
        (found.next().cloned(), found.next().is_some())
    };
    for end in [".index.json", ".safetensors"] {
        match ends(end) {
            (Some(path), false) => return Ok(path),
            (Some(_), true) => {
                return Err(Error::Set {
                    path: folder.to_owned(),
                    fault: format!("it holds several `*{end}` files and none that is called `model{end}`"),
                });
            }
            (None, _) => {}
        }
    }
    // What else the folder is, the checkpoint's reader knows.
    match Checkpoint::open_with(folder, options) {
        Err(error) => Err(named(folder, error)),
        Ok(_) => Err(Error::Set {
            path: folder.to_owned(),
            fault: "it holds no checkpoint".to_owned(),
        }),
    }
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
