//! `graftwork demo`: the main job on what the repository ships, a transfer from the digits 0-4 to 5-9.

use std::path::{Path, PathBuf};

use clap::Args;
use pth::Existing;
use runtime::data::{DataOptions, SplitRule};
use runtime::engine::{Device, find, install};
use runtime::features::{DEFAULT_BLOCK_ROWS, FeatureType, Pool};
use runtime::image::Preprocess;
use runtime::job::{DEFAULT_BATCH_SIZE, FitConfig, HeadRecipe, fit};
use runtime::onnx::Model;

use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The run folder to write [default: graftwork/demo in your cache folder]
    #[arg(short, long, value_name = "RUN")]
    output: Option<PathBuf>,
    /// Print metrics.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<u8> {
    let digits = digits()?;
    if let Err(error @ runtime::Error::OrtMissing { .. }) = find(None) {
        text::remark(&format!(
            "{error}\ngetting it with pip from your configured index ..."
        ));
        let report = install()?;
        text::remark(&format!(
            "installed ONNX Runtime {} as `{}`",
            report.version,
            report.path.display()
        ));
    }
    let cache = runtime::features::default_cache()?;
    let run = args
        .output
        .clone()
        .unwrap_or_else(|| cache.with_file_name("demo"));
    let config = FitConfig {
        model: Model::open(&digits.join("backbone.onnx"))?,
        data: digits.join("pictures"),
        // The default folder is the demo's own, and an earlier demo may have had other settings.
        existing: if args.output.is_some() {
            Existing::Refuse
        } else {
            Existing::Replace
        },
        run,
        cache,
        cut: None,
        preprocess: Preprocess {
            resize: 32.into(),
            crop: 32.into(),
            ..Preprocess::imagenet()
        },
        data_options: DataOptions::new(SplitRule::Folders),
        pool: Pool::None,
        views: None,
        dtype: FeatureType::Float16,
        block_rows: DEFAULT_BLOCK_ROWS,
        max_cache_bytes: None,
        device: Device::Cpu,
        head: HeadRecipe {
            baselines: true,
            ..HeadRecipe::solver()
        },
        batch_size: DEFAULT_BATCH_SIZE,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        ort_lib: None,
    };
    text::remark("a network that learned the handwritten digits 0-4 gets a head for the digits 5-9\n");
    let report = Watch::new().run(|monitor| fit(&config, &mut |_, _| {}, monitor))?;
    super::fit::show(&report, &config, args.json)?;
    text::remark(&format!(
        "\nthe same on your own pictures:\n  graftwork fit --backbone M.onnx --data FOLDER -o RUN\n\
         classify with the result:\n  graftwork predict {} PICTURE",
        config.run.display()
    ));
    Ok(0)
}

/// The repository's pictures, found from the current folder or the executable upwards.
fn digits() -> anyhow::Result<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .map(|folder: &Path| folder.join("fixtures").join("digits"))
        .find(|folder| folder.join("backbone.onnx").is_file())
        .ok_or_else(|| {
            UsageError::new("the demo's pictures are part of the repository, and this is run outside of it")
                .with_hint("run it in a clone of the repository")
                .into()
        })
}
