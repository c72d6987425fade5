//! The index of a sharded set: a JSON file that says in which file each tensor lies.
//!
//! `model.safetensors.index.json`, `pytorch_model.bin.index.json`: `{"metadata": {"total_size": N}, "weight_map": {name: file}}`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use pth::FileError;

use crate::Error;

/// The largest index that is read, in bytes: that of the largest set of safetensors headers would not be larger.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// What an index says.
pub(super) struct Index<'t> {
    metadata: serde_json::Map<String, serde_json::Value>,
    /// Files in the order of their names, with the names of their tensors in the index's order.
    shards: Vec<Shard<'t>>,
}

/// One file of a set.
pub(super) struct Shard<'t> {
    /// Its bare name.
    pub(super) file: Cow<'t, str>,
    /// Its tensors.
    pub(super) names: Vec<Cow<'t, str>>,
}

/// Text that is borrowed from the JSON where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

/// Calls back for each file when it is named first, so that it can be opened before the index is read to its end.
struct Reading<'f>(&'f mut dyn FnMut(&str));

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Index<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Index<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index<'de>, A::Error> {
        let (mut metadata, mut shards) = (None, None);
        while let Some(Text(key)) = map.next_key()? {
            match key.as_ref() {
                "metadata" if metadata.is_none() => metadata = Some(map.next_value()?),
                "weight_map" if shards.is_none() => {
                    shards = Some(map.next_value_seed(ByShard(&mut *self.0))?);
                }
                "metadata" | "weight_map" => {
                    return Err(A::Error::custom(format!("two members are called `{key}`")));
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Index {
            metadata: metadata.unwrap_or_default(),
            shards: shards.ok_or_else(|| A::Error::missing_field("weight_map"))?,
        })
    }
}

/// `weight_map`, turned round.
struct ByShard<'f>(&'f mut dyn FnMut(&str));

impl<'de> DeserializeSeed<'de> for ByShard<'_> {
    type Value = Vec<Shard<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Shard<'de>>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ByShard<'_> {
    type Value = Vec<Shard<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor names and file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Shard<'de>>, A::Error> {
        let mut shards: Vec<Shard<'de>> = Vec::new();
        let mut places: HashMap<Cow<'de, str>, usize> = HashMap::new();
        // Most tensors lie where the one before does.
        let mut last = 0;
        while let Some((Text(name), Text(file))) = map.next_entry()? {
            if shards.get(last).is_none_or(|shard| shard.file != file) {
                last = *places.entry(file).or_insert_with_key(|file| {
                    (self.0)(file);
                    let (file, names) = (file.clone(), Vec::new());
                    shards.push(Shard { file, names });
                    shards.len() - 1
                });
            }
            shards[last].names.push(name);
        }
        shards.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(shards)
    }
}

/// The text of the index at `path`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let n_bytes = fs::metadata(path).map_err(FileError::at("open", path))?.len();
    if n_bytes > MAX_INDEX_BYTES {
        let fault = format!("an index of {n_bytes} bytes, allowed are {MAX_INDEX_BYTES}");
        return Err(Error::sharded(path, fault));
    }
    Ok(fs::read(path).map_err(FileError::at("read", path))?)
}

impl<'t> Index<'t> {
    /// Understands the text of the index at `path`. `found` hears of each file as soon as it is named.
    pub(super) fn parse(
        text: &'t [u8],
        path: &Path,
        found: &mut dyn FnMut(&str),
    ) -> Result<Index<'t>, Error> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let index = Reading(found).deserialize(&mut json);
        let index = index
            .and_then(|index| json.end().map(|()| index))
            .map_err(|error| Error::sharded(path, format!("its index is no index: {error}")))?;
        if index.shards().is_empty() {
            return Err(Error::sharded(path, "its index lists no tensors"));
        }
        Ok(index)
    }

    pub(super) fn shards(&self) -> &[Shard<'t>] {
        &self.shards
    }

    /// Bytes of all tensors, where the index tells; some writers have put it down as a float.
    pub(super) fn total_size(&self) -> Option<&serde_json::Value> {
        self.metadata.get("total_size")
    }

    /// What else it tells; what is not text as JSON.
    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let is_own = |key: &str| key != "total_size" && key != "total_parameters";
        let entries = self.metadata.iter().filter(|(key, _)| is_own(key));
        entries
            .map(|(key, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (key.clone(), text)
            })
            .collect()
    }

    /// The paths of the shards: each a file in the index's folder, and no file of the set's naming beside them.
    pub(super) fn locate(&self, path: &Path) -> Result<Vec<PathBuf>, Error> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let n_tensors: usize = self.shards().iter().map(|shard| shard.names.len()).sum();
        let mut paths = Vec::with_capacity(self.shards().len());
        for shard in self.shards() {
            let file = shard.file.as_ref();
            let fault = |fault: String| Error::sharded(path, fault);
            if !is_bare(file) {
                return Err(fault(format!(
                    "its index names `{file}`, which is no bare file name"
                )));
            }
            let shard_path = folder.join(file);
            let Ok(about) = fs::symlink_metadata(&shard_path) else {
                return Err(fault(format!(
                    "shard `{file}` is missing, which holds {} of the {n_tensors} tensors",
                    shard.names.len()
                )));
            };
            if about.is_symlink() && !stays(&shard_path, path) {
                return Err(fault(format!(
                    "shard `{file}` is a link that leaves the folder, or leads nowhere"
                )));
            }
            paths.push(shard_path);
        }
        self.check_no_others(path)?;
        Ok(paths)
    }

    /// Files that are called like shards of this set, but are none, are what an earlier set has left.
    fn check_no_others(&self, path: &Path) -> Result<(), Error> {
        let known: HashSet<&str> = self.shards().iter().map(|shard| shard.file.as_ref()).collect();
        let families: HashSet<(&str, &str)> = known.iter().filter_map(|file| family(file)).collect();
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut strays = Vec::new();
        for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
            let entry = entry.map_err(FileError::at("read", folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !known.contains(name)) else {
                continue;
            };
            if family(name).is_some_and(|family| families.contains(&family)) {
                strays.push(name.to_owned());
            }
        }
        strays.sort();
        match strays.first() {
            None => Ok(()),
            Some(stray) => {
                let fault =
                    format!("its index does not list `{stray}`, which is called like one of its shards");
                Err(Error::sharded(path, fault))
            }
        }
    }
}

/// Whether it names a file of the folder, on every system: a set that opens here opens elsewhere.
pub(super) fn is_bare(file: &str) -> bool {
    Path::new(file).file_name() == Some(OsStr::new(file))
        && !file.contains(['/', '\\', ':', '\0'])
        && file != "."
        && file != ".."
}

/// Whether a link leads to a file of the index's folder; or to where the index itself is a link to, as in the cache of a model hub.
pub(super) fn stays(link: &Path, index: &Path) -> bool {
    let real_folder = |path: &Path| fs::canonicalize(path).ok()?.parent().map(Path::to_owned);
    let folder = index
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let target = real_folder(link);
    target.is_some() && (target == fs::canonicalize(folder).ok() || target == real_folder(index))
}

/// `model-00001-of-00003.safetensors` -> `model`, `safetensors`
fn family(file: &str) -> Option<(&str, &str)> {
    let (stem, extension) = file.rsplit_once('.')?;
    let (stem, n_shards) = stem.rsplit_once("-of-")?;
    let (stem, shard) = stem.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(n_shards) && is_number(shard)).then_some((stem, extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_by_stem_and_extension() {
        let check = |file: &str, expected| assert_eq!(family(file), expected);
        check("model-00001-of-00003.safetensors", Some(("model", "safetensors")));
        check("a-b.fp16-00002-of-00002.bin", Some(("a-b.fp16", "bin")));
        check("model-1-of-3.safetensors", None);
        check("model.safetensors", None);
        check("hf_model_0001_0.pt", None);
    }
}
