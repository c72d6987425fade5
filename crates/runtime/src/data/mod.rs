//! Labelled samples, whatever holds them: what they are called, which class, which split, and their bytes when asked for.
//!
//! [`Dataset::open`] lists a source; nothing of the samples is read by then. Each worker reads through a [`Reader`] of its
//! own. Labels lie beside the features, never in their key.

mod arrays;
mod columns;
mod content;
mod folder;
mod gather;
mod keywords;
mod labels;
mod left_out;
mod listing;
mod metadata;
mod options;
pub(crate) mod parquet;
pub(crate) mod positional;
mod reader;
mod shards;
mod source;
mod split;
mod table;
mod tar;
mod walk;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub use content::Content;
pub use left_out::LeftOut;
pub use options::{Columns, DataOptions, Unlabelled, Wanted};
pub use reader::Reader;
pub(crate) use split::Tag;
pub use split::{Split, SplitRule};

use crate::error::Error;
use gather::Gathered;
use left_out::LeftOuts;
use listing::{Listing, Names};

/// Samples that were listed, in an order that depends on their names alone.
#[derive(Debug)]
pub struct Dataset {
    source: PathBuf,
    classes: Vec<String>,
    listing: Listing,
    backing: Backing,
    left_out: Vec<LeftOut>,
    n_left_out: usize,
    set_aside: Vec<(String, usize)>,
}

/// What holds the samples.
#[derive(Debug)]
enum Backing {
    /// Files below this folder, called by their paths.
    Files(PathBuf),
    /// Files that a manifest names; their paths are their names where there are none.
    Listed { root: PathBuf, paths: Option<Names> },
    /// Texts in a manifest.
    Texts(table::Texts),
    /// Members of tars.
    Tars(tar::Tars),
    /// Cells of Parquet files.
    Parquet(Box<parquet::Source>, Wanted),
    /// Rows of arrays.
    Pixels(arrays::Pixels),
}

/// What a kind of source makes of itself.
#[derive(Debug)]
struct Parts {
    classes: Vec<String>,
    listing: Listing,
    backing: Backing,
    left_out: LeftOuts,
    set_aside: Vec<(String, usize)>,
}

impl Parts {
    fn new(gathered: Gathered, backing: Backing) -> Parts {
        Parts {
            classes: gathered.classes,
            listing: gathered.listing,
            backing,
            left_out: gathered.left_out,
            set_aside: gathered.set_aside,
        }
    }
}

/// What is asked of a source.
#[derive(Debug, Clone, Copy)]
struct Request<'r> {
    options: &'r DataOptions,
    /// The classes of a head that is to be judged.
    judged: Option<&'r [String]>,
}

impl Dataset {
    /// Lists a source, told apart by what it is and by its ending:
    ///
    /// - an image folder: `D/train/<class>/*` and `D/val/<class>/*`, `D/<class>/*` split by a rule, or one with
    ///   `metadata.csv`, `.jsonl` or `.parquet` as Hugging Face's `imagefolder` has it;
    /// - a manifest: `.csv`, `.tsv`, `.jsonl`, or `.parquet` with a column of paths;
    /// - WebDataset tars: one, a folder of them, a list `x-{000..012}.tar::y.tar`;
    /// - Parquet files with pictures or texts in them, one or a folder;
    /// - `.npy` and `.npz` arrays of pixels, or a folder of them;
    /// - `.txt` with a text per line.
    ///
    /// # Errors
    /// [`Error::Data`] where classes or samples are missing or the source is damaged as a whole, [`Error::NoSplit`] where
    /// the split is not said and [`Error::Usage`] where it is said twice.
    pub fn open(source: &Path, options: &DataOptions) -> Result<Dataset, Error> {
        options.split.check()?;
        let request = Request {
            options,
            judged: None,
        };
        Ok(Dataset::of(source, source::open(source, &request)?))
    }

    /// Lists a source to judge a trained head on: its validation samples where it has some for training, else all of it.
    ///
    /// # Errors
    /// [`Error::Data`] where classes or samples are missing or a class is not among `classes`.
    pub fn open_for_eval(source: &Path, options: &DataOptions, classes: &[String]) -> Result<Dataset, Error> {
        let request = Request {
            options,
            judged: Some(classes),
        };
        Ok(Dataset::of(source, source::open(source, &request)?))
    }

    /// Pictures without labels: files, and all pictures in folders; called by the paths as they are given.
    ///
    /// # Errors
    /// [`Error::Data`] where there are none. A folder that cannot be read is left out by name.
    pub fn of_pictures(paths: &[PathBuf]) -> Result<Dataset, Error> {
        let source = match paths {
            [one] => one.clone(),
            _ => PathBuf::new(),
        };
        Ok(Dataset::of(&source, folder::of_pictures(paths)?))
    }

    fn of(source: &Path, parts: Parts) -> Dataset {
        let mut listing = parts.listing;
        listing.shrink();
        let (left_out, n_left_out) = parts.left_out.finish(&source.to_string_lossy());
        Dataset {
            source: source.to_owned(),
            classes: parts.classes,
            listing,
            backing: parts.backing,
            left_out,
            n_left_out,
            set_aside: parts.set_aside,
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.listing.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class names in order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What was opened.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// What a sample is called, below the source and the same in every process: `train/cat/1.jpg`,
    /// `shard-0001.tar/000010005`, `data.parquet#17`.
    ///
    /// # Panics
    /// Beyond [`len`](Dataset::len), as all that take an index.
    pub fn name(&self, idx: usize) -> Cow<'_, str> {
        match self.listing.names.parts(idx) {
            ("", name) => Cow::Borrowed(name),
            (prefix, name) => Cow::Owned([prefix, name].concat()),
        }
    }

    /// Index into the classes; `None` where the sample has no label.
    pub fn label(&self, idx: usize) -> Option<u32> {
        self.listing.label(idx)
    }

    /// What the sample is for.
    pub fn split(&self, idx: usize) -> Split {
        self.listing.split(idx)
    }

    /// How many samples a split has.
    pub fn count(&self, split: Split) -> usize {
        (0..self.len()).filter(|&idx| self.split(idx) == split).count()
    }

    /// Whether the samples are texts rather than pictures.
    pub fn is_text(&self) -> bool {
        match &self.backing {
            Backing::Texts(_) => true,
            Backing::Tars(tars) => tars.is_text(),
            Backing::Parquet(_, wanted) => *wanted == Wanted::Texts,
            Backing::Files(_) | Backing::Listed { .. } | Backing::Pixels(_) => false,
        }
    }

    /// Reads samples; each worker has one of its own.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// What could not be listed. The first ten thousand have an entry each, the rest one per kind with their number.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// How many could not be listed.
    pub fn n_left_out(&self) -> usize {
        self.n_left_out
    }

    /// Splits of the source that serve neither for training nor for validation, such as a test split beside a validation
    /// split, and how many samples each has. An image folder's are not counted.
    pub fn set_aside(&self) -> &[(String, usize)] {
        &self.set_aside
    }

    /// A digest of the names in their order: the same for two processes that list the same samples, whatever their labels.
    pub fn listing_digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 listing: names in order");
        hasher.update(&(self.len() as u64).to_le_bytes());
        for idx in 0..self.len() {
            let (prefix, name) = self.listing.names.parts(idx);
            // Lengths keep `a/` + `b` and `a` + `/b` from meaning two things, and `ab`, `c` from meaning `a`, `bc`.
            hasher.update(&((prefix.len() + name.len()) as u64).to_le_bytes());
            hasher.update(prefix.as_bytes()).update(name.as_bytes());
        }
        hasher.finalize()
    }
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::Data {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// A file's own name.
fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
