//! `graftwork verify FILE`: whether a file is whole. Reads every byte.

use std::path::PathBuf;

use anyhow::Result;
use pth::{Backing, Source, Verification};
use serde_json::json;

use crate::text::{grouped, json, plain, print};

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A checkpoint or safetensors file, whatever its name.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Read the file instead of mapping it into memory: for network file systems
    #[arg(long)]
    no_mmap: bool,
}

/// Runs the verb; returns the exit code: 1 where the file is not what it says.
pub(crate) fn run(args: &VerifyArgs) -> Result<u8> {
    let backing = if args.no_mmap { Backing::Read } else { Backing::Map };
    let source = Source::open(&args.file, backing)?;
    let found = if surgery::is_safetensors(&source) {
        of_safetensors(args)
    } else {
        pth::verify(&source)
    };
    let is_whole = found.faults.is_empty();
    if args.json {
        let faults = found
            .faults
            .iter()
            .map(|fault| json!({ "id": fault.id, "record": fault.record, "detail": fault.detail }));
        json(&json!({
            "file": args.file.display().to_string(),
            "format": found.format,
            "ok": is_whole,
            "records": found.n_records,
            "without_crc": found.n_without_crc,
            "bytes": found.n_bytes,
            "faults": faults.collect::<Vec<_>>(),
        }))?;
        return Ok(u8::from(!is_whole));
    }
    let verdict = match (is_whole, found.n_without_crc) {
        (false, _) => "damaged",
        (true, 0) => "whole",
        // Without a CRC, wrong bytes of the right number look like right ones.
        (true, _) => "sizes are right; not every record has a CRC",
    };
    let mut out = format!("{}: {verdict}\n", args.file.display());
    out.push_str(&format!(
        "{}: {} records, {} without a CRC, {} bytes\n",
        found.format,
        grouped(found.n_records),
        grouped(found.n_without_crc),
        grouped(usize::try_from(found.n_bytes)?)
    ));
    for fault in &found.faults {
        out.push_str(&plain(&format!("{}: {}", fault.record, fault.detail)));
        out.push('\n');
    }
    print(&out)?;
    Ok(u8::from(!is_whole))
}

/// The format has no CRC; its rules leave no byte unaccounted for.
fn of_safetensors(args: &VerifyArgs) -> Verification {
    let mut found = Verification {
        format: "safetensors".to_owned(),
        n_records: 0,
        n_without_crc: 0,
        n_bytes: 0,
        faults: Vec::new(),
    };
    match surgery::open_safetensors(&args.file) {
        Ok((tensors, _)) => {
            found.n_records = tensors.len();
            found.n_without_crc = tensors.len();
            found.n_bytes = tensors.iter().map(|(_, tensor)| tensor.nbytes() as u64).sum();
        }
        Err(error) => found.faults.push(pth::Finding {
            id: "file",
            severity: pth::Severity::High,
            record: "file".to_owned(),
            detail: error.to_string(),
        }),
    }
    found
}
