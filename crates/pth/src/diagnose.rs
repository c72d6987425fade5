//! What is this file really? One sentence each for the things that people mistake for a checkpoint.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::path::Path;

use crate::pickle::{Arena, render};

/// Signatures at the start of a file, with what they mean.
const SIGNATURES: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs",
        "this is a Git LFS pointer, not the file it points to: run `git lfs pull` to fetch it",
    ),
    (b"\x1f\x8b", "this is a gzip file: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "this is a 7z archive: unpack it first"),
    (b"\xfd7zXZ\0", "this is an xz file: unpack it first"),
    (b"BZh", "this is a bzip2 file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is a zstd file: unpack it first"),
    (b"Rar!", "this is a RAR archive: unpack it first"),
    (
        b"\x89HDF\r\n\x1a\n",
        "this is an HDF5 file, as Keras writes them, not a PyTorch checkpoint",
    ),
    (
        b"\x93NUMPY",
        "this is a NumPy array (.npy), not a PyTorch checkpoint",
    ),
    (b"GGUF", "this is a GGUF model, not a PyTorch checkpoint"),
    (b"ggml", "this is a GGML model, not a PyTorch checkpoint"),
    (
        b"PYTORCH1",
        "this is in a preview format of PyTorch 1.0 that no released version reads",
    ),
    (b"PK\x05\x06", "this is an empty zip archive"),
    (b"\x89PNG", "this is a PNG picture, not a PyTorch checkpoint"),
    (
        b"\xff\xd8\xff",
        "this is a JPEG picture, not a PyTorch checkpoint",
    ),
    (b"%PDF", "this is a PDF document, not a PyTorch checkpoint"),
    (b"\x7fELF", "this is a program, not a PyTorch checkpoint"),
];

/// Why the file cannot be a legacy checkpoint; none if it may be one.
pub(crate) fn not_a_pickle(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("this file is empty".to_owned());
    }
    if bytes.iter().take(4096).all(|&byte| byte == 0) {
        return Some("this file is filled with zeros, as an interrupted download leaves it".to_owned());
    }
    if let Some((_, found)) = SIGNATURES
        .iter()
        .find(|(signature, _)| bytes.starts_with(signature))
    {
        return Some((*found).to_owned());
    }
    let text = bytes.trim_ascii_start();
    let starts = |tag: &str| {
        text.get(..tag.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(tag.as_bytes()))
    };
    if starts("<!doctype") || starts("<html") || starts("<head") {
        return Some(
            "this is an HTML page, not a checkpoint: the download got a web page instead of the file"
                .to_owned(),
        );
    }
    if starts("<?xml") {
        return Some(
            "this is an XML document, not a checkpoint: the download may have got an error message"
                .to_owned(),
        );
    }
    if is_safetensors(bytes) {
        return Some("this is a safetensors file".to_owned());
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(
            if bytes.starts_with(b"sys_info\0") || bytes.starts_with(b"storages\0") {
                "this is a checkpoint of a PyTorch before 0.1.10 (tar), which is not read".to_owned()
            } else {
                "this is a tar archive: unpack it first".to_owned()
            },
        );
    }
    if is_onnx(bytes) {
        return Some("this is an ONNX model, not a PyTorch checkpoint".to_owned());
    }
    if starts("{") && bytes.get(1).is_some_and(|byte| b"\"\r\n\t }".contains(byte)) {
        return Some("this is JSON text, not a checkpoint".to_owned());
    }
    None
}

/// Whether the bytes begin like a safetensors file.
pub(crate) fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| (2..=100_000_000).contains(&length)) && bytes.get(8) == Some(&b'{')
}

/// A protobuf whose first field is `ir_version`, a small number, and whose second is text.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=20, 0x12, ..])
}

/// What a file is that begins like a zip and has no end of it.
pub(crate) fn truncated_zip(n_bytes: usize) -> String {
    format!(
        "this zip archive is cut off after {n_bytes} bytes: its directory, which comes last, is missing; get the file again"
    )
}

/// What an archive is, if it is of PyTorch's making and not a plain checkpoint; `has` tells what names it holds.
pub(crate) fn other_archive(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    if has("constants.pkl") {
        return Some("this is a TorchScript archive, which holds code: save the model's state dict instead");
    }
    if has("archive_format") || has("models/model.json") {
        return Some("this is a program exported by torch.export (.pt2), which is not read");
    }
    if has(".data/extern_modules") {
        return Some(
            "this is a torch.package archive, which holds code: save the model's state dict instead",
        );
    }
    if has("model.json") {
        return Some("this is a TorchScript archive of PyTorch 1.0 to 1.2, which holds code");
    }
    None
}

/// What a zip archive without `data.pkl` is.
pub(crate) fn zip_without_pickle(names: &[String]) -> String {
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    let inner = names.iter().find(|name| {
        let name = name.to_ascii_lowercase();
        [".pth", ".pt", ".bin", ".ckpt", ".safetensors"]
            .iter()
            .any(|ending| name.ends_with(ending))
    });
    if any(&|name| name.ends_with(".npy")) {
        "this is a NumPy archive (.npz), not a PyTorch checkpoint".to_owned()
    } else if any(&|name| name.starts_with("MAR-INF/")) {
        "this is a TorchServe archive (.mar): unpack it and open the checkpoint inside".to_owned()
    } else if any(&|name| name == "model.weights.h5") {
        "this is a Keras model, not a PyTorch checkpoint".to_owned()
    } else if let Some(inner) = inner {
        format!("this is a zip archive that contains `{inner}`: unpack it first")
    } else {
        format!(
            "this is a zip archive without `data.pkl` ({} members), not a PyTorch checkpoint",
            names.len()
        )
    }
}

/// What a folder is, if it is of PyTorch's making.
pub(crate) fn folder(path: &Path) -> Option<&'static str> {
    path.join(".metadata").is_file().then_some(
        "this folder is a distributed checkpoint (torch.distributed.checkpoint), and no file of `torch.save`",
    )
}

/// A pickle that is none of torch's.
pub(crate) fn plain_pickle(arena: &Arena<'_>) -> String {
    let is_dcp = |id| {
        let name = arena.global_name(id);
        name.is_some_and(|(module, _)| module.starts_with("torch.distributed.checkpoint"))
    };
    if arena.ids().any(is_dcp) {
        return "this is the metadata of a distributed checkpoint (torch.distributed.checkpoint): open the folder instead".to_owned();
    }
    let refers = arena
        .ids()
        .any(|id| matches!(arena.node(id), crate::pickle::Node::Persistent(_)));
    if refers {
        return "this is the `data.pkl` of a checkpoint without the archive around it, so its tensors are missing".to_owned();
    }
    let value = render::render(arena, arena.root());
    format!("this is a plain Python pickle ({value}), not a file that torch.save wrote")
}

/// Nothing that is known.
pub(crate) fn unknown(bytes: &[u8]) -> String {
    let head: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!(
        "this is no PyTorch checkpoint: it begins with the bytes {}",
        head.join(" ")
    )
}
