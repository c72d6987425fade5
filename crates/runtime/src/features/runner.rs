//! What computes the features of a batch: ONNX Runtime, or the crate's own kernels where they are faster.

use std::borrow::Cow;

use crate::engine::{Input, OutputView, Session};
use crate::error::Error;
use crate::grad::{Frozen, Room};
use crate::onnx::Model;

/// A network on the crate's own kernels.
#[derive(Debug)]
pub(super) struct Own {
    frozen: Frozen,
    /// Names of the outputs, in the model's order.
    names: Vec<String>,
}

impl Own {
    /// None where ONNX Runtime is to run the network: it is as fast, or knows operators that are not known here.
    pub(super) fn new(model: &Model, input_shape: &[usize]) -> Option<Own> {
        const FLOAT: i64 = 1;
        let input = model.input().ok().filter(|input| input.elem_type == FLOAT)?;
        let names = model.outputs().to_vec();
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        // What cannot be made a program of here may still be a sound model, and ONNX Runtime says what is wrong with it.
        let frozen = Frozen::new(model, &input.name, &outputs, input_shape)
            .ok()
            .flatten()?;
        Some(Own { frozen, names })
    }
}

/// What one thread runs batches with.
#[derive(Debug)]
pub(super) enum Runner {
    Session(Session),
    /// The crate's own kernels: these threads, this memory.
    Own {
        threads: rayon::ThreadPool,
        room: Room,
    },
}

impl Runner {
    /// For the crate's own kernels.
    pub(super) fn own(n_threads: usize) -> Result<Runner, Error> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|idx| format!("network {idx}"))
            .build()
            .map_err(|error| Error::Usage(format!("no {n_threads} threads: {error}")))?;
        Ok(Runner::Own {
            threads,
            room: Room::default(),
        })
    }

    /// Runs a batch `shape` and looks at the outputs, in the model's order. `own` is there where the crate's kernels are to
    /// be used.
    ///
    /// # Errors
    /// As [`Session::run_with`].
    pub(super) fn run_with<R>(
        &mut self,
        own: Option<&Own>,
        shape: &[usize],
        values: &[f32],
        look: impl FnOnce(Vec<OutputView<'_>>) -> R,
    ) -> Result<R, Error> {
        match (self, own) {
            (Runner::Own { threads, room }, Some(own)) => {
                let outputs = threads.install(|| own.frozen.forward(room, values));
                let views = own.names.iter().zip(own.frozen.output_shapes()).zip(outputs);
                let views = views.map(|((name, of_sample), values)| OutputView {
                    name,
                    shape: std::iter::once(shape[0])
                        .chain(of_sample.iter().copied())
                        .collect(),
                    values: Cow::Borrowed(values),
                });
                Ok(look(views.collect()))
            }
            (Runner::Session(session), _) => session.run_with(&[Input::F32 { shape, values }], look),
            (Runner::Own { .. }, None) => unreachable!("own threads are made for an own network"),
        }
    }
}
