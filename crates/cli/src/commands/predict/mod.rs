//! `graftwork predict`: what a head says of pictures (by the exported model) or of features (by the head alone).

mod answers;
mod features;

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use runtime::Task;
use runtime::data::{Dataset, LeftOut};
use runtime::export::Classifier;
use runtime::head::Head;
use runtime::onnx::Model;
use runtime::predict::{Detail, Format, Known, Predictions};

use self::answers::Answers;
use crate::args::EngineArgs;
use crate::errors::code;
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;
use crate::writing::{check_writable, existing};

#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    /// A run folder, or the model.onnx or head.safetensors of one
    model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(
        required_unless_present = "features",
        conflicts_with = "features",
        value_name = "PICTURE|FOLDER"
    )]
    pictures: Vec<PathBuf>,
    /// Instead of pictures a cache entry (all its rows), an array [N, D], or a folder of clip-retrieval's embeddings; uses
    /// the head alone
    #[arg(long, value_name = "ENTRY|X.npy|FOLDER")]
    features: Option<PathBuf>,
    /// One of the entry's label files, which says what its rows are called [default: its newest]
    #[arg(long, value_name = "LABELS", requires = "features")]
    labels: Option<PathBuf>,
    /// Call the entry's rows by the BLAKE3 digests of the samples' bytes instead of by their names
    #[arg(long, requires = "features")]
    ids: bool,
    /// Write a table instead of printing: by its ending CSV, JSON lines or Parquet
    #[arg(short, long, value_name = "FILE.csv|.jsonl|.parquet")]
    output: Option<PathBuf>,
    /// Classes of each, the likeliest first [default: 1]
    #[arg(long, value_name = "K", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    top: Option<usize>,
    /// All classes of each, with their probabilities
    #[arg(long, conflicts_with = "top")]
    probabilities: bool,
    /// Replace FILE where it is there
    #[arg(long, requires = "output")]
    force: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print a JSON object per line instead of tab-separated columns; with -o one that says what was written
    #[arg(long)]
    json: bool,
}

/// The model in a run folder, or the model itself.
pub(crate) fn model_path(run: &Path) -> anyhow::Result<PathBuf> {
    if !run.is_dir() {
        return Ok(run.to_owned());
    }
    let model = run.join("model.onnx");
    if model.is_file() {
        return Ok(model);
    }
    let text = format!("`{}` holds no `model.onnx`", run.display());
    Err(UsageError::new(text)
        .with_hint("graftwork export makes one of a run of train; with --features its head is used alone")
        .into())
}

/// The head in a run folder, or the head itself.
pub(crate) fn open_head(run: &Path) -> anyhow::Result<Head> {
    if !run.is_dir() {
        return Ok(Head::open(run)?);
    }
    let head = run.join("head.safetensors");
    if head.is_file() {
        return Ok(Head::open(&head)?);
    }
    let text = format!("`{}` holds no `head.safetensors`", run.display());
    if run.join("model.pth").is_file() {
        return Err(UsageError::new(text)
            .with_hint("its whole network was trained, and model.onnx takes pictures")
            .into());
    }
    Err(UsageError::new(text)
        .with_hint("graftwork train and graftwork fit write run folders that do")
        .into())
}

pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<u8> {
    if let Some(path) = &args.output {
        Format::of(path)?;
        check_writable(path, existing(args.force))?;
    }
    let n_left_out = match &args.features {
        Some(features) => features::predict(args, features)?,
        None => predict_pictures(args)?,
    };
    Ok(if n_left_out > 0 { code::BAD_INPUT } else { 0 })
}

/// How many pictures have no answer.
fn predict_pictures(args: &PredictArgs) -> anyhow::Result<usize> {
    let model = Model::open(&model_path(&args.model)?)?;
    let (engine, device) = args.engine.open()?;
    let classifier = Classifier::new(model, engine, device, args.engine.threads())?;
    let head = args.predictions(classifier.task(), classifier.classes())?;
    let data = Dataset::of_pictures(&args.pictures)?;
    let pictures: Vec<usize> = (0..data.len()).collect();
    let watch = args.watch();
    let mut answers = Answers::begin(args, head)?;
    data.left_out().iter().for_each(name_left_out);
    let mut n_left_out = data.n_left_out();
    let result = watch.run(|monitor| {
        classifier.classify_each(&data, &pictures, monitor, &mut |picture, answer| {
            let name = data.name(picture);
            match answer {
                Ok(logits) => {
                    answers.push(&name, Known::Nothing, &logits)?;
                    answers.hand_on()
                }
                Err(reason) => {
                    n_left_out += 1;
                    name_left_out(&LeftOut {
                        name: name.into_owned(),
                        reason,
                    });
                    Ok(())
                }
            }
        })
    });
    answers.finish(result, n_left_out)?;
    Ok(n_left_out)
}

fn name_left_out(left_out: &LeftOut) {
    text::remark(&format!("error: `{}`: {}", left_out.name, left_out.reason));
}

impl PredictArgs {
    /// Heeds Ctrl-C from here on, and shows how far the job is.
    fn watch(&self) -> Watch {
        match self.output {
            Some(_) => Watch::new(),
            None => Watch::beside_results(),
        }
    }

    /// What is said of each row of a head.
    fn predictions(&self, task: Task, outputs: &[String]) -> anyhow::Result<Predictions> {
        let detail = match (self.top, self.probabilities) {
            (_, true) => Detail::All,
            (top, false) => Detail::Top(top.unwrap_or(1)),
        };
        let refuse = |flag: &str, why: &str| {
            let text = format!("{flag} asks for what this head does not give: {why}");
            Err(UsageError::new(text).into())
        };
        match task {
            Task::MultiLabel if self.top.is_some() => refuse(
                "--top",
                "its classes do not exclude each other, and none or several can be likely",
            ),
            Task::Regression if self.top.is_some() => refuse("--top", "its outputs are numbers, not classes"),
            Task::Regression if self.probabilities => {
                refuse("--probabilities", "its outputs are numbers, not classes")
            }
            _ => Ok(Predictions {
                task,
                outputs: outputs.to_vec(),
                detail,
            }),
        }
    }
}
