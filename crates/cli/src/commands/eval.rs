//! `graftwork eval`: how good a trained run is on labelled pictures or features.

use std::path::PathBuf;

use clap::Args;
use runtime::data::{DataOptions, Dataset, SplitRule};
use runtime::export::Classifier;
use runtime::features::Labelled;
use runtime::metrics::Marks;
use runtime::onnx::Model;
use runtime::{Targets, Task};

use super::train::FeatureArgs;
use crate::args::{ColumnArgs, EngineArgs};
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A run folder
    run: PathBuf,
    /// Labelled samples, as for fit: those for validation where it has some for training, else all; runs the exported model
    #[arg(
        long,
        value_name = "D",
        required_unless_present = "features",
        conflicts_with = "features"
    )]
    data: Option<PathBuf>,
    /// A cache entry (its validation rows), or an array [N, D]; uses the head alone
    #[arg(long, value_name = "ENTRY|X.npy")]
    features: Option<PathBuf>,
    /// Class indices [N] of an array, or one of the entry's label files [default: its newest]
    #[arg(long, value_name = "y.npy", requires = "features")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<u8> {
    let (marks, left_out) = match (&args.data, &args.features) {
        (Some(data), _) => on_pictures(args, data)?,
        (None, Some(features)) => (on_features(args, features)?, Vec::new()),
        (None, None) => return Err(UsageError::new("eval needs --data or --features").into()),
    };
    for (path, reason) in &left_out {
        text::remark(&format!("left out `{}`: {reason}", path.display()));
    }
    if args.json {
        let mut value = serde_json::to_value(&marks)?;
        value["left_out"] = left_out.len().into();
        text::json(&value)?;
    } else {
        text::print(&super::train::table(&marks))?;
    }
    Ok(0)
}

type LeftOut = Vec<(PathBuf, String)>;

fn on_pictures(args: &EvalArgs, data: &std::path::Path) -> anyhow::Result<(Marks, LeftOut)> {
    let model = Model::open(&super::predict::model_path(&args.run)?)?;
    let (engine, device) = args.engine.open()?;
    let classifier = Classifier::new(model, engine, device, args.engine.threads())?;
    if classifier.task() != Task::SingleLabel {
        let text = "its outputs are not the classes of one choice, and labelled pictures have one class each";
        return Err(UsageError::new(text)
            .with_hint("--features X.npy --labels y.npy judges the head alone")
            .into());
    }
    let options = DataOptions {
        columns: args.columns.columns(),
        ..DataOptions::new(SplitRule::Loose)
    };
    let data = Dataset::open_for_eval(data, &options, classifier.classes())?;
    let pictures: Vec<usize> = (0..data.len()).collect();
    let answers = Watch::new().run(|monitor| classifier.classify(&data, &pictures, monitor))?;
    let (mut logits, mut labels) = (Vec::new(), Vec::new());
    let mut left_out: LeftOut = data
        .left_out()
        .iter()
        .map(|left_out| (PathBuf::from(&left_out.name), left_out.reason.clone()))
        .collect();
    for (picture, answer) in answers.into_iter().enumerate() {
        match (answer, data.label(picture)) {
            (Ok(row), Some(label)) => {
                logits.extend(row);
                labels.push(label);
            }
            (Ok(_), None) => {}
            (Err(reason), _) => left_out.push((PathBuf::from(data.name(picture).into_owned()), reason)),
        }
    }
    if labels.is_empty() {
        let reason = "no picture could be read".to_owned();
        return Err(runtime::Error::Data {
            path: data.source().to_owned(),
            reason,
        }
        .into());
    }
    let marks = Marks::new(
        classifier.task(),
        &logits,
        &Targets::Classes(labels),
        classifier.classes(),
    )?;
    Ok((marks, left_out))
}

fn on_features(args: &EvalArgs, features: &std::path::Path) -> anyhow::Result<Marks> {
    let head = super::predict::open_head(&args.run)?;
    let source = FeatureArgs {
        features: features.to_owned(),
        labels: args.labels.clone(),
    }
    .read(head.task())?;
    // An array has no split; a cache entry without validation rows must not be judged on what was trained on.
    let mut rows: Labelled = match source.val {
        Some(val) => val,
        None if features.is_dir() => {
            return Err(
                UsageError::new(format!("`{}` has no validation pictures", features.display())).into(),
            );
        }
        None => source.train,
    };
    if let Targets::Classes(labels) = &mut rows.targets {
        let mut to_head = Vec::new();
        for class in &source.classes {
            let label = head.outputs().iter().position(|known| known == class);
            let label = label.ok_or_else(|| {
                runtime::Error::Features(format!("class `{class}` is not one the head knows"))
            })?;
            to_head.push(u32::try_from(label)?);
        }
        labels
            .iter_mut()
            .for_each(|label| *label = to_head[*label as usize]);
    }
    let logits = head.logits(&rows.features)?;
    Ok(Marks::new(head.task(), &logits, &rows.targets, head.outputs())?)
}
