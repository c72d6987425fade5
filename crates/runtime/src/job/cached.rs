//! A head on features that are there already, into a run folder.

use std::path::PathBuf;

use pth::Existing;
use serde_json::{Value, json};

use super::page::{Page, suspects_csv};
use super::recipe::{HeadRecipe, Method};
use super::run_folder::{Results, RunFolder};
use super::settings;
use super::train::{OnEpoch, Trained, Way, train_in};
use crate::error::Error;
use crate::features::Labelled;
use crate::monitor::Monitor;

/// The settings of a `train` on cached features, and where its results go.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    /// The run folder to write.
    pub run: PathBuf,
    /// Where the features came from, for `config.toml`.
    pub source: Vec<(String, String)>,
    /// How the head is trained.
    pub head: HeadRecipe,
    /// Threads in all.
    pub threads: usize,
    /// What to do with a run folder of other settings.
    pub existing: Existing,
}

/// Trains a head on features that are there already, and writes the run folder: no `model.onnx`, for there is no graph.
///
/// A run by mini-batches that was interrupted goes on where it was when it is started again with the same settings.
///
/// # Errors
/// As [`super::train()`]; [`Error::Exists`] where the run folder holds something else and `existing` refuses.
pub fn train_to_folder(
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    config: &TrainConfig,
    on_epoch: OnEpoch<'_>,
    monitor: Monitor<'_>,
) -> Result<(Trained, Value), Error> {
    let mut text = String::from("# Written by graftwork train.\n");
    for (key, value) in &config.source {
        text.push_str(&format!("{key} = {}\n", settings::string(value)));
    }
    text.push_str(&config.head.to_toml());
    let folder = RunFolder::open(&config.run, &text, config.existing)?;
    let keep = match config.head.method {
        Method::Solver { .. } => None,
        Method::MiniBatch(_) | Method::Sweep(_) => Some(folder.unfinished(&text)?),
    };
    let trained = pool(config.threads)?.install(|| {
        train_in(
            keep.as_ref(),
            train,
            val,
            outputs,
            &config.head,
            on_epoch,
            monitor,
        )
    })?;
    let mut metrics = json!({
        "classes": outputs,
        "train": trained.train,
        "val": trained.val,
        "seconds": { "train": trained.seconds },
    });
    add_training(&mut metrics, &trained);
    let source = config.source.iter().find(|(key, _)| key == "features");
    let title = format!(
        "graftwork train on {}",
        source.map_or("features", |(_, path)| path)
    );
    let page = Page {
        title: &title,
        metrics: &metrics,
        said: &[],
        train: train.into(),
        val: val.map(Into::into),
        train_picture: None,
        val_picture: None,
    };
    let mut files = vec![
        ("config.toml".to_owned(), text.into_bytes()),
        ("report.html".to_owned(), page.html(&trained).into_bytes()),
        ("metrics.json".to_owned(), pretty(&metrics)),
    ];
    let suspects = suspects_csv(&trained, train);
    files.extend(suspects.map(|text| ("suspects.csv".to_owned(), text.into_bytes())));
    let results = Results {
        head: Some(&trained.head),
        files,
        ..Results::default()
    };
    folder.write(results, keep)?;
    Ok((trained, metrics))
}

/// Threads of a job's own.
pub(super) fn pool(n_threads: usize) -> Result<rayon::ThreadPool, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build();
    pool.map_err(|error| Error::Usage(format!("{n_threads} threads could not be started: {error}")))
}

/// What every run says of its training.
pub(super) fn add_training(metrics: &mut Value, trained: &Trained) {
    match &trained.way {
        Way::Solved { fitted, selection } => {
            metrics["c"] = fitted.c.into();
            metrics["solver"] = json!({
                "objective": fitted.objective,
                "passes": fitted.passes,
                "converged": fitted.converged,
            });
            metrics["selection"] = json!(selection);
        }
        Way::Descended {
            heads,
            chosen,
            ran_on,
        } => {
            metrics["trainer"] = json!(heads[*chosen]);
            metrics["trainer"]["ran_on"] = ran_on.as_str().into();
            if heads.len() > 1 {
                metrics["sweep"] = json!({ "chosen": chosen, "heads": heads });
            }
        }
    }
    metrics["temperature"] = json!(trained.temperature);
    if !trained.baselines.is_empty() {
        let line = |baseline: &crate::report::Baseline| json!({ "name": baseline.name, "figure": baseline.figure, "seconds": baseline.seconds });
        metrics["baselines"] = trained.baselines.iter().map(line).collect();
    }
    if !trained.suspects.is_empty() {
        metrics["suspects"] = trained.suspects.len().into();
    }
    metrics["graftwork"] = env!("CARGO_PKG_VERSION").into();
}

/// As it lies in `metrics.json`.
pub(super) fn pretty(metrics: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(metrics).expect("plain data is JSON");
    bytes.push(b'\n');
    bytes
}
