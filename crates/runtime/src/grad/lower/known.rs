//! What is known before a batch is: constants, sizes, and sizes that grow with the batch.

use crate::onnx::{Numbers, Values};

/// An integer, or an integer times the number of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Int {
    pub(super) value: i64,
    pub(super) is_batched: bool,
}

impl Int {
    pub(super) fn fixed(value: i64) -> Int {
        Int {
            value,
            is_batched: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum KnownValues {
    Floats(Vec<f32>),
    Ints(Vec<Int>),
}

/// A tensor whose elements are known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) shape: Vec<usize>,
    pub(super) values: KnownValues,
}

impl From<Numbers> for Known {
    fn from(numbers: Numbers) -> Known {
        Known {
            shape: numbers.shape,
            values: match numbers.values {
                Values::Floats(values) => KnownValues::Floats(values),
                Values::Integers(values) => KnownValues::Ints(values.into_iter().map(Int::fixed).collect()),
            },
        }
    }
}

impl Known {
    /// The one fraction that it is.
    pub(super) fn scalar(&self) -> Option<f32> {
        match &self.values {
            KnownValues::Floats(values) if values.len() == 1 => Some(values[0]),
            _ => None,
        }
    }

    pub(super) fn ints(&self) -> Result<&[Int], String> {
        match &self.values {
            KnownValues::Ints(values) => Ok(values),
            KnownValues::Floats(_) => Err("integers are wanted, and fractions are given".to_owned()),
        }
    }

    /// Integers that do not depend on the batch.
    pub(super) fn fixed_integers(&self) -> Result<Vec<i64>, String> {
        let ints = self.ints()?.iter();
        ints.map(|int| {
            (!int.is_batched)
                .then_some(int.value)
                .ok_or_else(|| "it would depend on the number of samples".to_owned())
        })
        .collect()
    }
}
