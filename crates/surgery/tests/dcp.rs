//! Distributed checkpoints as torch writes them, against the tensors that were saved; and damaged ones.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Existing};
use std::io::Write;
use surgery::{Format, Opened};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/dcp")
        .join(name)
}

/// Every tensor that was saved is there, whole or in pieces, and nothing else is.
fn check_same(opened: &Opened, folder: &Path) {
    let expected = surgery::open(&folder.join("expected.safetensors"))
        .unwrap()
        .state_dict;
    assert!(opened.problems.is_empty(), "{:?}", opened.problems);
    assert_eq!(opened.state_dict.len() + opened.pieces.len(), expected.len());
    for (name, expected) in expected.iter() {
        let pieces = opened.pieces.iter().find(|pieces| pieces.name() == name);
        let assembled = pieces.map(|pieces| pieces.assemble().unwrap());
        let found = assembled.as_ref().or(opened.state_dict.get(name)).unwrap();
        assert_eq!(
            (found.dtype(), found.shape()),
            (expected.dtype(), expected.shape()),
            "{name}"
        );
        assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{name}");
    }
}

#[test]
fn what_one_process_has_saved_is_there() {
    let folder = fixture("whole");
    let opened = surgery::open(&folder).unwrap();
    assert_eq!(
        (opened.format, opened.format.to_string().as_str()),
        (Format::Dcp, "pytorch distributed")
    );
    check_same(&opened, &folder);
    assert!(opened.pieces.is_empty());
    let names: Vec<&str> = opened.state_dict.names().collect();
    assert_eq!(names[..2], ["model.layer.weight", "model.bias"]);
    assert!(names.contains(&"opt.state.0.exp_avg"));
    let parameter = opened.state_dict.get("model.parameter").unwrap();
    assert!(parameter.is_parameter() && parameter.requires_grad());
    assert!(!opened.state_dict.get("model.bias").unwrap().requires_grad());
    let others: Vec<(&str, &str)> = opened
        .others
        .iter()
        .map(|other| (other.name.as_str(), other.value.as_str()))
        .collect();
    assert_eq!(
        others,
        [
            ("opt.param_groups.0.lr", "0.1"),
            ("epoch", "3"),
            ("name", "'a text'")
        ]
    );
}

#[test]
fn what_two_processes_have_saved_is_put_together() {
    let folder = fixture("split");
    let opened = surgery::open(&folder).unwrap();
    check_same(&opened, &folder);
    let pieces: Vec<(&str, usize, usize)> = opened
        .pieces
        .iter()
        .map(|pieces| (pieces.name(), pieces.place(), pieces.pieces().len()))
        .collect();
    assert_eq!(
        pieces,
        [
            ("model.rows", 0, 2),
            ("model.columns", 0, 2),
            ("model.uneven", 0, 2)
        ]
    );
    assert!(opened.state_dict.names().eq(["model.whole"]));
    let mut opened = opened;
    opened.assemble().unwrap();
    let names = ["model.rows", "model.columns", "model.uneven", "model.whole"];
    assert!(opened.pieces.is_empty() && opened.state_dict.names().eq(names));
    check_same(&opened, &folder);
}

#[test]
fn metadata_of_older_versions_are_read() {
    let folder = fixture("old");
    let opened = surgery::open(&folder).unwrap();
    check_same(&opened, &folder);
    assert_eq!(
        (opened.others[0].name.as_str(), opened.others[0].value.as_str()),
        ("epoch", "7")
    );
}

fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Another file of the folder with one text in place of another of the same length, wherever it occurs.
fn change(folder: &Path, file: &str, from: &[u8], to: &[u8]) {
    let mut bytes = fs::read(folder.join(file)).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    assert!(!places.is_empty() && from.len() == to.len());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    put(folder, file, &bytes);
}

fn put(folder: &Path, file: &str, bytes: &[u8]) {
    let mut out = AtomicFile::create(&folder.join(file), Existing::Replace).unwrap();
    out.write_all(bytes).unwrap();
    out.commit().unwrap();
}

fn problems(folder: &Path) -> Vec<String> {
    let opened = surgery::open(folder).unwrap();
    opened
        .problems
        .iter()
        .map(|problem| format!("{}: {}", problem.name, problem.fault))
        .collect()
}

#[test]
fn what_cannot_be_read_is_told_of_by_name() {
    // A file that is cut off: the items behind the cut are missing.
    let folder = copy("split");
    let bytes = fs::read(folder.path().join("__1_0.distcp")).unwrap();
    put(folder.path(), "__1_0.distcp", &bytes[..4000]);
    assert_eq!(
        problems(folder.path()),
        [
            "model.uneven: malformed: its 1577 bytes at 3154 are not inside of `__1_0.distcp`, which has 4000",
            "model.whole: malformed: its 1577 bytes at 4731 are not inside of `__1_0.distcp`, which has 4000",
        ]
    );
    let folder = copy("split");
    change(folder.path(), ".metadata", b"float64", b"float16");
    assert_eq!(
        problems(folder.path()),
        ["model.uneven: malformed: its piece at [0, 0] is float64[3, 3], expected float16[3, 3]"]
    );
    let folder = copy("split");
    // An archive that is damaged in its directory.
    change(folder.path(), "__0_0.distcp", b"PK\x05\x06", b"PK\x05\x07");
    let text = problems(folder.path());
    assert!(
        text[0].starts_with("model.rows: malformed: its archive at 0 of `__0_0.distcp` cannot be read: ")
    );
    assert_eq!(text.len(), 3);
    // A size: all pieces of it are inside, and do not fill it.
    let folder = copy("split");
    let size_of_rows = b"K\x06K\x04\x86";
    change(folder.path(), ".metadata", size_of_rows, b"K\x07K\x04\x86");
    assert_eq!(
        problems(folder.path()),
        ["model.rows: malformed: its pieces are 24 of 28 elements"]
    );
}

#[test]
fn what_is_not_whole_is_refused() {
    let check = |folder: &Path, message: &str| {
        let text = surgery::open(folder).unwrap_err().to_string();
        assert!(text.ends_with(message), "{text}");
    };
    let folder = copy("split");
    fs::remove_file(folder.path().join("__1_0.distcp")).unwrap();
    check(folder.path(), "`__1_0.distcp` is missing, which holds 4 items");
    let folder = copy("split");
    change(folder.path(), ".metadata", b"__0_0.distcp", b"../_0.distcp");
    check(
        folder.path(),
        "its metadata name `../_0.distcp`, which is no bare file name",
    );
    let folder = copy("split");
    change(folder.path(), ".metadata", b"\x08Metadata", b"\x08Metedata");
    check(folder.path(), "cannot be read: its metadata are no `Metadata`");
    let folder = copy("split");
    let bytes = fs::read(folder.path().join(".metadata")).unwrap();
    put(folder.path(), ".metadata", &bytes[..bytes.len() - 9]);
    check(folder.path(), ".metadata`");
}
