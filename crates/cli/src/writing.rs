//! What verbs that write a state dict share: the plan that is shown, the writing under watch, the report.

use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use pth::{DType, Existing, FileError, Profile};
use surgery::{Cost, Layout, LazyStateDict, Opened, OutputFormat, StepReport, WriteOptions};

use crate::progress::Bytes;
use crate::text::{self, grouped, plain, print, remark};
use crate::usage::UsageError;

/// How a result is written.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct WriteArgs {
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the plan, from headers alone, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Several files of at most this size each, with an index: 5GB, 500MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_shard_size: Option<u64>,
    /// Threads [default: all cores, at most 4]
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) threads: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    surgery::parse_size(text).ok_or_else(|| "not a size such as 5GB or 500MiB".to_owned())
}

/// The types that `--dtype` takes, torch's names and the short ones.
pub(crate) fn float_type(text: &str) -> Result<DType, String> {
    let dtype = match text {
        "float32" | "f32" => DType::Float32,
        "float16" | "f16" | "half" => DType::Float16,
        "bfloat16" | "bf16" => DType::BFloat16,
        "float64" | "f64" => DType::Float64,
        _ => return Err("one of float32, float16, bfloat16, float64".to_owned()),
    };
    Ok(dtype)
}

/// The format of OUT, by its extension.
pub(crate) fn format_of(path: &Path) -> Result<OutputFormat, UsageError> {
    OutputFormat::of(path).ok_or_else(|| {
        UsageError::new(format!(
            "cannot write `{}`: the formats that can be written are `.safetensors` and `.pth` (`.pt`, `.bin`, `.ckpt`)",
            path.display()
        ))
    })
}

/// What `--force` means.
pub(crate) fn existing(force: bool) -> Existing {
    match force {
        true => Existing::Replace,
        false => Existing::Refuse,
    }
}

/// Refuses, before the work begins, a file that is there and may not be replaced, or whose folder is not there.
pub(crate) fn check_writable(path: &Path, existing: Existing) -> Result<(), FileError> {
    let refuse = |kind: ErrorKind| Err(FileError::at("create", path)(kind.into()));
    if existing == Existing::Refuse && path.exists() {
        return refuse(ErrorKind::AlreadyExists);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.is_none_or(Path::is_dir) {
        true => Ok(()),
        false => refuse(ErrorKind::NotFound),
    }
}

/// What is to be written, and how it came about.
pub(crate) struct Job<'a> {
    pub(crate) tensors: &'a LazyStateDict,
    pub(crate) output: &'a Path,
    pub(crate) format: OutputFormat,
    pub(crate) profile: Profile,
    pub(crate) inputs: &'a [PathBuf],
    pub(crate) steps: &'a [StepReport],
    pub(crate) args: &'a WriteArgs,
}

impl Job<'_> {
    /// Writes, or with `--dry-run` shows what would be.
    pub(crate) fn run(&self) -> Result<u8> {
        let written = AtomicU64::new(0);
        let bar = Bytes::new("writing");
        let options = WriteOptions {
            max_shard_bytes: self.args.max_shard_size,
            profile: self.profile,
            existing: existing(self.args.force),
            threads: self.args.threads,
            progress: &|n| bar.advance(written.fetch_add(n, Ordering::Relaxed) + n),
            cancelled: bar.cancelled(),
            ..WriteOptions::new(self.format)
        };
        let layout = ManuallyDrop::new(Layout::plan(self.output, self.tensors, &options)?);
        let cost = layout.cost(&options);
        if self.format == OutputFormat::Pth {
            self.remark_on_what_is_lost();
        }
        if self.args.dry_run {
            return self.show(&layout, &cost);
        }
        for step in self.steps {
            step.effect.notes.iter().for_each(|note| remark(note));
        }
        bar.begin(cost.write_bytes);
        let report = layout.write(&options)?;
        bar.end();
        for group in &report.separated {
            let names: Vec<String> = group.iter().map(|name| plain(name)).collect();
            remark(&format!(
                "note: these overlapped in memory and are now separate: {}",
                names.join(", ")
            ));
        }
        if self.args.json {
            text::json(&serde_json::json!({
                "files": report.files,
                "bytes": report.n_bytes,
                "tensors": self.tensors.len(),
                "tied": report.tied.iter().map(|(name, of)| serde_json::json!({"name": name, "of": of})).collect::<Vec<_>>(),
                "steps": self.steps_json(),
            }))?;
            return Ok(0);
        }
        for (name, of) in &report.tied {
            remark(&format!(
                "tied: `{}` is `{}`, written once",
                plain(name),
                plain(of)
            ));
        }
        let n = grouped(self.tensors.len());
        let n_bytes = grouped(usize::try_from(report.n_bytes)?);
        let files = match cost.n_files {
            1 => String::new(),
            n => format!(" in {n} files"),
        };
        print(&format!(
            "wrote {}: {n} tensors, {n_bytes} bytes{files}\n",
            self.output.display()
        ))?;
        Ok(0)
    }

    /// A `.pth` is a plain state dict.
    fn remark_on_what_is_lost(&self) {
        let mut keys: Vec<&str> = self.tensors.metadata.keys().map(String::as_str).collect();
        keys.retain(|key| *key != "format");
        if !self.tensors.groups.is_empty() {
            keys.push("groups");
        }
        if !keys.is_empty() {
            let keys = plain(&keys.join(", "));
            remark(&format!(
                "note: a `.pth` has no place for metadata, so these are left out: {keys}"
            ));
        }
    }

    fn steps_json(&self) -> Vec<serde_json::Value> {
        let step = |step: &StepReport| {
            serde_json::json!({
                "step": step.step,
                "effect": step.effect.summary,
                "lossy": step.effect.is_lossy,
                "notes": step.effect.notes,
            })
        };
        self.steps.iter().map(step).collect()
    }

    /// The checked plan.
    fn show(&self, layout: &Layout<'_>, cost: &Cost) -> Result<u8> {
        let ties = self.tensors.ties();
        if self.args.json {
            text::json(&serde_json::json!({
                "inputs": self.inputs,
                "output": self.output,
                "files": layout.paths().collect::<Vec<_>>(),
                "tensors": self.tensors.len(),
                "read_bytes": cost.read_bytes,
                "write_bytes": cost.write_bytes,
                "peak_bytes": cost.peak_bytes,
                "steps": self.steps_json(),
                "tied": ties,
            }))?;
            return Ok(0);
        }
        let shards = if cost.n_files > 1 {
            format!(" in {} shards", cost.n_files)
        } else {
            String::new()
        };
        let inputs = match self.inputs {
            [one] => one.display().to_string(),
            many => format!("{} inputs", many.len()),
        };
        let mut out = format!(
            "plan  {inputs} -> {}{shards}  read {}  write {}  peak memory {}\n",
            self.output.display(),
            bytes(cost.read_bytes),
            bytes(cost.write_bytes),
            bytes(cost.peak_bytes),
        );
        let width = self
            .steps
            .iter()
            .map(|step| step.step.chars().count())
            .max()
            .unwrap_or(0)
            .min(60);
        for (number, step) in self.steps.iter().enumerate() {
            let lossy = if step.effect.is_lossy { "  (lossy)" } else { "" };
            out.push_str(&format!(
                "{:>3}  {:<width$}  {}{lossy}\n",
                number + 1,
                plain(&step.step),
                plain(&step.effect.summary)
            ));
            for note in &step.effect.notes {
                out.push_str(&format!("       {}\n", plain(note)));
            }
        }
        for names in ties {
            let names: Vec<String> = names.into_iter().map(plain).collect();
            out.push_str(&format!("tied: {} (one tensor)\n", names.join(" = ")));
        }
        let n = grouped(self.tensors.len());
        let n_bytes = grouped(usize::try_from(cost.write_bytes)?);
        out.push_str(&format!(
            "would write {}: {n} tensors, {n_bytes} bytes\n",
            self.output.display()
        ));
        print(&out)?;
        Ok(0)
    }
}

/// `1.34 GB`
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match UNITS.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", n as f64 / unit),
        None => format!("{n} B"),
    }
}

/// Without `--partial`, a state dict that is not whole is not written anew.
pub(crate) fn check_complete(opened: &Opened, input: &Path, is_partial: bool) -> Result<()> {
    for problem in &opened.problems {
        remark(&format!(
            "problem: `{}`: {}",
            plain(&problem.name),
            plain(&problem.fault.to_string())
        ));
    }
    match opened.problems.iter().find(|problem| problem.in_state_dict) {
        Some(problem) if !is_partial => {
            let error = pth::Error::Tensor {
                name: problem.name.clone(),
                fault: problem.fault.clone(),
            };
            Err(anyhow::Error::new(error)
                .context("the state dict is not whole (--partial leaves out what cannot be read)"))
        }
        _ if opened.state_dict.is_empty() && opened.pieces.is_empty() => {
            let error = pth::Error::NotACheckpoint {
                found: format!("`{}` holds no tensors", input.display()),
            };
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// Says what a wrapped checkpoint holds that the result does not.
pub(crate) fn left_out(opened: &Opened) {
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
