//! Parquet: pictures or texts in the file itself, as Hugging Face's data sets have them, or a manifest of files.

mod cells;
mod file;
mod schema;
mod window;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use cells::{Cell, Cells};
use file::ParquetFile;
use schema::{Column, Kind, class_names, columns};
pub(super) use window::{Source, Value, Window};

use super::columns::{Found, list};
use super::gather::{BROKEN, Gather};
use super::labels::Labels;
use super::listing::Place;
use super::options::{Unlabelled, Wanted};
use super::shards::Shard;
use super::split::Tag;
use super::table::FileRows;
use super::{Backing, Parts, Request, bad};
use crate::error::Error;

/// Rows of plain columns that are read at once.
const BATCH_ROWS: usize = 1024;

/// Leaf columns that hold a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Picked {
    bytes: Option<usize>,
    path: Option<usize>,
}

/// The leaves of the column of this name.
fn pick(file: &ParquetFile, name: &str) -> Result<Picked, String> {
    let columns = columns(file);
    let column = columns.iter().find(|column| column.name == name);
    match column.map(|column| column.kind) {
        Some(Kind::Picture { bytes, path }) => Ok(Picked { bytes, path }),
        Some(Kind::Bytes(leaf) | Kind::Text(leaf)) => Ok(Picked {
            bytes: Some(leaf),
            path: None,
        }),
        _ => Err(format!("its file has no column `{name}` of samples")),
    }
}

/// What each sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A picture in the file.
    Pictures,
    /// A picture in another file, by path.
    Files,
    /// A text.
    Texts,
}

/// Which columns serve for what.
#[derive(Debug)]
struct Plan {
    mode: Mode,
    column: String,
    label: Option<usize>,
    split: Option<usize>,
    id: Option<usize>,
    class_names: Option<Vec<String>>,
}

/// Lists Parquet files, as one data set; `root` is what paths in them are relative to.
pub(super) fn open(
    shards: &[Shard],
    root: &Path,
    source: &Path,
    request: &Request<'_>,
) -> Result<Parts, Error> {
    let mut gather = Gather::new(source, request);
    let mut rows = FileRows::new(root, request, false);
    let (mut first, mut bases) = (None::<Plan>, vec![0u64]);
    let mut files = Vec::new();
    for shard in shards {
        let file = match ParquetFile::open(&shard.path) {
            Ok(file) => file,
            // The file of a data set of one is the data set.
            Err(reason) if shards.len() == 1 => return Err(bad(&shard.path, reason)),
            Err(reason) => {
                gather.leave_out(&shard.name, reason);
                continue;
            }
        };
        let plan = plan(&file, request).map_err(|reason| bad(&shard.path, reason))?;
        match &first {
            None => {
                if let Some(names) = &plan.class_names {
                    gather.labels = Labels::fixed(names.clone());
                }
            }
            Some(first) if (first.mode, &first.column) != (plan.mode, &plan.column) => {
                let reason = format!(
                    "its samples are not in the column `{}` as in the files before",
                    first.column
                );
                return Err(bad(&shard.path, reason));
            }
            Some(first) if first.class_names != plan.class_names => {
                return Err(bad(
                    &shard.path,
                    "its class names are not those of the files before",
                ));
            }
            Some(_) => {}
        }
        let base = bases.last().copied().unwrap_or(0);
        list_file(&file, &plan, shard, base, &mut gather, &mut rows)?;
        bases.push(base + file.group_rows().iter().sum::<u64>());
        files.push(shard.path.clone());
        first.get_or_insert(plan);
    }
    let Some(plan) = first else {
        return Err(bad(source, "none of its Parquet files can be read"));
    };
    let gathered = gather.finish()?;
    let backing = match plan.mode {
        Mode::Files => rows.finish(gathered.kept.as_deref()),
        Mode::Pictures => {
            Backing::Parquet(Box::new(Source::new(files, bases, plan.column)), Wanted::Pictures)
        }
        Mode::Texts => Backing::Parquet(Box::new(Source::new(files, bases, plan.column)), Wanted::Texts),
    };
    Ok(Parts::new(gathered, backing))
}

fn plan(file: &ParquetFile, request: &Request<'_>) -> Result<Plan, String> {
    let said = &request.options.columns;
    let columns = columns(file);
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let found = Found::among(&names, said)?;
    let picture = found
        .path
        .filter(|_| said.path.is_some())
        .or_else(|| picture_column(&columns, found.path));
    let is_text = |at: usize| matches!(columns[at].kind, Kind::Text(_));
    let text = found.text.filter(|&at| is_text(at) || said.text.is_some());
    let (mode, at) = match (request.options.wanted, picture, text) {
        (Wanted::Auto | Wanted::Pictures, Some(at), _) => match columns[at].kind {
            Kind::Picture { .. } | Kind::Bytes(_) => (Mode::Pictures, at),
            Kind::Text(_) => (Mode::Files, at),
            _ => {
                return Err(format!(
                    "its column `{}` holds neither pictures nor paths",
                    columns[at].name
                ));
            }
        },
        (Wanted::Auto | Wanted::Texts, _, Some(at)) if is_text(at) => (Mode::Texts, at),
        (Wanted::Texts, ..) => {
            return Err(format!(
                "none of its columns is one of texts; there {}",
                list(&names)
            ));
        }
        _ => {
            return Err(format!(
                "none of its columns is one of pictures; there {}",
                list(&names)
            ));
        }
    };
    let label = found.label.or_else(|| {
        let mut all = (0..columns.len()).filter(|&at| class_names(file, &columns[at].name).is_some());
        all.next().filter(|_| all.next().is_none())
    });
    if label.is_none() && request.options.unlabelled == Unlabelled::LeaveOut {
        return Err(format!(
            "none of its columns is one of labels; there {}",
            list(&names)
        ));
    }
    let leaf = |at: Option<usize>| match at.map(|at| &columns[at]) {
        None => Ok(None),
        Some(column) => match column.kind.leaf() {
            Some(leaf) => Ok(Some(leaf)),
            None => Err(format!("its column `{}` does not hold plain values", column.name)),
        },
    };
    Ok(Plan {
        mode,
        column: columns[at].name.clone(),
        label: leaf(label)?,
        split: leaf(found.split)?,
        id: leaf(found.id)?,
        class_names: label.and_then(|at| class_names(file, &columns[at].name)),
    })
}

/// The column of pictures: one of Hugging Face's kind, one of a usual name, or the only one of bytes.
fn picture_column(columns: &[Column], usual: Option<usize>) -> Option<usize> {
    let embedded = columns
        .iter()
        .position(|column| matches!(column.kind, Kind::Picture { .. }));
    let mut of_bytes = (0..columns.len()).filter(|&at| matches!(columns[at].kind, Kind::Bytes(_)));
    let only = of_bytes.next().filter(|_| of_bytes.next().is_none());
    embedded
        .or_else(|| usual.filter(|&at| matches!(columns[at].kind, Kind::Text(_) | Kind::Bytes(_))))
        .or(only)
}

/// Adds a file's rows; a row group whose plain columns cannot be read is left out by the rows that are missing.
fn list_file(
    file: &ParquetFile,
    plan: &Plan,
    shard: &Shard,
    base: u64,
    gather: &mut Gather<'_>,
    rows: &mut FileRows,
) -> Result<(), Error> {
    let prefix = format!("{}#", shard.name);
    let shard_tag = gather.tag(shard.split.as_deref())?;
    let folder = gather.listing.names.folder(&prefix);
    let mut start = 0u64;
    for (group, n_rows) in file.group_rows().into_iter().enumerate() {
        let end = start + n_rows;
        let mut at = start;
        let mut read = || -> Result<(), GroupError> {
            let open = |leaf: Option<usize>| leaf.map(|leaf| Cells::open(file, group, leaf)).transpose();
            let path = match plan.mode {
                Mode::Files => pick(file, &plan.column)?.bytes,
                _ => None,
            };
            let (mut path, mut label) = (open(path)?, open(plan.label)?);
            let (mut split, mut id) = (open(plan.split)?, open(plan.id)?);
            if path.is_none() && label.is_none() && split.is_none() && id.is_none() {
                // No plain column says how many rows there are: the pages of the samples do.
                let picked = pick(file, &plan.column)?;
                if let Some(leaf) = picked.bytes.or(picked.path) {
                    let wanted = usize::try_from(n_rows).unwrap_or(usize::MAX);
                    let n_there = Cells::open(file, group, leaf)?.skip(wanted)?;
                    if n_there != wanted {
                        return Err(format!("only {n_there} of its {n_rows} rows are there").into());
                    }
                }
            }
            while at < end {
                let n = usize::try_from(end - at).unwrap_or(BATCH_ROWS).min(BATCH_ROWS);
                let next = |cells: &mut Option<Cells>| match cells {
                    None => Ok(vec![Cell::Null; n]),
                    Some(cells) => match cells.read(n)? {
                        values if values.len() == n => Ok(values),
                        _ => Err("the row group ends before them".to_owned()),
                    },
                };
                let (paths, labels) = (next(&mut path)?, next(&mut label)?);
                let (splits, ids) = (next(&mut split)?, next(&mut id)?);
                for (((path, label), split), id) in paths.iter().zip(&labels).zip(&splits).zip(&ids) {
                    let cells = RowCells {
                        path,
                        label,
                        split,
                        id,
                    };
                    add_row(plan, shard, shard_tag, &cells, at, base, folder, gather, rows)?;
                    at += 1;
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => {}
            Err(GroupError::Fatal(error)) => return Err(error),
            Err(GroupError::Damaged(reason)) => {
                let last = end.saturating_sub(1);
                let n_rows = usize::try_from(end - at).unwrap_or(usize::MAX);
                let reason = format!("these {n_rows} rows cannot be read: {reason}");
                gather
                    .left_out
                    .push_many(BROKEN, format!("{prefix}{at}..{last}"), reason, n_rows);
            }
        }
        start = end;
    }
    Ok(())
}

/// Why a row group was not listed.
enum GroupError {
    /// It is damaged; the others may not be.
    Damaged(String),
    /// The listing ends.
    Fatal(Error),
}

impl From<String> for GroupError {
    fn from(reason: String) -> GroupError {
        GroupError::Damaged(reason)
    }
}

impl From<Error> for GroupError {
    fn from(error: Error) -> GroupError {
        GroupError::Fatal(error)
    }
}

struct RowCells<'c> {
    path: &'c Cell,
    label: &'c Cell,
    split: &'c Cell,
    id: &'c Cell,
}

#[expect(
    clippy::too_many_arguments,
    reason = "one row of many tables; a struct would be made for this call alone"
)]
fn add_row(
    plan: &Plan,
    shard: &Shard,
    shard_tag: Tag,
    cells: &RowCells<'_>,
    row: u64,
    base: u64,
    folder: u32,
    gather: &mut Gather<'_>,
    rows: &mut FileRows,
) -> Result<(), Error> {
    let name = || format!("{}#{row}", shard.name);
    let text = |cell: &Cell| cell.text().map(|text| text.map(Cow::into_owned));
    let (label, split) = match (label_of(plan, cells.label), text(cells.split)) {
        (Ok(label), Ok(split)) => (label, split),
        (Err(reason), _) => {
            gather.leave_out(name(), format!("its label cannot be read: {reason}"));
            return Ok(());
        }
        (_, Err(reason)) => {
            gather.leave_out(name(), format!("its split cannot be read: {reason}"));
            return Ok(());
        }
    };
    let tag = match split {
        Some(split) => gather.tag(Some(&split))?,
        None => shard_tag,
    };
    let id = cells.id.text().unwrap_or(None);
    if plan.mode == Mode::Files {
        return match cells.path.text() {
            Ok(Some(path)) => rows.add(
                gather,
                &shard.below,
                &path,
                id.as_deref(),
                label.as_deref(),
                tag,
                row + 1,
                &name,
            ),
            Ok(None) => {
                gather.leave_out(name(), "it has no path");
                Ok(())
            }
            Err(reason) => {
                gather.leave_out(name(), format!("its path cannot be read: {reason}"));
                Ok(())
            }
        };
    }
    match id {
        Some(id) => gather.folders.push(&mut gather.listing.names, &id),
        None => gather.listing.names.push(folder, &row.to_string()),
    }
    let place = Place {
        at: base + row,
        len: 0,
    };
    gather.add_rest(label.as_deref(), tag, place)
}

/// A label's text; that of its class where the file names its classes, in which a negative number is none.
fn label_of(plan: &Plan, cell: &Cell) -> Result<Option<String>, String> {
    match (&plan.class_names, cell) {
        (Some(_), Cell::Int(number)) if *number < 0 => Ok(None),
        (Some(names), Cell::Int(number)) => {
            match usize::try_from(*number).ok().and_then(|at| names.get(at)) {
                Some(name) => Ok(Some(name.clone())),
                None => Err(format!("{number} is beyond its {} classes", names.len())),
            }
        }
        _ => Ok(cell.text()?.map(Cow::into_owned)),
    }
}

/// The names of a file's columns.
///
/// # Errors
/// Why it is no Parquet file that can be read.
pub(super) fn column_names(path: &Path) -> Result<Vec<String>, String> {
    let file = ParquetFile::open(path)?;
    Ok(columns(&file).into_iter().map(|column| column.name).collect())
}

/// Hands the texts of some columns, row by row, to `take`; which of the columns there are.
///
/// # Errors
/// Why the file cannot be read.
pub(crate) fn each_text_row(
    path: &Path,
    names: &[&str],
    mut take: impl FnMut(&[Option<Cow<'_, str>>]),
) -> Result<Vec<bool>, String> {
    let file = ParquetFile::open(path)?;
    let columns = columns(&file);
    let leaf = |name: &&str| {
        let column = columns.iter().find(|column| column.name == **name)?;
        column.kind.leaf()
    };
    let leaves: Vec<Option<usize>> = names.iter().map(leaf).collect();
    for (group, n_rows) in file.group_rows().into_iter().enumerate() {
        let open = |leaf: &Option<usize>| leaf.map(|leaf| Cells::open(&file, group, leaf)).transpose();
        let mut cells: Vec<Option<Cells>> = leaves.iter().map(open).collect::<Result<_, _>>()?;
        let mut left = n_rows;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(BATCH_ROWS).min(BATCH_ROWS);
            let mut batch = Vec::with_capacity(cells.len());
            for cells in &mut cells {
                batch.push(match cells {
                    None => vec![Cell::Null; n],
                    Some(cells) => cells.read(n)?,
                });
            }
            for row in 0..n {
                let text = |column: &Vec<Cell>| match column.get(row) {
                    Some(cell) => cell
                        .text()
                        .map(|text| text.map(|text| Cow::Owned(text.into_owned()))),
                    None => Err("a row group ends before its rows do".to_owned()),
                };
                let texts: Vec<Option<Cow<'_, str>>> = batch.iter().map(text).collect::<Result<_, _>>()?;
                take(&texts);
            }
            left -= n as u64;
        }
    }
    Ok(leaves.iter().map(Option::is_some).collect())
}

/// A `metadata.parquet` of an image folder, in the folder `below`.
pub(super) fn add_metadata(
    path: &Path,
    below: &str,
    split: Option<String>,
    request: &Request<'_>,
    gather: &mut Gather<'_>,
    rows: &mut FileRows,
) -> Result<(), Error> {
    let file = ParquetFile::open(path).map_err(|reason| bad(path, reason))?;
    let plan = plan(&file, request).map_err(|reason| bad(path, reason))?;
    if plan.mode != Mode::Files {
        return Err(bad(path, "it has no column of file names"));
    }
    let shard = Shard {
        path: path.to_owned(),
        name: format!("{below}{}", super::file_name(path)),
        below: below.to_owned(),
        split,
    };
    list_file(&file, &plan, &shard, 0, gather, rows)
}

/// The folder that a Parquet file lies in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests;
