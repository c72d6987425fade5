//! What came of an extraction: which sample has which row, and what was left out.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::job::Job;
use super::manifest::{Header, Line, Manifest, save_manifest};
use super::reasons::Reasons;
use super::shard::Shard;
use super::store::{RowId, Store};
use crate::data::{Dataset, LeftOut, Split};
use crate::error::Error;

/// What became of each sample: 32 bytes each.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) ids: Vec<RowId>,
    /// By the sample's place among them.
    pub(super) left_out: Reasons,
}

/// What came of an extraction.
#[derive(Debug)]
pub struct Extraction<'d> {
    pub(super) data: &'d Dataset,
    pub(super) first: usize,
    pub(super) outcomes: Outcomes,
    /// The entry of each tap, with all rows.
    pub stores: Vec<Store>,
    /// The entries of random views of the first tap.
    pub views: Vec<Store>,
    pub(super) view_names: Vec<Vec<String>>,
    /// Where the network was cut.
    pub boundaries: Vec<String>,
    /// Samples whose rows were all there.
    pub hits: usize,
    /// Samples for which something was computed.
    pub misses: usize,
    /// Samples that could not be read or listed.
    pub n_left_out: usize,
    /// Wall time.
    pub elapsed: Duration,
    /// What all threads together spent on reading, decoding and transforming.
    pub preparing: Duration,
    /// What all threads together spent in the network.
    pub running: Duration,
    /// Whether a GPU was asked for and some operators ran on the processor all the same.
    pub partly_on_cpu: bool,
    /// The boundaries that the crate's own kernels computed rows of, not ONNX Runtime.
    pub own: Vec<String>,
    /// The part that was done, with its job.
    pub shard: Option<(Shard, Job)>,
}

impl Extraction<'_> {
    /// Whether a sample's features are there, by its number in the data set.
    pub fn has_row(&self, sample: usize) -> bool {
        sample.checked_sub(self.first).is_some_and(|offset| {
            offset < self.outcomes.ids.len() && self.outcomes.left_out.get(offset).is_none()
        })
    }

    /// The entry of the first tap.
    pub fn store(&self) -> &Store {
        &self.stores[0]
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut left_out = self.outcomes.left_out.iter().peekable();
        self.outcomes.ids.iter().enumerate().map(move |(offset, id)| {
            let sample = self.first + offset;
            let reason = left_out
                .next_if(|&(at, _)| at == offset)
                .map(|(_, reason)| reason);
            Line {
                name: self.data.name(sample),
                id: reason.is_none().then_some(*id),
                label: self.data.label(sample),
                split: self.data.split(sample),
                left_out: reason.map(Into::into),
            }
        })
    }

    /// The samples of a split that have a label and features, with their ids and labels, in order.
    pub(crate) fn labelled(&self, split: Split) -> impl Iterator<Item = (usize, RowId, u32)> {
        let of_split = (self.first..)
            .zip(self.lines())
            .filter(move |(_, line)| line.split == split);
        of_split.filter_map(|(sample, line)| Some((sample, line.id?, line.label?)))
    }

    pub(super) fn header(&self, tap: usize) -> Header {
        Header::new(
            self.data.source(),
            self.data.classes(),
            self.view_names[tap].clone(),
            self.outcomes.ids.len(),
        )
    }

    /// Which row is which sample, in memory.
    pub fn manifest(&self) -> Manifest {
        Manifest::new(self.header(0), self.lines())
    }

    /// Writes the label manifest into the entry of every tap, and returns the first's path.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_labels(&self) -> Result<PathBuf, Error> {
        let mut first = None;
        for (tap, store) in self.stores.iter().enumerate() {
            let path = save_manifest(store.folder(), &self.header(tap), || self.lines())?;
            first.get_or_insert(path);
        }
        Ok(first.expect("there is a tap"))
    }

    /// Samples of splits that are for neither training nor validation: which, and how many.
    pub fn set_aside(&self) -> &[(String, usize)] {
        self.data.set_aside()
    }

    /// Samples without features: those that could not be listed, then those that could not be read, in their order.
    pub fn left_out(&self) -> impl Iterator<Item = LeftOut> {
        let unread = self.outcomes.left_out.iter().map(|(offset, reason)| LeftOut {
            name: self.data.name(self.first + offset).into_owned(),
            reason: reason.to_owned(),
        });
        self.data.left_out().iter().cloned().chain(unread)
    }

    /// The ledger: one JSON object per sample that was left out.
    pub fn ledger(&self) -> String {
        #[derive(Serialize)]
        struct Entry<'e> {
            name: &'e str,
            reason: &'e str,
        }
        let mut text = String::new();
        for LeftOut { name, reason } in self.left_out() {
            let entry = Entry {
                name: &name,
                reason: &reason,
            };
            text.push_str(&serde_json::to_string(&entry).expect("strings are JSON"));
            text.push('\n');
        }
        text
    }
}
