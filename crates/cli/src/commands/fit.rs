//! `graftwork fit`: the main job in one command.

use std::path::PathBuf;

use clap::Args;
use pth::Existing;
use runtime::job::{FitConfig, FitReport, fit};

use super::extract::{Input, RecipeArgs};
use crate::args::{BatchArgs, CArg, DataArgs};
use crate::progress::Watch;
use crate::table;
use crate::text;
use crate::usage::UsageError;

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    data: DataArgs,
    /// The run folder to write
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    /// Regularisation: scikit-learn's C, or auto to choose it on held-out training pictures
    #[arg(long, value_name = "VALUE|auto", default_value = "auto")]
    c: CArg,
    /// Replace a run of other settings
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    batch: BatchArgs,
    /// Print metrics.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &FitArgs) -> anyhow::Result<u8> {
    let checked = args.recipe.checked()?;
    let [tap] = checked.taps.as_slice() else {
        return Err(UsageError::new("a head stands on one boundary: fit takes one --cut").into());
    };
    let Input::Pictures(preprocess) = checked.input else {
        let text = "fit writes one model for pictures, and this backbone takes texts";
        return Err(UsageError::new(text)
            .with_hint("graftwork extract, then graftwork train on the entry")
            .into());
    };
    let config = FitConfig {
        cut: Some(tap.boundary.clone()),
        pool: tap.pool,
        model: checked.model,
        data: args.data.data.clone(),
        data_options: args.data.options(),
        run: args.output.clone(),
        cache: args.recipe.cache.folder()?,
        preprocess,
        views: checked.views,
        dtype: args.recipe.keep.dtype(),
        block_rows: args.recipe.keep.block_rows,
        max_cache_bytes: args.recipe.keep.max_cache_size,
        regularisation: args.c.0,
        seed: args.data.seed,
        batch_size: args.batch.batch_size,
        threads: args.recipe.engine.threads(),
        device: args.recipe.engine.device()?,
        ort_lib: args.recipe.engine.ort_lib.clone(),
        existing: if args.force {
            Existing::Replace
        } else {
            Existing::Refuse
        },
    };
    let report = Watch::new().run(|monitor| fit(&config, monitor))?;
    show(&report, &config, args.json)?;
    Ok(0)
}

/// Prints what a fit did: the table (or JSON) as the result, the rest as notes.
pub(crate) fn show(report: &FitReport, config: &FitConfig, json: bool) -> anyhow::Result<()> {
    text::remark(&format!("ran on {}", report.engine.describe(config.device)?));
    super::extract::report(&report.extraction);
    super::train::report(&report.trained);
    text::remark(&format!(
        "model.onnx agrees with the trained head on {} pictures (largest difference of a logit {:.1e})",
        report.verified.n, report.verified.max_abs_logit_diff
    ));
    text::remark(&format!("wrote `{}`", config.run.display()));
    if json {
        text::json(&report.metrics)
    } else {
        text::print(&table::metrics(
            report.trained.val.as_ref().unwrap_or(&report.trained.train),
        ))
    }
}
