//! `graftwork extract`: features of a data set into the cache.

use clap::Args;
use runtime::data::{Dataset, Wanted};
use runtime::features::{ExtractConfig, Extraction, Preparation, Shard, Tap, Views, extract};
use runtime::image::Preprocess;
use runtime::job::ExtractSummary;
use runtime::onnx::Model;
use runtime::template::InputSize;
use runtime::text::{TextEncoder, TextGraph};
use runtime::tune::Origin;

use crate::args::{
    BackboneArgs, BatchArgs, CacheArg, DataArgs, EngineArgs, KeepArgs, PreprocessArgs, TextArgs, ViewArgs,
};
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;

/// What decides a feature's value; `extract` computes it and `cache explain` looks for it.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    #[command(flatten)]
    pub(crate) backbone: BackboneArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
    #[command(flatten)]
    pub(crate) preprocess: PreprocessArgs,
    #[command(flatten)]
    pub(crate) texts: TextArgs,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
    #[command(flatten)]
    pub(crate) views: ViewArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// [`RecipeArgs`], checked.
pub(crate) struct Checked {
    pub(crate) model: Model,
    pub(crate) taps: Vec<Tap>,
    pub(crate) input: Input,
    pub(crate) views: Option<Views>,
    /// The checkpoint that the backbone's weights came from, where it was not the graph.
    pub(crate) origin: Option<Origin>,
}

/// What the backbone takes.
pub(crate) enum Input {
    Pictures(Preprocess),
    Texts(Box<TextEncoder>),
}

impl Input {
    /// What of samples that have several parts.
    pub(crate) fn wanted(&self) -> Wanted {
        match self {
            Input::Texts(_) => Wanted::Texts,
            Input::Pictures(_) => Wanted::Pictures,
        }
    }

    pub(crate) fn preparation(&self) -> Preparation<'_> {
        match self {
            Input::Pictures(preprocess) => Preparation::Pictures(preprocess),
            Input::Texts(encoder) => Preparation::Texts(encoder),
        }
    }
}

impl RecipeArgs {
    pub(crate) fn checked(&self) -> anyhow::Result<Checked> {
        let preprocess = self.preprocess.checked()?;
        let views = self.views.checked()?;
        // Whoever asks for a crop has a network for it.
        let size = self.preprocess.crop.map(|_| {
            let [_, height, width] = preprocess.shape();
            InputSize { height, width }
        });
        let (model, cuts, origin) = self.backbone.open(size)?;
        let is_for_text = TextGraph::is_for_text(&model);
        let stray = if is_for_text {
            self.preprocess.given().map(|flag| (flag, "pictures", "texts"))
        } else {
            self.texts.given().map(|flag| (flag, "texts", "pictures"))
        };
        if let Some((flag, of, takes)) = stray {
            let text = format!("{flag} is for {of}, and this backbone takes {takes}");
            return Err(UsageError::new(text).into());
        }
        let input = if is_for_text {
            Input::Texts(Box::new(self.texts.open(model.path())?))
        } else {
            Input::Pictures(preprocess)
        };
        let pool = self.keep.pool();
        let taps = cuts.into_iter().map(|boundary| Tap { boundary, pool }).collect();
        Ok(Checked {
            model,
            taps,
            input,
            views,
            origin,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Do only this part of the samples, counted from 0 [default: what the scheduler's variables say, else all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ExtractArgs) -> anyhow::Result<u8> {
    let shard = args.shard()?;
    let checked = args.recipe.checked()?;
    let mut options = args.data.options_to_extract();
    options.wanted = checked.input.wanted();
    let data = Dataset::open(&args.data.data, &options)?;
    let (engine, device) = args.recipe.engine.open()?;
    let cache = args.recipe.cache.folder()?;
    let config = ExtractConfig {
        cache: &cache,
        taps: &checked.taps,
        input: checked.input.preparation(),
        views: checked.views.as_ref(),
        dtype: args.recipe.keep.dtype(),
        device,
        batch_size: args.batch.batch_size,
        threads: args.recipe.engine.threads(),
        block_rows: args.recipe.keep.block_rows,
        max_cache_bytes: args.recipe.keep.max_cache_size,
        shard,
    };
    let extraction = Watch::new().run(|monitor| extract(&checked.model, &data, &engine, &config, monitor))?;
    report(&ExtractSummary::of(&extraction));
    // The label manifest of a job in shards is `finalize`'s to write.
    let labels = match &extraction.shard {
        None => Some(extraction.save_labels()?),
        Some((shard, job)) => {
            text::remark(&format!(
                "shard {shard} of job {} is done; when all are: graftwork finalize --cache {} --job {}",
                job.name(),
                cache.display(),
                job.name()
            ));
            None
        }
    };
    if args.json {
        text::json(&to_json(&extraction, labels.as_deref()))?;
    } else {
        for store in &extraction.stores {
            text::print(&format!("{}\n", store.folder().display()))?;
        }
    }
    Ok(0)
}

fn to_json(extraction: &Extraction<'_>, labels: Option<&std::path::Path>) -> serde_json::Value {
    let left_out: Vec<_> = extraction.left_out().collect();
    let entries: Vec<_> = extraction
        .stores
        .iter()
        .zip(&extraction.boundaries)
        .map(|(store, boundary)| {
            serde_json::json!({
                "entry": store.folder().to_string_lossy(),
                "boundary": boundary,
                "shape": store.row_shape(),
                // Null where all was in the cache.
                "network": (extraction.misses > 0).then_some(if extraction.own.contains(boundary) {
                    "graftwork"
                } else {
                    "onnxruntime"
                }),
            })
        })
        .collect();
    serde_json::json!({
        "entry": extraction.store().folder().to_string_lossy(),
        "entries": entries,
        "views": extraction.views.iter().map(|store| store.folder().to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "labels": labels.map(|path| path.to_string_lossy().into_owned()),
        "job": extraction.shard.as_ref().map(|(shard, job)| serde_json::json!({
            "name": job.name(), "shard": shard.index(), "shards": shard.count(),
        })),
        "boundary": extraction.boundaries[0],
        "n": extraction.hits + extraction.misses,
        "features": extraction.store().n_features(),
        "cache": { "hits": extraction.hits, "misses": extraction.misses },
        "left_out": left_out,
        "seconds": {
            "extract": extraction.elapsed.as_secs_f64(),
            "preparing": extraction.preparing.as_secs_f64(),
            "running": extraction.running.as_secs_f64(),
        },
        "images_per_second": ExtractSummary::of(extraction).images_per_second(),
    })
}

impl ExtractArgs {
    /// The part that is asked for, or that a scheduler gives; which of them is said.
    fn shard(&self) -> anyhow::Result<Option<Shard>> {
        if self.shard.is_some() {
            return Ok(self.shard);
        }
        let found = Shard::from_environment(|name| std::env::var(name).ok()).map_err(|text| {
            UsageError::new(text).with_hint("--shard I/N says it for this process; --shard 0/1 does all")
        })?;
        Ok(found.map(|(shard, variable)| {
            text::remark(&format!("shard {shard}, by {variable}"));
            shard
        }))
    }
}

/// Says what an extraction did, on stderr.
pub(crate) fn report(extraction: &ExtractSummary) {
    text::remark(&format!(
        "features: {} from the cache, {} computed, {} left out; {:.2} s, {:.0} images/s; cut at `{}`",
        extraction.hits,
        extraction.misses,
        extraction.n_left_out,
        extraction.elapsed.as_secs_f64(),
        extraction.images_per_second(),
        extraction.boundary
    ));
    if extraction.is_own {
        text::remark(
            "computed by graftwork's own kernels, which are faster than ONNX Runtime's for this network",
        );
    }
    if extraction.partly_on_cpu {
        text::remark("some operators ran on the processor: the GPU's provider has no kernel for them");
    }
    for (split, n) in &extraction.set_aside {
        text::remark(&format!("set aside: {n} samples of `{split}`"));
    }
    for left_out in &extraction.left_out {
        text::remark(&format!("left out `{}`: {}", left_out.name, left_out.reason));
    }
    if extraction.n_left_out > extraction.left_out.len() {
        text::remark(&format!(
            "and {} more; the ledger names them",
            extraction.n_left_out - extraction.left_out.len()
        ));
    }
}
