//! Two tensors, or one, piece by piece.

use pth::{DType, Error, Tensor};

use super::elements::{self, BLOCK, Numbers, Sums};
use super::options::Tolerance;
use crate::lazy::{convert, is_convertible, to_f64};

/// Bytes of the wider of two tensors that are read at once: enough for the disk, and both pieces stay in the second cache or near.
/// A whole number of blocks of every type.
const PIECE_BYTES: usize = 1 << 20;

/// What came of comparing two tensors of one shape.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) sums: Sums,
    /// Whether B is what a conversion of A to B's type gives.
    pub(super) is_cast: bool,
    /// Whether A is what a conversion of B to A's type gives.
    pub(super) is_cast_back: bool,
}

/// Whether numbers of the two types can be set side by side.
pub(super) fn are_comparable(a: DType, b: DType) -> bool {
    a == b || (is_convertible(a) && is_convertible(b))
}

/// Compares tensors of one shape and of comparable types.
pub(super) fn compare(a: &Tensor, b: &Tensor, tolerance: Tolerance) -> Result<Comparison, Error> {
    let (from, to) = (a.dtype(), b.dtype());
    let mut found = Comparison {
        sums: Sums::new(),
        is_cast: from != to,
        is_cast_back: from != to,
    };
    let mut converted = Vec::new();
    for_each_piece(a, b, |x, y| {
        elements::add((from, x), (to, y), tolerance, &mut found.sums);
        found.is_cast = found.is_cast && is_conversion((from, x), (to, y), &mut converted);
        found.is_cast_back = found.is_cast_back && is_conversion((to, y), (from, x), &mut converted);
        true
    })?;
    Ok(found)
}

/// Whether both hold the same bytes in row-major order, whatever their shapes; of the first difference nothing more is read.
pub(super) fn same_bytes(a: &Tensor, b: &Tensor) -> Result<bool, Error> {
    let mut is_same = a.dtype() == b.dtype() && a.numel() == b.numel();
    if is_same {
        for_each_piece(a, b, |x, y| {
            is_same = x == y;
            is_same
        })?;
    }
    Ok(is_same)
}

/// Passes both tensors' elements on side by side, as long as `each` says so.
fn for_each_piece(a: &Tensor, b: &Tensor, mut each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error> {
    a.check_expansion()?;
    b.check_expansion()?;
    let (size_a, size_b) = (a.dtype().size(), b.dtype().size());
    let step = PIECE_BYTES / size_a.max(size_b);
    let n = a.numel();
    let (mut bytes_a, mut bytes_b) = (vec![0; step.min(n) * size_a], vec![0; step.min(n) * size_b]);
    let (mut reader_a, mut reader_b) = (a.reader_at(0)?, b.reader_at(0)?);
    let mut at = 0;
    while at < n {
        let now = step.min(n - at);
        let (x, y) = (&mut bytes_a[..now * size_a], &mut bytes_b[..now * size_b]);
        reader_a.read(x)?;
        reader_b.read(y)?;
        if !each(x, y) {
            return Ok(());
        }
        at += now;
    }
    Ok(())
}

/// Whether `b` is `a` converted. Not-a-numbers may differ in their payload, which conversions do not agree about.
fn is_conversion(a: (DType, &[u8]), b: (DType, &[u8]), converted: &mut Vec<u8>) -> bool {
    converted.clear();
    converted.resize(b.1.len(), 0);
    convert(a.0, b.0, a.1, converted);
    if converted.as_slice() == b.1 {
        return true;
    }
    let size = b.0.size();
    let mut pairs = converted.chunks_exact(size).zip(b.1.chunks_exact(size));
    pairs.all(|(x, y)| {
        let is_nan = |element: &[u8]| {
            let mut value = [0.0];
            to_f64(b.0, element, &mut value);
            value[0].is_nan()
        };
        x == y || (is_nan(x) && is_nan(y))
    })
}

/// What is hashed of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hashed {
    /// Its bytes.
    Bytes,
    /// What a conversion to this type gives, be it its own. All not-a-numbers are one, for conversions do not agree about them.
    Converted(DType),
}

/// Reads one tensor: the tally of its elements, and a hash if that is asked for.
pub(super) fn survey(
    tensor: &Tensor,
    hashed: Option<Hashed>,
) -> Result<(elements::Tally, Option<blake3::Hash>), Error> {
    tensor.check_expansion()?;
    let dtype = tensor.dtype();
    let is_tallied = matches!(Numbers::of(dtype), Numbers::Float | Numbers::Complex(_));
    let mut sums = Sums::new();
    let mut hasher = hashed.map(|_| blake3::Hasher::new());
    if !is_tallied && hasher.is_none() {
        return Ok((sums.a, None));
    }
    let to = match hashed {
        Some(Hashed::Converted(to)) => to,
        Some(Hashed::Bytes) | None => dtype,
    };
    let step = PIECE_BYTES / to.size().max(dtype.size());
    let mut left = tensor.numel();
    let mut bytes = vec![0; step.min(left) * dtype.size()];
    let mut converted = Vec::new();
    let mut reader = tensor.reader_at(0)?;
    while left > 0 {
        let now = step.min(left);
        let piece = &mut bytes[..now * dtype.size()];
        reader.read(piece)?;
        if is_tallied {
            elements::add((dtype, piece), (dtype, piece), Tolerance::Exact, &mut sums);
        }
        if let Some(hasher) = &mut hasher {
            if matches!(hashed, Some(Hashed::Converted(_))) {
                converted.clear();
                converted.resize(now * to.size(), 0);
                if to == dtype {
                    converted.copy_from_slice(piece);
                } else {
                    convert(dtype, to, piece, &mut converted);
                }
                unify_nans(to, &mut converted);
                hasher.update(&converted);
            } else {
                hasher.update(piece);
            }
        }
        left -= now;
    }
    Ok((sums.a, hasher.map(|hasher| hasher.finalize())))
}

/// Gives all not-a-numbers the same bits: all ones, which is one of them in every type.
fn unify_nans(dtype: DType, bytes: &mut [u8]) {
    let mut block = [0.0; BLOCK];
    for bytes in bytes.chunks_mut(BLOCK * dtype.size()) {
        let values = &mut block[..bytes.len() / dtype.size()];
        to_f64(dtype, bytes, values);
        if values.iter().any(|value| value.is_nan()) {
            for (element, value) in bytes.chunks_exact_mut(dtype.size()).zip(&*values) {
                if value.is_nan() {
                    element.fill(0xff);
                }
            }
        }
    }
}
