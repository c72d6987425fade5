//! What is wanted of rows: class indices, truth values, numbers.

use super::array::ArrayFile;
use super::{check_labels_shape, numbers, refuse_fortran, reserve};
use crate::error::Error;
use crate::targets::{Targets, Task};

/// The targets that an array holds for a task.
pub(super) fn targets_of(array: &ArrayFile, task: Task) -> Result<Targets, Error> {
    match task {
        Task::SingleLabel => classes_of(array).map(Targets::Classes),
        Task::MultiLabel | Task::Regression => dense_of(array),
    }
}

/// The values of an integer array `[N]` or `[N, 1]`.
fn classes_of(array: &ArrayFile) -> Result<Vec<u32>, Error> {
    if matches!(array.header.shape[..], [_, k] if k > 1) {
        return Err(array.bad(format!(
            "a single-label task takes one class index a row, and this array has {:?}",
            array.header.shape
        )));
    }
    check_labels_shape(array)?;
    let mut labels: Vec<i128> = Vec::with_capacity(reserve(array));
    let mut push = |value| labels.push(value);
    match array.header.kind.as_str() {
        "i1" => array.each_chunk(|bytes| numbers(bytes, i8::from_le_bytes, |v| push(v.into())))?,
        "i2" => array.each_chunk(|bytes| numbers(bytes, i16::from_le_bytes, |v| push(v.into())))?,
        "i4" => array.each_chunk(|bytes| numbers(bytes, i32::from_le_bytes, |v| push(v.into())))?,
        "i8" => array.each_chunk(|bytes| numbers(bytes, i64::from_le_bytes, |v| push(v.into())))?,
        "u1" => array.each_chunk(|bytes| numbers(bytes, u8::from_le_bytes, |v| push(v.into())))?,
        "u2" => array.each_chunk(|bytes| numbers(bytes, u16::from_le_bytes, |v| push(v.into())))?,
        "u4" => array.each_chunk(|bytes| numbers(bytes, u32::from_le_bytes, |v| push(v.into())))?,
        "u8" => array.each_chunk(|bytes| numbers(bytes, u64::from_le_bytes, |v| push(v.into())))?,
        kind => return Err(array.bad(format!("labels are integers, and this array is `{kind}`"))),
    }
    labels
        .into_iter()
        .enumerate()
        .map(|(row, label)| {
            u32::try_from(label).map_err(|_| array.bad(format!("row {row} has label {label}")))
        })
        .collect()
}

/// The values of an array `[N, K]`, or `[N]` for one output, of numbers or truth values.
fn dense_of(array: &ArrayFile) -> Result<Targets, Error> {
    let n_outputs = match array.header.shape[..] {
        [_] => 1,
        [_, k] if k > 0 => k,
        _ => {
            return Err(array.bad(format!(
                "targets have 2 axes (rows, outputs), and this array has {:?}",
                array.header.shape
            )));
        }
    };
    refuse_fortran(array)?;
    let mut values: Vec<f32> = Vec::with_capacity(reserve(array));
    let mut push = |value| values.push(value);
    match array.header.kind.as_str() {
        "b1" => array.each_chunk(|bytes| numbers(bytes, u8::from_le_bytes, |v| push(f32::from(v != 0))))?,
        "i1" => array.each_chunk(|bytes| numbers(bytes, i8::from_le_bytes, |v| push(v.into())))?,
        "i2" => array.each_chunk(|bytes| numbers(bytes, i16::from_le_bytes, |v| push(v.into())))?,
        "i4" => array.each_chunk(|bytes| numbers(bytes, i32::from_le_bytes, |v| push(v as f32)))?,
        "i8" => array.each_chunk(|bytes| numbers(bytes, i64::from_le_bytes, |v| push(v as f32)))?,
        "u1" => array.each_chunk(|bytes| numbers(bytes, u8::from_le_bytes, |v| push(v.into())))?,
        "u2" => array.each_chunk(|bytes| numbers(bytes, u16::from_le_bytes, |v| push(v.into())))?,
        "u4" => array.each_chunk(|bytes| numbers(bytes, u32::from_le_bytes, |v| push(v as f32)))?,
        "u8" => array.each_chunk(|bytes| numbers(bytes, u64::from_le_bytes, |v| push(v as f32)))?,
        "f2" => array.each_chunk(|bytes| numbers(bytes, half::f16::from_le_bytes, |v| push(v.into())))?,
        "f4" => array.each_chunk(|bytes| numbers(bytes, f32::from_le_bytes, &mut push))?,
        "f8" => array.each_chunk(|bytes| numbers(bytes, f64::from_le_bytes, |v| push(v as f32)))?,
        kind => {
            return Err(array.bad(format!(
                "targets are numbers or truth values, and this array is `{kind}`"
            )));
        }
    }
    Targets::dense(values, n_outputs).map_err(|error| match error {
        Error::Features(reason) => array.bad(reason),
        other => other,
    })
}
