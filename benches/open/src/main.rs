//! `open-bench SIDE TASK FILE`: opens or reads one checkpoint with one reader and prints one line of JSON.
//!
//! One process per measurement, so that no reader finds another's allocator, caches or peak of memory.
//! Linux only: the memory's marks come from `/proc`.

mod heap;
mod sides;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};

use crate::sides::{Side, Tally, Task};

#[global_allocator]
static ALLOCATOR: heap::CountingAllocator = heap::CountingAllocator;

/// Opens or reads one checkpoint and says what it cost.
#[derive(Parser)]
struct Args {
    side: Side,
    task: Task,
    file: PathBuf,
    /// Count the heap too, which makes the times worthless
    #[arg(long)]
    memory: bool,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            // One line, which the driver puts into its table.
            eprintln!("{}", format!("{error:#}").replace('\n', " "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Does the task once; its cost and what was found as one line of JSON.
fn measure(args: &Args) -> anyhow::Result<String> {
    let anon_before = memory_mark("RssAnon:")?;
    let mut tally = Tally::default();
    if args.memory {
        heap::start_counting();
    }
    let (cpu_before, start) = (cpu_seconds()?, Instant::now());
    let opened = sides::run(args.side, args.task, &args.file, &mut tally)?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu_before);
    let heap = heap::peak_bytes().map_or("null".to_owned(), |bytes| bytes.to_string());
    let rss = memory_mark("VmHWM:")?;
    drop(opened);
    let Tally {
        n_tensors,
        looked_at,
        xor,
    } = tally;
    Ok(format!(
        r#"{{"wall_s": {seconds:.6}, "cpu_s": {cpu:.6}, "heap_bytes": {heap}, "rss_bytes": {rss}, "anon_before_bytes": {anon_before}, "n_tensors": {n_tensors}, "looked_at": {looked_at}, "xor": {xor}}}"#
    ))
}

/// User and system time of this process so far.
fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Bytes by one mark of `/proc/self/status`; `ru_maxrss` would count the parent's pages, which outlive `exec` there.
fn memory_mark(mark: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(mark))
        .context("no such mark in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
