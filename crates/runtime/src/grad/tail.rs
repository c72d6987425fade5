//! The program and the three things that are done with it.

use std::sync::{Mutex, PoisonError};

use super::gradients::Gradients;
use super::lower::{Section, lower};
use super::op::Run;
use super::plan::{NormMode, Plan};
use super::program::{Program, Source};
use super::weights::{Parameter, Weights};
use super::workspace::Workspace;
use crate::awake::Awake;
use crate::error::Error;
use crate::onnx::Model;

/// Samples that an evaluation takes at a time, so that its room does not follow the batch. A sample's logits do not depend on
/// the others.
const EVALUATED_AT_ONCE: usize = 32;

/// What becomes a tail.
#[derive(Debug, Clone, Copy)]
pub struct TailOptions<'o> {
    /// The tensor that its rows come in at.
    pub boundary: &'o str,
    /// The tensor that it computes, of one row per sample.
    pub output: &'o str,
    /// The sizes of the boundary for one sample, without the batch: `[128, 28, 28]`.
    pub input_shape: &'o [usize],
    /// How many threads compute; 0 for as many as there are cores. The numbers do not depend on it.
    pub threads: usize,
}

/// The nodes between a boundary and an output, ready to be run forward and backward. Immutable, and shared by threads.
#[derive(Debug)]
pub struct Tail {
    program: Program,
    parameters: Vec<Parameter>,
    weights: Weights,
    threads: rayon::ThreadPool,
    awake: Awake,
    /// Room of runs that are over.
    workspaces: Mutex<Vec<Workspace>>,
}

impl Tail {
    /// Makes a program of a model's nodes between `boundary` and `output`.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a name that the graph lacks; [`Error::Untrainable`] that names an operator without a
    /// derivative here and its node, or the tensors beside the boundary that the nodes behind it need too.
    pub fn new(model: &Model, options: &TailOptions<'_>) -> Result<Tail, Error> {
        let section = Section {
            boundary: options.boundary,
            outputs: &[options.output],
            input_shape: options.input_shape,
        };
        let (program, parameters, weights) = lower(model, section)?;
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|idx| format!("tail {idx}"))
            .build()
            .map_err(|error| Error::Usage(format!("no {} threads: {error}", options.threads)))?;
        Ok(Tail {
            program,
            parameters,
            weights,
            threads,
            awake: Awake::new(),
            workspaces: Mutex::new(Vec::new()),
        })
    }

    /// Every float initialiser that the nodes use, in the order of their first use.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Their values in the model, which float16 and float64 are converted from.
    pub fn weights(&self) -> Weights {
        self.weights.clone()
    }

    /// Says which parameters learn (`trainable`, by name; running statistics never do) and what each batch normalisation
    /// does (`norm`, by [`Parameter::layer`]). Nothing in front of the first parameter that learns is differentiated.
    ///
    /// # Errors
    /// [`Error::Usage`] where no parameter learns.
    pub fn plan(
        &self,
        trainable: &dyn Fn(&str) -> bool,
        norm: &dyn Fn(&str) -> NormMode,
    ) -> Result<Plan, Error> {
        let plan = Plan::new(&self.program, &self.parameters, trainable, norm);
        if plan.trainable().next().is_none() {
            return Err(Error::Usage("no parameter of the tail is to learn".to_owned()));
        }
        Ok(plan)
    }

    /// Numbers of the output for one sample.
    pub fn output_width(&self) -> usize {
        self.program.output_width()
    }

    /// Numbers of the boundary for one sample.
    pub fn input_width(&self) -> usize {
        self.program.input_width
    }

    /// The output for `n` samples of `batch` (`[n, input_shape…]`, row-major), all normalisations by their running
    /// statistics; `logits` becomes `[n, output_width]`.
    ///
    /// # Errors
    /// [`Error::Usage`] where `batch` is not `n` samples, or `weights` are another tail's.
    pub fn forward(
        &self,
        weights: &Weights,
        batch: &[f32],
        n: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), Error> {
        self.check(weights, batch, n)?;
        logits.clear();
        let mut workspace = self.workspace();
        for batch in batch.chunks(EVALUATED_AT_ONCE * self.program.input_width) {
            let run = Run {
                n: batch.len() / self.program.input_width,
                norm: NormMode::Frozen,
            };
            self.awake.run(&self.threads, || {
                workspace.forward(&self.program, weights, batch, run, |_| NormMode::Frozen);
            });
            logits.extend_from_slice(workspace.output(&self.program, weights, batch));
        }
        self.give_back(workspace);
        Ok(())
    }

    /// One step's gradients: `loss` gets the output (`[n, output_width]`), writes the derivative of the loss by each of
    /// its numbers into its second argument, which comes zeroed, and returns the loss. The gradients are overwritten; of
    /// `weights` only running statistics change, and those only where their normalisation is in [`NormMode::Batch`] and
    /// the loss is finite.
    ///
    /// # Errors
    /// [`Error::StepNotFinite`] where the loss or a gradient is no number; running statistics are then as before.
    /// [`Error::Usage`] as for [`forward`](Tail::forward), for gradients of another plan, and for
    /// a batch of one value per channel under [`NormMode::Batch`].
    pub fn step(
        &self,
        plan: &Plan,
        weights: &mut Weights,
        batch: &[f32],
        n: usize,
        loss: &mut dyn FnMut(&[f32], &mut [f32]) -> f64,
        gradients: &mut Gradients,
    ) -> Result<f64, Error> {
        self.check(weights, batch, n)?;
        if plan.needs.len() != self.program.slots.len() || !plan.trainable().eq(gradients.values.keys()) {
            return Err(Error::Usage("a plan and gradients of another tail".to_owned()));
        }
        let single = self.program.nodes.iter().zip(&plan.norms).find(|(node, norm)| {
            let n_channels = match node.inputs.get(3) {
                Some(Source::Parameter(mean)) if node.is_batch_norm => weights.values[*mean].len(),
                _ => return false,
            };
            **norm == NormMode::Batch && self.program.slots[node.slot].at(n) == n_channels
        });
        if let Some((node, _)) = single {
            return Err(Error::Usage(format!(
                "a batch of {n} has one value per channel at `{}`, of which there is no variance",
                node.layer
            )));
        }
        let run = Run {
            n,
            norm: NormMode::Frozen,
        };
        let mut workspace = self.workspace();
        let (program, threads) = (&self.program, &self.threads);
        self.awake.run(threads, || {
            workspace.forward(program, weights, batch, run, |node| plan.norms[node]);
        });
        let mut d_output = workspace.take(n * program.output_width());
        d_output.fill(0.0);
        let value = loss(workspace.output(program, weights, batch), &mut d_output);
        if !value.is_finite() {
            self.give_back(workspace);
            return Err(Error::StepNotFinite("loss"));
        }
        let known: &Weights = weights;
        let is_finite = self.awake.run(threads, || {
            workspace.backward(program, plan, known, batch, run, d_output, gradients);
            gradients.are_finite()
        });
        if is_finite {
            workspace.update_running(program, plan, weights);
        }
        self.give_back(workspace);
        if is_finite {
            Ok(value)
        } else {
            Err(Error::StepNotFinite("gradient"))
        }
    }

    fn check(&self, weights: &Weights, batch: &[f32], n: usize) -> Result<(), Error> {
        let width = self.program.input_width;
        if n == 0 || batch.len() != n * width {
            return Err(Error::Usage(format!(
                "{} numbers are not {n} samples of {width}",
                batch.len()
            )));
        }
        let fits = weights.values.len() == self.weights.values.len()
            && weights
                .values
                .iter()
                .zip(&self.weights.values)
                .all(|(a, b)| a.0 == b.0 && a.1.len() == b.1.len());
        if !fits {
            return Err(Error::Usage("the weights are another tail's".to_owned()));
        }
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        let mut free = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    fn give_back(&self, workspace: Workspace) {
        let mut free = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(workspace);
    }
}
