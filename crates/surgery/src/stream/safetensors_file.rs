//! The layout of one safetensors file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use pth::DType;
use safetensors::Dtype;

use super::layout::{FileLayout, Item, Rest};
use crate::format::header::{MAX_HEADER_BYTES, METADATA_KEY, shape_in_safetensors, to_safetensors};
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
pub(super) fn plan<'t>(
    path: PathBuf,
    entries: &[(&'t str, &'t LazyEntry)],
    metadata: &Arc<BTreeMap<String, String>>,
) -> Result<FileLayout<'t>, Error> {
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
        if let Some(tensor) = entry.tensor() {
            super::layout::check(name, tensor)?;
        }
    }
    let header = Header::plan(tensors, metadata)?;
    let wide = |n: usize| u64::try_from(n).expect("no machine addresses more than 64 bits");
    let data_start = 8 + wide(header.n_bytes);
    let mut items: Vec<Item> = header
        .tensors
        .iter()
        .zip(&header.offsets)
        .map(|((name, tensor), offset)| Item {
            name: Cow::Borrowed(*name),
            tensor: (*tensor).clone(),
            offset: data_start + wide(*offset),
        })
        .collect();
    items.sort_by_key(|item| item.offset);
    let data = header
        .tensors
        .iter()
        .fold(0, |sum: usize, (_, tensor)| sum.saturating_add(tensor.nbytes()));
    Ok(FileLayout {
        path,
        n_bytes: data_start.saturating_add(wide(data)),
        rest: Rest::Header(header),
        items,
    })
}

/// The header of a file, in the order of the state dict, padded so that data begin aligned.
///
/// Its length is counted; the text is made when it is written.
pub(super) struct Header<'t> {
    tensors: Vec<(&'t str, &'t LazyTensor)>,
    /// Each tensor's first byte behind the header.
    offsets: Vec<usize>,
    metadata: Arc<BTreeMap<String, String>>,
    /// Of the text, without the length in front of it.
    n_bytes: usize,
}

impl<'t> Header<'t> {
    fn plan(
        tensors: Vec<(&'t str, &'t LazyTensor)>,
        metadata: &Arc<BTreeMap<String, String>>,
    ) -> Result<Header<'t>, Error> {
        let mut by_alignment: Vec<usize> = (0..tensors.len()).collect();
        by_alignment.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.dtype().size()));
        let mut offsets = vec![0; tensors.len()];
        let mut at: usize = 0;
        for i in by_alignment {
            offsets[i] = at;
            at = at.saturating_add(tensors[i].1.nbytes());
        }
        let mut header = Header {
            tensors,
            offsets,
            metadata: Arc::clone(metadata),
            n_bytes: 0,
        };
        let mut n_bytes = 1;
        if !metadata.is_empty() {
            let text = serde_json::to_vec(&**metadata).expect("strings make JSON");
            n_bytes += json_len(METADATA_KEY) + 1 + text.len() + 1;
        }
        for (i, (name, tensor)) in header.tensors.iter().enumerate() {
            if *name == METADATA_KEY {
                return Err(Error::ReservedName((*name).to_owned()));
            }
            let dtype = dtype_of(tensor).ok_or_else(|| Error::Inexpressible {
                name: (*name).to_owned(),
                dtype: tensor.dtype(),
            })?;
            let (start, end) = header.place(i);
            let shape = shape_in_safetensors(tensor.dtype(), tensor.shape());
            let sizes: usize =
                shape.iter().map(|&size| digits(size)).sum::<usize>() + shape.len().saturating_sub(1);
            // {"dtype":"F32","shape":[…],"data_offsets":[…,…]} with a colon in front and a comma behind.
            n_bytes += json_len(name) + name_len(dtype) + sizes + digits(start) + digits(end);
            n_bytes += r#":{"dtype":"","shape":[],"data_offsets":[,]},"#.len();
        }
        // The last comma is the brace.
        n_bytes = if n_bytes == 1 { 2 } else { n_bytes };
        header.n_bytes = n_bytes.next_multiple_of(8);
        if header.n_bytes > MAX_HEADER_BYTES {
            return Err(Error::HeaderTooLarge {
                needed: header.n_bytes,
                limit: MAX_HEADER_BYTES,
            });
        }
        Ok(header)
    }

    fn place(&self, i: usize) -> (usize, usize) {
        let start = self.offsets[i];
        (start, start.saturating_add(self.tensors[i].1.nbytes()))
    }

    /// The length and the text.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(8 + self.n_bytes);
        json.extend_from_slice(&u64::try_from(self.n_bytes).expect("at most 100 MB").to_le_bytes());
        json.push(b'{');
        if !self.metadata.is_empty() {
            serde_json::to_writer(&mut json, METADATA_KEY).expect("strings make JSON");
            json.push(b':');
            serde_json::to_writer(&mut json, &*self.metadata).expect("strings make JSON");
            json.push(b',');
        }
        for (i, (name, tensor)) in self.tensors.iter().enumerate() {
            serde_json::to_writer(&mut json, name).expect("strings make JSON");
            let dtype = dtype_of(tensor).expect("the plan has looked");
            let shape = shape_in_safetensors(tensor.dtype(), tensor.shape());
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            let (start, end) = self.place(i);
            let shape = shape.join(",");
            let member =
                format!(r#":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}},"#);
            json.extend_from_slice(member.as_bytes());
        }
        if json.last() == Some(&b',') {
            json.pop();
        }
        json.push(b'}');
        assert!(
            json.len() <= 8 + self.n_bytes,
            "the text is as long as it was counted"
        );
        json.resize(8 + self.n_bytes, b' ');
        json
    }
}

/// The type that the format has for a tensor's.
fn dtype_of(tensor: &LazyTensor) -> Option<Dtype> {
    // A 0-d pair of 4-bit floats would need a dimension to be counted in.
    let is_counted = tensor.dtype() != DType::Float4E2M1FnX2 || !tensor.shape().is_empty();
    to_safetensors(tensor.dtype()).filter(|_| is_counted)
}

/// The length of a text in JSON, with its quotes.
fn json_len(text: &str) -> usize {
    let is_plain = text
        .bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
    if is_plain {
        return text.len() + 2;
    }
    serde_json::to_vec(text).expect("strings make JSON").len()
}

/// The length of a type's name in the header.
fn name_len(dtype: Dtype) -> usize {
    match dtype {
        Dtype::U8 | Dtype::I8 | Dtype::F4 => 2,
        Dtype::F32 | Dtype::F16 | Dtype::F64 | Dtype::I64 | Dtype::I32 | Dtype::I16 => 3,
        Dtype::BF16 | Dtype::BOOL => 4,
        dtype => dtype.to_string().len(),
    }
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}
