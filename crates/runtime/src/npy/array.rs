//! Arrays that stay on the disk: a `.npy` file, or a member of a `.npz`, read a stretch at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pth::{Backing, FileError, Source, Storage};

use super::header::Header;
use crate::data::positional;
use crate::error::Error;

/// An array whose header was read.
#[derive(Debug)]
pub(crate) struct ArrayFile {
    /// The file, for messages.
    pub(crate) path: PathBuf,
    /// Its name in a `.npz`.
    pub(crate) member: Option<String>,
    pub(crate) header: Header,
    file: File,
    /// Where the numbers begin.
    at: u64,
    /// Whether they lie in the file at `path`, not in an unpacked copy.
    is_in_place: bool,
}

impl ArrayFile {
    /// Opens a `.npy` file.
    ///
    /// # Errors
    /// [`Error::BadFile`] for another kind of file, and for one that is shorter or longer than its shape.
    pub(crate) fn open(path: &Path) -> Result<ArrayFile, Error> {
        let bad = |reason: String| Error::BadFile {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(FileError::at("read", path))?;
        let len = file.metadata().map_err(FileError::at("read", path))?.len();
        let header = Header::read(&mut BufReader::with_capacity(256, &file)).map_err(bad)?;
        if header.data_at.checked_add(header.n_bytes) != Some(len) {
            return Err(bad("its data is not as long as its shape says".to_owned()));
        }
        Ok(ArrayFile {
            path: path.to_owned(),
            member: None,
            at: header.data_at,
            header,
            file,
            is_in_place: true,
        })
    }

    /// The bytes of the numbers, mapped where they lie in the file as they are; else read.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn storage(&self) -> Result<Storage, Error> {
        if self.is_in_place {
            let source = Source::open(&self.path, Backing::Map)?;
            let start = usize::try_from(self.at).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(self.header.n_bytes).unwrap_or(usize::MAX));
            return Storage::window(&source, start..end, "")
                .ok_or_else(|| self.bad("its data is not as long as its shape says"));
        }
        let mut bytes = Vec::new();
        self.each_chunk(|chunk| bytes.extend_from_slice(chunk))?;
        Ok(Storage::owned(bytes))
    }

    /// Reads numbers from `offset` bytes behind the first on.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` where it has become shorter.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match positional::read_up_to(&self.file, buffer, self.at.saturating_add(offset))? {
            n if n == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Hands all bytes of the numbers to `take`, a stretch of whole numbers at a time.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn each_chunk(&self, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let item = self.header.item_bytes().max(1) as u64;
        let chunk = (CHUNK_BYTES / item).max(1) * item;
        let mut buffer = Vec::new();
        let mut offset = 0;
        while offset < self.header.n_bytes {
            let n = chunk.min(self.header.n_bytes - offset);
            buffer.resize(usize::try_from(n).unwrap_or(0), 0);
            self.read_at(offset, &mut buffer)
                .map_err(FileError::at("read", &self.path))?;
            take(&buffer);
            offset += n;
        }
        Ok(())
    }

    /// An error about this array.
    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        let reason = reason.into();
        Error::BadFile {
            path: self.path.clone(),
            reason: match &self.member {
                Some(member) => format!("array `{member}`: {reason}"),
                None => reason,
            },
        }
    }
}

/// Opens the arrays of a `.npz`, in order of names. One that is stored is read where it is, one that is compressed from a
/// temporary file without a name, so that memory does not grow with it.
///
/// # Errors
/// [`Error::BadFile`] for another kind of file, and for a member that is no array.
pub(crate) fn open_npz(path: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<ArrayFile>, Error> {
    let bad = |reason: String| Error::BadFile {
        path: path.to_owned(),
        reason,
    };
    let broken = |error: zip::result::ZipError| bad(format!("this is no .npz archive: {error}"));
    let file = File::open(path).map_err(FileError::at("read", path))?;
    let len = file.metadata().map_err(FileError::at("read", path))?.len();
    let copy = || file.try_clone().map_err(FileError::at("read", path));
    let mut archive = zip::ZipArchive::new(BufReader::new(copy()?)).map_err(broken)?;
    let mut names: Vec<(String, usize)> = (0..archive.len())
        .filter_map(|idx| {
            let name = archive.name_for_index(idx)?.ok()?;
            let name = name.strip_suffix(".npy").unwrap_or(&name);
            is_wanted(name).then(|| (name.to_owned(), idx))
        })
        .collect();
    names.sort();
    let mut arrays = Vec::new();
    for (name, idx) in names {
        let bad_member = |reason: String| bad(format!("array `{name}`: {reason}"));
        let mut member = archive.by_index(idx).map_err(broken)?;
        let (size, is_stored) = (
            member.size(),
            member.compression() == zip::CompressionMethod::Stored,
        );
        let start = member.data_start();
        let header = Header::read(&mut member).map_err(bad_member)?;
        if header.data_at.checked_add(header.n_bytes) != Some(size) {
            return Err(bad_member("its data is not as long as its shape says".to_owned()));
        }
        let (file, at, is_in_place) = match (is_stored, start) {
            (true, Some(start)) => {
                let at = start.saturating_add(header.data_at);
                if at.saturating_add(header.n_bytes) > len {
                    return Err(bad_member("its data lies beyond the end of the file".to_owned()));
                }
                (copy()?, at, true)
            }
            _ => (
                unpack(&mut member, header.n_bytes).map_err(|error| bad_member(error.to_string()))?,
                0,
                false,
            ),
        };
        arrays.push(ArrayFile {
            path: path.to_owned(),
            member: Some(name),
            header,
            file,
            at,
            is_in_place,
        });
    }
    Ok(arrays)
}

/// Writes exactly `n_bytes` to a temporary file.
fn unpack(member: &mut impl Read, n_bytes: u64) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    let n = io::copy(&mut member.take(n_bytes), &mut file)?;
    if n != n_bytes {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "its data is cut short",
        ));
    }
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
