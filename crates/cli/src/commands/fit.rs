//! `graftwork fit`: the main job in one command.

use std::path::PathBuf;

use clap::Args;
use pth::Existing;
use runtime::job::{FitConfig, FitReport, fit};

use crate::args::{BackboneArgs, BatchArgs, CArg, DataArgs, EngineArgs, PreprocessArgs, default_cache};
use crate::progress::Watch;
use crate::table;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    #[command(flatten)]
    backbone: BackboneArgs,
    #[command(flatten)]
    data: DataArgs,
    /// The run folder to write
    #[arg(
        short,
        long,
        value_name = "RUN",
        required = false,
        required_unless_present = "list_cuts",
        default_value_if("list_cuts", "true", ".")
    )]
    output: PathBuf,
    /// Folder of cached features [default: graftwork/features in your cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Regularisation: scikit-learn's C, or auto to choose it on held-out training pictures
    #[arg(long, value_name = "VALUE|auto", default_value = "auto")]
    c: CArg,
    /// Replace a run of other settings
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print metrics.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &FitArgs) -> anyhow::Result<u8> {
    if args.backbone.list_cuts {
        super::backbone::list_cuts(&runtime::onnx::Model::open(&args.backbone.backbone)?, args.json)?;
        return Ok(0);
    }
    let config = FitConfig {
        backbone: args.backbone.backbone.clone(),
        weights: args.backbone.weights()?,
        data: args.data.data.clone(),
        run: args.output.clone(),
        cache: args.cache.clone().map_or_else(default_cache, Ok)?,
        cut: args.backbone.single_cut()?.map(str::to_owned),
        preprocess: args.preprocess.checked()?,
        split: args.data.split(),
        regularisation: args.c.0,
        seed: args.data.seed,
        batch_size: args.batch.batch_size,
        threads: args.engine.threads(),
        ort_lib: args.engine.ort_lib.clone(),
        device: args.engine.device()?,
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
    if let Some(weights) = &report.weights {
        super::backbone::report_weights(weights);
    }
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
