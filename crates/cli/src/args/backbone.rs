//! The frozen network and where it is cut.

use std::path::PathBuf;

use clap::Args;

use crate::usage::UsageError;

/// The ONNX graph and its boundary.
#[derive(Debug, Args)]
pub(crate) struct BackboneArgs {
    /// The ONNX backbone
    #[arg(long, value_name = "M.onnx")]
    pub(crate) backbone: PathBuf,
    /// The tensor to cut at, or several: again, or with commas [default: the input of the classifier]
    #[arg(long, value_name = "TENSOR", value_delimiter = ',')]
    pub(crate) cut: Vec<String>,
    /// Print the tensors that the whole network goes through, which can be cut at, and end
    #[arg(long)]
    pub(crate) list_cuts: bool,
}

impl BackboneArgs {
    /// The one tensor to cut at, for what works with one.
    pub(crate) fn single_cut(&self) -> anyhow::Result<Option<&str>> {
        match self.cut.as_slice() {
            [] => Ok(None),
            [cut] => Ok(Some(cut)),
            _ => Err(UsageError::new("--cut takes one tensor here").into()),
        }
    }
}
