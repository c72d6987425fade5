//! `graftwork doctor`: what is found, where, which version, what it can run on; `--install` gets ONNX Runtime.

use std::path::PathBuf;

use clap::Args;
use runtime::engine::{Candidate, Origin, candidates, cuda_devices, install, providers, short_provider};

use crate::errors::code;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Get ONNX Runtime with pip from your configured index, into your data folder
    #[arg(long)]
    install: bool,
    /// The ONNX Runtime library to look at first, or the folder it is in (also: ORT_DYLIB_PATH)
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    if args.install {
        text::remark("getting ONNX Runtime with pip ...");
        let report = install()?;
        let mib = report.n_bytes as f64 / (1 << 20) as f64;
        text::remark(&format!(
            "installed ONNX Runtime {} ({mib:.1} MiB) as `{}`",
            report.version,
            report.path.display()
        ));
    }
    let candidates = candidates(args.ort_lib.as_deref());
    // What was asked for is never replaced by something else.
    let asked_in_vain = candidates
        .first()
        .is_some_and(|first| first.origin == Origin::Requested && first.version.is_err());
    let used = candidates
        .iter()
        .position(|candidate| candidate.version.is_ok())
        .filter(|_| !asked_in_vain);
    let cuda = used.map(|idx| cuda_devices(&candidates[idx].path));
    if args.json {
        let describe = |candidate: &Candidate| {
            serde_json::json!({
                "origin": candidate.origin.to_string(),
                "path": candidate.path.to_string_lossy(),
                "providers": candidate.version.as_ref().ok().and_then(|_| providers(&candidate.path).ok()),
                "version": candidate.version.as_ref().ok().map(|minor| format!("1.{minor}")),
                "reason": candidate.version.as_ref().err(),
            })
        };
        text::json(&serde_json::json!({
            "onnxruntime": {
                "used": used.map(|idx| describe(&candidates[idx])),
                "candidates": candidates.iter().map(describe).collect::<Vec<_>>(),
            },
            "cuda": {
                "devices": cuda.as_ref().and_then(|cuda| cuda.as_ref().ok()),
                "reason": cuda.as_ref().and_then(|cuda| cuda.as_ref().err()).map(ToString::to_string),
            },
            "graftwork": env!("CARGO_PKG_VERSION"),
        }))?;
    } else {
        let mut text = format!("graftwork {}\nONNX Runtime\n", env!("CARGO_PKG_VERSION"));
        for (idx, candidate) in candidates.iter().enumerate() {
            let mark = if Some(idx) == used { "*" } else { " " };
            let what = match &candidate.version {
                Ok(minor) => format!(
                    "1.{minor}  {}  ({})",
                    candidate.path.display(),
                    providers(&candidate.path).map_or_else(
                        |reason| reason,
                        |names| names
                            .iter()
                            .map(|name| short_provider(name))
                            .collect::<Vec<_>>()
                            .join(", ")
                    )
                ),
                Err(reason) => format!("-  {reason}"),
            };
            text.push_str(&format!("{mark} {:<28} {what}\n", candidate.origin.to_string()));
        }
        match &cuda {
            Some(Ok(names)) => {
                text.push_str("CUDA\n");
                for (idx, name) in names.iter().enumerate() {
                    text.push_str(&format!("  {:<28} {name}\n", format!("cuda:{idx}")));
                }
            }
            Some(Err(missing)) => text.push_str(&format!("CUDA\n  {:<28} {missing}\n", "-")),
            None => {}
        }
        text::print(&text)?;
    }
    match used {
        Some(_) => Ok(0),
        None => {
            text::remark(match asked_in_vain {
                true => "error: what --ort-lib or ORT_DYLIB_PATH names cannot be used as ONNX Runtime",
                false => "error: ONNX Runtime was not found\nhint: graftwork doctor --install",
            });
            Ok(code::NO_RUNTIME)
        }
    }
}
