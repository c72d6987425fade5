//! `graftwork predict`: the classes of pictures, by the exported model.

use std::path::{Path, PathBuf};

use clap::Args;
use runtime::Task;
use runtime::data::Dataset;
use runtime::export::Classifier;
use runtime::metrics::Judged;
use runtime::onnx::Model;

use crate::args::EngineArgs;
use crate::errors::code;
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;

#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    /// A run folder, or the model.onnx of one
    model: PathBuf,
    /// Pictures, or folders of pictures
    #[arg(required = true, value_name = "PICTURE|FOLDER")]
    pictures: Vec<PathBuf>,
    /// Classes per picture, the likeliest first
    #[arg(long, value_name = "K", default_value_t = 1)]
    top: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print a JSON object per line instead of tab-separated columns
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
        .with_hint("graftwork fit writes one; a run of train is judged with --features")
        .into())
}

/// Refuses what would be read as probabilities of classes and is none.
pub(crate) fn check_task(task: Task) -> anyhow::Result<()> {
    if task == Task::SingleLabel {
        return Ok(());
    }
    let text = "its outputs are not the classes of one choice; so far only the library reads such a head";
    Err(UsageError::new(text).into())
}

pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<u8> {
    let model = Model::open(&model_path(&args.model)?)?;
    let (engine, device) = args.engine.open()?;
    let classifier = Classifier::new(model, engine, device, args.engine.threads())?;
    check_task(classifier.task())?;
    let data = Dataset::of_pictures(&args.pictures)?;
    let pictures: Vec<usize> = (0..data.len()).collect();
    let answers = Watch::new().run(|monitor| classifier.classify(&data, &pictures, monitor))?;
    let mut text = String::new();
    let mut n_failed = data.n_left_out();
    for left_out in data.left_out() {
        text::remark(&format!("error: `{}`: {}", left_out.name, left_out.reason));
    }
    for (picture, answer) in answers.into_iter().enumerate() {
        let path = data.name(picture);
        match answer {
            Ok(logits) => text.push_str(&line(args, Path::new(&*path), &logits, classifier.classes())),
            Err(reason) => {
                n_failed += 1;
                text::remark(&format!("error: `{path}`: {reason}"));
            }
        }
    }
    text::print(&text)?;
    Ok(if n_failed > 0 { code::BAD_INPUT } else { 0 })
}

fn line(args: &PredictArgs, path: &Path, logits: &[f32], classes: &[String]) -> String {
    let judged = Judged::new(logits);
    let mut order: Vec<usize> = (0..classes.len()).collect();
    // Stable: of equal ones the first, as the accuracy counts it.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(args.top.max(1));
    if args.json {
        let top: Vec<_> = order
            .iter()
            .map(|&class| serde_json::json!({ "class": classes[class], "probability": judged.probability(class) }))
            .collect();
        return format!(
            "{}\n",
            serde_json::json!({ "path": path.to_string_lossy(), "predictions": top })
        );
    }
    let mut line = text::plain(&path.to_string_lossy());
    for class in order {
        line.push_str(&format!(
            "\t{}\t{:.4}",
            text::plain(&classes[class]),
            judged.probability(class)
        ));
    }
    line.push('\n');
    line
}
