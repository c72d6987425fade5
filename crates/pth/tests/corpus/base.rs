//! The honest parts that every file of the corpus is made of.

use crate::build::{Archive, Entry, Pickle, Stacked, floats};

/// The bytes of the honest tensor `w`: four floats.
pub(crate) fn w() -> Vec<u8> {
    floats(&[1.0, 2.0, 3.0, 4.0])
}

/// The bytes of the suspect's own storage: four floats too.
pub(crate) fn t() -> Vec<u8> {
    floats(&[5.0, 6.0, 7.0, 8.0])
}

/// A fragment that makes `w`.
pub(crate) fn honest() -> Pickle {
    Pickle::bare().tensor("0", 4, 0, &[2, 2], &[2, 1])
}

/// A fragment that makes a sound tensor of the suspect's storage.
pub(crate) fn second() -> Pickle {
    Pickle::bare().tensor("1", 4, 0, &[4], &[1])
}

/// `{'w': w}`
pub(crate) fn plain() -> Vec<u8> {
    Pickle::new().op(b"}(").str("w").then(&honest()).op(b"u").stop()
}

/// `{'w': w, 't': <t>}`
pub(crate) fn beside(t: &Pickle) -> Vec<u8> {
    Pickle::new()
        .op(b"}(")
        .str("w")
        .then(&honest())
        .str("t")
        .then(t)
        .op(b"u")
        .stop()
}

/// `{'t': <t>, 'w': w}`
pub(crate) fn before(t: &Pickle) -> Vec<u8> {
    Pickle::new()
        .op(b"}(")
        .str("t")
        .then(t)
        .str("w")
        .then(&honest())
        .op(b"u")
        .stop()
}

/// The entries of a zip checkpoint; a storage that the pickle does not mention is left out.
pub(crate) fn entries(data_pkl: &[u8]) -> Vec<Entry> {
    let mut entries = vec![
        Entry::stored("m/data.pkl", data_pkl),
        Entry::stored("m/version", b"3\n"),
    ];
    for (key, bytes) in storages(data_pkl) {
        entries.push(Entry::stored(&format!("m/data/{key}"), &bytes));
    }
    entries
}

pub(crate) fn zip(data_pkl: &[u8]) -> Vec<u8> {
    Archive::of(entries(data_pkl)).bytes()
}

/// A zip of `{'w': w}` after `change`.
pub(crate) fn changed(change: impl FnOnce(&mut Archive)) -> Vec<u8> {
    Archive::of(entries(&plain())).with(change).bytes()
}

/// A zip checkpoint with other bytes under the key `1`.
pub(crate) fn zip_over(data_pkl: &[u8], t: &[u8]) -> Vec<u8> {
    Archive::of([
        Entry::stored("m/data.pkl", data_pkl),
        Entry::stored("m/version", b"3\n"),
        Entry::stored("m/data/0", &w()),
        Entry::stored("m/data/1", t),
    ])
    .bytes()
}

pub(crate) fn stacked(data_pkl: &[u8]) -> Stacked {
    let storages = storages(data_pkl);
    let listed: Vec<(&str, u64, &[u8])> = storages
        .iter()
        .map(|(key, bytes)| (*key, 4, bytes.as_slice()))
        .collect();
    Stacked::new(data_pkl, &listed)
}

pub(crate) fn legacy(data_pkl: &[u8]) -> Vec<u8> {
    stacked(data_pkl).bytes()
}

/// A legacy checkpoint with `count` elements under the key `1`, which are `t`.
pub(crate) fn legacy_over(data_pkl: &[u8], count: i64, t: &[u8]) -> Vec<u8> {
    Stacked::new(data_pkl, &[("0", 4, &w()), ("1", 4, &[])])
        .with(|file| file.storages[1] = (count, t.to_vec()))
        .bytes()
}

/// The storages whose keys occur in the pickle as BINUNICODE of one character.
fn storages(data_pkl: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mentions = |key: &str| {
        let text = Pickle::bare().str(key).0;
        data_pkl.windows(text.len()).any(|window| window == text)
    };
    let mut storages = vec![("0", w()), ("1", t())];
    storages.retain(|(key, _)| mentions(key));
    storages
}
