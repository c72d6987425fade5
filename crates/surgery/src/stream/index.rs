//! The index of a set of shards, and the names of its files, as transformers writes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::layout::Entries;
use crate::lazy::LazyStateDict;

/// `model.safetensors.index.json`
pub(super) struct Index<'t> {
    pub(super) path: PathBuf,
    /// What it says of the whole, beside sizes.
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: &'t LazyStateDict,
    /// Files and what they hold.
    pub(super) shards: Vec<(String, Entries<'t>)>,
}

impl Index<'_> {
    /// Its text.
    pub(super) fn json(&self) -> Vec<u8> {
        let n_params: usize = self
            .tensors
            .iter()
            .filter(|(name, entry)| LazyStateDict::can_train(name, entry))
            .filter_map(|(_, entry)| entry.tensor())
            .fold(0, |sum, tensor| tensor.numel().saturating_add(sum));
        let mut head = Map::new();
        head.insert("total_parameters".to_owned(), json!(n_params));
        head.insert("total_size".to_owned(), json!(self.tensors.nbytes()));
        let own = self.metadata.iter().filter(|(key, _)| *key != "format");
        head.extend(own.map(|(key, value)| (key.clone(), Value::from(value.clone()))));
        let files = self
            .shards
            .iter()
            .flat_map(|(file, entries)| entries.iter().map(move |(name, _)| (*name, file)));
        let weight_map: BTreeMap<&str, &String> = files.collect();
        let index = json!({"metadata": head, "weight_map": weight_map});
        let mut json = serde_json::to_vec_pretty(&index).expect("strings and numbers make JSON");
        json.push(b'\n');
        json
    }
}

/// `model-00001-of-00003.safetensors`
pub(super) fn shard_name(file: &str, number: usize, n_shards: usize) -> String {
    let (stem, extension) = file.rsplit_once('.').unwrap_or((file, "safetensors"));
    format!("{stem}-{number:05}-of-{n_shards:05}.{extension}")
}

/// `STEM-00001-of-00003.EXTENSION`
pub(super) fn is_shard_name(name: &str, stem: &str, extension: &str) -> bool {
    let middle = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(extension))
        .and_then(|rest| rest.strip_suffix('.'));
    let numbers = middle.and_then(|middle| middle.strip_prefix('-')?.split_once("-of-"));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}
