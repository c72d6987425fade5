//! `graftwork scan FILE`: what the file would touch if PyTorch opened it. Nothing is run to find out.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use pth::{Backing, GlobalVerdict, Scan, Severity, Source, WeightsOnly};
use serde_json::{Value, json};

use crate::text::{json, plain, print};

/// Arguments of `scan`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScanArgs {
    /// A checkpoint, or what claims to be one.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the verb; returns the exit code: 1 where something out of the ordinary was found.
pub(crate) fn run(args: &ScanArgs) -> Result<u8> {
    let source = Source::open(&args.file, Backing::Map)?;
    let scan = if surgery::is_safetensors(&source) {
        of_safetensors(&args.file)
    } else {
        pth::scan(&source)
    };
    if args.json {
        json(&as_json(args, &scan))?;
    } else {
        print(&as_text(args, &scan))?;
    }
    Ok(u8::from(!is_clean(&scan)))
}

/// A format without code: what is left to find is damage.
fn of_safetensors(path: &std::path::Path) -> Scan {
    let refusal = surgery::open_safetensors(path)
        .err()
        .map(|error| error.to_string());
    Scan {
        format: "safetensors".to_owned(),
        is_complete: refusal.is_none(),
        globals: Vec::new(),
        findings: refusal
            .iter()
            .map(|error| pth::Finding {
                id: "not-a-checkpoint",
                severity: Severity::High,
                record: "file".to_owned(),
                detail: error.clone(),
            })
            .collect(),
        weights_only: match refusal {
            Some(reason) => WeightsOnly::Refuses { reason },
            None => WeightsOnly::Loads,
        },
    }
}

fn is_clean(scan: &Scan) -> bool {
    scan.is_complete && scan.worst().is_none_or(|worst| worst < Severity::Flag)
}

fn verdict(scan: &Scan) -> &'static str {
    match scan.worst() {
        Some(Severity::Critical) => "made to run code, or to be read in two ways",
        _ if !scan.is_complete => "not understood to its end",
        Some(Severity::High) if only_unknown(scan) => "calls classes that are on no list",
        Some(Severity::High) => "damaged, or it contradicts itself",
        Some(Severity::Flag) => "out of the ordinary",
        _ => "nothing found",
    }
}

/// Whether nothing weighs heavily but classes that few know: of numpy, of a training framework.
fn only_unknown(scan: &Scan) -> bool {
    let heavy = scan
        .findings
        .iter()
        .filter(|finding| finding.severity >= Severity::High);
    heavy.into_iter().all(|finding| finding.id == "global.unknown")
}

fn of_global(verdict: GlobalVerdict) -> &'static str {
    match verdict {
        GlobalVerdict::Allowed => "allowed",
        GlobalVerdict::Unknown => "unknown",
        GlobalVerdict::Unsafe => "unsafe",
    }
}

fn as_json(args: &ScanArgs, scan: &Scan) -> Value {
    let globals = scan.globals.iter().map(|global| {
        json!({
            "module": global.module,
            "name": global.name,
            "record": global.record,
            "offset": global.offset,
            "called": global.is_called,
            "verdict": of_global(global.verdict),
        })
    });
    let findings = scan.findings.iter().map(|finding| {
        json!({
            "id": finding.id,
            "severity": finding.severity.to_string(),
            "record": finding.record,
            "detail": finding.detail,
        })
    });
    let reason = match &scan.weights_only {
        WeightsOnly::Loads => None,
        WeightsOnly::Refuses { reason } => Some(reason),
    };
    json!({
        "file": args.file.display().to_string(),
        "format": scan.format,
        "verdict": verdict(scan),
        "complete": scan.is_complete,
        "weights_only": { "loads": reason.is_none(), "reason": reason },
        "globals": globals.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn as_text(args: &ScanArgs, scan: &Scan) -> String {
    let mut out = format!("{}: {}\n", args.file.display(), verdict(scan));
    let mut line = |text: String| writeln!(out, "{}", plain(&text)).expect("a String takes every write");
    line(format!("format: {}", scan.format));
    match &scan.weights_only {
        WeightsOnly::Loads => line("torch.load(weights_only=True): loads".to_owned()),
        WeightsOnly::Refuses { reason } => {
            line(format!("torch.load(weights_only=True): refuses: {reason}"));
        }
    }
    if !scan.is_complete {
        line("not all of it was understood, so that there may be more".to_owned());
    }
    for finding in &scan.findings {
        line(format!(
            "{:<8}  {}  {}: {}",
            finding.severity, finding.id, finding.record, finding.detail
        ));
    }
    // One line for each name, however often it is mentioned.
    let mut globals: indexmap::IndexMap<String, GlobalVerdict> = indexmap::IndexMap::new();
    for global in &scan.globals {
        globals.insert(format!("{}.{}", global.module, global.name), global.verdict);
    }
    let mut globals: Vec<(String, GlobalVerdict)> = globals.into_iter().collect();
    globals.sort_by_key(|(_, verdict)| std::cmp::Reverse(*verdict));
    for (name, verdict) in globals {
        line(format!("{:<8}  {name}", of_global(verdict)));
    }
    let is_wanted = scan.worst() < Some(Severity::Critical) && scan.is_complete;
    if is_wanted && scan.weights_only != WeightsOnly::Loads && scan.format.starts_with("pytorch") {
        let file = args.file.display();
        line(format!(
            "hint: graftwork convert {file} clean.pth --all  writes the same as plain values, which it loads"
        ));
    }
    out
}
