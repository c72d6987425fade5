//! The frozen network, its weights, and where it is cut.

use std::path::PathBuf;

use clap::Args;
use pth::FileError;
use runtime::onnx::{DEFAULT_BATCH_NORM_EPS, WeightsFrom};

use super::OpenArgs;
use crate::usage::UsageError;

/// The ONNX graph and its boundary.
#[derive(Debug, Args)]
#[command(next_help_heading = "Backbone")]
pub(crate) struct BackboneArgs {
    /// The ONNX backbone; weights in files beside it are found
    #[arg(long, value_name = "M.onnx")]
    pub(crate) backbone: PathBuf,
    /// The tensor to cut at, or several: again, or with commas [default: the input of the classifier]
    #[arg(long, value_name = "TENSOR", value_delimiter = ',')]
    pub(crate) cut: Vec<String>,
    /// Print the tensors that the whole network goes through, which can be cut at, and end
    #[arg(long)]
    pub(crate) list_cuts: bool,
    /// A checkpoint whose tensors go into the graph, as load_state_dict would put them into the model
    #[arg(long, value_name = "CKPT")]
    weights: Option<PathBuf>,
    /// Steps of the surgery language on the checkpoint first; again for more
    #[arg(
        short = 'e',
        long = "weights-edit",
        value_name = "STEPS",
        requires = "weights"
    )]
    weights_steps: Vec<String>,
    /// A file of such steps
    #[arg(long, value_name = "FILE", requires = "weights")]
    weights_plan: Option<PathBuf>,
    /// Tensors of the graph that keep their own values
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', requires = "weights")]
    weights_keep: Vec<String>,
    /// Epsilon of batch normalisations that were folded at export, where the graph does not tell
    #[arg(long, value_name = "EPS", default_value_t = DEFAULT_BATCH_NORM_EPS, requires = "weights")]
    bn_eps: f64,
    #[command(flatten)]
    open: OpenArgs,
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

    /// The checkpoint that goes into the graph.
    pub(crate) fn weights(&self) -> anyhow::Result<Option<WeightsFrom>> {
        let Some(path) = &self.weights else {
            return Ok(None);
        };
        if !(self.bn_eps >= 0.0 && self.bn_eps.is_finite()) {
            return Err(UsageError::new("--bn-eps is a small positive number, as in --bn-eps 1e-3").into());
        }
        let mut steps = Vec::new();
        if let Some(plan) = &self.weights_plan {
            steps.push(std::fs::read_to_string(plan).map_err(FileError::at("read", plan))?);
        }
        steps.extend(self.weights_steps.iter().cloned());
        Ok(Some(WeightsFrom {
            path: path.clone(),
            plan: steps.join("\n"),
            keep: self.weights_keep.clone(),
            batch_norm_eps: self.bn_eps,
            open: self.open.options(),
        }))
    }
}
