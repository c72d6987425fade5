//! A whole file in memory by mapping: the one place of this crate with `unsafe`.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

use crate::FileError;

/// A read-only map of a whole file; a clone shares it.
///
/// Nothing is read until it is touched.
/// Replacing the file by renaming over it is safe while it is mapped; truncating it in place kills the process, on every system.
#[derive(Clone)]
pub struct FileMap(Arc<Option<Mmap>>);

impl FileMap {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is not a regular file.
    pub fn open(path: &Path) -> Result<FileMap, FileError> {
        let file = File::open(path).map_err(FileError::at("open", path))?;
        let about = file.metadata().map_err(FileError::at("open", path))?;
        if about.is_dir() {
            return Err(FileError::at("open", path)(io::ErrorKind::IsADirectory.into()));
        }
        if !about.is_file() {
            let not_a_file = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(FileError::at("open", path)(not_a_file));
        }
        if about.len() == 0 {
            return Ok(FileMap(Arc::new(None)));
        }
        // SAFETY: the map is read-only and private to this value, and its bytes are only ever read as plain bytes, for which
        // every value is valid. The condition that no one changes the file underneath is the caller's, stated above: this
        // crate itself never writes to an existing file (`AtomicFile` renames over it).
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(FileError::at("map", path))?;
        Ok(FileMap(Arc::new(Some(map))))
    }

    /// All bytes of the file.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for FileMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMap({} bytes)", self.as_bytes().len())
    }
}
