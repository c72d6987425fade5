//! safetensors: read from a map without copying, written tensor by tensor.
//!
//! Data lies in descending order of alignment, as the crate writes it, so that every tensor is aligned for its type.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::path::Path;

use ::safetensors::tensor::TensorInfo;
use pth::{AtomicFile, Backing, DType, Existing, FileError, Source, StateDict, Tensor};

use super::header::{
    Header, LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY, shape_in_safetensors, to_safetensors,
};
use super::read;
use crate::op::cast::{self, Cast, is_castable};
use crate::{Error, marks};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveReport {
    /// Size of the file.
    pub n_bytes: u64,
    /// Names whose tensors shared bytes, one group per storage. In the file each has its own.
    pub shared: Vec<Vec<String>>,
}

/// Opens a safetensors file: its tensors, in the header's order, as views of one memory map, and its `__metadata__`.
///
/// Where `__metadata__` has `frozen`, tensors are frozen and trainable as it says. Where it maps a name that the file lacks to one that
/// it has, as `safetensors.torch.save_model` does for shared tensors, both names are there, and that entry of the metadata is not.
///
/// # Errors
/// The file cannot be read, or breaks a rule of the format.
pub fn open_safetensors(path: &Path) -> Result<(StateDict, BTreeMap<String, String>), Error> {
    let mut opened = read::file(&Source::open(path, Backing::Map)?, path)?;
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
) -> Result<SaveReport, Error> {
    save_safetensors_as(path, tensors, metadata, existing, None)
}

/// As [`save_safetensors`], with the floating tensors converted to `dtype` on the way.
///
/// # Errors
/// As [`save_safetensors`], and for a floating type that is not converted (8-bit and smaller).
pub fn save_safetensors_as(
    path: &Path,
    tensors: &StateDict,
    metadata: &BTreeMap<String, String>,
    existing: Existing,
    dtype: Option<DType>,
) -> Result<SaveReport, Error> {
    if let Some(dtype) = dtype {
        cast::check(tensors, dtype)?;
    }
    let layout = plan(tensors, metadata, dtype)?;
    let mut header = serde_json::to_vec(&layout.header).expect("strings and numbers make JSON");
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    if header.len() > MAX_HEADER_BYTES {
        return Err(Error::HeaderTooLarge {
            needed: header.len(),
            limit: MAX_HEADER_BYTES,
        });
    }

    let mut file = AtomicFile::create(path, existing)?;
    let write = FileError::at("write", path);
    let mut out = BufWriter::with_capacity(1 << 20, &mut file);
    out.write_all(&bytes_of(header.len()).to_le_bytes())
        .map_err(&write)?;
    out.write_all(&header).map_err(&write)?;
    for (name, tensor) in layout.data {
        let (from, to) = (tensor.dtype(), written_dtype(tensor, dtype));
        let result = if to == from {
            tensor.write_to(&mut out)
        } else {
            tensor.write_to(&mut Cast {
                from,
                to,
                out: &mut out,
            })
        };
        result.map_err(|error| match error {
            pth::Error::Output { source } => Error::File(write(source)),
            source => Error::Tensor {
                name: name.to_owned(),
                source,
            },
        })?;
    }
    out.flush().map_err(&write)?;
    drop(out);
    file.commit()?;
    Ok(SaveReport {
        n_bytes: bytes_of(LENGTH_BYTES + header.len() + layout.data_len),
        shared: shared(tensors),
    })
}

struct Layout<'t> {
    /// In the state dict's order.
    header: Header,
    /// In the file's order.
    data: Vec<(&'t str, &'t Tensor)>,
    data_len: usize,
}

/// The type that a tensor has in the file.
fn written_dtype(tensor: &Tensor, cast: Option<DType>) -> DType {
    cast.filter(|_| is_castable(tensor.dtype()))
        .unwrap_or(tensor.dtype())
}

fn plan<'t>(
    tensors: &'t StateDict,
    metadata: &BTreeMap<String, String>,
    cast: Option<DType>,
) -> Result<Layout<'t>, Error> {
    if let Some((name, record)) = tensors.records().next() {
        return Err(Error::Composed {
            name: name.to_owned(),
            kind: record.kind.as_str(),
        });
    }
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.iter() {
        tensor.check_expansion().map_err(|source| Error::Tensor {
            name: name.to_owned(),
            source,
        })?;
        if name == METADATA_KEY {
            return Err(Error::ReservedName(name.to_owned()));
        }
        let dtype = to_safetensors(written_dtype(tensor, cast)).filter(|_| {
            // A 0-d pair of 4-bit floats would need a dimension to be counted in.
            tensor.dtype() != DType::Float4E2M1FnX2 || !tensor.shape().is_empty()
        });
        let dtype = dtype.ok_or_else(|| Error::Inexpressible {
            name: name.to_owned(),
            dtype: tensor.dtype(),
        })?;
        let info = TensorInfo {
            dtype,
            shape: shape_in_safetensors(tensor.dtype(), tensor.shape()),
            data_offsets: (0, 0),
        };
        infos.push((name.to_owned(), info));
    }

    let all: Vec<(&str, &Tensor)> = tensors.iter().collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    // Stable, so that within one alignment the state dict's order stays.
    order.sort_by_key(|&i| std::cmp::Reverse(written_dtype(all[i].1, cast).size()));
    let mut data_len = 0;
    for &i in &order {
        let end = data_len + all[i].1.numel() * written_dtype(all[i].1, cast).size();
        infos[i].1.data_offsets = (data_len, end);
        data_len = end;
    }

    let mut metadata = metadata.clone();
    metadata
        .entry("format".to_owned())
        .or_insert_with(|| "pt".to_owned());
    if let Some(patterns) = marks::describe(tensors) {
        metadata.entry(marks::KEY.to_owned()).or_insert(patterns);
    }
    Ok(Layout {
        header: Header {
            metadata,
            tensors: infos,
        },
        data: order.into_iter().map(|i| all[i]).collect(),
        data_len,
    })
}

/// Groups of names over one storage, in the order of their first.
fn shared(tensors: &StateDict) -> Vec<Vec<String>> {
    let mut group_of: HashMap<(usize, u32), usize> = HashMap::new();
    let mut groups: Vec<Vec<String>> = Vec::new();
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.storage().nbytes() > 0) {
        let group = *group_of.entry(tensor.storage().id()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(name.to_owned());
    }
    groups.retain(|group| group.len() > 1);
    groups
}

fn bytes_of(n: usize) -> u64 {
    u64::try_from(n).expect("no machine addresses more than 64 bits")
}

#[cfg(test)]
mod tests {
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
        assert!(report.shared.is_empty());
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
    fn shared_bytes_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = sample();
        let tied = tensors.get("b.weight").unwrap().clone();
        tensors.insert("tied", tied);
        let report = save_safetensors(
            &dir.path().join("t"),
            &tensors,
            &BTreeMap::new(),
            Existing::Refuse,
        );
        assert_eq!(report.unwrap().shared, [["b.weight", "tied"]]);
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
