//! The plain columns of a file, row by row into a listing.

use std::borrow::Cow;

use super::super::gather::{BROKEN, Gather};
use super::super::listing::Place;
use super::super::shards::Shard;
use super::super::split::Tag;
use super::super::table::FileRows;
use super::cells::{Cell, Cells};
use super::file::ParquetFile;
use super::{BATCH_ROWS, Mode, Plan, pick};
use crate::error::Error;

/// Adds a file's rows; a row group whose plain columns cannot be read is left out by the rows that are missing.
pub(super) fn list_file(
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
