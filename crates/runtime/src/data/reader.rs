//! Reading samples: one reader per worker, with its own buffer and open files.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::content::Content;
use super::{Backing, Dataset};

/// The largest encoded sample that is read: what a file claims must not decide how much memory it takes.
const MAX_SAMPLE_BYTES: u64 = 512 << 20;

/// Reads samples of a [`Dataset`].
#[derive(Debug)]
pub struct Reader<'d> {
    data: &'d Dataset,
    buffer: Vec<u8>,
}

impl<'d> Reader<'d> {
    pub(super) fn new(data: &'d Dataset) -> Reader<'d> {
        Reader {
            data,
            buffer: Vec::new(),
        }
    }

    /// The content of a sample.
    ///
    /// # Errors
    /// Why this one cannot be read, in one sentence without its name; the others still can.
    ///
    /// # Panics
    /// Beyond the data set's length.
    pub fn read(&mut self, idx: usize) -> Result<Content<'_>, String> {
        match &self.data.backing {
            Backing::Files(root) => {
                let (prefix, name) = self.data.listing.names.parts(idx);
                read_file(&root.join(prefix).join(name), &mut self.buffer)?;
                Ok(Content::Encoded(Cow::Borrowed(&self.buffer)))
            }
        }
    }
}

/// Reads a whole regular file into `buffer`.
pub(super) fn read_file(path: &Path, buffer: &mut Vec<u8>) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
    buffer.clear();
    // Asked before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    check_size(metadata.len())?;
    let file = File::open(path).map_err(cannot)?;
    buffer.reserve(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    // A file can grow between the two.
    let n = file
        .take(MAX_SAMPLE_BYTES + 1)
        .read_to_end(buffer)
        .map_err(cannot)?;
    check_size(n as u64)
}

fn check_size(n_bytes: u64) -> Result<(), String> {
    if n_bytes > MAX_SAMPLE_BYTES {
        return Err(format!(
            "it has {n_bytes} bytes; a sample has {} MiB at most",
            MAX_SAMPLE_BYTES >> 20
        ));
    }
    Ok(())
}
