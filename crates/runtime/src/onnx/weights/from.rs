//! A checkpoint as a job names it: a file, what is done to its names first, and how it goes into a graph.

use std::path::PathBuf;

use pth::OpenOptions;
use surgery::{LazyStateDict, Pattern, Plan, open_whole};

use super::{WeightsOptions, WeightsReport};
use crate::error::Error;
use crate::onnx::Model;

/// A checkpoint for a graph.
#[derive(Debug, Clone)]
pub struct WeightsFrom {
    /// Any file that surgery opens.
    pub path: PathBuf,
    /// Steps of the surgery language that are done to the state dict first; may be empty.
    pub plan: String,
    /// Patterns of initialisers that keep the graph's own values.
    pub keep: Vec<String>,
    /// See [`WeightsOptions::batch_norm_eps`].
    pub batch_norm_eps: f64,
    /// How the checkpoint is read.
    pub open: OpenOptions,
}

impl WeightsFrom {
    /// Opens the checkpoint and does the steps.
    ///
    /// # Errors
    /// The checkpoint cannot be opened, or a step cannot be done.
    pub fn tensors(&self) -> Result<LazyStateDict, Error> {
        let plan = Plan::parse(&self.plan)?;
        let (tensors, _) = plan.apply(open_whole(&self.path, &self.open)?, &self.open)?;
        Ok(tensors)
    }

    /// Opens the checkpoint, does the steps, and puts the tensors into `model`.
    ///
    /// # Errors
    /// As [`tensors`](WeightsFrom::tensors) and [`put`](WeightsFrom::put).
    pub fn put_into(&self, model: &Model, boundaries: &[&str]) -> Result<(Model, WeightsReport), Error> {
        self.put(model, boundaries, &self.tensors()?)
    }

    /// Puts what [`tensors`](WeightsFrom::tensors) gave into `model`.
    ///
    /// # Errors
    /// As [`Model::with_weights`]; a pattern is none.
    pub fn put(
        &self,
        model: &Model,
        boundaries: &[&str],
        tensors: &LazyStateDict,
    ) -> Result<(Model, WeightsReport), Error> {
        let keep: Vec<Pattern> = self
            .keep
            .iter()
            .map(|text| {
                Pattern::parse(text).map_err(|error| Error::Usage(format!("`{text}`: {}", error.reason)))
            })
            .collect::<Result<_, Error>>()?;
        let options = WeightsOptions {
            boundaries,
            keep: &keep,
            batch_norm_eps: self.batch_norm_eps,
        };
        model.with_weights(tensors, &options)
    }
}
