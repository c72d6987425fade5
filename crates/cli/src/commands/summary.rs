//! `graftwork summary FILE`: the table that torchinfo prints of a model, from its state dict alone, or with `--input-size` by the
//! template that fits it.

use std::path::PathBuf;

use anyhow::Result;
use runtime::template::{BatchSize, Choice, Column, NetworkSummary, SummaryFormat, Template};
use serde::Serialize;
use surgery::{Summary, SummaryText};

use crate::args::OpenArgs;
use crate::text::{json, print, remark};

/// Arguments of `summary`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Modules without tensors (activations, pooling) are not in a state dict and not in the table; \
    kinds of layers are told by names and shapes, and (COUNT) is frozen. With --input-size the table has all modules, in the order of \
    their calls, with output shapes and multiply-adds, as `torchinfo.summary(net, input_size=...)` prints it."
)]
pub(crate) struct SummaryArgs {
    /// A checkpoint or safetensors file, whatever its name.
    file: PathBuf,
    /// Show modules down to this depth.
    #[arg(long, value_name = "N", default_value_t = 3)]
    depth: usize,
    /// What to call the model [default: the file's name without its ending].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Join neighbours that are the same but for their number; counts are those of one.
    #[arg(long)]
    fold: bool,
    /// Add a line for each parameter.
    #[arg(short, long)]
    verbose: bool,
    /// Print the table of the network with such an input, n,channels,height,width, as in 10,3,224,224: a template must fit.
    #[arg(long, value_name = "SIZES", conflicts_with_all = ["fold", "verbose", "name"])]
    input_size: Option<BatchSize>,
    /// The network that FILE is of, by name (resnet18) or a file that describes it [default: the one that fits]
    #[arg(long, value_name = "NAME|FILE", requires = "input_size")]
    template: Option<String>,
    /// Columns of that table: kernel_size, input_size, output_size, num_params, params_percent, mult_adds, trainable.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "input_size",
          default_values = ["output_size", "num_params"])]
    columns: Vec<Column>,
    /// Show what each module is called, too.
    #[arg(long, requires = "input_size")]
    var_names: bool,
    /// Print one JSON object, whatever the depth.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Serialize)]
struct Named<'s> {
    name: &'s str,
    #[serde(flatten)]
    summary: &'s Summary,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &SummaryArgs) -> Result<u8> {
    if let Some(batch) = args.input_size {
        return with_input(args, batch);
    }
    let mut opened = surgery::open_with(&args.file, &args.open.options())?;
    opened.outline()?;
    let summary = Summary::of(&opened.state_dict);
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let name = args.name.as_deref().unwrap_or(&stem);
    if args.json {
        let summary = &summary;
        json(&Named { name, summary })?;
    } else {
        print(&summary.to_text(&SummaryText {
            name: name.to_owned(),
            depth: args.depth,
            each_param: args.verbose,
            fold: args.fold,
        }))?;
    }
    for problem in &opened.problems {
        remark(&format!(
            "not read, and not counted: {}: {}",
            problem.name, problem.fault
        ));
    }
    Ok(0)
}

/// The table of the network that the file's names and shapes fit.
fn with_input(args: &SummaryArgs, batch: BatchSize) -> Result<u8> {
    let tensors = surgery::open_whole(&args.file, &args.open.options())?;
    let choice = args.template.as_deref().map_or_else(Choice::default, Choice::of);
    let template = Template::recognise(&args.file, &tensors, &choice)?;
    let summary = template.summary(&tensors, batch)?;
    if args.json {
        json(&NamedNetwork {
            template: template.name(),
            summary: &summary,
        })?;
        return Ok(0);
    }
    print(&summary.to_text(&SummaryFormat {
        depth: args.depth,
        columns: args.columns.clone(),
        var_names: args.var_names,
    }))?;
    Ok(0)
}

#[derive(Serialize)]
struct NamedNetwork<'s> {
    template: &'s str,
    #[serde(flatten)]
    summary: &'s NetworkSummary,
}
