//! `graftwork train`: a head on features that are there already.

use std::path::{Path, PathBuf};

use clap::Args;
use pth::Existing;
use runtime::Targets;
use runtime::data::Split;
use runtime::exchange::{Modality, read_clip_retrieval};
use runtime::features::{Labelled, Manifest, Store};
use runtime::job::{TrainConfig, Trained, train_to_folder};
use runtime::npy;

use crate::args::CArg;
use crate::progress::Watch;
use crate::table;
use crate::text;
use crate::usage::UsageError;

/// Features and labels: a cache entry, or arrays.
#[derive(Debug, Args)]
pub(crate) struct FeatureArgs {
    /// A cache entry that `extract` printed, an array [N, D] (.npy, .npz), or a folder of clip-retrieval's embeddings
    #[arg(long, value_name = "ENTRY|X.npy|FOLDER")]
    pub(crate) features: PathBuf,
    /// Class indices [N] of an array, or one of the entry's label files [default: its newest]
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
    /// Class indices [M] of the validation features
    #[arg(long, value_name = "w.npy", requires = "val_features")]
    val_labels: Option<PathBuf>,
    /// The run folder to write
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    /// Regularisation: scikit-learn's C, or auto to choose it on held-out training rows
    #[arg(long, value_name = "VALUE|auto", default_value = "auto")]
    c: CArg,
    /// Decides which rows are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Replace a run of other settings
    #[arg(long)]
    force: bool,
    /// Print metrics.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<u8> {
    let mut source = args.features.read()?;
    if let (Some(features), Some(labels)) = (&args.val_features, &args.val_labels) {
        if args.features.features.is_dir() {
            return Err(UsageError::new(
                "--val-features goes with an array; a cache entry knows its own split",
            )
            .into());
        }
        let val = read_arrays(features, labels)?;
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
        regularisation: args.c.0,
        seed: args.seed,
        existing: if args.force {
            Existing::Replace
        } else {
            Existing::Refuse
        },
    };
    let (trained, metrics) = Watch::new().run(|monitor| {
        train_to_folder(
            &source.train,
            source.val.as_ref(),
            &source.classes,
            &config,
            monitor,
        )
    })?;
    report(&trained);
    text::remark(&format!("wrote `{}`", args.output.display()));
    if args.json {
        text::json(&metrics)?;
    } else {
        text::print(&table::metrics(trained.val.as_ref().unwrap_or(&trained.train)))?;
    }
    Ok(0)
}

/// Says how a head was trained, on stderr.
pub(crate) fn report(trained: &Trained) {
    if let Some(selection) = &trained.selection {
        let rows = selection.n_held_out;
        text::remark(&format!(
            "chose C = {:.4} by log loss on {rows} held-out training rows",
            selection.c
        ));
    }
    let state = if trained.fitted.converged {
        "converged"
    } else {
        "stopped before it converged"
    };
    text::remark(&format!(
        "fitted {} rows in {} passes, {state}; {:.2} s; training accuracy {:.2} %",
        trained.train.n,
        trained.fitted.passes,
        trained.seconds,
        trained.train.accuracy * 100.0
    ));
}

impl FeatureArgs {
    pub(crate) fn read(&self) -> anyhow::Result<Source> {
        let embeddings = [("img_emb", Modality::Images), ("text_emb", Modality::Texts)];
        let there = embeddings
            .iter()
            .find(|(folder, _)| self.features.join(folder).is_dir());
        if let Some((_, modality)) = there {
            return self.read_embeddings(*modality);
        }
        if self.features.extension().is_some_and(|ending| ending == "npz") && self.labels.is_none() {
            return self.read_npz();
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
        let train = read_arrays(&self.features, labels)?;
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
    fn read_npz(&self) -> anyhow::Result<Source> {
        let labelled = |features, labels: Option<Vec<u32>>| {
            let labels = labels.ok_or_else(|| {
                let text = format!("`{}` holds features and no labels", self.features.display());
                UsageError::new(text).with_hint("--labels y.npy")
            })?;
            Ok::<_, anyhow::Error>(Labelled {
                features,
                targets: Targets::Classes(labels),
                names: Vec::new(),
                n_unlabelled: 0,
                n_missing_views: 0,
            })
        };
        let arrays = npy::read_npz(&self.features)?;
        let train = labelled(arrays.features, arrays.labels)?;
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
    fn read_embeddings(&self, modality: Modality) -> anyhow::Result<Source> {
        let read = read_clip_retrieval(&self.features, modality)?;
        if let Some(labels) = &self.labels {
            let labels = npy::read_labels(labels)?;
            if labels.len() != read.features.n_rows() {
                let text = format!("{} labels for {} rows", labels.len(), read.features.n_rows());
                return Err(runtime::Error::Features(text).into());
            }
            let mut source = Source {
                classes: Vec::new(),
                train: Labelled {
                    features: read.features,
                    targets: Targets::Classes(labels.clone()),
                    names: read.names,
                    n_unlabelled: 0,
                    n_missing_views: 0,
                },
                val: None,
            };
            source.extend_classes(&Targets::Classes(labels));
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
    /// Arrays carry no class names: a class is called by its index.
    fn extend_classes(&mut self, targets: &Targets) {
        let labels = targets.classes().unwrap_or_default();
        let n_classes = labels.iter().map(|&label| label as usize + 1).max().unwrap_or(0);
        for class in self.classes.len()..n_classes {
            self.classes.push(class.to_string());
        }
    }
}

fn read_arrays(features: &Path, labels: &Path) -> anyhow::Result<Labelled> {
    const MAX_CLASSES: u32 = 1 << 16;
    let labels_path = labels;
    let (features_read, labels) = (npy::read_features(features)?, npy::read_labels(labels)?);
    if features_read.n_rows() != labels.len() {
        let (rows, n_labels) = (features_read.n_rows(), labels.len());
        let text = format!(
            "`{}` has {rows} rows and `{}` {n_labels}",
            features.display(),
            labels_path.display()
        );
        return Err(runtime::Error::Features(text).into());
    }
    if let Some(row) = labels.iter().position(|label| *label >= MAX_CLASSES) {
        let text = format!(
            "row {row} of `{}` has label {}, over {MAX_CLASSES}",
            labels_path.display(),
            labels[row]
        );
        return Err(runtime::Error::Features(text).into());
    }
    Ok(Labelled {
        features: features_read,
        targets: Targets::Classes(labels),
        names: Vec::new(),
        n_unlabelled: 0,
        n_missing_views: 0,
    })
}
