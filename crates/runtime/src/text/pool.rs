//! One vector per text from one vector per token, as sentence-transformers' `Pooling` makes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the tokens of a text become one vector; several are put after one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The largest of each number.
    Max,
    /// The mean.
    Mean,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean, the n-th token weighing n.
    WeightedMean,
    /// The last token.
    LastToken,
}

impl Pooling {
    /// In the order in which sentence-transformers puts several after one another.
    pub(super) const ALL: [Pooling; 6] = [
        Pooling::Cls,
        Pooling::Max,
        Pooling::Mean,
        Pooling::MeanSqrtLen,
        Pooling::WeightedMean,
        Pooling::LastToken,
    ];

    /// As a flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Cls => "cls",
            Pooling::Max => "max",
            Pooling::Mean => "mean",
            Pooling::MeanSqrtLen => "mean-sqrt-len",
            Pooling::WeightedMean => "weighted-mean",
            Pooling::LastToken => "last-token",
        }
    }

    /// Pools `tokens`, `[n, D]` of a text's tokens, of which those from `from` on count; writes `D` numbers. Sums are
    /// made in float64, one token after the other.
    fn pool(self, tokens: &[f32], from: usize, out: &mut [f32]) {
        let dim = out.len();
        let counted = || tokens.chunks_exact(dim).enumerate().skip(from);
        match self {
            Pooling::Cls => {
                if let Some((_, first)) = counted().next() {
                    out.copy_from_slice(first);
                }
            }
            Pooling::LastToken => {
                if let Some((_, last)) = counted().last() {
                    out.copy_from_slice(last);
                }
            }
            Pooling::Max => {
                out.fill(f32::NEG_INFINITY);
                for (_, token) in counted() {
                    for (out, &value) in out.iter_mut().zip(token) {
                        // A number that is none stays visible, as with torch.
                        if value > *out || value.is_nan() {
                            *out = value;
                        }
                    }
                }
            }
            Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean => {
                let mut sums = vec![0f64; dim];
                let mut weights = 0f64;
                for (position, token) in counted() {
                    let weight = match self {
                        // Positions count from one, and those that are left out keep theirs.
                        Pooling::WeightedMean => (position + 1) as f64,
                        _ => 1.0,
                    };
                    weights += weight;
                    for (sum, &value) in sums.iter_mut().zip(token) {
                        *sum += weight * f64::from(value);
                    }
                }
                let weights = weights.max(1e-9);
                let divisor = match self {
                    Pooling::MeanSqrtLen => weights.sqrt(),
                    _ => weights,
                };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = (sum / divisor) as f32;
                }
            }
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A flag's spelling, or that of sentence-transformers' configuration.
impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Pooling, String> {
        let found = match text {
            "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLen),
            "weightedmean" => Some(Pooling::WeightedMean),
            "lasttoken" => Some(Pooling::LastToken),
            _ => Pooling::ALL.into_iter().find(|pooling| pooling.name() == text),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = Pooling::ALL.iter().map(|pooling| pooling.name()).collect();
            format!("`{text}` is no pooling; there are {}", known.join(", "))
        })
    }
}

/// Pools `tokens`, `[n, D]`, in each of the ways, appending `D` numbers for each to `rows`.
pub(super) fn pool_text(poolings: &[Pooling], tokens: &[f32], dim: usize, from: usize, rows: &mut Vec<f32>) {
    for pooling in poolings {
        let start = rows.len();
        rows.resize(start + dim, 0.0);
        pooling.pool(tokens, from, &mut rows[start..]);
    }
}

/// Makes a row's length one, as torch's `normalize`: a row of zeros stays.
pub(super) fn normalize(row: &mut [f32]) {
    let sum: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
    let norm = sum.sqrt().max(1e-12);
    for value in row {
        *value = (f64::from(*value) / norm) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tokens of two numbers.
    const TOKENS: [f32; 6] = [1.0, -4.0, 2.0, 8.0, 6.0, 0.5];

    fn pooled(pooling: Pooling, from: usize) -> Vec<f32> {
        let mut rows = Vec::new();
        pool_text(&[pooling], &TOKENS, 2, from, &mut rows);
        rows
    }

    #[test]
    fn each_pooling_by_hand() {
        let root = |n: f32| n.sqrt();
        for (pooling, all, behind_the_first) in [
            (Pooling::Cls, [1.0, -4.0], [2.0, 8.0]),
            (Pooling::Max, [6.0, 8.0], [6.0, 8.0]),
            (Pooling::Mean, [3.0, 1.5], [4.0, 4.25]),
            (
                Pooling::MeanSqrtLen,
                [9.0 / root(3.0), 4.5 / root(3.0)],
                [8.0 / root(2.0), 8.5 / root(2.0)],
            ),
            // (1*1 + 2*2 + 3*6) / 6, and (2*2 + 3*6) / 5 with the positions as they were.
            (
                Pooling::WeightedMean,
                [23.0 / 6.0, 13.5 / 6.0],
                [22.0 / 5.0, 17.5 / 5.0],
            ),
            (Pooling::LastToken, [6.0, 0.5], [6.0, 0.5]),
        ] {
            for (from, expected) in [(0, all), (1, behind_the_first)] {
                for (got, wanted) in pooled(pooling, from).iter().zip(expected) {
                    assert!((got - wanted).abs() < 1e-6, "{pooling} {from}: {got} {wanted}");
                }
            }
            assert_eq!(pooling.name().parse(), Ok(pooling));
        }
    }

    #[test]
    fn rows_are_made_one_long() {
        let mut row = [3.0, 0.0, -4.0];
        normalize(&mut row);
        assert_eq!(row, [0.6, 0.0, -0.8]);
        let mut zeros = [0.0; 3];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    #[test]
    fn poolings_that_do_not_exist() {
        assert_eq!(
            "median".parse::<Pooling>().unwrap_err(),
            "`median` is no pooling; there are cls, max, mean, mean-sqrt-len, weighted-mean, last-token"
        );
        assert_eq!("mean_sqrt_len_tokens".parse(), Ok(Pooling::MeanSqrtLen));
    }
}
