//! `graftwork edit IN OUT -e 'STEP; STEP'`: the surgery language.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::Result;
use pth::{FileError, Profile};
use surgery::{LazyStateDict, Plan, VERBS};

use crate::args::OpenArgs;
use crate::text::print;
use crate::usage::UsageError;
use crate::writing::{Job, WriteArgs, check_complete, format_of, left_out};

/// Arguments of `edit`.
#[derive(Debug, clap::Args)]
pub(crate) struct EditArgs {
    /// A checkpoint, safetensors, or the index or folder of a set [default: the first `in` of the plan]
    #[arg(value_name = "IN")]
    input: Option<PathBuf>,
    /// The file to write; its extension says the format [default: the `out` of the plan]
    #[arg(value_name = "OUT")]
    output: Option<PathBuf>,
    /// Steps, separated by `;` or newlines; may be given several times
    #[arg(short = 'e', long = "step", value_name = "STEPS")]
    steps: Vec<String>,
    /// A file of steps, `-` for stdin
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print the verbs of the language
    #[arg(long)]
    list_verbs: bool,
    /// Go on with what can be read of IN
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &EditArgs) -> Result<u8> {
    if args.list_verbs {
        let lines: Vec<String> = VERBS
            .iter()
            .map(|verb| format!("{}\n    {}\n", verb.usage, verb.about))
            .collect();
        print(&lines.concat())?;
        return Ok(0);
    }
    let plan = Plan::parse(&text(args)?)?;
    let spec = plan.output();
    let input = args.input.clone().or_else(|| plan.input()).ok_or_else(|| {
        UsageError::new("there is no input")
            .with_hint("graftwork edit IN OUT -e 'STEPS', or `in NAME = PATH` in the plan")
    })?;
    let output = args
        .output
        .clone()
        .or_else(|| spec.as_ref().map(|spec| spec.path.clone()))
        .ok_or_else(|| {
            UsageError::new("there is no output")
                .with_hint("graftwork edit IN OUT -e 'STEPS', or `out PATH` in the plan")
        })?;
    let format = format_of(&output)?;
    let opened = surgery::open_with(&input, &args.open.options())?;
    check_complete(&opened, &input, args.partial)?;
    left_out(&opened);
    let (mut tensors, mut steps) = plan.apply(LazyStateDict::of(opened), &args.open.options())?;
    let mut write = args.write.clone();
    if let Some(spec) = spec.filter(|spec| args.output.is_none() || spec.path == output) {
        write.max_shard_size = write.max_shard_size.or(spec.max_shard_bytes);
        if let Some(dtype) = spec.dtype {
            let cast = Plan::parse(&format!("cast ** {dtype}"))?;
            let (cast, mut more) = cast.apply(tensors, &args.open.options())?;
            tensors = cast;
            steps.append(&mut more);
        }
    }
    // The process ends here: to give the memory of a hundred thousand tensors back piece by piece would take as long as the plan.
    let tensors = ManuallyDrop::new(tensors);
    Job {
        tensors: &tensors,
        output: &output,
        format,
        profile: Profile::Torch,
        inputs: std::slice::from_ref(&input),
        steps: &steps,
        args: &write,
    }
    .run()
}

/// All steps, those of the file first.
fn text(args: &EditArgs) -> Result<String> {
    let mut texts = Vec::new();
    if let Some(path) = &args.plan {
        let read = FileError::at("read", path);
        let text = if path == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        texts.push(text.map_err(read)?);
    }
    texts.extend(args.steps.iter().cloned());
    if texts.is_empty() {
        return Err(UsageError::new("there are no steps")
            .with_hint("-e 'STEP; STEP' or --plan FILE; --list-verbs prints what there is")
            .into());
    }
    Ok(texts.join("\n"))
}
