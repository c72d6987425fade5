//! The factors of one matrix, and the change that they stand for, read from both files as they are needed.

use std::sync::{Arc, Mutex, PoisonError};

use pth::DType;

use crate::Error;
use crate::lazy::LazyTensor;
use crate::op::svd::{EXACT_SIDE, Held, LowRank, Rows, approximate, approximate_held, sketch_width};

/// Both factors of one matrix, which one computation gives. Whoever reads one first computes, and leaves the other for its reader.
pub(super) struct Factors {
    /// Whether A comes of the matrix' rows and B of its columns, as in embeddings.
    pub(super) is_swapped: bool,
    /// What the product is multiplied by.
    pub(super) scale: f64,
    pub(super) ready: Mutex<[Option<Vec<f64>>; 2]>,
    pub(super) make: Box<Make>,
}

type Make = dyn Fn(&[LazyTensor]) -> Result<LowRank, Error> + Send + Sync;

impl Factors {
    /// A and B, that read `inputs` and hold `held` bytes meanwhile.
    pub(super) fn tensors(
        self,
        dtype: DType,
        a_shape: &[usize],
        b_shape: &[usize],
        inputs: Vec<LazyTensor>,
        held: usize,
    ) -> (LazyTensor, LazyTensor) {
        let factors = Arc::new(self);
        let reader = |which: usize| {
            let factors = Arc::clone(&factors);
            move |inputs: &[LazyTensor]| factors.take(which, inputs)
        };
        // The second is there when the first has been made, which goes before it.
        let b = LazyTensor::reduced(dtype, b_shape, inputs.clone(), 0, reader(1));
        (LazyTensor::reduced(dtype, a_shape, inputs, held, reader(0)), b)
    }

    fn take(&self, which: usize, inputs: &[LazyTensor]) -> Result<Vec<f64>, Error> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factor) = ready[which].take() {
            return Ok(factor);
        }
        let LowRank { mut left, mut right } = (self.make)(inputs)?;
        if self.is_swapped {
            std::mem::swap(&mut left, &mut right);
        }
        let share = self.scale.sqrt();
        for value in left.values.iter_mut().chain(&mut right.values) {
            *value *= share;
        }
        // A is the right side's columns one after the other, B the left side row by row.
        let mut both = [right.values, left.transposed().values];
        let asked = std::mem::take(&mut both[which]);
        ready[1 - which] = Some(std::mem::take(&mut both[1 - which]));
        Ok(asked)
    }
}

/// A tensor minus what it was, as a matrix of its first dimension by all others.
pub(super) struct Delta {
    pub(super) new: LazyTensor,
    pub(super) old: LazyTensor,
    name: String,
}

impl Delta {
    pub(super) fn of(name: &str, new: &LazyTensor, old: &LazyTensor) -> Delta {
        Delta {
            new: new.clone(),
            old: old.clone(),
            name: name.to_owned(),
        }
    }

    /// Elements up to which a change is held in memory.
    const HELD: usize = 16 << 20;
    /// Elements that are read at once otherwise.
    const CHUNK: usize = 1 << 20;

    /// Whether any element has changed. Reads up to the first that has.
    pub(super) fn is_there(&self) -> Result<bool, Error> {
        if self.new.identity() == self.old.identity() {
            return Ok(false);
        }
        let (mut new, mut old) = (self.new.reader_at(0)?, self.old.reader_at(0)?);
        let mut left = self.new.numel();
        while left > 0 {
            let n = left.min(Delta::CHUNK);
            if new.read_f64(n)? != old.read_f64(n)? {
                return Ok(true);
            }
            left -= n;
        }
        Ok(false)
    }

    pub(super) fn approximate(&self, rank: usize) -> Result<LowRank, Error> {
        let (m, n) = self.size();
        if m * n > Delta::HELD {
            return approximate(self, rank, &self.name);
        }
        let mut values = Vec::with_capacity(m * n);
        self.for_each_chunk(&mut |_, rows| values.extend_from_slice(rows))?;
        approximate_held(&Held { n_cols: n, values }, rank, &self.name)
    }

    pub(super) fn held_bytes(size: (usize, usize), rank: usize) -> usize {
        let (m, n) = size;
        let numel = m.saturating_mul(n);
        let width = sketch_width(rank, size);
        if numel > Delta::HELD {
            // Both sides of the sketch with what they are made of, and chunks of both inputs.
            return ((m + n) * width * 3 + Delta::CHUNK * 3) * 8;
        }
        let is_exact = m.min(n) <= EXACT_SIDE || width == m.min(n);
        let beside = if is_exact { numel * 3 } else { (m + n) * width * 3 };
        (numel + beside) * 8
    }
}

impl Rows for Delta {
    fn size(&self) -> (usize, usize) {
        let n_rows = self.new.shape().first().copied().unwrap_or(1);
        (n_rows, self.new.numel().checked_div(n_rows).unwrap_or(0))
    }

    fn for_each_chunk(&self, visit: &mut dyn FnMut(usize, &[f64])) -> Result<(), Error> {
        let (m, n) = self.size();
        let (mut new, mut old) = (self.new.reader_at(0)?, self.old.reader_at(0)?);
        let step = (Delta::CHUNK / n.max(1)).max(1);
        for first in (0..m).step_by(step) {
            let n_rows = step.min(m - first);
            let mut rows = new.read_f64(n_rows * n)?;
            let before = old.read_f64(n_rows * n)?;
            rows.iter_mut().zip(&before).for_each(|(new, old)| *new -= old);
            if rows.iter().any(|value| value.is_nan()) {
                return Err(Error::NotANumber {
                    name: self.name.clone(),
                    input: None,
                });
            }
            if rows.iter().any(|value| value.is_infinite()) {
                return Err(Error::Unexpected(format!(
                    "tensor `{}` holds infinities",
                    self.name
                )));
            }
            visit(first, &rows);
        }
        Ok(())
    }
}
