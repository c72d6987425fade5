//! `graftwork export`: a run's head for torch, alone or in the backbone's state dict, or one deployable model.

use std::path::{Path, PathBuf};

use clap::Args;
use pth::{Existing, OpenOptions};
use runtime::export::{
    About, Assembled, CheckpointOptions, Outputs, Runner, assemble_run, save_checkpoint, save_head,
    with_probabilities,
};
use runtime::onnx::Model;
use runtime::{Error, Task};
use serde_json::{Value, json};
use surgery::{OutputFormat, WriteOptions, open_whole};

use super::predict::open_head;
use crate::args::{EngineArgs, GraphArgs};
use crate::progress::Watch;
use crate::text;
use crate::usage::UsageError;
use crate::writing::{check_writable, existing};

#[derive(Debug, Args)]
#[command(mut_arg("cut", |cut| cut.help(
    "The tensor that the features are [default: the one with their content]"
)))]
pub(crate) struct ExportArgs {
    /// A run folder
    run: PathBuf,
    /// What to write, by its ending: .pth or .safetensors for torch, .onnx for one model of backbone and head
    #[arg(value_name = "OUT.pth|.safetensors|.onnx")]
    output: PathBuf,
    /// With .pth and .safetensors: the backbone's checkpoint, to write it whole with the head in its classifier's place
    #[arg(long, value_name = "CKPT")]
    checkpoint: Option<PathBuf>,
    /// The module that the head becomes [default: the classifier that CKPT has]
    #[arg(long, value_name = "NAME", requires = "checkpoint")]
    module: Option<String>,
    /// With .onnx: an output `probabilities` beside `logits`
    #[arg(long)]
    probabilities: bool,
    /// With .onnx, of a run that has no model.onnx: the network that its features came from
    #[arg(long, value_name = "M.onnx", help_heading = "Backbone")]
    backbone: Option<PathBuf>,
    #[command(flatten)]
    graph: GraphArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Replace OUT where it is there
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<u8> {
    let ending = args.output.extension();
    let is_onnx = ending.is_some_and(|ending| ending == "onnx");
    // What has no ending would be a set of files in a folder.
    let is_state_dict = ending.is_some() && OutputFormat::of(&args.output).is_some();
    if !is_onnx && !is_state_dict {
        let text = format!(
            "`{}` is neither .onnx, .pth nor .safetensors",
            args.output.display()
        );
        return Err(UsageError::new(text).into());
    }
    let flags = [
        ("--checkpoint", args.checkpoint.is_some(), false),
        ("--probabilities", args.probabilities, true),
        ("--backbone", args.backbone.is_some(), true),
    ];
    let mut stray = flags
        .iter()
        .filter(|(_, is_given, is_for_onnx)| *is_given && *is_for_onnx != is_onnx);
    if let Some((flag, _, is_for_onnx)) = stray.next() {
        let endings = if *is_for_onnx {
            ".onnx"
        } else {
            ".pth and .safetensors"
        };
        let text = format!("{flag} is for {endings}, and `{}` is none", args.output.display());
        return Err(UsageError::new(text).into());
    }
    if args.output.is_dir() {
        return Err(UsageError::new(format!("`{}` is a folder", args.output.display())).into());
    }
    check_writable(&args.output, existing(args.force))?;
    let network = args.run.join("model.pth");
    let is_network = network.is_file() && !args.run.join("head.safetensors").exists();
    let report = match (is_onnx, &args.checkpoint) {
        (true, _) => args.write_model()?,
        _ if is_network => args.write_network(&network)?,
        (false, Some(checkpoint)) => args.write_checkpoint(checkpoint)?,
        (false, None) => args.write_head()?,
    };
    if args.json {
        text::json(&report.json)?;
    } else {
        text::print(&format!("wrote {}: {}\n", args.output.display(), report.line))?;
    }
    Ok(0)
}

/// What was written.
struct Report {
    line: String,
    json: Value,
}

impl ExportArgs {
    fn existing(&self) -> Existing {
        existing(self.force)
    }

    /// The state dict of a run whose network was fine-tuned, as another file.
    fn write_network(&self, network: &Path) -> anyhow::Result<Report> {
        if self.checkpoint.is_some() {
            let text = format!("`{}` has a state dict of its whole network", self.run.display());
            return Err(UsageError::new(text)
                .with_hint("without --checkpoint that is written")
                .into());
        }
        let tensors = open_whole(network, &OpenOptions::default())?;
        let options = WriteOptions {
            existing: self.existing(),
            ..WriteOptions::new(OutputFormat::of(&self.output).expect("its ending was checked"))
        };
        let written = surgery::write(&self.output, &tensors, &options)?;
        let n_frozen = tensors
            .iter()
            .filter(|(_, entry)| entry.is_parameter && !entry.requires_grad)
            .count();
        Ok(Report {
            line: format!(
                "the whole network, {} tensors, {n_frozen} parameters of it frozen",
                tensors.len()
            ),
            json: json!({ "files": written.files, "n_frozen": n_frozen }),
        })
    }

    /// The head alone.
    fn write_head(&self) -> anyhow::Result<Report> {
        let head = open_head(&self.run)?;
        save_head(&head, &self.output, self.existing())?;
        let tensors = head.state_dict();
        let names: Vec<&str> = tensors.names().collect();
        Ok(Report {
            line: format!("the head alone, {}", names.join(", ")),
            json: json!({ "files": [&self.output], "added": names }),
        })
    }

    /// Backbone and head.
    fn write_checkpoint(&self, backbone: &Path) -> anyhow::Result<Report> {
        let head = open_head(&self.run)?;
        let options = CheckpointOptions {
            module: self.module.as_deref(),
            existing: self.existing(),
        };
        let watch = Watch::new();
        let report =
            watch.run(|monitor| save_checkpoint(backbone, &head, &self.output, &options, monitor))?;
        let replaced = match report.replaced.as_slice() {
            [] => "new".to_owned(),
            names => format!("in place of {}", names.join(", ")),
        };
        Ok(Report {
            line: format!(
                "`{}` is the head, {replaced}; {} parameters of the backbone are frozen",
                report.module,
                text::grouped(report.n_frozen)
            ),
            json: json!({
                "files": report.files,
                "module": report.module,
                "replaced": report.replaced,
                "added": report.added,
                "n_frozen": report.n_frozen,
            }),
        })
    }

    /// One deployable model.
    fn write_model(&self) -> anyhow::Result<Report> {
        let finished = self.run.join("model.onnx");
        match (&self.backbone, finished.is_file()) {
            (None, true) => self.write_finished(&finished),
            (Some(backbone), false) => self.write_assembled(backbone),
            (Some(_), true) => {
                let text = format!("`{}` has a model.onnx with its backbone", self.run.display());
                Err(UsageError::new(text)
                    .with_hint("without --backbone that is written")
                    .into())
            }
            (None, false) => {
                // Of a folder without a head there is more to say than which backbone.
                open_head(&self.run)?;
                let text = format!("`{}` holds no `model.onnx`", self.run.display());
                Err(UsageError::new(text)
                    .with_hint("--backbone M.onnx, the network that its features came from, makes one")
                    .into())
            }
        }
    }

    /// The model of a run of `fit`, which was proven when it was made.
    fn write_finished(&self, finished: &Path) -> anyhow::Result<Report> {
        let model = Model::open(finished)?;
        let about = About::of(&model)?;
        let model = match self.probabilities {
            false => model,
            true => {
                check_has_probabilities(about.task)?;
                let (engine, device) = self.engine.open()?;
                let runner = Runner {
                    engine: &engine,
                    device,
                    threads: self.engine.threads(),
                };
                Watch::new().run(|_| with_probabilities(&model, runner))?
            }
        };
        let files = model.save(&self.output, self.existing())?;
        let outputs = model.outputs().join(", ");
        Ok(Report {
            line: format!("the run's model, which gives {outputs}"),
            json: json!({ "files": files, "outputs": model.outputs(), "classes": about.classes }),
        })
    }

    /// The head of a run of `train` behind the backbone that its features came from.
    fn write_assembled(&self, backbone: &Path) -> anyhow::Result<Report> {
        let head = open_head(&self.run)?;
        let outputs = match self.probabilities {
            false => Outputs::Logits,
            true => {
                check_has_probabilities(head.task())?;
                Outputs::LogitsAndProbabilities
            }
        };
        let cut = match self.graph.cut.as_slice() {
            [] => None,
            [cut] => Some(cut.as_str()),
            _ => return Err(UsageError::new("a model ends at one tensor, and --cut names several").into()),
        };
        let (model, _) = self.graph.open(backbone, None)?;
        let (engine, device) = self.engine.open()?;
        let runner = Runner {
            engine: &engine,
            device,
            threads: self.engine.threads(),
        };
        let watch = Watch::new();
        let assembled = watch
            .run(|monitor| assemble_run(&self.run, &head, &model, cut, outputs, runner, monitor))
            .map_err(|error| match error {
                // Of the model nothing is kept.
                Error::Interrupted { .. } => surgery::Error::Interrupted.into(),
                other => anyhow::Error::from(other),
            })?;
        let files = assembled.model.save(&self.output, self.existing())?;
        Ok(assembled_report(&assembled, &files))
    }
}

fn assembled_report(assembled: &Assembled, files: &[PathBuf]) -> Report {
    let on_pictures = match &assembled.on_pictures {
        Some(verified) => format!(
            "agrees with the head on a test pattern and on {} pictures (largest difference of a logit {:.1e})",
            verified.n,
            verified.max_abs_logit_diff.max(assembled.max_abs_logit_diff)
        ),
        None => format!(
            "agrees with the head on a test pattern (largest difference of a logit {:.1e}); the pictures are not at hand",
            assembled.max_abs_logit_diff
        ),
    };
    text::remark(&on_pictures);
    let outputs = assembled.model.outputs();
    Report {
        line: format!(
            "the backbone up to `{}` and the head, which give {}",
            assembled.boundary,
            outputs.join(", ")
        ),
        json: json!({
            "files": files,
            "outputs": outputs,
            "entry": assembled.entry,
            "boundary": assembled.boundary,
            "verified": {
                "pattern": { "max_abs_logit_diff": assembled.max_abs_logit_diff },
                "pictures": assembled.on_pictures,
            },
        }),
    }
}

fn check_has_probabilities(task: Task) -> anyhow::Result<()> {
    if task == Task::Regression {
        let text =
            "--probabilities asks for what this head does not give: its outputs are numbers, not classes";
        return Err(UsageError::new(text).into());
    }
    Ok(())
}
