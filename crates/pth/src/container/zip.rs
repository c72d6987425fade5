//! The zip container: `<root>/data.pkl` and `<root>/data/<key>`.
//!
//! The `zip` crate reads the central directory; local headers are compared with it here, since torch computes where data begins from them.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use ::zip::{CompressionMethod, ZipArchive};

use super::{Contents, Format, Record};
use crate::error::PickleFault;
use crate::storage::ByteOrder;
use crate::{Error, FileMap, Storage, diagnose, limits, pickle};

/// Size of a local header without name and extra field.
const LOCAL_HEADER_BYTES: usize = 30;

struct Member {
    name: String,
    index: usize,
    header_start: u64,
    /// Of the compressed bytes.
    data: Result<Range<usize>, String>,
    method: CompressionMethod,
    size: u64,
    crc: u32,
}

pub(super) fn open(map: FileMap) -> Result<Contents, Error> {
    let members = members(map.as_bytes())?;
    let root = match members.first().and_then(|first| first.name.split_once('/')) {
        Some((root, _)) => root.to_owned(),
        None => {
            return Err(Error::not_a_checkpoint(diagnose::zip_without_pickle(&names(
                &members,
            ))));
        }
    };
    let inside = |member: &Member| {
        member
            .name
            .strip_prefix(&root)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let find = |name: &str| {
        let full = format!("{root}/{name}");
        members.iter().find(|member| member.name == full)
    };
    if let Some(found) = diagnose::other_archive(&names(&members), &root) {
        return Err(Error::not_a_checkpoint(found));
    }
    let Some(data_pkl) = find("data.pkl") else {
        return Err(Error::not_a_checkpoint(diagnose::zip_without_pickle(&names(
            &members,
        ))));
    };

    let byte_order = match find("byteorder") {
        None => ByteOrder::Little,
        Some(member) => match small(&map, member)?.as_slice() {
            b"little" => ByteOrder::Little,
            b"big" => ByteOrder::Big,
            other => {
                let found = String::from_utf8_lossy(other).into_owned();
                return Err(Error::container(
                    &member.name,
                    format!("expected `little` or `big`, found `{found}`"),
                ));
            }
        },
    };

    let source = pickle_bytes(&map, data_pkl)?;
    let n_bytes = source.nbytes();
    let (arena, taken) = pickle::read::read(source, &data_pkl.name)?;
    if taken != n_bytes {
        return Err(Error::Format {
            record: data_pkl.name.clone(),
            offset: taken,
            kind: PickleFault::Trailing(n_bytes.saturating_sub(taken)),
        });
    }

    let prefix = format!("{root}/data/");
    let mut records = HashMap::with_capacity(members.len());
    for member in members.iter().filter(|member| inside(member)) {
        let Some(key) = member.name.strip_prefix(&prefix) else {
            continue;
        };
        let record = match (&member.data, member.method) {
            (Err(why), _) => Record::Unreadable(why.clone()),
            (Ok(range), CompressionMethod::Stored) => Record::Stored(range.clone()),
            (Ok(range), CompressionMethod::Deflated) => match check_ratio(range, member.size) {
                Ok(()) => Record::Deflated {
                    index: member.index,
                    size: member.size,
                },
                Err(why) => Record::Unreadable(why),
            },
            (Ok(_), other) => Record::Unreadable(format!(
                "it is compressed by a method torch does not read ({other})"
            )),
        };
        records.insert(key.to_owned(), record);
    }
    Ok(Contents {
        format: Format::Zip,
        arena,
        records,
        byte_order,
        map,
    })
}

fn names(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| member.name.as_str()).collect()
}

/// The central directory, each entry checked against its local header; in the directory's order, which gives the root.
fn members(bytes: &[u8]) -> Result<Vec<Member>, Error> {
    let unreadable = |error: ::zip::result::ZipError| match diagnose::truncated_zip(bytes) {
        Some(found) => Error::not_a_checkpoint(found),
        None => Error::container("central directory", error.to_string()),
    };
    let archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    if archive.has_duplicate_names() {
        return Err(Error::container("central directory", "two records have one name"));
    }
    if archive.offset() != 0 {
        let fault = format!("{} bytes in front of the archive", archive.offset());
        return Err(Error::container("central directory", fault));
    }
    let mut members = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let entry = archive
            .by_index_data(index)
            .map_err(|error| Error::container("central directory", error.to_string()))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let data = if entry.encrypted() {
            Err("it is encrypted".to_owned())
        } else {
            local_data(
                bytes,
                entry.header_start(),
                entry.name_raw(),
                entry.compressed_size(),
            )
        };
        members.push(Member {
            name,
            index,
            header_start: entry.header_start(),
            data,
            method: entry.compression(),
            size: entry.size(),
            crc: entry.crc32(),
        });
    }
    check_overlaps(&members)?;
    Ok(members)
}

/// Where the data of an entry lies, from its local header.
fn local_data(bytes: &[u8], header_start: u64, name: &[u8], size: u64) -> Result<Range<usize>, String> {
    let outside = || "it lies outside the file".to_owned();
    let start = usize::try_from(header_start).map_err(|_| outside())?;
    let fixed = start.checked_add(LOCAL_HEADER_BYTES).ok_or_else(outside)?;
    let header: &[u8; LOCAL_HEADER_BYTES] = bytes
        .get(start..fixed)
        .and_then(|header| header.try_into().ok())
        .ok_or_else(outside)?;
    let [b'P', b'K', 3, 4, .., name_0, name_1, extra_0, extra_1] = *header else {
        return Err(format!("no local header at byte {start}"));
    };
    let name_len = usize::from(u16::from_le_bytes([name_0, name_1]));
    let extra_len = usize::from(u16::from_le_bytes([extra_0, extra_1]));
    let name_end = fixed.checked_add(name_len).ok_or_else(outside)?;
    if bytes.get(fixed..name_end) != Some(name) {
        return Err("its local header has another name".to_owned());
    }
    let data_start = name_end.checked_add(extra_len).ok_or_else(outside)?;
    let size = usize::try_from(size).map_err(|_| outside())?;
    let data_end = data_start
        .checked_add(size)
        .filter(|&end| end <= bytes.len())
        .ok_or_else(outside)?;
    Ok(data_start..data_end)
}

/// No two entries may share bytes: what one checks, the other would change.
fn check_overlaps(members: &[Member]) -> Result<(), Error> {
    let mut spans: Vec<(u64, u64, &str)> = members
        .iter()
        .filter_map(|member| {
            let end = u64::try_from(member.data.as_ref().ok()?.end).ok()?;
            Some((member.header_start, end, member.name.as_str()))
        })
        .collect();
    spans.sort_unstable();
    for (first, second) in spans.iter().zip(spans.iter().skip(1)) {
        if second.0 < first.1 {
            return Err(Error::container(
                second.2,
                format!("overlaps record `{}`", first.2),
            ));
        }
    }
    Ok(())
}

/// Deflate's own bound, so that a claimed size cannot make us allocate out of proportion.
fn check_ratio(compressed: &Range<usize>, size: u64) -> Result<(), String> {
    let n_compressed = u64::try_from(compressed.len()).unwrap_or(u64::MAX);
    if size > n_compressed.saturating_mul(limits::MAX_INFLATE_RATIO) {
        return Err(format!("{n_compressed} compressed bytes cannot expand to {size}"));
    }
    Ok(())
}

/// The whole of a deflated entry, checked against its declared size and its CRC.
pub(super) fn inflate(map: &FileMap, index: usize, size: u64) -> Result<Vec<u8>, String> {
    let mut archive = ZipArchive::new(Cursor::new(map.as_bytes())).map_err(|error| error.to_string())?;
    let entry = archive.by_index(index).map_err(|error| error.to_string())?;
    let expected = usize::try_from(size).map_err(|_| "it is larger than can be addressed".to_owned())?;
    let mut bytes = Vec::with_capacity(expected);
    // One byte more than declared shows an entry that goes on.
    entry
        .take(size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("it cannot be inflated: {error}"))?;
    if bytes.len() != expected {
        return Err(format!(
            "it inflates to {} bytes, declared are {size}",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// An entry that is interpreted as a whole, its CRC checked where it has one.
fn pickle_bytes(map: &FileMap, member: &Member) -> Result<Storage, Error> {
    let fault = |fault: String| Error::container(&member.name, fault);
    let range = member.data.clone().map_err(fault)?;
    let limit = u64::try_from(limits::MAX_PICKLE_BYTES).unwrap_or(u64::MAX);
    if member.size > limit {
        return Err(Error::Limit {
            what: format!("reading `{}`", member.name),
            needed: member.size,
            limit,
        });
    }
    let storage = match member.method {
        CompressionMethod::Stored => Storage::mapped(map, range, &member.name),
        CompressionMethod::Deflated => {
            check_ratio(&range, member.size).map_err(fault)?;
            Some(Storage::owned(
                inflate(map, member.index, member.size).map_err(fault)?,
            ))
        }
        other => {
            return Err(fault(format!(
                "compressed by a method torch does not read ({other})"
            )));
        }
    };
    let storage = storage.ok_or_else(|| fault("it lies outside the file".to_owned()))?;
    // Zero is what torch writes when told not to compute it.
    if member.crc != 0 {
        let found = crc32fast::hash(storage.as_bytes());
        if found != member.crc {
            return Err(fault(format!(
                "its CRC is {found:08x}, expected {:08x}",
                member.crc
            )));
        }
    }
    Ok(storage)
}

/// An entry of a few bytes.
fn small(map: &FileMap, member: &Member) -> Result<Vec<u8>, Error> {
    const MAX_BYTES: u64 = 64;
    if member.size > MAX_BYTES {
        return Err(Error::container(
            &member.name,
            format!("{} bytes, expected at most {MAX_BYTES}", member.size),
        ));
    }
    Ok(pickle_bytes(map, member)?.as_bytes().to_vec())
}
