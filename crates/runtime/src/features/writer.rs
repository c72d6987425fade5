//! Finished rows on their way to the disk: one thread gathers them into blocks and makes those durable.

use std::collections::HashSet;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use super::block::Rows;
use super::store::{Budget, RowId, Store};
use crate::error::Error;

/// Rows in a block where the caller says nothing.
pub const DEFAULT_BLOCK_ROWS: usize = 1024;
/// Bytes after which a block is full all the same: spatial features have large rows.
const BLOCK_BYTES: usize = 32 << 20;
/// A slow backbone fills a block slowly: then this long is what a crash can cost.
const BLOCK_AGE: Duration = Duration::from_secs(30);

/// Rows of one entry that a batch gave.
#[derive(Debug)]
pub(super) struct Computed {
    /// Which entry, as the writer counts them.
    pub(super) entry: usize,
    pub(super) ids: Vec<RowId>,
    /// Of one row.
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// One entry that is being filled.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) store: RwLock<Store>,
    /// The tensor its rows come from, for messages.
    pub(super) boundary: String,
}

impl Entry {
    pub(super) fn contains(&self, id: &RowId) -> bool {
        read(&self.store).contains(id)
    }
}

/// Gathers rows for all entries.
pub(super) struct Writer<'w> {
    entries: &'w [Entry],
    open: Vec<Option<Open>>,
    note: &'w (dyn Fn(&str) -> String + Sync),
    block_rows: usize,
    budget: Option<&'w Budget>,
}

struct Open {
    rows: Rows,
    ids: HashSet<RowId>,
    since: Instant,
}

impl<'w> Writer<'w> {
    /// `note` says what computes the rows; it goes into every block.
    pub(super) fn new(
        entries: &'w [Entry],
        note: &'w (dyn Fn(&str) -> String + Sync),
        block_rows: usize,
        budget: Option<&'w Budget>,
    ) -> Writer<'w> {
        Writer {
            entries,
            open: entries.iter().map(|_| None).collect(),
            note,
            block_rows: block_rows.max(1),
            budget,
        }
    }

    /// Takes rows; those that are there already are dropped.
    ///
    /// # Errors
    /// The disk's; [`Error::HalfOverflow`].
    pub(super) fn push(&mut self, computed: &Computed) -> Result<(), Error> {
        let entry = &self.entries[computed.entry];
        let dtype = read(&entry.store).dtype();
        let open = self.open[computed.entry].get_or_insert_with(|| Open {
            rows: Rows::new(dtype, computed.shape.clone()),
            ids: HashSet::new(),
            since: Instant::now(),
        });
        if open.rows.shape != computed.shape {
            return Err(Error::Features(format!(
                "`{}` gives rows of shape {:?} and of {:?}",
                entry.boundary, open.rows.shape, computed.shape
            )));
        }
        let n_features = computed.shape.iter().product::<usize>().max(1);
        for (id, values) in computed.ids.iter().zip(computed.values.chunks_exact(n_features)) {
            // The same picture twice in the data set, or another process was faster.
            if entry.contains(id) || !open.ids.insert(*id) {
                continue;
            }
            open.rows.push(*id, values).map_err(|value| Error::HalfOverflow {
                boundary: entry.boundary.clone(),
                value,
            })?;
        }
        if open.rows.ids.len() >= self.block_rows || open.rows.bytes.len() >= BLOCK_BYTES {
            self.flush_one(computed.entry)?;
        }
        Ok(())
    }

    /// Makes durable what has waited long.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn flush_old(&mut self) -> Result<(), Error> {
        for entry in 0..self.entries.len() {
            if self.open[entry]
                .as_ref()
                .is_some_and(|open| open.since.elapsed() >= BLOCK_AGE)
            {
                self.flush_one(entry)?;
            }
        }
        Ok(())
    }

    /// Makes durable what there is; every entry is tried, whatever happens to another.
    ///
    /// # Errors
    /// The first of the disk's.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for entry in 0..self.entries.len() {
            outcome = outcome.and(self.flush_one(entry));
        }
        outcome
    }

    fn flush_one(&mut self, entry: usize) -> Result<(), Error> {
        let Some(open) = self.open[entry].take().filter(|open| !open.rows.ids.is_empty()) else {
            return Ok(());
        };
        let store = &self.entries[entry].store;
        read(store).write_block(
            &open.rows,
            &(self.note)(&self.entries[entry].boundary),
            self.budget,
        )?;
        store
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .refresh()
    }
}

fn read(store: &RwLock<Store>) -> std::sync::RwLockReadGuard<'_, Store> {
    store.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}
