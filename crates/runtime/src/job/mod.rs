//! Whole jobs: a head from labelled features, and the main job from a backbone and a folder to a run folder.

mod page;
mod run_folder;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pth::Existing;
use serde::Serialize;

use crate::data::{Columns, DataOptions, Dataset, LeftOut, Split, SplitRule};
use crate::engine::{Device, Engine, Input, SessionOptions};
use crate::error::Error;
use crate::export::{Classifier, Expected, Outputs, Verified, assemble, verify};
use crate::features::{
    ExtractConfig, Extraction, FeatureType, Labelled, Pool, Preparation, Tap, Views, check_input, extract,
};
use crate::head::Head;
use crate::image::Preprocess;
use crate::metrics::Metrics;
use crate::monitor::{Monitor, Stage};
use crate::onnx::{Model, Reduction};
use crate::solve::{Fitted, HoldOut, SelectConfig, Selection, SolverConfig, Values, fit as solve, select};
use crate::targets::Task;
use run_folder::RunFolder;

/// Pictures per run of the network where neither the caller nor the network says: measured best on two cores with one
/// session per core, where more only pushes activations out of the cache.
pub const DEFAULT_BATCH_SIZE: usize = 8;

/// The exported model is compared with the trainer on this many pictures at most, spread over the validation split.
const MAX_VERIFIED: usize = 512;

/// How strong the regularisation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Regularisation {
    /// scikit-learn's C.
    C(f64),
    /// The C with the least log loss on held-out training rows.
    Auto,
}

/// A trained head and its marks.
#[derive(Debug)]
pub struct Trained {
    /// The head.
    pub head: Head,
    /// What the solver reports.
    pub fitted: Fitted,
    /// The C that was used.
    pub c: f64,
    /// How C was chosen, where it was.
    pub selection: Option<Selection>,
    /// Marks on the rows it was fitted on.
    pub train: Metrics,
    /// Marks on the validation rows, where there are any.
    pub val: Option<Metrics>,
    /// Logits of the validation rows.
    pub val_logits: Vec<f32>,
    /// Wall time of choosing and fitting.
    pub seconds: f64,
}

/// Chooses C on held-out training rows where asked to, then fits on all of them.
///
/// # Errors
/// As [`select`] and [`solve`].
pub fn train(
    train: &Labelled,
    val: Option<&Labelled>,
    classes: &[String],
    regularisation: Regularisation,
    seed: u64,
    monitor: Monitor<'_>,
) -> Result<Trained, Error> {
    let start = Instant::now();
    let labels = labels_of(train)?;
    // Before the work, not after it.
    if let Some(val) = val {
        check_val(train, val, classes.len())?;
    }
    let config = SolverConfig::new(Task::SingleLabel);
    let selection = match regularisation {
        Regularisation::C(_) => None,
        Regularisation::Auto => Some(select(
            &train.features,
            &train.targets,
            classes.len(),
            &SelectConfig {
                values: Values::Climb,
                hold_out: HoldOut::Auto,
                seed,
            },
            &config,
            monitor,
        )?),
    };
    let c = match (regularisation, &selection) {
        (Regularisation::C(c), _) => c,
        (Regularisation::Auto, Some(selection)) => selection.c,
        (Regularisation::Auto, None) => unreachable!("chosen above"),
    };
    monitor.at(Stage::Train, 0, 0);
    let fitted = solve(
        &train.features,
        &train.targets,
        classes.len(),
        c,
        &config,
        monitor,
    )?;
    let (weight, bias) = (fitted.weight.clone(), fitted.bias.clone());
    let head = Head::linear(Task::SingleLabel, classes.to_vec(), weight, bias)?;
    let seconds = start.elapsed().as_secs_f64();
    let train_marks = Metrics::new(&head.logits(&train.features)?, labels, classes);
    let (val_logits, val_marks) = match val {
        None => (Vec::new(), None),
        Some(val) => {
            let labels = labels_of(val)?;
            let logits = head.logits(&val.features)?;
            let marks = Metrics::new(&logits, labels, classes);
            (logits, Some(marks))
        }
    };
    Ok(Trained {
        head,
        fitted,
        c,
        selection,
        train: train_marks,
        val: val_marks,
        val_logits,
        seconds,
    })
}

/// Whether a head that is trained on `train` can be judged on `val`.
fn check_val(train: &Labelled, val: &Labelled, n_classes: usize) -> Result<(), Error> {
    let (d, d_val) = (train.features.n_features(), val.features.n_features());
    if d != d_val {
        let reason = format!("those for validation have {d_val} numbers a row, and those for training {d}");
        return Err(Error::Features(reason));
    }
    let fits = val
        .targets
        .fits(Task::SingleLabel, val.features.n_rows(), n_classes);
    fits.map_err(|error| match error {
        Error::Features(reason) => Error::Features(format!("those for validation: {reason}")),
        other => other,
    })
}

fn labels_of(rows: &Labelled) -> Result<&[u32], Error> {
    let wrong =
        || Error::Features("the rows have several targets, and a classifier takes one class each".to_owned());
    rows.targets.classes().ok_or_else(wrong)
}

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
    /// How strong the regularisation is.
    pub regularisation: Regularisation,
    /// Decides the splits.
    pub seed: u64,
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
pub fn fit(config: &FitConfig, monitor: Monitor<'_>) -> Result<FitReport, Error> {
    let model = &config.model;
    model.check_opset()?;
    let boundary = match &config.cut {
        Some(name) => name.clone(),
        None => model.default_boundary()?,
    };
    let settings = settings_of(config, &boundary)?;
    let folder = RunFolder::open(&config.run, &settings, config.existing)?;
    let data = Dataset::open(&config.data, &config.data_options)?;
    // A missing library is said before an hour of work, also where all features are cached.
    let engine = Engine::open(config.ort_lib.as_deref())?;
    engine.check(config.device)?;
    let extraction = extract(
        model,
        &data,
        &engine,
        &ExtractConfig {
            cache: &config.cache,
            taps: &[Tap {
                boundary: boundary.clone(),
                pool: config.pool,
            }],
            input: Preparation::Pictures(&config.preprocess),
            views: config.views.as_ref(),
            dtype: config.dtype,
            device: config.device,
            batch_size: config.batch_size,
            threads: config.threads,
            block_rows: config.block_rows,
            max_cache_bytes: config.max_cache_bytes,
            shard: None,
        },
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
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(config.threads)
        .build()
        .map_err(|error| {
            Error::Usage(format!(
                "{} threads could not be started: {error}",
                config.threads
            ))
        })?;
    let trained = pool.install(|| {
        train(
            &train_rows,
            Some(&val_rows),
            data.classes(),
            config.regularisation,
            config.seed,
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
    let val_samples = (0..data.len()).filter(|&sample| data.split(sample) == Split::Val);
    let val_samples = val_samples.filter(|&sample| data.label(sample).is_some());
    let val_samples: Vec<usize> = val_samples.filter(|&sample| extraction.has_row(sample)).collect();
    let expected = spread(&val_samples, &trained, &val_rows, config.dtype);
    let verified = verify(&classifier, &data, &expected, monitor)?;

    let ledger = extraction.ledger();
    let extraction = ExtractSummary::of(&extraction);
    let metrics = metrics_of(&extraction, &trained, &verified, &engine);
    folder.write(
        &trained.head,
        Some(&exported),
        &[
            ("config.toml", settings.into_bytes()),
            (
                "report.html",
                page::of_fit(&config.data, &metrics, &trained, &val_rows, &data, &val_samples).into_bytes(),
            ),
            ("ledger.jsonl", ledger.into_bytes()),
            ("metrics.json", pretty(&metrics)),
        ],
    )?;
    Ok(FitReport {
        extraction,
        trained,
        verified,
        engine,
        metrics,
    })
}

/// The settings of a `train` on cached features, and where its results go.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    /// The run folder to write.
    pub run: PathBuf,
    /// Where the features came from, for `config.toml`.
    pub source: Vec<(String, String)>,
    /// How strong the regularisation is.
    pub regularisation: Regularisation,
    /// Decides the held-out rows.
    pub seed: u64,
    /// What to do with a run folder of other settings.
    pub existing: Existing,
}

/// Trains a head on features that are there already, and writes the run folder: no `model.onnx`, for there is no graph.
///
/// # Errors
/// As [`train`]; [`Error::Exists`] where the run folder holds something else and `existing` refuses.
pub fn train_to_folder(
    train_rows: &Labelled,
    val_rows: Option<&Labelled>,
    classes: &[String],
    config: &TrainConfig,
    monitor: Monitor<'_>,
) -> Result<(Trained, serde_json::Value), Error> {
    let mut settings = String::from("# Written by graftwork train.\n");
    for (key, value) in &config.source {
        settings.push_str(&format!("{key} = {}\n", toml_string(value)));
    }
    settings.push_str(&format!(
        "c = {}\nseed = {}\n",
        c_text(config.regularisation),
        config.seed
    ));
    let folder = RunFolder::open(&config.run, &settings, config.existing)?;
    let trained = train(
        train_rows,
        val_rows,
        classes,
        config.regularisation,
        config.seed,
        monitor,
    )?;
    let mut metrics = serde_json::json!({
        "classes": classes,
        "train": trained.train,
        "val": trained.val,
        "seconds": { "train": trained.seconds },
    });
    add_solver(&mut metrics, &trained);
    folder.write(
        &trained.head,
        None,
        &[
            ("config.toml", settings.into_bytes()),
            ("metrics.json", pretty(&metrics)),
        ],
    )?;
    Ok((trained, metrics))
}

fn metrics_of(
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
    add_solver(&mut metrics, trained);
    metrics
}

fn add_solver(metrics: &mut serde_json::Value, trained: &Trained) {
    metrics["c"] = trained.c.into();
    metrics["solver"] = serde_json::json!({
        "objective": trained.fitted.objective,
        "passes": trained.fitted.passes,
        "converged": trained.fitted.converged,
    });
    metrics["selection"] = serde_json::to_value(&trained.selection).expect("plain data is JSON");
    metrics["graftwork"] = env!("CARGO_PKG_VERSION").into();
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data is JSON");
    bytes.push(b'\n');
    bytes
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
fn settings_of(config: &FitConfig, boundary: &str) -> Result<String, Error> {
    let absolute = |path: &Path| {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        toml_string(&path.to_string_lossy())
    };
    let mut settings = format!(
        "# Written by graftwork fit.\nbackbone = {}\nprefix_blake3 = \"{}\"\ndata = {}\ncut = {}\nc = {}\nseed = {}\n",
        absolute(config.model.path()),
        config.model.prefix_digest(boundary)?.to_hex(),
        absolute(&config.data),
        toml_string(boundary),
        c_text(config.regularisation),
        config.seed,
    );
    if let SplitRule::Fraction { fraction, seed } = config.data_options.split {
        settings.push_str(&format!("val_fraction = {fraction:?}\nsplit_seed = {seed}\n"));
    }
    if config.data_options.columns != Columns::default() {
        let columns = &config.data_options.columns;
        settings.push_str(&format!("columns = {}\n", toml_string(&format!("{columns:?}"))));
    }
    settings.push_str(&format!(
        "\n[features]\npool = {}\ndtype = {}\ndevice = {}\n",
        plain(&config.pool),
        plain(&config.dtype),
        toml_string(config.device.class())
    ));
    if let Some(views) = &config.views {
        let augment = toml_string(&plain(&views.augment));
        settings.push_str(&format!("views = {}\naugment = {augment}\n", views.count));
    }
    settings.push_str("\n[preprocess]\n");
    settings.push_str(&config.preprocess.to_toml());
    Ok(settings)
}

/// A plain value as JSON, which for strings, numbers and lists of them is TOML too.
fn plain(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}

/// JSON's string escapes are TOML's.
fn toml_string(text: &str) -> String {
    serde_json::to_string(text).expect("strings are JSON")
}

fn c_text(regularisation: Regularisation) -> String {
    match regularisation {
        Regularisation::C(c) => format!("{c:?}"),
        Regularisation::Auto => "\"auto\"".to_owned(),
    }
}
