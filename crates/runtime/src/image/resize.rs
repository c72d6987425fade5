//! Pillow's resize, bit for bit, for the part of the picture that the crop keeps.
//!
//! Source of the arithmetic: Pillow's `Resample.c`. Coefficients are computed in f64, normalised, and rounded to 22
//! fractional bits; the horizontal pass comes first and rounds to bytes; then the vertical one.

use super::decode::Pixels;

/// Fractional bits of a coefficient: 32 less 8 for the pixel and 2 for the sum.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The interpolation filters, with Pillow's names and supports; all antialias when they shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Interpolation::Bilinear => {
                let x = x.abs();
                if x < 1.0 { 1.0 - x } else { 0.0 }
            }
            Interpolation::Bicubic => {
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Interpolation::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Which input samples make each output sample of one axis, and with what weights.
#[derive(Debug, Clone)]
pub(super) struct Taps {
    /// First input sample and number of samples, per output sample.
    pub(super) windows: Vec<(usize, usize)>,
    /// `stride` weights per output sample, zero beyond its window; fixed point with [`PRECISION_BITS`].
    pub(super) weights: Vec<i32>,
    /// Weights per output sample, a multiple of four.
    pub(super) stride: usize,
}

impl Taps {
    /// Taps for output samples `first..first + count` of an axis that goes from `n_in` to `n_out` samples.
    fn new(filter: Interpolation, n_in: usize, n_out: usize, first: usize, count: usize) -> Taps {
        let scale = n_in as f64 / n_out as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let stride = (support.ceil() as usize * 2 + 1).next_multiple_of(4);
        let mut windows = Vec::with_capacity(count);
        let mut weights = vec![0; count * stride];
        let mut exact = vec![0.0; stride];
        for (out_idx, weights) in (first..first + count).zip(weights.chunks_exact_mut(stride)) {
            let center = (out_idx as f64 + 0.5) * scale;
            let inverse = 1.0 / filter_scale;
            // `as` truncates and saturates at zero, where Pillow clips.
            let start = (center - support + 0.5) as usize;
            let n_taps = ((center + support + 0.5) as usize).min(n_in) - start;
            let mut total = 0.0;
            for (tap, weight) in exact[..n_taps].iter_mut().enumerate() {
                *weight = filter.weight((tap as f64 + start as f64 - center + 0.5) * inverse);
                total += *weight;
            }
            for (weight, exact) in weights.iter_mut().zip(&exact[..n_taps]) {
                let normalised = if total == 0.0 { *exact } else { exact / total };
                let scaled = normalised * f64::from(1 << PRECISION_BITS);
                *weight = if normalised < 0.0 {
                    scaled - 0.5
                } else {
                    scaled + 0.5
                } as i32;
            }
            windows.push((start, n_taps));
        }
        Taps {
            windows,
            weights,
            stride,
        }
    }

    fn weights_of(&self, out_idx: usize) -> &[i32] {
        &self.weights[out_idx * self.stride..(out_idx + 1) * self.stride]
    }
}

/// The window of the resized picture that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Resizes to `width` x `height` and returns the pixels of `window`.
pub(super) fn resize(
    source: &Pixels,
    width: usize,
    height: usize,
    filter: Interpolation,
    window: Window,
) -> Pixels {
    let mut out = Pixels {
        width: window.width,
        height: window.height,
        data: vec![0; window.width * window.height * 4 + Pixels::PADDING],
    };
    let out_row_bytes = window.width * 4;
    // An axis that keeps its size is not filtered: its rows or columns are copied.
    let vertical = (height != source.height)
        .then(|| Taps::new(filter, source.height, height, window.top, window.height));
    let rows = match &vertical {
        None => window.top..window.top + window.height,
        Some(taps) => {
            let last = taps
                .windows
                .iter()
                .map(|(start, n_taps)| start + n_taps)
                .max()
                .unwrap_or(0);
            taps.windows.first().map_or(0, |(start, _)| *start)..last
        }
    };
    let n_rows = rows.len();
    let mut narrow = vec![0u8; n_rows * out_row_bytes + Pixels::PADDING];
    if width == source.width {
        for (row, out) in rows.clone().zip(narrow.chunks_exact_mut(out_row_bytes)) {
            let start = (row * source.width + window.left) * 4;
            out.copy_from_slice(&source.data[start..start + out_row_bytes]);
        }
    } else {
        let taps = Taps::new(filter, source.width, width, window.left, window.width);
        horizontal(
            &source.data[rows.start * source.width * 4..],
            source.width * 4,
            &taps,
            &mut narrow,
            n_rows,
        );
    }
    match &vertical {
        None => out.data[..n_rows * out_row_bytes].copy_from_slice(&narrow[..n_rows * out_row_bytes]),
        Some(taps) => {
            for (out_idx, out) in out
                .data
                .chunks_exact_mut(out_row_bytes)
                .take(window.height)
                .enumerate()
            {
                let (start, n_taps) = taps.windows[out_idx];
                let from = &narrow[(start - rows.start) * out_row_bytes..];
                column_sums(from, out_row_bytes, &taps.weights_of(out_idx)[..n_taps], out);
            }
        }
    }
    out
}

/// Filters `n_rows` rows of `row_bytes` bytes along x into rows of one pixel per output sample.
fn horizontal(source: &[u8], row_bytes: usize, taps: &Taps, out: &mut [u8], n_rows: usize) {
    #[cfg(target_arch = "x86_64")]
    if super::resize_avx2::is_available() {
        super::resize_avx2::horizontal(source, row_bytes, taps, out, n_rows);
        return;
    }
    horizontal_scalar(source, row_bytes, taps, out, n_rows);
}

/// One output row as the weighted sum of `weights.len()` rows of `out.len()` bytes.
fn column_sums(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if super::resize_avx2::is_available() {
        super::resize_avx2::column_sums(source, row_bytes, weights, out);
        return;
    }
    column_sums_scalar(source, row_bytes, weights, out);
}

fn horizontal_scalar(source: &[u8], row_bytes: usize, taps: &Taps, out: &mut [u8], n_rows: usize) {
    let out_row_bytes = taps.windows.len() * 4;
    for (row, out) in out.chunks_exact_mut(out_row_bytes).take(n_rows).enumerate() {
        let row = &source[row * row_bytes..];
        for (out_idx, pixel) in out.chunks_exact_mut(4).enumerate() {
            let (start, n_taps) = taps.windows[out_idx];
            let mut sums = [1i32 << (PRECISION_BITS - 1); 4];
            let samples = row[start * 4..(start + n_taps) * 4].chunks_exact(4);
            for (sample, &weight) in samples.zip(taps.weights_of(out_idx)) {
                for (sum, &value) in sums.iter_mut().zip(sample) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (byte, sum) in pixel.iter_mut().zip(sums) {
                *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
            }
        }
    }
}

pub(super) fn column_sums_scalar(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    for (x, byte) in out.iter_mut().enumerate() {
        let mut sum = 1i32 << (PRECISION_BITS - 1);
        for (row, &weight) in weights.iter().enumerate() {
            sum += i32::from(source[row * row_bytes + x]) * weight;
        }
        *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Pixels {
        let mut pixels = Pixels::new(width, height).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (width * 1000 + height) as u64;
        for byte in &mut pixels.data {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Many extremes, so that the clipping of overshoots is exercised.
            *byte = match state >> 61 {
                0 => 0,
                1 => 255,
                _ => (state >> 33) as u8,
            };
        }
        pixels
    }

    /// The definition, without windows, crops or vectors: whole picture, one sum per pixel.
    fn naive(source: &Pixels, width: usize, height: usize, filter: Interpolation) -> Vec<u8> {
        let pass = |data: &[u8], n_in: usize, n_out: usize, others: usize, step: usize, other_step: usize| {
            let taps = Taps::new(filter, n_in, n_out, 0, n_out);
            let mut out = vec![0u8; n_out * others * 4];
            for other in 0..others {
                for (idx, (start, n_taps)) in taps.windows.iter().enumerate() {
                    for channel in 0..4 {
                        let mut sum = 1i64 << 21;
                        for tap in 0..*n_taps {
                            let value = data[(other * other_step + (start + tap) * step) * 4 + channel];
                            sum += i64::from(value) * i64::from(taps.weights_of(idx)[tap]);
                        }
                        let (to, n) = if step == 1 {
                            (other * n_out + idx, 4)
                        } else {
                            (idx * others + other, 4)
                        };
                        out[to * n + channel] = (sum >> 22).clamp(0, 255) as u8;
                    }
                }
            }
            out
        };
        let mut data = source.data[..source.width * source.height * 4].to_vec();
        if width != source.width {
            data = pass(&data, source.width, width, source.height, 1, source.width);
        }
        if height != source.height {
            data = pass(&data, source.height, height, width, width, 1);
        }
        data
    }

    #[test]
    fn any_window_equals_the_naive_whole() {
        for filter in [
            Interpolation::Bilinear,
            Interpolation::Bicubic,
            Interpolation::Lanczos,
        ] {
            for (w, h, to_w, to_h) in [
                (32, 32, 64, 64),
                (53, 37, 20, 14),
                (1, 9, 5, 45),
                (40, 30, 40, 61),
                (9, 7, 9, 7),
            ] {
                let source = noise(w, h);
                let whole = naive(&source, to_w, to_h, filter);
                for window in [
                    Window {
                        left: 0,
                        top: 0,
                        width: to_w,
                        height: to_h,
                    },
                    Window {
                        left: to_w / 3,
                        top: to_h / 4,
                        width: to_w - to_w / 2,
                        height: to_h - to_h / 3,
                    },
                ] {
                    let got = resize(&source, to_w, to_h, filter, window);
                    for y in 0..window.height {
                        for x in 0..window.width {
                            let at = ((y + window.top) * to_w + x + window.left) * 4;
                            let mine = (y * window.width + x) * 4;
                            let what = format!("{filter:?} {w}x{h} -> {to_w}x{to_h} at {x},{y}");
                            assert_eq!(got.data[mine..mine + 3], whole[at..at + 3], "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn vectors_equal_scalars() {
        let source = noise(131, 64);
        let taps = Taps::new(Interpolation::Bicubic, 131, 50, 3, 40);
        let (mut fast, mut slow) = (vec![0; 40 * 4 * 64 + 32], vec![0; 40 * 4 * 64 + 32]);
        horizontal(&source.data, 131 * 4, &taps, &mut fast, 64);
        horizontal_scalar(&source.data, 131 * 4, &taps, &mut slow, 64);
        assert_eq!(fast, slow);
        let taps = Taps::new(Interpolation::Lanczos, 64, 21, 0, 21);
        for (idx, (start, n_taps)) in taps.windows.iter().enumerate() {
            let (mut fast, mut slow) = (vec![0; 131 * 4], vec![0; 131 * 4]);
            let rows = &source.data[start * 131 * 4..];
            column_sums(rows, 131 * 4, &taps.weights_of(idx)[..*n_taps], &mut fast);
            column_sums_scalar(rows, 131 * 4, &taps.weights_of(idx)[..*n_taps], &mut slow);
            assert_eq!(fast, slow);
        }
    }
}
