//! Sets of files with an index, as transformers writes them.
//!
//! The index is a list of promises, and each is checked from the files' headers: every tensor lies in one file, in the one that the index
//! says, no file is missing, none has more than the index lists, and none lies beside that belongs to another set.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pth::{OpenOptions, StateDict};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::open::{Format, Opened, open_file};
use crate::Error;

/// Whether `path` is called as indexes are.
pub(super) fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".index.json")
}

#[derive(serde::Deserialize)]
struct Index {
    #[serde(default)]
    metadata: BTreeMap<String, serde_json::Value>,
    weight_map: WeightMap,
}

/// Names of tensors with the number of their file.
struct WeightMap {
    shards: Vec<String>,
    tensors: Vec<(String, usize)>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Interned;

        impl<'de> Visitor<'de> for Interned {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut numbers: HashMap<String, usize> = HashMap::new();
                let mut tensors = Vec::new();
                let mut last: Option<(String, usize)> = None;
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    // Neighbours are mostly in one file.
                    let number = match &last {
                        Some((name, number)) if *name == shard => *number,
                        _ => {
                            let n = numbers.len();
                            let number = *numbers.entry(shard.clone()).or_insert(n);
                            last = Some((shard, number));
                            number
                        }
                    };
                    tensors.push((tensor, number));
                }
                let mut shards = vec![String::new(); numbers.len()];
                for (name, number) in numbers {
                    shards[number] = name;
                }
                Ok(WeightMap { shards, tensors })
            }
        }

        deserializer.deserialize_map(Interned)
    }
}

/// Opens the set that the index at `path` lists.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let fault = |fault: String| Error::Set {
        path: path.to_owned(),
        fault,
    };
    let read = pth::FileError::at("read", path);
    let text = std::fs::read(path).map_err(&read)?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| fault(format!("it is no index: {error}")))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let WeightMap { shards, tensors } = index.weight_map;
    if shards.is_empty() {
        return Err(fault("it lists no tensors".to_owned()));
    }
    let mut n_listed = vec![0_usize; shards.len()];
    tensors.iter().for_each(|(_, shard)| n_listed[*shard] += 1);
    for (shard, n) in shards.iter().zip(&n_listed) {
        check_place(folder, shard, *n).map_err(&fault)?;
    }
    if let Some(stale) = stale(path, folder, &shards) {
        return Err(fault(format!(
            "`{stale}` lies beside and is not listed: it is of another set, or the index is"
        )));
    }
    let mut opened = open_all(folder, &shards, options)?;

    // In the order of the names of the files, and within each of its header.
    let mut order: Vec<usize> = (0..shards.len()).collect();
    order.sort_by(|&a, &b| shards[a].cmp(&shards[b]));
    let mut place: HashMap<&str, usize> = HashMap::with_capacity(tensors.len());
    for (name, shard) in &tensors {
        if place.insert(name, *shard).is_some() {
            return Err(fault(format!("it lists tensor `{name}` twice")));
        }
    }
    let mut all = Opened {
        format: match opened[0].format {
            Format::Safetensors => Format::ShardedSafetensors {
                n_shards: shards.len(),
            },
            _ => Format::ShardedPth {
                n_shards: shards.len(),
            },
        },
        state_dict: StateDict::with_capacity(tensors.len()),
        wrapper: String::new(),
        metadata: index_metadata(&index.metadata),
        others: Vec::new(),
        other_tensors: StateDict::new(),
        problems: Vec::new(),
        sources: Vec::new(),
    };
    let mut n_bytes: u64 = 0;
    for shard in order {
        let name = &shards[shard];
        let part = &mut opened[shard];
        all.problems.append(&mut part.problems);
        all.others.append(&mut part.others);
        for (key, value) in std::mem::take(&mut part.metadata) {
            all.metadata.entry(key).or_insert(value);
        }
        let mut n_found = 0;
        for (tensor, entry) in std::mem::take(&mut part.state_dict) {
            match place.get(tensor.as_str()) {
                Some(&listed) if listed == shard => n_found += 1,
                Some(&listed) => {
                    let listed = &shards[listed];
                    return Err(fault(format!(
                        "tensor `{tensor}` is in `{name}`, and listed as one of `{listed}`"
                    )));
                }
                None => {
                    return Err(fault(format!(
                        "`{name}` holds tensor `{tensor}`, which is not listed"
                    )));
                }
            }
            if let Some(tensor) = entry.tensor() {
                n_bytes = n_bytes.saturating_add(u64::try_from(tensor.nbytes()).unwrap_or(u64::MAX));
            }
            all.state_dict.insert_entry(tensor, entry);
        }
        if n_found < n_listed[shard] && all.problems.is_empty() {
            let missing = tensors
                .iter()
                .find(|(tensor, at)| *at == shard && !all.state_dict.contains(tensor));
            let missing = missing.map_or("", |(tensor, _)| tensor);
            return Err(fault(format!("tensor `{missing}` is not in `{name}`")));
        }
    }
    // Only where it can be counted without doubt: tied tensors of pickles are counted once by some writers, and twice by others.
    let total = index
        .metadata
        .get("total_size")
        .and_then(serde_json::Value::as_u64);
    if let (Some(total), Format::ShardedSafetensors { .. }) = (total, all.format)
        && total != n_bytes
    {
        return Err(fault(format!(
            "`total_size` is {total}, and the tensors have {n_bytes} bytes"
        )));
    }
    Ok(all)
}

/// A file's name in an index must be that of a file in the same folder, and not a way to another.
fn check_place(folder: &Path, shard: &str, n_tensors: usize) -> Result<(), String> {
    let is_bare = !shard.is_empty() && !shard.contains(['/', '\\', '\0']) && shard != "." && shard != "..";
    if !is_bare {
        return Err(format!("file `{shard}` is not in the folder of the index"));
    }
    let path = folder.join(shard);
    if !path.exists() {
        return Err(format!("file `{shard}`, with {n_tensors} tensors, is missing"));
    }
    // Caches of downloads link to files elsewhere below the same root; what leaves that is no part of the set.
    let real = path
        .canonicalize()
        .map_err(|error| format!("file `{shard}`: {error}"))?;
    let home = folder
        .canonicalize()
        .map_err(|error| format!("the folder: {error}"))?;
    let is_cached = || {
        // `snapshots/<revision>/x` -> `blobs/<digest>` of the Hugging Face cache.
        let root = home
            .parent()
            .filter(|snapshots| snapshots.ends_with("snapshots"))
            .and_then(Path::parent);
        root.is_some_and(|root| real.parent() == Some(root.join("blobs").as_path()))
    };
    if real.parent() != Some(home.as_path()) && !is_cached() {
        return Err(format!("file `{shard}` is a link out of the folder of the index"));
    }
    Ok(())
}

/// A file in the folder that is called as one of the set's, and is none of it.
fn stale(index: &Path, folder: &Path, shards: &[String]) -> Option<String> {
    let name = index.file_name()?.to_string_lossy().into_owned();
    let file = name.strip_suffix(".index.json")?;
    let (stem, extension) = file.rsplit_once('.')?;
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| is_shard_name(name, stem, extension) && !shards.contains(name))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// `STEM-00001-of-00003.EXTENSION`
pub(crate) fn is_shard_name(name: &str, stem: &str, extension: &str) -> bool {
    let middle = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(extension))
        .and_then(|rest| rest.strip_suffix('.'));
    let numbers = middle.and_then(|middle| middle.strip_prefix('-')?.split_once("-of-"));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

/// Opens all files, on several threads: headers of a hundred files are parsed at once.
fn open_all(folder: &Path, shards: &[String], options: &OpenOptions) -> Result<Vec<Opened>, Error> {
    const MAX_THREADS: usize = 8;
    let n_threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS)
        .min(shards.len());
    let next = AtomicUsize::new(0);
    let opened: Mutex<Vec<(usize, Result<Opened, Error>)>> = Mutex::new(Vec::with_capacity(shards.len()));
    let work = || {
        while let Some((i, shard)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            shards.get(i).map(|shard| (i, shard))
        } {
            let result = open_file(&folder.join(shard), options);
            opened
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((i, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    let mut opened = opened
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    opened.sort_by_key(|(i, _)| *i);
    opened.into_iter().map(|(_, result)| result).collect()
}

/// What the index says of the whole, as text; sizes are counted anew by whoever writes.
fn index_metadata(metadata: &BTreeMap<String, serde_json::Value>) -> BTreeMap<String, String> {
    metadata
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "total_size" | "total_parameters"))
        .map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (key.clone(), text)
        })
        .collect()
}
