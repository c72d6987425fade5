//! Rows of a column for many readers: one cursor goes through the pages, so that no worker decodes what another has, and a
//! window of what it has read serves those who are a little behind.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use parquet::data_type::ByteArray;

use super::cells::{Cell, Cells};
use super::file::ParquetFile;
use super::{Picked, pick};

/// Rows that are read at once.
const BATCH_ROWS: u64 = 32;
/// A reader that is further ahead than this leaves the rows between to nobody.
const MAX_GAP: u64 = 256;
/// Rows and bytes that a window keeps.
const MAX_ROWS: usize = 4096;
const MAX_BYTES: usize = 64 << 20;
/// A reader's own window serves itself alone.
const MAX_OWN_ROWS: usize = 8;

/// The files of a data set, and the cursor that all its readers share.
#[derive(Debug)]
pub(in super::super) struct Source {
    pub(super) files: Vec<PathBuf>,
    /// The number of each file's first row among all; one more than files.
    pub(super) bases: Vec<u64>,
    /// The column that holds the samples.
    pub(super) column: String,
    shared: Mutex<Window>,
}

/// A row's sample.
#[derive(Debug, Clone)]
pub(in super::super) enum Value {
    /// Its bytes.
    Bytes(ByteArray),
    /// The path of a file beside the Parquet file.
    Path(String),
}

/// What was read of a row, or why it could not be.
type Fetched = Result<Value, String>;

impl Source {
    pub(super) fn new(files: Vec<PathBuf>, bases: Vec<u64>, column: String) -> Source {
        Source {
            files,
            bases,
            column,
            shared: Mutex::new(Window::default()),
        }
    }

    /// The file that a row is in.
    pub(in super::super) fn file_of(&self, row: u64) -> usize {
        self.bases.partition_point(|base| *base <= row).saturating_sub(1)
    }

    pub(in super::super) fn file(&self, idx: usize) -> &std::path::Path {
        &self.files[idx]
    }

    /// A row's sample; `own` serves where the shared cursor has left the row behind.
    ///
    /// # Errors
    /// Why this one cannot be read, in one sentence.
    pub(in super::super) fn fetch(&self, row: u64, own: &mut Window) -> Fetched {
        {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fetched) = shared.get(self, row, Scope::Shared) {
                return fetched;
            }
        }
        own.get(self, row, Scope::Own)
            .unwrap_or_else(|| Err("it was not found again".to_owned()))
    }
}

/// Whom a window serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Shared,
    Own,
}

/// A cursor and the rows behind it.
#[derive(Debug, Default)]
pub(in super::super) struct Window {
    cursor: Option<Cursor>,
    /// By number, ascending.
    rows: VecDeque<(u64, Fetched)>,
    n_bytes: usize,
}

impl Window {
    /// The row, reading on as far as it takes; `None` where it lies behind a shared window.
    fn get(&mut self, source: &Source, row: u64, scope: Scope) -> Option<Fetched> {
        if let Ok(at) = self.rows.binary_search_by_key(&row, |(number, _)| *number) {
            return Some(self.rows[at].1.clone());
        }
        let next = self.cursor.as_ref().map(|cursor| cursor.next_row(source));
        let is_behind = next.is_some_and(|next| row < next);
        if is_behind {
            // Far behind is a new pass over the data; a little behind is one reader that is late.
            let is_new_pass = next.is_some_and(|next| row + (MAX_ROWS as u64) < next);
            if scope == Scope::Shared && !is_new_pass {
                return None;
            }
            self.rows.clear();
            self.n_bytes = 0;
        }
        if is_behind || next.is_none_or(|next| row - next > MAX_GAP) {
            let file = source.file_of(row);
            match &mut self.cursor {
                Some(cursor) if cursor.file_idx == file => cursor.seek(row - source.bases[file]),
                _ => {
                    self.cursor = None;
                    match Cursor::open(source, file, row - source.bases[file]) {
                        Ok(cursor) => self.cursor = Some(cursor),
                        Err(reason) => return Some(Err(reason)),
                    }
                }
            }
        }
        loop {
            let cursor = self.cursor.as_mut()?;
            if cursor.is_at_end() {
                let file = source.file_of(row);
                self.cursor = None;
                match Cursor::open(source, file, row - source.bases[file]) {
                    Ok(cursor) => self.cursor = Some(cursor),
                    Err(reason) => return Some(Err(reason)),
                }
                continue;
            }
            let first = cursor.next_row(source);
            let n_rows = if scope == Scope::Own { 1 } else { BATCH_ROWS };
            let mut found = None;
            for (number, fetched) in (first..).zip(cursor.read(n_rows)) {
                if number == row {
                    found = Some(fetched.clone());
                }
                self.n_bytes += size(&fetched);
                self.rows.push_back((number, fetched));
            }
            self.trim(scope);
            if found.is_some() {
                return found;
            }
        }
    }

    fn trim(&mut self, scope: Scope) {
        let max_rows = if scope == Scope::Own {
            MAX_OWN_ROWS
        } else {
            MAX_ROWS
        };
        while self.rows.len() > max_rows
            || (self.n_bytes > MAX_BYTES && self.rows.len() > BATCH_ROWS as usize)
        {
            if let Some((_, fetched)) = self.rows.pop_front() {
                self.n_bytes -= size(&fetched);
            }
        }
    }
}

fn size(fetched: &Fetched) -> usize {
    match fetched {
        Ok(Value::Bytes(bytes)) => bytes.len(),
        Ok(Value::Path(path)) => path.len(),
        Err(reason) => reason.len(),
    }
}

/// A place in a file.
struct Cursor {
    file_idx: usize,
    file: ParquetFile,
    picked: Picked,
    /// Rows before each row group, and in all.
    starts: Vec<u64>,
    /// The row in the file that is read next.
    next: u64,
    /// The open columns of the row group that `next` is in, standing at `next`.
    cells: Option<(Option<Cells>, Option<Cells>)>,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor")
            .field("file_idx", &self.file_idx)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Cursor {
    fn open(source: &Source, file_idx: usize, row: u64) -> Result<Cursor, String> {
        let path = source.files.get(file_idx).ok_or("there is no such row")?;
        let file = ParquetFile::open(path)?;
        let picked = pick(&file, &source.column)?;
        let mut starts = vec![0];
        let mut total = 0u64;
        for n_rows in file.group_rows() {
            total = total.saturating_add(n_rows);
            starts.push(total);
        }
        // What was listed must still be there.
        let n_listed = source.bases[file_idx + 1] - source.bases[file_idx];
        if total != n_listed {
            return Err(format!(
                "its file has {total} rows now, and {n_listed} when it was listed"
            ));
        }
        Ok(Cursor {
            file_idx,
            file,
            picked,
            starts,
            next: row,
            cells: None,
        })
    }

    fn next_row(&self, source: &Source) -> u64 {
        source.bases[self.file_idx] + self.next
    }

    fn is_at_end(&self) -> bool {
        self.starts.last().is_none_or(|end| self.next >= *end)
    }

    fn seek(&mut self, row: u64) {
        // Forward within a row group the columns skip by themselves.
        let same = self.group() == self.group_of(row) && row >= self.next;
        let ahead = usize::try_from(row.saturating_sub(self.next)).unwrap_or(usize::MAX);
        self.cells = match self.cells.take() {
            Some(cells) if same => skipped(cells, ahead).ok(),
            _ => None,
        };
        self.next = row;
    }

    fn group(&self) -> usize {
        self.group_of(self.next)
    }

    fn group_of(&self, row: u64) -> usize {
        self.starts
            .partition_point(|start| *start <= row)
            .saturating_sub(1)
    }

    /// The next rows, at most `n_rows` and to the end of the row group; never none before the end of the file.
    fn read(&mut self, n_rows: u64) -> Vec<Fetched> {
        let end = self.starts.get(self.group() + 1).copied().unwrap_or(self.next);
        let n_rows = usize::try_from(n_rows.min(end - self.next)).unwrap_or(1);
        if let Ok(values) = self.try_read(n_rows) {
            self.next += n_rows as u64;
            if self.next == end {
                self.cells = None;
            }
            return values;
        }
        // A damaged page costs its own rows: each is tried alone, from the pages in front of it, whose headers suffice.
        let mut values = Vec::with_capacity(n_rows);
        for _ in 0..n_rows {
            self.cells = None;
            let one = self
                .try_read(1)
                .and_then(|mut one| one.pop().ok_or_else(String::new)?);
            values.push(one);
            self.next += 1;
        }
        self.cells = None;
        values
    }

    fn try_read(&mut self, n_rows: usize) -> Result<Vec<Fetched>, String> {
        let (group, next) = (self.group(), self.next);
        let mut cells = match self.cells.take() {
            Some(cells) => cells,
            None => {
                let open =
                    |leaf: Option<usize>| leaf.map(|leaf| Cells::open(&self.file, group, leaf)).transpose();
                let cells = (open(self.picked.bytes)?, open(self.picked.path)?);
                let ahead = usize::try_from(next - self.starts[group]).unwrap_or(usize::MAX);
                skipped(cells, ahead)?
            }
        };
        let read = |cells: &mut Option<Cells>| match cells {
            None => Ok(vec![Cell::Null; n_rows]),
            Some(cells) => match cells.read(n_rows)? {
                values if values.len() == n_rows => Ok(values),
                _ => Err("its row group ends before it".to_owned()),
            },
        };
        let (bytes, paths) = (read(&mut cells.0)?, read(&mut cells.1)?);
        self.cells = Some(cells);
        Ok(bytes
            .into_iter()
            .zip(paths)
            .map(|(bytes, path)| match (bytes, path) {
                (Cell::Bytes(bytes), _) => Ok(Value::Bytes(bytes)),
                (_, path @ Cell::Bytes(_)) => match path.text()? {
                    Some(path) if !path.is_empty() => Ok(Value::Path(path.into_owned())),
                    _ => Err("it is empty".to_owned()),
                },
                _ => Err("it is null".to_owned()),
            })
            .collect())
    }
}

type Pair = (Option<Cells>, Option<Cells>);

fn skipped(mut cells: Pair, n_rows: usize) -> Result<Pair, String> {
    for cells in [&mut cells.0, &mut cells.1].into_iter().flatten() {
        if n_rows > 0 && cells.skip(n_rows)? != n_rows {
            return Err("its row group ends before it".to_owned());
        }
    }
    Ok(cells)
}
