//! What has arrived of a file: `NAME.part` beside its target, and what it is the beginning of.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pth::FileError;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::digest::hash_into;
use crate::error::Error;
use crate::features::write_whole;
use crate::monitor::Monitor;

/// The beginning of a file, locked as long as this lives. It stays on the disk unless it is removed or has got its name.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    origin_path: PathBuf,
}

/// Which version of which file the bytes are the beginning of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    /// Digest of the URL, which may hold secrets.
    pub(super) url_key: String,
    /// What `If-Range` takes: a strong `ETag`, else `Last-Modified`.
    pub(super) validator: Option<String>,
    /// Bytes of the whole file, where the server says it.
    pub(super) n_bytes: Option<u64>,
}

impl Partial {
    /// Opens or makes it; waits while another process writes it.
    ///
    /// # Errors
    /// The file system's; [`Error::Stopped`].
    pub(super) fn open(target: &Path, monitor: Monitor<'_>) -> Result<Partial, Error> {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let beside = |ending: &str| {
            let mut name = target.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            target.with_file_name(name)
        };
        let path = beside(".part");
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(FileError::at("create", &path))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    if monitor.is_cancelled() {
                        return Err(Error::Stopped { n_bytes: 0 });
                    }
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
                // A file system without locks: two who download the same at once are told by the digest.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            // Who had the lock may have given the file its name, or have removed it.
            if is_at(&file, &path) {
                return Ok(Partial {
                    file,
                    path,
                    origin_path: beside(".part.json"),
                });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are there.
    pub(super) fn len(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(FileError::at("read", &self.path))?.len())
    }

    /// What the bytes are the beginning of, where that is known.
    pub(super) fn origin(&self) -> Option<Origin> {
        serde_json::from_slice(&fs::read(&self.origin_path).ok()?).ok()
    }

    /// Hashes what is there, and stands behind it.
    pub(super) fn hash(&mut self, sha256: &mut Sha256, monitor: Monitor<'_>) -> Result<u64, Error> {
        self.seek(0)?;
        hash_into(sha256, &mut self.file, &self.path, monitor)
    }

    /// Begins anew.
    pub(super) fn restart(&mut self, origin: &Origin) -> Result<(), Error> {
        // Empty before it is called the beginning of something else.
        self.file.set_len(0).map_err(FileError::at("write", &self.path))?;
        self.seek(0)?;
        let bytes = serde_json::to_vec(origin).expect("plain data is JSON");
        Ok(write_whole(&self.origin_path, &bytes)?)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(bytes);
        Ok(written.map_err(FileError::at("write", &self.path))?)
    }

    /// Makes what is there durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        Ok(self.file.sync_all().map_err(FileError::at("write", &self.path))?)
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<(), Error> {
        let removed = fs::remove_file(&self.path);
        removed.map_err(FileError::at("remove", &self.path))?;
        self.forget();
        Ok(())
    }

    /// It has got its name, and what it was the beginning of does not matter any more.
    pub(super) fn forget(self) {
        let _ = fs::remove_file(&self.origin_path);
    }

    fn seek(&mut self, at: u64) -> Result<(), Error> {
        let sought = self.file.seek(SeekFrom::Start(at));
        sought.map_err(FileError::at("read", &self.path))?;
        Ok(())
    }
}

/// Where nothing arrived, nothing is left.
impl Drop for Partial {
    fn drop(&mut self) {
        if self.len().is_ok_and(|n_bytes| n_bytes == 0) && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.origin_path);
        }
    }
}

/// Whether an open file still has this path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

/// Whether an open file still has this path, as far as that shows.
#[cfg(not(unix))]
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => ours.len() == theirs.len(),
        _ => false,
    }
}
