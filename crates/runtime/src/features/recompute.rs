//! Rows of features that are computed each time they are asked for: to the bit those that an extraction would have cached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::block::as_stored;
use super::extract::{ExtractConfig, Preparation, Views, check_input, pipeline_of};
use super::key::FeatureType;
use super::pipeline::{Kept, Pipeline, Spent};
use super::store::RowId;
use super::work::prepare_slot;
use crate::data::Dataset;
use crate::engine::{Engine, OutputView, SessionOptions};
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

/// Pictures that go through the network in front of a boundary whenever their rows are asked for.
#[derive(Debug)]
pub(crate) struct Recomputed<'d> {
    front: Arc<Front<'d>>,
    wanted: Vec<Wanted>,
}

/// The network in front of a boundary, and what comes before it. What runs it is kept from one call to the next.
#[derive(Debug)]
struct Front<'d> {
    data: &'d Dataset,
    engine: &'d Engine,
    cut: Model,
    boundary: String,
    preprocess: Preprocess,
    views: Option<Views>,
    dtype: FeatureType,
    options: SessionOptions,
    n_sessions: usize,
    n_threads: usize,
    /// Of a batch.
    shape: Vec<usize>,
    n_features: usize,
    kept: Kept,
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
        let front = Front {
            data,
            engine,
            cut,
            boundary: boundary.to_owned(),
            preprocess: preprocess.clone(),
            views: config.views.cloned(),
            dtype: config.dtype,
            options,
            n_sessions,
            n_threads,
            shape,
            n_features,
            kept: Kept::default(),
        };
        Ok(Recomputed {
            front: Arc::new(front),
            wanted,
        })
    }

    /// Other rows of the same network, which is there once.
    pub(crate) fn of_others(&self, wanted: Vec<Wanted>) -> Recomputed<'d> {
        Recomputed {
            front: Arc::clone(&self.front),
            wanted,
        }
    }

    /// N.
    pub(crate) fn n_rows(&self) -> usize {
        self.wanted.len()
    }

    /// D.
    pub(crate) fn n_features(&self) -> usize {
        self.front.n_features
    }

    /// Rows that keep all threads busy.
    pub(crate) fn at_once(&self) -> usize {
        self.front.n_threads * self.front.shape[0]
    }

    /// The rows at `rows`, in that order: `[rows.len(), D]` into `out`.
    ///
    /// # Errors
    /// [`Error::Data`] for a picture that can no longer be read or is another than it was; [`Error::Features`] for a number
    /// that is not finite; as the engine's; [`Error::Cancelled`].
    pub(crate) fn rows(&self, rows: &[usize], out: &mut [f32], monitor: Monitor<'_>) -> Result<(), Error> {
        let front = &*self.front;
        let d = front.n_features;
        let n_threads = front.n_threads.min(rows.len().div_ceil(front.shape[0])).max(1);
        let pipeline = Pipeline {
            engine: front.engine,
            model: &front.cut,
            options: front.options,
            may_be_own: true,
            n_sessions: front.n_sessions.min(n_threads),
            n_threads,
            shape: front.shape.clone(),
        };
        let wanted = |at: usize| self.wanted[rows[at]];
        let places: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(d).map(Mutex::new).collect();
        let next = AtomicUsize::new(0);
        pipeline.run(
            &front.kept,
            &Spent::default(),
            |filler| {
                let mut reader = front.data.reader();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= rows.len() || monitor.is_cancelled() {
                        return Ok(());
                    }
                    let Wanted { sample, slot, id } = wanted(at);
                    let content = filler
                        .prepare(|| reader.read(sample))
                        .map_err(|reason| front.gone(sample, &reason))?;
                    let found = content.id();
                    if id.is_some_and(|id| id != found) {
                        return Err(front.gone(sample, "its bytes are others"));
                    }
                    let filled = filler.fill(at, |out| {
                        prepare_slot(
                            &front.preprocess,
                            front.views.as_ref(),
                            &content,
                            &found,
                            slot,
                            out,
                        )
                    })?;
                    match filled {
                        None => return Ok(()),
                        Some(Ok(())) => {}
                        Some(Err(reason)) => return Err(front.gone(sample, &reason)),
                    }
                }
            },
            |tags: &[usize], outputs: &[OutputView<'_>]| {
                if outputs[0].row_len() != d {
                    return Err(Error::Features(format!(
                        "`{}` gives {} numbers a picture, not {d}",
                        front.boundary,
                        outputs[0].row_len()
                    )));
                }
                for (&at, row) in tags.iter().zip(outputs[0].values.chunks_exact(d)) {
                    if let Some(value) = row.iter().find(|value| !value.is_finite()) {
                        let name = front.data.name(wanted(at).sample);
                        return Err(Error::Features(format!("`{name}` holds {value}")));
                    }
                    let mut place = places[at].lock().expect("nothing panics under it");
                    place.copy_from_slice(row);
                    as_stored(front.dtype, &mut place).map_err(|value| Error::HalfOverflow {
                        boundary: front.boundary.clone(),
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

impl Front<'_> {
    fn gone(&self, sample: usize, reason: &str) -> Error {
        Error::Data {
            path: self.data.source().to_owned(),
            reason: format!("`{}` was there before, and now: {reason}", self.data.name(sample)),
        }
    }
}
