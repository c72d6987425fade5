//! The rows that a stage trains on, from wherever they come.

use std::ops::Range;

use crate::error::Error;
use crate::features::{Features, Recomputed};
use crate::monitor::Monitor;
use crate::targets::Targets;

/// Rows that are computed ahead take at most so much, unless a single batch takes more.
const AHEAD_BYTES: usize = 256 << 20;

/// The rows of a stage.
#[derive(Debug)]
pub(crate) struct Rows<'d> {
    /// Features at the stage's boundary, and classes.
    pub(crate) train: Split<'d>,
    pub(crate) val: Split<'d>,
}

/// The rows of one split.
#[derive(Debug)]
pub(crate) struct Split<'d> {
    pub(crate) features: Source<'d>,
    pub(crate) targets: Targets,
    pub(crate) names: Vec<String>,
}

/// Where features are to be had.
#[derive(Debug)]
pub(crate) enum Source<'d> {
    /// They are stored.
    Stored(Features),
    /// The frozen part of the network computes them whenever they are asked for.
    Recomputed(Box<Recomputed<'d>>),
}

impl Source<'_> {
    /// N.
    pub(crate) fn n_rows(&self) -> usize {
        match self {
            Source::Stored(features) => features.n_rows(),
            Source::Recomputed(features) => features.n_rows(),
        }
    }

    /// Reads rows in an order, from its beginning to its end.
    pub(crate) fn reader<'r>(&'r self, order: &'r [usize]) -> Reader<'r> {
        Reader {
            source: self,
            order,
            ahead: 0..0,
            values: Vec::new(),
        }
    }
}

/// Reads batch after batch.
#[derive(Debug)]
pub(crate) struct Reader<'r> {
    source: &'r Source<'r>,
    order: &'r [usize],
    /// The part of the order whose rows are at hand.
    ahead: Range<usize>,
    values: Vec<f32>,
}

impl Reader<'_> {
    /// The rows of a part of the order, which begins where the last one ended: `[batch.len(), D]`.
    ///
    /// # Errors
    /// As [`Recomputed::rows`].
    pub(crate) fn batch(&mut self, batch: Range<usize>, monitor: Monitor<'_>) -> Result<&[f32], Error> {
        match self.source {
            Source::Stored(features) => {
                features.gather(&self.order[batch], &mut self.values);
                Ok(&self.values)
            }
            Source::Recomputed(features) => {
                let d = features.n_features();
                if batch.start < self.ahead.start || batch.end > self.ahead.end {
                    // As many batches as keep all threads busy.
                    let most = (AHEAD_BYTES / (d * size_of::<f32>()).max(1)).min(features.at_once());
                    let n = (most / batch.len().max(1)).max(1) * batch.len();
                    let end = (batch.start + n).min(self.order.len());
                    self.ahead = batch.start..end;
                    self.values.resize(self.ahead.len() * d, 0.0);
                    features.rows(&self.order[self.ahead.clone()], &mut self.values, monitor)?;
                }
                let first = batch.start - self.ahead.start;
                Ok(&self.values[first * d..(first + batch.len()) * d])
            }
        }
    }
}
