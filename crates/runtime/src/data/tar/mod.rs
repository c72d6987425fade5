//! WebDataset: tars whose neighbouring members of one name make a sample.
//!
//! Source: `webdataset/tariterators.py` (`base_plus_ext`, `tar_file_iterator`, `group_by_keys`). A tar is listed once by its
//! headers; samples are read at their places.

mod header;
mod sample;

use std::fs::File;
use std::path::{Path, PathBuf};

use sample::{Listed, list_tar};

use super::gather::Gather;
use super::listing::Place;
use super::options::Wanted;
use super::shards::Shard;
use super::{Backing, Parts, Request, bad};
use crate::error::Error;

/// Samples in tars.
#[derive(Debug)]
pub(super) struct Tars {
    files: Vec<PathBuf>,
    /// The bytes of all tars in front of each; a place counts from the first tar's begin.
    bases: Vec<u64>,
    is_text: bool,
    text_key: Option<String>,
}

/// Marks a place whose text is a field of a JSON object.
const IN_JSON: u64 = 1 << 63;

/// What names are looked for; decided once for all tars.
#[derive(Debug, Clone)]
struct Fields {
    is_text: bool,
    /// The field of the picture, of the label, of the text; `None` for the usual ones.
    picture: Option<String>,
    label: Option<String>,
    text: Option<String>,
    /// Keys of the JSON object.
    split: Option<String>,
    id: Option<String>,
}

/// Lists tars as one data set.
pub(super) fn open(shards: &[Shard], source: &Path, request: &Request<'_>) -> Result<Parts, Error> {
    let columns = &request.options.columns;
    let mut fields = Fields {
        is_text: request.options.wanted == Wanted::Texts,
        picture: columns.path.clone(),
        label: columns.label.clone(),
        text: columns.text.clone(),
        split: columns.split.clone(),
        id: columns.id.clone(),
    };
    if request.options.wanted == Wanted::Auto {
        fields.is_text = shards
            .first()
            .is_some_and(|shard| sample::begins_with_text(&shard.path, &fields));
    }
    let mut gather = Gather::new(source, request);
    let (mut files, mut bases) = (Vec::new(), Vec::new());
    let mut base = 0u64;
    let n_threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(16);
    for chunk in shards.chunks(n_threads) {
        // Listing waits for the disk: tars are listed side by side, and added in their order.
        let listed: Vec<Listed> = std::thread::scope(|scope| {
            let threads: Vec<_> = chunk
                .iter()
                .map(|shard| scope.spawn(|| list_tar(&shard.path, &fields)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("listing does not panic"))
                .collect()
        });
        for (shard, listed) in chunk.iter().zip(listed) {
            if let (Some(reason), true, true) = (&listed.broken, listed.is_nothing(), shards.len() == 1) {
                return Err(bad(&shard.path, reason.clone()));
            }
            let shard_tag = gather.tag(shard.split.as_deref())?;
            for sample in listed.samples {
                let name = format!("{}/{}", shard.name, sample.key);
                if let Some(reason) = sample.refused {
                    gather.leave_out(name, reason);
                    continue;
                }
                let tag = match &sample.split {
                    Some(split) => gather.tag(Some(split))?,
                    None => shard_tag,
                };
                let name = sample.id.as_deref().unwrap_or(&name);
                gather.folders.push(&mut gather.listing.names, name);
                let place = Place {
                    at: base + sample.at,
                    len: sample.len,
                };
                gather.add_rest(sample.label.as_deref(), tag, place)?;
            }
            if let Some(reason) = listed.broken {
                gather.leave_out(&shard.name, reason);
            }
            files.push(shard.path.clone());
            bases.push(base);
            base += listed.len;
        }
    }
    let gathered = gather.finish()?;
    let backing = Backing::Tars(Tars {
        files,
        bases,
        is_text: fields.is_text,
        text_key: fields.text,
    });
    Ok(Parts::new(gathered, backing))
}

impl Tars {
    pub(super) fn is_text(&self) -> bool {
        self.is_text
    }

    /// The tar that a place is in, and the place in it.
    pub(super) fn locate(&self, place: Place) -> (usize, Place) {
        let file = self
            .bases
            .partition_point(|base| *base <= place.at)
            .saturating_sub(1);
        let at = place.at - self.bases.get(file).copied().unwrap_or(0);
        (file, Place { at, len: place.len })
    }

    pub(super) fn file(&self, idx: usize) -> &Path {
        &self.files[idx]
    }

    /// The bytes at a place; of a text in a JSON object, that text's.
    ///
    /// # Errors
    /// Why they cannot be read, in one sentence.
    pub(super) fn read(&self, file: &File, place: Place, buffer: &mut Vec<u8>) -> Result<(), String> {
        let len = place.len & !IN_JSON;
        super::reader::check_size(len)?;
        buffer.clear();
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        let n = super::positional::read_up_to(file, buffer, place.at)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        if n != buffer.len() {
            return Err("its tar has been cut short since it was listed".to_owned());
        }
        if place.len & IN_JSON != 0 {
            let text = sample::text_in(buffer, self.text_key.as_deref())?;
            *buffer = text.into_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
