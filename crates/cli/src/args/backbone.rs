//! The frozen network and where it is cut.

use std::path::PathBuf;

use clap::Args;
use runtime::onnx::Model;

/// The ONNX graph and its boundary.
#[derive(Debug, Args)]
pub(crate) struct BackboneArgs {
    /// The ONNX backbone
    #[arg(long, value_name = "M.onnx")]
    pub(crate) backbone: PathBuf,
    /// The tensors to cut at, one entry each [default: the input of the classifier]
    #[arg(long, value_name = "TENSOR", value_delimiter = ',')]
    pub(crate) cut: Vec<String>,
}

impl BackboneArgs {
    /// The model as it will be run.
    pub(crate) fn open(&self) -> anyhow::Result<Model> {
        Ok(Model::open(&self.backbone)?)
    }

    /// Where it is cut.
    pub(crate) fn cuts(&self, model: &Model) -> anyhow::Result<Vec<String>> {
        if self.cut.is_empty() {
            return Ok(vec![model.default_boundary()?]);
        }
        Ok(self.cut.clone())
    }
}
