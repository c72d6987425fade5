//! A zip's central directory, each entry compared with its local header.
//!
//! By hand, where writing and inflating are left to crates: 100,000 entries have to be read and proven honest in milliseconds, and
//! what torch would read has to be known for files that lie. torch finds names in the central directory and computes where data
//! begins from the local header (caffe2/serialize/inline_container.cc); a file in which the two disagree has no one meaning.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::ops::Range;

use crate::finding::{Finding, Severity, Sink};
use crate::{Error, Source, diagnose, limits};

const END_BYTES: usize = 22;
const END: &[u8] = b"PK\x05\x06";
const LOCATOR_BYTES: usize = 20;
const LOCATOR: &[u8] = b"PK\x06\x07";
const END64_BYTES: usize = 56;
const END64: &[u8] = b"PK\x06\x06";
const ENTRY_BYTES: usize = 46;
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL_BYTES: usize = 30;
const LOCAL: &[u8] = b"PK\x03\x04";

/// In a field of 16 or 32 bits: the value is in the zip64 extra field.
const IN_ZIP64: u64 = 0xffff_ffff;
const MAX_COMMENT_BYTES: usize = 0xffff;

/// What else bytes in front of an archive may be than a prefix.
const SEVERAL: &str = ", or between its directory and its end; a `.distcp` file of a distributed checkpoint is several archives one after the other";

/// The file is encrypted, strongly encrypted, or its directory is.
const ENCRYPTED_FLAGS: u16 = 1 | 1 << 6 | 1 << 13;
/// Sizes and CRC follow the data instead of standing in the local header.
const DEFERRED_FLAG: u16 = 1 << 3;

/// How the bytes of a member are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
    Other(u16),
}

/// One member of the archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    name: Range<u32>,
    pub(crate) header_start: usize,
    /// Of the bytes as they are kept; empty where they cannot be found.
    pub(crate) data: Range<usize>,
    /// Of the bytes as they are meant.
    pub(crate) size: usize,
    pub(crate) crc: u32,
    pub(crate) method: Method,
}

/// The members in the directory's order, of which the first tells the root.
pub(crate) struct Directory<'s> {
    bytes: Cow<'s, [u8]>,
    pub(crate) members: Vec<Member>,
}

impl Directory<'_> {
    /// The name as it is in the directory.
    pub(crate) fn name(&self, member: &Member) -> &[u8] {
        let at = |n: u32| usize::try_from(n).expect("at least 32-bit addresses");
        self.bytes
            .get(at(member.name.start)..at(member.name.end))
            .unwrap_or_default()
    }

    pub(crate) fn text(&self, member: &Member) -> String {
        String::from_utf8_lossy(self.name(member)).into_owned()
    }
}

/// Bytes of the source, borrowed where they are in memory.
pub(crate) fn bytes_of(source: &Source, range: Range<usize>) -> Result<Cow<'_, [u8]>, Error> {
    match source.as_slice() {
        Some(bytes) => Ok(Cow::Borrowed(bytes.get(range).unwrap_or_default())),
        None => Ok(Cow::Owned(
            source.read(range).map_err(|error| source.error(error))?,
        )),
    }
}

/// Little-endian numbers one after the other; zero behind the end, which the callers have excluded.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn chunk<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((chunk, rest)) => {
                self.0 = rest;
                *chunk
            }
            None => [0; N],
        }
    }

    fn skip<const N: usize>(&mut self) {
        self.chunk::<N>();
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.chunk())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.chunk())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.chunk())
    }
}

/// Where the directory is.
struct End {
    n_entries: u64,
    range: Range<usize>,
    /// Bytes in front of the archive, by which every offset in it is short.
    base: usize,
}

/// Reads the directory. What is wrong goes to `sink`, which decides whether to go on.
pub(crate) fn read<'s>(
    source: &'s Source,
    allow_prefix: bool,
    sink: Sink<'_>,
) -> Result<Directory<'s>, Error> {
    let end = find_end(source, allow_prefix, sink)?;
    let bytes = bytes_of(source, end.range.clone())?;
    if u32::try_from(bytes.len()).is_err() {
        return Err(Error::Limit {
            what: "reading the central directory".to_owned(),
            needed: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            limit: u64::from(u32::MAX),
        });
    }
    // An entry has 46 bytes at least, so that the number of them cannot claim more memory than the file has bytes.
    let n_possible = bytes.len().checked_div(ENTRY_BYTES).unwrap_or(0);
    let n_entries = usize::try_from(end.n_entries).unwrap_or(usize::MAX);
    let mut members: Vec<Member> = Vec::with_capacity(n_entries.min(n_possible));
    let mut locals = Locals {
        source,
        window: Vec::new(),
        window_start: 0,
    };
    let mut at = 0;
    for index in 0..n_entries {
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.len() < ENTRY_BYTES || !rest.starts_with(ENTRY) {
            sink(broken(format!(
                "entry {index} of {n_entries} is not where it should be"
            )))?;
            break;
        }
        let Some((member, n_bytes)) = entry(rest, at, &end, &mut locals, sink)? else {
            sink(broken(format!(
                "entry {index} of {n_entries} reaches past its end"
            )))?;
            break;
        };
        members.push(member);
        at = at.saturating_add(n_bytes);
    }
    if at < bytes.len() && members.len() == n_entries {
        let hidden = bytes.len().saturating_sub(at);
        sink(broken(format!(
            "{hidden} bytes behind the {n_entries} entries that it claims"
        )))?;
    }
    let directory = Directory { bytes, members };
    let first = directory.members.iter().map(|member| member.header_start).min();
    let in_front = first.unwrap_or(0).saturating_sub(end.base);
    if in_front > 0 && first < Some(source.len()) {
        let detail = format!("{in_front} bytes in front of the first record");
        sink(prefix(detail, allow_prefix))?;
    }
    check_overlaps(&directory, sink)?;
    Ok(directory)
}

/// Bytes in front of an archive, which weigh less where they are expected.
fn prefix(detail: String, is_allowed: bool) -> Finding {
    let severity = if is_allowed {
        Severity::Flag
    } else {
        Severity::High
    };
    Finding::new("zip.prefix", severity, "central directory", detail)
}

fn broken(detail: String) -> Finding {
    Finding::new("zip.broken", Severity::High, "central directory", detail)
}

fn find_end(source: &Source, allow_prefix: bool, sink: Sink<'_>) -> Result<End, Error> {
    let tail_len = MAX_COMMENT_BYTES
        .saturating_add(END_BYTES)
        .saturating_add(LOCATOR_BYTES)
        .saturating_add(END64_BYTES);
    let tail_start = source.len().saturating_sub(tail_len);
    let tail = bytes_of(source, tail_start..source.len())?;
    let comment_len = |at: usize| {
        let field = tail.get(at.saturating_add(20)..at.saturating_add(END_BYTES))?;
        Some(usize::from(u16::from_le_bytes(*field.first_chunk()?)))
    };
    let signatures = || {
        let last = tail.len().saturating_sub(END_BYTES);
        (0..=last)
            .rev()
            .filter(|&at| tail.get(at..).is_some_and(|rest| rest.starts_with(END)))
    };
    let is_last = |at: usize| {
        comment_len(at).is_some_and(|len| at.saturating_add(END_BYTES).saturating_add(len) == tail.len())
    };
    let end_at = match signatures().find(|&at| is_last(at)) {
        Some(at) => at,
        None => {
            let Some(at) = signatures().next().filter(|&at| comment_len(at).is_some()) else {
                return Err(Error::not_a_checkpoint(diagnose::truncated_zip(source.len())));
            };
            let claimed = comment_len(at).unwrap_or(0);
            let behind = tail.len().saturating_sub(at.saturating_add(END_BYTES));
            let detail = match behind.checked_sub(claimed) {
                Some(extra) => format!("{extra} bytes behind the archive"),
                None => format!("its comment should have {claimed} bytes, {behind} are left"),
            };
            sink(Finding::new(
                "zip.suffix",
                Severity::High,
                "end of central directory",
                detail,
            ))?;
            at
        }
    };
    let mut fields = Fields(tail.get(end_at.saturating_add(END.len())..).unwrap_or_default());
    let (disk, first_disk) = (u64::from(fields.u16()), u64::from(fields.u16()));
    let (n_here, n_entries) = (u64::from(fields.u16()), u64::from(fields.u16()));
    let (size, offset) = (u64::from(fields.u32()), u64::from(fields.u32()));
    let mut numbers = [disk, first_disk, n_here, n_entries, size, offset];
    let at_64 = end64(source, &tail, tail_start, end_at, allow_prefix, sink)?;
    let directory_end = at_64.unwrap_or(tail_start.saturating_add(end_at));
    if let Some(at) = at_64 {
        let record = bytes_of(source, at..at.saturating_add(END64_BYTES))?;
        let mut fields = Fields(record.get(12..).unwrap_or_default());
        fields.skip::<4>();
        let wide = [
            u64::from(fields.u32()),
            u64::from(fields.u32()),
            fields.u64(),
            fields.u64(),
            fields.u64(),
            fields.u64(),
        ];
        // The short record repeats the numbers that fit, and says so where one does not.
        let all_ones = [0xffff, 0xffff, 0xffff, 0xffff, IN_ZIP64, IN_ZIP64];
        for ((short, wide), ones) in numbers.iter().zip(&wide).zip(all_ones) {
            if short != wide && *short != ones {
                sink(broken("its two end records disagree".to_owned()))?;
                break;
            }
        }
        numbers = wide;
    }
    let [disk, first_disk, n_here, n_entries, size, offset] = numbers;
    if disk != 0 || first_disk != 0 || n_here != n_entries {
        sink(broken("it is a part of a split archive".to_owned()))?;
    }
    let outside = || Error::container("central directory", "it lies outside the file");
    let size = usize::try_from(size).map_err(|_| outside())?;
    let offset = usize::try_from(offset).map_err(|_| outside())?;
    let start = directory_end.checked_sub(size).ok_or_else(outside)?;
    let base = start.checked_sub(offset).ok_or_else(outside)?;
    if base > 0 {
        let detail = format!("{base} bytes in front of the archive{SEVERAL}");
        sink(prefix(detail, allow_prefix))?;
    }
    Ok(End {
        n_entries,
        range: start..directory_end,
        base,
    })
}

/// Where the zip64 end record is, if there is one.
fn end64(
    source: &Source,
    tail: &[u8],
    tail_start: usize,
    end_at: usize,
    allow_prefix: bool,
    sink: Sink<'_>,
) -> Result<Option<usize>, Error> {
    let locator = end_at
        .checked_sub(LOCATOR_BYTES)
        .and_then(|start| tail.get(start..end_at))
        .filter(|locator| locator.starts_with(LOCATOR));
    let Some(locator) = locator else {
        return Ok(None);
    };
    let mut fields = Fields(locator.get(4..).unwrap_or_default());
    let disk = fields.u32();
    let told = usize::try_from(fields.u64()).unwrap_or(usize::MAX);
    if disk != 0 || fields.u32() > 1 {
        sink(broken("it is a part of a split archive".to_owned()))?;
    }
    // It stands right in front of its locator. In a file of several archives, what the locator tells may be another's: offsets in
    // an archive do not know how much is in front of it.
    let at = tail_start
        .saturating_add(end_at)
        .checked_sub(LOCATOR_BYTES.saturating_add(END64_BYTES));
    let missing = || {
        let fault = "its zip64 end record is not where it should be";
        Error::container("central directory", fault)
    };
    let at = at.ok_or_else(missing)?;
    if !bytes_of(source, at..at.saturating_add(END64_BYTES))?.starts_with(END64) {
        return Err(missing());
    }
    match at.checked_sub(told) {
        Some(0) => {}
        Some(in_front) => {
            let detail = format!("{in_front} bytes in front of the archive{SEVERAL}");
            sink(prefix(detail, allow_prefix))?;
        }
        None => return Err(missing()),
    }
    Ok(Some(at))
}

/// The entry at the start of `rest`, and how many bytes it takes; none if it reaches past the end.
fn entry(
    rest: &[u8],
    at: usize,
    end: &End,
    locals: &mut Locals<'_>,
    sink: Sink<'_>,
) -> Result<Option<(Member, usize)>, Error> {
    let mut fields = Fields(rest.get(8..).unwrap_or_default());
    let (flags, method) = (fields.u16(), fields.u16());
    fields.skip::<4>();
    let crc = fields.u32();
    let (mut compressed, mut size) = (u64::from(fields.u32()), u64::from(fields.u32()));
    let (name_len, extra_len, comment_len) = (fields.u16(), fields.u16(), fields.u16());
    fields.skip::<8>();
    let mut header = u64::from(fields.u32());
    let name_end = ENTRY_BYTES.saturating_add(usize::from(name_len));
    let extra_end = name_end.saturating_add(usize::from(extra_len));
    let n_bytes = extra_end.saturating_add(usize::from(comment_len));
    if n_bytes > rest.len() {
        return Ok(None);
    }
    let name = rest.get(ENTRY_BYTES..name_end).unwrap_or_default();
    if [compressed, size, header].contains(&IN_ZIP64) {
        let extra = rest.get(name_end..extra_end).unwrap_or_default();
        let mut wide = Fields(extra_field(extra, 1).unwrap_or_default());
        for value in [&mut size, &mut compressed, &mut header] {
            if *value == IN_ZIP64 && wide.0.len() >= 8 {
                *value = wide.u64();
            }
        }
    }
    let small = |n: usize| u32::try_from(n).expect("the directory is below 4 GiB");
    let name_start = at.saturating_add(ENTRY_BYTES);
    let mut member = Member {
        name: small(name_start)..small(name_start.saturating_add(name.len())),
        header_start: usize::try_from(header)
            .ok()
            .and_then(|header| header.checked_add(end.base))
            .unwrap_or(usize::MAX),
        data: 0..0,
        size: usize::try_from(size).unwrap_or(usize::MAX),
        crc,
        method: match method {
            0 => Method::Stored,
            8 => Method::Deflated,
            other => Method::Other(other),
        },
    };
    let mut tell = |id, severity, detail: String| {
        let record = String::from_utf8_lossy(name).into_owned();
        sink(Finding::new(id, severity, record, detail))
    };
    if flags & ENCRYPTED_FLAGS != 0 {
        tell("zip.encrypted", Severity::High, "it is encrypted".to_owned())?;
    }
    match member.method {
        Method::Other(method) => {
            let detail = format!("it is compressed by method {method}, which torch does not read");
            tell("zip.method", Severity::High, detail)?;
        }
        Method::Stored if compressed != size => {
            let detail = format!("it is stored, but in {compressed} bytes of {size}");
            tell("zip.mismatch", Severity::High, detail)?;
        }
        Method::Deflated if size > compressed.saturating_mul(limits::MAX_INFLATE_RATIO) => {
            let detail = format!("{compressed} compressed bytes cannot expand to {size}");
            tell("zip.mismatch", Severity::High, detail)?;
        }
        _ => {}
    }

    let local = locals.at(member.header_start, name.len())?;
    let Some((local, is_same_name)) = local.map(|(local, local_name)| (*local, local_name == name)) else {
        let detail = format!("no local header at byte {header}");
        tell("zip.outside", Severity::High, detail)?;
        return Ok(Some((member, n_bytes)));
    };
    let mut fields = Fields(local.split_at(6).1);
    let (local_flags, local_method) = (fields.u16(), fields.u16());
    fields.skip::<4>();
    let told = [
        u64::from(fields.u32()),
        u64::from(fields.u32()),
        u64::from(fields.u32()),
    ];
    let (local_name_len, local_extra_len) = (usize::from(fields.u16()), usize::from(fields.u16()));
    let meant = [u64::from(crc), compressed, size];
    let is_deferred = flags & DEFERRED_FLAG != 0;
    let [told_crc, told_compressed, told_size] = told;
    let mut told = [told_crc, told_compressed, told_size];
    if [told_compressed, told_size].contains(&IN_ZIP64) {
        let start = member
            .header_start
            .saturating_add(LOCAL_BYTES)
            .saturating_add(local_name_len);
        let extra = start..start.saturating_add(local_extra_len).min(locals.source.len());
        let extra = bytes_of(locals.source, extra)?;
        let mut wide = Fields(extra_field(&extra, 1).unwrap_or_default());
        // In this order, whatever the field's name for the second suggests.
        let [_, compressed, size] = &mut told;
        for value in [size, compressed] {
            if *value == IN_ZIP64 && wide.0.len() >= 8 {
                *value = wide.u64();
            }
        }
    }
    let differs = |(told, meant): (&u64, &u64)| !(is_deferred && *told == 0) && told != meant;
    let what = if !is_same_name || local_name_len != name.len() {
        Some("another name")
    } else if local_method != method {
        Some("another method")
    } else if local_flags != flags {
        Some("other flags")
    } else if told.iter().zip(&meant).any(differs) {
        Some("other sizes or another CRC")
    } else {
        None
    };
    if let Some(what) = what {
        tell(
            "zip.mismatch",
            Severity::High,
            format!("its local header has {what}"),
        )?;
    }
    let data_start = member
        .header_start
        .saturating_add(LOCAL_BYTES)
        .saturating_add(local_name_len)
        .saturating_add(local_extra_len);
    let data_end = usize::try_from(compressed)
        .ok()
        .and_then(|n| data_start.checked_add(n));
    match data_end.filter(|&data_end| data_end <= end.range.start) {
        Some(data_end) => member.data = data_start..data_end,
        None => {
            let detail = "its data reaches past the start of the central directory".to_owned();
            tell("zip.outside", Severity::High, detail)?;
        }
    }
    Ok(Some((member, n_bytes)))
}

/// The extra field of that id.
fn extra_field(mut extra: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, rest) = extra.split_first_chunk::<4>()?;
        let [id_0, id_1, len_0, len_1] = *head;
        let len = usize::from(u16::from_le_bytes([len_0, len_1]));
        let (field, rest) = rest.split_at(len.min(rest.len()));
        if u16::from_le_bytes([id_0, id_1]) == wanted {
            return Some(field);
        }
        extra = rest;
    }
}

/// Local headers, which lie all over the file: read in windows where it is not in memory.
struct Locals<'s> {
    source: &'s Source,
    window: Vec<u8>,
    window_start: usize,
}

impl Locals<'_> {
    /// The fixed part of the local header at `start`, and the name of `name_len` bytes behind it.
    #[expect(clippy::type_complexity, reason = "a pair that has one reader")]
    fn at(&mut self, start: usize, name_len: usize) -> Result<Option<(&[u8; LOCAL_BYTES], &[u8])>, Error> {
        const WINDOW_BYTES: usize = 1 << 16;
        let n_bytes = LOCAL_BYTES.saturating_add(name_len);
        let Some(end) = start.checked_add(n_bytes).filter(|&end| end <= self.source.len()) else {
            return Ok(None);
        };
        let header = match self.source.as_slice() {
            Some(bytes) => bytes.get(start..end),
            None => {
                let window_end = self.window_start.saturating_add(self.window.len());
                if start < self.window_start || end > window_end {
                    let window_end = start
                        .saturating_add(WINDOW_BYTES.max(n_bytes))
                        .min(self.source.len());
                    self.window = self
                        .source
                        .read(start..window_end)
                        .map_err(|error| self.source.error(error))?;
                    self.window_start = start;
                }
                let start = start.saturating_sub(self.window_start);
                self.window.get(start..start.saturating_add(n_bytes))
            }
        };
        Ok(header
            .filter(|header| header.starts_with(LOCAL))
            .and_then(|header| header.split_first_chunk()))
    }
}

/// No two members may share bytes: what one's CRC proves, the other would change.
fn check_overlaps(directory: &Directory<'_>, sink: Sink<'_>) -> Result<(), Error> {
    let members = &directory.members;
    let starts_in_order = members.is_sorted_by_key(|member| member.header_start);
    let mut order: Vec<&Member> = Vec::new();
    if !starts_in_order {
        order = members.iter().collect();
        order.sort_by_key(|member| member.header_start);
    }
    let at = |i: usize| {
        if starts_in_order {
            members.get(i)
        } else {
            order.get(i).copied()
        }
    };
    for i in 1..members.len() {
        let (Some(first), Some(second)) = (at(i.saturating_sub(1)), at(i)) else {
            break;
        };
        let header_end = first.header_start.saturating_add(LOCAL_BYTES);
        if second.header_start < first.data.end.max(header_end) {
            let detail = format!("overlaps record `{}`", directory.text(first));
            sink(Finding::new(
                "zip.overlap",
                Severity::High,
                directory.text(second),
                detail,
            ))?;
        }
    }
    Ok(())
}
