//! A set of files that are one state dict, by the index that belongs to them.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
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
    let (index, parts) = read_all(&text, path, options)?;

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
        match &part {
            Part::Safetensors(part) => check_tensors(shard, &part.tensors),
            Part::Pth(part) => check_entries(shard, part),
        }
        .map_err(fault)?;
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

/// Reads the index, and meanwhile the files that it names, on as many threads as there are cores.
///
/// Returns the files in the index's order, or the first error: of the index, else in that order.
fn read_all<'t>(text: &'t [u8], path: &Path, options: &OpenOptions) -> Result<(Index<'t>, Vec<Part>), Error> {
    let (sender, receiver) = mpsc::channel::<PathBuf>();
    let receiver = Mutex::new(receiver);
    let done: Mutex<HashMap<PathBuf, Result<Part, Error>>> = Mutex::default();
    let is_over = AtomicBool::new(false);
    let work = || {
        // Kept for all files of a thread: memory that is new to a process is dear.
        let mut buffer = Vec::new();
        loop {
            let next = receiver
                .lock()
                .expect("no thread panics while it holds this")
                .recv();
            let Some(path) = next.ok().filter(|_| !is_over.load(Ordering::Relaxed)) else {
                return;
            };
            let part = read_one(&path, options, &mut buffer);
            // After an error, only files that were begun are finished.
            is_over.fetch_or(part.is_err(), Ordering::Relaxed);
            let mut done = done.lock().expect("no thread panics while it holds this");
            done.insert(path, part);
        }
    };
    let n_threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (index, paths) = thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        let mut begun: HashSet<PathBuf> = HashSet::new();
        let index = Index::parse(text, path, &mut |file| {
            // What is no plain file of this folder waits for the index's own checks.
            let file = path.with_file_name(file);
            let is_plain =
                file.parent() == path.parent() && file.symlink_metadata().is_ok_and(|about| about.is_file());
            if is_plain && sender.send(file.clone()).is_ok() {
                begun.insert(file);
            }
        });
        let located = index.and_then(|index| {
            let paths = index.locate(path)?;
            Ok((index, paths))
        });
        match &located {
            Ok((_, paths)) => {
                let rest = paths.iter().filter(|path| !begun.contains(*path));
                rest.for_each(|path| {
                    sender
                        .send(path.clone())
                        .expect("the receiver is on this thread's stack");
                });
            }
            Err(_) => is_over.store(true, Ordering::Relaxed),
        }
        drop(sender);
        work();
        located
    })?;
    let mut done = done.into_inner().expect("no thread panics while it holds this");
    let mut parts = Vec::with_capacity(paths.len());
    // Where one is missing, another has failed.
    for part in paths.iter().filter_map(|path| done.remove(path)) {
        parts.push(part?);
    }
    Ok((index, parts))
}

fn read_one(path: &Path, options: &OpenOptions, buffer: &mut Vec<u8>) -> Result<Part, Error> {
    let source = Source::open(path, options.backing)?;
    if is_safetensors(&source) {
        return Ok(Part::Safetensors(read::contents(&source, path, buffer)?));
    }
    let part = open::pth_file(source, path, options)?;
    Ok(Part::Pth(Box::new(part)))
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
    let is_equal = |found: usize| {
        let found = u64::try_from(found).unwrap_or(u64::MAX);
        expected.as_u64() == Some(found) || expected.as_f64() == Some(found as f64)
    };
    let all: usize = tensors.iter().map(|(_, tensor)| tensor.nbytes()).sum();
    // Composed tensors are counted in no known way.
    if is_equal(all) || tensors.records().next().is_some() {
        return Ok(());
    }
    let (mut first, mut storages) = (0_usize, 0_usize);
    let mut seen = HashSet::new();
    for (_, tensor) in tensors.iter() {
        if seen.insert(tensor.storage().id()) {
            first += tensor.nbytes();
            storages += tensor.storage().nbytes();
        }
    }
    if is_equal(first) || is_equal(storages) {
        return Ok(());
    }
    Err(format!(
        "its tensors are {all} bytes, its index tells of {expected}"
    ))
}
