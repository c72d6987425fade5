//! Where a file's bytes come from: a memory map, positional reads, or memory. The one place of this crate with `unsafe`.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::{Mmap, MmapOptions};

use crate::FileError;

/// Reads from this size on are never copied out of a map.
const LARGE_BYTES: usize = 1 << 16;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Through a memory map: nothing is copied. Truncating the file in place while it is mapped kills the process, on every system.
    #[default]
    Map,
    /// As [`Map`](Backing::Map), and the file is closed: for more files than a process may have open. A change of the file is
    /// not noticed, and errors do not name it.
    Detached,
    /// By positional reads (`pread`): for network file systems, and for files that others may change.
    Read,
}

/// A file's bytes, of which none is read until it is asked for. A clone shares them.
///
/// Replacing the file by renaming over it is always safe; the old bytes stay readable.
#[derive(Clone)]
pub struct Source {
    inner: Arc<Inner>,
    /// The part of the file that this is.
    start: usize,
    len: usize,
}

struct Inner {
    bytes: Bytes,
    len: usize,
    file: Option<Watched>,
}

impl From<Inner> for Source {
    fn from(inner: Inner) -> Source {
        Source {
            start: 0,
            len: inner.len,
            inner: Arc::new(inner),
        }
    }
}

enum Bytes {
    Map(Mmap),
    File,
    Owned(Vec<u8>),
}

/// The file behind, and what it was when it was opened.
struct Watched {
    file: File,
    path: PathBuf,
    modified: Option<SystemTime>,
}

impl Source {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is not a regular file.
    #[expect(unsafe_code, reason = "the one memory map")]
    pub fn open(path: &Path, backing: Backing) -> Result<Source, FileError> {
        let file = File::open(path).map_err(FileError::at("open", path))?;
        let about = file.metadata().map_err(FileError::at("open", path))?;
        if about.is_dir() {
            return Err(FileError::at("open", path)(io::ErrorKind::IsADirectory.into()));
        }
        if !about.is_file() {
            let not_a_file = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(FileError::at("open", path)(not_a_file));
        }
        let len = usize::try_from(about.len())
            .map_err(|_| FileError::at("open", path)(io::ErrorKind::FileTooLarge.into()))?;
        let bytes = match backing {
            // An empty file cannot be mapped.
            Backing::Map | Backing::Detached if len > 0 => {
                // SAFETY: the map is read-only and private to this value, and its bytes are only ever read as plain bytes,
                // for which every value is valid. The condition that no one changes the file underneath is the caller's,
                // stated above; a change is noticed by `check_unchanged`. This crate itself never writes to an existing
                // file (`AtomicFile` renames over it).
                Bytes::Map(unsafe { MmapOptions::new().map(&file) }.map_err(FileError::at("map", path))?)
            }
            _ => Bytes::File,
        };
        let file = Watched {
            file,
            path: path.to_owned(),
            modified: about.modified().ok(),
        };
        let is_watched = backing != Backing::Detached;
        Ok(Source::from(Inner {
            bytes: match bytes {
                Bytes::File if !is_watched => Bytes::Owned(Vec::new()),
                bytes => bytes,
            },
            len,
            file: is_watched.then_some(file),
        }))
    }

    /// Bytes that are in memory already.
    pub fn from_bytes(bytes: Vec<u8>) -> Source {
        Source::from(Inner {
            len: bytes.len(),
            bytes: Bytes::Owned(bytes),
            file: None,
        })
    }

    /// A part of it as a source of its own: a file that lies in another. None if it ends before.
    pub fn part(&self, range: Range<usize>) -> Option<Source> {
        let is_inside = range.start <= range.end && range.end <= self.len;
        is_inside.then(|| Source {
            inner: Arc::clone(&self.inner),
            start: self.start + range.start,
            len: range.len(),
        })
    }

    /// Size in bytes, as it was when the file was opened.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file's path; none for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.inner.file.as_ref().map(|watched| watched.path.as_path())
    }

    /// All bytes, if they can be had without reading: mapped or owned.
    pub fn as_slice(&self) -> Option<&[u8]> {
        let all: &[u8] = match &self.inner.bytes {
            Bytes::Map(map) => map,
            Bytes::Owned(bytes) => bytes,
            Bytes::File => return None,
        };
        all.get(self.start..self.start + self.len)
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The file ends before (`UnexpectedEof`), or cannot be read.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len()).filter(|&end| end <= self.len);
        let Some(end) = end else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        // A large part of a file is read even where the file is mapped: pages of a map, once touched, count as this process's memory.
        let is_small = out.len() < LARGE_BYTES;
        match (self.as_slice(), &self.inner.file) {
            (Some(bytes), file) if is_small || file.is_none() => match bytes.get(offset..end) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            },
            (_, Some(watched)) => read_exact_at(&watched.file, out, self.start + offset)?,
            (_, None) => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    /// The bytes of `range` in memory of their own.
    ///
    /// # Errors
    /// As [`read_at`](Source::read_at).
    pub(crate) fn read(&self, range: Range<usize>) -> io::Result<Vec<u8>> {
        if range.end > self.len || range.start > range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; range.len()];
        self.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Names the file, if it is one, behind an I/O error.
    pub(crate) fn error(&self, source: io::Error) -> FileError {
        FileError {
            action: "read",
            path: self.path().map(Path::to_owned).unwrap_or_default(),
            source,
        }
    }

    /// Whether the file is what it was when it was opened, by its size and its time of modification.
    ///
    /// Its time of change is left out: renaming another file over it changes that, and is harmless.
    pub fn is_unchanged(&self) -> bool {
        let is_same = |watched: &Watched| {
            let same = |about: Metadata| {
                usize::try_from(about.len()) == Ok(self.inner.len)
                    && about.modified().ok() == watched.modified
            };
            watched.file.metadata().is_ok_and(same)
        };
        self.inner.file.as_ref().is_none_or(is_same)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: usize) -> io::Result<()> {
    let offset = u64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, out: &mut [u8], offset: usize) -> io::Result<()> {
    let mut offset = u64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut rest = out;
    while !rest.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, rest, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                rest = rest.split_at_mut(n).1;
                offset = offset.saturating_add(u64::try_from(n).map_err(|_| io::ErrorKind::InvalidInput)?);
            }
        }
    }
    Ok(())
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn backings_agree_and_a_change_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        File::create(&path).unwrap().write_all(b"0123456789").unwrap();
        let sources = [
            Source::open(&path, Backing::Map).unwrap(),
            Source::open(&path, Backing::Read).unwrap(),
            Source::from_bytes(b"0123456789".to_vec()),
        ];
        for source in &sources {
            assert_eq!(source.read(3..6).unwrap(), b"345");
            assert_eq!(
                source.read(8..11).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
            assert!(source.is_unchanged());
        }
        for source in &sources {
            let part = source.part(2..8).unwrap().part(1..5).unwrap();
            assert_eq!((part.len(), part.read(1..4).unwrap()), (4, b"456".to_vec()));
            assert!(part.as_slice().is_none_or(|bytes| bytes == b"3456"));
            assert!(part.read(2..5).is_err() && part.part(3..5).is_none());
        }
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"more").unwrap();
        assert_eq!(sources.map(|source| source.is_unchanged()), [false, false, true]);
    }
}
