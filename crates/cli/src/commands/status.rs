//! `graftwork status` and `graftwork finalize`: jobs whose shards ran in other processes.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use runtime::features::{Job, JobStatus, to_array_expression};

use crate::args::CacheArg;
use crate::errors::code;
use crate::text;
use crate::usage::UsageError;

/// Which job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// The job's name, as extract says it [default: the only one]
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
}

/// How missing shards are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MissingFormat {
    /// A number per line
    Lines,
    /// As sbatch --array takes them: 3,17-20
    Slurm,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Print only the shards that are not done; exit code 1 where there are some
    #[arg(long)]
    missing: bool,
    /// How --missing writes them
    #[arg(long, value_enum, default_value_t = MissingFormat::Lines, requires = "missing")]
    format: MissingFormat,
    /// Print JSON
    #[arg(long, conflicts_with = "missing")]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FinalizeArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<u8> {
    let cache = args.job.cache.existing()?;
    if args.missing {
        let status = args.job.open(&cache)?.status()?;
        let missing = match args.format {
            MissingFormat::Slurm => to_array_expression(&status.missing),
            MissingFormat::Lines => {
                let lines: Vec<String> = status.missing.iter().map(usize::to_string).collect();
                lines.join("\n")
            }
        };
        if status.missing.is_empty() {
            return Ok(0);
        }
        text::print(&format!("{missing}\n"))?;
        return Ok(code::NO);
    }
    let jobs = match &args.job.job {
        Some(_) => vec![args.job.open(&cache)?],
        None => Job::list(&cache)?
            .iter()
            .map(|folder| Job::open(folder))
            .collect::<Result<Vec<Job>, runtime::Error>>()?,
    };
    let states = jobs
        .iter()
        .map(Job::status)
        .collect::<Result<Vec<JobStatus>, runtime::Error>>()?;
    if args.json {
        text::json(&states)?;
        return Ok(0);
    }
    if states.is_empty() {
        text::remark(&format!("no job in `{}`", cache.display()));
    }
    for state in &states {
        let mut line = format!(
            "{}  {}/{} shards  {}/{} samples",
            state.job,
            state.done,
            state.shards,
            text::grouped(state.n_done),
            text::grouped(state.n)
        );
        if state.n_left_out > 0 {
            line.push_str(&format!(", {} left out", text::grouped(state.n_left_out)));
        }
        if !state.missing.is_empty() {
            line.push_str(&format!("  missing {}", to_array_expression(&state.missing)));
        }
        if !state.absent_entries.is_empty() {
            line.push_str(&format!(
                "; not in the cache any more: {}",
                state.absent_entries.join(", ")
            ));
        }
        line.push_str(&format!("  {}\n", text::plain(&state.source.to_string_lossy())));
        text::print(&line)?;
    }
    Ok(0)
}

pub(crate) fn finalize(args: &FinalizeArgs) -> anyhow::Result<u8> {
    let cache = args.job.cache.existing()?;
    let done = args.job.open(&cache)?.finalize(&cache)?;
    text::remark(&format!(
        "{} samples, {} left out; labels in `{}`",
        text::grouped(done.n),
        text::grouped(done.n_left_out),
        done.manifest.display()
    ));
    if args.json {
        text::json(&done)?;
    } else {
        for entry in &done.entries {
            text::print(&format!("{}\n", entry.display()))?;
        }
    }
    Ok(0)
}

impl JobArgs {
    fn open(&self, cache: &Path) -> anyhow::Result<Job> {
        let folders = Job::list(cache)?;
        let name = |folder: &PathBuf| {
            folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let names = || {
            let names: Vec<String> = folders
                .iter()
                .map(|folder| format!("`{}`", name(folder)))
                .collect();
            names.join(", ")
        };
        let folder = match (&self.job, folders.as_slice()) {
            (Some(wanted), _) => folders
                .iter()
                .find(|folder| name(folder) == *wanted)
                .ok_or_else(|| {
                    let text = format!("there is no job `{wanted}` in `{}`", cache.display());
                    UsageError::new(text).with_hint(format!("there are {}", names()))
                })?,
            (None, [only]) => only,
            (None, []) => {
                let text = format!("there is no job in `{}`", cache.display());
                return Err(UsageError::new(text)
                    .with_hint("graftwork extract --shard I/N begins one")
                    .into());
            }
            (None, _) => {
                let text = format!("there are {} jobs in `{}`", folders.len(), cache.display());
                return Err(UsageError::new(text)
                    .with_hint(format!("--job takes one of {}", names()))
                    .into());
            }
        };
        Ok(Job::open(folder)?)
    }
}
