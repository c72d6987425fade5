//! Sizes that may grow with the batch.

/// A size, or a size times the number of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dim {
    pub(super) size: usize,
    pub(super) is_batched: bool,
}

impl Dim {
    pub(super) const ONE: Dim = Dim::fixed(1);

    pub(super) const fn fixed(size: usize) -> Dim {
        Dim {
            size,
            is_batched: false,
        }
    }

    pub(super) const fn batched(size: usize) -> Dim {
        Dim {
            size,
            is_batched: true,
        }
    }

    /// The size for `n` samples.
    pub(super) fn at(self, n: usize) -> usize {
        if self.is_batched { self.size * n } else { self.size }
    }

    /// Both at most one batched: sizes of tensors are linear in the number of samples.
    pub(super) fn times(self, other: Dim) -> Dim {
        Dim {
            size: self.size * other.size,
            is_batched: self.is_batched || other.is_batched,
        }
    }
}

/// The number of elements.
pub(super) fn numel(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::ONE, |product, dim| product.times(*dim))
}

/// How far it is from one element of each axis to the next.
pub(super) fn strides(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::ONE; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].times(shape[axis]);
    }
    strides
}

/// Shapes as people write them, the batch as `n`.
pub(super) fn describe(shape: &[Dim]) -> String {
    let dims = shape.iter().map(|dim| match (dim.size, dim.is_batched) {
        (1, true) => "n".to_owned(),
        (size, true) => format!("{size}n"),
        (size, false) => size.to_string(),
    });
    format!("[{}]", dims.collect::<Vec<_>>().join(", "))
}
