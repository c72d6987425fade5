//! `graftwork summary FILE`: the table that torchinfo prints of a model, from its state dict alone.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use surgery::{Summary, SummaryText};

use crate::args::OpenArgs;
use crate::text::{json, print, remark};

/// Arguments of `summary`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Modules without tensors (activations, pooling) are not in a state dict and not in the table; \
    kinds of layers are told by names and shapes, and (COUNT) is frozen."
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
