//! The layout of one `.pth`: an archive whose storages are promised before they are made.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;

use pth::{Archive, DType, Entry, StateDict, Storage, Tensor, Value};

use super::WriteOptions;
use super::layout::{FileLayout, Item, Rest};
use crate::Error;
use crate::lazy::{Identity, LazyEntry, LazyStateDict, LazyTensor, LazyValue, Map};

pub(super) fn plan<'t>(
    path: PathBuf,
    entries: &[(&'t str, &'t LazyEntry)],
    of: &LazyStateDict,
    options: &WriteOptions<'_>,
) -> Result<FileLayout<'t>, Error> {
    let kept = kept_storages(entries);
    let mut promised: Map<Identity, Tensor> = Map::default();
    // What is to fill each promised storage, and for which name.
    let mut sources: Map<(usize, u32), (Cow<'t, str>, LazyTensor)> = Map::default();
    let mut tensors = StateDict::new();
    for (name, entry) in entries {
        let named = |source| Error::Tensor {
            name: (*name).to_owned(),
            source,
        };
        let value = match &entry.value {
            LazyValue::Record(record) => Entry::Record(record.clone()),
            LazyValue::Tensor(lazy) => {
                let found = lazy
                    .as_found()
                    .filter(|tensor| kept.contains(&tensor.storage().id()));
                let tensor = match (found, promised.get(&lazy.identity())) {
                    (Some(found), _) => found.clone(),
                    (None, Some(again)) => again.clone(),
                    (None, None) => {
                        super::layout::check(name, lazy)?;
                        let storage = Storage::promised(lazy.nbytes());
                        sources.insert(storage.id(), (Cow::Borrowed(*name), lazy.clone()));
                        let tensor =
                            Tensor::contiguous(storage, lazy.dtype(), lazy.shape()).map_err(named)?;
                        promised.insert(lazy.identity(), tensor.clone());
                        tensor
                    }
                };
                Entry::Tensor(entry.marked(tensor))
            }
        };
        tensors.insert_entry(*name, value);
    }
    let tensors = tensors.with_metadata(of.versions.clone());
    let archive = Archive::plan(&Value::from(tensors), options.profile).map_err(Error::Computed)?;
    let mut items = Vec::with_capacity(archive.slots().len());
    for slot in archive.slots() {
        let (name, tensor) = match sources.remove(&slot.storage.id()) {
            Some(source) => source,
            // As it is in its file, in little-endian numbers.
            None => (
                Cow::Owned(slot.storage.key().into_owned()),
                whole(&slot.storage, slot.component)?,
            ),
        };
        items.push(Item {
            name,
            tensor,
            offset: slot.offset,
        });
    }
    Ok(FileLayout {
        path,
        n_bytes: archive.n_bytes(),
        rest: Rest::Archive(Box::new(archive)),
        items,
    })
}

/// What is left of a storage of this size is not worth to be saved.
const SMALL_BYTES: usize = 1 << 16;

/// Storages that stay as they are, with all views of them: small ones, those that are used whole, and those that are shared as the
/// file shares them and used by half. What is left of others would be saved with them, as torch does with a slice of a large tensor.
fn kept_storages(entries: &[(&str, &LazyEntry)]) -> HashSet<(usize, u32)> {
    let mut views: Map<(usize, u32), (HashSet<Identity>, usize, usize)> = Map::default();
    for (_, entry) in entries {
        let Some((lazy, tensor)) = entry.tensor().and_then(|lazy| Some((lazy, lazy.as_found()?))) else {
            continue;
        };
        let storage = tensor.storage();
        let (seen, used, size) = views
            .entry(storage.id())
            .or_insert_with(|| (HashSet::new(), 0, storage.nbytes()));
        *size = storage.nbytes();
        if seen.insert(lazy.identity()) {
            *used = tensor.nbytes().saturating_add(*used);
        }
    }
    let is_kept = |(seen, used, size): &(HashSet<Identity>, usize, usize)| {
        *size <= SMALL_BYTES || *used >= *size || (seen.len() > 1 && *used >= *size / 2)
    };
    views
        .into_iter()
        .filter(|(_, view)| is_kept(view))
        .map(|(id, _)| id)
        .collect()
}

/// All bytes of a storage as numbers of `component` bytes.
fn whole(storage: &Storage, component: usize) -> Result<LazyTensor, Error> {
    let dtype = match component {
        8 => DType::Int64,
        4 => DType::Int32,
        2 => DType::Int16,
        _ => DType::Uint8,
    };
    let dtype = if storage.nbytes().is_multiple_of(dtype.size()) {
        dtype
    } else {
        DType::Uint8
    };
    let shape = [storage.nbytes() / dtype.size()];
    let tensor = Tensor::contiguous(storage.clone(), dtype, &shape).map_err(Error::Computed)?;
    Ok(LazyTensor::stored(tensor))
}
