//! What computes the features of a batch: ONNX Runtime, or the crate's own kernels for the outputs that they compute faster.

use std::borrow::Cow;

use crate::engine::{Engine, Input, OutputView, Session, SessionOptions};
use crate::error::Error;
use crate::grad::{Frozen, Room};
use crate::onnx::Model;

/// A network's outputs by what computes them. That depends on the graph in front of an output alone: its numbers are the same
/// whatever else is computed with it, unless that is inside of what an exporter took apart (a LayerNorm, a GELU).
#[derive(Debug)]
pub(super) struct Plan {
    own: Option<Own>,
    /// What ONNX Runtime runs.
    other: Option<Model>,
}

/// Outputs on the crate's own kernels.
#[derive(Debug)]
struct Own {
    frozen: Frozen,
    /// By output, its name and its place among the model's.
    outputs: Vec<(String, usize)>,
}

impl Plan {
    /// For ONNX Runtime alone.
    pub(super) fn without_own(model: &Model) -> Plan {
        Plan {
            own: None,
            other: Some(model.clone()),
        }
    }

    /// By what is faster.
    pub(super) fn new(model: &Model, input_shape: &[usize]) -> Plan {
        Plan::with_own(model, input_shape).unwrap_or_else(|| Plan::without_own(model))
    }

    fn with_own(model: &Model, input_shape: &[usize]) -> Option<Plan> {
        const FLOAT: i64 = 1;
        let input = model.input().ok().filter(|input| input.elem_type == FLOAT)?;
        // A graph for so many samples and no other need not treat them one by one.
        let batch = input
            .shape
            .as_ref()
            .and_then(|shape| shape.first().copied().flatten());
        if batch.is_some_and(|batch| batch != 1) {
            return None;
        }
        let named = model.outputs().iter().map(String::as_str).zip(0..);
        let (own, others): (Vec<(&str, usize)>, Vec<_>) =
            named.partition(|(name, _)| Frozen::pays(model, &input.name, name, input_shape));
        if own.is_empty() {
            return None;
        }
        fn names<'n>(outputs: &[(&'n str, usize)]) -> Vec<&'n str> {
            outputs.iter().map(|(name, _)| *name).collect()
        }
        let frozen = Frozen::new(model, &input.name, &names(&own), input_shape).ok()?;
        let other = match names(&others).as_slice() {
            [] => None,
            others => Some(model.cut(others).ok()?),
        };
        let outputs = own.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        Some(Plan {
            own: Some(Own { frozen, outputs }),
            other,
        })
    }

    /// The outputs that the crate's own kernels compute.
    pub(super) fn own(&self) -> Vec<String> {
        let outputs = self.own.iter().flat_map(|own| &own.outputs);
        outputs.map(|(name, _)| name.clone()).collect()
    }
}

/// What one thread runs batches with.
#[derive(Debug)]
pub(super) struct Runner {
    session: Option<Session>,
    /// Of the crate's own kernels.
    threads: Option<rayon::ThreadPool>,
    room: Room,
}

impl Runner {
    /// # Errors
    /// As [`Engine::session`].
    pub(super) fn new(plan: &Plan, engine: &Engine, options: SessionOptions) -> Result<Runner, Error> {
        let session = plan.other.as_ref().map(|model| engine.session(model, options));
        let threads = plan.own.as_ref().map(|_| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(options.intra_threads)
                .thread_name(|idx| format!("network {idx}"))
                .build()
                .map_err(|error| Error::Usage(format!("no {} threads: {error}", options.intra_threads)))
        });
        Ok(Runner {
            session: session.transpose()?,
            threads: threads.transpose()?,
            room: Room::default(),
        })
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Runs a batch `[shape]` and looks at the outputs, in the model's order.
    ///
    /// # Errors
    /// As [`Session::run_with`].
    pub(super) fn run_with<R>(
        &mut self,
        plan: &Plan,
        shape: &[usize],
        values: &[f32],
        look: impl FnOnce(Vec<OutputView<'_>>) -> R,
    ) -> Result<R, Error> {
        let mut own = Vec::new();
        if let (Some(Own { frozen, outputs }), Some(threads)) = (&plan.own, &self.threads) {
            let room = &mut self.room;
            let values = threads.install(|| frozen.forward(room, values));
            let of_samples = frozen.output_shapes();
            own.extend(outputs.iter().zip(of_samples).zip(values).map(
                |(((name, at), of_sample), values)| {
                    let view = OutputView {
                        name,
                        shape: std::iter::once(shape[0])
                            .chain(of_sample.iter().copied())
                            .collect(),
                        values: Cow::Borrowed(values.as_slice()),
                    };
                    (*at, view)
                },
            ));
        }
        let all = |others: Vec<OutputView<'_>>| {
            let mut others = others.into_iter();
            let mut own = own.into_iter().peekable();
            let mut views = Vec::new();
            while let Some(view) = match own.next_if(|(at, _)| *at == views.len()) {
                Some((_, view)) => Some(view),
                None => others.next(),
            } {
                views.push(view);
            }
            look(views)
        };
        match &mut self.session {
            Some(session) => session.run_with(&[Input::F32 { shape, values }], all),
            None => Ok(all(Vec::new())),
        }
    }
}
