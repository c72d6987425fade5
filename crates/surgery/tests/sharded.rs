//! Sets of files with an index, made file by file: what is read, what is refused and in which words.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use pth::{DType, Existing, Profile, SaveOptions, StateDict, Tensor};
use surgery::Format;

const A: &str = "model-00001-of-00002.safetensors";
const B: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    File::create(folder.join(name)).unwrap().write_all(bytes).unwrap();
}

fn floats(names: &[(&str, usize)]) -> StateDict {
    let tensor = |n: usize| Tensor::from_bytes(DType::Float32, &[n], vec![n as u8; 4 * n]).unwrap();
    names
        .iter()
        .map(|&(name, n)| (name.to_owned(), tensor(n)))
        .collect()
}

fn shard(folder: &Path, name: &str, tensors: &[(&str, usize)], metadata: &[(&str, &str)]) {
    let metadata: BTreeMap<String, String> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    surgery::save_safetensors(&folder.join(name), &floats(tensors), &metadata, Existing::Replace).unwrap();
}

/// A sound set of two shards, three tensors and 24 bytes.
fn sound() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    shard(
        folder.path(),
        A,
        &[("z.weight", 1), ("a.weight", 2)],
        &[("from", "a")],
    );
    shard(
        folder.path(),
        B,
        &[("m.bias", 3)],
        &[("from", "b"), ("late", "yes")],
    );
    let index = format!(
        r#"{{"metadata":{{"total_size":24,"note":"n","list":[1,2]}},
        "weight_map":{{"a.weight":"{A}","m.bias":"{B}","z.weight":"{A}"}}}}"#
    );
    put(folder.path(), INDEX, index.as_bytes());
    folder
}

#[test]
fn a_set_is_one_state_dict_by_its_folder_and_by_its_index() {
    let folder = sound();
    for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
        let opened = surgery::open(&path).unwrap();
        assert_eq!(opened.format, Format::ShardedSafetensors { n_shards: 2 });
        assert_eq!(opened.format.to_string(), "safetensors, 2 shards");
        assert!(opened.state_dict.names().eq(["z.weight", "a.weight", "m.bias"]));
        assert_eq!(
            *opened.state_dict.get("m.bias").unwrap().to_bytes().unwrap(),
            [3; 12]
        );
        let metadata: Vec<(&str, &str)> = opened
            .metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let expected = [
            ("format", "pt"),
            ("from", "a"),
            ("late", "yes"),
            ("list", "[1,2]"),
            ("note", "n"),
        ];
        assert_eq!(metadata, expected);
    }
    // One shard by itself is a file as any.
    let part = surgery::open(&folder.path().join(A)).unwrap();
    assert_eq!((part.format, part.state_dict.len()), (Format::Safetensors, 2));
}

fn check_rejects(folder: &Path, message: &str) {
    let text = surgery::open(folder).unwrap_err().to_string();
    let fault = text
        .split_once("cannot be read: ")
        .map_or(text.as_str(), |(_, fault)| fault);
    assert_eq!(fault, message);
}

fn with_index(json: &str) -> tempfile::TempDir {
    let folder = sound();
    put(
        folder.path(),
        INDEX,
        json.replace('A', A).replace('B', B).as_bytes(),
    );
    folder
}

#[test]
fn what_contradicts_the_index_is_refused_by_name() {
    let check = |json: &str, message: &str| check_rejects(with_index(json).path(), message);
    check(
        r#"{"weight_map":{"a.weight":"A","z.weight":"B","m.bias":"B"}}"#,
        "shard `model-00001-of-00002.safetensors` holds tensor `z.weight`, which the index does not list there",
    );
    check(
        r#"{"weight_map":{"a.weight":"A","z.weight":"A","m.bias":"B","q":"B"}}"#,
        "shard `model-00002-of-00002.safetensors` lacks tensor `q`, which the index says it holds",
    );
    check(
        r#"{"weight_map":{"a.weight":"A","z.weight":"A","a.weight":"A","m.bias":"B"}}"#,
        "its index lists tensor `a.weight` twice",
    );
    check(
        r#"{"weight_map":{"a.weight":"A","z.weight":"A"}}"#,
        "its index does not list `model-00002-of-00002.safetensors`, which is called like one of its shards",
    );
    check(
        r#"{"weight_map":{"a.weight":"A","z.weight":"A","m.bias":"B","x":"C","y":"C"}}"#,
        "shard `C` is missing, which holds 2 of the 5 tensors",
    );
    check(
        r#"{"metadata":{"total_size":25},"weight_map":{"a.weight":"A","z.weight":"A","m.bias":"B"}}"#,
        "its tensors are 24 bytes, its index tells of 25",
    );
    check(r#"{"weight_map":{}}"#, "its index lists no tensors");
    check(
        r#"{"weight_map":{"a":1}}"#,
        "its index is no index: invalid type: integer `1`, expected a string at line 1 column 20",
    );
    for name in ["../x", "/etc/passwd", "..", "", "sub/x", r"sub\\x", "c:x"] {
        let json = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        let shown = name.replace(r"\\", r"\");
        check(
            &json,
            &format!("its index names `{shown}`, which is no bare file name"),
        );
    }
    // Sizes that writers have put down as floats.
    let json =
        r#"{"metadata":{"total_size":24.0},"weight_map":{"a.weight":"A","z.weight":"A","m.bias":"B"}}"#;
    assert!(surgery::open(with_index(json).path()).is_ok());
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = sound();
    shard(folder.path(), B, &[("m.bias", 3), ("a.weight", 2)], &[]);
    let index =
        format!(r#"{{"weight_map":{{"a.weight":"{A}","z.weight":"{A}","m.bias":"{B}","a.weight":"{B}"}}}}"#);
    put(folder.path(), INDEX, index.as_bytes());
    check_rejects(folder.path(), "its index lists tensor `a.weight` twice");
}

#[test]
fn a_name_that_is_in_a_shard_twice_is_refused() {
    let folder = sound();
    let json = r#"{"m.bias":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"m.bias":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend_from_slice(b"12");
    put(folder.path(), B, &bytes);
    check_rejects(
        folder.path(),
        "shard `model-00002-of-00002.safetensors` holds tensor `m.bias` twice",
    );
}

#[test]
fn a_broken_shard_is_told_of_by_its_own_name() {
    let folder = sound();
    put(folder.path(), B, b"\x02\0\0\0\0\0\0\0{}more");
    let text = surgery::open(folder.path()).unwrap_err().to_string();
    assert!(
        text.ends_with(
            "model-00002-of-00002.safetensors` is not a valid safetensors file: 0 bytes of tensors, found 4"
        ),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn links_may_not_leave_the_folder_but_for_where_the_index_lies() {
    use std::os::unix::fs::symlink;
    let (folder, real) = (sound(), sound());
    std::fs::remove_file(folder.path().join(B)).unwrap();
    symlink(real.path().join(B), folder.path().join(B)).unwrap();
    check_rejects(
        folder.path(),
        "shard `model-00002-of-00002.safetensors` is a link that leaves the folder, or leads nowhere",
    );
    // The cache of the Hugging Face hub: index and shards are links into one folder of blobs.
    std::fs::remove_file(folder.path().join(INDEX)).unwrap();
    symlink(real.path().join(INDEX), folder.path().join(INDEX)).unwrap();
    assert_eq!(surgery::open(folder.path()).unwrap().state_dict.len(), 3);
    // Within the folder.
    let folder = sound();
    std::fs::rename(folder.path().join(B), folder.path().join("blob")).unwrap();
    symlink("blob", folder.path().join(B)).unwrap();
    assert!(surgery::open(folder.path()).is_ok());
}

#[test]
fn pickled_shards_are_a_set_too() {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        profile: Profile::Torch,
        existing: Existing::Refuse,
    };
    for (file, tensors) in [
        ("x_0001.pt", &[("a", 1), ("b", 2)][..]),
        ("x_0002.pt", &[("c", 3)]),
    ] {
        pth::save_state_dict(&folder.path().join(file), &floats(tensors), &options).unwrap();
    }
    let index =
        r#"{"metadata":{"total_size":24},"weight_map":{"a":"x_0001.pt","b":"x_0001.pt","c":"x_0002.pt"}}"#;
    put(folder.path(), "pytorch_model.bin.index.json", index.as_bytes());
    let opened = surgery::open(folder.path()).unwrap();
    assert_eq!(opened.format, Format::ShardedPth { n_shards: 2 });
    assert!(opened.state_dict.names().eq(["a", "b", "c"]));
    // safetensors go before pickles.
    shard(folder.path(), "model.safetensors", &[("s", 1)], &[]);
    assert!(surgery::open(folder.path()).unwrap().state_dict.names().eq(["s"]));
}

#[test]
fn a_folder_with_one_file_is_that_file_and_one_with_several_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = surgery::open(folder.path()).unwrap_err();
    assert!(matches!(text, surgery::Error::File(_)), "{text}");
    shard(folder.path(), "adapter.safetensors", &[("s", 1)], &[]);
    assert_eq!(surgery::open(folder.path()).unwrap().format, Format::Safetensors);
    shard(folder.path(), "other.safetensors", &[("s", 1)], &[]);
    let text = surgery::open(folder.path()).unwrap_err().to_string();
    assert!(
        text.ends_with(
            "` holds `adapter.safetensors` and `other.safetensors`, and none of them is the usual one"
        ),
        "{text}"
    );
}

/// `safetensors.torch.save_model` records `dropped -> kept`.
#[test]
fn names_that_share_a_tensor_share_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = [
        ("lm_head.weight", "wte.weight"),
        ("frozen", "wte.weight"),
        ("a.tied", "wte.weight"),
        ("best", "nothing"),
        ("b", "wte.weight"),
    ];
    shard(
        folder.path(),
        "m.safetensors",
        &[("wte.weight", 2), ("b", 1)],
        &metadata,
    );
    let opened = surgery::open(&folder.path().join("m.safetensors")).unwrap();
    let names = ["wte.weight", "b", "a.tied", "lm_head.weight"];
    assert!(opened.state_dict.names().eq(names));
    let storage = |name: &str| opened.state_dict.get(name).unwrap().storage().id();
    assert_eq!(storage("a.tied"), storage("wte.weight"));
    assert_eq!(storage("lm_head.weight"), storage("wte.weight"));
    assert_ne!(storage("b"), storage("wte.weight"));
    assert!(opened.metadata.keys().eq(["b", "best", "format", "frozen"]));
    // Marks are by name, and reach tied names too.
    assert!(opened.state_dict.get("lm_head.weight").unwrap().requires_grad());
    assert!(!opened.state_dict.get("wte.weight").unwrap().requires_grad());
}
