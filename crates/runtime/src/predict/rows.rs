//! Features with names, for a head alone: what a cache entry or an array holds, and what the head says of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::Known;
use crate::data::LeftOut;
use crate::error::Error;
use crate::exchange::{Modality, read_clip_retrieval};
use crate::features::{Features, Manifest, RowId, Store};
use crate::head::Head;
use crate::monitor::{Monitor, Stage};
use crate::npy;
use crate::targets::Task;

/// What rows of a cache entry are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// The sample's name below what was extracted.
    Name,
    /// The BLAKE3 digest of the sample's bytes, 64 hexadecimal digits: the same wherever the sample lies.
    Digest,
}

/// Told of a row: what it is called, what is known of it, and its logits.
pub type EachRow<'e> = dyn FnMut(&str, Known<'_>, &[f32]) -> Result<(), Error> + Send + 'e;

/// Features with what each row is called.
#[derive(Debug)]
pub struct Rows {
    features: Features,
    named: Named,
}

#[derive(Debug)]
enum Named {
    /// From 0 on.
    ByNumber,
    /// One name for each row.
    By(Vec<String>),
    /// The samples that have a row, in order.
    Samples(Box<Manifest>, NamedBy),
}

impl Rows {
    /// All rows of a cache entry that `labels`, one of its label files, lists: labelled or not, whatever their split.
    ///
    /// # Errors
    /// As [`Manifest::open`] and [`Store::open_entry`]; [`Error::Features`] where a row is not in the entry.
    pub fn of_entry(entry: &Path, labels: &Path, named_by: NamedBy) -> Result<Rows, Error> {
        let manifest = Manifest::open(labels)?;
        let store = Store::open_entry(entry)?;
        let ids: Vec<RowId> = manifest.lines().filter_map(|line| line.id).collect();
        let features = store.features(&ids, |row| {
            let mut with_row = manifest.lines().filter(|line| line.id.is_some());
            let name = with_row.nth(row).map(|line| line.name.into_owned());
            format!("`{}`", name.unwrap_or_default())
        })?;
        Ok(Rows {
            features,
            named: Named::Samples(Box::new(manifest), named_by),
        })
    }

    /// Rows of an array [N, D] (`.npy`, or the one for training of a `.npz`), called by their numbers.
    ///
    /// # Errors
    /// As [`npy::read_features`].
    pub fn of_array(path: &Path) -> Result<Rows, Error> {
        Ok(Rows {
            features: npy::read_features(path)?,
            named: Named::ByNumber,
        })
    }

    /// Rows of clip-retrieval's embeddings, called as its metadata call them, or by their numbers.
    ///
    /// # Errors
    /// As [`read_clip_retrieval`].
    pub fn of_embeddings(folder: &Path, modality: Modality) -> Result<Rows, Error> {
        let read = read_clip_retrieval(folder, modality)?;
        Ok(Rows {
            features: read.features,
            named: match read.names.is_empty() {
                true => Named::ByNumber,
                false => Named::By(read.names),
            },
        })
    }

    /// `[N, D]`.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Samples of a cache entry that have no row, with the reason.
    pub fn left_out(&self) -> impl Iterator<Item = LeftOut> {
        let manifest = match &self.named {
            Named::Samples(manifest, _) => Some(manifest),
            Named::ByNumber | Named::By(_) => None,
        };
        let lines = manifest.into_iter().flat_map(|manifest| manifest.lines());
        lines.filter(|line| line.id.is_none()).map(|line| LeftOut {
            name: line.name.into_owned(),
            reason: line.left_out.unwrap_or_default().into_owned(),
        })
    }

    /// Hands on each row's name, the class it is known to have (where the head has one of that name), and its logits, in
    /// order; no more than a few thousand rows of logits are held at a time.
    ///
    /// # Errors
    /// As [`Head::logits`]; [`Error::Interrupted`] when the monitor cancels; [`Error::Usage`] where so many threads cannot
    /// be had; what `each` returns.
    pub fn predict(
        &self,
        head: &Head,
        threads: usize,
        monitor: Monitor<'_>,
        each: &mut EachRow<'_>,
    ) -> Result<(), Error> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|error| Error::Usage(format!("{threads} threads could not be started: {error}")))?;
        pool.install(|| self.predict_here(head, monitor, each))
    }

    /// As [`predict`](Rows::predict), by the threads of the pool that it is called in.
    fn predict_here(&self, head: &Head, monitor: Monitor<'_>, each: &mut EachRow<'_>) -> Result<(), Error> {
        let total = self.features.n_rows();
        let mut named = self.named(head);
        head.logits_each(&self.features, &mut |first, logits| {
            if monitor.is_cancelled() {
                return Err(Error::Interrupted { done: first, total });
            }
            let n_rows = logits.len() / head.n_outputs();
            for (logits, (name, known)) in logits.chunks_exact(head.n_outputs()).zip(&mut named) {
                each(&name, known, logits)?;
            }
            monitor.at(Stage::Verify, first + n_rows, total);
            Ok(())
        })
    }

    /// Names of all rows in order, and what is known of each.
    fn named<'r>(&'r self, head: &Head) -> Box<dyn Iterator<Item = (Cow<'r, str>, Known<'r>)> + 'r> {
        match &self.named {
            Named::ByNumber => {
                Box::new((0..self.features.n_rows()).map(|row| (row.to_string().into(), Known::Nothing)))
            }
            Named::By(names) => Box::new(names.iter().map(|name| (name.into(), Known::Nothing))),
            Named::Samples(manifest, named_by) => {
                let outputs: HashMap<&str, u32> = match head.task() {
                    Task::SingleLabel => head.outputs().iter().map(String::as_str).zip(0..).collect(),
                    Task::MultiLabel | Task::Regression => HashMap::new(),
                };
                let classes = manifest.header.classes.iter();
                let to_head: Vec<Option<u32>> = classes
                    .map(|class| outputs.get(class.as_str()).copied())
                    .collect();
                Box::new(manifest.lines().filter_map(move |line| {
                    let id = line.id?;
                    let class = line.label.and_then(|label| *to_head.get(label as usize)?);
                    let name = match named_by {
                        NamedBy::Name => line.name,
                        NamedBy::Digest => blake3::Hash::from(id).to_hex().to_string().into(),
                    };
                    Some((name, class.map_or(Known::Nothing, Known::Class)))
                }))
            }
        }
    }
}
