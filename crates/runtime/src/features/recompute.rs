//! Rows of features that are computed each time they are asked for: to the bit those that an extraction would have cached.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::block::as_stored;
use super::extract::{ExtractConfig, Preparation, Views, check_input, pipeline_of};
use super::key::FeatureType;
use super::pipeline::{Kept, Pipeline, Spent};
use super::store::RowId;
use super::work::prepare_slot;
use crate::data::Dataset;
use crate::engine::{Engine, OutputView};
use crate::error::Error;
use crate::image::Preprocess;
use crate::monitor::Monitor;
use crate::onnx::Model;

/// A row that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The sample's number in the data set.
    pub(crate) sample: usize,
    /// 0 for the plain picture, else one more than the view's number.
    pub(crate) slot: usize,
    /// What the sample's bytes were; where it is not known, any will do.
    pub(crate) id: Option<RowId>,
}

/// The network in front of a boundary, and the pictures that go through it.
#[derive(Debug)]
pub(crate) struct Recomputed<'d> {
    data: &'d Dataset,
    engine: &'d Engine,
    /// What stands in front of the boundary.
    cut: Model,
    boundary: String,
    preprocess: Preprocess,
    views: Option<Views>,
    dtype: FeatureType,
    /// A pipeline's parts, without what it borrows.
    parts: Parts,
    n_features: usize,
    wanted: Vec<Wanted>,
    kept: Kept,
}

#[derive(Debug, Clone)]
struct Parts {
    options: crate::engine::SessionOptions,
    n_sessions: usize,
    n_threads: usize,
    shape: Vec<usize>,
}

impl<'d> Recomputed<'d> {
    /// Rows of `n_features` numbers at a tensor, as an extraction by `config` would give them; its taps are not looked at.
    ///
    /// # Errors
    /// As [`extract`](super::extract()) where the graph and the pictures do not fit each other.
    pub(crate) fn new(
        model: &Model,
        boundary: &str,
        data: &'d Dataset,
        engine: &'d Engine,
        config: &ExtractConfig<'_>,
        n_features: usize,
        wanted: Vec<Wanted>,
    ) -> Result<Recomputed<'d>, Error> {
        let Preparation::Pictures(preprocess) = config.input else {
            return Err(Error::Usage("features of texts are cached".to_owned()));
        };
        let batch_size = check_input(model, preprocess, config.batch_size)?;
        let cut = model.with_weights_outside()?.cut(&[boundary])?;
        let Pipeline {
            options,
            n_sessions,
            n_threads,
            shape,
            ..
        } = pipeline_of(&cut, preprocess, engine, config, batch_size);
        Ok(Recomputed {
            data,
            engine,
            boundary: boundary.to_owned(),
            preprocess: preprocess.clone(),
            views: config.views.cloned(),
            dtype: config.dtype,
            parts: Parts {
                options,
                n_sessions,
                n_threads,
                shape,
            },
            cut,
            n_features,
            wanted,
            kept: Kept::default(),
        })
    }

    /// N.
    pub(crate) fn n_rows(&self) -> usize {
        self.wanted.len()
    }

    /// D.
    pub(crate) fn n_features(&self) -> usize {
        self.n_features
    }

    /// Rows that keep all threads busy.
    pub(crate) fn at_once(&self) -> usize {
        self.parts.n_threads * self.parts.shape[0]
    }

    /// The rows at `rows`, in that order: `[rows.len(), D]` into `out`.
    ///
    /// # Errors
    /// [`Error::Data`] for a picture that can no longer be read or is another than it was; as the engine's; [`Error::Cancelled`].
    pub(crate) fn rows(&self, rows: &[usize], out: &mut [f32], monitor: Monitor<'_>) -> Result<(), Error> {
        let Parts {
            options,
            n_sessions,
            n_threads,
            shape,
        } = self.parts.clone();
        let n_threads = n_threads.min(rows.len().div_ceil(shape[0])).max(1);
        let pipeline = Pipeline {
            engine: self.engine,
            model: &self.cut,
            options,
            may_be_own: true,
            n_sessions: n_sessions.min(n_threads),
            n_threads,
            shape,
        };
        let gone = |sample: usize, reason: &str| Error::Data {
            path: self.data.source().to_owned(),
            reason: format!("`{}` was there before, and now: {reason}", self.data.name(sample)),
        };
        let places: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(self.n_features).map(Mutex::new).collect();
        let next = AtomicUsize::new(0);
        pipeline.run(
            &self.kept,
            &Spent::default(),
            |filler| {
                let mut reader = self.data.reader();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= rows.len() || monitor.is_cancelled() {
                        return Ok(());
                    }
                    let Wanted { sample, slot, id } = self.wanted[rows[at]];
                    let content = filler
                        .prepare(|| reader.read(sample))
                        .map_err(|reason| gone(sample, &reason))?;
                    let found = content.id();
                    if id.is_some_and(|id| id != found) {
                        return Err(gone(sample, "its bytes are others"));
                    }
                    let filled = filler.fill(at, |out| {
                        prepare_slot(&self.preprocess, self.views.as_ref(), &content, &found, slot, out)
                    })?;
                    match filled {
                        None => return Ok(()),
                        Some(Ok(())) => {}
                        Some(Err(reason)) => return Err(gone(sample, &reason)),
                    }
                }
            },
            |tags: &[usize], outputs: &[OutputView<'_>]| {
                if outputs[0].row_len() != self.n_features {
                    return Err(Error::Features(format!(
                        "`{}` gives {} numbers a picture, not {}",
                        self.boundary,
                        outputs[0].row_len(),
                        self.n_features
                    )));
                }
                for (&at, row) in tags.iter().zip(outputs[0].values.chunks_exact(self.n_features)) {
                    let mut place = places[at].lock().expect("nothing panics under it");
                    place.copy_from_slice(row);
                    as_stored(self.dtype, &mut place).map_err(|value| Error::HalfOverflow {
                        boundary: self.boundary.clone(),
                        value,
                    })?;
                }
                Ok(())
            },
        )?;
        if monitor.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}
