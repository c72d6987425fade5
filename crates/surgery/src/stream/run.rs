//! The threads that read, compute and write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pth::{AtomicFile, Existing, FileError};

use super::index::is_shard_name;
use super::layout::{FileLayout, Item, Layout, Rest};
use super::{WriteOptions, WriteReport};
use crate::Error;
use crate::format::adapter::is_adapter;

/// What a thread makes and writes at once.
pub(super) const CHUNK_BYTES: usize = 8 << 20;

/// Above this, a tensor is shared between threads, where it can be read from its middle on at no cost.
const SPLIT_BYTES: usize = 64 << 20;

/// What one thread takes at once: neighbouring small tensors, or a part of a large one.
struct Task {
    file: usize,
    items: std::ops::Range<usize>,
    /// Elements of the only item; all of them where there are several items.
    elements: std::ops::Range<usize>,
    /// Where its input lies, which decides the order.
    source: (usize, u32),
}

pub(super) fn run(layout: &Layout<'_>, options: &WriteOptions<'_>) -> Result<WriteReport, Error> {
    let folder = layout.files.first().and_then(|file| file.path.parent());
    let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let new: Vec<&Path> = folder
        .into_iter()
        .flat_map(Path::ancestors)
        .take_while(is_new)
        .collect();
    write_all(layout, options).inspect_err(|_| {
        // Innermost first; one that somebody has put something into meanwhile stays.
        new.iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
    })
}

fn write_all(layout: &Layout<'_>, options: &WriteOptions<'_>) -> Result<WriteReport, Error> {
    let mut files = Vec::with_capacity(layout.files.len());
    for file in &layout.files {
        if let Some(folder) = file
            .path
            .parent()
            .filter(|_| layout.files.len() > 1 || is_new_folder(&file.path))
        {
            std::fs::create_dir_all(folder).map_err(FileError::at("create", folder))?;
        }
        let temp = AtomicFile::create(&file.path, options.existing)?;
        reserve(temp.file(), file.n_bytes).map_err(FileError::at("write", &file.path))?;
        files.push(temp);
    }
    if options.existing == Existing::Refuse {
        let index = layout.index.iter().map(|index| index.path.clone());
        let config = layout.config.iter().map(|(path, _)| path.clone());
        let mut beside = index.chain(config).chain(other_form(layout));
        if let Some(path) = beside.find(|path| path.exists()) {
            return Err(FileError::at("create", &path)(io::ErrorKind::AlreadyExists.into()).into());
        }
    }
    let crcs = fill(layout, &files, options)?;
    for ((file, temp), crcs) in layout.files.iter().zip(&files).zip(crcs) {
        finish(file, temp.file(), &crcs).map_err(FileError::at("write", &file.path))?;
    }
    commit(layout, files, options)
}

/// A folder that the output is to make: `OUT/model.safetensors` where OUT is not there.
fn is_new_folder(path: &Path) -> bool {
    let is_model = |name| name == "model.safetensors" || name == "pytorch_model.bin";
    path.file_name().is_some_and(is_model) || is_adapter(path)
}

/// Takes the room on the disk at once, so that a full disk is told of before the work and not after it.
fn reserve(file: &File, n_bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if n_bytes > 0 {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, n_bytes) {
            Ok(()) => return Ok(()),
            Err(error) if matches!(error, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                return Err(error.into());
            }
            // Not every file system can.
            Err(_) => {}
        }
    }
    file.set_len(n_bytes)
}

/// Fills every tensor's place; returns the CRC of each item of each archive.
fn fill(
    layout: &Layout<'_>,
    files: &[AtomicFile],
    options: &WriteOptions<'_>,
) -> Result<Vec<Vec<u32>>, Error> {
    let tasks = tasks(layout);
    let next = AtomicUsize::new(0);
    let has_failed = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    // Parts of CRCs by (file, item), then by first element.
    let parts: Mutex<BTreeMap<(usize, usize, usize), crc32fast::Hasher>> = Mutex::new(BTreeMap::new());
    let work = || {
        let mut buffer = Vec::new();
        while !has_failed.load(Ordering::Relaxed) {
            let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let done = if options.cancelled.load(Ordering::Relaxed) {
                Err(Error::Interrupted)
            } else {
                do_task(layout, files, task, options, &mut buffer, &parts)
            };
            if let Err(error) = done {
                has_failed.store(true, Ordering::Relaxed);
                lock(&failure).get_or_insert(error);
            }
        }
    };
    let n_threads = options.n_threads().min(tasks.len()).max(1);
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    let mut crcs: Vec<Vec<u32>> = layout
        .files
        .iter()
        .map(|file| vec![0; file.items.len()])
        .collect();
    let mut whole: BTreeMap<(usize, usize), crc32fast::Hasher> = BTreeMap::new();
    for ((file, item, _), part) in std::mem::take(&mut *lock(&parts)) {
        match whole.entry((file, item)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(part);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => place.get_mut().combine(&part),
        }
    }
    for ((file, item), hasher) in whole {
        crcs[file][item] = hasher.finalize();
    }
    Ok(crcs)
}

/// A thread that has panicked has left nothing half-done in these.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn tasks(layout: &Layout<'_>) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (file, laid) in layout.files.iter().enumerate() {
        let mut run: Option<(std::ops::Range<usize>, usize)> = None;
        let mut finish = |run: &mut Option<(std::ops::Range<usize>, usize)>| {
            if let Some((items, _)) = run.take() {
                tasks.push(Task {
                    file,
                    source: source(&laid.items[items.start]),
                    items,
                    elements: 0..0,
                });
            }
        };
        for (i, item) in laid.items.iter().enumerate() {
            let n_bytes = item.tensor.nbytes();
            // Small tensors that lie side by side are written at once.
            match &mut run {
                Some((items, bytes)) if !is_work(item) && *bytes + n_bytes <= CHUNK_BYTES => {
                    items.end = i + 1;
                    *bytes += n_bytes;
                    continue;
                }
                _ => finish(&mut run),
            }
            if n_bytes <= CHUNK_BYTES {
                run = Some((i..i + 1, n_bytes));
            }
        }
        finish(&mut run);
        for (i, item) in laid
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| item.tensor.nbytes() > CHUNK_BYTES)
        {
            let numel = item.tensor.numel();
            let step = if item.tensor.nbytes() > SPLIT_BYTES && can_split(item) {
                (SPLIT_BYTES / 2 / item.tensor.dtype().size()).max(1)
            } else {
                numel
            };
            for start in (0..numel).step_by(step) {
                tasks.push(Task {
                    file,
                    source: source(item),
                    items: i..i + 1,
                    elements: start..numel.min(start + step),
                });
            }
        }
    }
    tasks.sort_by_key(|task| (task.source, task.elements.start));
    tasks
}

/// Whether reading may begin anywhere: not where a whole is made first, or a CRC checked over all of it.
fn can_split(item: &Item<'_>) -> bool {
    let mut is_free = item.tensor.held_bytes() == 0;
    item.tensor
        .for_each_stored(&mut |tensor| is_free &= !tensor.storage().awaits_check());
    is_free
}

/// Whether it takes long to make however small it is, so that it should not wait for others that do.
fn is_work(item: &Item) -> bool {
    item.tensor.held_bytes() > CHUNK_BYTES
}

/// Where the largest input lies: its file's table, and its number there, which is the order in the file.
fn source(item: &Item<'_>) -> (usize, u32) {
    let mut largest = (0, (0, 0));
    item.tensor.for_each_stored(&mut |tensor| {
        if tensor.nbytes() > largest.0 {
            largest = (tensor.nbytes(), tensor.storage().id());
        }
    });
    largest.1
}

fn do_task(
    layout: &Layout<'_>,
    files: &[AtomicFile],
    task: &Task,
    options: &WriteOptions<'_>,
    buffer: &mut Vec<u8>,
    parts: &Mutex<BTreeMap<(usize, usize, usize), crc32fast::Hasher>>,
) -> Result<(), Error> {
    let laid = &layout.files[task.file];
    let out = files[task.file].file();
    let put = |offset: u64, bytes: &[u8]| -> Result<(), Error> {
        write_at(out, bytes, offset).map_err(FileError::at("write", &laid.path))?;
        (options.progress)(u64::try_from(bytes.len()).unwrap_or(0));
        Ok(())
    };
    let is_archive = matches!(laid.rest, Rest::Archive(_));
    if !task.elements.is_empty() {
        let item = &laid.items[task.items.start];
        let size = item.tensor.dtype().size();
        let named = |error: Error| error.of_tensor(&item.name);
        let mut reader = item.tensor.reader_at(task.elements.start).map_err(named)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut at = item.offset + u64::try_from(task.elements.start * size).unwrap_or(u64::MAX);
        let mut left = task.elements.len() * size;
        while left > 0 {
            if options.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let n = left.min(CHUNK_BYTES / size * size);
            buffer.resize(n, 0);
            reader.read(buffer).map_err(named)?;
            if is_archive {
                hasher.update(buffer);
            }
            put(at, buffer)?;
            at += u64::try_from(n).unwrap_or(0);
            left -= n;
        }
        if is_archive {
            lock(parts).insert((task.file, task.items.start, task.elements.start), hasher);
        }
        return Ok(());
    }
    // Side by side in a safetensors file; each in its record of an archive.
    let items = &laid.items[task.items.clone()];
    let total: usize = items.iter().map(|item| item.tensor.nbytes()).sum();
    buffer.resize(total, 0);
    let mut at = 0;
    for (i, item) in items.iter().enumerate() {
        let bytes = &mut buffer[at..at + item.tensor.nbytes()];
        let mut reader = item
            .tensor
            .reader_at(0)
            .map_err(|error| error.of_tensor(&item.name))?;
        reader.read(bytes).map_err(|error| error.of_tensor(&item.name))?;
        if is_archive {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(bytes);
            lock(parts).insert((task.file, task.items.start + i, 0), hasher);
            put(item.offset, bytes)?;
        }
        at += item.tensor.nbytes();
    }
    match items.first() {
        Some(first) if !is_archive => put(first.offset, buffer),
        _ => Ok(()),
    }
}

/// The bytes around the tensors.
fn finish(laid: &FileLayout<'_>, out: &File, crcs: &[u32]) -> io::Result<()> {
    match &laid.rest {
        Rest::Header(header) => write_at(out, &header.to_bytes(), 0),
        Rest::Archive(archive) => archive.write_rest(crcs, &mut |offset, bytes| write_at(out, bytes, offset)),
    }
}

/// Gives all files their names, once all are durable. The index of a set goes first and comes last: what is found between is
/// visibly no set, and not one of old and new shards.
fn commit(
    layout: &Layout<'_>,
    files: Vec<AtomicFile>,
    options: &WriteOptions<'_>,
) -> Result<WriteReport, Error> {
    let index = layout.index.as_ref().map(|index| {
        let mut temp = AtomicFile::create(&index.path, options.existing)?;
        temp.write_all(&index.json())
            .map_err(FileError::at("write", &index.path))?;
        Ok::<_, FileError>((index, temp))
    });
    let index = index.transpose()?;
    let config = layout.config.as_ref().map(|(path, text)| {
        let mut temp = AtomicFile::create(path, options.existing)?;
        temp.write_all(text.as_bytes())
            .map_err(FileError::at("write", path))?;
        Ok::<_, FileError>(temp)
    });
    let config = config.transpose()?;
    if layout.files.len() > 1 {
        for (file, temp) in layout.files.iter().zip(&files) {
            temp.file()
                .sync_all()
                .map_err(FileError::at("write", &file.path))?;
        }
    }
    if let Some((index, _)) = &index
        && index.path.exists()
    {
        std::fs::remove_file(&index.path).map_err(FileError::at("write", &index.path))?;
    }
    for temp in files.into_iter().chain(config) {
        temp.commit()?;
    }
    if let Some((index, temp)) = index {
        // While there is no index: with one, older shards beside would be taken for a broken set.
        remove_stale(layout, &index.path);
        temp.commit()?;
    }
    if let Some(other) = other_form(layout).filter(|path| path.is_file()) {
        std::fs::remove_file(&other).map_err(FileError::at("write", &other))?;
        if layout.index.is_none() {
            remove_stale(layout, &other);
        }
    }
    Ok(WriteReport {
        files: layout.paths().map(Path::to_owned).collect(),
        n_bytes: layout.files.iter().map(|file| file.n_bytes).sum(),
        tied: layout.tied.clone(),
        separated: layout.separated.clone(),
    })
}

/// What would stand for the same name beside the output, and be read in its place: the index of a set for one file, and one file for a
/// set.
fn other_form(layout: &Layout<'_>) -> Option<PathBuf> {
    match &layout.index {
        Some(index) => Some(index.path.with_extension("").with_extension("")),
        None => {
            let mut path = layout.files.first()?.path.clone().into_os_string();
            path.push(".index.json");
            Some(path.into())
        }
    }
}

/// Shards of an older set of the same name, which would be taken for part of this one. They are replaced by it.
fn remove_stale(layout: &Layout<'_>, index: &Path) {
    let Some((folder, file)) = index.parent().zip(index.file_name()) else {
        return;
    };
    let file = file.to_string_lossy();
    let Some((stem, extension)) = file.trim_end_matches(".index.json").rsplit_once('.') else {
        return;
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let Ok(there) = std::fs::read_dir(folder) else {
        return;
    };
    for path in there.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let is_shard = is_shard_name(&name, stem, extension);
        let is_new = layout
            .files
            .iter()
            .any(|file| file.path.file_name() == path.file_name());
        if is_shard && !is_new {
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
