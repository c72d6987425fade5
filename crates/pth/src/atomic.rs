//! Replacing a file whole or not touching it: a temporary sibling, fsync, rename, fsync of the folder.
//!
//! A crash, a full disk or a kill at any point leaves the old file (or none) and at most a `.NAME.PID-RANDOM.tmp` sibling.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An operation of the file system that failed: what was attempted, on which path, and the cause as `source()`.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`", path.display())]
pub struct FileError {
    /// What was attempted, as a verb phrase: `read`, `create`, `write`.
    pub action: &'static str,
    /// The path it was attempted on.
    pub path: PathBuf,
    /// What the operating system answered.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Names the attempt behind an I/O error; made for `map_err(FileError::at("read", path))`.
    pub fn at<'p>(action: &'static str, path: &'p Path) -> impl Fn(io::Error) -> FileError + use<'p> {
        move |source| FileError {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// What to do when the target is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Fail with `AlreadyExists`, also when it appears while the new file is being written.
    Refuse,
    /// Put the new file in its place in one step.
    Replace,
}

/// A file that appears under its name only when [`commit`](AtomicFile::commit) succeeds; dropped before, it leaves nothing.
///
/// ```
/// use std::io::Write;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("head.safetensors");
/// let mut file = pth::AtomicFile::create(&path, pth::Existing::Refuse)?;
/// file.write_all(b"all of it")?;
/// file.commit()?;
/// assert_eq!(std::fs::read(&path)?, b"all of it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temp: PathBuf,
    target: PathBuf,
    existing: Existing,
    committed: bool,
}

impl AtomicFile {
    /// Opens a temporary sibling of `target`, whose folder must exist.
    ///
    /// # Errors
    /// The target exists and `existing` is [`Existing::Refuse`]; the folder is missing or not writable.
    pub fn create(target: &Path, existing: Existing) -> Result<AtomicFile, FileError> {
        // A symbolic link is followed, so that the file behind it is replaced and not the link.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        if existing == Existing::Refuse && target.exists() {
            return Err(FileError::at("create", &target)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let name = target
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        // A process number alone would meet the leftovers of a killed run: in a container it is the same every time.
        let random = RandomState::new().hash_one(std::time::Instant::now());
        let temp = target.with_file_name(format!(".{name}.{}-{random:016x}.tmp", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .open(&temp)
            .map_err(FileError::at("create", &target))?;
        if let Ok(old) = fs::metadata(&target) {
            // The mode of the file that is replaced is kept; failing that, what the umask gave is right.
            let _ = file.set_permissions(old.permissions());
        }
        Ok(AtomicFile {
            file,
            temp,
            target,
            existing,
            committed: false,
        })
    }

    /// The file under its temporary name, for positional writes and preallocation.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the bytes durable and gives them their name.
    ///
    /// # Errors
    /// A failed flush, or a target that has appeared meanwhile under [`Existing::Refuse`]; nothing is left behind then.
    pub fn commit(mut self) -> Result<(), FileError> {
        // A failed fsync is never repeated: the kernel has marked the pages clean, a second call would lie.
        self.file
            .sync_all()
            .map_err(FileError::at("write", &self.target))?;
        put_in_place(&self.temp, &self.target, self.existing)?;
        self.committed = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl io::Seek for AtomicFile {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Gives a whole and durable sibling of `target` that file's name, and makes that durable too.
///
/// # Errors
/// The target exists and `existing` is [`Existing::Refuse`]; the sibling is left where it is then.
pub fn put_in_place(sibling: &Path, target: &Path, existing: Existing) -> Result<(), FileError> {
    match existing {
        Existing::Replace => fs::rename(sibling, target),
        Existing::Refuse => match fs::hard_link(sibling, target) {
            Ok(()) => fs::remove_file(sibling),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // A file system without hard links cannot refuse in one step; the window is then this line.
            Err(_) if target.exists() => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(sibling, target),
        },
    }
    .map_err(FileError::at("create", target))?;
    sync_folder(target);
    Ok(())
}

/// Makes the name of a new file durable. Some file systems refuse to sync a folder; the file itself is safe by then.
pub fn sync_folder(target: &Path) {
    let folder = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_the_old_one_and_no_sibling() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        for text in [b"old".as_slice(), b"older than new"] {
            let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
            file.write_all(text).unwrap();
            file.commit().unwrap();
        }
        let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"older than new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuse_refuses_before_and_after_the_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let late = AtomicFile::create(&path, Existing::Refuse).unwrap();
        AtomicFile::create(&path, Existing::Refuse)
            .unwrap()
            .commit()
            .unwrap();
        let kind = |error: FileError| error.source.kind();
        assert_eq!(kind(late.commit().unwrap_err()), io::ErrorKind::AlreadyExists);
        let error = AtomicFile::create(&path, Existing::Refuse).unwrap_err();
        assert_eq!(kind(error), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
