//! Writing state dicts of any size in bounded memory.
//!
//! The whole layout of the output is known from headers, so that every byte has its place before the first is written. Threads take
//! chunks in the order in which the input has them, and write each where it belongs. Files appear whole or not at all; of a set, the
//! index comes last.

mod index;
mod layout;
mod pth_file;
mod run;
mod safetensors_file;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use pth::{Existing, Profile};

use crate::Error;
use crate::lazy::LazyStateDict;
pub use layout::{Cost, Layout};

/// What kind of file a state dict is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// `.safetensors`
    Safetensors,
    /// `.pth`, `.pt`, `.bin`, `.ckpt`: a zip archive that torch loads.
    Pth,
}

impl OutputFormat {
    /// By the extension of `path`; safetensors for what has none and is therefore a folder. None for what is not written.
    pub fn of(path: &Path) -> Option<OutputFormat> {
        if path.is_dir() || path.as_os_str().to_string_lossy().ends_with(['/', '\\']) {
            return Some(OutputFormat::Safetensors);
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            None | Some("safetensors") => Some(OutputFormat::Safetensors),
            Some("pth" | "pt" | "bin" | "ckpt") => Some(OutputFormat::Pth),
            Some(_) => None,
        }
    }
}

/// How a state dict is written.
pub struct WriteOptions<'a> {
    /// What kind of file.
    pub format: OutputFormat,
    /// The most bytes of tensors that one file may have; none for one file.
    pub max_shard_bytes: Option<u64>,
    /// Who is to read a `.pth`.
    pub profile: Profile,
    /// What to do with files that are there.
    pub existing: Existing,
    /// Threads that read, compute and write; 0 for as many as there are cores, up to 4, since more only fight for the disk.
    pub threads: usize,
    /// Told of bytes as they are written.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Ends the work at the next chunk.
    pub cancelled: &'a AtomicBool,
}

impl WriteOptions<'_> {
    /// One file, which must not be there, without progress.
    pub fn new(format: OutputFormat) -> WriteOptions<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        WriteOptions {
            format,
            max_shard_bytes: None,
            profile: Profile::Torch,
            existing: Existing::Refuse,
            threads: 0,
            progress: &|_| {},
            cancelled: &NEVER,
        }
    }

    fn n_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            n => n,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteReport {
    /// The files, the index last.
    pub files: Vec<PathBuf>,
    /// Their sizes together.
    pub n_bytes: u64,
    /// Second names of a tensor with the name under which it is written: safetensors keeps each tensor once.
    pub tied: Vec<(String, String)>,
    /// Names whose tensors overlapped in memory without being the same. In safetensors each has its own bytes.
    pub separated: Vec<Vec<String>>,
}

/// Writes `tensors` to `path`, which may be a folder, or becomes several files where `max_shard_bytes` says so.
///
/// # Errors
/// What the format cannot express, before anything is written; a tensor that cannot be made; a file that exists; the disk.
pub fn write(path: &Path, tensors: &LazyStateDict, options: &WriteOptions<'_>) -> Result<WriteReport, Error> {
    Layout::plan(path, tensors, options)?.write(options)
}

/// As [`write`], to the one file of that name, whatever its extension.
pub(crate) fn write_file(
    path: &Path,
    tensors: &LazyStateDict,
    options: &WriteOptions<'_>,
) -> Result<WriteReport, Error> {
    Layout::plan_file(path, tensors, options)?.write(options)
}

/// `__metadata__` of a safetensors file of `tensors`.
pub(crate) fn file_metadata(tensors: &LazyStateDict) -> std::collections::BTreeMap<String, String> {
    safetensors_file::metadata(tensors, &layout::tied(tensors))
}
