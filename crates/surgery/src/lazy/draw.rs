//! Random values as PyTorch's initialisers draw them, from a generator that needs no state.
//!
//! Element `i` of a tensor depends on the seed, the tensor's name and `i` alone (Philox4x32-10; Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011), so that the values are the same for any number of threads, any order and any sharding.
//! The distributions are those of `torch.nn.init`; the numbers are not those of torch's own generator.

/// What is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Evenly in `[low, high)`.
    Uniform {
        /// The smallest value.
        low: f64,
        /// What no value reaches.
        high: f64,
    },
    /// Gaussian.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Gaussian of mean 0, cut off at `low` and `high`, as `trunc_normal_`: absolute values, -2 and 2 by default.
    TruncatedNormal {
        /// Standard deviation of what is cut.
        std: f64,
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
    },
    /// A (semi-)orthogonal matrix of the given number of rows, times `gain` (Saxe et al., 2013; `orthogonal_`).
    Orthogonal {
        /// Rows; the elements that are left make the columns.
        rows: usize,
        /// Factor.
        gain: f64,
    },
}

/// A distribution with what makes its values repeatable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// What is drawn from.
    pub distribution: Distribution,
    key: [u32; 2],
}

impl Draw {
    /// Values for the tensor called `name`. The same seed and name give the same values.
    pub fn new(distribution: Distribution, seed: u64, name: &str) -> Draw {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026 initialiser");
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let digest = *hasher.finalize().as_bytes();
        let word =
            |at: usize| u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
        Draw {
            distribution,
            key: [word(0), word(4)],
        }
    }

    /// Bytes that are held for a tensor of `numel` elements, beside the chunk that is asked for.
    pub(super) fn held_bytes(&self, numel: usize) -> usize {
        match self.distribution {
            Distribution::Orthogonal { .. } => numel.saturating_mul(16),
            _ => 0,
        }
    }

    /// Whether all elements must be made at once.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.distribution, Distribution::Orthogonal { .. })
    }

    /// The elements from `start` on.
    pub(crate) fn fill(&self, start: usize, out: &mut [f64]) {
        if let Distribution::Orthogonal { rows, gain } = self.distribution {
            return orthogonal(self, rows, gain, out);
        }
        for (i, value) in out.iter_mut().enumerate() {
            *value = self.element(start + i);
        }
    }

    fn element(&self, index: usize) -> f64 {
        let [a, b, c, d] = philox(self.key, u64::try_from(index).unwrap_or(u64::MAX));
        let (u, v) = (unit(a, b), unit(c, d));
        match self.distribution {
            Distribution::Uniform { low, high } => low + (high - low) * u,
            Distribution::Normal { mean, std } => mean + std * gaussian(u, v),
            Distribution::TruncatedNormal { std, low, high } => {
                // The inverse of the cumulative distribution, between those of the ends.
                let cumulative = |x: f64| 0.5 * (1.0 + erf(x / std / std::f64::consts::SQRT_2));
                let (first, last) = (cumulative(low), cumulative(high));
                (std * normal_quantile(first + (last - first) * u)).clamp(low, high)
            }
            Distribution::Orthogonal { .. } => gaussian(u, v),
        }
    }
}

/// 53 random bits as a number in `[0, 1)`.
fn unit(a: u32, b: u32) -> f64 {
    let bits = (u64::from(a) << 21) ^ u64::from(b >> 11);
    (bits & ((1 << 53) - 1)) as f64 * 2_f64.powi(-53)
}

/// Box and Muller's transform of two numbers in `[0, 1)`.
fn gaussian(u: f64, v: f64) -> f64 {
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Philox4x32 with ten rounds, of a counter of 64 bits.
fn philox(mut key: [u32; 2], counter: u64) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut x = [(counter & 0xffff_ffff) as u32, (counter >> 32) as u32, 0, 0];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let (p, q) = (
            u64::from(MULTIPLIERS[0]) * u64::from(x[0]),
            u64::from(MULTIPLIERS[1]) * u64::from(x[2]),
        );
        x = [
            (q >> 32) as u32 ^ x[1] ^ key[0],
            (q & 0xffff_ffff) as u32,
            (p >> 32) as u32 ^ x[3] ^ key[1],
            (p & 0xffff_ffff) as u32,
        ];
    }
    x
}

/// The error function, by its series or its continued fraction: to 1e-14 where it matters here.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        // 2/sqrt(pi) * exp(-z^2) * sum of 2^n z^(2n+1) / (1*3*...*(2n+1))
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
            if term < 1e-17 * sum {
                break;
            }
        }
        sum * (-z * z).exp() * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut fraction = 0.0;
        for n in (1..60).rev() {
            fraction = f64::from(n) / 2.0 / (z + fraction);
        }
        1.0 - (-z * z).exp() / (z + fraction) / std::f64::consts::PI.sqrt()
    };
    value.copysign(x)
}

/// The quantile of the standard normal distribution: Acklam's rational start, then two of Halley's steps.
fn normal_quantile(p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return if p <= 0.0 {
            f64::NEG_INFINITY
        } else {
            f64::INFINITY
        };
    }
    // A start that is good to a few percent is enough: the steps square the error.
    let tail = p.min(1.0 - p);
    let t = (-2.0 * tail.ln()).sqrt();
    let start = t
        - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    let mut x = if p < 0.5 { -start } else { start };
    for _ in 0..3 {
        let error = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)) - p;
        let u = error * std::f64::consts::TAU.sqrt() * (x * x / 2.0).exp();
        x -= u / (1.0 + x * u / 2.0);
    }
    x
}

/// Gaussian rows (or columns, whichever are fewer), made orthonormal one after the other, twice for the digits.
fn orthogonal(draw: &Draw, rows: usize, gain: f64, out: &mut [f64]) {
    let cols = out.len().checked_div(rows).unwrap_or(0);
    let (n, len) = (rows.min(cols), rows.max(cols));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(n);
    for i in 0..n {
        let mut vector: Vec<f64> = (0..len).map(|j| draw.element(i * len + j)).collect();
        for _ in 0..2 {
            for other in &basis {
                let dot: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = vector.iter().map(|a| a * a).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|a| *a /= norm);
        basis.push(vector);
    }
    for (i, vector) in basis.iter().enumerate() {
        for (j, value) in vector.iter().enumerate() {
            let at = if rows <= cols { i * cols + j } else { j * cols + i };
            out[at] = gain * value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(distribution: Distribution, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n];
        Draw::new(distribution, 0, "fc.weight").fill(0, &mut out);
        out
    }

    #[test]
    fn philox_is_that_of_random123() {
        // kat_vectors of Random123: philox4x32 10 with counter and key zero.
        assert_eq!(
            philox([0, 0], 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let check = |distribution, mean: f64, std: f64| {
            let values = values(distribution, 200_000);
            let n = values.len() as f64;
            let found = values.iter().sum::<f64>() / n;
            let spread = (values.iter().map(|x| (x - found).powi(2)).sum::<f64>() / n).sqrt();
            assert!(
                (found - mean).abs() < 0.01 * std,
                "{distribution:?}: mean {found}"
            );
            assert!(
                (spread / std - 1.0).abs() < 0.01,
                "{distribution:?}: std {spread}"
            );
        };
        check(
            Distribution::Uniform { low: -1.0, high: 3.0 },
            1.0,
            4.0 / 12_f64.sqrt(),
        );
        check(Distribution::Normal { mean: 2.0, std: 0.5 }, 2.0, 0.5);
        // A standard normal cut at two deviations has the deviation 0.87962566.
        let cut = Distribution::TruncatedNormal {
            std: 1.0,
            low: -2.0,
            high: 2.0,
        };
        check(cut, 0.0, 0.879_625_66);
        assert!(values(cut, 100_000).iter().all(|x| x.abs() <= 2.0));
    }

    #[test]
    fn places_seeds_and_names_decide() {
        let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
        let draw = |seed, name| {
            let mut out = vec![0.0; 4];
            Draw::new(normal, seed, name).fill(10, &mut out);
            out
        };
        let mut all = vec![0.0; 14];
        Draw::new(normal, 0, "a").fill(0, &mut all);
        assert_eq!(draw(0, "a"), all[10..]);
        assert_ne!(draw(1, "a"), draw(0, "a"));
        assert_ne!(draw(0, "b"), draw(0, "a"));
    }

    #[test]
    fn orthogonal_rows_or_columns_are_orthonormal() {
        for (rows, cols) in [(3, 5), (5, 3), (4, 4)] {
            let m = values(Distribution::Orthogonal { rows, gain: 2.0 }, rows * cols);
            let n = rows.min(cols);
            for i in 0..n {
                for j in 0..n {
                    let dot: f64 = if rows <= cols {
                        (0..cols).map(|k| m[i * cols + k] * m[j * cols + k]).sum()
                    } else {
                        (0..rows).map(|k| m[k * cols + i] * m[k * cols + j]).sum()
                    };
                    let expected = if i == j { 4.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-12, "{rows}x{cols}: {dot}");
                }
            }
        }
    }
}
