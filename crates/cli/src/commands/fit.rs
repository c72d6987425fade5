//! `graftwork fit`: the main job in one command.

use std::path::PathBuf;

use clap::Args;
use pth::Existing;
use runtime::engine::Device;
use runtime::job::{FitConfig, FitReport, HeadRecipe, Method, TuneJob, fit};

use super::extract::{Input, RecipeArgs};
use crate::args::{BatchArgs, DataArgs, HeadArgs, TuneArgs};
use crate::progress::Watch;
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
    #[command(flatten)]
    head: HeadArgs,
    #[command(flatten)]
    tune: TuneArgs,
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
    let seed = args.data.seed;
    let tune = args.tune.config(&args.head, seed)?;
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
        head: match &tune {
            Some(_) => args.head.solver_recipe(seed),
            None => head_recipe(&args.head, seed, args.recipe.engine.device()?)?,
        },
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
    if let Some(tune) = tune {
        let job = TuneJob {
            fit: config,
            tune,
            origin: checked.origin,
            recompute: args.tune.recompute(),
        };
        return super::tune::run(&job, args.json);
    }
    let watch = Watch::new();
    let mut epochs = super::train::Epochs::new(&watch, &config.head);
    let report = watch.run(|monitor| fit(&config, &mut |head, epoch| epochs.show(head, epoch), monitor))?;
    show(&report, &config, args.json)?;
    Ok(0)
}

/// Mini-batches run on the device of the network; the solver is on the processor whatever the network runs on.
fn head_recipe(args: &HeadArgs, seed: u64, device: Device) -> Result<HeadRecipe, UsageError> {
    let recipe = args.recipe(seed, device)?;
    Ok(match recipe.method {
        Method::Solver { .. } => HeadRecipe {
            device: Device::Cpu,
            ..recipe
        },
        Method::MiniBatch(_) | Method::Sweep(_) => recipe,
    })
}

/// Prints what a fit did: the table (or JSON) as the result, the rest as notes.
pub(crate) fn show(report: &FitReport, config: &FitConfig, json: bool) -> anyhow::Result<()> {
    text::remark(&format!("ran on {}", report.engine.describe(config.device)?));
    super::extract::report(&report.extraction);
    show_trained(report, config, json)
}

/// The same of a run that has said what it extracted.
pub(crate) fn show_trained(report: &FitReport, config: &FitConfig, json: bool) -> anyhow::Result<()> {
    super::train::report(&report.trained);
    text::remark(&format!(
        "model.onnx agrees with the trained head on {} pictures (largest difference of a logit {:.1e})",
        report.verified.n, report.verified.max_abs_logit_diff
    ));
    text::remark(&format!("wrote `{}`", config.run.display()));
    if json {
        text::json(&report.metrics)
    } else {
        let trained = &report.trained;
        text::print(&super::train::table(
            trained.val.as_ref().unwrap_or(&trained.train),
        ))
    }
}
