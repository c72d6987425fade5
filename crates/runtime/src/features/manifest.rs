//! Which row belongs to which sample: names, labels and splits beside the features, so that relabelling computes nothing.
//!
//! A manifest is a file of JSON lines named by the digest of its bytes: one line for the whole, then one per sample, the
//! ones that were left out with the reason.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing, FileError};
use serde::{Deserialize, Serialize};

use super::block::check_name;
use super::matrix::Features;
use super::reasons::Reasons;
use super::store::{RowId, Store};
use crate::data::Split;
use crate::error::Error;
use crate::targets::Targets;

const PREFIX: &str = "labels-";
const ENDING: &str = ".jsonl";
const FORMAT: u32 = 2;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Raised when the lines change their meaning.
    format: u32,
    /// What the samples were read from.
    pub source: PathBuf,
    /// Class names in order; empty where nothing is labelled.
    pub classes: Vec<String>,
    /// Cache entries with further random views of the training samples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<String>,
    /// Lines that follow.
    pub n: usize,
}

impl Header {
    /// The header of `n` samples.
    pub fn new(source: &Path, classes: &[String], views: Vec<String>, n: usize) -> Header {
        Header {
            format: FORMAT,
            source: source.to_owned(),
            classes: classes.to_vec(),
            views,
            n,
        }
    }
}

/// One sample as a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line<'l> {
    /// Its name below the source.
    #[serde(borrow)]
    pub name: Cow<'l, str>,
    /// Its row, 64 hexadecimal digits; absent where it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex")]
    pub id: Option<RowId>,
    /// Index into the classes, where it is labelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<u32>,
    /// What it is for.
    pub split: Split,
    /// Why there is no row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<Cow<'l, str>>,
}

/// Samples with their rows, labels and splits, in memory: names in one string.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// What is said of all of them.
    pub header: Header,
    names: String,
    rows: Vec<Row>,
    left_out: Reasons,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    id: RowId,
    /// Where its name ends in `names`.
    name_end: usize,
    /// [`UNLABELLED`] where there is none.
    label: u32,
    split: Split,
}

const UNLABELLED: u32 = u32::MAX;

/// Features with their labels, ready to be fitted or judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// `[N, D]`.
    pub features: Features,
    /// What is wanted of each row.
    pub targets: Targets,
    /// Names of the samples, empty where the features come from an array.
    pub names: Vec<String>,
    /// Samples of the split that have a row and no label, which are not among the others.
    pub n_unlabelled: usize,
    /// Rows of views that are not in their stores.
    pub n_missing_views: usize,
}

impl Manifest {
    /// Takes samples in order.
    pub fn new<'l>(header: Header, lines: impl Iterator<Item = Line<'l>>) -> Manifest {
        let mut manifest = Manifest {
            header,
            names: String::new(),
            rows: Vec::new(),
            left_out: Reasons::default(),
        };
        lines.for_each(|line| manifest.push(line));
        manifest
    }

    fn push(&mut self, line: Line<'_>) {
        self.names.push_str(&line.name);
        if line.id.is_none() {
            let reason = line.left_out.unwrap_or_default();
            self.left_out.push(self.rows.len(), &reason);
        }
        self.rows.push(Row {
            id: line.id.unwrap_or_default(),
            name_end: self.names.len(),
            label: line.label.unwrap_or(UNLABELLED),
            split: line.split,
        });
    }

    /// Appends all samples of another.
    pub(super) fn extend(&mut self, other: &Manifest) {
        other.lines().for_each(|line| self.push(line));
    }

    /// Samples, those that were left out included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All samples as they are written.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut left_out = self.left_out.iter().peekable();
        let mut name_start = 0;
        self.rows.iter().enumerate().map(move |(sample, row)| {
            let name = &self.names[name_start..row.name_end];
            name_start = row.name_end;
            let reason = left_out.next_if(|&(at, _)| at == sample);
            Line {
                name: Cow::Borrowed(name),
                id: reason.is_none().then_some(row.id),
                label: (row.label != UNLABELLED).then_some(row.label),
                split: row.split,
                left_out: reason.map(|(_, reason)| Cow::Borrowed(reason)),
            }
        })
    }

    /// The labelled rows of one split with their features, which stay in the blocks. With `views`, each sample's rows in
    /// those stores follow its own where they are there.
    ///
    /// # Errors
    /// [`Error::Features`] where a row is not in the store or is not finite.
    pub fn labelled(&self, store: &Store, views: &[Store], split: Split) -> Result<Labelled, Error> {
        let n_features = store.n_features().unwrap_or(1);
        let (mut labels, mut names, mut picked) = (Vec::new(), Vec::new(), Vec::new());
        let (mut n_unlabelled, mut n_missing_views) = (0, 0);
        let mut pieces = store.pieces()?;
        let mut first_pieces = Vec::new();
        for view in views {
            if view.n_features().is_some_and(|n| n != n_features) {
                let text = format!("`{}` has rows of another length", view.folder().display());
                return Err(Error::Features(text));
            }
            first_pieces.push(u32::try_from(pieces.len()).unwrap_or(u32::MAX));
            pieces.extend(view.pieces()?);
        }
        for line in self.lines().filter(|line| line.split == split) {
            let Some(id) = line.id else { continue };
            let Some(label) = line.label else {
                n_unlabelled += 1;
                continue;
            };
            let Some(place) = store.place(&id) else {
                let text = format!("`{}` is not in the cache entry", line.name);
                return Err(Error::Features(text));
            };
            let mut push = |place| {
                picked.push(place);
                labels.push(label);
                names.push(line.name.clone().into_owned());
            };
            push(place);
            for (view, first) in views.iter().zip(&first_pieces) {
                match view.place(&id) {
                    Some((piece, row)) => push((first + piece, row)),
                    None => n_missing_views += 1,
                }
            }
        }
        let features = Features::picked(pieces.into(), picked, n_features, |row| {
            format!("`{}`", names[row])
        })?;
        Ok(Labelled {
            features,
            targets: Targets::Classes(labels),
            names,
            n_unlabelled,
            n_missing_views,
        })
    }

    /// Reads a manifest, whose name is its digest.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a byte of it has changed; [`Error::BadFile`] where it is none.
    pub fn open(path: &Path) -> Result<Manifest, Error> {
        check_name(path)?;
        let file = File::open(path).map_err(FileError::at("read", path))?;
        let bad = |line: usize, reason: String| Error::BadFile {
            path: path.to_owned(),
            reason: format!("line {line}: {reason}"),
        };
        let mut reader = BufReader::new(file);
        let mut text = String::new();
        let mut read_line = |text: &mut String| {
            text.clear();
            reader.read_line(text).map_err(FileError::at("read", path))
        };
        read_line(&mut text)?;
        let header: Header =
            serde_json::from_str(&text).map_err(|error| bad(1, format!("no label manifest: {error}")))?;
        if header.format != FORMAT {
            return Err(bad(
                1,
                format!("another version of graftwork wrote it ({})", header.format),
            ));
        }
        let n_classes = header.classes.len();
        let mut manifest = Manifest::new(header, std::iter::empty());
        while read_line(&mut text)? > 0 {
            let number = manifest.len() + 2;
            let line: Line<'_> =
                serde_json::from_str(&text).map_err(|error| bad(number, error.to_string()))?;
            if let Some(label) = line.label.filter(|label| *label as usize >= n_classes) {
                return Err(bad(
                    number,
                    format!("label {label} of `{}` is beyond the classes", line.name),
                ));
            }
            manifest.push(line);
        }
        if manifest.len() != manifest.header.n {
            let reason = format!(
                "{} samples, where its head says {}",
                manifest.len(),
                manifest.header.n
            );
            return Err(bad(1, reason));
        }
        Ok(manifest)
    }

    /// The manifests of a cache entry, newest first.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(entry: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut found: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(entry)
            .map_err(FileError::at("read", entry))?
            .flatten()
            .filter(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                name.starts_with(PREFIX) && name.ends_with(ENDING)
            })
            .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
            .collect();
        found.sort();
        Ok(found.into_iter().rev().map(|(_, path)| path).collect())
    }
}

/// Writes a manifest into a cache entry and returns its path. The lines are made twice: once for the digest that is the
/// file's name, once for the file, so that memory does not follow their number.
///
/// # Errors
/// The file system's.
pub fn save_manifest<'l, I: Iterator<Item = Line<'l>>>(
    entry: &Path,
    header: &Header,
    lines: impl Fn() -> I,
) -> Result<PathBuf, Error> {
    save_lines(entry, PREFIX, header, lines)
}

/// Writes a head and lines into a file named `PREFIX<digest>.jsonl`.
pub(super) fn save_lines<'l, I: Iterator<Item = Line<'l>>>(
    folder: &Path,
    prefix: &str,
    header: &impl Serialize,
    lines: impl Fn() -> I,
) -> Result<PathBuf, Error> {
    let write = |out: &mut dyn Write| -> std::io::Result<()> {
        let mut put = |value: Vec<u8>| {
            out.write_all(&value)?;
            out.write_all(b"\n")
        };
        put(serde_json::to_vec(header)?)?;
        for line in lines() {
            put(serde_json::to_vec(&line)?)?;
        }
        Ok(())
    };
    let mut hasher = blake3::Hasher::new();
    write(&mut hasher).map_err(FileError::at("write", folder))?;
    let digest = hasher.finalize().to_hex();
    let path = folder.join(format!("{prefix}{}{ENDING}", &digest[..32]));
    let mut out = BufWriter::new(AtomicFile::create(&path, Existing::Replace)?);
    write(&mut out).map_err(FileError::at("write", &path))?;
    let file = out
        .into_inner()
        .map_err(|error| FileError::at("write", &path)(error.into_error()))?;
    file.commit()?;
    Ok(path)
}

/// A digest as hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.serialize_str(blake3::Hash::from(*id).to_hex().as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        blake3::Hash::from_hex(text.as_bytes())
            .map(|hash| Some(hash.into()))
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, id: Option<u8>, label: Option<u32>, split: Split) -> Line<'_> {
        Line {
            name: name.into(),
            id: id.map(|id| [id; 32]),
            label,
            split,
            left_out: id.is_none().then(|| "it is damaged".into()),
        }
    }

    #[test]
    fn a_manifest_comes_back_and_every_flipped_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header::new(
            Path::new("/data"),
            &["a".to_owned(), "b\"c".to_owned()],
            vec![],
            3,
        );
        let lines = || {
            [
                line("train/ü.png", Some(1), Some(0), Split::Train),
                line("train/broken.png", None, Some(1), Split::Train),
                line("val/2.png", Some(2), None, Split::Val),
            ]
            .into_iter()
        };
        let path = save_manifest(dir.path(), &header, lines).unwrap();
        let read = Manifest::open(&path).unwrap();
        assert_eq!(read.lines().collect::<Vec<_>>(), lines().collect::<Vec<_>>());
        assert_eq!(read, Manifest::new(header, lines()));
        assert_eq!(Manifest::list(dir.path()).unwrap(), std::slice::from_ref(&path));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            super::super::store::write_whole(&path, &bytes).unwrap();
            assert!(Manifest::open(&path).is_err(), "byte {at}");
        }
    }
}
