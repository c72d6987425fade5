//! A set of files that are one state dict, by the index that belongs to them.

use std::collections::HashSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pth::{OpenOptions, StateDict};

use super::index::{self, Index, Shard};
use super::open::{self, Format, Opened};
use crate::Error;

/// Opens the set whose index is at `path`: every tensor lies in exactly one file, in the one that the index says.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let text = index::read(path)?;
    let index = Index::parse(&text, path)?;
    let paths = index.locate(path)?;
    let mut parts = read_all(&paths, |i| {
        let part = open::file(&paths[i], options)?;
        check_names(&index.shards()[i], &part).map_err(|fault| Error::sharded(path, fault))?;
        Ok(part)
    })?;

    let n_shards = parts.len();
    let format = match parts.first().map(|part| part.format) {
        Some(Format::Safetensors) => Format::ShardedSafetensors { n_shards },
        _ => Format::ShardedPth { n_shards },
    };
    let mut opened = Opened::new(format);
    opened.metadata = index.metadata();
    opened
        .state_dict
        .reserve(parts.iter().map(|part| part.state_dict.len()).sum());
    let mut versions = Vec::new();
    for (part, shard) in parts.iter_mut().zip(index.shards()) {
        let is_safetensors = part.format == Format::Safetensors;
        if is_safetensors != matches!(format, Format::ShardedSafetensors { .. }) {
            let fault = format!("shard `{}` is {}, and others are not", shard.file, part.format);
            return Err(Error::sharded(path, fault));
        }
        for (key, value) in std::mem::take(&mut part.metadata) {
            opened.metadata.entry(key).or_insert(value);
        }
        versions.extend_from_slice(part.state_dict.metadata());
        for (name, entry) in std::mem::take(&mut part.state_dict) {
            // Every shard holds what the index lists under it, so that a second entry is listed twice.
            if opened.state_dict.insert_entry(name, entry).is_some() {
                return Err(Error::sharded(path, listed_twice(&index)));
            }
        }
        opened.others.append(&mut part.others);
        opened.problems.append(&mut part.problems);
        opened.sources.append(&mut part.sources);
        let other_tensors = std::mem::take(&mut part.other_tensors);
        for (name, entry) in other_tensors {
            opened.other_tensors.insert_entry(name, entry);
        }
        opened.wrapper = std::mem::take(&mut part.wrapper);
    }
    let mut seen = HashSet::new();
    versions.retain(|version| seen.insert(version.module.clone()));
    opened.state_dict = std::mem::take(&mut opened.state_dict).with_metadata(versions);
    check_total(&index, &opened.state_dict).map_err(|fault| Error::sharded(path, fault))?;
    opened.finish();
    Ok(opened)
}

/// Reads all files, on as many threads as there are cores; the first error in the order of the files.
fn read_all(
    paths: &[PathBuf],
    read: impl Fn(usize) -> Result<Opened, Error> + Sync,
) -> Result<Vec<Opened>, Error> {
    let n_threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(paths.len());
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Opened, Error>)>> = Mutex::new(Vec::with_capacity(paths.len()));
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
fn check_names(shard: &Shard<'_>, part: &Opened) -> Result<(), String> {
    let file = &shard.file;
    let is_unreadable = |name: &str| {
        let mut problems = part.problems.iter();
        problems.any(|problem| problem.in_state_dict && problem.name == name)
    };
    let mut n_held = 0;
    for name in &shard.names {
        if part.state_dict.contains(name) {
            n_held += 1;
        } else if !is_unreadable(name) {
            return Err(format!(
                "shard `{file}` lacks tensor `{name}`, which the index says it holds"
            ));
        }
    }
    if n_held == part.state_dict.len() {
        return Ok(());
    }
    if let Some(name) = repeated(shard.names.iter().map(AsRef::as_ref)) {
        return Err(format!("its index lists tensor `{name}` twice"));
    }
    let listed: HashSet<&str> = shard.names.iter().map(AsRef::as_ref).collect();
    let extra = part.state_dict.names().find(|name| !listed.contains(name));
    Err(format!(
        "shard `{file}` holds tensor `{}`, which the index does not list there",
        extra.unwrap_or_default()
    ))
}

fn listed_twice(index: &Index<'_>) -> String {
    let all = index.shards().iter().flat_map(|shard| &shard.names);
    let name = repeated(all.map(AsRef::as_ref)).unwrap_or_default();
    format!("its index lists tensor `{name}` in two shards")
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
