//! NumPy's `.npy` arrays, as `numpy.save` writes them: features and labels that another program made.
//!
//! Source: NumPy Enhancement Proposal 1. Deliberately absent: Fortran order, structured types, pickled objects.

use std::path::Path;

use pth::FileError;

use crate::error::Error;
use crate::features::Features;

/// An array as it lies in the file.
#[derive(Debug, Clone, PartialEq)]
struct Array {
    /// NumPy's description without the byte order, such as `f4`.
    kind: String,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Reads features: a float32 or float64 array `[N, D]`.
///
/// # Errors
/// [`Error::BadFile`] for another kind of file or array; [`Error::Features`] for numbers that are not finite.
pub fn read_features(path: &Path) -> Result<Features, Error> {
    let array = read(path)?;
    let bad = |reason: String| Error::BadFile {
        path: path.to_owned(),
        reason,
    };
    let [_, n_features] = array.shape[..] else {
        return Err(bad(format!(
            "features have 2 axes (rows, features), and this array has {:?}",
            array.shape
        )));
    };
    let values = match array.kind.as_str() {
        "f4" => numbers(&array.data, f32::from_le_bytes),
        "f8" => numbers(&array.data, |bytes| f64::from_le_bytes(bytes) as f32),
        kind => {
            return Err(bad(format!(
                "features are float32 or float64, and this array is `{kind}`"
            )));
        }
    };
    Features::new(values, n_features).map_err(|error| match error {
        Error::Features(reason) => bad(reason),
        other => other,
    })
}

/// Reads labels: an integer array `[N]` of class indices.
///
/// # Errors
/// [`Error::BadFile`] for another kind of file or array, and for a negative label, whose row is named.
pub fn read_labels(path: &Path) -> Result<Vec<u32>, Error> {
    let array = read(path)?;
    let bad = |reason: String| Error::BadFile {
        path: path.to_owned(),
        reason,
    };
    if array.shape.len() != 1 {
        return Err(bad(format!(
            "labels have 1 axis, and this array has {:?}",
            array.shape
        )));
    }
    let labels: Vec<i128> = match array.kind.as_str() {
        "i1" => numbers(&array.data, i8::from_le_bytes),
        "i2" => numbers(&array.data, i16::from_le_bytes),
        "i4" => numbers(&array.data, i32::from_le_bytes),
        "i8" => numbers(&array.data, i64::from_le_bytes),
        "u1" => numbers(&array.data, u8::from_le_bytes),
        "u2" => numbers(&array.data, u16::from_le_bytes),
        "u4" => numbers(&array.data, u32::from_le_bytes),
        "u8" => numbers(&array.data, u64::from_le_bytes),
        kind => return Err(bad(format!("labels are integers, and this array is `{kind}`"))),
    };
    labels
        .into_iter()
        .enumerate()
        .map(|(row, label)| u32::try_from(label).map_err(|_| bad(format!("row {row} has label {label}"))))
        .collect()
}

fn numbers<const N: usize, T, U: From<T>>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<U> {
    data.chunks_exact(N)
        .map(|bytes| U::from(read(bytes.try_into().expect("chunks of N"))))
        .collect()
}

fn read(path: &Path) -> Result<Array, Error> {
    let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
    parse(&bytes).map_err(|reason| Error::BadFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
    })
}

fn parse(bytes: &[u8]) -> Result<Array, &'static str> {
    const NO_ARRAY: &str = "this is no .npy array";
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or(NO_ARRAY)?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return Err(NO_ARRAY),
    };
    let header = rest
        .get(..length)
        .and_then(|header| std::str::from_utf8(header).ok())
        .ok_or("its header is cut short")?;
    let data = &rest[length..];
    let value = |key: &str| {
        let after = header.split_once(&format!("'{key}':"))?.1.trim_start();
        Some(after)
    };
    let descr = value("descr")
        .and_then(|v| v.strip_prefix('\'')?.split('\'').next())
        .ok_or("its type is not simple")?;
    if value("fortran_order").is_none_or(|v| v.starts_with("True")) {
        return Err("it is in Fortran order; save numpy.ascontiguousarray of it");
    }
    let kind = descr
        .strip_prefix(['<', '|'])
        .ok_or("it is big-endian")?
        .to_owned();
    let shape = value("shape")
        .and_then(|v| v.strip_prefix('(')?.split(')').next())
        .ok_or("it has no shape")?;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(str::parse::<usize>)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "its shape is not a list of sizes")?;
    let size = kind
        .get(1..)
        .and_then(|size| size.parse::<usize>().ok())
        .ok_or("its type is not simple")?;
    let wanted = shape
        .iter()
        .try_fold(size, |total, size| total.checked_mul(*size));
    if wanted != Some(data.len()) {
        return Err("its data is not as long as its shape says");
    }
    Ok(Array {
        kind,
        shape,
        data: data.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn arrays_are_read_and_other_things_refused() {
        let good = npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n",
            &[0, 0, 128, 63, 0, 0, 0, 64],
        );
        assert_eq!(parse(&good).unwrap().shape, [2, 1]);
        assert_eq!(
            numbers::<4, f32, f32>(&parse(&good).unwrap().data, f32::from_le_bytes),
            [1.0, 2.0]
        );
        for n in 0..good.len() {
            assert!(parse(&good[..n]).is_err(), "{n}");
        }
        let fortran = npy(
            "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }",
            &[0; 4],
        );
        assert!(parse(&fortran).unwrap_err().contains("Fortran"));
        let object = npy(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            &[0; 8],
        );
        assert_eq!(parse(&object).unwrap_err(), "its type is not simple");
    }
}
