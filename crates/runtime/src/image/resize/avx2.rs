//! The two passes of the resize with AVX2, in the same arithmetic.
//!
//! A weight has 23 bits and the multiply-add of AVX2 takes 16, so that each is split as `high * 4096 + low`; the sums
//! of both parts are exact in 32 bits (the shifted one may wrap, the total does not), and so the total is exact.
//!
//! `unsafe` here is the unaligned loads and stores and the call into code that needs AVX2.

use std::arch::x86_64::*;

use super::column_sums_scalar;
use super::taps::{LOW_BITS, PRECISION_BITS, Taps};

/// Whether this processor has AVX2; the standard library remembers the answer.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// As the scalar pass of the same name.
///
/// # Panics
/// Where `row` does not reach [`Taps::reach`] samples beyond the last window, or `out` is short.
pub(super) fn horizontal(row: &[u8], base: usize, taps: &Taps, out: &mut [u8]) {
    let span = taps.span();
    assert!(is_available());
    assert!(base <= span.start && row.len() >= (span.end - base + taps.reach()) * 4);
    assert!(out.len() >= taps.windows.len() * 4);
    // SAFETY: AVX2 is there; every window lies in the span, and its last group of four taps ends at most three samples
    // behind it.
    unsafe { horizontal_avx2(row, base, taps, out) };
}

#[target_feature(enable = "avx2")]
unsafe fn horizontal_avx2(row: &[u8], base: usize, taps: &Taps, out: &mut [u8]) {
    let n_groups = taps.stride / 4;
    // Bytes of pixels 0..4 as pairs per channel: (r0 r1)(g0 g1)(b0 b1)(x0 x1) and the same of pixels 2 and 3.
    let pairs = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    let half = _mm_set1_epi32(1 << (PRECISION_BITS - 1));
    for ((out_idx, (start, n_taps)), pixel) in taps.windows.iter().enumerate().zip(out.chunks_exact_mut(4)) {
        let mut high = _mm256_setzero_si256();
        let mut low = _mm256_setzero_si256();
        for group in 0..n_taps.div_ceil(4) {
            // SAFETY: the caller proves that the group's four pixels, 16 bytes, lie inside; a group of weights has 64
            // bytes, and there are `n_groups` of them per output sample.
            let (pixels, high_weights, low_weights) = unsafe {
                let at = row.as_ptr().add((start - base + group * 4) * 4);
                let weights = taps
                    .groups
                    .as_ptr()
                    .add(out_idx * n_groups + group)
                    .cast::<__m256i>();
                (
                    _mm_loadu_si128(at.cast()),
                    _mm256_loadu_si256(weights),
                    _mm256_loadu_si256(weights.add(1)),
                )
            };
            let wide = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(pixels, pairs));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(wide, high_weights));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(wide, low_weights));
        }
        let total = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low);
        let sum = _mm_add_epi32(
            _mm256_castsi256_si128(total),
            _mm256_extracti128_si256::<1>(total),
        );
        let value = _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm_add_epi32(sum, half));
        let packed = _mm_packus_epi16(_mm_packs_epi32(value, value), _mm_setzero_si128());
        pixel.copy_from_slice(&_mm_cvtsi128_si32(packed).to_le_bytes());
    }
}

/// As the scalar pass of the same name.
pub(super) fn column_sums(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    assert!(is_available());
    assert!(weights.is_empty() || source.len() >= (weights.len() - 1) * row_bytes + out.len());
    const STEP: usize = 32;
    let n_vector = out.len() / STEP * STEP;
    // SAFETY: AVX2 is there, and `n_vector` bytes of every row lie inside both slices.
    unsafe { column_sums_avx2(source, row_bytes, weights, &mut out[..n_vector]) };
    if n_vector < out.len() {
        column_sums_scalar(&source[n_vector..], row_bytes, weights, &mut out[n_vector..]);
    }
}

#[target_feature(enable = "avx2")]
unsafe fn column_sums_avx2(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    let pack = |first: i32, second: i32| _mm256_set1_epi32((second << 16) | (first & 0xffff));
    let mask = (1 << LOW_BITS) - 1;
    let zero = _mm256_setzero_si256();
    let half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    for (x, out) in out.chunks_exact_mut(32).enumerate() {
        let mut high = [zero; 4];
        let mut low = [zero; 4];
        for (pair, weights) in weights.chunks(2).enumerate() {
            let (first, second) = (weights[0], weights.get(1).copied().unwrap_or(0));
            let second_row = pair * 2 + (weights.len() - 1).min(1);
            // SAFETY: the caller proves that `out.len()` bytes of each of `weights.len()` rows lie inside.
            let (a, b) = unsafe {
                let at = source.as_ptr().add(x * 32);
                (
                    _mm256_loadu_si256(at.add(pair * 2 * row_bytes).cast()),
                    _mm256_loadu_si256(at.add(second_row * row_bytes).cast()),
                )
            };
            let high_weights = pack(first >> LOW_BITS, second >> LOW_BITS);
            let low_weights = pack(first & mask, second & mask);
            let (left, right) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let wide = [
                _mm256_unpacklo_epi8(left, zero),
                _mm256_unpackhi_epi8(left, zero),
                _mm256_unpacklo_epi8(right, zero),
                _mm256_unpackhi_epi8(right, zero),
            ];
            for quarter in 0..4 {
                high[quarter] =
                    _mm256_add_epi32(high[quarter], _mm256_madd_epi16(wide[quarter], high_weights));
                low[quarter] = _mm256_add_epi32(low[quarter], _mm256_madd_epi16(wide[quarter], low_weights));
            }
        }
        let mut value = [zero; 4];
        for quarter in 0..4 {
            let total = _mm256_add_epi32(
                _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[quarter]),
                low[quarter],
            );
            value[quarter] = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(total, half));
        }
        // Packing undoes the unpacking, lane by lane.
        let bytes = _mm256_packus_epi16(
            _mm256_packs_epi32(value[0], value[1]),
            _mm256_packs_epi32(value[2], value[3]),
        );
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
}
