//! A tensor's elements in order, in pieces that the caller chooses.

use std::ops::Range;

use crc32fast::Hasher;

use crate::{Error, Tensor};

/// Reads a tensor's elements, contiguous and little-endian, from one on to the last. See [`Tensor::reader_at`].
#[derive(Debug)]
pub struct TensorReader {
    tensor: Tensor,
    way: Way,
    /// Elements that are still to come.
    left: usize,
}

#[derive(Debug)]
enum Way {
    /// Straight from the file into the caller's memory. `at` in bytes of the storage.
    Plain { at: usize, crc: Option<(Hasher, u32)> },
    /// From a file that is mapped, element by element. `at` in elements of the view.
    Mapped { at: usize },
    /// From all bytes between the first element and the last, in memory.
    Held { bytes: Vec<u8>, at: usize },
}

impl TensorReader {
    pub(crate) fn new(tensor: Tensor, start: usize) -> Result<TensorReader, Error> {
        let storage = tensor.storage();
        let left = tensor.numel().saturating_sub(start);
        let size = tensor.dtype().size();
        let touched = tensor.touched();
        let way = if tensor.is_contiguous() && storage.is_plain() {
            let is_whole = start == 0 && touched == (0..storage.nbytes());
            let crc = storage.pending_crc().filter(|_| is_whole);
            if crc.is_none() && left > 0 {
                storage.verify()?;
            }
            Way::Plain {
                at: touched.start + start * size,
                crc: crc.map(|expected| (Hasher::new(), expected)),
            }
        } else if storage.is_plain() && storage.as_slice().is_some() {
            storage.verify()?;
            Way::Mapped { at: start }
        } else {
            Way::Held {
                bytes: storage.read(touched)?.into_owned(),
                at: start,
            }
        };
        Ok(TensorReader { tensor, way, left })
    }

    /// Fills `out` with the next elements, of which it holds a whole number.
    ///
    /// # Errors
    /// The file cannot be read, was changed, or does not have the bytes that its own CRC tells of, which is known at the last element.
    ///
    /// # Panics
    /// There are fewer elements than `out` asks for, or it ends within one.
    pub fn read(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let size = self.tensor.dtype().size();
        assert!(out.len().is_multiple_of(size), "whole elements of {size} bytes");
        let n = out.len() / size;
        assert!(n <= self.left, "{n} elements of the {} that are left", self.left);
        if n == 0 {
            return Ok(());
        }
        let storage = self.tensor.storage();
        match &mut self.way {
            Way::Plain { at, crc } => {
                storage.read_into(*at, out)?;
                *at += out.len();
                if let Some((hasher, _)) = crc {
                    hasher.update(out);
                }
            }
            Way::Mapped { at } => {
                let touched = self.tensor.touched();
                let bytes = storage.as_slice().and_then(|bytes| bytes.get(touched));
                gather(&self.tensor, bytes.unwrap_or_default(), *at..*at + n, out);
                *at += n;
            }
            Way::Held { bytes, at } => {
                gather(&self.tensor, bytes, *at..*at + n, out);
                *at += n;
            }
        }
        self.tensor.finish(out);
        self.left -= n;
        if self.left == 0 {
            self.end()?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let storage = self.tensor.storage();
        if let Way::Plain { crc, .. } = &mut self.way
            && let Some((hasher, expected)) = crc.take()
        {
            storage.judge(hasher.finalize(), expected)?;
        }
        storage.check_unchanged()
    }
}

/// Copies the elements `range` of the view, in row-major order, out of the bytes from its first element to its last.
fn gather(tensor: &Tensor, bytes: &[u8], range: Range<usize>, out: &mut [u8]) {
    let size = tensor.dtype().size();
    let (shape, stride) = (tensor.shape(), tensor.stride());
    // The innermost dimension with more than one element makes rows.
    let Some(inner) = shape.iter().rposition(|&len| len != 1) else {
        return out.copy_from_slice(&bytes[..size]);
    };
    let (row_len, row_step) = (shape[inner], stride[inner]);
    let mut at = range.start;
    let mut out = out;
    while at < range.end {
        let (row, first) = (at / row_len, at % row_len);
        let n = (row_len - first).min(range.end - at);
        let mut start = first * row_step;
        let mut rest = row;
        for dim in (0..inner).rev() {
            start += rest % shape[dim] * stride[dim];
            rest /= shape[dim];
        }
        let (now, later) = out.split_at_mut(n * size);
        let from = &bytes[start * size..];
        match (row_step, size) {
            (1, _) => now.copy_from_slice(&from[..n * size]),
            (_, 2) => strided::<2>(from, row_step, now),
            (_, 4) => strided::<4>(from, row_step, now),
            (_, 8) => strided::<8>(from, row_step, now),
            (_, size) => {
                for (i, element) in now.chunks_exact_mut(size).enumerate() {
                    let at = i * row_step * size;
                    element.copy_from_slice(&from[at..at + size]);
                }
            }
        }
        out = later;
        at += n;
    }
}

/// Elements of a size that is known, `step` elements apart.
fn strided<const SIZE: usize>(from: &[u8], step: usize, out: &mut [u8]) {
    let elements = from.as_chunks::<SIZE>().0;
    let mut at = 0;
    for element in out.as_chunks_mut::<SIZE>().0 {
        *element = elements[at];
        at += step;
    }
}

#[cfg(test)]
mod tests {
    use crate::storage::ByteOrder;
    use crate::{DType, Storage, Tensor};

    fn check(tensor: &Tensor) {
        let whole = tensor.to_bytes().unwrap();
        let size = tensor.dtype().size();
        for start in [0, 1, tensor.numel() / 2, tensor.numel()] {
            for step in [1, 3, 7, tensor.numel().max(1)] {
                let mut reader = tensor.reader_at(start).unwrap();
                let mut bytes = vec![0; whole.len() - start * size];
                for piece in bytes.chunks_mut(step * size) {
                    reader.read(piece).unwrap();
                }
                assert_eq!(bytes, whole[start * size..], "{tensor:?} from {start} by {step}");
            }
        }
    }

    #[test]
    fn chopped_reads_equal_whole_reads() {
        for dtype in [
            DType::Uint8,
            DType::BFloat16,
            DType::Float32,
            DType::Int64,
            DType::Complex128,
        ] {
            let n = 2 * 3 * 4 * 5;
            let bytes: Vec<u8> = (0..n * dtype.size()).map(|i| (i * 7 % 251) as u8).collect();
            for order in [ByteOrder::Little, ByteOrder::Big] {
                let storage = Storage::owned(bytes.clone()).with_byte_order(order);
                let tensor = Tensor::contiguous(storage, dtype, &[2, 3, 4, 5]).unwrap();
                check(&tensor);
                for dims in [[3, 2, 1, 0], [0, 2, 1, 3], [1, 0, 3, 2], [2, 3, 0, 1]] {
                    let view = tensor.permute(&dims).unwrap();
                    check(&view);
                    check(&view.slice_in(1, 1, 1, 1).unwrap());
                    check(&view.slice_in(3, 0, 1, 2).unwrap().slice_in(0, 1, 1, 1).unwrap());
                }
                check(&tensor.slice_in(3, 1, 2, 2).unwrap());
                check(&tensor.select(1).unwrap());
            }
        }
    }

    #[test]
    fn views_are_those_that_torch_allows() {
        let tensor = Tensor::from_bytes(DType::Uint8, &[2, 3, 4], (0..24).collect()).unwrap();
        let check_view = |tensor: &Tensor, shape: &[usize], expected: Option<&[usize]>| {
            let view = tensor.view_as(shape);
            assert_eq!(view.as_ref().map(Tensor::stride), expected, "{shape:?}");
            if let Some(view) = view {
                assert_eq!(view.to_bytes().unwrap(), tensor.to_bytes().unwrap());
            }
        };
        check_view(&tensor, &[6, 4], Some(&[4, 1]));
        check_view(&tensor, &[2, 2, 6], Some(&[12, 6, 1]));
        check_view(&tensor, &[5, 5], None);
        let swapped = tensor.permute(&[1, 0, 2]).unwrap();
        check_view(&swapped, &[6, 4], None);
        check_view(&swapped, &[3, 2, 2, 2], Some(&[4, 12, 2, 1]));
        check_view(&swapped, &[3, 1, 2, 4], Some(&[4, 24, 12, 1]));
        let sliced = tensor.slice_in(2, 0, 2, 1).unwrap();
        check_view(&sliced, &[6, 2], Some(&[4, 1]));
        check_view(&sliced, &[12], None);
    }
}
