//! The two passes of the resize with AVX2, in the same arithmetic.
//!
//! A weight has 23 bits and the multiply-add of AVX2 takes 16, so that each is split as `high * 4096 + low`; the sums
//! of both parts are exact in 32 bits (the shifted one may wrap, the total does not), and so the total is exact.
//!
//! `unsafe` here is the unaligned loads and stores and the call into code that needs AVX2.

use std::arch::x86_64::*;

use super::resize::{PRECISION_BITS, Taps, column_sums_scalar};

const LOW_BITS: u32 = 12;

/// Whether this processor has AVX2; the standard library remembers the answer.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// As the scalar pass of the same name. `source` must reach [`Pixels::PADDING`](super::Pixels) bytes beyond its last
/// row.
pub(super) fn horizontal(source: &[u8], row_bytes: usize, taps: &Taps, out: &mut [u8], n_rows: usize) {
    assert!(is_available());
    let n_out = taps.windows.len();
    let last = taps
        .windows
        .iter()
        .map(|(start, _)| start * 4 + taps.stride * 4)
        .max()
        .unwrap_or(0);
    assert!(out.len() >= n_rows * n_out * 4);
    // Windows near the right edge may read into the next row, whose bytes meet weights of zero; behind the last row
    // the padding may be too short for a wide filter, and then the last rows go through a copy.
    let safe_rows = (0..n_rows)
        .take_while(|row| row * row_bytes + last <= source.len())
        .count();
    // SAFETY: AVX2 is there; every load of the first `safe_rows` rows ends inside `source`, every store inside `out`.
    unsafe { horizontal_avx2(source, row_bytes, taps, out, safe_rows) };
    for row in safe_rows..n_rows {
        let mut copy = source[row * row_bytes..(row * row_bytes + row_bytes).min(source.len())].to_vec();
        copy.resize(last.max(copy.len()), 0);
        let out = &mut out[row * n_out * 4..];
        // SAFETY: as above, with a copy that is long enough.
        unsafe { horizontal_avx2(&copy, row_bytes, taps, out, 1) };
    }
}

#[target_feature(enable = "avx2")]
unsafe fn horizontal_avx2(source: &[u8], row_bytes: usize, taps: &Taps, out: &mut [u8], n_rows: usize) {
    let groups = taps.stride / 4;
    // Per output sample and group of four taps: (w0, w1) four times, then (w2, w3) four times.
    let mut split = vec![[0i16; 32]; taps.windows.len() * groups];
    for (group, weights) in split.iter_mut().zip(taps.weights.chunks_exact(4)) {
        for lane in 0..16 {
            let weight = weights[lane / 8 * 2 + lane % 2];
            group[lane] = (weight >> LOW_BITS) as i16;
            group[lane + 16] = (weight & ((1 << LOW_BITS) - 1)) as i16;
        }
    }
    // Bytes of pixels 0..4 as pairs per channel: (r0 r1)(g0 g1)(b0 b1)(x0 x1) and the same of pixels 2 and 3.
    let pairs = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    let half = _mm_set1_epi32(1 << (PRECISION_BITS - 1));
    for row in 0..n_rows {
        for (out_idx, (start, n_taps)) in taps.windows.iter().enumerate() {
            let used = n_taps.div_ceil(4);
            let mut high = _mm256_setzero_si256();
            let mut low = _mm256_setzero_si256();
            for group in 0..used {
                // SAFETY: the caller proves that `start + stride` pixels lie inside; a group holds 64 bytes.
                let (pixels, high_weights, low_weights) = unsafe {
                    let at = source.as_ptr().add(row * row_bytes + (start + group * 4) * 4);
                    let weights = split.as_ptr().add(out_idx * groups + group).cast::<__m256i>();
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
            let pixel = _mm_cvtsi128_si32(packed).to_le_bytes();
            let at = (row * taps.windows.len() + out_idx) * 4;
            out[at..at + 4].copy_from_slice(&pixel);
        }
    }
}

/// As the scalar pass of the same name.
pub(super) fn column_sums(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    assert!(is_available());
    assert!(weights.is_empty() || source.len() >= (weights.len() - 1) * row_bytes + out.len());
    let n_vector = out.len() / 8 * 8;
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
    let split: Vec<(__m256i, __m256i)> = weights
        .chunks(2)
        .map(|pair| {
            let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
            (
                pack(first >> LOW_BITS, second >> LOW_BITS),
                pack(first & mask, second & mask),
            )
        })
        .collect();
    let half = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    for x in (0..out.len()).step_by(8) {
        let mut high = _mm256_setzero_si256();
        let mut low = _mm256_setzero_si256();
        for (pair, (high_weights, low_weights)) in split.iter().enumerate() {
            let first = pair * 2;
            let second = (first + 1).min(weights.len() - 1);
            // SAFETY: the caller proves that `out.len()` bytes of each of `weights.len()` rows lie inside.
            let (a, b) = unsafe {
                let at = source.as_ptr().add(x);
                (
                    _mm_loadl_epi64(at.add(first * row_bytes).cast()),
                    _mm_loadl_epi64(at.add(second * row_bytes).cast()),
                )
            };
            let wide = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(wide, *high_weights));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(wide, *low_weights));
        }
        let total = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low);
        let value = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(total, half));
        let words = _mm_packs_epi32(
            _mm256_castsi256_si128(value),
            _mm256_extracti128_si256::<1>(value),
        );
        let bytes = _mm_packus_epi16(words, words);
        out[x..x + 8].copy_from_slice(&_mm_cvtsi128_si64(bytes).to_le_bytes());
    }
}
