//! What a trained head leaves the house as: one ONNX model with the backbone, its proof, and state dicts for torch.

mod checkpoint;
mod classifier;
mod model;
mod verify;

pub use checkpoint::{CheckpointOptions, CheckpointReport, save_checkpoint, save_head};
pub use classifier::{Answer, Classifier};
pub use model::assemble;
pub use verify::{Expected, Verified, verify};

pub use crate::onnx::Outputs;
