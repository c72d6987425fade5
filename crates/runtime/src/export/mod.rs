//! What a trained head leaves the house as: one ONNX model with the backbone, its proof, and state dicts for torch.

mod checkpoint;
mod classifier;
mod model;
mod module;
mod pattern;
mod run;
mod verify;

pub use checkpoint::{CheckpointOptions, CheckpointReport, save_checkpoint, save_head};
pub use classifier::{Answer, Classifier};
pub(crate) use model::metadata;
pub use model::{About, assemble};
pub use pattern::{Runner, assemble_proven, reduction_at, with_probabilities};
pub use run::{Assembled, assemble_run};
pub use verify::{Expected, Verified, verify};

pub use crate::onnx::Outputs;
