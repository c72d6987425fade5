//! Sets of shards with an index: what is written is read back, and an index that promises what is not so is refused.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::collections::BTreeSet;
use std::fs;

use harness::checkpoints::{Named, floats, tensors};
use harness::{Scratch, fixture};
use serde_json::{Value, json};

const INDEX: &str = "set/model.safetensors.index.json";
const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];

/// `in.pth`, and the same in three shards: `a.0`, `a.1` | `b` | `c.0`, `c.1`.
fn three_shards() -> Scratch {
    let scratch = Scratch::new();
    let all = [
        ("a.0", floats(&[4, 4], 0.0)),
        ("a.1", floats(&[3], 10.0)),
        ("b", floats(&[8, 4], 20.0)),
        ("c.0", floats(&[16], 30.0)),
        ("c.1", floats(&[2, 2], 40.0)),
    ];
    scratch.save("in.pth", &all);
    scratch
        .graftwork(&["convert", "in.pth", "set", "--max-shard-size", "128"])
        .ok();
    scratch
}

/// Sorted: the order of a set is that of its files.
fn sorted(mut tensors: Vec<Named>) -> Vec<Named> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn index(scratch: &Scratch, path: &str) -> Value {
    serde_json::from_slice(&fs::read(scratch.path(path)).unwrap()).unwrap()
}

#[test]
fn a_set_is_named_indexed_and_read_back() {
    let scratch = three_shards();
    assert_eq!(
        scratch.names("set"),
        [&SHARDS[..], &["model.safetensors.index.json"]].concat()
    );
    let index = index(&scratch, INDEX);
    let want =
        json!({"a.0": SHARDS[0], "a.1": SHARDS[0], "b": SHARDS[1], "c.0": SHARDS[2], "c.1": SHARDS[2]});
    assert_eq!(index["weight_map"], want);
    assert_eq!(index["metadata"]["total_size"], 4 * (16 + 3 + 32 + 16 + 4));
    let original = tensors(&scratch.path("in.pth"));
    for (number, path) in ["set", INDEX].into_iter().enumerate() {
        assert_eq!(tensors(&scratch.path(path)), original, "{path}");
        let back = format!("back{number}.pth");
        scratch.graftwork(&["convert", path, &back]).ok();
        assert_eq!(tensors(&scratch.path(&back)), original, "{path}");
    }
    // A file's name makes those of its shards.
    scratch
        .graftwork(&[
            "convert",
            "set",
            "other/net.safetensors",
            "--max-shard-size",
            "210",
        ])
        .ok();
    let names = [
        "net-00001-of-00002.safetensors",
        "net-00002-of-00002.safetensors",
        "net.safetensors.index.json",
    ];
    assert_eq!(scratch.names("other"), names);
    assert_eq!(sorted(tensors(&scratch.path("other"))), sorted(original));
}

#[test]
fn a_dry_run_tells_the_files_of_a_set() {
    let scratch = three_shards();
    let convert = ["convert", "in.pth", "dry", "--max-shard-size", "128", "--json"];
    let dry = scratch
        .graftwork(&[&convert[..], &["--dry-run"]].concat())
        .ok()
        .json();
    assert!(!scratch.path("dry").exists());
    let wet = scratch.graftwork(&convert).ok().json();
    assert_eq!(dry["files"], wet["files"]);
    assert_eq!(
        dry["write_bytes"].as_u64().unwrap(),
        wet["bytes"].as_u64().unwrap()
    );
    let said = scratch
        .graftwork(&["convert", "in.pth", "x", "--max-shard-size", "128", "--dry-run"])
        .ok();
    assert!(said.stdout.contains("in 3 shards"), "{}", said.stdout);
}

#[test]
fn shards_smaller_than_a_tensor() {
    for (size, n_shards) in [("1", 5), ("20", 5), ("64", 5), ("1GB", 1)] {
        let scratch = three_shards();
        scratch
            .graftwork(&["convert", "in.pth", "small", "--max-shard-size", size])
            .ok();
        let n_files = if n_shards == 1 { 1 } else { n_shards + 1 };
        assert_eq!(
            scratch.names("small").len(),
            n_files,
            "{size}: {:?}",
            scratch.names("small")
        );
        assert_eq!(
            sorted(tensors(&scratch.path("small"))),
            sorted(tensors(&scratch.path("in.pth"))),
            "{size}"
        );
    }
    let scratch = three_shards();
    scratch
        .graftwork(&["convert", "in.pth", "x", "--max-shard-size", "much"])
        .fails(2, "5GB or 500MiB");
}

#[test]
fn pickles_make_sets_as_well() {
    let scratch = Scratch::new();
    let input = fixture("digits/backbone.pth");
    let input = input.to_str().unwrap();
    scratch
        .graftwork(&[
            "convert",
            input,
            "bin/pytorch_model.bin",
            "--max-shard-size",
            "50kB",
        ])
        .ok();
    let shards: Vec<String> = (1..=3)
        .map(|n| format!("pytorch_model-{n:05}-of-00003.bin"))
        .collect();
    assert_eq!(scratch.names("bin")[..3], shards);
    let index_path = "bin/pytorch_model.bin.index.json";
    let listed: BTreeSet<String> = index(&scratch, index_path)["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .map(|shard| shard.as_str().unwrap().to_owned())
        .collect();
    assert!(listed.iter().eq(&shards));
    assert_eq!(index(&scratch, index_path)["metadata"]["total_size"], 171_380);
    let original = sorted(tensors(&fixture("digits/backbone.pth")));
    for path in ["bin", index_path] {
        assert_eq!(sorted(tensors(&scratch.path(path))), original, "{path}");
    }
    scratch
        .graftwork(&[
            "edit",
            "bin",
            "bin/pytorch_model.bin",
            "-e",
            "drop fc.**",
            "--max-shard-size",
            "90kB",
        ])
        .fails(2, "--force replaces it");
    scratch
        .graftwork(&[
            "edit",
            "bin",
            "bin/pytorch_model.bin",
            "-e",
            "drop fc.**",
            "--max-shard-size",
            "90kB",
            "--force",
        ])
        .ok();
    let names = [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ];
    assert_eq!(scratch.names("bin"), names);
    assert_eq!(tensors(&scratch.path("bin")).len(), 24);
    fs::remove_file(scratch.path("bin").join(names[0])).unwrap();
    check_refused(
        &scratch,
        "bin",
        &["`pytorch_model-00001-of-00002.bin`", " is missing"],
    );
}

#[test]
fn a_set_in_the_place_of_another_leaves_nothing_of_it() {
    let scratch = three_shards();
    let bytes = || {
        scratch
            .names("set")
            .iter()
            .map(|name| fs::read(scratch.path("set").join(name)).unwrap())
            .collect::<Vec<_>>()
    };
    let before = bytes();
    let edit =
        |more: &[&str]| scratch.graftwork(&[&["edit", "in.pth", "set", "-e", "scale ** 2"], more].concat());
    for size in ["128", "210"] {
        edit(&["--max-shard-size", size]).fails(2, "--force replaces it");
        assert!(
            bytes() == before && scratch.names("set").len() == 4,
            "{:?}",
            scratch.names("set")
        );
    }
    scratch.write("set/config.json", b"{}");
    edit(&["--max-shard-size", "210", "--force"]).ok();
    let two = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(scratch.names("set"), two);
    assert_eq!(tensors(&scratch.path("set"))[1].3[..4], 20_f32.to_le_bytes());
    // Onto the set that is read.
    scratch
        .graftwork(&[
            "edit",
            "set",
            "set",
            "-e",
            "scale ** 2",
            "--max-shard-size",
            "128",
            "--force",
        ])
        .ok();
    assert_eq!(scratch.names("set").len(), 5, "{:?}", scratch.names("set"));
    assert_eq!(tensors(&scratch.path("set"))[1].3[..4], 40_f32.to_le_bytes());
}

/// What is written is what is read from the same folder, and not what was there.
#[test]
fn one_file_in_the_place_of_a_set_and_a_set_in_the_place_of_one_file() {
    let scratch = three_shards();
    let edit =
        |more: &[&str]| scratch.graftwork(&[&["edit", "in.pth", "set", "-e", "scale ** 2"], more].concat());
    edit(&[]).fails(2, "--force replaces it");
    assert_eq!(scratch.names("set").len(), 4, "{:?}", scratch.names("set"));
    edit(&["--force"]).ok();
    assert_eq!(scratch.names("set"), ["model.safetensors"]);
    assert_eq!(tensors(&scratch.path("set"))[1].3[..4], 20_f32.to_le_bytes());
    // transformers takes a single file before an index.
    edit(&["--max-shard-size", "128"]).fails(2, "--force replaces it");
    assert_eq!(scratch.names("set"), ["model.safetensors"]);
    edit(&["--max-shard-size", "128", "--force"]).ok();
    assert_eq!(
        scratch.names("set"),
        [&SHARDS[..], &["model.safetensors.index.json"]].concat()
    );
}

/// No verb takes the set; each says why, and writes nothing.
#[track_caller]
fn check_refused(scratch: &Scratch, path: &str, messages: &[&str]) {
    let from = format!("from {path} take **");
    for args in [
        &["inspect", path][..],
        &["convert", path, "out.pth"],
        &["edit", path, "out.safetensors", "-e", "scale ** 2"],
        &["edit", "other.pth", "out.safetensors", "-e", &from],
        &["merge", "uniform", "-o", "out", path, path],
    ] {
        if args.contains(&"other.pth") && !scratch.path("other.pth").exists() {
            scratch.save("other.pth", &[("x", floats(&[1], 0.0))]);
        }
        let mut said = scratch.graftwork(args);
        for message in messages {
            said = said.fails(3, message);
        }
    }
    let left: Vec<String> = scratch
        .names("")
        .into_iter()
        .filter(|name| name.starts_with("out") || name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A set of three shards, broken by `spoil`, which may return another index.
#[track_caller]
fn check_rejects(spoil: impl Fn(&Scratch, Value) -> Value, messages: &[&str]) {
    let scratch = three_shards();
    let index = spoil(&scratch, index(&scratch, INDEX));
    scratch.write(INDEX, &serde_json::to_vec(&index).unwrap());
    check_refused(&scratch, "set", messages);
    check_refused(&scratch, INDEX, messages);
}

#[test]
fn shards_that_are_not_as_the_index_says() {
    let shard = |scratch: &Scratch, n: usize| scratch.path("set").join(SHARDS[n]);
    check_rejects(
        |scratch, index| {
            fs::remove_file(shard(scratch, 1)).unwrap();
            index
        },
        &["`model-00002-of-00003.safetensors`", "is missing"],
    );
    check_rejects(
        |scratch, index| {
            fs::copy(
                shard(scratch, 0),
                scratch.path("set/model-00004-of-00004.safetensors"),
            )
            .unwrap();
            index
        },
        &["`model-00004-of-00004.safetensors`"],
    );
    check_rejects(
        |scratch, index| {
            fs::rename(shard(scratch, 0), scratch.path("x")).unwrap();
            fs::rename(shard(scratch, 2), shard(scratch, 0)).unwrap();
            fs::rename(scratch.path("x"), shard(scratch, 2)).unwrap();
            index
        },
        &["`model-00001-of-00003.safetensors`"],
    );
    check_rejects(
        |scratch, index| {
            let bytes = fs::read(shard(scratch, 1)).unwrap();
            scratch.write(&format!("set/{}", SHARDS[1]), &bytes[..bytes.len() - 1]);
            index
        },
        &["model-00002-of-00003.safetensors"],
    );
    check_rejects(
        |_, mut index| {
            index["weight_map"]["a.1"] = SHARDS[2].into();
            index
        },
        &["`a.1`", "`model-00001-of-00003.safetensors`"],
    );
    check_rejects(
        |_, mut index| {
            index["weight_map"].as_object_mut().unwrap().remove("c.1");
            index
        },
        &["`c.1`", "`model-00003-of-00003.safetensors`"],
    );
    check_rejects(
        |_, mut index| {
            index["weight_map"]["ghost"] = SHARDS[1].into();
            index
        },
        &["`ghost`", "`model-00002-of-00003.safetensors`"],
    );
    check_rejects(
        |_, mut index| {
            index["metadata"]["total_size"] = 283.into();
            index
        },
        &["283", "284"],
    );
}

#[test]
fn an_index_that_leads_out_of_its_folder() {
    for outside in [
        "../x.safetensors",
        "..",
        "sub/x.safetensors",
        "/etc/hostname",
        "",
        "a\\b",
    ] {
        let message = format!("`{outside}`");
        check_rejects(
            |scratch, mut index| {
                fs::copy(scratch.path("set").join(SHARDS[1]), scratch.path("x.safetensors")).unwrap();
                index["weight_map"]["b"] = outside.into();
                index
            },
            &[&message],
        );
    }
    #[cfg(unix)]
    check_rejects(
        |scratch, index| {
            let shard = scratch.path("set").join(SHARDS[1]);
            fs::rename(&shard, scratch.path("x.safetensors")).unwrap();
            std::os::unix::fs::symlink(scratch.path("x.safetensors"), &shard).unwrap();
            index
        },
        &["`model-00002-of-00003.safetensors` is a link"],
    );
}

#[test]
fn an_index_that_is_none() {
    let whole = String::from_utf8(fs::read(three_shards().path(INDEX)).unwrap()).unwrap();
    let twice = whole.replace(
        "\"b\":",
        "\"a.0\": \"model-00001-of-00003.safetensors\",\n    \"b\":",
    );
    for (text, message) in [
        ("no json", "is no index"),
        ("", "is no index"),
        (&whole[..whole.len() / 2], "is no index"),
        (r#"{"metadata": {}}"#, "is no index"),
        (r#"{"weight_map": {"a.0": 1}}"#, "is no index"),
        (r#"{"weight_map": {}}"#, "lists no tensors"),
        (&twice, "`a.0`"),
    ] {
        let scratch = three_shards();
        scratch.write(INDEX, text.as_bytes());
        check_refused(&scratch, "set", &[message, "model.safetensors.index.json"]);
    }
    // Without a size there is nothing to compare.
    let scratch = three_shards();
    let mut index = index(&scratch, INDEX);
    index["metadata"].as_object_mut().unwrap().remove("total_size");
    scratch.write(INDEX, &serde_json::to_vec(&index).unwrap());
    assert_eq!(tensors(&scratch.path("set")), tensors(&scratch.path("in.pth")));
}

/// What a kill leaves of a set that is written for the first time.
#[test]
fn a_shard_without_an_index_is_no_model() {
    for n_shards in [1, 2, 3] {
        let scratch = three_shards();
        fs::remove_file(scratch.path(INDEX)).unwrap();
        for shard in &SHARDS[n_shards..] {
            fs::remove_file(scratch.path("set").join(shard)).unwrap();
        }
        check_refused(&scratch, "set", &["`set`"]);
    }
}
