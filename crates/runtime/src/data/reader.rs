//! Reading samples: one reader per worker, with its own buffers and open files.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::content::Content;
use super::listing::{Names, Place};
use super::options::Wanted;
use super::parquet::{Value, Window};
use super::positional::open_regular;
use super::{Backing, Dataset};

/// The largest sample that is read: what a file claims must not decide how much memory it takes.
const MAX_SAMPLE_BYTES: u64 = 512 << 20;

/// Reads samples of a [`Dataset`].
#[derive(Debug)]
pub struct Reader<'d> {
    data: &'d Dataset,
    buffer: Vec<u8>,
    /// A second one, for what is made from the first.
    scratch: Vec<u8>,
    files: OpenFiles,
    window: Window,
}

impl<'d> Reader<'d> {
    pub(super) fn new(data: &'d Dataset) -> Reader<'d> {
        Reader {
            data,
            buffer: Vec::new(),
            scratch: Vec::new(),
            files: OpenFiles::default(),
            window: Window::default(),
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
        let listing = &self.data.listing;
        let place = listing.place(idx).unwrap_or(Place { at: 0, len: 0 });
        match &self.data.backing {
            Backing::Files(root) => {
                read_named(root, &listing.names, idx, &mut self.buffer)?;
                Ok(Content::Encoded(Cow::Borrowed(&self.buffer)))
            }
            Backing::Listed { root, paths } => {
                let paths = paths.as_ref().unwrap_or(&listing.names);
                read_named(root, paths, idx, &mut self.buffer).map_err(|reason| {
                    format!("{reason}; it is named on line {} of the manifest", place.len)
                })?;
                Ok(Content::Encoded(Cow::Borrowed(&self.buffer)))
            }
            Backing::Texts(texts) => {
                let file = self.files.get(0, &texts.file)?;
                Ok(Content::Text(Cow::Owned(texts.read(file, place)?)))
            }
            Backing::Tars(tars) => {
                let (number, place) = tars.locate(place);
                let file = self.files.get(number, tars.file(number))?;
                tars.read(file, place, &mut self.buffer)?;
                match tars.is_text() {
                    true => text(&self.buffer),
                    false => Ok(Content::Encoded(Cow::Borrowed(&self.buffer))),
                }
            }
            Backing::Parquet(source, wanted) => {
                self.buffer.clear();
                match source.fetch(place.at, &mut self.window)? {
                    Value::Bytes(bytes) => self.buffer.extend_from_slice(bytes.data()),
                    Value::Path(path) => {
                        let folder = source
                            .file(source.file_of(place.at))
                            .parent()
                            .unwrap_or(Path::new(""));
                        read_file(&folder.join(path), &mut self.buffer)?;
                    }
                }
                match wanted {
                    Wanted::Texts => text(&self.buffer),
                    Wanted::Auto | Wanted::Pictures => Ok(Content::Encoded(Cow::Borrowed(&self.buffer))),
                }
            }
            Backing::Pixels(pixels) => {
                let (width, height) = pixels.read(place.at, &mut self.buffer, &mut self.scratch)?;
                Ok(Content::Pixels {
                    width,
                    height,
                    rgb: Cow::Borrowed(&self.buffer),
                })
            }
        }
    }
}

fn text(bytes: &[u8]) -> Result<Content<'_>, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Content::Text(Cow::Borrowed(text))),
        Err(_) => Err("its text is not UTF-8".to_owned()),
    }
}

fn read_named(root: &Path, names: &Names, idx: usize, buffer: &mut Vec<u8>) -> Result<(), String> {
    let (prefix, name) = names.parts(idx);
    read_file(&root.join(prefix).join(name), buffer)
}

/// Reads a whole regular file into `buffer`.
fn read_file(path: &Path, buffer: &mut Vec<u8>) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
    buffer.clear();
    let file = open_regular(path)?;
    let len = file.metadata().map_err(cannot)?.len();
    check_size(len)?;
    buffer.reserve(usize::try_from(len).unwrap_or(0) + 1);
    // A file can grow between the two.
    let n = file
        .take(MAX_SAMPLE_BYTES + 1)
        .read_to_end(buffer)
        .map_err(cannot)?;
    check_size(n as u64)
}

/// # Errors
/// More bytes than a sample has.
pub(super) fn check_size(n_bytes: u64) -> Result<(), String> {
    if n_bytes > MAX_SAMPLE_BYTES {
        return Err(format!(
            "it has {n_bytes} bytes; a sample has {} MiB at most",
            MAX_SAMPLE_BYTES >> 20
        ));
    }
    Ok(())
}

/// The files that a reader has used last, by number.
#[derive(Debug, Default)]
struct OpenFiles {
    open: VecDeque<(usize, File)>,
}

impl OpenFiles {
    /// A worker is in one or two files at a time; many workers must not use up the process's files.
    const MAX_OPEN: usize = 4;

    fn get(&mut self, number: usize, path: &Path) -> Result<&mut File, String> {
        if let Some(at) = self.open.iter().position(|(known, _)| *known == number) {
            return Ok(&mut self.open[at].1);
        }
        if self.open.len() >= Self::MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back((number, open_regular(path)?));
        let last = self.open.len() - 1;
        Ok(&mut self.open[last].1)
    }
}
