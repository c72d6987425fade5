//! Files that are something else, or the right thing in a wrapping: C1, C2, C11, rows 28 and 29.

use super::base::{entries, legacy, plain, w, zip};
use super::{Case, Expect, case};
use crate::build::zip::deflate;
use crate::build::{Archive, Entry, Pickle};

/// Beginnings of files, and a word by which each must be named.
const STRANGERS: &[(&str, &[u8], &str)] = &[
    ("empty", b"", "empty"),
    ("zeros", &[0; 4096], "zeros"),
    (
        "lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "Git LFS",
    ),
    ("html", b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    ("html-after-space", b"\n\n  <html>login</html>", "HTML"),
    (
        "xml",
        b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>",
        "XML",
    ),
    ("json", b"{\"error\": \"not found\"}", "JSON"),
    ("7z", b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
    ("xz", b"\xfd7zXZ\0\0\x04", "xz"),
    ("bzip2", b"BZh91AY&SY", "bzip2"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04\0", "zstd"),
    ("rar", b"Rar!\x1a\x07\x01\0", "RAR"),
    ("hdf5", b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
    ("numpy", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "NumPy"),
    ("gguf", b"GGUF\x03\0\0\0", "GGUF"),
    ("safetensors", b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
    (
        "safetensors-padded",
        b"\x40\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}       \0\0\0\0",
        "safetensors",
    ),
    ("onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "ONNX"),
    ("preview", b"PYTORCH1\0\0\0\0", "1.0"),
    (
        "empty-zip",
        b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        "empty",
    ),
    ("png", b"\x89PNG\r\n\x1a\n", "PNG"),
    ("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    ("pdf", b"%PDF-1.7\n", "PDF"),
    ("elf", b"\x7fELF\x02\x01\x01\0", "program"),
    ("text", b"hello, world\n", ""),
    ("one-byte", b"\x80", ""),
    ("magic-only", b"PK", ""),
    ("local-signature-only", b"PK\x03\x04", "cut off"),
];

/// A tar archive of one file.
pub(super) fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(bytes);
    header.resize(header.len().next_multiple_of(512) + 1024, 0);
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    out.extend(deflate(bytes));
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (id, bytes, word) in STRANGERS {
        cases.push(
            case(
                format!("R28-{id}"),
                &["C2", "R28"],
                bytes.to_vec(),
                Expect::NotACheckpoint(word),
            )
            .scan(&["not-a-checkpoint|zip.broken"]),
        );
    }
    wrapped(&mut cases);
    extensions(&mut cases);
    pickles(&mut cases);
    archives(&mut cases);
    torchscript(&mut cases);
    cases
}

/// C2: a checkpoint inside of something that must be unpacked first.
fn wrapped(cases: &mut Vec<Case>) {
    let inner = zip(&plain());
    let stranger = |id: &str, bytes: Vec<u8>, word: &'static str| {
        case(
            format!("C2-{id}"),
            &["C2", "R28"],
            bytes,
            Expect::NotACheckpoint(word),
        )
        .scan(&["not-a-checkpoint"])
    };
    cases.push(stranger("gzip", gzip(&inner), "gzip"));
    cases.push(stranger("gzip-legacy", gzip(&legacy(&plain())), "gzip"));
    cases.push(stranger("tar", tar("model.pth", &inner), "tar"));
    cases.push(stranger("tar-checkpoint", tar("sys_info", &plain()), "0.1.10"));
    // torch.hub unwraps a zip of one member; what is inside, nobody has looked at.
    for (id, name) in [
        ("pth", "model.pth"),
        ("bin", "pytorch_model.bin"),
        ("folder", "folder/model.pt"),
    ] {
        for method in ["stored", "deflated"] {
            let entry = match method {
                "stored" => Entry::stored(name, &inner),
                _ => Entry::deflated(name, &inner),
            };
            cases.push(stranger(
                &format!("zip-in-zip-{id}-{method}"),
                Archive::of([entry]).bytes(),
                name,
            ));
        }
    }
    let evil = zip(&super::base::beside(&super::globals::call(
        "reduce", "os", "system",
    )));
    cases.push(stranger(
        "zip-in-zip-unsafe",
        Archive::of([Entry::stored("model.pth", &evil)]).bytes(),
        "model.pth",
    ));
}

/// C1: what a file is called says nothing.
fn extensions(cases: &mut Vec<Case>) {
    let dict = |key: &str| {
        Pickle::new()
            .op(b"}(")
            .str("w")
            .then(&super::base::honest())
            .str(key)
            .int(1)
            .op(b"u")
            .stop()
    };
    for file_name in [
        "model.jpg",
        "model",
        "model.safetensors",
        "model.txt",
        "model.tar.gz",
        "model.onnx",
    ] {
        cases.push(
            case(
                format!("C1-zip-as-{file_name}"),
                &["C1"],
                zip(&dict(file_name)),
                Expect::Loads(&["w"]),
            )
            .named(file_name),
        );
        cases.push(
            case(
                format!("C1-legacy-as-{file_name}"),
                &["C1"],
                legacy(&dict(file_name)),
                Expect::Loads(&["w"]),
            )
            .named(file_name),
        );
    }
    // CVE-2025-1889: what is dangerous is dangerous under any name too.
    for file_name in ["config.json", "weights.safetensors", "notes.md"] {
        let marked = Pickle::new()
            .str(file_name)
            .op(b"0")
            .op(&super::hiding::payload()[2..])
            .0;
        cases.push(
            case(
                format!("C1-unsafe-as-{file_name}"),
                &["C1", "R3"],
                zip(&marked),
                Expect::Unsafe("os.system".to_owned()),
            )
            .scan(&["global.unsafe"])
            .named(file_name),
        );
    }
}

/// Pickles without a container. CVE-2025-10155: a plain pickle under the name of a checkpoint.
fn pickles(cases: &mut Vec<Case>) {
    for (id, bytes) in [
        ("data-pkl-alone", plain()),
        ("dict", b"\x80\x02}.".to_vec()),
        ("list", b"\x80\x04\x95\x02\0\0\0\0\0\0\0].".to_vec()),
        ("text", b"(dp0\n.".to_vec()),
        ("number", b"\x80\x02K\x07.".to_vec()),
    ] {
        cases.push(
            case(
                format!("R28-pickle-{id}"),
                &["C1", "R28"],
                bytes,
                Expect::NotACheckpoint("pickle|data.pkl"),
            )
            .scan(&["not-a-checkpoint"]),
        );
    }
    for (id, bytes) in [
        ("reduce", super::hiding::payload()),
        ("text", b"cos\nsystem\n(S'x'\ntR.".to_vec()),
        ("inst", b"(S'x'\nios\nsystem\n.".to_vec()),
        ("no-proto", b"cos\nsystem\nX\x01\0\0\0x\x85R.".to_vec()),
    ] {
        cases.push(
            case(
                format!("C1-plain-pickle-{id}"),
                &["C1", "R3", "R28"],
                bytes,
                Expect::Rejects("could run code|os.system|not a"),
            )
            .scan(&["global.unsafe"])
            .named("model.pth"),
        );
    }
}

/// Zip archives of other makers.
fn archives(cases: &mut Vec<Case>) {
    let of = |names: &[&str]| {
        let entries = names.iter().map(|name| Entry::stored(name, b"x"));
        Archive::of(entries).bytes()
    };
    for (id, names, word) in [
        ("npz", &["arr_0.npy", "arr_1.npy"][..], "NumPy"),
        ("mar", &["MAR-INF/MANIFEST.json", "model.pt"], "TorchServe"),
        (
            "keras",
            &["metadata.json", "config.json", "model.weights.h5"],
            "Keras",
        ),
        (
            "pt2",
            &[
                "m/archive_format",
                "m/archive_version",
                "m/models/model.json",
                "m/version",
            ],
            "torch.export",
        ),
        (
            "package",
            &["m/.data/extern_modules", "m/.data/version", "m/model/model.pkl"],
            "torch.package",
        ),
        ("documents", &["word/document.xml", "[Content_Types].xml"], "zip"),
        ("jar", &["META-INF/MANIFEST.MF", "A.class"], "zip"),
        ("one-text", &["readme.txt"], "zip"),
        ("folder-only", &["m/"], "zip"),
    ] {
        cases.push(
            case(
                format!("R28-zip-{id}"),
                &["C2", "R28"],
                of(names),
                Expect::NotACheckpoint(word),
            )
            .scan(&["not-a-checkpoint|zip.root"]),
        );
    }
}

/// C11: `constants.pkl` and the debug pickles are unpickled too, and code is code.
fn torchscript(cases: &mut Vec<Case>) {
    let module = Pickle::new()
        .global("__torch__", "Net")
        .op(b")\x81}(")
        .str("w")
        .then(&super::base::honest())
        .op(b"ub")
        .stop();
    let code = b"class Net(Module):\n  __parameters__ = [\"w\", ]\n";
    let archive = |more: Vec<Entry>| {
        let mut entries = vec![
            Entry::stored("m/data.pkl", &module),
            Entry::stored("m/version", b"3\n"),
            Entry::stored("m/data/0", &w()),
        ];
        entries.extend(more);
        Archive::of(entries).bytes()
    };
    let code = || Entry::deflated("m/code/__torch__.py", code);
    let constants = |bytes: &[u8]| Entry::stored("m/constants.pkl", bytes);
    let empty = b"\x80\x02).";
    for (id, bytes, scan) in [
        (
            "honest",
            archive(vec![code(), constants(empty)]),
            &["torchscript.code"][..],
        ),
        (
            "unsafe-constants",
            archive(vec![code(), constants(&super::hiding::payload())]),
            &["torchscript.code", "global.unsafe"],
        ),
        (
            "unsafe-debug",
            archive(vec![
                code(),
                constants(empty),
                Entry::deflated("m/code/__torch__.py.debug_pkl", &super::hiding::payload()),
            ]),
            &["torchscript.code", "global.unsafe"],
        ),
        ("constants-only", archive(vec![constants(empty)]), &[]),
        (
            "constants-broken",
            archive(vec![code(), constants(b"\x80\x02\xff")]),
            &["torchscript.code"],
        ),
        (
            "unsafe-traced-inputs",
            archive(vec![
                code(),
                constants(empty),
                Entry::stored("m/traced_inputs.pkl", &super::hiding::payload()),
            ]),
            &["torchscript.code", "global.unsafe"],
        ),
    ] {
        cases.push(
            case(
                format!("C11-{id}"),
                &["C11", "R29"],
                bytes,
                Expect::NotACheckpoint("TorchScript"),
            )
            .scan(scan),
        );
    }
    // Code beside a plain checkpoint, with nothing else of TorchScript about it.
    let mut beside = entries(&plain());
    beside.push(code());
    cases.push(
        case(
            "C11-code-only",
            &["C11", "R29"],
            Archive::of(beside).bytes(),
            Expect::Survives,
        )
        .scan(&["torchscript.code"]),
    );
}
