//! The two passes of the resize with AVX-512 and its dot products of bytes (VNNI), in the same arithmetic.
//!
//! A weight is three balanced digits to the base 256, each a signed byte; one instruction multiplies four unsigned pixel
//! bytes by four digits and adds all to a 32-bit sum, exactly. The sums of the three digits are put together at the end.
//!
//! `unsafe` here is the loads and stores and the call into code that needs these instructions.

use std::arch::x86_64::*;

use super::PIXEL;
use super::taps::{PRECISION_BITS, Taps};

/// Whether this processor has the instructions; the standard library remembers the answer.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Rows that the horizontal pass takes at once.
pub(super) const ROWS: usize = 4;

/// Filters up to [`ROWS`] rows along x. Each of `rows` begins with sample `base` of the region; output row `n` begins
/// at `n * out_stride` of `out`.
///
/// # Panics
/// Where a row does not reach [`Taps::reach`] samples beyond the last window, or `out` is short.
pub(super) fn horizontal(rows: &[&[u8]], base: usize, taps: &Taps, out: &mut [u8], out_stride: usize) {
    let span = taps.span();
    let (n_rows, out_bytes) = (rows.len(), taps.windows.len() * PIXEL);
    assert!(is_available());
    assert!((1..=ROWS).contains(&n_rows) && base <= span.start);
    let n_bytes = (span.end - base + taps.reach()) * PIXEL;
    assert!(rows.iter().all(|row| row.len() >= n_bytes));
    assert!(out_bytes <= out_stride && out.len() >= (n_rows - 1) * out_stride + out_bytes);
    let starts: [*const u8; ROWS] = std::array::from_fn(|row| rows[row.min(n_rows - 1)].as_ptr());
    // SAFETY: the instructions are there; every window lies in the span, and its last group of four taps ends at most
    // three samples behind it, so that all loads lie inside the rows; stores go to `n_rows` rows of `out`.
    unsafe { horizontal_vnni(starts, base, taps, out.as_mut_ptr(), out_stride, n_rows) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn horizontal_vnni(
    starts: [*const u8; ROWS],
    base: usize,
    taps: &Taps,
    out: *mut u8,
    out_stride: usize,
    n_rows: usize,
) {
    let n_groups = taps.stride / 4;
    // Bytes of four pixels, by channel: (r0 r1 r2 r3)(g0 g1 g2 g3)(b0 b1 b2 b3)(x0 x1 x2 x3).
    let by_channel = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    ));
    let zero = _mm512_setzero_si512();
    for (out_idx, (start, n_taps)) in taps.windows.iter().enumerate() {
        let mut sums = [zero; 3];
        let digits = &taps.digits[out_idx * n_groups..][..n_taps.div_ceil(4)];
        for (group, digits) in digits.iter().enumerate() {
            let at = (start - base + group * 4) * PIXEL;
            // SAFETY: the caller proves that 16 bytes at `at` lie inside each row.
            let pixels = unsafe {
                let row = |row: usize| _mm_loadu_si128(starts[row].add(at).cast());
                let pair =
                    |low: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(low)), row(low + 1));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair(0)), pair(2))
            };
            let pixels = _mm512_shuffle_epi8(pixels, by_channel);
            for (sum, digit) in sums.iter_mut().zip(digits) {
                *sum = _mm512_dpbusd_epi32(*sum, pixels, _mm512_set1_epi32(*digit));
            }
        }
        let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(rounded(sums), zero));
        let lanes = [
            _mm_extract_epi32::<0>(bytes),
            _mm_extract_epi32::<1>(bytes),
            _mm_extract_epi32::<2>(bytes),
            _mm_extract_epi32::<3>(bytes),
        ];
        for (row, pixel) in lanes.into_iter().enumerate().take(n_rows) {
            // SAFETY: the caller proves that `n_rows` rows of this many pixels lie inside.
            unsafe {
                out.add(row * out_stride + out_idx * PIXEL)
                    .cast::<i32>()
                    .write_unaligned(pixel);
            }
        }
    }
}

/// The digits' sums put together, rounded and shifted.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn rounded([ones, bytes, words]: [__m512i; 3]) -> __m512i {
    let half = _mm512_set1_epi32(1 << (PRECISION_BITS - 1));
    let high = _mm512_add_epi32(_mm512_slli_epi32::<16>(words), _mm512_slli_epi32::<8>(bytes));
    let total = _mm512_add_epi32(_mm512_add_epi32(high, ones), half);
    _mm512_srai_epi32::<PRECISION_BITS>(total)
}

/// One output row as the weighted sum of `n_rows` rows of `out.len()` bytes; `digits` are their weights, four at a time.
pub(super) fn column_sums(
    source: &[u8],
    row_bytes: usize,
    digits: &[[i32; 3]],
    n_rows: usize,
    out: &mut [u8],
) {
    assert!(is_available());
    assert!(n_rows > 0 && digits.len() >= n_rows.div_ceil(4));
    assert!(source.len() >= (n_rows - 1) * row_bytes + out.len());
    // SAFETY: the instructions are there, and `out.len()` bytes of each of `n_rows` rows lie inside.
    unsafe { column_sums_vnni(source, row_bytes, digits, n_rows, out) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn column_sums_vnni(
    source: &[u8],
    row_bytes: usize,
    digits: &[[i32; 3]],
    n_rows: usize,
    out: &mut [u8],
) {
    const STEP: usize = 64;
    let zero = _mm512_setzero_si512();
    for (step, out) in out.chunks_mut(STEP).enumerate() {
        let wanted: __mmask64 = u64::MAX >> (STEP - out.len());
        let mut sums = [[zero; 3]; 4];
        for (group, digits) in digits[..n_rows.div_ceil(4)].iter().enumerate() {
            // SAFETY: only the wanted bytes of rows that are there are read; behind the last row its weight is zero.
            let row = |row: usize| unsafe {
                let row = (group * 4 + row).min(n_rows - 1);
                _mm512_maskz_loadu_epi8(wanted, source.as_ptr().add(row * row_bytes + step * STEP).cast())
            };
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            // The four rows' bytes side by side, for a quarter of the columns each.
            let quarters = [
                _mm512_unpacklo_epi16(ab_low, cd_low),
                _mm512_unpackhi_epi16(ab_low, cd_low),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ];
            for (sums, quarter) in sums.iter_mut().zip(quarters) {
                for (sum, digit) in sums.iter_mut().zip(digits) {
                    *sum = _mm512_dpbusd_epi32(*sum, quarter, _mm512_set1_epi32(*digit));
                }
            }
        }
        let [first, second, third, fourth] = sums;
        // Packing undoes the unpacking, lane by lane.
        let bytes = _mm512_packus_epi16(
            _mm512_packs_epi32(rounded(first), rounded(second)),
            _mm512_packs_epi32(rounded(third), rounded(fourth)),
        );
        // SAFETY: the mask has as many bits as `out` has bytes.
        unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), wanted, bytes) };
    }
}
