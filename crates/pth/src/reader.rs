//! A tensor's elements one after the other, without the tensor in memory.

use flate2::read::DeflateDecoder;

use crate::error::TensorFault;
use crate::gather::Strided;
use crate::storage::{SourceReader, fill};
use crate::{Error, Tensor};

/// The contiguous little-endian form of a tensor, part by part; made by [`Tensor::reader_at`].
///
/// Contiguous tensors go from the file into the caller's memory. Views with gaps are gathered from the map (where the file is not
/// mapped, or the storage deflated, from a copy of the bytes between their first and last element).
#[derive(Debug)]
pub struct TensorReader {
    tensor: Tensor,
    /// Bytes of the contiguous form that have passed.
    at: usize,
    way: Way,
    /// What the bytes on the way are to be compared with at the end.
    crc: Option<(crc32fast::Hasher, u32)>,
}

#[derive(Debug)]
enum Way {
    /// The bytes lie in the file in order.
    InOrder,
    /// So they do once they are inflated.
    Inflated(Box<DeflateDecoder<SourceReader>>),
    /// They are gathered from where they lie in memory.
    Gathered(Strided),
    /// They are gathered from the bytes from the first to the last element.
    Held(Strided, Vec<u8>),
}

impl Tensor {
    /// Reads the tensor from its element `start` on (in row-major order), part by part.
    ///
    /// The CRC of the storage is checked on the way where the whole of it is read, else before.
    ///
    /// # Errors
    /// `start` is behind the last element. The storage is promised, cannot be read, or does not have the bytes that its own CRC tells of.
    pub fn reader_at(&self, start: usize) -> Result<TensorReader, Error> {
        let storage = self.storage();
        storage.check_made()?;
        if start > self.numel() {
            return Err(Error::Layout(TensorFault::NoSuchIndex {
                index: start,
                size: self.numel(),
            }));
        }
        let at = start * self.dtype().size();
        let touched = self.touched();
        let is_in_order = self.is_contiguous();
        let is_whole = is_in_order && start == 0 && self.numel() > 0 && touched == (0..storage.nbytes());
        let crc = if is_whole {
            let expected = storage.unverified_crc();
            expected.map(|expected| (crc32fast::Hasher::new(), expected))
        } else {
            storage.verify()?;
            None
        };
        let strided = || Strided::new(self.shape(), self.stride(), self.dtype().size());
        let way = match storage.compressed() {
            None if is_in_order => Way::InOrder,
            Some(range) if is_in_order => {
                let reader = SourceReader::new(storage.source(), range.clone());
                let mut decoder = Box::new(DeflateDecoder::new(reader));
                let mut passed = [0; 1 << 13];
                let mut left = touched.start + at;
                while left > 0 {
                    let n = left.min(passed.len());
                    inflate(self, &mut decoder, &mut passed[..n])?;
                    left -= n;
                }
                Way::Inflated(decoder)
            }
            None if storage.as_slice().is_some() => Way::Gathered(strided()),
            _ => Way::Held(strided(), storage.read(touched)?.into_owned()),
        };
        Ok(TensorReader {
            tensor: self.clone(),
            at,
            way,
            crc,
        })
    }
}

impl TensorReader {
    /// Fills `out` with the next elements.
    ///
    /// # Errors
    /// `out` is no whole number of elements, or more than are left. The file cannot be read, or, with the last element, was changed,
    /// or does not have the bytes that its own CRC tells of.
    pub fn read(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let tensor = &self.tensor;
        let size = tensor.dtype().size();
        let left = tensor.nbytes() - self.at;
        if !out.len().is_multiple_of(size) || out.len() > left {
            let n = out.len();
            let fault = format!("a read of {n} bytes, where {left} are left in elements of {size}");
            return Err(Error::Layout(TensorFault::Malformed(fault)));
        }
        if out.is_empty() {
            return Ok(());
        }
        let storage = tensor.storage();
        let base = tensor.storage_offset() * size;
        match &mut self.way {
            Way::InOrder => storage.read_at(base + self.at, out)?,
            Way::Inflated(decoder) => inflate(tensor, decoder, out)?,
            Way::Gathered(strided) => {
                let source = storage
                    .as_slice()
                    .expect("it was in memory when the reader was made");
                strided.fill(source, base, self.at / size, out);
            }
            Way::Held(strided, bytes) => strided.fill(bytes, 0, self.at / size, out),
        }
        if let Some((hasher, _)) = &mut self.crc {
            hasher.update(out);
        }
        tensor.finish(out);
        self.at += out.len();
        if self.at < tensor.nbytes() {
            return Ok(());
        }
        if let Way::Inflated(decoder) = &mut self.way {
            check_end(tensor, decoder)?;
        }
        storage.check_unchanged()?;
        match self.crc.take() {
            Some((hasher, expected)) => storage.judge(hasher.finalize(), expected),
            None => Ok(()),
        }
    }
}

fn damaged(tensor: &Tensor, fault: String) -> Error {
    Error::container(format!("data/{}", tensor.storage().key()), fault)
}

fn inflate(tensor: &Tensor, decoder: &mut DeflateDecoder<SourceReader>, out: &mut [u8]) -> Result<(), Error> {
    let n = fill(decoder, out).map_err(|error| damaged(tensor, format!("it cannot be inflated: {error}")))?;
    if n == out.len() {
        return Ok(());
    }
    let fault = format!(
        "it inflates to {} bytes, declared are {}",
        decoder.total_out(),
        tensor.storage().nbytes()
    );
    Err(damaged(tensor, fault))
}

/// A storage that is read to its end has not a byte more than the directory declares.
fn check_end(tensor: &Tensor, decoder: &mut DeflateDecoder<SourceReader>) -> Result<(), Error> {
    let declared = tensor.storage().nbytes();
    if decoder.total_out() != u64::try_from(declared).unwrap_or(u64::MAX) {
        return Ok(());
    }
    let more = fill(decoder, &mut [0])
        .map_err(|error| damaged(tensor, format!("it cannot be inflated: {error}")))?;
    if more == 0 {
        return Ok(());
    }
    let fault = format!("it inflates to more bytes, declared are {declared}");
    Err(damaged(tensor, fault))
}

#[cfg(test)]
mod tests {
    use crate::storage::ByteOrder;
    use crate::tensor::Pending;
    use crate::{DType, Storage, Tensor};

    /// `to_bytes` has tests of its own for these.
    #[test]
    fn byte_order_and_the_lazy_bits_are_applied_to_each_part() {
        let bytes: Vec<u8> = (0..960_u32).map(|i| (i * 37 % 251) as u8).collect();
        for dtype in [DType::Complex64, DType::Int16, DType::Float64, DType::Uint8] {
            let rows = 960 / dtype.size() / 6;
            for order in [ByteOrder::Big, ByteOrder::Little] {
                let storage = Storage::owned(bytes.clone()).with_byte_order(order);
                for stride in [[6, 1], [1, rows]] {
                    for (conj, neg) in [(false, false), (true, false), (true, true), (false, true)] {
                        let tensor =
                            Tensor::from_storage(storage.clone(), dtype, &[rows, 6], &stride, 0).unwrap();
                        let tensor = tensor.with_pending(Pending { conj, neg });
                        let expected = tensor.to_bytes().unwrap();
                        let mut reader = tensor.reader_at(0).unwrap();
                        let mut found = vec![0; expected.len()];
                        let (head, tail) = found.split_at_mut(7 * dtype.size());
                        reader.read(head).unwrap();
                        reader.read(tail).unwrap();
                        assert_eq!(found, *expected, "{tensor:?}");
                    }
                }
            }
        }
        let complex = Tensor::from_bytes(DType::Complex64, &[60, 2], bytes).unwrap();
        let complex = complex.with_pending(Pending {
            conj: true,
            neg: false,
        });
        assert_eq!(complex.permute(&[1, 0]).unwrap().pending(), complex.pending());
        assert_eq!(complex.view_as(&[120]).unwrap().pending(), complex.pending());
    }
}
