//! The main job: from a backbone and pictures to a run folder.

use std::fs;
use std::path::{Path, PathBuf};

use pth::Existing;

use super::cached::{add_training, pool, pretty};
use super::page::{Page, suspects_csv};
use super::recipe::{HeadRecipe, Method};
use super::run_folder::{Results, RunFolder};
use super::settings;
use super::train::{OnEpoch, Trained, train_in};
use crate::data::{Columns, DataOptions, Dataset, LeftOut, Split, SplitRule};
use crate::engine::{Device, Engine, Input, SessionOptions};
use crate::error::Error;
use crate::export::{Classifier, Expected, Outputs, Verified, assemble, verify};
use crate::features::{
    ExtractConfig, Extraction, FeatureType, Labelled, Pool, Preparation, Tap, Views, check_input, extract,
};
use crate::image::Preprocess;
use crate::monitor::Monitor;
use crate::onnx::{Model, Reduction};
use crate::report::Thumbnail;
use crate::targets::Task;

/// The exported model is compared with the trainer on this many pictures at most, spread over the validation split.
const MAX_VERIFIED: usize = 512;

/// The main job.
#[derive(Debug, Clone)]
pub struct FitConfig {
    /// The ONNX backbone, with the weights it is to have.
    pub model: Model,
    /// The pictures: see [`Dataset::open`].
    pub data: PathBuf,
    /// How they are read.
    pub data_options: DataOptions,
    /// The run folder to write.
    pub run: PathBuf,
    /// Folder of cache entries.
    pub cache: PathBuf,
    /// The tensor to cut at, instead of the classifier's input.
    pub cut: Option<String>,
    /// What becomes of a spatial boundary.
    pub pool: Pool,
    /// How pictures become input.
    pub preprocess: Preprocess,
    /// Random views of the training pictures.
    pub views: Option<Views>,
    /// How features are stored.
    pub dtype: FeatureType,
    /// Rows that are made durable at once: see [`ExtractConfig`].
    pub block_rows: usize,
    /// What all files of the cache together may have, in bytes.
    pub max_cache_bytes: Option<u64>,
    /// How the head is trained; for one class a picture.
    pub head: HeadRecipe,
    /// Pictures per run of the network.
    pub batch_size: usize,
    /// Threads in all.
    pub threads: usize,
    /// What runs the network.
    pub device: Device,
    /// The ONNX Runtime to use.
    pub ort_lib: Option<PathBuf>,
    /// What to do with a run folder of other settings.
    pub existing: Existing,
}

impl FitConfig {
    /// How features at some boundaries are computed.
    pub(super) fn extraction<'e>(&'e self, taps: &'e [Tap], views: Option<&'e Views>) -> ExtractConfig<'e> {
        ExtractConfig {
            cache: &self.cache,
            taps,
            input: Preparation::Pictures(&self.preprocess),
            views,
            dtype: self.dtype,
            device: self.device,
            batch_size: self.batch_size,
            threads: self.threads,
            block_rows: self.block_rows,
            max_cache_bytes: self.max_cache_bytes,
            shard: None,
        }
    }
}

/// What an extraction did, in numbers.
#[derive(Debug, Clone)]
pub struct ExtractSummary {
    /// Where the network was cut.
    pub boundary: String,
    /// The cache entry.
    pub entry: PathBuf,
    /// Samples whose features were there.
    pub hits: usize,
    /// Samples for which something was computed.
    pub misses: usize,
    /// Samples without features.
    pub n_left_out: usize,
    /// The first of them, at most ten.
    pub left_out: Vec<LeftOut>,
    /// Samples of splits that are for neither training nor validation: which, and how many.
    pub set_aside: Vec<(String, usize)>,
    /// Whether a GPU was asked for and some operators ran on the processor all the same.
    pub partly_on_cpu: bool,
    /// Whether the crate's own kernels computed rows of it, not ONNX Runtime.
    pub is_own: bool,
    /// Wall time.
    pub elapsed: std::time::Duration,
}

impl ExtractSummary {
    /// Of an extraction's first tap.
    pub fn of(extraction: &Extraction<'_>) -> ExtractSummary {
        const N_NAMED: usize = 10;
        ExtractSummary {
            boundary: extraction.boundaries[0].clone(),
            entry: extraction.store().folder().to_owned(),
            hits: extraction.hits,
            misses: extraction.misses,
            n_left_out: extraction.n_left_out,
            left_out: extraction.left_out().take(N_NAMED).collect(),
            set_aside: extraction.set_aside().to_vec(),
            partly_on_cpu: extraction.partly_on_cpu,
            is_own: extraction.own.contains(&extraction.boundaries[0]),
            elapsed: extraction.elapsed,
        }
    }

    /// Samples per second, hits and misses together.
    pub fn images_per_second(&self) -> f64 {
        (self.hits + self.misses) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What the main job leaves; it lies in `metrics.json` too.
#[derive(Debug)]
pub struct FitReport {
    /// What the extraction did.
    pub extraction: ExtractSummary,
    /// The head and its marks.
    pub trained: Trained,
    /// The comparison of the exported model with the trainer.
    pub verified: Verified,
    /// Which ONNX Runtime was used.
    pub engine: Engine,
    /// The same as in `metrics.json`.
    pub metrics: serde_json::Value,
}

/// Extracts (through the cache), trains, evaluates, exports, verifies, and writes the run folder.
///
/// Running it again with the same settings writes the same results; interrupted, it goes on from the cache.
///
/// # Errors
/// As its parts; [`Error::Exists`] where the run folder holds something else and `existing` refuses.
pub fn fit(config: &FitConfig, on_epoch: OnEpoch<'_>, monitor: Monitor<'_>) -> Result<FitReport, Error> {
    let model = &config.model;
    config.head.check()?;
    if config.head.task() != Task::SingleLabel {
        let text = "pictures in folders and lists have one class each, and `fit` trains a head for that; for several labels \
                    or numbers train on the extracted features";
        return Err(Error::Usage(text.to_owned()));
    }
    model.check_opset()?;
    let boundary = match &config.cut {
        Some(name) => name.clone(),
        None => model.default_boundary()?,
    };
    let settings = settings_of(config, &boundary)?;
    let folder = RunFolder::open(&config.run, &settings, config.existing)?;
    let keep = match config.head.method {
        Method::Solver { .. } => None,
        Method::MiniBatch(_) | Method::Sweep(_) => Some(folder.unfinished(&settings)?),
    };
    let data = Dataset::open(&config.data, &config.data_options)?;
    // A missing library is said before an hour of work, also where all features are cached.
    let engine = Engine::open(config.ort_lib.as_deref())?;
    engine.check(config.device)?;
    let extraction = extract(
        model,
        &data,
        &engine,
        &config.extraction(
            &[Tap {
                boundary: boundary.clone(),
                pool: config.pool,
            }],
            config.views.as_ref(),
        ),
        monitor,
    )?;
    let manifest = extraction.manifest();
    let train_rows = manifest.labelled(extraction.store(), &extraction.views, Split::Train)?;
    let val_rows = manifest.labelled(extraction.store(), &[], Split::Val)?;
    if val_rows.targets.is_empty() {
        let reason = "no validation picture could be read".to_owned();
        return Err(Error::Data {
            path: config.data.clone(),
            reason,
        });
    }
    let trained = pool(config.threads)?.install(|| {
        train_in(
            keep.as_ref(),
            &train_rows,
            Some(&val_rows),
            data.classes(),
            &config.head,
            on_epoch,
            monitor,
        )
    })?;

    let reduction = reduction_of(config, &boundary, &engine)?;
    let exported = assemble(
        model,
        &boundary,
        reduction,
        &trained.head,
        Outputs::Logits,
        &config.preprocess,
    )?;
    let classifier = Classifier::new(exported.clone(), engine.clone(), config.device, config.threads)?;
    let samples_of = |split| {
        let samples = (0..data.len()).filter(|&sample| data.split(sample) == split);
        let samples = samples.filter(|&sample| data.label(sample).is_some());
        samples
            .filter(|&sample| extraction.has_row(sample))
            .collect::<Vec<usize>>()
    };
    let val_samples = samples_of(Split::Val);
    // With random views a picture has several rows, and which is whose is not told.
    let train_samples = match config.views {
        None => samples_of(Split::Train),
        Some(_) => Vec::new(),
    };
    let expected = spread(&val_samples, &trained, &val_rows, config.dtype);
    let verified = verify(&classifier, &data, &expected, monitor)?;

    let ledger = extraction.ledger();
    let extraction = ExtractSummary::of(&extraction);
    let metrics = metrics_of(&extraction, &trained, &verified, &engine);
    let picture = |samples: &[usize], row: usize| {
        let mut reader = data.reader();
        Thumbnail::of(&reader.read(*samples.get(row)?).ok()?)
    };
    let page = Page {
        title: &format!("graftwork fit of {}", config.data.display()),
        metrics: &metrics,
        said: &[
            ("cut at", "/boundary"),
            ("features from the cache", "/cache/hits"),
            ("features computed", "/cache/misses"),
            ("pictures left out", "/left_out"),
            (
                "largest difference of a logit, exported model against trainer",
                "/export/max_abs_logit_diff",
            ),
        ],
        train: (&train_rows).into(),
        val: Some((&val_rows).into()),
        train_picture: Some(&|row| picture(&train_samples, row)),
        val_picture: Some(&|row| picture(&val_samples, row)),
    };
    let mut files = vec![
        ("config.toml".to_owned(), settings.into_bytes()),
        ("report.html".to_owned(), page.html(&trained).into_bytes()),
        ("ledger.jsonl".to_owned(), ledger.into_bytes()),
        ("metrics.json".to_owned(), pretty(&metrics)),
    ];
    let suspects = suspects_csv(&trained, &train_rows);
    files.extend(suspects.map(|text| ("suspects.csv".to_owned(), text.into_bytes())));
    let results = Results {
        head: Some(&trained.head),
        model: Some(&exported),
        files,
        ..Results::default()
    };
    folder.write(results, keep)?;
    Ok(FitReport {
        extraction,
        trained,
        verified,
        engine,
        metrics,
    })
}

/// What `metrics.json` says of any run that begins at pictures.
pub(super) fn metrics_of(
    extraction: &ExtractSummary,
    trained: &Trained,
    verified: &Verified,
    engine: &Engine,
) -> serde_json::Value {
    let mut metrics = serde_json::json!({
        "classes": trained.head.outputs(),
        "train": trained.train,
        "val": trained.val,
        "seconds": { "extract": extraction.elapsed.as_secs_f64(), "train": trained.seconds },
        "images_per_second": extraction.images_per_second(),
        "cache": {
            "hits": extraction.hits,
            "misses": extraction.misses,
            "entry": extraction.entry.to_string_lossy(),
        },
        "left_out": extraction.n_left_out,
        "boundary": extraction.boundary,
        "export": verified,
        "onnxruntime": format!("1.{}", engine.found().minor),
    });
    add_training(&mut metrics, trained);
    metrics
}

/// How the exported graph pools. Which axes are positions shows only when the network runs: once, on black pixels.
fn reduction_of(config: &FitConfig, boundary: &str, engine: &Engine) -> Result<Reduction, Error> {
    match config.pool {
        Pool::None => return Ok(Reduction::None),
        Pool::Cls => return Ok(Reduction::FirstToken),
        Pool::Avg => {}
    }
    let cut = config.model.with_weights_outside()?.cut(&[boundary])?;
    let batch_size = check_input(&cut, &config.preprocess, 1)?;
    let [channels, height, width] = config.preprocess.shape();
    let options = SessionOptions {
        intra_threads: config.threads,
        device: config.device,
    };
    let input = Input::F32 {
        shape: &[batch_size, channels, height, width],
        values: &vec![0.0; batch_size * config.preprocess.numel()],
    };
    let outputs = engine.session(&cut, options)?.run(&[input])?;
    Ok(match outputs[0].shape.len() {
        3 => Reduction::MeanOfTokens,
        4 => Reduction::MeanOfPositions,
        _ => Reduction::None,
    })
}

/// At most [`MAX_VERIFIED`] of the validation samples, evenly spread, with what the trainer says of them.
fn spread(samples: &[usize], trained: &Trained, val: &Labelled, dtype: FeatureType) -> Expected {
    let n = samples.len().min(MAX_VERIFIED);
    let rows: Vec<usize> = (0..n).map(|i| i * samples.len() / n).collect();
    let n_classes = trained.head.outputs().len();
    let logits = rows
        .iter()
        .flat_map(|row| &trained.val_logits[row * n_classes..(row + 1) * n_classes]);
    Expected {
        samples: rows.iter().map(|&row| samples[row]).collect(),
        logits: logits.copied().collect(),
        slack: match dtype {
            FeatureType::Float16 => trained.head.rounding_slack(&val.features.select(&rows)),
            FeatureType::Float32 => vec![0.0; n * n_classes],
        },
    }
}

/// The settings that, with the content of the data, decide the result, as TOML. The same text means the same job: running
/// it again may replace its results.
pub(super) fn settings_of(config: &FitConfig, boundary: &str) -> Result<String, Error> {
    let absolute = |path: &Path| {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        settings::string(&path.to_string_lossy())
    };
    let mut settings = format!(
        "# Written by graftwork fit.\nbackbone = {}\nprefix_blake3 = \"{}\"\ndata = {}\ncut = {}\n",
        absolute(config.model.path()),
        config.model.prefix_digest(boundary)?.to_hex(),
        absolute(&config.data),
        settings::string(boundary),
    );
    if let SplitRule::Fraction { fraction, seed } = config.data_options.split {
        settings.push_str(&format!("val_fraction = {fraction:?}\nsplit_seed = {seed}\n"));
    }
    if config.data_options.columns != Columns::default() {
        let columns = &config.data_options.columns;
        settings.push_str(&format!(
            "columns = {}\n",
            settings::string(&format!("{columns:?}"))
        ));
    }
    settings.push_str(&format!(
        "\n[features]\npool = {}\ndtype = {}\ndevice = {}\n",
        settings::plain(&config.pool),
        settings::plain(&config.dtype),
        settings::string(config.device.class())
    ));
    if let Some(views) = &config.views {
        let augment = settings::string(&settings::plain(&views.augment));
        settings.push_str(&format!("views = {}\naugment = {augment}\n", views.count));
    }
    settings.push_str("\n[preprocess]\n");
    settings.push_str(&config.preprocess.to_toml());
    settings.push_str(&config.head.to_toml());
    Ok(settings)
}
