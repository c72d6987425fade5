//! A set of files that are one state dict, by the index that belongs to them.

use std::collections::HashSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pth::{OpenOptions, Source, StateDict, Tensor};

use super::index::{self, Index, Shard};
use super::open::{self, Format, Opened, is_safetensors};
use super::read::{self, Contents};
use crate::Error;

/// One file of a set.
enum Part {
    Safetensors(Contents),
    Pth(Box<Opened>),
}

/// Opens the set whose index is at `path`: every tensor lies in exactly one file, in the one that the index says.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let fault = |fault: String| Error::sharded(path, fault);
    let text = index::read(path)?;
    let index = Index::parse(&text, path)?;
    let paths = index.locate(path)?;
    let parts = read_all(&paths, |i| {
        let source = Source::open(&paths[i], options.backing)?;
        if is_safetensors(&source) {
            let part = read::contents(&source, &paths[i])?;
            check_tensors(&index.shards()[i], &part.tensors).map_err(fault)?;
            return Ok(Part::Safetensors(part));
        }
        let part = open::pth_file(source, &paths[i], options)?;
        check_entries(&index.shards()[i], &part).map_err(fault)?;
        Ok(Part::Pth(Box::new(part)))
    })?;

    let n_shards = parts.len();
    let is_safetensors = matches!(parts.first(), Some(Part::Safetensors(_)));
    let mut opened = Opened::new(match is_safetensors {
        true => Format::ShardedSafetensors { n_shards },
        false => Format::ShardedPth { n_shards },
    });
    opened.metadata = index.metadata();
    let n_tensors = index.shards().iter().map(|shard| shard.names.len()).sum();
    opened.state_dict.reserve(n_tensors);
    for (part, shard) in parts.into_iter().zip(index.shards()) {
        // Every shard holds what the index lists under it, so that a second entry is listed twice.
        let is_new = match part {
            Part::Safetensors(part) if is_safetensors => {
                for (key, value) in part.metadata {
                    opened.metadata.entry(key).or_insert(value);
                }
                let mut tensors = part.tensors.into_iter();
                tensors.all(|(name, tensor)| opened.state_dict.insert(name, tensor).is_none())
            }
            Part::Pth(part) if !is_safetensors => take(*part, &mut opened),
            _ => {
                let text = format!("shard `{}` is of another format than the first", shard.file);
                return Err(fault(text));
            }
        };
        if !is_new {
            return Err(fault(listed_twice(&index)));
        }
    }
    check_total(&index, &opened.state_dict).map_err(fault)?;
    opened.finish();
    Ok(opened)
}

/// Adds what a pickled shard holds. Returns whether all names are new.
fn take(mut part: Opened, opened: &mut Opened) -> bool {
    let mut versions = opened.state_dict.metadata().to_vec();
    for version in part.state_dict.metadata() {
        if versions.iter().all(|known| known.module != version.module) {
            versions.push(version.clone());
        }
    }
    opened.state_dict = std::mem::take(&mut opened.state_dict).with_metadata(versions);
    opened.others.append(&mut part.others);
    opened.problems.append(&mut part.problems);
    opened.sources.append(&mut part.sources);
    opened.wrapper = part.wrapper;
    for (name, entry) in part.other_tensors {
        opened.other_tensors.insert_entry(name, entry);
    }
    let mut entries = part.state_dict.into_iter();
    entries.all(|(name, entry)| opened.state_dict.insert_entry(name, entry).is_none())
}

/// Reads all files, on as many threads as there are cores; the first error in the order of the files.
fn read_all(
    paths: &[PathBuf],
    read: impl Fn(usize) -> Result<Part, Error> + Sync,
) -> Result<Vec<Part>, Error> {
    let n_threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(paths.len());
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Part, Error>)>> = Mutex::new(Vec::with_capacity(paths.len()));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= paths.len() {
                return;
            }
            let part = read(i);
            // After an error, only files that were begun are finished.
            if part.is_err() {
                next.store(paths.len(), Ordering::Relaxed);
            }
            let mut done = done.lock().expect("no thread panics while it holds this");
            done.push((i, part));
        }
    };
    thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().expect("no thread panics while it holds this");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, part)| part).collect()
}

/// A shard holds exactly the tensors that the index lists under it.
fn check_tensors(shard: &Shard<'_>, tensors: &[(String, Tensor)]) -> Result<(), String> {
    let held = || tensors.iter().map(|(name, _)| name.as_str());
    // Most writers put both in the order of the names.
    if shard.names.iter().map(AsRef::as_ref).eq(held()) {
        return Ok(());
    }
    if let Some(name) = repeated(held()) {
        return Err(format!("shard `{}` holds tensor `{name}` twice", shard.file));
    }
    check_names(shard, &held().collect(), &HashSet::new())
}

/// As [`check_tensors`], of a pickled shard, in which a tensor may be there and not readable.
fn check_entries(shard: &Shard<'_>, part: &Opened) -> Result<(), String> {
    let problems = part.problems.iter().filter(|problem| problem.in_state_dict);
    let unreadable = problems.map(|problem| problem.name.as_str()).collect();
    check_names(shard, &part.state_dict.names().collect(), &unreadable)
}

fn check_names(shard: &Shard<'_>, held: &HashSet<&str>, unreadable: &HashSet<&str>) -> Result<(), String> {
    let file = &shard.file;
    let mut n_held = 0;
    for name in shard.names.iter().map(AsRef::as_ref) {
        if held.contains(name) {
            n_held += 1;
        } else if !unreadable.contains(name) {
            return Err(format!(
                "shard `{file}` lacks tensor `{name}`, which the index says it holds"
            ));
        }
    }
    if n_held == held.len() {
        return Ok(());
    }
    if let Some(name) = repeated(shard.names.iter().map(AsRef::as_ref)) {
        return Err(format!("its index lists tensor `{name}` twice"));
    }
    let listed: HashSet<&str> = shard.names.iter().map(AsRef::as_ref).collect();
    let mut extra: Vec<&str> = held.difference(&listed).copied().collect();
    extra.sort_unstable();
    Err(format!(
        "shard `{file}` holds tensor `{}`, which the index does not list there",
        extra.first().unwrap_or(&"")
    ))
}

fn listed_twice(index: &Index<'_>) -> String {
    let all = index.shards().iter().flat_map(|shard| &shard.names);
    let name = repeated(all.map(AsRef::as_ref)).unwrap_or_default();
    format!("its index lists tensor `{name}` twice")
}

/// The first name that was there before.
fn repeated<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut seen = HashSet::new();
    names.find(|&name| !seen.insert(name))
}

/// `total_size` is the bytes of all tensors; of shared ones, writers have counted each name, each storage, or what is used of it, once.
fn check_total(index: &Index<'_>, tensors: &StateDict) -> Result<(), String> {
    let Some(expected) = index.total_size() else {
        return Ok(());
    };
    let (mut all, mut first, mut storages) = (0_usize, 0_usize, 0_usize);
    let mut seen = HashSet::new();
    for (_, tensor) in tensors.iter() {
        all += tensor.nbytes();
        if seen.insert(tensor.storage().id()) {
            first += tensor.nbytes();
            storages += tensor.storage().nbytes();
        }
    }
    // Composed tensors are counted in no known way.
    let is_equal = |found: usize| {
        let found = u64::try_from(found).unwrap_or(u64::MAX);
        expected.as_u64() == Some(found) || expected.as_f64() == Some(found as f64)
    };
    if is_equal(all) || is_equal(first) || is_equal(storages) || tensors.records().next().is_some() {
        return Ok(());
    }
    Err(format!(
        "its tensors are {all} bytes, its index tells of {expected}"
    ))
}
