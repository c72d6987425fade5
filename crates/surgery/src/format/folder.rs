//! What of a folder is to be opened.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use crate::Error;

/// What a path stands for.
pub(super) enum Place {
    /// One file.
    File(PathBuf),
    /// A set of files, by its index.
    Index(PathBuf),
    /// A checkpoint of `torch.distributed.checkpoint`.
    Dcp(PathBuf),
    /// A folder of something else.
    Unknown,
}

/// The end of an index's name: `model.safetensors.index.json`, and `model.safetensors.index.fp16.json` as diffusers calls variants.
pub(super) fn is_index_name(name: &str) -> bool {
    name.ends_with(".json") && (name.ends_with(".index.json") || name.contains(".index."))
}

/// Looks into `folder`. safetensors go before pickles, and sets before single files.
pub(super) fn find(folder: &Path) -> Result<Place, Error> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
        let entry = entry.map_err(FileError::at("read", folder))?;
        // A name that is no text is none that is looked for.
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(".metadata") && names.iter().any(|name| name.ends_with(".distcp")) {
        return Ok(Place::Dcp(folder.to_owned()));
    }
    let indexes = |extension: &str| -> Vec<&str> {
        let middle = format!(".{extension}.index.");
        let is_one = |name: &&String| is_index_name(name) && name.contains(&middle);
        names.iter().filter(is_one).map(String::as_str).collect()
    };
    // Of one kind: the usual name, or the only one.
    let choose = |found: Vec<&str>, usual: &str| match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(folder.join(one))),
        _ if found.contains(&usual) => Ok(Some(folder.join(usual))),
        _ => Err(Error::Ambiguous {
            path: folder.to_owned(),
            names: found.into_iter().map(str::to_owned).collect(),
        }),
    };
    if let Some(index) = choose(indexes("safetensors"), "model.safetensors.index.json")? {
        return Ok(Place::Index(index));
    }
    if has("model.safetensors") {
        return Ok(Place::File(folder.join("model.safetensors")));
    }
    if let Some(index) = choose(indexes("bin"), "pytorch_model.bin.index.json")? {
        return Ok(Place::Index(index));
    }
    if has("pytorch_model.bin") {
        return Ok(Place::File(folder.join("pytorch_model.bin")));
    }
    // What is left of a set of which the index is missing is no whole model.
    if let Some(shard) = names.iter().find(|name| is_shard_name(name)) {
        return Err(Error::sharded(
            folder,
            format!("`{shard}` is one of several files, and there is no index"),
        ));
    }
    let singles: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with('.'))
        .collect();
    Ok(choose(singles, "model.safetensors")?.map_or(Place::Unknown, Place::File))
}

/// `model-00001-of-00003.safetensors`
fn is_shard_name(name: &str) -> bool {
    let Some(stem) = name
        .strip_suffix(".safetensors")
        .or_else(|| name.strip_suffix(".bin"))
    else {
        return false;
    };
    let numbers = stem
        .rsplit_once("-of-")
        .and_then(|(rest, count)| Some((rest.rsplit_once('-')?.1, count)));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}
