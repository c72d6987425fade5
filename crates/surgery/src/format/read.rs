//! One safetensors file into tensors: views of one source, in the header's order.
//!
//! The rules are those of the `safetensors` crate 0.8; here a repeated name is refused too.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::tensor::TensorInfo;
use pth::{Entry, FileError, Source, Storage, Tensor};

use super::header::{Header, LENGTH_BYTES, MAX_HEADER_BYTES, from_safetensors, shape_in_torch};
use super::open::{Format, Opened};
use crate::Error;

/// What a file holds, in the header's order; a name may be there twice.
pub(super) struct Contents {
    pub(super) tensors: Vec<(String, Tensor)>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads the header of `source`, through `buffer`.
pub(super) fn contents(source: &Source, path: &Path, buffer: &mut Vec<u8>) -> Result<Contents, Error> {
    let (header, data_start) = header(source, path, buffer)?;
    Ok(Contents {
        tensors: tensors(header.tensors, data_start, source, path)?,
        metadata: header.metadata,
    })
}

/// Opens a file; ties and marks are left in the metadata.
pub(super) fn file(source: &Source, path: &Path) -> Result<Opened, Error> {
    let contents = contents(source, path, &mut Vec::new())?;
    let mut opened = Opened::new(Format::Safetensors);
    opened.metadata = contents.metadata;
    opened.state_dict.reserve(contents.tensors.len());
    for (name, tensor) in contents.tensors {
        if let Some(Entry::Tensor(first)) = opened.state_dict.insert(name, tensor) {
            let name = first.storage().key();
            let fault = format!("header: two entries are called `{name}`");
            return Err(Error::safetensors(path, fault));
        }
    }
    Ok(opened)
}

/// The header, which is read into `buffer` and understood from there, and where the data begin.
pub(super) fn header(source: &Source, path: &Path, buffer: &mut Vec<u8>) -> Result<(Header, usize), Error> {
    let n_bytes = source.len();
    let fault = |fault: String| Error::safetensors(path, fault);
    let read = FileError::at("read", path);
    let mut length = [0; LENGTH_BYTES];
    if n_bytes < LENGTH_BYTES {
        return Err(fault(format!("{n_bytes} bytes, expected at least 8")));
    }
    source.read_at(0, &mut length).map_err(&read)?;
    let header_len = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if header_len > MAX_HEADER_BYTES {
        return Err(fault(format!(
            "a header of {header_len} bytes, allowed are {MAX_HEADER_BYTES}"
        )));
    }
    let data_start = LENGTH_BYTES + header_len;
    if data_start > n_bytes {
        return Err(fault(format!(
            "a header of {header_len} bytes, but the file ends after {}",
            n_bytes - LENGTH_BYTES
        )));
    }
    // In memory of its own, so that what was checked cannot change.
    buffer.resize(header_len, 0);
    source.read_at(LENGTH_BYTES, buffer).map_err(&read)?;
    let header = Header::parse(buffer).map_err(|error| fault(format!("header: {error}")))?;
    Ok((header, data_start))
}

fn tensors(
    infos: Vec<(String, TensorInfo)>,
    data_start: usize,
    source: &Source,
    path: &Path,
) -> Result<Vec<(String, Tensor)>, Error> {
    let fault = |fault: String| Error::safetensors(path, fault);
    check_offsets(&infos, source.len() - data_start).map_err(fault)?;
    let windows = infos.iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        (data_start + start..data_start + end, name.as_str())
    });
    let storages = Storage::windows(source, windows)
        .expect("the offsets are inside the data, and the data is what the file has");
    let mut tensors = Vec::with_capacity(infos.len());
    let mut recent: Vec<Tensor> = Vec::with_capacity(N_RECENT);
    for ((name, info), storage) in infos.into_iter().zip(storages) {
        let dtype = from_safetensors(info.dtype).ok_or_else(|| {
            fault(format!(
                "tensor `{name}` is {:?}, which torch does not have",
                info.dtype
            ))
        })?;
        let shape = shape_in_torch(dtype, info.shape)
            .ok_or_else(|| fault(format!("tensor `{name}` has an odd number of 4-bit values")))?;
        // A model has few shapes, and what repeats is near.
        let alike = recent
            .iter()
            .find(|tensor| tensor.dtype() == dtype && tensor.shape() == shape);
        if let Some(tensor) = alike.and_then(|tensor| tensor.over(storage.clone())) {
            tensors.push((name, tensor));
            continue;
        }
        match Tensor::contiguous(storage, dtype, &shape) {
            Ok(tensor) => {
                recent.truncate(N_RECENT - 1);
                recent.insert(0, tensor.clone());
                tensors.push((name, tensor));
            }
            Err(source) => return Err(Error::Tensor { name, source }),
        }
    }
    Ok(tensors)
}

/// How many shapes are looked through for one that is shared.
const N_RECENT: usize = 8;

/// Sizes fit shapes, and the data have no holes and no overlap, up to the last byte.
fn check_offsets(infos: &[(String, TensorInfo)], data_len: usize) -> Result<(), String> {
    let mut order: Vec<usize> = (0..infos.len()).collect();
    if !infos.is_sorted_by_key(|(_, info)| info.data_offsets) {
        order.sort_by_key(|&i| infos[i].1.data_offsets);
    }
    let mut next = 0;
    for i in order {
        let (name, info) = &infos[i];
        let (start, end) = info.data_offsets;
        if end < start {
            return Err(format!(
                "tensor `{name}` ends at {end}, before it begins at {start}"
            ));
        }
        if start != next {
            let what = if start > next { "a hole" } else { "an overlap" };
            return Err(format!(
                "tensor `{name}` begins at {start}, expected {next}: {what}"
            ));
        }
        let n_bits = info
            .shape
            .iter()
            .try_fold(1_usize, |numel, &size| numel.checked_mul(size))
            .and_then(|numel| numel.checked_mul(info.dtype.bitsize()))
            .ok_or_else(|| {
                format!(
                    "tensor `{name}` of shape {:?} has more elements than can be addressed",
                    info.shape
                )
            })?;
        if !n_bits.is_multiple_of(8) || n_bits / 8 != end - start {
            return Err(format!(
                "tensor `{name}`: {:?} of shape {:?} is {} bits, found {} bytes",
                info.dtype,
                info.shape,
                n_bits,
                end - start
            ));
        }
        next = end;
    }
    if next == data_len {
        return Ok(());
    }
    Err(format!("{next} bytes of tensors, found {data_len}"))
}
