//! What can go wrong, sorted by who must act.

use std::path::PathBuf;

use pth::FileError;

use crate::engine::{CudaMissing, Device};
use crate::fetch::Fault;
use crate::template::{NoTemplate, TemplateError};

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The caller must act.
    /// A name that the graph does not hold, with the nearest that it does.
    #[error("`{}` has no tensor `{name}`", path.display())]
    UnknownTensor {
        /// The model.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// The nearest names in the model.
        suggestions: Vec<String>,
    },
    /// A pattern that matches none of a graph's parameters, with the nearest that there are.
    #[error("`{}` has no parameter that `{pattern}` matches", path.display())]
    NoParameter {
        /// The model.
        path: PathBuf,
        /// What was asked for.
        pattern: String,
        /// The nearest names in the model.
        suggestions: Vec<String>,
    },
    /// An option or a combination of options that cannot be followed.
    #[error("{0}")]
    Usage(String),
    /// Pictures of another size than the network takes.
    #[error("`{}` takes pictures of {height} x {width}, and the crop is {crop}", path.display())]
    CropMismatch {
        /// The model.
        path: PathBuf,
        /// Its height, or a question mark.
        height: String,
        /// Its width.
        width: String,
        /// The crop: its side, or height x width.
        crop: String,
    },
    /// Nothing said about which samples are for validation.
    #[error("`{}`: {reason}", path.display())]
    NoSplit {
        /// The source.
        path: PathBuf,
        /// What it lacks.
        reason: &'static str,
    },
    /// A run folder that holds the results of other settings.
    #[error("`{}` already holds {what}", path.display())]
    Exists {
        /// The folder or file.
        path: PathBuf,
        /// What it holds.
        what: String,
    },

    /// A job in parts that was begun with something else.
    #[error("the job `{}` is another: {reason}", path.display())]
    JobDiffers {
        /// The job's folder.
        path: PathBuf,
        /// In what it differs.
        reason: String,
    },
    /// A job in parts of which some are not done.
    #[error("{} of the job's {shards} shards are not done", missing.len())]
    JobUnfinished {
        /// The job's folder.
        path: PathBuf,
        /// Which are missing.
        missing: Vec<usize>,
        /// How many there are.
        shards: usize,
    },
    /// A feature that float16 cannot hold.
    #[error("`{boundary}` has the value {value}, which float16 cannot hold")]
    HalfOverflow {
        /// The tensor.
        boundary: String,
        /// The value.
        value: f32,
    },

    // The file must be another.
    /// Bytes that are no ONNX model.
    #[error("`{}` is not an ONNX model: {reason}", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// Where and how that shows.
        reason: String,
    },
    /// Weights that should lie in a file beside the model.
    #[error("`{}` keeps `{tensor}` in `{location}`, {reason}", path.display())]
    ExternalWeights {
        /// The model.
        path: PathBuf,
        /// The initialiser.
        tensor: String,
        /// The other file, as the model names it.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint that does not fit a graph.
    #[error("Error(s) in loading state_dict for `{}`:\n\t{}", path.display(), faults.join("\n\t"))]
    Weights {
        /// The model.
        path: PathBuf,
        /// Each thing that does not fit.
        faults: Vec<String>,
    },
    /// A sound model that cannot serve as a backbone.
    #[error("`{}` cannot serve as a backbone: {reason}", path.display())]
    Backbone {
        /// The file.
        path: PathBuf,
        /// What stands in the way.
        reason: String,
    },
    /// A folder of pictures that is not laid out as one.
    #[error("`{}`: {reason}", path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// What is missing or odd.
        reason: String,
    },
    /// An array, run or cache file that is damaged or of another kind.
    #[error("`{}`: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the cache whose bytes are not those that were written.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// Features that no head can be trained on.
    #[error("the features cannot be used: {0}")]
    Features(String),
    /// A step of training that would have made weights that are no numbers; it was not made.
    #[error(
        "the {what} is not finite in epoch {epoch}, step {step} ({rows}); the weights before it are kept"
    )]
    NotFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// From 1.
        epoch: usize,
        /// Within the epoch, from 1.
        step: usize,
        /// The rows of the step.
        rows: String,
    },
    /// A checkpoint that no template fits, with the nearest.
    #[error("{0}")]
    NoTemplate(Box<NoTemplate>),
    /// A template that cannot be read, or not be made a network of.
    #[error(transparent)]
    Template(Box<TemplateError>),
    /// A part of a graph that cannot be trained.
    #[error("`{}` cannot be trained behind `{boundary}`: {reason}", path.display())]
    Untrainable {
        /// The model.
        path: PathBuf,
        /// The tensor that training begins at.
        boundary: String,
        /// The operator and its node, or the tensors, that stand in the way.
        reason: String,
    },
    /// A step of a tail whose loss or gradient is no number; nothing was updated.
    #[error("the {0} is not finite; nothing was updated")]
    StepNotFinite(&'static str),
    /// The state-dict layer below.
    #[error(transparent)]
    Surgery(Box<surgery::Error>),

    // The machine must be prepared.
    /// No ONNX Runtime in any of the places that were searched.
    #[error("ONNX Runtime was not found ({})", searched.join("; "))]
    OrtMissing {
        /// Each place and what was there.
        searched: Vec<String>,
    },
    /// A library that was found and does not serve.
    #[error("`{}` cannot be used as ONNX Runtime: {reason}", path.display())]
    OrtUnusable {
        /// The library.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A GPU that was asked for and cannot be used; the processor does not step in for it.
    #[error("{device} cannot be used: {reason}")]
    CudaMissing {
        /// What was asked for.
        device: Device,
        /// What is absent.
        reason: CudaMissing,
    },
    /// A GPU's memory is too small for what a job keeps there.
    #[error("{device} has no room for another {needed} bytes; {free} of its {total} are free")]
    GpuMemory {
        /// The GPU.
        device: Device,
        /// Bytes of the allocation that failed, or of all that the job needs where that is known before it begins.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that there are.
        total: usize,
    },
    /// A GPU that failed while it was used.
    #[error("could not {action} {device}: {message}")]
    Gpu {
        /// The GPU.
        device: Device,
        /// `copy to`, `run a kernel on`.
        action: &'static str,
        /// The driver's own words.
        message: String,
    },
    /// ONNX Runtime refused a model or failed while running it.
    #[error("ONNX Runtime could not {action} `{}`: {message}", path.display())]
    Ort {
        /// `load` or `run`.
        action: &'static str,
        /// The model.
        path: PathBuf,
        /// Its own words.
        message: String,
    },
    /// A cache that may not grow further.
    #[error("the cache `{}` would grow beyond its limit of {limit} bytes; what is finished is kept", path.display())]
    CacheFull {
        /// The cache.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// `doctor --install` did not get the library.
    #[error("ONNX Runtime could not be installed: {0}")]
    Install(String),
    /// An operation of the file system that failed, a full disk among them.
    #[error(transparent)]
    File(#[from] FileError),

    /// A file that could not be had from the network.
    #[error("`{url}`: {fault}")]
    Fetch {
        /// Where from, without what may be secret in it.
        url: String,
        /// What went wrong.
        fault: Fault,
    },

    // Run again.
    /// Cancelled while a file was downloaded.
    #[error("interrupted after {n_bytes} bytes; what has arrived is kept")]
    Stopped {
        /// Bytes that have arrived in all.
        n_bytes: u64,
    },
    /// Cancelled between two steps; what was finished is kept.
    #[error("interrupted after {done} of {total} pictures; what is finished is kept")]
    Interrupted {
        /// Pictures whose features are in the cache.
        done: usize,
        /// Pictures in the job.
        total: usize,
    },
    /// Cancelled while a head was fitted; the features are in the cache.
    #[error("interrupted while fitting the head; the features are kept")]
    Cancelled,

    // This project must act.
    /// ONNX Runtime's model does not say what the trainer says.
    #[error(
        "the model as ONNX Runtime runs it disagrees with the trainer on `{}`: logit {exported}, not {trained}",
        path.display()
    )]
    ExportMismatch {
        /// A picture on which they differ.
        path: PathBuf,
        /// A logit of the model.
        exported: f32,
        /// The trainer's.
        trained: f32,
    },
}

impl From<surgery::Error> for Error {
    fn from(error: surgery::Error) -> Error {
        Error::Surgery(Box::new(error))
    }
}
