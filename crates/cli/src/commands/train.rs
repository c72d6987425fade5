//! `graftwork train`: a head on features that are there already.

use std::path::{Path, PathBuf};

use clap::Args;
use pth::Existing;
use runtime::data::Split;
use runtime::engine::Device;
use runtime::exchange::{Modality, read_clip_retrieval};
use runtime::features::{Labelled, Manifest, Store};
use runtime::job::{HeadRecipe, Method, TrainConfig, Trained, Way, train_to_folder};
use runtime::metrics::Marks;
use runtime::npy;
use runtime::train::{EpochMetrics, Outcome};
use runtime::{Targets, Task};

use crate::args::{HeadArgs, all_cores};
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;

/// Features and labels: a cache entry, or arrays.
#[derive(Debug, Args)]
pub(crate) struct FeatureArgs {
    /// A cache entry that `extract` printed, an array [N, D] (.npy, .npz), or a folder of clip-retrieval's embeddings
    #[arg(long, value_name = "ENTRY|X.npy|FOLDER")]
    pub(crate) features: PathBuf,
    /// Class indices [N] of an array (of other tasks numbers [N, K]), or one of the entry's label files [default: its newest]
    #[arg(long, value_name = "y.npy")]
    pub(crate) labels: Option<PathBuf>,
}

/// What [`FeatureArgs`] lead to.
pub(crate) struct Source {
    pub(crate) classes: Vec<String>,
    pub(crate) train: Labelled,
    pub(crate) val: Option<Labelled>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    features: FeatureArgs,
    /// Validation features [M, D], with an array
    #[arg(long, value_name = "V.npy", requires = "val_labels")]
    val_features: Option<PathBuf>,
    /// What is wanted of the validation features, as in --labels
    #[arg(long, value_name = "w.npy", requires = "val_features")]
    val_labels: Option<PathBuf>,
    /// The run folder to write
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    #[command(flatten)]
    head: HeadArgs,
    /// Decides which rows are held out, and all that mini-batches draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What trains by mini-batches: cpu, cuda or cuda:N (never another than is asked for)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, value_name = "N")]
    threads: Option<usize>,
    /// Replace a run of other settings
    #[arg(long)]
    force: bool,
    /// Print metrics.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<u8> {
    let head = args.head.recipe(args.seed, args.device)?;
    if let Device::Cuda { index, .. } = args.device {
        // A GPU that is not there is said before anything else.
        runtime::device::Cuda::open(index)?;
    }
    let task = head.task();
    let mut source = args.features.read(task)?;
    if let (Some(features), Some(labels)) = (&args.val_features, &args.val_labels) {
        if args.features.features.is_dir() {
            return Err(UsageError::new(
                "--val-features goes with an array; a cache entry knows its own split",
            )
            .into());
        }
        let val = read_arrays(features, labels, task)?;
        source.extend_classes(&val.targets);
        source.val = Some(val);
    }
    let absolute = |path: &Path| {
        path.canonicalize()
            .unwrap_or_else(|_| path.to_owned())
            .to_string_lossy()
            .into_owned()
    };
    let mut described = vec![("features".to_owned(), absolute(&args.features.features))];
    let more = [
        ("labels", &args.features.labels),
        ("val_features", &args.val_features),
        ("val_labels", &args.val_labels),
    ];
    for (name, path) in more {
        described.extend(path.as_deref().map(|path| (name.to_owned(), absolute(path))));
    }
    let config = TrainConfig {
        run: args.output.clone(),
        source: described,
        head,
        threads: args.threads.unwrap_or_else(all_cores).max(1),
        existing: if args.force {
            Existing::Replace
        } else {
            Existing::Refuse
        },
    };
    let watch = Watch::new();
    let mut epochs = Epochs::new(&watch, &config.head);
    let (trained, metrics) = watch.run(|monitor| {
        train_to_folder(
            &source.train,
            source.val.as_ref(),
            &source.classes,
            &config,
            &mut |head, epoch| epochs.show(head, epoch),
            monitor,
        )
    })?;
    report(&trained);
    text::remark(&format!("wrote `{}`", args.output.display()));
    if args.json {
        text::json(&metrics)?;
    } else {
        text::print(&table(trained.val.as_ref().unwrap_or(&trained.train)))?;
    }
    Ok(0)
}

/// The figures of a head for a terminal.
pub(crate) fn table(marks: &Marks) -> String {
    const DIGITS: usize = 4;
    marks
        .table(DIGITS)
        .lines()
        .map(|line| text::plain(line) + "\n")
        .collect()
}

/// Shows epochs as they come, of one head: a sweep's would be too many.
pub(crate) struct Epochs<'w> {
    watch: &'w Watch,
    n_epochs: usize,
    every: usize,
}

impl<'w> Epochs<'w> {
    pub(crate) fn new(watch: &'w Watch, recipe: &HeadRecipe) -> Epochs<'w> {
        /// About so many lines of a long run.
        const N_LINES: usize = 50;
        let n_epochs = match &recipe.method {
            Method::MiniBatch(config) => config.epochs,
            Method::Solver { .. } | Method::Sweep(_) => 0,
        };
        Epochs {
            watch,
            n_epochs,
            every: n_epochs.div_ceil(N_LINES).max(1),
        }
    }

    pub(crate) fn show(&mut self, _head: usize, epoch: &EpochMetrics) {
        let n = epoch.epoch;
        if self.n_epochs == 0 || (!n.is_multiple_of(self.every) && n != self.n_epochs) {
            return;
        }
        let figures = |loss: f64, accuracy: Option<f64>| {
            let accuracy = accuracy.map(|accuracy| format!(" accuracy {:.2} %", accuracy * 100.0));
            format!("loss {loss:.4}{}", accuracy.unwrap_or_default())
        };
        let mut line = format!(
            "epoch {n}/{}  train {}",
            self.n_epochs,
            figures(epoch.train_loss, epoch.train_accuracy)
        );
        if let Some(loss) = epoch.val_loss {
            line.push_str(&format!("  val {}", figures(loss, epoch.val_accuracy)));
        }
        self.watch.line(&format!("{line}  lr {}", epoch.lr));
    }
}

/// Says how a head was trained, on stderr.
pub(crate) fn report(trained: &Trained) {
    let rows = trained.train.n();
    let (name, figure) = trained.train.headline();
    let of_training = format!("{:.2} s; training {name} {figure:.4}", trained.seconds);
    match &trained.way {
        Way::Solved { fitted, selection } => {
            if let Some(selection) = selection {
                let n_held_out = selection.n_held_out;
                text::remark(&format!(
                    "chose C = {:.4} by the loss on {n_held_out} held-out training rows",
                    selection.c
                ));
            }
            let state = if fitted.converged {
                "converged"
            } else {
                "stopped before it converged"
            };
            let passes = match fitted.passes {
                1 => "1 pass".to_owned(),
                passes => format!("{passes} passes"),
            };
            text::remark(&format!("fitted {rows} rows in {passes}, {state}; {of_training}"));
        }
        Way::Descended {
            heads,
            chosen,
            ran_on,
        } => {
            let head = &heads[*chosen];
            if heads.len() > 1 {
                let diverged = |outcome: &Outcome| matches!(outcome, Outcome::Diverged { .. });
                let n_diverged = heads.iter().filter(|head| diverged(&head.outcome)).count();
                text::remark(&format!(
                    "of {} heads kept number {chosen}: lr {}, weight decay {}, seed {}{}",
                    heads.len(),
                    head.settings.lr,
                    head.settings.weight_decay,
                    head.settings.init_seed,
                    if n_diverged > 0 {
                        format!("; {n_diverged} diverged")
                    } else {
                        String::new()
                    }
                ));
            }
            let early = match head.outcome {
                Outcome::StoppedEarly => ", stopped early",
                _ => "",
            };
            text::remark(&format!(
                "trained on {ran_on}: {rows} rows, {} epochs{early}, best is {}; {of_training}",
                head.epochs, head.best_epoch
            ));
        }
    }
    if let Some(temperature) = &trained.temperature {
        text::remark(&format!(
            "calibration: temperature {:.3} takes the expected calibration error from {:.2} % to {:.2} %",
            temperature.value,
            temperature.ece_before * 100.0,
            temperature.ece_after * 100.0
        ));
    }
    for baseline in &trained.baselines {
        text::remark(&format!(
            "baseline: {}: {name} {:.4}",
            baseline.name, baseline.figure
        ));
    }
    if !trained.suspects.is_empty() {
        text::remark(&format!(
            "{} training rows are contradicted by the others; suspects.csv lists them, the likeliest wrong first",
            trained.suspects.len()
        ));
    }
}

impl FeatureArgs {
    pub(crate) fn read(&self, task: Task) -> anyhow::Result<Source> {
        let embeddings = [("img_emb", Modality::Images), ("text_emb", Modality::Texts)];
        let there = embeddings
            .iter()
            .find(|(folder, _)| self.features.join(folder).is_dir());
        if let Some((_, modality)) = there {
            return self.read_embeddings(*modality, task);
        }
        if self.features.extension().is_some_and(|ending| ending == "npz") && self.labels.is_none() {
            return self.read_npz(task);
        }
        if self.features.is_dir() {
            let manifest = match &self.labels {
                Some(path) => Manifest::open(path)?,
                None => match Manifest::list(&self.features)?.first() {
                    Some(path) => {
                        text::remark(&format!("labels from `{}`", path.display()));
                        Manifest::open(path)?
                    }
                    None => {
                        let text = format!("`{}` holds no labels", self.features.display());
                        return Err(UsageError::new(text)
                            .with_hint("graftwork extract writes them")
                            .into());
                    }
                },
            };
            let store = Store::open_entry(&self.features)?;
            let cache = self.features.canonicalize()?;
            let cache = cache.parent().unwrap_or(&cache);
            let views = manifest.header.views.iter();
            let views = views
                .map(|name| Store::open_entry(&cache.join(name)))
                .collect::<Result<Vec<Store>, runtime::Error>>()?;
            let val = manifest.labelled(&store, &[], Split::Val)?;
            let train = manifest.labelled(&store, &views, Split::Train)?;
            let n_unlabelled = train.n_unlabelled + val.n_unlabelled;
            if n_unlabelled > 0 {
                text::remark(&format!("{n_unlabelled} samples have no label and are left out"));
            }
            if train.n_missing_views > 0 {
                text::remark(&format!(
                    "{} views are not in the cache any more; extract computes them",
                    train.n_missing_views
                ));
            }
            if train.targets.is_empty() {
                let text = format!("`{}` holds no labelled training samples", self.features.display());
                return Err(UsageError::new(text).into());
            }
            return Ok(Source {
                train,
                val: (!val.targets.is_empty()).then_some(val),
                classes: manifest.header.classes,
            });
        }
        let Some(labels) = &self.labels else {
            return Err(UsageError::new("an array of features needs its labels")
                .with_hint("--labels y.npy")
                .into());
        };
        let train = read_arrays(&self.features, labels, task)?;
        let mut source = Source {
            classes: Vec::new(),
            train,
            val: None,
        };
        let targets = source.train.targets.clone();
        source.extend_classes(&targets);
        Ok(source)
    }
}

impl FeatureArgs {
    /// Arrays of one file: `X` and `y`, or Keras's `x_train`, `y_train`, `x_test`, `y_test`.
    fn read_npz(&self, task: Task) -> anyhow::Result<Source> {
        let labelled = |features, targets: Option<Targets>| {
            let targets = targets.ok_or_else(|| {
                let text = format!("`{}` holds features and no labels", self.features.display());
                UsageError::new(text).with_hint("--labels y.npy")
            })?;
            Ok::<_, anyhow::Error>(Labelled {
                features,
                targets,
                names: Vec::new(),
                n_unlabelled: 0,
                n_missing_views: 0,
            })
        };
        let arrays = npy::read_npz(&self.features, task)?;
        let train = labelled(arrays.features, arrays.targets)?;
        let val = arrays
            .val
            .map(|(features, labels)| labelled(features, labels))
            .transpose()?;
        let all: Vec<Targets> = [Some(&train), val.as_ref()]
            .into_iter()
            .flatten()
            .map(|rows| rows.targets.clone())
            .collect();
        let mut source = Source {
            classes: Vec::new(),
            train,
            val,
        };
        all.iter().for_each(|targets| source.extend_classes(targets));
        Ok(source)
    }

    /// clip-retrieval's layout; labels from its metadata or from an array.
    fn read_embeddings(&self, modality: Modality, task: Task) -> anyhow::Result<Source> {
        let read = read_clip_retrieval(&self.features, modality)?;
        if let Some(labels) = &self.labels {
            let targets = npy::read_targets(labels, task)?;
            if targets.len() != read.features.n_rows() {
                let text = format!("{} labels for {} rows", targets.len(), read.features.n_rows());
                return Err(runtime::Error::Features(text).into());
            }
            let mut source = Source {
                classes: Vec::new(),
                train: Labelled {
                    features: read.features,
                    targets: targets.clone(),
                    names: read.names,
                    n_unlabelled: 0,
                    n_missing_views: 0,
                },
                val: None,
            };
            source.extend_classes(&targets);
            return Ok(source);
        }
        let mut classes: Vec<String> = read.labels.iter().flatten().cloned().collect();
        classes.sort();
        classes.dedup();
        let (mut rows, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (row, label) in read.labels.iter().enumerate() {
            if let Some(label) = label {
                let class = classes.binary_search(label).expect("collected above");
                rows.push(row);
                labels.push(u32::try_from(class)?);
                names.extend(read.names.get(row).cloned());
            }
        }
        if rows.is_empty() {
            let text = format!("the metadata of `{}` hold no `label`", self.features.display());
            return Err(UsageError::new(text).with_hint("--labels y.npy").into());
        }
        let n_unlabelled = read.features.n_rows() - rows.len();
        if n_unlabelled > 0 {
            text::remark(&format!("{n_unlabelled} rows have no label and are left out"));
        }
        Ok(Source {
            classes,
            train: Labelled {
                features: read.features.select(&rows),
                targets: Targets::Classes(labels),
                names,
                n_unlabelled,
                n_missing_views: 0,
            },
            val: None,
        })
    }
}

impl Source {
    /// Arrays carry no names: a class or an output is called by its index.
    fn extend_classes(&mut self, targets: &Targets) {
        let n_classes = match targets {
            Targets::Classes(labels) => labels.iter().map(|&label| label as usize + 1).max().unwrap_or(0),
            Targets::Dense { n_outputs, .. } => *n_outputs,
        };
        for class in self.classes.len()..n_classes {
            self.classes.push(class.to_string());
        }
    }
}

fn read_arrays(features: &Path, labels: &Path, task: Task) -> anyhow::Result<Labelled> {
    const MAX_CLASSES: u32 = 1 << 16;
    let (features_read, targets) = (npy::read_features(features)?, npy::read_targets(labels, task)?);
    if features_read.n_rows() != targets.len() {
        let (rows, n_labels) = (features_read.n_rows(), targets.len());
        let text = format!(
            "`{}` has {rows} rows and `{}` {n_labels}",
            features.display(),
            labels.display()
        );
        return Err(runtime::Error::Features(text).into());
    }
    let of_rows = targets.classes().unwrap_or_default();
    if let Some(row) = of_rows.iter().position(|label| *label >= MAX_CLASSES) {
        let text = format!(
            "row {row} of `{}` has label {}, over {MAX_CLASSES}",
            labels.display(),
            of_rows[row]
        );
        return Err(runtime::Error::Features(text).into());
    }
    Ok(Labelled {
        features: features_read,
        targets,
        names: Vec::new(),
        n_unlabelled: 0,
        n_missing_views: 0,
    })
}
