//! The bytes behind tensors. Several tensors may view one storage, and stay views of one storage.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::DeflateDecoder;

use crate::{Error, Source};

/// How much is read, checked and passed on at once: large enough for the disk, small enough for the cache of a core.
const CHUNK_BYTES: usize = 1 << 20;

/// Locks for checking a CRC, chosen by the storage.
static VERIFYING: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
const LOCK_MASK: usize = 63;

/// The order of bytes within a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ByteOrder {
    Little,
    Big,
}

/// Shared, immutable bytes: a window of a file, or owned. A clone is the same storage.
#[derive(Clone)]
pub struct Storage {
    /// The storages of one file lie in one table, so that a hundred thousand of them cost no allocation each.
    table: Arc<Table>,
    index: u32,
}

/// All storages of one file.
pub(crate) struct Table {
    source: Source,
    byte_order: ByteOrder,
    entries: Vec<Entry>,
    /// Compressed bytes of deflated storages, by index, ascending.
    deflated: Vec<(u32, Range<usize>)>,
    /// Whether the bytes are still to be made.
    is_promised: bool,
}

/// One storage of a table.
pub(crate) struct Entry {
    key: Key,
    start: usize,
    len: usize,
    /// What the container says; none where it says nothing.
    crc: Option<u32>,
    is_verified: AtomicBool,
}

/// The name of a storage in its file, which torch makes of a number.
pub(crate) enum Key {
    Number(u64),
    Text(Box<str>),
}

impl Key {
    pub(crate) fn new(text: &str) -> Key {
        match number(text.as_bytes()) {
            Some(number) => Key::Number(number),
            None => Key::Text(text.into()),
        }
    }

    pub(crate) fn text(&self) -> Cow<'_, str> {
        match self {
            Key::Number(number) => number.to_string().into(),
            Key::Text(text) => Cow::Borrowed(text),
        }
    }
}

/// The number that `text` is the only decimal spelling of.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let is_canonical = text.first() != Some(&b'0') || text.len() == 1;
    if text.is_empty() || !is_canonical {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

impl Table {
    pub(crate) fn new(source: Source, byte_order: ByteOrder) -> Table {
        Table {
            source,
            byte_order,
            entries: Vec::new(),
            deflated: Vec::new(),
            is_promised: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn reserve(&mut self, n: usize) {
        self.entries.reserve_exact(n);
    }

    /// Adds the storage at `range` of the source. Returns its index.
    pub(crate) fn push(&mut self, key: Key, range: Range<usize>, crc: Option<u32>) -> u32 {
        let index =
            u32::try_from(self.entries.len()).expect("the containers refuse more than u32::MAX records");
        self.entries.push(Entry {
            key,
            start: range.start,
            len: range.len(),
            crc,
            is_verified: AtomicBool::new(false),
        });
        index
    }

    /// Adds a storage of `len` bytes that lies deflated at `range`.
    pub(crate) fn push_deflated(
        &mut self,
        key: Key,
        range: Range<usize>,
        len: usize,
        crc: Option<u32>,
    ) -> u32 {
        let index = self.push(key, 0..len, crc);
        self.deflated.push((index, range));
        index
    }

    /// The storage of that index, which `push` has returned.
    pub(crate) fn storage(self: &Arc<Table>, index: u32) -> Storage {
        Storage {
            table: Arc::clone(self),
            index,
        }
    }
}

impl Storage {
    /// Own bytes, little-endian.
    pub fn owned(bytes: Vec<u8>) -> Storage {
        let range = 0..bytes.len();
        let mut table = Table::new(Source::from_bytes(bytes), ByteOrder::Little);
        let index = table.push(Key::Text("".into()), range, None);
        Arc::new(table).storage(index)
    }

    /// `nbytes` bytes that do not exist yet, for tensors that are still to be computed. Every call makes another storage.
    ///
    /// Everything but its bytes can be had of a tensor over it; reading is [`Error::Promised`].
    pub fn promised(nbytes: usize) -> Storage {
        let mut table = Table::new(Source::from_bytes(Vec::new()), ByteOrder::Little);
        table.is_promised = true;
        let index = table.push(Key::Text("".into()), 0..nbytes, None);
        Arc::new(table).storage(index)
    }

    /// Whether it is made by [`promised`](Storage::promised).
    pub fn is_promised(&self) -> bool {
        self.table.is_promised
    }

    /// The window `range` of a file, little-endian; none if the file is shorter. `key` is the name that the file has for it.
    pub fn window(source: &Source, range: Range<usize>, key: &str) -> Option<Storage> {
        if range.start > range.end || range.end > source.len() {
            return None;
        }
        let mut table = Table::new(source.clone(), ByteOrder::Little);
        let index = table.push(Key::new(key), range, None);
        Some(Arc::new(table).storage(index))
    }

    /// As [`window`](Storage::window), of many windows of one file at once; none if the file is shorter than any of them.
    pub fn windows<'k>(
        source: &Source,
        windows: impl ExactSizeIterator<Item = (Range<usize>, &'k str)>,
    ) -> Option<Vec<Storage>> {
        let mut table = Table::new(source.clone(), ByteOrder::Little);
        table.reserve(windows.len());
        for (range, key) in windows {
            if range.start > range.end || range.end > source.len() {
                return None;
            }
            table.push(Key::new(key), range, None);
        }
        let table = Arc::new(table);
        let n = u32::try_from(table.len()).ok()?;
        Some((0..n).map(|index| table.storage(index)).collect())
    }

    #[cfg(test)]
    pub(crate) fn with_byte_order(self, byte_order: ByteOrder) -> Storage {
        let bytes = self.read(0..self.nbytes()).unwrap().into_owned();
        let range = 0..bytes.len();
        let mut table = Table::new(Source::from_bytes(bytes), byte_order);
        let index = table.push(Key::new("0"), range, None);
        Arc::new(table).storage(index)
    }

    fn entry(&self) -> &Entry {
        let index = usize::try_from(self.index).expect("at least 32-bit addresses");
        self.table
            .entries
            .get(index)
            .expect("a storage is made with the index of an entry")
    }

    pub(crate) fn compressed(&self) -> Option<&Range<usize>> {
        let deflated = &self.table.deflated;
        let at = deflated
            .binary_search_by_key(&self.index, |(index, _)| *index)
            .ok()?;
        deflated.get(at).map(|(_, range)| range)
    }

    /// The file, or the memory, that it is a part of.
    pub(crate) fn source(&self) -> &Source {
        &self.table.source
    }

    /// Size in bytes.
    pub fn nbytes(&self) -> usize {
        self.entry().len
    }

    /// The order of bytes within a component.
    pub fn byte_order(&self) -> ByteOrder {
        self.table.byte_order
    }

    /// The name of this storage in the file that it was read from; empty for own bytes.
    pub fn key(&self) -> Cow<'_, str> {
        self.entry().key.text()
    }

    /// Whether the two are one storage, so that tensors over them share bytes.
    pub fn ptr_eq(&self, other: &Storage) -> bool {
        self.id() == other.id()
    }

    /// A pair that is equal for clones and different for all other storages alive; for use as a map's key.
    pub fn id(&self) -> (usize, u32) {
        (Arc::as_ptr(&self.table).addr(), self.index)
    }

    /// The bytes as they are in the file, where they lie there or in memory as they are; not checked against a CRC.
    pub(crate) fn as_slice(&self) -> Option<&[u8]> {
        if self.compressed().is_some() {
            return None;
        }
        let entry = self.entry();
        self.source()
            .as_slice()?
            .get(entry.start..entry.start.saturating_add(entry.len))
    }

    /// The bytes of `range`, as they are in the file.
    ///
    /// The first time that anything is read of a storage whose container has a CRC for it, the whole is checked.
    ///
    /// # Errors
    /// The file cannot be read, was changed, or does not have the bytes that its own CRC tells of; `range` is outside.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
        self.check_made()?;
        self.check_range(&range)?;
        self.verify()?;
        if let Some(bytes) = self.as_slice().and_then(|bytes| bytes.get(range.clone())) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = Vec::with_capacity(range.len());
        self.pass_on(range, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        self.check_unchanged()?;
        Ok(Cow::Owned(bytes))
    }

    /// Passes the bytes of `range` on in chunks of bounded size, in order. The chunks end where elements do, if `range` begins so.
    ///
    /// A CRC is checked on the way, so that an error may come after bytes were passed on.
    ///
    /// # Errors
    /// As [`read`](Storage::read), and those of `sink`.
    pub(crate) fn stream(
        &self,
        range: Range<usize>,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.check_made()?;
        self.check_range(&range)?;
        let entry = self.entry();
        let is_whole = range == (0..entry.len);
        match entry.crc {
            Some(expected) if is_whole && !entry.is_verified.load(Ordering::Relaxed) => {
                let mut hasher = crc32fast::Hasher::new();
                self.pass_on(range, &mut |chunk| {
                    hasher.update(chunk);
                    sink(chunk)
                })?;
                self.judge(hasher.finalize(), expected)?;
            }
            _ => {
                self.verify()?;
                self.pass_on(range, sink)?;
            }
        }
        self.check_unchanged()
    }

    /// Checks the bytes against the CRC that the container has for them, once.
    ///
    /// # Errors
    /// They differ, or cannot be read.
    pub fn verify(&self) -> Result<(), Error> {
        let entry = self.entry();
        let Some(expected) = entry.crc else {
            return Ok(());
        };
        if entry.is_verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Threads that begin on one storage together wait for one of them.
        let lock = VERIFYING
            .get(
                self.id()
                    .0
                    .wrapping_shr(4)
                    .wrapping_add(usize::try_from(self.index).unwrap_or(0))
                    & LOCK_MASK,
            )
            .expect("the mask is below the number of locks");
        let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.is_verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut hasher = crc32fast::Hasher::new();
        self.pass_on(0..entry.len, &mut |chunk| {
            hasher.update(chunk);
            Ok(())
        })?;
        self.check_unchanged()?;
        self.judge(hasher.finalize(), expected)
    }

    pub(crate) fn judge(&self, found: u32, expected: u32) -> Result<(), Error> {
        if found != expected {
            let fault = format!("its CRC is {found:08x}, expected {expected:08x}");
            return Err(Error::container(format!("data/{}", self.key()), fault));
        }
        self.entry().is_verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the container has a CRC for it that nothing has checked yet, so that the first reading reads all of it.
    pub fn awaits_check(&self) -> bool {
        self.unverified_crc().is_some()
    }

    /// The CRC that the whole is still to be compared with.
    pub(crate) fn unverified_crc(&self) -> Option<u32> {
        let entry = self.entry();
        entry.crc.filter(|_| !entry.is_verified.load(Ordering::Relaxed))
    }

    /// Fills `out` with the bytes from `offset` on of a storage that is not deflated; nothing is checked.
    pub(crate) fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        self.check_made()?;
        self.check_range(&(offset..offset.saturating_add(out.len())))?;
        let source = self.source();
        source
            .read_at(self.entry().start.saturating_add(offset), out)
            .map_err(|error| source.error(error).into())
    }

    pub(crate) fn check_made(&self) -> Result<(), Error> {
        if self.is_promised() {
            return Err(Error::Promised {
                n_bytes: self.nbytes(),
            });
        }
        Ok(())
    }

    fn check_range(&self, range: &Range<usize>) -> Result<(), Error> {
        if range.start <= range.end && range.end <= self.nbytes() {
            return Ok(());
        }
        let fault = format!("bytes {range:?} of {}", self.nbytes());
        Err(Error::container(format!("data/{}", self.key()), fault))
    }

    pub(crate) fn check_unchanged(&self) -> Result<(), Error> {
        if self.source().is_unchanged() {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.source().path().map(Into::into).unwrap_or_default(),
        })
    }

    fn pass_on(
        &self,
        range: Range<usize>,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(compressed) = self.compressed() {
            return self.inflate(compressed.clone(), range, sink);
        }
        let source = self.source();
        let start = self.entry().start;
        let (mut at, end) = (start.saturating_add(range.start), start.saturating_add(range.end));
        // What is in memory, and what is small, is passed on where it lies; the rest is read, see `Source::read_at`.
        let is_large = range.len() > CHUNK_BYTES && source.path().is_some();
        if let Some(bytes) = source
            .as_slice()
            .filter(|_| !is_large)
            .and_then(|bytes| bytes.get(at..end))
        {
            return bytes.chunks(CHUNK_BYTES).try_for_each(sink);
        }
        let mut buffer = vec![0; CHUNK_BYTES.min(range.len())];
        while at < end {
            let n = end.saturating_sub(at).min(buffer.len());
            let chunk = buffer.split_at_mut(n).0;
            source.read_at(at, chunk).map_err(|error| source.error(error))?;
            sink(chunk)?;
            at = at.saturating_add(n);
        }
        Ok(())
    }

    /// Inflates as far as `range` goes; of a whole storage, not a byte more or less than the directory declares.
    fn inflate(
        &self,
        compressed: Range<usize>,
        range: Range<usize>,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let record = || format!("data/{}", self.key());
        let reader = SourceReader::new(self.source(), compressed);
        let mut decoder = DeflateDecoder::new(reader);
        let declared = self.entry().len;
        let mut buffer = vec![0; CHUNK_BYTES.min(declared.saturating_add(1))];
        let mut at = 0_usize;
        while at < range.end || range.end == declared {
            // Full buffers, so that no element is cut in two.
            let n = fill(&mut decoder, &mut buffer)
                .map_err(|error| Error::container(record(), format!("it cannot be inflated: {error}")))?;
            let end = at.saturating_add(n);
            if n == 0 || end > declared {
                let found = if n == 0 { at.to_string() } else { "more".to_owned() };
                if n == 0 && at == declared {
                    break;
                }
                let fault = format!("it inflates to {found} bytes, declared are {declared}");
                return Err(Error::container(record(), fault));
            }
            let wanted = range.start.max(at)..range.end.min(end);
            if wanted.start < wanted.end {
                let chunk = buffer.get(wanted.start.saturating_sub(at)..wanted.end.saturating_sub(at));
                sink(chunk.expect("the wanted part lies between `at` and `end`"))?;
            }
            at = end;
        }
        Ok(())
    }
}

/// Reads until `buffer` is full or the stream ends; returns how many bytes there are.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n_bytes = 0_usize;
    while let Some(rest) = buffer.get_mut(n_bytes..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest)? {
            0 => break,
            n => n_bytes = n_bytes.saturating_add(n),
        }
    }
    Ok(n_bytes)
}

/// A range of a source as a stream.
#[derive(Debug)]
pub(crate) struct SourceReader {
    source: Source,
    range: Range<usize>,
}

impl SourceReader {
    /// `range` must lie inside the source.
    pub(crate) fn new(source: &Source, range: Range<usize>) -> SourceReader {
        SourceReader {
            source: source.clone(),
            range,
        }
    }
}

impl Read for SourceReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = out.len().min(self.range.len());
        self.source.read_at(self.range.start, out.split_at_mut(n).0)?;
        self.range.start = self.range.start.saturating_add(n);
        Ok(n)
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage(`{}`, {} bytes)", self.key(), self.nbytes())
    }
}
