//! `graftwork convert IN OUT`: any readable checkpoint to safetensors, to a `.pth` that loads with `weights_only`, or by a template
//! to an ONNX model.

use std::mem::ManuallyDrop;
use std::path::PathBuf;

use anyhow::Result;
use pth::{Checkpoint, DType, Existing, Profile, SaveOptions};
use runtime::template::Template;
use surgery::{LazyStateDict, OutputFormat, Plan};

use crate::args::{OpenArgs, TemplateArgs};
use crate::text::{self, grouped, plain, print, remark};
use crate::usage::UsageError;
use crate::writing::{
    Job, WriteArgs, check_complete, check_writable, existing, float_type, format_of, left_out,
};

/// Arguments of `convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// A checkpoint or safetensors file, whatever its name; the index or the folder of a set.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write; its extension says the format: `.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt` or `.onnx`; a folder gets
    /// safetensors.
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Take this prefix off every name that has it, such as `module.`.
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Vec<String>,
    /// Put NEW in the place of the prefix OLD.
    #[arg(long, value_name = "OLD=NEW")]
    rename: Vec<String>,
    /// Mark what matches as frozen: `*` is part of one segment of a name, `**` any number.
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Convert floating tensors to this type: float32, float16, bfloat16, float64.
    #[arg(long, value_name = "TYPE", value_parser = float_type)]
    dtype: Option<DType>,
    /// Keep everything in the checkpoint (epoch, optimizer, ...) as plain values, in a `.pth` that `weights_only` loads.
    #[arg(long, conflicts_with_all = ["strip_prefix", "rename", "freeze", "dtype", "partial", "plain"])]
    all: bool,
    /// Write the `.pth` for libtorch in C++: plain dicts and tensors.
    #[arg(long)]
    plain: bool,
    /// Write what can be read, and leave out what cannot.
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &ConvertArgs) -> Result<u8> {
    let is_onnx = args.output.extension().is_some_and(|ending| ending == "onnx");
    if is_onnx {
        return to_onnx(args);
    }
    let given = [
        ("--template", args.template.template.is_some()),
        ("--input-size", args.template.input_size.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, is_given)| *is_given) {
        return Err(UsageError::new(format!("{flag} is for an OUT that ends in .onnx")).into());
    }
    let format = target(args)?;
    if args.all {
        return keep_all(args);
    }
    let opened = surgery::open_with(&args.input, &args.open.options())?;
    check_complete(&opened, &args.input, args.partial)?;
    left_out(&opened);
    let plan = Plan::parse(&steps(args)?)?;
    let (tensors, steps) = plan.apply(LazyStateDict::of(opened), &args.open.options())?;
    // As in `edit`: the process ends here.
    let tensors = ManuallyDrop::new(tensors);
    Job {
        tensors: &tensors,
        output: &args.output,
        format,
        profile: profile(args),
        inputs: std::slice::from_ref(&args.input),
        steps: &steps,
        args: &args.write,
    }
    .run()
}

/// A network whose names and shapes a template fits, as an ONNX model.
fn to_onnx(args: &ConvertArgs) -> Result<u8> {
    let stray = [
        ("--all", args.all),
        ("--plain", args.plain),
        ("--partial", args.partial),
        ("--dtype", args.dtype.is_some()),
        ("--freeze", !args.freeze.is_empty()),
        ("--max-shard-size", args.write.max_shard_size.is_some()),
    ];
    if let Some((flag, _)) = stray.iter().find(|(_, is_given)| *is_given) {
        return Err(UsageError::new(format!("{flag} means nothing to an ONNX model")).into());
    }
    let existing = existing(args.write.force);
    check_writable(&args.output, existing)?;
    let opened = surgery::open_whole(&args.input, &args.open.options())?;
    let (tensors, _) = Plan::parse(&steps(args)?)?.apply(opened, &args.open.options())?;
    let template = Template::recognise(&args.input, &tensors, &args.template.choice())?;
    let model = template.to_onnx(&tensors, args.template.input_size)?;
    let path = args.output.display();
    let shape = model.input()?.shape.clone().unwrap_or_default();
    let sizes: Vec<String> = shape
        .iter()
        .map(|size| size.map_or("batch".to_owned(), |size| size.to_string()))
        .collect();
    let about = format!("{} for [{}]", template.name(), sizes.join(", "));
    if args.write.dry_run {
        print(&format!(
            "would write {path}: {about}, {} bytes\n",
            grouped(model.n_bytes())
        ))?;
        return Ok(0);
    }
    let files = model.save(&args.output, existing)?;
    if args.write.json {
        text::json(&serde_json::json!({
            "files": files,
            "template": template.name(),
            "input": { "name": model.input()?.name, "shape": shape },
            "outputs": model.outputs(),
            "bytes": model.n_bytes(),
        }))?;
        return Ok(0);
    }
    print(&format!(
        "wrote {path}: {about}, {} bytes\n",
        grouped(model.n_bytes())
    ))?;
    Ok(0)
}

/// The flags as steps of the language.
fn steps(args: &ConvertArgs) -> Result<String> {
    let mut steps = Vec::new();
    for prefix in &args.strip_prefix {
        steps.push(format!("strip {}", quoted(prefix)));
    }
    for rule in &args.rename {
        let (old, new) = rule
            .split_once('=')
            .ok_or_else(|| UsageError::new(format!("`{rule}` is not of the form OLD=NEW")))?;
        steps.push(format!("rename {old}** -> {new}**"));
    }
    for pattern in &args.freeze {
        steps.push(format!("freeze {pattern}"));
    }
    if let Some(dtype) = args.dtype {
        steps.push(format!("cast ** {dtype}"));
    }
    Ok(steps.join("\n"))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The whole of a checkpoint as plain values.
fn keep_all(args: &ConvertArgs) -> Result<u8> {
    let named = |source| surgery::Error::Checkpoint {
        path: args.input.clone(),
        source,
    };
    let checkpoint = Checkpoint::open_with(&args.input, &args.open.options()).map_err(named)?;
    for problem in checkpoint.problems() {
        remark(&format!(
            "problem: `{}`: {}",
            plain(&problem.name),
            plain(&problem.fault.to_string())
        ));
    }
    let (value, changes) = checkpoint.value().map_err(named)?.into_plain();
    for change in &changes {
        let name = if change.name.is_empty() {
            "(all)"
        } else {
            change.name.as_str()
        };
        remark(&format!("changed: {}: {}", plain(name), plain(&change.what)));
    }
    let path = args.output.display();
    if args.write.dry_run {
        print(&format!(
            "would write {path} with {} values changed\n",
            changes.len()
        ))?;
        return Ok(0);
    }
    let options = SaveOptions {
        profile: profile(args),
        existing: if args.write.force {
            Existing::Replace
        } else {
            Existing::Refuse
        },
    };
    let n_bytes = pth::save(&args.output, &value, &options)?;
    let n_bytes = grouped(usize::try_from(n_bytes)?);
    print(&format!("wrote {path}: everything, {n_bytes} bytes\n"))?;
    Ok(0)
}

fn profile(args: &ConvertArgs) -> Profile {
    if args.plain {
        Profile::LibTorch
    } else {
        Profile::Torch
    }
}

fn target(args: &ConvertArgs) -> Result<OutputFormat, UsageError> {
    match format_of(&args.output)? {
        OutputFormat::Safetensors if args.all => Err(UsageError::new(
            "safetensors holds tensors only: --all writes a `.pth`",
        )),
        OutputFormat::Safetensors if args.plain => Err(UsageError::new("--plain is a kind of `.pth`")),
        format => Ok(format),
    }
}
