//! What a feature depends on, and nothing else.

use serde::{Deserialize, Serialize};

use crate::engine::Device;
use crate::error::Error;
use crate::image::Preprocess;
use crate::onnx::Model;

/// Everything that decides a feature's value. Its digest names the cache entry, and it lies in the entry as
/// `key.json`, so that a person can see why two entries differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Raised when the same fields would give other numbers.
    format: u32,
    /// Content of the graph in front of the boundary: see [`Model::prefix_digest`].
    prefix: String,
    /// How pictures become input.
    preprocess: Preprocess,
    /// Stored number type.
    dtype: String,
    /// Class of device that computed it.
    provider: String,
}

impl Key {
    /// The key of `model` cut at `boundary`.
    ///
    /// # Errors
    /// As [`Model::prefix_digest`].
    pub fn new(model: &Model, boundary: &str, preprocess: &Preprocess, device: Device) -> Result<Key, Error> {
        Ok(Key {
            format: 1,
            prefix: model.prefix_digest(boundary)?.to_hex().to_string(),
            preprocess: preprocess.clone(),
            dtype: "float32".to_owned(),
            provider: device.class().to_owned(),
        })
    }

    /// The name of the cache entry: 32 hexadecimal digits.
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("plain data is JSON");
        blake3::hash(&canonical).to_hex()[..32].to_owned()
    }

    /// How pictures become input.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }
}
