//! safetensors: read from a map without copying, written tensor by tensor.
//!
//! Data lies in descending order of alignment, as the crate writes it, so that every tensor is aligned for its type.

use std::collections::BTreeMap;
use std::path::Path;

use pth::{Backing, Existing, Source, StateDict};

use super::read;
use crate::Error;
use crate::lazy::LazyStateDict;
use crate::stream::{self, OutputFormat, WriteOptions, WriteReport};

/// Opens a safetensors file: its tensors, in the header's order, as views of one memory map, and its `__metadata__`.
///
/// Where `__metadata__` has `frozen`, tensors are frozen and trainable as it says. Where it maps a name that the file lacks to one that
/// it has, as `safetensors.torch.save_model` does for shared tensors, both names are there, and that entry of the metadata is not.
///
/// # Errors
/// The file cannot be read, or breaks a rule of the format.
pub fn open_safetensors(path: &Path) -> Result<(StateDict, BTreeMap<String, String>), Error> {
    open_safetensors_with(path, Backing::Map)
}

/// As [`open_safetensors`], read in another way than through a map.
///
/// # Errors
/// As [`open_safetensors`].
pub fn open_safetensors_with(
    path: &Path,
    backing: Backing,
) -> Result<(StateDict, BTreeMap<String, String>), Error> {
    let mut opened = read::file(&Source::open(path, backing)?, path)?;
    opened.finish();
    Ok((opened.state_dict, opened.metadata))
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

    use pth::{AtomicFile, DType, Tensor};

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
