//! Small builders for the bytes of checkpoints, true or false.
#![allow(
    dead_code,
    reason = "each test binary compiles its own copy and uses another part of it"
)]

pub(crate) mod legacy;
pub(crate) mod pickle;
pub(crate) mod zip;

pub(crate) use legacy::Stacked;
pub(crate) use pickle::Pickle;
pub(crate) use zip::{Archive, Entry, Method};

/// A zip checkpoint around `data_pkl`.
pub(crate) fn archive(data_pkl: &[u8], storages: &[(&str, &[u8])], method: Method) -> Vec<u8> {
    let mut entries = vec![
        Entry::new("m/data.pkl", data_pkl, method),
        Entry::new("m/version", b"3\n", method),
    ];
    for (key, bytes) in storages {
        entries.push(Entry::new(&format!("m/data/{key}"), bytes, method));
    }
    Archive::of(entries).bytes()
}

/// A legacy checkpoint around `object`; each storage is a key, its number of elements and its bytes.
pub(crate) fn stacked(object: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    Stacked::new(object, storages).bytes()
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
