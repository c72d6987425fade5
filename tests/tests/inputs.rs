//! The same pictures from other kinds of sources: nothing is computed twice, labels come with them, and what is broken is
//! named.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Said, Scratch, fixture, run};

fn command(scratch: &Scratch, verb: &str, data: &Path, more: &[&str]) -> Said {
    let mut command = scratch.command([
        verb, "--json", "--cache", "cache", "--resize", "32", "--crop", "32",
    ]);
    command.arg("--backbone").arg(fixture("digits/backbone.onnx"));
    command.arg("--data").arg(data).args(more);
    run(command)
}

fn extract(scratch: &Scratch, data: &Path, more: &[&str]) -> serde_json::Value {
    command(scratch, "extract", data, more).ok().json()
}

/// The fixture's pictures: split, class, path below the folder, bytes.
fn digits() -> Vec<(String, String, String, Vec<u8>)> {
    let root = fixture("digits/pictures");
    let mut all = Vec::new();
    for split in ["train", "val"] {
        let files = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let mut paths: Vec<PathBuf> = files(root.join(split)).flat_map(files).collect();
        paths.sort();
        for path in paths {
            let below = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let class = below.split('/').nth(1).unwrap().to_owned();
            all.push((split.to_owned(), class, below, fs::read(path).unwrap()));
        }
    }
    all
}

/// A tar of files, as POSIX has it.
fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, data) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

/// WebDataset's files of some samples.
fn members(samples: &[(String, String, String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (n, (_, class, path, bytes)) in samples.iter().enumerate() {
        let ending = path.rsplit('.').next().unwrap();
        files.push((format!("{n:06}.{ending}"), bytes.clone()));
        files.push((format!("{n:06}.cls"), class.clone().into_bytes()));
    }
    files
}

#[test]
fn a_picture_is_the_same_wherever_it_lies() {
    let scratch = Scratch::new();
    let samples = digits();
    let first = extract(&scratch, &fixture("digits/pictures"), &[]);
    assert_eq!(
        first["cache"],
        serde_json::json!({ "hits": 0, "misses": samples.len() })
    );
    scratch.copy(&fixture("digits/pictures"), "moved");
    let mut csv = "picture,species,fold\n".to_owned();
    let mut jsonl = String::new();
    for (split, class, path, _) in &samples {
        csv.push_str(&format!("moved/{path},n{class},{split}\n"));
        let line = serde_json::json!({ "path": format!("moved/{path}"), "label": class, "split": split });
        jsonl.push_str(&format!("{line}\n"));
    }
    let columns = [
        "--path-col",
        "picture",
        "--label-col",
        "species",
        "--split-col",
        "fold",
    ];
    let csv = scratch.write("list.csv", csv.as_bytes());
    let jsonl = scratch.write("list.jsonl", jsonl.as_bytes());
    for (n, half) in samples.chunks(samples.len().div_ceil(3)).enumerate() {
        scratch.write(&format!("shard-{n:03}.tar"), &tar(&members(half)));
    }
    let sources: [(PathBuf, &[&str]); 3] = [
        (csv, &columns),
        (jsonl, &[]),
        (scratch.path("shard-{000..002}.tar"), &[]),
    ];
    for (source, more) in sources {
        let again = extract(&scratch, &source, more);
        assert_eq!(
            again["cache"],
            serde_json::json!({ "hits": samples.len(), "misses": 0 }),
            "{}",
            source.display()
        );
        assert_eq!(again["entry"], first["entry"]);
    }
}

#[test]
fn a_head_from_a_manifest_is_the_head_from_the_folder() {
    let scratch = Scratch::new();
    let of_folder = command(&scratch, "fit", &fixture("digits/pictures"), &["-o", "folder"])
        .ok()
        .json();
    let root = fixture("digits/pictures");
    let mut csv = "file_name,label,split\n".to_owned();
    for (split, class, path, _) in digits() {
        csv.push_str(&format!("{},{class},{split}\n", root.join(path).display()));
    }
    // Rows that no head can be fitted on: left out, named, counted.
    csv.push_str("unlabelled.png,,train\nragged.png\n,1,train\nmissing.png,5,val\n");
    let csv = scratch.write("list.csv", csv.as_bytes());
    let of_manifest = command(&scratch, "fit", &csv, &["-o", "manifest"]).ok().json();
    assert_eq!(of_manifest["left_out"], 4);
    for part in ["classes", "train", "val", "c"] {
        assert_eq!(of_manifest[part], of_folder[part], "{part}");
    }
    let head = |run: &str| fs::read(scratch.path(run).join("head.safetensors")).unwrap();
    assert_eq!(head("manifest"), head("folder"));
    let ledger = fs::read_to_string(scratch.path("manifest/ledger.jsonl")).unwrap();
    for (name, reason) in [
        ("unlabelled.png", "it has no label"),
        ("list.csv:703", "the row has 1 field, and the header 3"),
        ("list.csv:704", "it has no path"),
        ("missing.png", "it is named on line 705 of the manifest"),
    ] {
        let line = ledger.lines().find(|line| line.contains(name)).expect(name);
        assert!(line.contains(reason), "{line}");
    }
    // Judged on the manifest's validation rows by its exported model.
    let mut eval = scratch.command(["eval", "manifest", "--json", "--data"]);
    eval.arg(&csv);
    let marks = run(eval).ok().json();
    assert_eq!(
        (&marks["n"], &marks["accuracy"]),
        (&of_folder["val"]["n"], &of_folder["val"]["accuracy"])
    );
}

#[test]
fn a_tar_cut_short_gives_what_is_whole_and_is_named() {
    let scratch = Scratch::new();
    let samples: Vec<_> = digits().into_iter().take(20).collect();
    let whole = tar(&members(&samples));
    let path = scratch.write("cut.tar", &whole[..whole.len() * 3 / 4]);
    let said = command(&scratch, "extract", &path, &[]).ok();
    let answer = said.json();
    let n = answer["n"].as_u64().unwrap();
    assert!((10..20).contains(&n), "{n}");
    let left_out: Vec<String> = answer["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        left_out.iter().any(|line| line.contains("cut short")),
        "{left_out:?}"
    );
}

#[test]
fn features_need_neither_labels_nor_splits_and_a_head_needs_both() {
    let scratch = Scratch::new();
    for (n, (_, _, _, bytes)) in digits().into_iter().take(5).enumerate() {
        scratch.write(&format!("flat/{n}.png"), &bytes);
    }
    let flat = scratch.path("flat");
    assert_eq!(extract(&scratch, &flat, &[])["n"], 5);
    command(&scratch, "fit", &flat, &["-o", "run"]).fails(2, "no `train` folder");
    let list = scratch.write("list.csv", b"path\nflat/0.png\nflat/1.png\n");
    assert_eq!(
        extract(&scratch, &list, &[])["cache"],
        serde_json::json!({ "hits": 2, "misses": 0 })
    );
    let message = "none of its columns is one of labels; there is `path`";
    command(&scratch, "fit", &list, &["-o", "run"]).fails(3, message);
}

#[test]
fn sources_that_cannot_serve_say_why() {
    let scratch = Scratch::new();
    let check = |name: &str, bytes: &[u8], code: i32, message: &str| {
        let path = scratch.write(name, bytes);
        command(&scratch, "fit", &path, &["-o", "run"]).fails(code, message);
        assert!(!scratch.path("run").exists());
    };
    check(
        "x.tar.gz",
        &[0x1f, 0x8b, 8, 0],
        3,
        "unpack it to a plain .tar first",
    );
    check("x.csv", b"\xff\xfep\0", 3, "it is UTF-16; save it as UTF-8");
    check(
        "x.csv",
        b"path,label\n1.png,a\n2.png,a\n",
        2,
        "say which share is",
    );
    check(
        "x.csv",
        b"path,label\n\"1.png,a\n",
        3,
        "no sample in it can be used",
    );
    check("x.parquet", b"PAR1 and no more", 3, "it is no whole Parquet file");
    check("x.txt", b"a text\n", 3, "texts on lines have no labels");
    check("x.zip", b"PK\x03\x04", 3, "of no kind of file that lists samples");
}
