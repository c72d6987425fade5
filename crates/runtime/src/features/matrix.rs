//! Features in memory: rows of one length, with what they are checked for before anything is fitted on them.

use crate::error::Error;

/// `[N, D]` float32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    values: Vec<f32>,
    n_features: usize,
}

impl Features {
    /// Takes rows of `n_features` numbers after one another.
    ///
    /// # Errors
    /// [`Error::Features`] where the numbers make no whole rows or one is not finite; the first such row is named.
    pub fn new(values: Vec<f32>, n_features: usize) -> Result<Features, Error> {
        if n_features == 0 || !values.len().is_multiple_of(n_features) {
            return Err(Error::Features(format!(
                "{} numbers do not make rows of {n_features}",
                values.len()
            )));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::Features(format!(
                "row {} holds {}",
                at / n_features,
                values[at]
            )));
        }
        Ok(Features { values, n_features })
    }

    /// No rows yet.
    pub(crate) fn empty(n_features: usize) -> Features {
        Features {
            values: Vec::new(),
            n_features: n_features.max(1),
        }
    }

    /// Appends a row of finite numbers.
    pub(super) fn push(&mut self, row: &[f32]) {
        debug_assert_eq!(row.len(), self.n_features);
        self.values.extend_from_slice(row);
    }

    /// N.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.n_features
    }

    /// D.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// All rows after one another.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.n_features..(row + 1) * self.n_features]
    }

    /// The magnitudes.
    pub(crate) fn abs(&self) -> Features {
        Features {
            values: self.values.iter().map(|value| value.abs()).collect(),
            n_features: self.n_features,
        }
    }

    /// The rows at `indices`, in that order.
    pub fn select(&self, indices: &[usize]) -> Features {
        let mut values = Vec::with_capacity(indices.len() * self.n_features);
        indices
            .iter()
            .for_each(|&row| values.extend_from_slice(self.row(row)));
        Features {
            values,
            n_features: self.n_features,
        }
    }
}
