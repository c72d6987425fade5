//! A typed, strided view of a storage.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::TensorFault;
use crate::storage::ByteOrder;
use crate::{DType, Error, Storage, layout, limits};

/// A typed, strided view of a [`Storage`]. Cloning shares the bytes; [`deep_copy`](Tensor::deep_copy) does not.
///
/// Every element is proven to lie inside the storage when the tensor is made.
#[derive(Debug, Clone)]
pub struct Tensor {
    storage: Storage,
    dims: Dims,
    storage_offset: usize,
    dtype: DType,
    requires_grad: bool,
    is_parameter: bool,
    pending: Pending,
}

/// Shape and stride, shared by the many tensors of a model that have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dims(Arc<[usize]>);

impl Dims {
    /// As many strides as sizes: a caller that cannot promise it checks before.
    pub(crate) fn new(shape: &[usize], stride: &[usize]) -> Dims {
        debug_assert_eq!(shape.len(), stride.len());
        Dims(shape.iter().chain(stride).copied().collect())
    }

    /// Row-major without gaps.
    fn contiguous(shape: &[usize]) -> Dims {
        // Small ones without a detour over the heap: a model has a hundred thousand.
        let mut all = [0; 16];
        let Some(all) = all.get_mut(..2 * shape.len()) else {
            return Dims::new(shape, &layout::contiguous_stride(shape));
        };
        let (sizes, strides) = all.split_at_mut(shape.len());
        sizes.copy_from_slice(shape);
        layout::fill_contiguous_stride(shape, strides);
        Dims(Arc::from(&*all))
    }

    pub(crate) fn is(&self, shape: &[usize], stride: &[usize]) -> bool {
        self.shape() == shape && self.stride() == stride
    }

    fn shape(&self) -> &[usize] {
        &self.0[..self.0.len() / 2]
    }

    fn stride(&self) -> &[usize] {
        &self.0[self.0.len() / 2..]
    }
}

/// torch's lazy bits: operations that the stored bytes still await.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Imaginary parts are to be negated.
    pub(crate) conj: bool,
    /// Values are to be negated.
    pub(crate) neg: bool,
}

impl Tensor {
    /// A view of `storage`; shape, stride and offset in elements.
    ///
    /// # Errors
    /// The view reaches outside the storage, or the numbers contradict each other.
    pub fn from_storage(
        storage: Storage,
        dtype: DType,
        shape: &[usize],
        stride: &[usize],
        storage_offset: usize,
    ) -> Result<Tensor, Error> {
        if shape.len() != stride.len() {
            return Err(Error::Layout(TensorFault::RankMismatch {
                shape: shape.len(),
                stride: stride.len(),
            }));
        }
        Tensor::view(storage, dtype, Dims::new(shape, stride), storage_offset).map_err(Error::Layout)
    }

    pub(crate) fn view(
        storage: Storage,
        dtype: DType,
        dims: Dims,
        storage_offset: usize,
    ) -> Result<Tensor, TensorFault> {
        let (shape, stride) = (dims.shape(), dims.stride());
        if shape.len() > limits::MAX_RANK {
            return Err(TensorFault::TooManyDimensions(shape.len()));
        }
        let overflow = || TensorFault::Overflow {
            shape: shape.to_vec(),
        };
        // torch counts in 64 bits with a sign.
        let fits = |n: usize| isize::try_from(n).is_ok();
        if !fits(storage_offset) || !stride.iter().all(|&step| fits(step)) {
            return Err(overflow());
        }
        let numel = layout::numel(shape).ok_or_else(overflow)?;
        numel.checked_mul(dtype.size()).ok_or_else(overflow)?;
        let needed = layout::extent(shape, stride, storage_offset)
            .and_then(|extent| extent.checked_mul(dtype.size()))
            .ok_or_else(overflow)?;
        if needed > storage.nbytes() {
            return Err(TensorFault::Outside {
                needed,
                storage: storage.nbytes(),
                key: storage.key().into_owned(),
            });
        }
        Ok(Tensor {
            storage,
            dims,
            storage_offset,
            dtype,
            requires_grad: false,
            is_parameter: false,
            pending: Pending::default(),
        })
    }

    /// A contiguous tensor over the whole of `storage`.
    ///
    /// # Errors
    /// The storage has not exactly the bytes that `dtype` and `shape` need.
    pub fn contiguous(storage: Storage, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let expected = layout::numel(shape).and_then(|numel| numel.checked_mul(dtype.size()));
        match expected {
            Some(expected) if expected == storage.nbytes() => {
                Tensor::view(storage, dtype, Dims::contiguous(shape), 0).map_err(Error::Layout)
            }
            Some(expected) => Err(Error::Layout(TensorFault::ByteCount {
                dtype,
                shape: shape.to_vec(),
                expected,
                found: storage.nbytes(),
            })),
            None => Err(Error::Layout(TensorFault::Overflow {
                shape: shape.to_vec(),
            })),
        }
    }

    /// The same view of another storage of the same size; none where the size differs. Shape and stride are shared.
    pub fn over(&self, storage: Storage) -> Option<Tensor> {
        (storage.nbytes() == self.storage.nbytes()).then(|| Tensor {
            storage,
            ..self.clone()
        })
    }

    /// A contiguous tensor of its own, from little-endian row-major bytes.
    ///
    /// # Errors
    /// `bytes` are not as many as `dtype` and `shape` need.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Tensor, Error> {
        Tensor::contiguous(Storage::owned(bytes), dtype, shape)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.dims.shape()
    }

    /// Steps in elements, outermost first.
    pub fn stride(&self) -> &[usize] {
        self.dims.stride()
    }

    /// The first element's place in the storage, in elements.
    pub fn storage_offset(&self) -> usize {
        self.storage_offset
    }

    /// The bytes behind.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Whether training would change it; false is what a frozen parameter has.
    pub fn requires_grad(&self) -> bool {
        self.requires_grad
    }

    /// Whether it is a `torch.nn.Parameter` and not a buffer or another plain tensor.
    pub fn is_parameter(&self) -> bool {
        self.is_parameter
    }

    /// The same tensor, frozen or not.
    pub fn with_requires_grad(mut self, requires_grad: bool) -> Tensor {
        self.requires_grad = requires_grad;
        self
    }

    /// The same tensor as a `torch.nn.Parameter`, frozen or not.
    pub fn into_parameter(mut self, requires_grad: bool) -> Tensor {
        self.requires_grad = requires_grad;
        self.is_parameter = true;
        self
    }

    /// Whether the two are the same elements of one storage in the same order, so that they are names of one tensor.
    pub fn is_same_view(&self, other: &Tensor) -> bool {
        self.storage.ptr_eq(&other.storage)
            && self.dtype == other.dtype
            && self.storage_offset == other.storage_offset
            && self.dims == other.dims
            && self.pending == other.pending
    }

    pub(crate) fn pending(&self) -> Pending {
        self.pending
    }

    pub(crate) fn with_pending(mut self, pending: Pending) -> Tensor {
        self.pending = pending;
        self
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        layout::numel(self.shape()).expect("a tensor is made with a number of elements that fits")
    }

    /// Size of its elements in bytes, which may be more than the storage's (`expand`).
    pub fn nbytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        layout::is_contiguous(self.shape(), self.stride())
    }

    /// The elements as they would lie in a contiguous little-endian tensor; borrowed where they lie so already in memory.
    ///
    /// # Errors
    /// The file cannot be read, was changed, or does not have the bytes that its own CRC tells of.
    /// A view that repeats its storage beyond all proportion is not gathered: use [`write_to`](Tensor::write_to).
    pub fn to_bytes(&self) -> Result<Cow<'_, [u8]>, Error> {
        if let Some(range) = self.plain_range() {
            return self.storage.read(range);
        }
        self.check_expansion()?;
        let mut bytes = Vec::with_capacity(self.nbytes());
        self.write_to(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Refuses a view that repeats its storage beyond all proportion (`expand`): a few bytes that would become terabytes.
    ///
    /// # Errors
    /// More than a GiB, and more than 64 times the storage.
    pub fn check_expansion(&self) -> Result<(), Error> {
        let limit =
            limits::FREE_EXPANSION_BYTES.max(self.storage.nbytes().saturating_mul(limits::MAX_EXPANSION));
        if self.nbytes() <= limit {
            return Ok(());
        }
        Err(Error::Limit {
            what: format!("gathering a view of shape {:?}", self.shape()),
            needed: u64::try_from(self.nbytes()).unwrap_or(u64::MAX),
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
        })
    }

    /// Writes the elements, contiguous and little-endian, through a buffer of bounded size.
    ///
    /// A view with gaps in a file that is not mapped is read from its first to its last element at once.
    ///
    /// # Errors
    /// Those of [`to_bytes`](Tensor::to_bytes), perhaps after bytes were written, and [`Error::Output`] for those of `out`.
    pub fn write_to(&self, out: &mut impl io::Write) -> Result<(), Error> {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|source| Error::Output { source });
        if let Some(range) = self.plain_range() {
            return self.storage.stream(range, &mut put);
        }
        // A multiple of every element's size.
        const CHUNK_BYTES: usize = 1 << 18;
        let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK_BYTES.min(self.nbytes()));
        let mut add = |mut run: &[u8]| {
            while !run.is_empty() {
                let (now, later) = run.split_at(run.len().min(CHUNK_BYTES - buffer.len()));
                buffer.extend_from_slice(now);
                run = later;
                if buffer.len() == CHUNK_BYTES {
                    self.finish(&mut buffer);
                    put(&buffer)?;
                    buffer.clear();
                }
            }
            Ok::<(), Error>(())
        };
        let size = self.dtype.size();
        let touched = self.touched();
        if self.is_contiguous() {
            self.storage.stream(touched, &mut add)?;
        } else {
            let source = self.storage.read(touched)?;
            layout::for_each_run(self.shape(), self.stride(), 0, |start, len| {
                add(&source[start * size..(start + len) * size])
            })?;
        }
        self.finish(&mut buffer);
        put(&buffer)
    }

    /// The bytes of the storage from the view's first element to its last.
    pub(crate) fn touched(&self) -> Range<usize> {
        let size = self.dtype.size();
        let end = layout::extent(self.shape(), self.stride(), self.storage_offset)
            .expect("a tensor is made with an extent that fits");
        if end == 0 {
            return 0..0;
        }
        self.storage_offset * size..end * size
    }

    /// Where in the storage the bytes lie that `to_bytes` promises, if they do as they are.
    fn plain_range(&self) -> Option<Range<usize>> {
        let in_order = self.storage.byte_order() == ByteOrder::Little || self.dtype.component_size() == 1;
        (in_order && self.pending == Pending::default() && self.is_contiguous()).then(|| self.touched())
    }

    /// Brings gathered elements into little-endian order and carries out what they still await.
    pub(crate) fn finish(&self, bytes: &mut [u8]) {
        let component = self.dtype.component_size();
        if self.storage.byte_order() == ByteOrder::Big {
            bytes.chunks_exact_mut(component).for_each(<[u8]>::reverse);
        }
        // Negation of an IEEE number is its sign bit, the highest of the last byte; NaNs and zeros included, as in torch.
        let is_float = self.dtype.is_float() || self.dtype.is_complex();
        if self.pending.neg {
            for value in bytes.chunks_exact_mut(component) {
                if is_float {
                    value[component - 1] ^= 0x80;
                } else {
                    negate_integer(value);
                }
            }
        }
        if self.pending.conj && self.dtype.is_complex() {
            for value in bytes.chunks_exact_mut(2 * component) {
                value[2 * component - 1] ^= 0x80;
            }
        }
    }

    /// The same values in own bytes: `copy.deepcopy` of one tensor.
    ///
    /// # Errors
    /// As [`to_bytes`](Tensor::to_bytes).
    pub fn deep_copy(&self) -> Result<Tensor, Error> {
        let bytes = self.to_bytes()?.into_owned();
        let mut copy = Tensor::from_bytes(self.dtype, self.shape(), bytes)?;
        copy.requires_grad = self.requires_grad;
        copy.is_parameter = self.is_parameter;
        Ok(copy)
    }

    /// The slice `tensor[index]`: a view without the first dimension.
    ///
    /// # Errors
    /// The tensor has no dimension, or a shorter first one.
    pub fn select(&self, index: usize) -> Result<Tensor, Error> {
        self.select_in(0, index)
    }

    /// The view with dimension `dim` fixed at `index`: `tensor.select(dim, index)`.
    ///
    /// # Errors
    /// There is no such dimension, or it is shorter.
    pub fn select_in(&self, dim: usize, index: usize) -> Result<Tensor, Error> {
        let mut slice = self.slice_in(dim, index, 1, 1)?;
        let (mut shape, mut stride) = (slice.shape().to_vec(), slice.stride().to_vec());
        shape.remove(dim);
        stride.remove(dim);
        slice.dims = Dims::new(&shape, &stride);
        Ok(slice)
    }

    /// The view of `len` indices of dimension `dim`, from `start` in steps of `step`.
    ///
    /// # Errors
    /// There is no such dimension, or it is shorter.
    pub fn slice_in(&self, dim: usize, start: usize, len: usize, step: usize) -> Result<Tensor, Error> {
        let (&size, &stride) = match (self.shape().get(dim), self.stride().get(dim)) {
            (Some(size), Some(stride)) => (size, stride),
            _ => {
                return Err(Error::Layout(TensorFault::TooFewDimensions {
                    dim,
                    rank: self.shape().len(),
                }));
            }
        };
        let last = len
            .checked_sub(1)
            .map_or(Some(start), |n| n.checked_mul(step)?.checked_add(start));
        let fits = last.is_some_and(|last| last < size || (len == 0 && last <= size));
        if !fits {
            return Err(Error::Layout(TensorFault::NoSuchIndex {
                index: last.unwrap_or(usize::MAX),
                size,
            }));
        }
        let (mut sizes, mut strides) = (self.shape().to_vec(), self.stride().to_vec());
        sizes[dim] = len;
        strides[dim] = stride.saturating_mul(step).min(usize::MAX / 2);
        let mut slice = self.clone();
        slice.dims = Dims::new(&sizes, &strides);
        // A slice of a parameter is no parameter.
        slice.is_parameter = false;
        // An empty tensor proves nothing about its strides.
        if slice.numel() > 0 {
            slice.storage_offset += start * stride;
        }
        Ok(slice)
    }
}

impl Tensor {
    /// The view with its dimensions in another order: dimension `i` of it is `dims[i]` of this one. torch's `permute`.
    ///
    /// # Errors
    /// `dims` does not name each dimension once.
    pub fn permute(&self, dims: &[usize]) -> Result<Tensor, Error> {
        let rank = self.shape().len();
        if let Some(&dim) = dims.iter().find(|&&dim| dim >= rank) {
            return Err(Error::Layout(TensorFault::TooFewDimensions { dim, rank }));
        }
        let mut sorted = dims.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..rank) {
            let fault = format!("order {dims:?} of {rank} dimensions, expected each once");
            return Err(Error::Layout(TensorFault::Malformed(fault)));
        }
        let shape: Vec<usize> = dims.iter().map(|&dim| self.shape()[dim]).collect();
        let stride: Vec<usize> = dims.iter().map(|&dim| self.stride()[dim]).collect();
        // Sizes that fit in one order may overflow in another before their zero is reached.
        self.with_dims(Dims::new(&shape, &stride)).map_err(Error::Layout)
    }

    /// The view of the same elements, in the same order, with other sizes. torch's `view`.
    ///
    /// None where the strides do not allow it, so that the elements would have to be copied, and where the number of elements differs.
    pub fn view_as(&self, shape: &[usize]) -> Option<Tensor> {
        let stride = layout::view_stride(self.shape(), self.stride(), shape)?;
        self.with_dims(Dims::new(shape, &stride)).ok()
    }

    /// Another view of the same storage from the same offset on, which is no parameter.
    fn with_dims(&self, dims: Dims) -> Result<Tensor, TensorFault> {
        let mut view = Tensor::view(self.storage.clone(), self.dtype, dims, self.storage_offset)?;
        view.requires_grad = self.requires_grad;
        view.pending = self.pending;
        Ok(view)
    }
}

/// Two's complement negation of a little-endian integer.
fn negate_integer(value: &mut [u8]) {
    let mut carry = true;
    for byte in value {
        let (sum, over) = (!*byte).overflowing_add(u8::from(carry));
        *byte = sum;
        carry = over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn views_gather_and_contiguous_tensors_borrow() {
        let storage = Storage::owned(floats(&[0., 1., 2., 3., 4., 5.]));
        let t = Tensor::from_storage(storage.clone(), DType::Float32, &[3, 2], &[1, 3], 0).unwrap();
        assert_eq!(*t.to_bytes().unwrap(), floats(&[0., 3., 1., 4., 2., 5.]));
        let row = t.select(1).unwrap();
        assert_eq!(
            (row.shape(), row.stride(), row.storage_offset()),
            (&[2][..], &[3][..], 1)
        );
        assert_eq!(*row.to_bytes().unwrap(), floats(&[1., 4.]));
        let flat = Tensor::from_storage(storage.clone(), DType::Float32, &[4], &[1], 2).unwrap();
        assert!(matches!(flat.to_bytes().unwrap(), Cow::Borrowed(_)));
        assert!(flat.storage().ptr_eq(t.storage()) && !flat.deep_copy().unwrap().storage().ptr_eq(&storage));
    }

    #[test]
    fn a_view_outside_its_storage_is_refused() {
        let storage = Storage::owned(vec![0; 60]);
        let error = Tensor::from_storage(storage, DType::Float32, &[4, 4], &[4, 1], 0).unwrap_err();
        assert_eq!(error.to_string(), "needs 64 bytes of storage ``, which has 60");
        let error = Tensor::from_bytes(DType::Int16, &[3], vec![0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "int16 of shape [3] is 6 bytes, found 5");
        let error = Tensor::from_bytes(DType::Int16, &[1], vec![0; 2])
            .unwrap()
            .select(1)
            .unwrap_err();
        assert_eq!(error.to_string(), "index 1 is out of range for a dimension of 1");
    }

    #[test]
    fn byte_order_and_the_lazy_bits_are_applied() {
        let big: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|v| v.to_be_bytes()).collect();
        let storage = Storage::owned(big).with_byte_order(ByteOrder::Big);
        let complex = Tensor::view(storage, DType::Complex64, Dims::new(&[1], &[1]), 0).unwrap();
        assert_eq!(*complex.to_bytes().unwrap(), floats(&[1.5, -2.0]));
        let conj = complex.with_pending(Pending {
            conj: true,
            neg: false,
        });
        assert_eq!(*conj.to_bytes().unwrap(), floats(&[1.5, 2.0]));
        let ints = Storage::owned(
            [5_i32, 0, i32::MIN]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
        );
        let ints = Tensor::view(ints, DType::Int32, Dims::new(&[3], &[1]), 0).unwrap();
        let neg = ints.with_pending(Pending {
            conj: false,
            neg: true,
        });
        let expected: Vec<u8> = [-5_i32, 0, i32::MIN]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        assert_eq!(*neg.to_bytes().unwrap(), expected);
    }

    /// Found by the fuzz target `roundtrip`: the product of the other sizes does not fit. torch has no such tensor either.
    #[test]
    fn sizes_that_overflow_before_a_zero_are_refused_and_behind_it_not() {
        let huge = 1 << 40;
        let empty = Tensor::from_bytes(DType::Float32, &[0, huge, huge], Vec::new()).unwrap();
        assert_eq!((empty.numel(), empty.nbytes()), (0, 0));
        assert!(empty.to_bytes().unwrap().is_empty());
        let error = Tensor::from_bytes(DType::Float32, &[huge, huge, 0], Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Layout(TensorFault::Overflow { .. })));
    }

    #[test]
    fn a_zero_stride_bomb_is_listed_but_not_gathered() {
        let storage = Storage::owned(vec![0; 4]);
        let bomb = Tensor::from_storage(storage, DType::Float32, &[1 << 40], &[0], 0).unwrap();
        assert_eq!(bomb.nbytes(), 1 << 42);
        assert!(matches!(bomb.to_bytes(), Err(Error::Limit { .. })));
    }
}
