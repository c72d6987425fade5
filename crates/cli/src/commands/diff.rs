//! `graftwork diff A B`: what differs between two checkpoints, and what kind of difference that is.

mod json;
mod rows;

use std::path::{Path, PathBuf};

use anyhow::Result;
use surgery::{Depth, DiffOptions, FAIL_KINDS, FailKind, FailOn, Opened, Pattern, TOLERANCES, Tolerance};

use crate::args::OpenArgs;
use crate::text::{self, nearest, plain, print, remark};
use crate::usage::UsageError;

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// A checkpoint, a safetensors file, or a sharded set's index or folder
    #[arg(value_name = "A")]
    a: PathBuf,
    /// What it has become
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Values that count as the same: exact, f16, bf16, f32, f64 (as torch's assert_close), ulp=N, or RTOL,ATOL
    #[arg(long, value_name = "TOL", default_value = "exact")]
    tol: String,
    /// Compare only names that match: `*` is part of one segment of a name, `**` any number
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Leave out names that match
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Compare names, shapes, types and marks, and read no values
    #[arg(long)]
    headers: bool,
    /// Exit code 1 only for such a difference: changed, added, removed, marks or any, of names that match
    #[arg(long, value_name = "KIND:PATTERN")]
    fail_on: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code: 1 where something differs.
pub(crate) fn run(args: &DiffArgs) -> Result<u8> {
    let options = options(args)?;
    let (a, b) = (open(&args.a, args)?, open(&args.b, args)?);
    let diff = surgery::diff(&a, &b, &options)?;
    if args.json {
        text::json(&json::of(&diff, [&args.a, &args.b]))?;
    } else {
        print(&rows::text(&diff))?;
    }
    not_compared(&a, &b);
    let has_failed = if options.fail_on.is_empty() {
        !diff.is_identical
    } else {
        diff.fail_on.iter().any(|report| !report.found.is_empty())
    };
    Ok(u8::from(has_failed))
}

fn options(args: &DiffArgs) -> Result<DiffOptions> {
    let tolerance = Tolerance::parse(&args.tol).ok_or_else(|| {
        let words = TOLERANCES.iter().map(|(name, _)| *name).chain(["ulp=4"]);
        unknown(
            format!("`{}` is no tolerance", args.tol),
            &args.tol,
            words,
            "RTOL,ATOL",
        )
    })?;
    let mut fail_on = Vec::with_capacity(args.fail_on.len());
    for text in &args.fail_on {
        fail_on.push(parse_fail_on(text)?);
    }
    let needs_values = fail_on
        .iter()
        .find(|asked| matches!(asked.kind, FailKind::Changed | FailKind::Any));
    if let (true, Some(asked)) = (args.headers, needs_values) {
        let what = format!(
            "--fail-on {}:{} needs the values, which --headers does not read",
            asked.kind.as_str(),
            asked.pattern.as_str()
        );
        return Err(UsageError::new(what).into());
    }
    Ok(DiffOptions {
        tolerance,
        only: patterns(&args.only)?,
        skip: patterns(&args.skip)?,
        depth: if args.headers {
            Depth::Headers
        } else {
            Depth::Values
        },
        fail_on,
        ..DiffOptions::default()
    })
}

fn parse_fail_on(text: &str) -> Result<FailOn> {
    let kinds = || FAIL_KINDS.iter().map(|(word, _)| *word);
    let Some((word, pattern)) = text.split_once(':') else {
        let what = format!("`{text}` is not of the form KIND:PATTERN");
        return Err(unknown(what, text, kinds(), "such as changed:backbone.**").into());
    };
    let kind = FAIL_KINDS.iter().find(|(known, _)| *known == word);
    let Some((_, kind)) = kind else {
        return Err(unknown(format!("`{word}` is no kind of difference"), word, kinds(), "").into());
    };
    Ok(FailOn {
        kind: *kind,
        pattern: parse_pattern(pattern)?,
    })
}

/// An error with the words that would have been understood, the nearest first.
fn unknown<'w>(
    what: String,
    word: &str,
    words: impl Iterator<Item = &'w str> + Clone,
    more: &'w str,
) -> UsageError {
    let all: Vec<&str> = words.clone().chain((!more.is_empty()).then_some(more)).collect();
    let all = all.join(", ");
    match nearest(word, words).first() {
        Some(near) => UsageError::new(what).with_hint(format!("did you mean `{near}`? ({all})")),
        None => UsageError::new(what).with_hint(format!("one of {all}")),
    }
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| parse_pattern(text)).collect()
}

fn parse_pattern(text: &str) -> Result<Pattern> {
    Pattern::parse(text).map_err(|error| UsageError::new(format!("`{text}` is no pattern: {error}")).into())
}

/// Opens a file of which every tensor of the state dict must be readable.
fn open(path: &Path, args: &DiffArgs) -> Result<Opened> {
    let mut opened = surgery::open_with(path, &args.open.options())?;
    opened.assemble()?;
    let source = match opened.problems.iter().find(|problem| problem.in_state_dict) {
        Some(problem) => pth::Error::Tensor {
            name: problem.name.clone(),
            fault: problem.fault.clone(),
        },
        None if opened.state_dict.is_empty() => pth::Error::NotACheckpoint {
            found: "it holds no tensors".to_owned(),
        },
        None => return Ok(opened),
    };
    let path = path.to_owned();
    Err(surgery::Error::Checkpoint { path, source }.into())
}

/// Says what both files hold beside their state dicts.
fn not_compared(a: &Opened, b: &Opened) {
    for (side, opened) in [("A", a), ("B", b)] {
        let others = &opened.other_tensors;
        if let Some(name) = others.names().next() {
            remark(&format!(
                "not compared: {} tensors of {side} beside the state dict (`{}`, ...)",
                others.len(),
                plain(name)
            ));
        }
    }
}
