//! What is written: read back by this crate, and by the `zip` crate as an independent reader of archives.
//! What torch makes of it, `tools/parity_checkpoints.py` compares.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::fs;
use std::io::{Cursor, Read};

use pth::{
    Backing, ByteOrder, Checkpoint, DType, Dict, Error, Existing, ModuleVersion, OpenOptions, Profile,
    SaveOptions, Source, StateDict, Storage, Tensor, Value, WeightsOnly,
};

const REPLACE: SaveOptions = SaveOptions {
    profile: Profile::Torch,
    existing: Existing::Replace,
};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Views of one storage, marks of every kind, a large storage, types old and new, an empty tensor and a scalar.
fn sample() -> StateDict {
    let storage = Storage::owned(floats(&[0., 1., 2., 3., 4., 5.]));
    let view = |shape: &[usize], stride: &[usize], offset| {
        Tensor::from_storage(storage.clone(), DType::Float32, shape, stride, offset).unwrap()
    };
    let mut tensors = StateDict::new();
    tensors.insert("z.weight", view(&[2, 3], &[3, 1], 0).into_parameter(true));
    tensors.insert("a.transposed", view(&[3, 2], &[1, 3], 0).into_parameter(false));
    tensors.insert("a.slice", view(&[2], &[2], 1));
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    tensors.insert(
        "large",
        Tensor::from_bytes(DType::Uint8, &[3_000_000], large).unwrap(),
    );
    tensors.insert(
        "u16",
        Tensor::from_bytes(DType::Uint16, &[2], vec![1, 2, 3, 4]).unwrap(),
    );
    tensors.insert(
        "fp8",
        Tensor::from_bytes(DType::Float8E4M3Fn, &[3], vec![1, 2, 3]).unwrap(),
    );
    tensors.insert(
        "empty",
        Tensor::from_bytes(DType::Float64, &[0, 4], Vec::new()).unwrap(),
    );
    tensors.insert(
        "scalar",
        Tensor::from_bytes(DType::Int64, &[], vec![7, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
    );
    let version = |module: &str, version| ModuleVersion {
        module: module.to_owned(),
        version,
    };
    tensors.with_metadata(vec![
        version("", Some(1)),
        version("a", Some(2)),
        version("z", None),
    ])
}

fn opened(bytes: Vec<u8>) -> Checkpoint {
    Checkpoint::from_source(Source::from_bytes(bytes), &OpenOptions::default()).unwrap()
}

fn check_same(found: &StateDict, expected: &StateDict) {
    assert!(found.names().eq(expected.names()));
    assert_eq!(found.metadata(), expected.metadata());
    for ((name, found), (_, expected)) in found.iter().zip(expected.iter()) {
        assert_eq!(found.dtype(), expected.dtype(), "{name}");
        assert_eq!(
            (found.shape(), found.stride()),
            (expected.shape(), expected.stride()),
            "{name}"
        );
        assert_eq!(found.storage_offset(), expected.storage_offset(), "{name}");
        assert_eq!(found.requires_grad(), expected.requires_grad(), "{name}");
        assert_eq!(found.is_parameter(), expected.is_parameter(), "{name}");
        assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{name}");
    }
}

#[test]
fn open_of_save_is_the_identity_and_saving_again_changes_no_byte() {
    let saved = pth::save_to_bytes(&Value::from(sample()), Profile::Torch).unwrap();
    let found = opened(saved.clone());
    check_same(found.state_dict(), &sample());
    let storage = |name| found.state_dict().get(name).unwrap().storage().clone();
    assert!(
        storage("z.weight").ptr_eq(&storage("a.slice")),
        "shared storages stay shared"
    );
    assert!(!storage("z.weight").ptr_eq(&storage("large")));
    let again = pth::save_to_bytes(&Value::from(found.into_state_dict()), Profile::Torch).unwrap();
    assert!(again == saved);
    let source = Source::from_bytes(saved);
    assert_eq!(pth::scan(&source).weights_only, WeightsOnly::Loads);
    assert_eq!(pth::scan(&source).findings, []);
    let verified = pth::verify(&source);
    assert_eq!((verified.faults, verified.n_without_crc), (Vec::new(), 0));
}

/// The `zip` crate checks CRCs when a member is read to its end, and finds headers where the directory says.
#[test]
fn every_record_is_stored_aligned_sound_and_of_the_right_size() {
    let saved = pth::save_to_bytes(&Value::from(sample()), Profile::Torch).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(&saved)).unwrap();
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.unwrap().into_owned())
        .collect();
    let storages = ["0", "1", "2", "3", "4", "5"].map(|key| format!("archive/data/{key}"));
    let mut expected = vec!["archive/data.pkl".to_owned(), "archive/byteorder".to_owned()];
    expected.extend(storages);
    expected.push("archive/version".to_owned());
    assert_eq!(names, expected);
    let mut sizes = Vec::new();
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).unwrap();
        assert_eq!(member.compression(), zip::CompressionMethod::Stored);
        assert_eq!(member.data_start().unwrap() % 64, 0, "{:?}", member.name());
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, member.size());
        sizes.push(bytes.len());
    }
    assert_eq!(sizes[2..8], [24, 3_000_000, 4, 3, 0, 8]);
}

#[test]
fn a_file_replaces_its_own_mapped_source_and_a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pth");
    let n_bytes = pth::save_state_dict(&path, &sample(), &REPLACE).unwrap();
    assert_eq!(n_bytes, fs::metadata(&path).unwrap().len());
    for backing in [Backing::Map, Backing::Read] {
        let options = OpenOptions {
            backing,
            ..OpenOptions::default()
        };
        let mapped = Checkpoint::open_with(&path, &options).unwrap();
        pth::save_state_dict(&path, mapped.state_dict(), &REPLACE).unwrap();
        // The source is the old file, which lives on until it is dropped.
        check_same(mapped.state_dict(), &sample());
        check_same(
            Checkpoint::open_with(&path, &options).unwrap().state_dict(),
            &sample(),
        );
    }
    let refuse = SaveOptions {
        existing: Existing::Refuse,
        ..REPLACE
    };
    assert!(matches!(
        pth::save_state_dict(&path, &sample(), &refuse),
        Err(Error::File(_))
    ));
    let other = dir.path().join("other.pth");
    let error = pth::save(&other, &Value::Global("os.system".to_owned()), &REPLACE).unwrap_err();
    assert_eq!(error.to_string(), "`(all of it)`: os.system is no plain value");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_source_that_changes_is_noticed_and_one_that_is_damaged_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("a.pth"), dir.path().join("b.pth"));
    pth::save_state_dict(&path, &sample(), &REPLACE).unwrap();
    // A flipped bit in the large storage, which is only read while it is being written.
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let damaged = Checkpoint::from_source(Source::from_bytes(bytes), &OpenOptions::default()).unwrap();
    let error = pth::save_state_dict(&copy, damaged.state_dict(), &REPLACE).unwrap_err();
    assert!(
        error.to_string().starts_with("record `data/1`: its CRC is "),
        "{error}"
    );
    assert!(!copy.exists());
    let options = OpenOptions {
        backing: Backing::Read,
        ..OpenOptions::default()
    };
    let open = Checkpoint::open_with(&path, &options).unwrap();
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_len(fs::metadata(&path).unwrap().len() + 1).unwrap();
    let error = open.state_dict().get("large").unwrap().to_bytes().unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn libtorch_gets_plain_dicts_and_types_that_it_knows() {
    let mut tensors = sample();
    let error = pth::save_to_bytes(&Value::from(tensors.clone()), Profile::LibTorch).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`u16`: libtorch does not read uint16 from a file"
    );
    tensors.remove("u16");
    tensors.remove("fp8");
    let saved = pth::save_to_bytes(&Value::from(tensors.clone()), Profile::LibTorch).unwrap();
    let found = opened(saved);
    assert!(found.state_dict().names().eq(tensors.names()));
    let weight = found.state_dict().get("z.weight").unwrap();
    assert!(weight.requires_grad() && !weight.is_parameter());
    assert!(found.state_dict().metadata().is_empty());
}

#[test]
fn big_endian_numbers_are_turned_round_in_the_storage() {
    let little = pth::save_to_bytes(&Value::from(sample()), Profile::Torch).unwrap();
    let options = OpenOptions {
        byte_order: Some(ByteOrder::Big),
        ..OpenOptions::default()
    };
    let big = Checkpoint::from_source(Source::from_bytes(little), &options).unwrap();
    let saved = pth::save_to_bytes(&Value::from(big.state_dict().clone()), Profile::Torch).unwrap();
    check_same(opened(saved).state_dict(), big.state_dict());
}

#[test]
fn storages_of_two_types_and_integers_with_gradients_are_refused_by_name() {
    let storage = Storage::owned(vec![0; 8]);
    let of = |dtype| Tensor::from_storage(storage.clone(), dtype, &[1], &[1], 0).unwrap();
    let mut tensors = StateDict::new();
    tensors.insert("a", of(DType::Float32));
    tensors.insert("b", of(DType::Int32));
    let check = |tensors: &StateDict, message: &str| {
        let error = pth::save_to_bytes(&Value::from(tensors.clone()), Profile::Torch).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    check(
        &tensors,
        "`b`: it shares its storage with a tensor of another type (torch.FloatStorage), which torch does not save",
    );
    tensors.insert("b", of(DType::Int32).with_requires_grad(true));
    tensors.remove("a");
    check(&tensors, "`b`: torch gives no gradients to int32");
}

#[test]
fn everything_else_survives_as_typed_values() {
    let text = |text: &str| Value::Str(text.to_owned());
    let dict = |items| {
        Value::Dict(Dict {
            items,
            ..Dict::default()
        })
    };
    let values = vec![
        (text("none"), Value::None),
        (text("flag"), Value::Bool(true)),
        (Value::Int(-3), Value::Int(i64::MIN)),
        (text("big"), Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0, 1])),
        (text("float"), Value::Float(-0.0)),
        (text("complex"), Value::Complex(1.5, -2.0)),
        (text("text"), text("ä 日本 \u{1f9ea}")),
        (text("bytes"), Value::Bytes((0..=255).collect())),
        (text("no bytes"), Value::Bytes(Vec::new())),
        (
            Value::Tuple(vec![text("key"), Value::Int(1)]),
            Value::Tuple(vec![Value::Int(70_000), Value::Tuple(Vec::new())]),
        ),
        (
            text("list"),
            Value::List(vec![Value::None, Value::List(Vec::new())]),
        ),
        (text("set"), Value::Set(vec![Value::Int(300)])),
        (text("size"), Value::Size(vec![1, 2, 3, 4])),
        (text("device"), Value::Device("cuda:1".to_owned())),
        (text("dtype"), Value::DType("bfloat16".to_owned())),
        (text("nested"), dict(vec![(text("deep"), dict(Vec::new()))])),
    ];
    let saved = pth::save_to_bytes(&dict(values), Profile::Torch).unwrap();
    assert_eq!(
        pth::scan(&Source::from_bytes(saved.clone())).weights_only,
        WeightsOnly::Loads
    );
    let value = opened(saved.clone()).value().unwrap();
    assert!(matches!(value.get("big"), Some(Value::BigInt(_))));
    assert!(matches!(value.get("bytes"), Some(Value::Bytes(bytes)) if bytes.len() == 256));
    assert!(matches!(value.get("device"), Some(Value::Device(device)) if device == "cuda:1"));
    let (value, changes) = value.into_plain();
    assert_eq!(changes, []);
    assert!(pth::save_to_bytes(&value, Profile::Torch).unwrap() == saved);
}

/// Found by review: an object may hold something in each of its places, and short forms kept one of them.
#[test]
fn nothing_of_an_object_is_lost_on_the_way_to_plain_values() {
    let text = |text: &str| Value::Str(text.to_owned());
    let object = |change: &dyn Fn(&mut pth::Object)| {
        let mut object = pth::Object {
            class: "some.where.Thing".to_owned(),
            ..pth::Object::default()
        };
        change(&mut object);
        Value::Object(Box::new(object))
    };
    let entry = (text("a"), Value::Int(1));
    let list_with_attribute = object(&|object| {
        object.appended = vec![Value::Int(2)];
        object.attributes = vec![entry.clone()];
    });
    let (plain, changes) = list_with_attribute.into_plain();
    assert!(matches!(plain.get("appended"), Some(Value::List(items)) if items.len() == 1));
    assert!(matches!(plain.get("attributes"), Some(Value::Dict(dict)) if dict.items.len() == 1));
    assert_eq!(changes.len(), 1);
    let (plain, _) = object(&|object| object.attributes = vec![entry.clone()]).into_plain();
    assert!(matches!(plain.get("a"), Some(Value::Int(1))));
    // Keys that Python would not take, and that would become equal.
    let key = |n| object(&|object| object.args = vec![Value::Int(n)]);
    let dict = Value::Dict(Dict {
        items: vec![
            (key(1), Value::Int(1)),
            (key(1), Value::Int(2)),
            (Value::FrozenSet(vec![Value::Int(3)]), Value::None),
        ],
        ..Dict::default()
    });
    let (plain, _) = dict.into_plain();
    assert!(matches!(plain.get("some.where.Thing(1)"), Some(Value::Int(1))));
    assert!(matches!(plain.get("some.where.Thing(1)'"), Some(Value::Int(2))));
    let saved = pth::save_to_bytes(&plain, Profile::Torch).unwrap();
    assert_eq!(
        pth::scan(&Source::from_bytes(saved)).weights_only,
        WeightsOnly::Loads
    );
    let unhashable = Value::Set(vec![Value::List(Vec::new())]);
    let error = pth::save_to_bytes(&unhashable, Profile::Torch).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`(all of it)`: <list of 0> cannot be a key or in a set"
    );
    // Lone surrogates are kept as they are.
    let surrogates = [b"a\xed\xa0\x80".to_vec(), b"a\xed\xa0\x81".to_vec()];
    let raw = Value::List(surrogates.iter().cloned().map(Value::RawStr).collect());
    let saved = pth::save_to_bytes(&raw, Profile::Torch).unwrap();
    match opened(saved).value().unwrap() {
        Value::List(items) => {
            let found: Vec<_> = items
                .iter()
                .map(|item| matches!(item, Value::RawStr(bytes) if surrogates.contains(bytes)))
                .collect();
            assert_eq!(found, [true, true]);
        }
        other => panic!("{other}"),
    }
}
