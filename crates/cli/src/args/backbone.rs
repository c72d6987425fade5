//! The frozen network and where it is cut.

use std::path::PathBuf;

use clap::Args;

/// The ONNX graph and its boundary.
#[derive(Debug, Args)]
pub(crate) struct BackboneArgs {
    /// The ONNX backbone
    #[arg(long, value_name = "M.onnx")]
    pub(crate) backbone: PathBuf,
    /// The tensor to cut at [default: the input of the classifier]
    #[arg(long, value_name = "TENSOR")]
    pub(crate) cut: Option<String>,
}
