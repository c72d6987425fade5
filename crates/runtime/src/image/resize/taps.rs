//! Which source samples make each output sample of one axis, and with what weights.
//!
//! Source of the arithmetic: `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's `Resample.c`, and
//! `ImagingScaleAffine` of its `Geometry.c` for `nearest`.

use std::sync::Arc;

use super::super::filter::Interpolation;

/// Fractional bits of a coefficient: 32 less 8 for the pixel and 2 for the sum.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// What the vector units multiply by: each weight is `high << LOW_BITS | low`.
pub(super) const LOW_BITS: u32 = 12;

/// Which axis, which way, which part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Axis {
    pub(in super::super) filter: Interpolation,
    pub(in super::super) n_in: usize,
    pub(in super::super) n_out: usize,
    /// The first output sample that is wanted, and how many.
    pub(in super::super) first: usize,
    pub(in super::super) count: usize,
}

/// Which input samples make each output sample of one axis, and with what weights.
#[derive(Debug, Clone)]
pub(in super::super) struct Taps {
    /// First input sample and number of samples, per output sample.
    pub(in super::super) windows: Vec<(usize, usize)>,
    /// `stride` weights per output sample, zero beyond its window; fixed point with [`PRECISION_BITS`].
    pub(super) weights: Vec<i32>,
    /// Weights per output sample, a multiple of four.
    pub(super) stride: usize,
    /// Per output sample and group of four taps the pairs (w0, w1) four times and (w2, w3) four times, first of the
    /// weights' high parts and then of the low ones: what one multiply-add of 16-bit lanes takes.
    pub(super) groups: Vec<[i16; 32]>,
    /// Per output sample and group of four taps three numbers of four signed bytes: the weights' balanced digits to the
    /// base 256, the lowest first.
    pub(super) digits: Vec<[i32; 3]>,
    /// Whether every weight has three such digits; all filters' weights have, being below two.
    pub(super) has_digits: bool,
}

impl Taps {
    pub(in super::super) fn new(axis: Axis) -> Taps {
        let mut taps = if axis.filter == Interpolation::Nearest {
            Taps::nearest(axis)
        } else {
            Taps::filtered(axis)
        };
        taps.groups = vec![[0; 32]; taps.weights.len() / 4];
        for (group, weights) in taps.groups.iter_mut().zip(taps.weights.chunks_exact(4)) {
            for lane in 0..16 {
                let weight = weights[lane / 8 * 2 + lane % 2];
                group[lane] = (weight >> LOW_BITS) as i16;
                group[lane + 16] = (weight & ((1 << LOW_BITS) - 1)) as i16;
            }
        }
        taps.digits = vec![[0; 3]; taps.weights.len() / 4];
        for (digits, weights) in taps.digits.iter_mut().zip(taps.weights.chunks_exact(4)) {
            let mut bytes = [[0i8; 4]; 3];
            for (tap, &weight) in weights.iter().enumerate() {
                let low = weight as i8;
                let rest = (weight - i32::from(low)) >> 8;
                let middle = rest as i8;
                let high = (rest - i32::from(middle)) >> 8;
                taps.has_digits &= i8::try_from(high).is_ok();
                (bytes[0][tap], bytes[1][tap], bytes[2][tap]) = (low, middle, high as i8);
            }
            *digits = bytes.map(|digits| i32::from_le_bytes(digits.map(|digit| digit as u8)));
        }
        taps
    }

    fn filtered(axis: Axis) -> Taps {
        let filter = axis.filter;
        let scale = axis.n_in as f64 / axis.n_out as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let stride = (support.ceil() as usize * 2 + 1).next_multiple_of(4);
        let mut windows = Vec::with_capacity(axis.count);
        let mut weights = vec![0; axis.count * stride];
        let mut exact = vec![0.0; stride];
        for (out_idx, weights) in (axis.first..axis.first + axis.count).zip(weights.chunks_exact_mut(stride))
        {
            let center = (out_idx as f64 + 0.5) * scale;
            let inverse = 1.0 / filter_scale;
            // `as` truncates and saturates at zero, where Pillow clips.
            let start = (center - support + 0.5) as usize;
            let n_taps = ((center + support + 0.5) as usize).min(axis.n_in) - start;
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
            groups: Vec::new(),
            digits: Vec::new(),
            has_digits: true,
        }
    }

    /// One tap of weight one. The position is a running sum in Pillow, and its rounding is the running sum's.
    fn nearest(axis: Axis) -> Taps {
        let step = axis.n_in as f64 / axis.n_out as f64;
        let mut position = step * 0.5;
        let mut windows = Vec::with_capacity(axis.count);
        let mut weights = vec![0; axis.count * 4];
        for out_idx in 0..axis.first + axis.count {
            if out_idx >= axis.first {
                windows.push(((position as usize).min(axis.n_in - 1), 1));
                weights[(out_idx - axis.first) * 4] = 1 << PRECISION_BITS;
            }
            position += step;
        }
        Taps {
            windows,
            weights,
            stride: 4,
            groups: Vec::new(),
            digits: Vec::new(),
            has_digits: true,
        }
    }

    /// The weights of one output sample, as many as its window has samples.
    pub(super) fn weights_of(&self, out_idx: usize) -> &[i32] {
        let start = out_idx * self.stride;
        &self.weights[start..start + self.windows[out_idx].1]
    }

    /// The same weights as digits, four taps at a time.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn digits_of(&self, out_idx: usize) -> &[[i32; 3]] {
        let n_groups = self.stride / 4;
        &self.digits[out_idx * n_groups..(out_idx + 1) * n_groups]
    }

    /// The input samples that any output sample reads; windows ascend.
    pub(in super::super) fn span(&self) -> std::ops::Range<usize> {
        let start = self.windows.first().map_or(0, |(start, _)| *start);
        start
            ..self
                .windows
                .last()
                .map_or(start, |(start, n_taps)| start + n_taps)
    }

    /// Input samples that a vector load may reach beyond the last one that counts.
    pub(in super::super) fn reach(&self) -> usize {
        self.stride + 4
    }

    fn n_bytes(&self) -> usize {
        self.weights.len() * 4 + self.groups.len() * 76 + self.windows.len() * 16
    }
}

/// The taps of the last few sizes: pictures of one source tend to have the same ones.
#[derive(Debug, Default)]
pub(in super::super) struct TapsCache {
    entries: Vec<(Axis, Arc<Taps>)>,
}

impl TapsCache {
    const MAX_ENTRIES: usize = 8;
    /// Larger ones are made anew: they belong to pictures whose work is far greater.
    const MAX_ENTRY_BYTES: usize = 1 << 20;

    pub(in super::super) fn get(&mut self, axis: Axis) -> Arc<Taps> {
        if let Some(at) = self.entries.iter().position(|(known, _)| *known == axis) {
            // The most recent one is last.
            self.entries[at..].rotate_left(1);
            return Arc::clone(&self.entries[self.entries.len() - 1].1);
        }
        let taps = Arc::new(Taps::new(axis));
        if taps.n_bytes() <= Self::MAX_ENTRY_BYTES {
            if self.entries.len() == Self::MAX_ENTRIES {
                self.entries.remove(0);
            }
            self.entries.push((axis, Arc::clone(&taps)));
        }
        taps
    }
}
