//! Which kind of source a path is.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use super::left_out::LeftOuts;
use super::table::{self, Kind};
use super::{Parts, Request, arrays, bad, folder, keywords, metadata, parquet, shards, tar};
use crate::error::Error;

/// Opens a source as what it is.
pub(super) fn open(source: &Path, request: &Request<'_>) -> Result<Parts, Error> {
    if source.is_dir() {
        return open_folder(source, request);
    }
    if !source.exists() {
        return match source.to_str().filter(|text| shards::is_list(text)) {
            Some(text) => open_list(source, text, request),
            None => Err(bad(source, "no such folder or file")),
        };
    }
    let name = super::file_name(source).to_lowercase();
    let ending = name.rsplit('.').next().unwrap_or_default();
    let kind = match ending {
        "csv" => Kind::Csv,
        "tsv" => Kind::Tsv,
        "jsonl" | "ndjson" | "json" => Kind::Jsonl,
        "txt" => Kind::Lines,
        _ => return open_binary(source, ending, request),
    };
    table::open(source, kind, request)
}

fn open_binary(source: &Path, ending: &str, request: &Request<'_>) -> Result<Parts, Error> {
    let mut start = [0; 512];
    let start = super::positional::open_regular(source).and_then(|file| {
        let n = super::positional::read_up_to(&file, &mut start, 0);
        n.map(|n| &start[..n])
            .map_err(|error| format!("it cannot be read: {error}"))
    });
    let start = start.map_err(|reason| bad(source, reason))?;
    match (ending, start) {
        ("parquet" | "pq", _) | (_, [b'P', b'A', b'R', b'1', ..]) => {
            let root = parquet::folder_of(source);
            parquet::open(&[shards::of_file(source)], &root, source, request)
        }
        ("npy" | "npz", _) | (_, [0x93, b'N', b'U', b'M', b'P', b'Y', ..]) => arrays::open(source, request),
        ("tar" | "tgz" | "tbz2" | "txz", _) => tar::open(&[shards::of_file(source)], source, request),
        (_, start) if start.get(257..262) == Some(b"ustar") => {
            tar::open(&[shards::of_file(source)], source, request)
        }
        (_, [0x1f, 0x8b, ..]) if super::file_name(source).to_lowercase().contains(".tar") => {
            tar::open(&[shards::of_file(source)], source, request)
        }
        _ => Err(bad(
            source,
            "this is not a folder, and of no kind of file that lists samples: .csv, .tsv, .jsonl, .parquet, .tar, .npy, .npz, .txt",
        )),
    }
}

fn open_list(source: &Path, text: &str, request: &Request<'_>) -> Result<Parts, Error> {
    let shards = shards::of_list(source, text)?;
    let ends_in = |ending: &str| {
        shards.iter().all(|shard| {
            shard
                .path
                .extension()
                .is_some_and(|found| found.eq_ignore_ascii_case(ending))
        })
    };
    match shards.first() {
        Some(_) if ends_in("tar") => tar::open(&shards, source, request),
        Some(first) if ends_in("parquet") => {
            let root = parquet::folder_of(&first.path);
            parquet::open(&shards, &root, source, request)
        }
        _ => Err(bad(
            source,
            "no such folder or file, and no list of .tar or .parquet files",
        )),
    }
}

fn open_folder(root: &Path, request: &Request<'_>) -> Result<Parts, Error> {
    if let Some(found) = metadata::find(root, request)? {
        return metadata::open(root, found, request);
    }
    let mut left_out = LeftOuts::default();
    let mut parts = match look(root) {
        Holds::Pictures => return open_pictures(root, request),
        Holds::Arrays => return arrays::open(root, request),
        Holds::Features => {
            return Err(bad(
                root,
                "this is clip-retrieval's output: features rather than pictures",
            ));
        }
        Holds::Tars => tar::open(&shards::in_folder(root, "tar", &mut left_out)?, root, request)?,
        Holds::Parquet => {
            let shards = shards::in_folder(root, "parquet", &mut left_out)?;
            parquet::open(&shards, root, root, request)?
        }
    };
    parts.left_out.append(left_out);
    Ok(parts)
}

fn open_pictures(root: &Path, request: &Request<'_>) -> Result<Parts, Error> {
    if let Some(parts) = keywords::open(root, request)? {
        return Ok(parts);
    }
    match request.judged {
        None => folder::open(root, request.options),
        Some(classes) => folder::open_for_eval(root, classes),
    }
}

/// What a folder is full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Pictures,
    Tars,
    Parquet,
    Arrays,
    Features,
}

/// Looks at the first files of a folder, level by level: a class folder with a tar left in it is one of pictures, a folder of
/// tars with a picture for its page is one of tars.
fn look(root: &Path) -> Holds {
    const MAX_ENTRIES: usize = 20_000;
    const ENOUGH_PICTURES: usize = 1000;
    const MAX_DEPTH: usize = 4;
    if ["img_emb", "text_emb"]
        .iter()
        .any(|name| root.join(name).is_dir())
    {
        return Holds::Features;
    }
    let (mut pictures, mut tars, mut parquet, mut arrays) = (0, 0, 0, 0);
    let mut n_entries = 0;
    let mut pending = VecDeque::from([(root.to_owned(), 0)]);
    'all: while let Some((folder, depth)) = pending.pop_front() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            n_entries += 1;
            if n_entries > MAX_ENTRIES || pictures > ENOUGH_PICTURES {
                break 'all;
            }
            let name = entry.file_name().to_string_lossy().to_lowercase();
            if name.starts_with('.') {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < MAX_DEPTH {
                pending.push_back((entry.path(), depth + 1));
            }
            match name.rsplit_once('.').map(|(_, ending)| ending) {
                Some("tar") => tars += 1,
                Some("parquet") => parquet += 1,
                Some("npy") if depth == 0 => arrays += 1,
                Some(_) if folder::is_picture(&name) => pictures += 1,
                _ => {}
            }
        }
    }
    match (tars, parquet, arrays) {
        _ if pictures > tars + parquet => Holds::Pictures,
        (1.., ..) => Holds::Tars,
        (_, 1.., _) => Holds::Parquet,
        (_, _, 1..) if pictures == 0 => Holds::Arrays,
        _ => Holds::Pictures,
    }
}
