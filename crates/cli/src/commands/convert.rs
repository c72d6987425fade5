//! `graftwork convert IN OUT`: any readable checkpoint to safetensors or to a `.pth` that loads with `weights_only`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use pth::{Checkpoint, DType, Existing, Profile, SaveOptions};
use surgery::{Opened, Pattern};

use crate::args::OpenArgs;
use crate::text::{grouped, plain, print, remark};
use crate::usage::UsageError;

/// Arguments of `convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// A checkpoint or safetensors file, whatever its name.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write; its extension says the format: `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt`.
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
    /// Convert floating tensors to this type, on the way to `.safetensors`.
    #[arg(long, value_enum)]
    dtype: Option<FloatType>,
    /// Keep everything in the checkpoint (epoch, optimizer, ...) as plain values, in a `.pth` that `weights_only` loads.
    #[arg(long, conflicts_with_all = ["strip_prefix", "rename", "freeze", "dtype", "partial", "plain"])]
    all: bool,
    /// Write the `.pth` for libtorch in C++: plain dicts and tensors.
    #[arg(long)]
    plain: bool,
    /// Write what can be read, and leave out what cannot.
    #[arg(long)]
    partial: bool,
    /// Replace OUT if it is there.
    #[arg(long)]
    force: bool,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FloatType {
    #[value(name = "float32")]
    Float32,
    #[value(name = "float16")]
    Float16,
    #[value(name = "bfloat16")]
    BFloat16,
}

impl FloatType {
    fn dtype(self) -> DType {
        match self {
            FloatType::Float32 => DType::Float32,
            FloatType::Float16 => DType::Float16,
            FloatType::BFloat16 => DType::BFloat16,
        }
    }
}

/// What is written, by OUT's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Safetensors,
    Pth,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &ConvertArgs) -> Result<u8> {
    let target = target(args)?;
    if args.all {
        return keep_all(args);
    }
    let mut opened = surgery::open_with(&args.input, &args.open.options())?;
    check_complete(&opened, args)?;
    left_out(&opened);

    let tensors = &mut opened.state_dict;
    for prefix in &args.strip_prefix {
        surgery::strip_prefix(tensors, prefix)?;
    }
    for rule in &args.rename {
        let (old, new) = rule
            .split_once('=')
            .ok_or_else(|| UsageError::new(format!("`{rule}` is not of the form OLD=NEW")))?;
        surgery::rename_prefix(tensors, old, new)?;
    }
    for pattern in &args.freeze {
        surgery::freeze(tensors, &Pattern::new(pattern))?;
    }

    let n = grouped(opened.state_dict.len());
    let path = args.output.display();
    if args.dry_run {
        let n_bytes: usize = opened.state_dict.iter().map(|(_, tensor)| tensor.nbytes()).sum();
        print(&format!(
            "would write {path}: {n} tensors, {} bytes before conversion\n",
            grouped(n_bytes)
        ))?;
        return Ok(0);
    }
    let n_bytes = match target {
        Target::Safetensors => write_safetensors(&opened, args)?,
        Target::Pth => pth::save_state_dict(&args.output, &opened.state_dict, &save_options(args))?,
    };
    let n_bytes = grouped(usize::try_from(n_bytes)?);
    print(&format!("wrote {path}: {n} tensors, {n_bytes} bytes\n"))?;
    Ok(0)
}

fn write_safetensors(opened: &Opened, args: &ConvertArgs) -> Result<u64> {
    let metadata = metadata(opened, args)?;
    let dtype = args.dtype.map(FloatType::dtype);
    let tensors = &opened.state_dict;
    let report = surgery::save_safetensors_as(&args.output, tensors, &metadata, existing(args), dtype)?;
    for group in &report.shared {
        let names: Vec<String> = group.iter().map(|name| plain(name)).collect();
        remark(&format!(
            "note: these shared bytes and are now separate: {}",
            names.join(", ")
        ));
    }
    Ok(report.n_bytes)
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
    if args.dry_run {
        print(&format!(
            "would write {path} with {} values changed\n",
            changes.len()
        ))?;
        return Ok(0);
    }
    let n_bytes = pth::save(&args.output, &value, &save_options(args))?;
    let n_bytes = grouped(usize::try_from(n_bytes)?);
    print(&format!("wrote {path}: everything, {n_bytes} bytes\n"))?;
    Ok(0)
}

fn save_options(args: &ConvertArgs) -> SaveOptions {
    SaveOptions {
        profile: if args.plain {
            Profile::LibTorch
        } else {
            Profile::Torch
        },
        existing: existing(args),
    }
}

fn existing(args: &ConvertArgs) -> Existing {
    if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    }
}

fn target(args: &ConvertArgs) -> Result<Target, UsageError> {
    let path: &Path = &args.output;
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let target = match extension {
        "safetensors" => Target::Safetensors,
        "pth" | "pt" | "bin" | "ckpt" => Target::Pth,
        _ => {
            return Err(UsageError::new(format!(
                "cannot write `{}`: the formats that can be written are `.safetensors` and `.pth` (`.pt`, `.bin`, `.ckpt`)",
                path.display()
            )));
        }
    };
    match target {
        Target::Safetensors if args.all => Err(UsageError::new(
            "safetensors holds tensors only: --all writes a `.pth`",
        )),
        Target::Safetensors if args.plain => Err(UsageError::new("--plain is a kind of `.pth`")),
        Target::Pth if args.dtype.is_some() => Err(UsageError::new(
            "--dtype converts on the way to `.safetensors` only",
        )),
        target => Ok(target),
    }
}

/// Without `--partial`, a state dict that is not whole is not converted.
fn check_complete(opened: &Opened, args: &ConvertArgs) -> Result<()> {
    for problem in &opened.problems {
        remark(&format!(
            "problem: `{}`: {}",
            plain(&problem.name),
            plain(&problem.fault.to_string())
        ));
    }
    match opened.problems.iter().find(|problem| problem.in_state_dict) {
        Some(problem) if !args.partial => {
            let error = pth::Error::Tensor {
                name: problem.name.clone(),
                fault: problem.fault.clone(),
            };
            Err(anyhow::Error::new(error)
                .context("the state dict is not whole (--partial leaves out what cannot be read)"))
        }
        _ if opened.state_dict.is_empty() => {
            let error = pth::Error::NotACheckpoint {
                found: format!("`{}` holds no tensors", args.input.display()),
            };
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// Says what a wrapped checkpoint holds that the result does not.
fn left_out(opened: &Opened) {
    for other in &opened.others {
        remark(&format!(
            "left out: {} = {}",
            plain(&other.name),
            plain(&other.value)
        ));
    }
    if !opened.other_tensors.is_empty() {
        let names: Vec<String> = opened.other_tensors.names().take(3).map(plain).collect();
        let more = if opened.other_tensors.len() > names.len() {
            ", ..."
        } else {
            ""
        };
        remark(&format!(
            "left out: {} tensors beside the state dict ({}{more})",
            opened.other_tensors.len(),
            names.join(", ")
        ));
    }
}

/// The source's metadata; `frozen` afresh where names or marks have changed.
fn metadata(opened: &Opened, args: &ConvertArgs) -> Result<BTreeMap<String, String>> {
    let mut metadata = opened.metadata.clone();
    let is_changed = !args.freeze.is_empty() || !args.rename.is_empty() || !args.strip_prefix.is_empty();
    if is_changed {
        metadata.remove("frozen");
    }
    // Where everything is frozen no mark of a trainable tensor is left to tell so.
    let all_frozen = opened
        .state_dict
        .iter()
        .all(|(_, tensor)| !tensor.requires_grad());
    if !args.freeze.is_empty() && all_frozen {
        metadata.insert("frozen".to_owned(), serde_json::to_string(&args.freeze)?);
    }
    Ok(metadata)
}
