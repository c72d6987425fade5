//! Views of lazy tensors: pushed down to the files where that is possible, so that nothing is made whole for them.

use pth::Tensor;

use super::{Kind, LazyTensor, NanPolicy, Origin, Strided};

/// A dimension as Python counts them, negative from the end; none if there is no such.
pub(crate) fn resolve_dim(dim: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let dim = if dim < 0 { dim + rank } else { dim };
    (0..rank).contains(&dim).then(|| usize::try_from(dim).ok())?
}

impl LazyTensor {
    /// `len` indices of dimension `dim`, from `start` in steps of `step`. The caller has checked that they are there.
    pub(crate) fn slice(&self, dim: usize, start: usize, len: usize, step: usize) -> LazyTensor {
        if (start, len, step) == (0, self.shape()[dim], 1) {
            return self.clone();
        }
        if let Some(of) = self.owned_of() {
            return of.slice(dim, start, len, step).own();
        }
        let slice = |of: &LazyTensor| of.slice(dim, start, len, step);
        let mut shape = self.shape().to_vec();
        shape[dim] = len;
        match self.kind() {
            Kind::Stored(tensor, _) => {
                let view = tensor.slice_in(dim, start, len, step);
                made(view.expect("the caller has checked the range"))
            }
            Kind::Filled(value) => LazyTensor::filled(self.dtype(), &shape, *value),
            Kind::Cast(of) => slice(of).cast(self.dtype()),
            Kind::Sum { terms, nan } => self.map_terms(terms, nan, slice),
            Kind::Joined { dim: joined, parts } if *joined != dim => {
                LazyTensor::joined(*joined, parts.iter().map(slice).collect())
            }
            Kind::Joined { parts, .. } if step == 1 => {
                let mut kept = Vec::new();
                let (mut at, end) = (0, start + len);
                for part in parts {
                    let size = part.shape()[dim];
                    let (first, last) = (start.max(at), end.min(at + size));
                    if first < last {
                        kept.push(part.slice(dim, first - at, last - first, 1));
                    }
                    at += size;
                }
                match kept.len() {
                    0 => self.strided(&shape, self.contiguous_stride(), 0),
                    _ => LazyTensor::joined(dim, kept),
                }
            }
            _ => {
                let mut stride = self.contiguous_stride();
                let offset = start * stride[dim];
                stride[dim] *= step;
                self.strided(&shape, stride, offset)
            }
        }
    }

    /// Dimensions in another order, as `torch.permute`. `dims` is a permutation.
    pub(crate) fn permute(&self, dims: &[usize]) -> LazyTensor {
        if dims.iter().enumerate().all(|(to, &from)| to == from) {
            return self.clone();
        }
        if let Some(of) = self.owned_of() {
            return of.permute(dims).own();
        }
        let permute = |of: &LazyTensor| of.permute(dims);
        let shape: Vec<usize> = dims.iter().map(|&dim| self.shape()[dim]).collect();
        match self.kind() {
            Kind::Stored(tensor, _) => made(tensor.permute(dims).expect("the caller has a permutation")),
            Kind::Filled(value) => LazyTensor::filled(self.dtype(), &shape, *value),
            Kind::Cast(of) => permute(of).cast(self.dtype()),
            Kind::Sum { terms, nan } => self.map_terms(terms, nan, permute),
            Kind::Joined { dim, parts } => {
                let to = dims.iter().position(|from| from == dim);
                let to = to.expect("a permutation has every dimension");
                LazyTensor::joined(to, parts.iter().map(permute).collect())
            }
            _ => {
                let stride = self.contiguous_stride();
                let stride = dims.iter().map(|&dim| stride[dim]).collect();
                self.strided(&shape, stride, 0)
            }
        }
    }

    /// The same elements in the same order under another shape of as many.
    pub(crate) fn reshape(&self, shape: &[usize]) -> LazyTensor {
        debug_assert_eq!(
            shape.iter().fold(1, |n: usize, &size| n.saturating_mul(size)),
            self.numel()
        );
        if shape == self.shape() {
            return self.clone();
        }
        if let Some(of) = self.owned_of() {
            return of.reshape(shape).own();
        }
        let viewed = match self.kind() {
            Kind::Stored(tensor, _) => tensor.view_as(shape).map(made),
            Kind::Filled(value) => Some(LazyTensor::filled(self.dtype(), shape, *value)),
            Kind::Cast(of) => Some(of.reshape(shape).cast(self.dtype())),
            Kind::Reshaped(of) => Some(of.reshape(shape)),
            Kind::Sum { terms, nan } => Some(self.map_terms(terms, nan, |of| of.reshape(shape))),
            _ => None,
        };
        viewed.unwrap_or_else(|| LazyTensor::node(self.dtype(), shape.into(), Kind::Reshaped(self.clone())))
    }

    /// The same values as a tensor of its own, tied to nothing.
    pub(crate) fn own(&self) -> LazyTensor {
        LazyTensor::node(self.dtype(), self.shape().into(), Kind::Reshaped(self.clone()))
    }

    /// What [`own`](LazyTensor::own) was made of.
    fn owned_of(&self) -> Option<&LazyTensor> {
        match self.kind() {
            Kind::Reshaped(of) if of.shape() == self.shape() => Some(of),
            _ => None,
        }
    }

    /// Repeated along dimensions of size 1, as `torch.expand`. The caller has checked that it can be.
    pub(crate) fn expand(&self, shape: &[usize]) -> LazyTensor {
        if shape == self.shape() {
            return self.clone();
        }
        let missing = shape.len() - self.shape().len();
        let sizes = [&vec![1; missing], self.shape()].concat();
        let mut stride = [vec![0; missing], self.contiguous_stride()].concat();
        for (dim, size) in sizes.iter().enumerate() {
            if *size == 1 && shape[dim] != 1 {
                stride[dim] = 0;
            }
        }
        match self.kind() {
            Kind::Filled(value) => LazyTensor::filled(self.dtype(), shape, *value),
            _ => self.strided(shape, stride, 0),
        }
    }

    /// Joined along `dim`; `parts` have one type, and one shape but for `dim`.
    pub(crate) fn joined(dim: usize, mut parts: Vec<LazyTensor>) -> LazyTensor {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let first = &parts[0];
        let mut shape = first.shape().to_vec();
        shape[dim] = parts.iter().map(|part| part.shape()[dim]).sum();
        LazyTensor::node(first.dtype(), shape.into(), Kind::Joined { dim, parts })
    }

    /// Indices of dimension `dim` in any order, each any number of times: `torch.index_select`. All are there, and there is one.
    pub(crate) fn take(&self, dim: usize, indices: &[usize]) -> LazyTensor {
        // Runs of neighbours are one slice.
        let mut parts = Vec::new();
        let mut rest = indices;
        while let Some(&first) = rest.first() {
            let len = rest
                .iter()
                .zip(first..)
                .take_while(|(index, expected)| *index == expected)
                .count();
            parts.push(self.slice(dim, first, len, 1));
            rest = &rest[len..];
        }
        LazyTensor::joined(dim, parts)
    }

    fn map_terms(
        &self,
        terms: &[(f64, LazyTensor)],
        nan: &NanPolicy,
        view: impl Fn(&LazyTensor) -> LazyTensor,
    ) -> LazyTensor {
        let terms = terms.iter().map(|(weight, term)| (*weight, view(term))).collect();
        LazyTensor::sum(self.dtype(), terms, nan.clone())
    }

    fn contiguous_stride(&self) -> Vec<usize> {
        let mut stride = vec![1; self.shape().len()];
        for dim in (1..stride.len()).rev() {
            stride[dim - 1] = stride[dim] * self.shape()[dim].max(1);
        }
        stride
    }

    /// A view of what is made whole when it is read. Strides and offset in elements of the contiguous form.
    fn strided(&self, shape: &[usize], stride: Vec<usize>, offset: usize) -> LazyTensor {
        let kind = Kind::View {
            base: self.clone(),
            dims: Strided { stride, offset },
        };
        LazyTensor::node(self.dtype(), shape.into(), kind)
    }
}

fn made(tensor: Tensor) -> LazyTensor {
    LazyTensor::of_origin(tensor, Origin::Made)
}

/// The view that `dims` is of the whole `bytes` of its base.
pub(super) fn of_bytes(
    base: &LazyTensor,
    shape: &[usize],
    dims: &Strided,
    bytes: Vec<u8>,
) -> Result<Tensor, pth::Error> {
    let storage = pth::Storage::owned(bytes);
    Tensor::from_storage(storage, base.dtype(), shape, &dims.stride, dims.offset)
}
