//! Any supported file of tensors, by content.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use pth::{Checkpoint, ModuleSource, OpenOptions, Other, Problem, Source, StateDict};

use super::safetensors;
use crate::Error;

/// What a file of tensors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A PyTorch checkpoint.
    Pth(pth::Format),
    /// safetensors.
    Safetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Pth(format) => format.fmt(f),
            Format::Safetensors => f.write_str("safetensors"),
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

/// Opens `path`, whatever it is called: a PyTorch checkpoint of any container, or safetensors.
///
/// # Errors
/// The file cannot be read, or is neither.
pub fn open(path: &Path) -> Result<Opened, Error> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], in another way than the default.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let named = |source| match source {
        pth::Error::File(error) => Error::File(error),
        source => Error::Checkpoint {
            path: path.to_owned(),
            source,
        },
    };
    if path.is_dir() {
        // No folder is read; what it is, the checkpoint's reader knows.
        Checkpoint::open_with(path, options).map_err(named)?;
    }
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
    let checkpoint = Checkpoint::from_source(source, options).map_err(named)?;
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

/// Whether `source` begins like a safetensors file: a length that the format allows, then the `{` that it demands.
pub fn is_safetensors(source: &Source) -> bool {
    let mut head = [0; 9];
    if source.read_at(0, &mut head).is_err() {
        return false;
    }
    let [length @ .., brace] = head;
    (2..=100_000_000).contains(&u64::from_le_bytes(length)) && brace == b'{'
}
