//! Rows by their names, for entries of any size: a row costs the 32 bytes of its name and 6 to 12 more.
//!
//! Names lie once, in the order in which they came. The table holds positions in that order instead of names, and where a
//! row lies follows from its position, since the rows of a block come one after another.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::block::Block;
use super::store::RowId;
use crate::error::Error;

/// Distinct rows of the blocks of one entry.
#[derive(Debug, Default)]
pub(super) struct RowIndex {
    ids: Vec<RowId>,
    /// Positions in `ids`.
    table: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    /// By `first`, ascending. The rows of a block are one run, but for those that another block had before.
    runs: Vec<Run>,
}

/// Rows whose positions and places both ascend by one.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u32,
    block: u32,
    row: u32,
}

impl RowIndex {
    /// Whether the rows of one more block can be told apart by positions.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the block.
    pub(super) fn check_room(&self, block: &Block) -> Result<(), Error> {
        match self.len().checked_add(block.n_rows()) {
            Some(n) if n < u32::MAX as usize => Ok(()),
            _ => Err(block.bad("more rows than an entry's index can count")),
        }
    }

    /// Distinct rows.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn contains(&self, id: &RowId) -> bool {
        self.position(id).is_some()
    }

    /// Which of the distinct rows it is, in the order in which they came.
    pub(super) fn position(&self, id: &RowId) -> Option<usize> {
        let known = |&at: &u32| self.ids[at as usize] == *id;
        let found = self.table.find(self.hasher.hash_one(id), known);
        found.map(|&at| at as usize)
    }

    /// Block and row of an id.
    pub(super) fn place(&self, id: &RowId) -> Option<(u32, u32)> {
        self.position(id).map(|at| self.place_at(at))
    }

    /// Block and row of the distinct row `at`.
    ///
    /// # Panics
    /// Beyond [`len`](RowIndex::len).
    pub(super) fn place_at(&self, at: usize) -> (u32, u32) {
        assert!(at < self.ids.len(), "row {at} of {}", self.ids.len());
        let at = at as u32;
        let run = self.runs[self.runs.partition_point(|run| run.first <= at) - 1];
        (run.block, run.row + (at - run.first))
    }

    /// Adds a row that is not there yet; where it is, says which one that is and keeps it.
    ///
    /// # Panics
    /// Where [`check_room`](RowIndex::check_room) was not asked and there is none.
    pub(super) fn insert(&mut self, id: RowId, (block, row): (u32, u32)) -> Result<(), usize> {
        if let Some(at) = self.position(&id) {
            return Err(at);
        }
        let at = u32::try_from(self.ids.len()).expect("the caller counts the rows");
        let follows = self
            .runs
            .last()
            .is_some_and(|run| run.block == block && run.row + (at - run.first) == row);
        if !follows {
            self.runs.push(Run {
                first: at,
                block,
                row,
            });
        }
        self.ids.push(id);
        let (ids, hasher) = (&self.ids, &self.hasher);
        self.table
            .insert_unique(hasher.hash_one(id), at, |&at| hasher.hash_one(ids[at as usize]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Blocks of rows by number, against a map.
    fn check(blocks: &[Vec<u32>]) -> RowIndex {
        let id = |number: u32| *blake3::hash(&number.to_le_bytes()).as_bytes();
        let (mut index, mut map) = (RowIndex::default(), HashMap::new());
        for (block, rows) in blocks.iter().enumerate() {
            for (row, &number) in rows.iter().enumerate() {
                let place = (block as u32, row as u32);
                let first = map.len();
                match map.get(&number) {
                    None => {
                        assert_eq!(index.insert(id(number), place), Ok(()));
                        map.insert(number, (first, place));
                    }
                    Some((at, _)) => assert_eq!(index.insert(id(number), place), Err(*at)),
                }
            }
        }
        assert_eq!(index.len(), map.len());
        for (&number, &(at, place)) in &map {
            assert_eq!(index.position(&id(number)), Some(at));
            assert_eq!(index.place(&id(number)), Some(place));
            assert_eq!(index.place_at(at), place);
        }
        assert!(!index.contains(&id(u32::MAX)));
        index
    }

    #[test]
    fn places_are_those_of_a_map() {
        assert_eq!(check(&[]).len(), 0);
        let index = check(
            &(0..40)
                .map(|block| (block * 50..block * 50 + 50).collect())
                .collect::<Vec<_>>(),
        );
        assert_eq!(index.runs.len(), 40, "a block is a run");
        // What racing writers leave: parts of blocks that others have, and the same row twice in one.
        check(&[
            (0..100).collect(),
            (50..150).rev().collect(),
            vec![7, 7, 200, 200, 8, 201, 202],
            (0..100).collect(),
            vec![],
            vec![300],
        ]);
    }
}
