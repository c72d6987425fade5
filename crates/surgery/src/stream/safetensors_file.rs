//! The layout of one safetensors file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indexmap::IndexMap;
use pth::DType;
use safetensors::tensor::TensorInfo;

use super::layout::{FileLayout, Item, Rest};
use crate::format::header::{Header, MAX_HEADER_BYTES, METADATA_KEY, shape_in_safetensors, to_safetensors};
use crate::lazy::{LazyEntry, LazyStateDict, LazyTensor, LazyValue};
use crate::{Error, marks};

/// `__metadata__` of every file of the output: what was there, `format`, marks, groups, and second names.
pub(super) fn metadata(tensors: &LazyStateDict, ties: &IndexMap<String, String>) -> BTreeMap<String, String> {
    let mut metadata = tensors.metadata.clone();
    metadata
        .entry("format".to_owned())
        .or_insert_with(|| "pt".to_owned());
    if let Some(frozen) = marks::describe(tensors) {
        metadata.insert(marks::KEY.to_owned(), frozen);
    }
    if let Some(groups) = marks::describe_groups(tensors) {
        metadata.insert(marks::GROUPS_KEY.to_owned(), groups);
    }
    metadata.extend(ties.iter().map(|(dropped, kept)| (dropped.clone(), kept.clone())));
    metadata
}

/// Entries in their order in the header; data by descending alignment, so that every tensor is aligned for its type.
pub(super) fn plan(
    path: PathBuf,
    entries: &[(&str, &LazyEntry)],
    metadata: &BTreeMap<String, String>,
) -> Result<FileLayout, Error> {
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        match &entry.value {
            LazyValue::Tensor(tensor) => tensors.push((*name, tensor)),
            LazyValue::Record(record) => {
                return Err(Error::Composed {
                    name: (*name).to_owned(),
                    kind: record.kind.as_str(),
                });
            }
        }
        if let Some(tensor) = entry.tensor().and_then(LazyTensor::as_stored) {
            tensor.check_expansion().map_err(|source| Error::Tensor {
                name: (*name).to_owned(),
                source,
            })?;
        }
    }
    let (header, offsets) = header(&tensors, metadata)?;
    if header.len() > MAX_HEADER_BYTES {
        return Err(Error::HeaderTooLarge {
            needed: header.len(),
            limit: MAX_HEADER_BYTES,
        });
    }
    let wide = |n: usize| u64::try_from(n).expect("no machine addresses more than 64 bits");
    let mut head = wide(header.len()).to_le_bytes().to_vec();
    head.extend_from_slice(&header);
    let data_start = wide(head.len());
    let mut items: Vec<Item> = tensors
        .iter()
        .zip(&offsets)
        .map(|((name, tensor), offset)| Item {
            name: (*name).to_owned(),
            tensor: (*tensor).clone(),
            offset: data_start + wide(*offset),
        })
        .collect();
    items.sort_by_key(|item| item.offset);
    let data: usize = tensors.iter().map(|(_, tensor)| tensor.nbytes()).sum();
    Ok(FileLayout {
        path,
        n_bytes: data_start + wide(data),
        rest: Rest::Header(head),
        items,
    })
}

/// The header, padded so that data begin aligned, and each tensor's first byte behind it.
fn header(
    tensors: &[(&str, &LazyTensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<usize>), Error> {
    let mut by_alignment: Vec<usize> = (0..tensors.len()).collect();
    by_alignment.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.dtype().size()));
    let mut offsets = vec![0; tensors.len()];
    let mut at: usize = 0;
    for i in by_alignment {
        offsets[i] = at;
        at = at.saturating_add(tensors[i].1.nbytes());
    }
    let mut infos = Vec::with_capacity(tensors.len());
    for ((name, tensor), &offset) in tensors.iter().zip(&offsets) {
        if *name == METADATA_KEY {
            return Err(Error::ReservedName((*name).to_owned()));
        }
        // A 0-d pair of 4-bit floats would need a dimension to be counted in.
        let is_counted = tensor.dtype() != DType::Float4E2M1FnX2 || !tensor.shape().is_empty();
        let dtype = to_safetensors(tensor.dtype())
            .filter(|_| is_counted)
            .ok_or_else(|| Error::Inexpressible {
                name: (*name).to_owned(),
                dtype: tensor.dtype(),
            })?;
        let info = TensorInfo {
            dtype,
            shape: shape_in_safetensors(tensor.dtype(), tensor.shape()),
            data_offsets: (offset, offset.saturating_add(tensor.nbytes())),
        };
        infos.push(((*name).to_owned(), info));
    }
    let header = Header {
        metadata: metadata.clone(),
        tensors: infos,
    };
    let mut bytes = serde_json::to_vec(&header).expect("strings and numbers make JSON");
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok((bytes, offsets))
}
