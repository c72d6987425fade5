//! `graftwork extract`: features of a folder into the cache.

use std::path::PathBuf;

use clap::Args;
use runtime::data::Dataset;
use runtime::features::{ExtractConfig, Extraction, extract};

use crate::args::{BackboneArgs, BatchArgs, DataArgs, EngineArgs, PreprocessArgs};
use crate::progress::Watch;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    backbone: BackboneArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Folder of cache entries
    #[arg(
        long,
        value_name = "DIR",
        required = false,
        required_unless_present = "list_cuts",
        default_value_if("list_cuts", "true", ".")
    )]
    cache: PathBuf,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ExtractArgs) -> anyhow::Result<u8> {
    let model = super::backbone::open(&args.backbone)?;
    if args.backbone.list_cuts {
        super::backbone::list_cuts(&model, args.json)?;
        return Ok(0);
    }
    let preprocess = args.preprocess.checked()?;
    let data = Dataset::open(&args.data.data, args.data.split())?;
    let (engine, device) = args.engine.open()?;
    let config = ExtractConfig {
        cache: &args.cache,
        boundary: args.backbone.single_cut()?,
        preprocess: &preprocess,
        batch_size: args.batch.batch_size,
        threads: args.engine.threads(),
        device,
    };
    let extraction = Watch::new().run(|monitor| extract(&model, &data, &engine, &config, monitor))?;
    let labels = extraction.save_labels()?;
    report(&extraction);
    let entry = extraction.store.folder();
    if args.json {
        text::json(&serde_json::json!({
            "entry": entry.to_string_lossy(),
            "labels": labels.to_string_lossy(),
            "boundary": extraction.boundary,
            "n": extraction.manifest.rows.len(),
            "features": extraction.store.n_features(),
            "cache": { "hits": extraction.hits, "misses": extraction.misses },
            "left_out": extraction.left_out,
            "seconds": { "extract": extraction.elapsed.as_secs_f64() },
            "images_per_second": extraction.images_per_second(),
        }))?;
    } else {
        text::print(&format!("{}\n", entry.display()))?;
    }
    Ok(0)
}

/// Says what an extraction did, on stderr.
pub(crate) fn report(extraction: &Extraction) {
    const MAX_NAMED: usize = 10;
    text::remark(&format!(
        "features: {} from the cache, {} computed, {} left out; {:.2} s, {:.0} images/s; cut at `{}`",
        extraction.hits,
        extraction.misses,
        extraction.left_out.len(),
        extraction.elapsed.as_secs_f64(),
        extraction.images_per_second(),
        extraction.boundary
    ));
    for left_out in extraction.left_out.iter().take(MAX_NAMED) {
        text::remark(&format!(
            "left out `{}`: {}",
            left_out.path.display(),
            left_out.reason
        ));
    }
    if extraction.left_out.len() > MAX_NAMED {
        text::remark(&format!(
            "and {} more; the ledger names them all",
            extraction.left_out.len() - MAX_NAMED
        ));
    }
}
