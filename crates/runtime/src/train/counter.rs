//! Random numbers that are a function of where they are used: Philox 4x32-10 (Salmon et al., SC 2011) of a counter, and
//! the order of an epoch. Nothing is remembered from one number to the next, so that a run can go on anywhere.

use super::math::{ln, sin_cos_of_turns};
use crate::random::Random;

/// What numbers are for; streams of different purposes have different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Init,
    Dropout,
    Noise,
    Mixup,
}

/// A stream of numbers for one purpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    key: [u32; 2],
}

/// Numbers that one call gives.
pub(super) const AT_ONCE: usize = 16;

impl Counter {
    pub(super) fn new(seed: u64, purpose: Purpose) -> Counter {
        let purpose = (purpose as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The seed is scrambled (splitmix64), so that neighbouring seeds and purposes have unrelated keys.
        let mut z = seed.wrapping_add(purpose);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        Counter {
            key: [z as u32, (z >> 32) as u32],
        }
    }

    /// The key, as kernels take it.
    pub(super) fn key(&self) -> u64 {
        u64::from(self.key[0]) | u64::from(self.key[1]) << 32
    }

    /// Numbers `16·block .. 16·block + 16` of the stream of (`step`, `row`).
    #[inline(always)]
    pub(super) fn sixteen(&self, step: u64, row: u32, block: u32) -> [u32; AT_ONCE] {
        // Four Philox blocks beside each other, as columns.
        let mut c = [[0u32; 4]; 4];
        for i in 0..4 {
            c[0][i] = block.wrapping_mul(4).wrapping_add(i as u32);
            c[1][i] = row;
            c[2][i] = step as u32;
            c[3][i] = (step >> 32) as u32;
        }
        let mut key = self.key;
        for _ in 0..10 {
            let mut next = [[0u32; 4]; 4];
            for i in 0..4 {
                let first = u64::from(c[0][i]) * 0xd251_1f53;
                let second = u64::from(c[2][i]) * 0xcd9e_8d57;
                next[0][i] = (second >> 32) as u32 ^ c[1][i] ^ key[0];
                next[1][i] = second as u32;
                next[2][i] = (first >> 32) as u32 ^ c[3][i] ^ key[1];
                next[3][i] = first as u32;
            }
            c = next;
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        let mut out = [0; AT_ONCE];
        for i in 0..4 {
            for word in 0..4 {
                out[i * 4 + word] = c[word][i];
            }
        }
        out
    }

    /// Sixteen numbers uniform in `[0, 1)`, multiples of 2⁻²⁴.
    #[inline(always)]
    pub(super) fn uniform(&self, step: u64, row: u32, block: u32) -> [f32; AT_ONCE] {
        self.sixteen(step, row, block).map(unit)
    }

    /// Sixteen standard normal numbers (Box and Muller).
    #[inline(always)]
    pub(super) fn normal(&self, step: u64, row: u32, block: u32) -> [f32; AT_ONCE] {
        let bits = self.sixteen(step, row, block);
        let mut out = [0.0; AT_ONCE];
        for i in 0..AT_ONCE / 2 {
            // In (0, 1], of which there is a logarithm.
            let radius = (-2.0 * ln(1.0 - unit(bits[i]))).max(0.0).sqrt();
            let (sine, cosine) = sin_cos_of_turns(unit(bits[AT_ONCE / 2 + i]));
            out[i] = radius * cosine;
            out[AT_ONCE / 2 + i] = radius * sine;
        }
        out
    }
}

#[inline(always)]
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The rows of an epoch in their order: a permutation that only the seed and the epoch decide.
pub(super) fn order(seed: u64, epoch: usize, n_rows: usize, out: &mut Vec<usize>) {
    out.clear();
    out.extend(0..n_rows);
    Random::new(seed, &format!("order of epoch {epoch}")).shuffle(out);
}

/// The rows of an epoch (from 0) in the order in which a run with this seed takes them.
pub fn epoch_order(seed: u64, epoch: usize, n_rows: usize) -> Vec<usize> {
    let mut out = Vec::new();
    order(seed, epoch, n_rows, &mut out);
    out
}

/// λ ~ Beta(α, α) of a step, by two gamma variates (Marsaglia and Tsang 2000), and the partner of each row of its batch.
pub(super) fn mixup(counter: Counter, step: u64, alpha: f64, n: usize, partners: &mut Vec<usize>) -> f32 {
    let mut block = 0;
    let mut queue: Vec<u32> = Vec::new();
    let mut next = || {
        if queue.is_empty() {
            queue.extend(counter.sixteen(step, u32::MAX, block));
            block += 1;
        }
        queue.pop().expect("filled above")
    };
    let mut uniform = || {
        let bits = u64::from(next()) << 21 ^ u64::from(next());
        ((bits & ((1 << 53) - 1)) as f64 + 0.5) / 9_007_199_254_740_992.0
    };
    let mut gamma = || {
        // α below 1 by way of α + 1.
        let boost = if alpha < 1.0 {
            uniform().powf(1.0 / alpha)
        } else {
            1.0
        };
        let d = if alpha < 1.0 { alpha + 1.0 } else { alpha } - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            let v = (1.0 + c * normal).powi(3);
            if v > 0.0 && uniform().ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
                return d * v * boost;
            }
        }
    };
    let (a, b) = (gamma(), gamma());
    let lambda = if a + b > 0.0 { a / (a + b) } else { 0.5 };
    partners.clear();
    partners.extend(0..n);
    for last in (1..n).rev() {
        // 53 bits: the bias of a remainder is far below what a permutation could show.
        let other = (uniform() * (last + 1) as f64) as usize;
        partners.swap(last, other.min(last));
    }
    lambda as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_is_philox() {
        // The known answers of Random123: counter and key zero, and both all ones.
        let zero = Counter { key: [0, 0] };
        assert_eq!(
            zero.sixteen(0, 0, 0)[..4],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        // Counters that differ in one place differ everywhere.
        let a = zero.sixteen(0, 0, 1);
        assert!(a.iter().zip(zero.sixteen(0, 1, 1)).all(|(a, b)| *a != b));
        assert!(a.iter().zip(zero.sixteen(1, 0, 1)).all(|(a, b)| *a != b));
        assert!(
            a.iter()
                .zip(Counter::new(0, Purpose::Noise).sixteen(0, 0, 1))
                .all(|(a, b)| *a != b)
        );
    }

    #[test]
    fn normal_numbers_have_their_moments() {
        let counter = Counter::new(7, Purpose::Noise);
        let values: Vec<f64> = (0..4000)
            .flat_map(|block| counter.normal(3, 1, block))
            .map(f64::from)
            .collect();
        let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|v| f(*v)).sum::<f64>() / values.len() as f64;
        assert!(mean(&|v| v).abs() < 0.02);
        assert!((mean(&|v| v * v) - 1.0).abs() < 0.03);
        assert!(mean(&|v| v.powi(3)).abs() < 0.06);
        assert!((mean(&|v| v.powi(4)) - 3.0).abs() < 0.2);
        assert!((mean(&|v| f64::from(v < 1.0)) - 0.8413).abs() < 0.01);
    }

    #[test]
    fn lambda_is_beta_and_partners_are_a_permutation() {
        let counter = Counter::new(5, Purpose::Mixup);
        for alpha in [0.2, 1.0, 3.0] {
            let mut partners = Vec::new();
            let lambdas: Vec<f64> = (0..4000)
                .map(|step| f64::from(mixup(counter, step, alpha, 9, &mut partners)))
                .collect();
            let mean = lambdas.iter().sum::<f64>() / 4000.0;
            let variance = lambdas.iter().map(|l| (l - 0.5).powi(2)).sum::<f64>() / 4000.0;
            assert!((mean - 0.5).abs() < 0.03, "{alpha}: {mean}");
            // Of Beta(α, α): 1 / (4 (2α + 1)).
            assert!(
                (variance * 4.0 * (2.0 * alpha + 1.0) - 1.0).abs() < 0.08,
                "{alpha}: {variance}"
            );
            partners.sort_unstable();
            assert_eq!(partners, (0..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_have_orders_of_their_own() {
        let of = |seed, epoch| epoch_order(seed, epoch, 50);
        assert_eq!(of(1, 2), of(1, 2));
        assert!(of(1, 2) != of(1, 3) && of(1, 2) != of(2, 2));
        let mut sorted = of(1, 2);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
