//! `graftwork summary FILE`: modules and parameters as torchinfo prints them.

use std::path::PathBuf;

use anyhow::Result;
use surgery::{LazyStateDict, Summary, SummaryColumns, SummaryRow, SummaryStyle};

use crate::args::OpenArgs;
use crate::text::{self, plain, print, remark};

/// Arguments of `summary`.
#[derive(Debug, clap::Args)]
pub(crate) struct SummaryArgs {
    /// A checkpoint, safetensors, or the index or folder of a set
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Modules that lie deeper are counted in those that hold them
    #[arg(long, value_name = "N", default_value_t = 3)]
    depth: usize,
    /// A line for each parameter
    #[arg(short, long)]
    verbose: bool,
    /// Numbered layers that are made alike as one row
    #[arg(long)]
    fold: bool,
    /// What the model is called [default: the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &SummaryArgs) -> Result<u8> {
    let opened = surgery::open_with(&args.file, &args.open.options())?;
    for problem in opened.problems.iter().filter(|problem| problem.in_state_dict) {
        remark(&format!(
            "problem: `{}`: {}",
            plain(&problem.name),
            plain(&problem.fault.to_string())
        ));
    }
    let summary = Summary::of(&LazyStateDict::of(opened));
    if args.json {
        text::json(&as_json(&summary))?;
        return Ok(0);
    }
    let stem = || {
        args.file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    let style = SummaryStyle {
        name: args.name.clone().or_else(stem).unwrap_or_default(),
        depth: args.depth,
        columns: SummaryColumns::All,
        is_verbose: args.verbose,
        folds: args.fold,
    };
    let lines: Vec<String> = summary
        .render(&style)
        .lines()
        .map(|line| plain(line) + "\n")
        .collect();
    print(&lines.concat())?;
    Ok(0)
}

fn as_json(summary: &Summary) -> serde_json::Value {
    let row = |row: &SummaryRow| {
        serde_json::json!({
            "depth": row.depth,
            "depth_index": row.depth_index,
            "var_name": row.var_name,
            "type": row.kind,
            "kernel": row.kernel,
            "params": row.n_params,
            "trainable_params": row.n_trainable,
            "own_params": row.n_own,
            "trainable": row.trainable(),
            "recursive": row.is_recursive,
        })
    };
    let dtype = |(dtype, n, elements, bytes): &(String, usize, usize, usize)| serde_json::json!({"dtype": dtype, "tensors": n, "elements": elements, "bytes": bytes});
    serde_json::json!({
        "rows": summary.rows.iter().map(row).collect::<Vec<_>>(),
        "total_params": summary.n_params,
        "trainable_params": summary.n_trainable,
        "non_trainable_params": summary.n_params - summary.n_trainable,
        "params_bytes": summary.param_bytes,
        "buffers": {"tensors": summary.buffers.0, "bytes": summary.buffers.1},
        "dtypes": summary.dtypes.iter().map(dtype).collect::<Vec<_>>(),
        "tied": summary.ties,
        "largest": summary.largest.as_ref().map(|(name, bytes)| serde_json::json!({"name": name, "bytes": bytes})),
    })
}
