//! Image folders with `metadata.csv`, `.jsonl` or `.parquet`, as Hugging Face's `imagefolder` reads them: the samples are the
//! rows, `file_name` is relative to the metadata file, and folders are no labels.
//!
//! Source: `datasets/packaged_modules/folder_based_builder/folder_based_builder.py`. A metadata file without such a column is
//! somebody else's, and leaves the folder as it is.

use std::fs;
use std::path::{Path, PathBuf};

use super::gather::Gather;
use super::options::DataOptions;
use super::split::Tag;
use super::table::{self, FileRows, Kind};
use super::{Parts, Request, bad, parquet};
use crate::error::Error;

const FILE_NAME: &str = "file_name";

/// How a metadata file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Table(Kind),
    Parquet,
}

const NAMES: [(&str, Form); 3] = [
    ("metadata.csv", Form::Table(Kind::Csv)),
    ("metadata.jsonl", Form::Table(Kind::Jsonl)),
    ("metadata.parquet", Form::Parquet),
];

/// The metadata files of a folder.
#[derive(Debug)]
pub(super) struct Found {
    form: Form,
    /// Each with the folder that it is in, below the root.
    files: Vec<(PathBuf, String)>,
    /// The column of file names.
    column: String,
}

/// Looks for metadata files in the folder, in those below it, and in those of its `data` folder.
///
/// # Errors
/// Files of different forms.
pub(super) fn find(root: &Path, request: &Request<'_>) -> Result<Option<Found>, Error> {
    let mut folders = vec![String::new()];
    folders.extend(folders_in(root, ""));
    folders.extend(folders_in(root, "data/"));
    let mut found: Option<Found> = None;
    for below in folders {
        for (name, form) in NAMES {
            let path = root.join(&below).join(name);
            if !path.is_file() {
                continue;
            }
            let Some(column) = column_of(&path, form, request) else {
                continue;
            };
            match &mut found {
                None => {
                    found = Some(Found {
                        form,
                        files: vec![(path, below.clone())],
                        column,
                    });
                }
                Some(found) if found.form == form => found.files.push((path, below.clone())),
                Some(_) => return Err(bad(root, "it has metadata files of different kinds")),
            }
        }
    }
    Ok(found)
}

/// Lists the rows of all metadata files.
pub(super) fn open(root: &Path, found: Found, request: &Request<'_>) -> Result<Parts, Error> {
    let mut options: DataOptions = request.options.clone();
    options.columns.path = Some(found.column);
    let request = Request {
        options: &options,
        judged: request.judged,
    };
    let mut gather = Gather::new(root, &request);
    let mut rows = FileRows::new(root, &request, true);
    for (path, below) in &found.files {
        let tag = below.split('/').find_map(Tag::of_folder);
        match found.form {
            Form::Table(kind) => {
                let tag = tag.unwrap_or(Tag::Unsaid);
                table::add_metadata(path, below, kind, tag, &request, &mut gather, &mut rows)?;
            }
            Form::Parquet => {
                let split = tag.map(|tag| tag.name(&[]).to_owned());
                parquet::add_metadata(path, below, split, &request, &mut gather, &mut rows)?;
            }
        }
    }
    let gathered = gather.finish()?;
    let backing = rows.finish(gathered.kept.as_deref());
    Ok(Parts::new(gathered, backing))
}

/// The folders in `root/below`, in order of names, with slashes at their ends.
fn folders_in(root: &Path, below: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(below)).into_iter().flatten().flatten();
    let mut folders: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .map(|name| format!("{below}{name}/"))
        .collect();
    folders.sort();
    folders
}

/// The column of file names, where the file has one.
fn column_of(path: &Path, form: Form, request: &Request<'_>) -> Option<String> {
    let names = match form {
        Form::Table(kind) => table::column_names(path, kind),
        Form::Parquet => parquet::column_names(path).unwrap_or_default(),
    };
    let wanted = request.options.columns.path.as_deref().unwrap_or(FILE_NAME);
    let exact = names.iter().find(|name| *name == wanted);
    let mut others = names.iter().filter(|name| name.ends_with("_file_name"));
    let only = others
        .next()
        .filter(|_| others.next().is_none() && wanted == FILE_NAME);
    exact.or(only).cloned()
}
