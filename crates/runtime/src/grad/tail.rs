//! The program and the three things that are done with it.

use super::gradients::Gradients;
use super::plan::{NormMode, Plan};
use super::weights::{Parameter, Weights};
use crate::error::Error;
use crate::onnx::Model;

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
    parameters: Vec<Parameter>,
}

impl Tail {
    /// Makes a program of a model's nodes between `boundary` and `output`.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] for a name that the graph lacks; [`Error::Untrainable`] that names an operator without a
    /// derivative here and its node, or the tensors beside the boundary that the nodes behind it need too.
    pub fn new(model: &Model, options: &TailOptions<'_>) -> Result<Tail, Error> {
        let _ = (model, options);
        unimplemented!()
    }

    /// Every float initialiser that the nodes use, in the order of their first use.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Their values in the model, which float16 and float64 are converted from.
    pub fn weights(&self) -> Weights {
        unimplemented!()
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
        let _ = (trainable, norm);
        unimplemented!()
    }

    /// Numbers of the output for one sample.
    pub fn output_width(&self) -> usize {
        unimplemented!()
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
        let _ = (weights, batch, n, logits);
        unimplemented!()
    }

    /// One step's gradients: `loss` gets the output (`[n, output_width]`), writes the derivative of the loss by each of
    /// its numbers into its second argument, which comes zeroed, and returns the loss. The gradients are overwritten; of
    /// `weights` only running statistics change, and those only where their normalisation is in [`NormMode::Batch`] and
    /// the loss is finite.
    ///
    /// # Errors
    /// [`Error::StepNotFinite`] where the loss or a gradient is no number; running statistics are then as before.
    /// [`Error::Usage`] as for [`forward`](Tail::forward), and for a batch of a single value per channel under
    /// [`NormMode::Batch`].
    pub fn step(
        &self,
        plan: &Plan,
        weights: &mut Weights,
        batch: &[f32],
        n: usize,
        loss: &mut dyn FnMut(&[f32], &mut [f32]) -> f64,
        gradients: &mut Gradients,
    ) -> Result<f64, Error> {
        let _ = (plan, weights, batch, n, loss, gradients);
        unimplemented!()
    }
}
