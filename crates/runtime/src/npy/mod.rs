//! NumPy's arrays, as `numpy.save` and `numpy.savez` write them: features and labels that another program made.
//!
//! Deliberately absent: big-endian numbers, structured types, pickled objects, which are refused by name; Fortran order, for
//! which `numpy.ascontiguousarray` is the way.

pub(crate) mod array;
pub(crate) mod header;
pub(crate) mod roles;
mod targets;

use std::path::Path;

use array::{ArrayFile, open_npz};
use roles::Role;
use targets::targets_of;

use crate::data::Tag;
use crate::error::Error;
use pth::Storage;

use crate::features::{FeatureType, Features, Piece};
use crate::targets::{Targets, Task};

/// The arrays of a `.npz` that a head is trained on.
#[derive(Debug)]
pub struct Arrays {
    /// `[N, D]`.
    pub features: Features,
    /// Of N rows, where the file has them.
    pub targets: Option<Targets>,
    /// `[M, D]` and what is wanted of these rows, where the file has them.
    pub val: Option<(Features, Option<Targets>)>,
}

/// Reads features: a float16, float32 or float64 array `[N, D]`, a `.npy` file or the one for training in a `.npz`.
///
/// # Errors
/// [`Error::BadFile`] for another kind of file or array; [`Error::Features`] for numbers that are not finite.
pub fn read_features(path: &Path) -> Result<Features, Error> {
    match is_npz(path) {
        false => features_of(&ArrayFile::open(path)?),
        true => features_of(&pick(path, Role::Samples, &[None, Some(Tag::Train)])?),
    }
}

/// Reads what is wanted of rows, a `.npy` file or the array of labels for training in a `.npz`: class indices as integers
/// `[N]`, or for the other tasks numbers or truth values `[N, K]` (`[N]` for one output).
///
/// # Errors
/// [`Error::BadFile`] for another kind of file or array, for a negative class index and for a number that is not finite,
/// whose row is named.
pub fn read_targets(path: &Path, task: Task) -> Result<Targets, Error> {
    match is_npz(path) {
        false => targets_of(&ArrayFile::open(path)?, task),
        true => targets_of(&pick(path, Role::Labels, &[None, Some(Tag::Train)])?, task),
    }
}

/// Reads features, labels, and those for validation from a `.npz`, by the arrays' names: `X` and `y`, `x_train`, `y_train`,
/// `x_test` and `y_test`, `train_features` and so on.
///
/// # Errors
/// As [`read_features`] and [`read_targets`].
pub fn read_npz(path: &Path, task: Task) -> Result<Arrays, Error> {
    let arrays = open_npz(path, |name| roles::of_name(name).is_some())?;
    let find = |role: Role, splits: &[Option<Tag>]| {
        splits.iter().find_map(|split| {
            arrays
                .iter()
                .find(|array| array.member.as_deref().and_then(roles::of_name) == Some((role, *split)))
        })
    };
    let train = [None, Some(Tag::Train)];
    let held_out: &[Option<Tag>] = &[Some(Tag::Val), Some(Tag::Test)];
    let features = find(Role::Samples, &train).ok_or_else(|| missing(path, Role::Samples))?;
    let val = find(Role::Samples, held_out);
    let val_split = val.and_then(|val| val.member.as_deref().and_then(roles::of_name)?.1);
    Ok(Arrays {
        features: features_of(features)?,
        targets: find(Role::Labels, &train)
            .map(|array| targets_of(array, task))
            .transpose()?,
        val: match val {
            None => None,
            Some(val) => {
                let targets = find(Role::Labels, &[val_split]);
                let targets = targets.map(|array| targets_of(array, task)).transpose()?;
                Some((features_of(val)?, targets))
            }
        },
    })
}

pub(crate) fn is_npz(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("npz"))
}

fn missing(path: &Path, role: Role) -> Error {
    let reason = match role {
        Role::Samples => "none of its arrays is called one of features, such as `X` or `x_train`",
        Role::Labels => "none of its arrays is called one of labels, such as `y` or `y_train`",
    };
    Error::BadFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The array of a role, of the first of the splits that there is one of; the only array is one of any role.
fn pick(path: &Path, role: Role, splits: &[Option<Tag>]) -> Result<ArrayFile, Error> {
    let mut arrays = open_npz(path, |_| true)?;
    let role_of = |array: &ArrayFile| array.member.as_deref().and_then(roles::of_name);
    let at = splits
        .iter()
        .find_map(|split| {
            arrays
                .iter()
                .position(|array| role_of(array) == Some((role, *split)))
        })
        .or((arrays.len() == 1).then_some(0));
    match at {
        Some(at) => Ok(arrays.swap_remove(at)),
        None => Err(missing(path, role)),
    }
}

/// The rows of a float array `[N, D]`, where they lie.
pub(crate) fn features_of(array: &ArrayFile) -> Result<Features, Error> {
    let (piece, n_features) = piece_of(array)?;
    Features::of_piece(piece, n_features).map_err(|error| match error {
        Error::Features(reason) => array.bad(reason),
        other => other,
    })
}

/// The rows of a float array `[N, D]` and D: float16 and float32 stay where they are, float64 becomes float32.
pub(crate) fn piece_of(array: &ArrayFile) -> Result<(Piece, usize), Error> {
    let [_, n_features] = array.header.shape[..] else {
        return Err(array.bad(format!(
            "features have 2 axes (rows, features), and this array has {:?}",
            array.header.shape
        )));
    };
    if n_features == 0 {
        return Err(array.bad("its rows have no numbers"));
    }
    refuse_fortran(array)?;
    let (storage, dtype) = match array.header.kind.as_str() {
        "f2" => (array.storage()?, FeatureType::Float16),
        "f4" => (array.storage()?, FeatureType::Float32),
        "f8" => {
            let mut bytes = Vec::with_capacity(reserve(array) * 4);
            array.each_chunk(|chunk| {
                numbers(chunk, f64::from_le_bytes, |v| {
                    bytes.extend((v as f32).to_le_bytes());
                });
            })?;
            (Storage::owned(bytes), FeatureType::Float32)
        }
        kind => {
            return Err(array.bad(format!(
                "features are float16, float32 or float64, and this array is `{kind}`"
            )));
        }
    };
    let piece = Piece::stored(storage, dtype, n_features).map_err(|error| array.bad(error.to_string()))?;
    Ok((piece, n_features))
}

/// The labels of an array `[N]` or `[N, 1]` as texts: numbers, truth values, or strings.
///
/// # Errors
/// Another type or shape.
pub(crate) fn label_texts(array: &ArrayFile, mut take: impl FnMut(usize, &str)) -> Result<(), Error> {
    check_labels_shape(array)?;
    let mut row = 0;
    let mut push = |text: &str| {
        take(row, text);
        row += 1;
    };
    match array.header.kind.as_str() {
        "b1" => array.each_chunk(|bytes| {
            numbers(bytes, u8::from_le_bytes, |v| {
                push(if v == 0 { "False" } else { "True" });
            });
        })?,
        "i1" => array.each_chunk(|bytes| numbers(bytes, i8::from_le_bytes, |v| push(&v.to_string())))?,
        "i2" => array.each_chunk(|bytes| numbers(bytes, i16::from_le_bytes, |v| push(&v.to_string())))?,
        "i4" => array.each_chunk(|bytes| numbers(bytes, i32::from_le_bytes, |v| push(&v.to_string())))?,
        "i8" => array.each_chunk(|bytes| numbers(bytes, i64::from_le_bytes, |v| push(&v.to_string())))?,
        "u1" => array.each_chunk(|bytes| numbers(bytes, u8::from_le_bytes, |v| push(&v.to_string())))?,
        "u2" => array.each_chunk(|bytes| numbers(bytes, u16::from_le_bytes, |v| push(&v.to_string())))?,
        "u4" => array.each_chunk(|bytes| numbers(bytes, u32::from_le_bytes, |v| push(&v.to_string())))?,
        "u8" => array.each_chunk(|bytes| numbers(bytes, u64::from_le_bytes, |v| push(&v.to_string())))?,
        kind if kind.starts_with('U') => {
            let n_bytes = array.header.item_bytes().max(1);
            array.each_chunk(|bytes| {
                for item in bytes.chunks_exact(n_bytes) {
                    let mut text = String::new();
                    numbers(item, u32::from_le_bytes, |v| {
                        text.push(char::from_u32(v).unwrap_or(char::REPLACEMENT_CHARACTER));
                    });
                    push(text.trim_end_matches('\0'));
                }
            })?;
        }
        kind if kind.starts_with('S') => {
            let n_bytes = array.header.item_bytes().max(1);
            array.each_chunk(|bytes| {
                for item in bytes.chunks_exact(n_bytes) {
                    push(String::from_utf8_lossy(item).trim_end_matches('\0'));
                }
            })?;
        }
        kind => {
            return Err(array.bad(format!(
                "labels are integers or strings, and this array is `{kind}`"
            )));
        }
    }
    Ok(())
}

fn check_labels_shape(array: &ArrayFile) -> Result<(), Error> {
    match array.header.shape[..] {
        [_] | [_, 1] => Ok(()),
        _ => Err(array.bad(format!(
            "labels have 1 axis, and this array has {:?}",
            array.header.shape
        ))),
    }
}

fn refuse_fortran(array: &ArrayFile) -> Result<(), Error> {
    match array.header.is_fortran {
        true => Err(array.bad("it is in Fortran order; save numpy.ascontiguousarray of it")),
        false => Ok(()),
    }
}

/// Numbers to make room for; the file is that long.
fn reserve(array: &ArrayFile) -> usize {
    usize::try_from(array.header.n_bytes).unwrap_or(0) / array.header.item_bytes().max(1)
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T, mut take: impl FnMut(T)) {
    for bytes in bytes.chunks_exact(N) {
        take(read(bytes.try_into().expect("chunks of N")));
    }
}

#[cfg(test)]
mod tests;
