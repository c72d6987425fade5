//! The frozen network, its weights, and where it is cut.

use std::path::{Path, PathBuf};

use clap::Args;
use pth::FileError;
use runtime::onnx::{DEFAULT_BATCH_NORM_EPS, Model, WeightsFrom, WeightsReport};
use runtime::template::{Choice, GraphOptions, InputSize, Made, Template, open_graph};
use runtime::tune::Origin;

use super::OpenArgs;
use crate::text;
use crate::usage::UsageError;

/// The ONNX graph and its boundary.
#[derive(Debug, Args)]
#[command(next_help_heading = "Backbone")]
pub(crate) struct BackboneArgs {
    /// The backbone: an ONNX model (weights in files beside it are found), or a checkpoint that a template fits
    #[arg(long, value_name = "M.onnx|CKPT")]
    pub(crate) backbone: PathBuf,
    #[command(flatten)]
    graph: GraphArgs,
}

/// What the graph is filled with, and where it ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Backbone")]
pub(crate) struct GraphArgs {
    /// The tensor to cut at, or several: again, or with commas [default: the input of the classifier]
    #[arg(long, value_name = "TENSOR", value_delimiter = ',', requires = "backbone")]
    pub(crate) cut: Vec<String>,
    /// A checkpoint whose tensors go into the graph, as load_state_dict would put them into the model
    #[arg(long, value_name = "CKPT", requires = "backbone")]
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
    template: TemplateArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// How a checkpoint becomes a graph.
#[derive(Debug, Args)]
#[command(next_help_heading = "Backbone")]
pub(crate) struct TemplateArgs {
    /// Of a checkpoint: the network that it is of, by name (resnet18) or a file that describes it [default: the one that fits]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) template: Option<String>,
    /// Of a checkpoint: the pictures that the network takes, 224 or HxW [default: the network's own]
    #[arg(long, value_name = "SIZE")]
    pub(crate) input_size: Option<InputSize>,
}

impl TemplateArgs {
    /// Which templates may fit.
    pub(crate) fn choice(&self) -> Choice {
        self.template.as_deref().map_or_else(Choice::default, Choice::of)
    }

    /// The graph in a file, an ONNX model or a checkpoint; which template fits is said.
    pub(crate) fn open(
        &self,
        path: &Path,
        size: Option<InputSize>,
        open: &OpenArgs,
    ) -> anyhow::Result<Model> {
        Ok(self.open_made(path, size, open)?.0)
    }

    /// As [`TemplateArgs::open`], with what the graph was made of.
    fn open_made(
        &self,
        path: &Path,
        size: Option<InputSize>,
        open: &OpenArgs,
    ) -> anyhow::Result<(Model, Option<Made>)> {
        let options = GraphOptions {
            choice: self.choice(),
            size: self.input_size.or(size),
            open: open.options(),
        };
        let (model, made) = open_graph(path, &options)?;
        match &made {
            Some(made) => remark_on_template(path, &made.template, &model),
            None => self.check_unused(path)?,
        }
        Ok((model, made))
    }

    /// Refuses what is for checkpoints alone.
    fn check_unused(&self, path: &Path) -> Result<(), UsageError> {
        let given = [
            ("--template", self.template.is_some()),
            ("--input-size", self.input_size.is_some()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(UsageError::new(format!(
                "{flag} is for checkpoints, and `{}` is an ONNX model",
                path.display()
            ))),
            None => Ok(()),
        }
    }
}

/// Says which template fits, on stderr.
pub(crate) fn remark_on_template(path: &Path, template: &Template, model: &Model) {
    let sizes = model.inputs().first().and_then(|input| input.shape.as_ref());
    let sizes: Vec<String> = sizes
        .into_iter()
        .flatten()
        .flatten()
        .map(ToString::to_string)
        .collect();
    text::remark(&format!(
        "`{}` is a {}, for pictures of {}",
        path.display(),
        template.name(),
        sizes.join(" x ")
    ));
}

impl BackboneArgs {
    /// The model as it will be run, where it is cut, and the checkpoint that its weights came from; what was put into it is
    /// said. A checkpoint becomes a graph for pictures of `size`, unless its own flag says otherwise.
    pub(crate) fn open(
        &self,
        size: Option<InputSize>,
    ) -> anyhow::Result<(Model, Vec<String>, Option<Origin>)> {
        self.graph.open_with_origin(&self.backbone, size)
    }
}

impl GraphArgs {
    /// The model in a file as it will be run, and where it is cut; what was put into it is said.
    pub(crate) fn open(
        &self,
        backbone: &Path,
        size: Option<InputSize>,
    ) -> anyhow::Result<(Model, Vec<String>)> {
        let (model, cuts, _) = self.open_with_origin(backbone, size)?;
        Ok((model, cuts))
    }

    /// As [`GraphArgs::open`], with the checkpoint that its weights came from.
    fn open_with_origin(
        &self,
        backbone: &Path,
        size: Option<InputSize>,
    ) -> anyhow::Result<(Model, Vec<String>, Option<Origin>)> {
        let (model, made) = self.template.open_made(backbone, size, &self.open)?;
        let made = made.map(|made| Origin {
            tensors: made.tensors,
            prefix_in_checkpoint: String::new(),
            prefix_in_graph: String::new(),
        });
        let cuts = if self.cut.is_empty() {
            vec![model.default_boundary()?]
        } else {
            self.cut.clone()
        };
        let Some(weights) = self.weights()? else {
            return Ok((model, cuts, made));
        };
        let names: Vec<&str> = cuts.iter().map(String::as_str).collect();
        let tensors = weights.tensors()?;
        let (model, report) = weights.put(&model, &names, &tensors)?;
        report_weights(&report);
        let origin = Origin {
            tensors,
            prefix_in_checkpoint: report.prefix_in_checkpoint,
            prefix_in_graph: report.prefix_in_graph,
        };
        Ok((model, cuts, Some(origin)))
    }

    /// The checkpoint that goes into the graph.
    fn weights(&self) -> anyhow::Result<Option<WeightsFrom>> {
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

/// Says what was put into a graph, on stderr.
fn report_weights(report: &WeightsReport) {
    let mut parts = vec![format!(
        "{} tensors of the checkpoint are in the graph",
        report.placed.len()
    )];
    let prefixes = [
        (&report.prefix_in_checkpoint, "of its names"),
        (&report.prefix_in_graph, "of the graph's names"),
    ];
    for (prefix, of) in prefixes.into_iter().filter(|(prefix, _)| !prefix.is_empty()) {
        parts.push(format!("without `{prefix}` in front {of}"));
    }
    if !report.transposed.is_empty() {
        parts.push(format!("{} of them transposed", report.transposed.len()));
    }
    text::remark(&parts.join(", "));
    if let Some(first) = report.folded.first() {
        let assumed: Vec<_> = report
            .folded
            .iter()
            .filter(|folded| !folded.is_eps_known)
            .collect();
        let eps = match assumed.first() {
            Some(first) => format!(
                "; the graph does not tell epsilon, {:e} is taken (--bn-eps where the model has another)",
                first.eps
            ),
            None => String::new(),
        };
        text::remark(&format!(
            "{} batch normalisations were folded at export, and are again (`{}` into `{}` first){eps}",
            report.folded.len(),
            first.norm,
            first.conv
        ));
    }
    let lists = [
        ("converted", &report.converted),
        ("left out, they belong behind the cut", &report.left),
        ("left out, they lack the prefix", &report.outside),
        ("the graph keeps its own", &report.kept),
    ];
    for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        const MAX_NAMED: usize = 6;
        let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
        let more = match names.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        text::remark(&format!("{what}: {}{more}", shown.join(", ")));
    }
}
