//! Weighted sums on the stream.

use pth::DType;

use super::convert::{from_f64, to_f64};

/// Elements that are added at once: all of a block's numbers stay in the first cache.
pub(super) const BLOCK: usize = 1024;

/// One term's bytes and its weight.
pub(super) struct Term<'b> {
    pub(super) weight: f64,
    pub(super) dtype: DType,
    pub(super) bytes: &'b [u8],
}

/// Adds the terms in order in float64, rounds once to `dtype`; returns whether all results are numbers.
pub(super) fn add(dtype: DType, terms: &[Term<'_>], out: &mut [u8]) -> bool {
    pulp::Arch::new().dispatch(Add { dtype, terms, out })
}

struct Add<'a, 'b> {
    dtype: DType,
    terms: &'a [Term<'b>],
    out: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Add<'_, '_> {
    type Output = bool;

    #[inline(always)]
    fn call(self) -> bool {
        let Add { dtype, terms, out } = self;
        let (mut sum, mut values) = ([0.0_f64; BLOCK], [0.0_f64; BLOCK]);
        let mut is_clean = true;
        for (block, out) in out.chunks_mut(BLOCK * dtype.size()).enumerate() {
            let n = out.len() / dtype.size();
            let (sum, values) = (&mut sum[..n], &mut values[..n]);
            for (i, term) in terms.iter().enumerate() {
                let start = block * BLOCK * term.dtype.size();
                let bytes = &term.bytes[start..start + n * term.dtype.size()];
                to_f64(term.dtype, bytes, values);
                if i == 0 {
                    sum.iter_mut()
                        .zip(&*values)
                        .for_each(|(sum, value)| *sum = term.weight * value);
                } else {
                    sum.iter_mut()
                        .zip(&*values)
                        .for_each(|(sum, value)| *sum += term.weight * value);
                }
            }
            // NaN is what is not equal to itself.
            is_clean &= !sum.iter().fold(false, |any, value| any | value.is_nan());
            from_f64(dtype, sum, out);
        }
        is_clean
    }
}
