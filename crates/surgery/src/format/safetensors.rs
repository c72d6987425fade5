//! safetensors: read from a map without copying, written tensor by tensor.
//!
//! The rules are those of the `safetensors` crate 0.8; here a repeated name is refused too, and names keep the header's order.
//! Data lies in descending order of alignment, as the crate writes it, so that every tensor is aligned for its type.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::tensor::TensorInfo;
use pth::{Backing, Existing, FileError, Source, StateDict, Storage, Tensor};

use super::header::{Header, MAX_HEADER_BYTES, from_safetensors, shape_in_torch};
use crate::lazy::LazyStateDict;
use crate::stream::{self, OutputFormat, WriteOptions, WriteReport};
use crate::{Error, marks};

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;

/// Opens a safetensors file: its tensors, in the header's order, as views of one memory map, and its `__metadata__`.
///
/// Where `__metadata__` has `frozen`, tensors are frozen and trainable as it says.
///
/// # Errors
/// The file cannot be read, or breaks a rule of the format.
pub fn open_safetensors(path: &Path) -> Result<(StateDict, BTreeMap<String, String>), Error> {
    let (mut tensors, mut metadata) = read(&Source::open(path, Backing::Map)?, path)?;
    apply_metadata(&mut tensors, &mut metadata);
    Ok((tensors, metadata))
}

/// The tensors of a file that is open, and its `__metadata__` as it is.
pub(super) fn read(source: &Source, path: &Path) -> Result<(StateDict, BTreeMap<String, String>), Error> {
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
    let mut header = vec![0; header_len];
    source.read_at(LENGTH_BYTES, &mut header).map_err(&read)?;
    let header: Header =
        serde_json::from_slice(&header).map_err(|error| fault(format!("header: {error}")))?;
    let data_len = check_places(&header.tensors).map_err(&fault)?;
    if data_start.checked_add(data_len) != Some(n_bytes) {
        return Err(fault(format!(
            "{data_len} bytes of tensors, found {}",
            n_bytes - data_start
        )));
    }

    let ranges = header.tensors.iter().map(|(_, info)| {
        let (start, end) = info.data_offsets;
        data_start + start..data_start + end
    });
    let storages = Storage::windows(source, ranges)
        .expect("the places are inside the data, and the data is what the file has");
    let mut tensors = StateDict::with_capacity(storages.len());
    for ((name, info), storage) in header.tensors.into_iter().zip(storages) {
        let dtype = from_safetensors(info.dtype).ok_or_else(|| {
            fault(format!(
                "tensor `{name}` is {:?}, which torch does not have",
                info.dtype
            ))
        })?;
        let shape = shape_in_torch(dtype, info.shape)
            .ok_or_else(|| fault(format!("tensor `{name}` has an odd number of 4-bit values")))?;
        let tensor = Tensor::contiguous(storage, dtype, &shape).map_err(|source| Error::Tensor {
            name: name.clone(),
            source,
        })?;
        if tensors.contains(&name) {
            return Err(fault(format!("header: two entries are called `{name}`")));
        }
        tensors.insert(name, tensor);
    }
    Ok((tensors, header.metadata))
}

/// The rules of the format for places: every tensor as large as its shape says, one behind the other, no gap, no overlap.
/// Returns the bytes of all.
fn check_places(tensors: &[(String, TensorInfo)]) -> Result<usize, String> {
    let mut order: Vec<u32> = (0..u32::try_from(tensors.len()).map_err(|_| "too many tensors")?).collect();
    let of = |&i: &u32| &tensors[i as usize];
    // Already so in nearly every file.
    if !order.is_sorted_by_key(|i| of(i).1.data_offsets) {
        order.sort_by_key(|i| of(i).1.data_offsets);
    }
    let mut at = 0;
    for (name, info) in order.iter().map(of) {
        let (start, end) = info.data_offsets;
        if start != at || end < start {
            return Err(format!(
                "tensor `{name}` lies at bytes {start}..{end}, expected is one that begins at {at}"
            ));
        }
        let n_bits = info
            .shape
            .iter()
            .try_fold(1_usize, |n, &size| n.checked_mul(size))
            .and_then(|n| n.checked_mul(info.dtype.bitsize()))
            .filter(|n| n.is_multiple_of(8));
        if n_bits.map(|n| n / 8) != Some(end - start) {
            return Err(format!(
                "tensor `{name}` of {:?} {:?} has {} bytes",
                info.dtype,
                info.shape,
                end - start
            ));
        }
        at = end;
    }
    Ok(at)
}

/// Gives second names to tensors, as `__metadata__` says, `dropped` = `kept` (`save_model` of safetensors, transformers), and takes
/// these entries out of it. Freezes and marks what it says of that.
pub(super) fn apply_metadata(tensors: &mut StateDict, metadata: &mut BTreeMap<String, String>) {
    let ties: Vec<(String, String)> = metadata
        .iter()
        .filter(|(dropped, kept)| {
            *dropped != "format" && !tensors.contains(dropped) && tensors.get(kept).is_some()
        })
        .map(|(dropped, kept)| (dropped.clone(), kept.clone()))
        .collect();
    for (dropped, kept) in ties {
        if let Some(tensor) = tensors.get(&kept).cloned() {
            metadata.remove(&dropped);
            tensors.insert(dropped, tensor);
        }
    }
    if let Some(patterns) = metadata.get(marks::KEY) {
        marks::apply(tensors, &marks::parse(patterns));
    }
}

/// Writes `tensors` as a safetensors file, which appears whole or not at all.
///
/// `metadata` becomes `__metadata__`, with `format` = `pt` unless it says otherwise.
/// Where tensors are marked frozen or trainable, `frozen` is added to it unless it is there.
///
/// # Errors
/// A tensor of a type that safetensors lacks, before anything is written; the file exists and `existing` refuses; the disk.
pub fn save_safetensors(
    path: &Path,
    tensors: &StateDict,
    metadata: &BTreeMap<String, String>,
    existing: Existing,
) -> Result<WriteReport, Error> {
    let mut tensors = LazyStateDict::from(tensors.clone());
    tensors.metadata = metadata.clone();
    let options = WriteOptions {
        existing,
        ..WriteOptions::new(OutputFormat::Safetensors)
    };
    stream::write_file(path, &tensors, &options)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use pth::{AtomicFile, DType};

    use super::*;

    fn tensor(dtype: DType, shape: &[usize], first: u8) -> Tensor {
        let n = shape.iter().product::<usize>() * dtype.size();
        Tensor::from_bytes(
            dtype,
            shape,
            (0..n).map(|i| first.wrapping_add(i as u8)).collect(),
        )
        .unwrap()
    }

    fn sample() -> StateDict {
        let mut tensors = StateDict::new();
        tensors.insert("b.weight", tensor(DType::Float32, &[3], 1));
        tensors.insert("a.n", tensor(DType::Int64, &[], 2));
        tensors.insert("half", tensor(DType::BFloat16, &[1, 5], 3));
        tensors.insert("empty", tensor(DType::Float32, &[0, 4], 0));
        tensors.insert("flags", tensor(DType::Uint8, &[7], 4));
        tensors
    }

    #[test]
    fn open_of_save_is_the_identity_and_keeps_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let metadata = BTreeMap::from([("epoch".to_owned(), "3".to_owned())]);
        let report = save_safetensors(&path, &sample(), &metadata, Existing::Refuse).unwrap();
        assert_eq!(report.n_bytes, std::fs::metadata(&path).unwrap().len());
        assert!(report.tied.is_empty());
        let (tensors, metadata) = open_safetensors(&path).unwrap();
        assert_eq!(metadata["epoch"], "3");
        assert_eq!(metadata["format"], "pt");
        assert!(tensors.names().eq(sample().names()));
        for (name, expected) in sample().iter() {
            let found = tensors.get(name).unwrap();
            assert_eq!(
                (found.dtype(), found.shape()),
                (expected.dtype(), expected.shape())
            );
            assert_eq!(found.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{name}");
        }
        // The reference reader takes it.
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(::safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 5);
        let again = save_safetensors(&path, &tensors, &metadata, Existing::Refuse).unwrap_err();
        assert!(matches!(again, Error::File(_)));
        // Onto its own mapped source, and byte for byte the same.
        save_safetensors(&path, &tensors, &metadata, Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = sample();
        tensors.insert("z", tensor(DType::Complex128, &[1], 0));
        let path = dir.path().join("t.safetensors");
        let error = save_safetensors(&path, &tensors, &BTreeMap::new(), Existing::Refuse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `z` is complex128, which safetensors cannot express"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_tensor_under_two_names_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = sample();
        let tied = tensors.get("b.weight").unwrap().clone();
        tensors.insert("tied", tied);
        let path = dir.path().join("t");
        let report = save_safetensors(&path, &tensors, &BTreeMap::new(), Existing::Refuse).unwrap();
        assert_eq!(report.tied, [("tied".to_owned(), "b.weight".to_owned())]);
        let (tensors, metadata) = open_safetensors(&path).unwrap();
        assert!(!metadata.contains_key("tied"));
        let id = |name: &str| tensors.get(name).unwrap().storage().id();
        assert_eq!(id("tied"), id("b.weight"));
        // The reference reader sees the names that safetensors' `save_model` would write.
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["tied"], "b.weight");
        assert_eq!(header.tensors().len(), 5);
    }

    fn check_rejects(bytes: &[u8], message: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        AtomicFile::create(&path, Existing::Refuse)
            .and_then(|mut file| {
                file.write_all(bytes).unwrap();
                file.commit()
            })
            .unwrap();
        let text = open_safetensors(&path).unwrap_err().to_string();
        let rule = text.split_once("safetensors file: ").unwrap().1;
        assert!(rule.starts_with(message), "{text}");
    }

    fn with_header(json: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn broken_files_are_refused_with_the_rule_they_break() {
        let one = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
        check_rejects(b"abc", "3 bytes, expected at least 8");
        check_rejects(
            &u64::MAX.to_le_bytes(),
            "a header of 18446744073709551615 bytes, allowed are 100000000",
        );
        check_rejects(
            &with_header(one, &[])[..20],
            "a header of 53 bytes, but the file ends after 12",
        );
        check_rejects(&with_header(one, &[1]), "2 bytes of tensors, found 1");
        check_rejects(&with_header(one, &[1, 2, 3]), "2 bytes of tensors, found 3");
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        check_rejects(&with_header(twice, &[1, 2]), "header: two entries are called `a`");
        check_rejects(
            &with_header(
                r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}"#,
                &[1, 2],
            ),
            "",
        );
        check_rejects(&with_header("{}x", &[]), "header: trailing characters");
    }
}
