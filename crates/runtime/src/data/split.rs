//! What a sample is for, and who says so.

use crate::error::Error;
use crate::random::Random;

/// What a sample is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The head is fitted on it.
    Train,
    /// The head is judged on it.
    Val,
}

/// Where validation samples come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SplitRule {
    /// The source says it (by folders, a column or names of files) and must have samples for both.
    Folders,
    /// This share of each class, chosen by a seed.
    Fraction {
        /// Between 0 and 1, both excluded.
        fraction: f64,
        /// The same seed and names give the same choice.
        seed: u64,
    },
    /// The source says it where it does; without a word of it, all samples are for training.
    Loose,
}

impl SplitRule {
    /// # Errors
    /// A share that is not between 0 and 1.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self {
            SplitRule::Fraction { fraction, .. } if !(*fraction > 0.0 && *fraction < 1.0) => Err(
                Error::Usage(format!("a validation share of {fraction} is not between 0 and 1")),
            ),
            _ => Ok(()),
        }
    }
}

/// Which of the `n` samples of a class, in order of names, are for validation: at least one, and never all.
pub(super) fn held_out(n: usize, fraction: f64, seed: u64, class: &str) -> Vec<bool> {
    let n_val = ((n as f64 * fraction).round() as usize).clamp(1, n.saturating_sub(1).max(1));
    let mut order: Vec<usize> = (0..n).collect();
    // A stream per class: adding a class does not reshuffle the others.
    Random::new(seed, class).shuffle(&mut order);
    let mut is_val = vec![false; n];
    order.iter().take(n_val).for_each(|&idx| is_val[idx] = true);
    is_val
}
