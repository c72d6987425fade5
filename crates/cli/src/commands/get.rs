//! `graftwork get URL`: weights from a URL, checked, resumable.

use std::path::PathBuf;
use std::sync::OnceLock;

use clap::Args;
use pth::Existing;
use runtime::fetch::{Address, Sha256Prefix, Target, default_folder, fetch};
use runtime::{Monitor, Progress};
use serde_json::json;

use crate::progress::Bytes;
use crate::text::{grouped, json, print, remark};

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// http:// or https://
    url: Address,
    /// The file to write, or the folder to write it into [default: a folder of the URL's in the cache]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Its SHA-256, or the first eight or more digits of it [default: those in a name like resnet18-f37072fd.pth]
    #[arg(long, value_name = "H")]
    sha256: Option<Sha256Prefix>,
    /// The digits in the file's name are no digest of it
    #[arg(long)]
    ignore_name: bool,
    /// Folder of downloaded files [default: graftwork/weights in your cache folder]
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    cache: Option<PathBuf>,
    /// Replace the file that is there
    #[arg(long, requires = "output")]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &GetArgs) -> anyhow::Result<u8> {
    let in_name = args.url.digest_in_name().filter(|_| !args.ignore_name);
    let expected = args.sha256.as_ref().or(in_name.as_ref());
    let default = match (&args.output, &args.cache) {
        (None, None) => default_folder()?,
        _ => PathBuf::new(),
    };
    let target = match &args.output {
        Some(path) => Target::Path(
            path,
            if args.force {
                Existing::Replace
            } else {
                Existing::Refuse
            },
        ),
        None => Target::Cache(args.cache.as_ref().unwrap_or(&default)),
    };
    let bytes = Bytes::new("download");
    let begun = OnceLock::new();
    let report = |progress: Progress| {
        begun.get_or_init(|| bytes.begin(progress.total as u64));
        bytes.advance(progress.done as u64);
    };
    let fetched = fetch(
        &args.url,
        target,
        expected,
        Monitor {
            cancel: bytes.cancelled(),
            report: &report,
        },
    );
    bytes.end();
    let fetched = fetched?;
    let checked = match (&args.sha256, &in_name) {
        (Some(_), _) => Some("given"),
        (None, Some(_)) => Some("name"),
        (None, None) => None,
    };
    if args.json {
        json(&json!({
            "url": args.url.to_string(),
            "path": fetched.path.to_string_lossy(),
            "bytes": fetched.n_bytes,
            "sha256": fetched.sha256,
            "checked_by": checked,
            "was_there": fetched.was_there,
            "resumed_from": fetched.resumed_from,
        }))?;
        return Ok(0);
    }
    let how = match (fetched.was_there, fetched.resumed_from) {
        (true, _) => ", was there".to_owned(),
        (false, 0) => String::new(),
        (false, from) => format!(", resumed after {}", grouped(usize::try_from(from)?)),
    };
    let digest = match checked {
        Some("given") => ", as given",
        Some(_) => ", as its name says",
        None => ", which nothing was compared with",
    };
    remark(&format!(
        "{} bytes{how}; SHA-256 {}{digest}",
        grouped(usize::try_from(fetched.n_bytes)?),
        fetched.sha256
    ));
    print(&format!("{}\n", fetched.path.display()))?;
    Ok(0)
}
