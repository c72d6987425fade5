//! The index of a set of shards, and the names of its files, as transformers writes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::OutputFormat;
use super::layout::Target;
use crate::lazy::LazyStateDict;

/// `model.safetensors.index.json`
pub(super) struct Index {
    pub(super) path: PathBuf,
    pub(super) json: Vec<u8>,
}

impl Index {
    pub(super) fn new(
        target: &Target,
        format: OutputFormat,
        tensors: &LazyStateDict,
        metadata: &BTreeMap<String, String>,
        weight_map: Vec<(String, String)>,
        total_size: usize,
    ) -> Index {
        let n_params: usize = tensors
            .iter()
            .filter(|(name, entry)| LazyStateDict::can_train(name, entry))
            .filter_map(|(_, entry)| entry.tensor())
            .fold(0, |sum, tensor| tensor.numel().saturating_add(sum));
        let mut head = Map::new();
        head.insert("total_parameters".to_owned(), json!(n_params));
        head.insert("total_size".to_owned(), json!(total_size));
        if format == OutputFormat::Safetensors {
            let own = metadata.iter().filter(|(key, _)| *key != "format");
            head.extend(own.map(|(key, value)| (key.clone(), Value::from(value.clone()))));
        }
        let weight_map: BTreeMap<String, String> = weight_map.into_iter().collect();
        let index = json!({"metadata": head, "weight_map": weight_map});
        let mut json = serde_json::to_vec_pretty(&index).expect("strings and numbers make JSON");
        json.push(b'\n');
        Index {
            path: target.folder.join(format!("{}.index.json", target.file)),
            json,
        }
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
