//! One tensor under several names: where the data are there once, the metadata say which names share them.
//!
//! `safetensors.torch.save_model` and transformers' `save_pretrained` put `dropped name -> kept name` into `__metadata__`.

use std::collections::BTreeMap;

use pth::StateDict;

use crate::marks;

/// Keys whose values mean something else, whatever they look like.
const KNOWN_KEYS: [&str; 5] = ["format", marks::KEY, "groups", "recipe", "sources"];

/// Whether a key of the metadata has a meaning of its own, so that it can be no second name.
pub(crate) fn is_reserved(key: &str) -> bool {
    KNOWN_KEYS.contains(&key)
}

/// Gives each dropped name its tensor, at the end and in the order of the metadata, and takes its entry out of them.
pub(super) fn apply(tensors: &mut StateDict, metadata: &mut BTreeMap<String, String>) {
    let mut tied = Vec::new();
    metadata.retain(|name, kept| {
        if KNOWN_KEYS.contains(&name.as_str()) || tensors.contains(name) {
            return true;
        }
        let Some(tensor) = tensors.get(kept) else {
            return true;
        };
        tied.push((name.clone(), tensor.clone()));
        false
    });
    for (name, tensor) in tied {
        tensors.insert(name, tensor);
    }
}
