//! Errors to text, hints and exit codes: the only place that knows the contract's numbers.

use std::io;

use crate::text::plain;
use crate::usage::UsageError;

/// Exit codes of the contract in DESIGN and README.
pub(crate) mod code {
    pub(crate) const NO: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const BAD_INPUT: u8 = 3;
    pub(crate) const UNSAFE: u8 = 4;
    pub(crate) const NO_RUNTIME: u8 = 5;
    pub(crate) const RUN_AGAIN: u8 = 75;
}

/// Prints `error: what`, its causes, and a hint where there is one; returns the exit code.
#[expect(clippy::print_stderr, reason = "this is where errors are said")]
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    let (code, hint) = judge(error);
    let lines: Vec<String> = error.to_string().split('\n').map(text_line).collect();
    eprintln!("error: {}", lines.join("\n"));
    if let Some(excerpt) = error.chain().find_map(excerpt) {
        eprintln!("{excerpt}");
    }
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {}", plain(&cause.to_string()));
    }
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    code
}

/// A line of an error; torch's own report of a state dict has several, and tabs in front of them.
fn text_line(line: &str) -> String {
    let tabs = line.len() - line.trim_start_matches('\t').len();
    format!("{}{}", &line[..tabs], plain(&line[tabs..]))
}

/// Where in a plan it stands.
fn excerpt(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    match error.downcast_ref() {
        Some(surgery::Error::Plan(error)) => {
            let lines: Vec<String> = error.excerpt().split('\n').map(plain).collect();
            Some(lines.join("\n"))
        }
        _ => match error.downcast_ref() {
            Some(runtime::Error::Template(error)) => {
                let excerpt = error.excerpt();
                let lines: Vec<String> = excerpt.split('\n').map(plain).collect();
                Some(lines.join("\n"))
            }
            _ => None,
        },
    }
}

/// The exit code, and what to do about it.
fn judge(error: &anyhow::Error) -> (u8, Option<String>) {
    error
        .chain()
        .find_map(judge_one)
        .unwrap_or((code::BAD_INPUT, None))
}

fn judge_one(error: &(dyn std::error::Error + 'static)) -> Option<(u8, Option<String>)> {
    // The libraries' enums are transparent: what they stand for is not in the chain itself.
    if let Some(runtime::Error::Surgery(inner)) = error.downcast_ref() {
        return judge_one(inner.as_ref());
    }
    if let Some(runtime::Error::File(file)) = error.downcast_ref() {
        return Some(judge_file(file));
    }
    if let Some(surgery::Error::File(file)) = error.downcast_ref() {
        return Some(judge_file(file));
    }
    if let Some(pth::Error::File(file)) = error.downcast_ref() {
        return Some(judge_file(file));
    }
    if let Some(usage) = error.downcast_ref::<UsageError>() {
        return Some((code::USAGE, usage.hint.clone()));
    }
    if let Some(pth::Error::Unsafe { .. }) = error.downcast_ref() {
        return Some((code::UNSAFE, None));
    }
    if let Some(surgery::Error::Plan(error)) = error.downcast_ref() {
        let judged = error.cause.as_ref().and_then(|cause| judge_one(cause.as_ref()));
        let (code, hint) = judged.unwrap_or((code::USAGE, None));
        return Some((code, error.hint.clone().or(hint)));
    }
    match error.downcast_ref() {
        Some(surgery::Error::NotANumber { input, .. }) => {
            // Without an input it is what the plan expects, which nothing allows.
            let hint = "--allow-nan (in a plan `allow_nan=true`) merges it all the same";
            return Some((code::BAD_INPUT, input.as_ref().map(|_| hint.to_owned())));
        }
        Some(surgery::Error::Interrupted) => {
            return Some((code::RUN_AGAIN, Some("nothing was written".to_owned())));
        }
        Some(
            surgery::Error::Load(_)
            | surgery::Error::Unexpected(_)
            | surgery::Error::Disagree { .. }
            | surgery::Error::NotOneArray { .. }
            | surgery::Error::Cast { .. },
        ) => return Some((code::BAD_INPUT, None)),
        Some(surgery::Error::Merge(_)) => return Some((code::USAGE, None)),
        Some(surgery::Error::MissingInInput { .. }) => {
            let hint = "--missing skip leaves it out, --missing first takes it, --missing available averages what there is (in a plan `missing=skip`)";
            return Some((code::BAD_INPUT, Some(hint.to_owned())));
        }
        _ => {}
    }
    if let Some(surgery::Error::NoMatch { .. } | surgery::Error::Collision { .. }) = error.downcast_ref() {
        return Some((code::USAGE, None));
    }
    if let Some(error) = error.downcast_ref::<runtime::Error>() {
        return judge_runtime(error);
    }
    if let Some(error) = error.downcast_ref::<pth::FileError>() {
        return Some(judge_file(error));
    }
    error.downcast_ref::<io::Error>().map(judge_io)
}

fn judge_file(error: &pth::FileError) -> (u8, Option<String>) {
    // A file that may not be read is bad input; a place that may not be written is a wrong command.
    if error.action == "read" && error.source.kind() == io::ErrorKind::PermissionDenied {
        return (code::BAD_INPUT, None);
    }
    judge_io(&error.source)
}

fn judge_io(error: &io::Error) -> (u8, Option<String>) {
    match error.kind() {
        io::ErrorKind::AlreadyExists => (code::USAGE, Some("--force replaces it".to_owned())),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            code::RUN_AGAIN,
            Some("make room and run the same command again; nothing is half-written".to_owned()),
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (code::USAGE, None),
        _ => (code::BAD_INPUT, None),
    }
}

fn judge_runtime(error: &runtime::Error) -> Option<(u8, Option<String>)> {
    use runtime::Error::{
        CacheFull, Cancelled, CropMismatch, CudaMissing, Damaged, Exists, Fetch, Gpu, GpuMemory,
        HalfOverflow, Install, Interrupted, JobDiffers, JobUnfinished, NoParameter, NoSplit, NoTemplate,
        NotFinite, OrtMissing, OrtUnusable, Stopped, UnknownTensor, Untrainable, Usage,
    };
    Some(match error {
        UnknownTensor { suggestions, .. } => {
            let near: Vec<String> = suggestions.iter().map(|name| format!("`{name}`")).collect();
            (
                code::USAGE,
                (!near.is_empty())
                    .then(|| format!("--cut takes one of its tensors; near are {}", near.join(", "))),
            )
        }
        NoParameter { suggestions, .. } => {
            let near: Vec<String> = suggestions.iter().map(|name| format!("`{name}`")).collect();
            (
                code::USAGE,
                (!near.is_empty()).then(|| format!("near are {}", near.join(", "))),
            )
        }
        Untrainable { .. } => (
            code::BAD_INPUT,
            Some("patterns of parameters behind it can be trained; without --train a head is, on frozen features".to_owned()),
        ),
        CropMismatch { .. } => (
            code::USAGE,
            Some("--crop SIDE, and --resize SIDE to match (often the same or 8/7 of it); --input-size for a checkpoint".to_owned()),
        ),
        NoTemplate(found) => (
            code::BAD_INPUT,
            Some(match &found.prefix {
                Some((prefix, _)) => format!("graftwork edit IN OUT -e 'strip {prefix}'"),
                None => "--template FILE describes another network, --template NAME shows how far it is from one".to_owned(),
            }),
        ),
        NoSplit { .. } => (code::USAGE, Some("--val-fraction 0.2".to_owned())),
        Usage(_) => (code::USAGE, None),
        Damaged { .. } => (
            code::BAD_INPUT,
            Some(
                "graftwork cache verify --repair removes what is damaged; it is computed again then"
                    .to_owned(),
            ),
        ),
        HalfOverflow { .. } => (code::USAGE, Some("--dtype float32".to_owned())),
        CacheFull { .. } => (
            code::RUN_AGAIN,
            Some("graftwork cache gc --max-size SIZE makes room; then run the same command again".to_owned()),
        ),
        JobDiffers { path, .. } => (
            code::USAGE,
            Some(format!(
                "to begin it anew remove `{}`; features are kept",
                path.display()
            )),
        ),
        JobUnfinished { missing, .. } => (
            code::NO,
            Some(format!(
                "missing are {}; run those again",
                runtime::features::to_array_expression(missing)
            )),
        ),
        Exists { .. } => (
            code::USAGE,
            Some("-o another folder, or --force to replace it".to_owned()),
        ),
        OrtMissing { .. } => (code::NO_RUNTIME, Some("graftwork doctor --install".to_owned())),
        OrtUnusable { .. } => (
            code::NO_RUNTIME,
            Some("graftwork doctor lists what there is".to_owned()),
        ),
        CudaMissing { reason, .. } => (code::NO_RUNTIME, Some(cuda_hint(reason).to_owned())),
        GpuMemory { .. } => (
            code::NO_RUNTIME,
            Some("--precision bf16 halves the features, a smaller --train-batch-size the rest; or --device cpu".to_owned()),
        ),
        Gpu { .. } => (
            code::NO_RUNTIME,
            Some("nvidia-smi shows the GPU's state; --device cpu does without".to_owned()),
        ),
        NotFinite { .. } => (
            code::BAD_INPUT,
            Some("a smaller --lr or --clip-grad-norm (of a head also --standardize), with --force to begin anew".to_owned()),
        ),
        Install(_) => (
            code::NO_RUNTIME,
            Some("python3 -m pip download onnxruntime shows what pip lacks".to_owned()),
        ),
        Fetch { fault, .. } => fetch_hint(fault),
        Interrupted { .. } | Cancelled | Stopped { .. } => (
            code::RUN_AGAIN,
            Some("run the same command again to resume".to_owned()),
        ),
        _ => return None,
    })
}

fn fetch_hint(fault: &runtime::fetch::Fault) -> (u8, Option<String>) {
    use runtime::fetch::Fault::{Cut, Digest, NotNow, Tls, Unreachable};
    let (code, hint) = match fault {
        Cut { .. } => (code::RUN_AGAIN, "run the same command again to resume"),
        NotNow(_) => (code::RUN_AGAIN, "run the same command again later"),
        Digest { .. } => (
            code::BAD_INPUT,
            "--ignore-name where the digits in the file's name are no digest of it",
        ),
        Unreachable(_) => (
            code::BAD_INPUT,
            "HTTPS_PROXY, HTTP_PROXY and NO_PROXY name the proxy of a network that has one",
        ),
        Tls(_) => (
            code::BAD_INPUT,
            "SSL_CERT_FILE names the certificates of a network that has its own",
        ),
        _ => return (code::BAD_INPUT, None),
    };
    (code, Some(hint.to_owned()))
}

fn cuda_hint(missing: &runtime::engine::CudaMissing) -> &'static str {
    use runtime::engine::CudaMissing::{
        Capability, Driver, DriverVersion, Index, Provider, ProviderFile, Start,
    };
    match missing {
        Provider { .. } | ProviderFile { .. } => {
            "python3 -m pip install onnxruntime-gpu, or --ort-lib PATH to a library with CUDA; without a GPU --device cpu"
        }
        Driver { .. } => "nvidia-smi shows whether the driver runs; without a GPU --device cpu",
        DriverVersion { .. } => "a newer NVIDIA driver; --device cpu does without",
        Capability { .. } => "another GPU (nvidia-smi -L lists them), or --device cpu",
        Index { .. } => "nvidia-smi -L lists the GPUs, and CUDA_VISIBLE_DEVICES can hide some",
        Start { .. } => {
            "python3 -m pip install 'onnxruntime-gpu[cuda,cudnn]' brings NVIDIA's libraries beside it"
        }
        _ => "graftwork doctor lists what there is",
    }
}
