//! Any values are saved, opened and found again: names, order, types, shapes, strides, sharing, marks, bytes.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pth::{Checkpoint, DType, Dict, OpenOptions, Profile, Source, StateDict, Storage, Tensor, Value, WeightsOnly};

#[derive(Arbitrary, Debug)]
struct Input {
    storages: Vec<(u8, Vec<u8>)>,
    tensors: Vec<View>,
    leaves: Vec<(String, Leaf)>,
}

#[derive(Arbitrary, Debug)]
struct View {
    name: String,
    storage: u8,
    offset: u8,
    dims: Vec<(u8, u8)>,
    mark: Option<bool>,
}

#[derive(Arbitrary, Debug)]
enum Leaf {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Sizes(Vec<i64>),
    List(Vec<Leaf>),
    Tuple(Vec<Leaf>),
    Dict(Vec<(String, Leaf)>),
}

fn value(leaf: &Leaf) -> Value {
    match leaf {
        Leaf::None => Value::None,
        Leaf::Bool(value) => Value::Bool(*value),
        Leaf::Int(value) => Value::Int(*value),
        Leaf::Float(value) => Value::Float(*value),
        Leaf::Str(text) => Value::Str(text.clone()),
        Leaf::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Leaf::Sizes(sizes) => Value::Size(sizes.clone()),
        Leaf::List(items) => Value::List(items.iter().map(value).collect()),
        Leaf::Tuple(items) => Value::Tuple(items.iter().map(value).collect()),
        Leaf::Dict(items) => Value::Dict(Dict {
            items: items.iter().map(|(key, leaf)| (Value::Str(key.clone()), value(leaf))).collect(),
            ..Dict::default()
        }),
    }
}

fuzz_target!(|input: Input| {
    let dtypes: Vec<DType> = DType::all().collect();
    let storages: Vec<(DType, Storage)> = input
        .storages
        .iter()
        .map(|(dtype, bytes)| {
            let dtype = dtypes[usize::from(*dtype) % dtypes.len()];
            let whole = bytes.len() / dtype.size() * dtype.size();
            (dtype, Storage::owned(bytes[..whole].to_vec()))
        })
        .collect();
    let mut tensors = StateDict::new();
    for view in &input.tensors {
        let Some((dtype, storage)) = storages.get(usize::from(view.storage)) else {
            continue;
        };
        let (shape, stride): (Vec<usize>, Vec<usize>) =
            view.dims.iter().map(|&(size, step)| (usize::from(size), usize::from(step))).unzip();
        let tensor = Tensor::from_storage(storage.clone(), *dtype, &shape, &stride, usize::from(view.offset));
        if let Ok(tensor) = tensor {
            let tensor = match view.mark {
                // torch gives gradients to real and complex numbers only.
                Some(trains) => tensor.into_parameter(trains && (dtype.is_float() || dtype.is_complex())),
                None => tensor,
            };
            tensors.insert(format!("t.{}", view.name), tensor);
        }
    }
    let saved = pth::save_to_bytes(&Value::from(tensors.clone()), Profile::Torch).expect("tensors are plain");
    let source = Source::from_bytes(saved.clone());
    assert_eq!(pth::scan(&source).weights_only, WeightsOnly::Loads);
    assert!(pth::verify(&source).faults.is_empty());
    let found = Checkpoint::from_source(source, &OpenOptions::default()).expect("what was saved opens");
    assert!(found.problems().is_empty(), "{:?}", found.problems());
    assert!(found.state_dict().names().eq(tensors.names()));
    let mut storage_of = HashMap::new();
    for ((name, tensor), (_, found)) in tensors.iter().zip(found.state_dict().iter()) {
        assert_eq!(found.dtype(), tensor.dtype(), "{name}");
        assert_eq!((found.shape(), found.stride()), (tensor.shape(), tensor.stride()), "{name}");
        assert_eq!(found.storage_offset(), tensor.storage_offset(), "{name}");
        assert_eq!(found.requires_grad(), tensor.requires_grad(), "{name}");
        assert_eq!(found.is_parameter(), tensor.is_parameter(), "{name}");
        let id = storage_of.entry(tensor.storage().id()).or_insert(found.storage().id());
        assert_eq!(*id, found.storage().id(), "{name} shares its storage");
        assert_eq!(found.to_bytes().ok(), tensor.to_bytes().ok(), "{name}");
    }
    let again = pth::save_to_bytes(&Value::from(found.into_state_dict()), Profile::Torch);
    assert_eq!(again.expect("tensors are plain"), saved, "saving what was saved changes nothing");

    let items = input.leaves.iter().map(|(key, leaf)| (Value::Str(key.clone()), value(leaf))).collect();
    let all = Value::Dict(Dict { items, ..Dict::default() });
    if let Ok(saved) = pth::save_to_bytes(&all, Profile::Torch) {
        // Equal keys are refused unless the caller says which wins.
        let options = OpenOptions { last_wins: true, ..OpenOptions::default() };
        let found = Checkpoint::from_source(Source::from_bytes(saved.clone()), &options);
        if let Ok(value) = found.and_then(|found| found.value()) {
            assert_eq!(pth::save_to_bytes(&value, Profile::Torch).expect("it was plain"), saved);
        }
    }
});
