//! Shape, stride and extent arithmetic, in elements and always checked: the numbers come from a file.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

/// Number of elements of `shape`; none if it does not fit.
///
/// Multiplied from the left, as torch does: sizes that overflow before a zero is reached are those of no tensor.
pub(crate) fn numel(shape: &[usize]) -> Option<usize> {
    let fits = |product: &usize| isize::try_from(*product).is_ok();
    shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size).filter(fits))
}

/// The strides of a row-major tensor, as torch computes them (an empty dimension counts as one).
pub(crate) fn contiguous_stride(shape: &[usize]) -> Vec<usize> {
    let mut stride = vec![1; shape.len()];
    fill_contiguous_stride(shape, &mut stride);
    stride
}

/// As [`contiguous_stride`], into as many places.
pub(crate) fn fill_contiguous_stride(shape: &[usize], stride: &mut [usize]) {
    let mut next = 1_usize;
    for (slot, &size) in stride.iter_mut().zip(shape).rev() {
        *slot = next;
        // Only of an empty tensor can it not fit; torch counts in 64 bits with a sign.
        next = next.saturating_mul(size.max(1)).min(isize::MAX.unsigned_abs());
    }
}

/// Whether the elements lie row-major without gaps; strides of dimensions of one element do not matter.
pub(crate) fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1_usize;
    for (&size, &step) in shape.iter().zip(stride).rev() {
        if size != 1 {
            if step != expected {
                return false;
            }
            expected = expected.saturating_mul(size);
        }
    }
    true
}

/// The strides under which the elements of a view, in their order, have the sizes `new`; none where no strides do.
///
/// [torch: computeStride in aten/src/ATen/TensorUtils.cpp]
pub(crate) fn view_stride(shape: &[usize], stride: &[usize], new: &[usize]) -> Option<Vec<usize>> {
    let count = numel(shape)?;
    if numel(new)? != count {
        return None;
    }
    if count == 0 && shape == new {
        return Some(stride.to_vec());
    }
    if count == 0 {
        return Some(contiguous_stride(new));
    }
    let mut new_stride = vec![1; new.len()];
    let mut slots = new_stride.iter_mut().zip(new).rev().peekable();
    // From the innermost outwards: groups of old dimensions that lie densely in each other are cut up anew, each for itself.
    let mut old = shape
        .iter()
        .zip(stride)
        .rev()
        .filter(|(size, _)| **size != 1)
        .peekable();
    while let Some((&size, &base)) = old.next() {
        let mut group = size;
        while let Some((&size, _)) = old.next_if(|(_, step)| Some(**step) == group.checked_mul(base)) {
            group = group.checked_mul(size)?;
        }
        let mut taken = 1_usize;
        while let Some((slot, &size)) = slots.next_if(|(_, size)| taken < group || **size == 1) {
            *slot = taken.checked_mul(base)?;
            taken = taken.checked_mul(size)?;
        }
        if taken != group {
            return None;
        }
    }
    // What is left has one element each; the number of elements is the same.
    Some(new_stride)
}

/// One past the last element that the view touches; zero for an empty view. None if it does not fit.
pub(crate) fn extent(shape: &[usize], stride: &[usize], storage_offset: usize) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = storage_offset;
    for (&size, &step) in shape.iter().zip(stride) {
        last = size.checked_sub(1)?.checked_mul(step)?.checked_add(last)?;
    }
    last.checked_add(1)
}

/// Calls `run(start, len)` for each run of consecutive elements of the view, in row-major order.
///
/// The caller has proven `extent` to lie inside the storage, so that no sum here can overflow.
pub(crate) fn for_each_run<E>(
    shape: &[usize],
    stride: &[usize],
    storage_offset: usize,
    mut run: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    if shape.contains(&0) {
        return Ok(());
    }
    // The trailing dimensions that are dense together form the run.
    let mut run_len = 1_usize;
    let mut outer: Vec<(usize, usize)> = Vec::with_capacity(shape.len());
    for (&size, &step) in shape.iter().zip(stride).rev() {
        if size == 1 {
            continue;
        }
        if outer.is_empty() && step == run_len {
            run_len = run_len.saturating_mul(size);
        } else {
            outer.push((size, step));
        }
    }
    // `outer` is innermost first. An odometer over it:
    let mut index = vec![0_usize; outer.len()];
    let mut start = storage_offset;
    loop {
        run(start, run_len)?;
        let mut done = true;
        for (digit, &(size, step)) in index.iter_mut().zip(&outer) {
            *digit = digit.saturating_add(1);
            if *digit < size {
                start = start.saturating_add(step);
                done = false;
                break;
            }
            start = start.saturating_sub(step.saturating_mul(size.saturating_sub(1)));
            *digit = 0;
        }
        if done {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests may panic"
)]
mod tests {
    use super::*;

    /// Obviously right: every index, by division, in row-major order.
    fn naive(shape: &[usize], stride: &[usize], offset: usize) -> Vec<usize> {
        let n: usize = shape.iter().product();
        (0..n)
            .map(|flat| {
                let mut rest = flat;
                let mut element = offset;
                for d in (0..shape.len()).rev() {
                    element += rest % shape[d] * stride[d];
                    rest /= shape[d];
                }
                element
            })
            .collect()
    }

    fn gathered(shape: &[usize], stride: &[usize], offset: usize) -> Vec<usize> {
        let mut elements = Vec::new();
        for_each_run(shape, stride, offset, |start, len| {
            elements.extend(start..start + len);
            Ok::<(), ()>(())
        })
        .unwrap();
        elements
    }

    #[test]
    fn runs_equal_the_naive_walk() {
        let sizes = [0, 1, 2, 3];
        let steps = [0, 1, 2, 3, 6, 7];
        for a in sizes {
            for b in sizes {
                for c in sizes {
                    for s in steps {
                        for t in steps {
                            for u in steps {
                                let (shape, stride) = ([a, b, c], [s, t, u]);
                                assert_eq!(gathered(&shape, &stride, 5), naive(&shape, &stride, 5));
                                let touched = naive(&shape, &stride, 5).into_iter().max();
                                let expected = touched.map_or(0, |last| last + 1);
                                assert_eq!(extent(&shape, &stride, 5), Some(expected));
                                let dense = naive(&shape, &stride, 0) == (0..a * b * c).collect::<Vec<_>>();
                                assert_eq!(is_contiguous(&shape, &stride), dense, "{shape:?} {stride:?}");
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(gathered(&[], &[], 4), [4]);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(numel(&[usize::MAX, 2]), None);
        assert_eq!(numel(&[usize::MAX, 2, 0]), None);
        assert_eq!(numel(&[0, usize::MAX, 2]), Some(0));
        assert_eq!(extent(&[2, 2], &[usize::MAX, 1], 1), None);
        assert_eq!(contiguous_stride(&[2, 0, 3]), [3, 3, 1]);
    }
}
