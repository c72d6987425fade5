//! `graftwork edit IN OUT -e 'STEP; STEP'`: the surgery language.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::Result;
use pth::{FileError, Profile};
use surgery::{LazyStateDict, Plan, VERBS};

use crate::args::OpenArgs;
use crate::text::{print, remark};
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
    /// Change names, marks and metadata of the safetensors file IN where they stand: its header is written anew, its data are not
    /// touched. Whoever reads the header meanwhile may see a mixture
    #[arg(long, conflicts_with_all = ["output", "partial"])]
    in_place: bool,
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
    if args.in_place {
        return in_place(&plan, &input, args);
    }
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

/// Carries a plan out that changes names, marks and metadata only, in the header of the file itself.
fn in_place(plan: &Plan, input: &Path, args: &EditArgs) -> Result<u8> {
    if surgery::recover_header(input)? {
        remark(&format!(
            "the header of `{}` was restored: an edit of it had not ended",
            input.display()
        ));
    }
    let before = LazyStateDict::of(surgery::open_with(input, &args.open.options())?);
    let (after, _) = plan.apply(before.clone(), &args.open.options())?;
    if !before.ties().is_empty() {
        let what = "a tensor of the file has several names, of which --in-place cannot tell which one is in the header";
        return Err(UsageError::new(what)
            .with_hint("graftwork edit IN OUT writes another file")
            .into());
    }
    let renames = before.renames_to(&after).ok_or_else(|| {
        UsageError::new(
            "the steps change more than names, marks and metadata, which is all that --in-place can",
        )
        .with_hint("graftwork edit IN OUT writes another file")
    })?;
    let metadata = after.file_metadata();
    // The map of the file ends before its header is written.
    drop((before, after));
    if args.write.dry_run {
        print(&format!(
            "would rename {} tensors of {} in place\n",
            renames.len(),
            input.display()
        ))?;
        return Ok(0);
    }
    let edit = surgery::edit_header(input, &renames, &metadata)?;
    if args.write.json {
        crate::text::json(&serde_json::json!({
            "file": input,
            "renamed": edit.n_renamed,
            "header_bytes": edit.n_bytes,
            "header_bytes_used": edit.n_used,
        }))?;
        return Ok(0);
    }
    print(&format!(
        "edited {} in place: {} renamed, {} of {} header bytes used\n",
        input.display(),
        edit.n_renamed,
        edit.n_used,
        edit.n_bytes
    ))?;
    Ok(0)
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
