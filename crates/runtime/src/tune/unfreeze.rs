//! When the next group of parameters begins to train.

use serde::{Deserialize, Serialize};

use super::config::Unfreeze;
use crate::train::EarlyStopping;

/// Where a run is in its unfreezing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Unfreezing {
    /// Groups that train, less one.
    pub(super) stage: usize,
    /// The best score so far, as bits, so that it comes back from a file as it was.
    best: u64,
    /// Epochs without progress.
    stalled: usize,
}

/// What comes after an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The same once more.
    GoOn,
    /// One more group trains.
    Unfreeze,
    /// There is nothing left to gain.
    Stop,
}

impl Unfreezing {
    pub(super) fn new() -> Unfreezing {
        Unfreezing {
            stage: 0,
            best: f64::NEG_INFINITY.to_bits(),
            stalled: 0,
        }
    }

    /// Takes an epoch's score, of which more is better, and says what comes next. With a new group patience begins anew, and
    /// the best score stays.
    pub(super) fn after_epoch(
        &mut self,
        unfreeze: Unfreeze,
        stopping: Option<EarlyStopping>,
        n_stages: usize,
        score: f64,
    ) -> Next {
        let is_plateau = stopping.is_some_and(|stopping| {
            if score > f64::from_bits(self.best) + stopping.min_delta {
                self.best = score.to_bits();
                self.stalled = 0;
            } else {
                self.stalled += 1;
            }
            self.stalled > stopping.patience
        });
        let is_last = self.stage + 1 >= n_stages;
        let next = match unfreeze {
            Unfreeze::EachEpoch if !is_last => Next::Unfreeze,
            Unfreeze::OnPlateau if is_plateau && !is_last => Next::Unfreeze,
            _ if is_plateau => Next::Stop,
            _ => Next::GoOn,
        };
        if next == Next::Unfreeze {
            self.stage += 1;
            self.stalled = 0;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        unfreeze: Unfreeze,
        patience: Option<usize>,
        n_stages: usize,
        scores: &[f64],
    ) -> Vec<(usize, Next)> {
        let stopping = patience.map(|patience| EarlyStopping {
            patience,
            min_delta: 0.0,
        });
        let mut state = Unfreezing::new();
        let after = |score: &f64| {
            let next = state.after_epoch(unfreeze, stopping, n_stages, *score);
            (state.stage, next)
        };
        scores.iter().map(after).collect()
    }

    #[test]
    fn a_plateau_unfreezes_the_next_group_and_the_last_one_stops() {
        use Next::{GoOn, Stop, Unfreeze as More};
        let scores = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.65, 0.7, 0.7];
        let expected = [
            (0, GoOn),
            (0, GoOn),
            (0, GoOn),
            (1, More),
            (1, GoOn),
            (1, GoOn),
            (2, More),
            (2, GoOn),
            (2, Stop),
        ];
        assert_eq!(run(Unfreeze::OnPlateau, Some(1), 3, &scores), expected);
    }

    #[test]
    fn each_epoch_brings_one_until_all_are_there() {
        use Next::{GoOn, Unfreeze as More};
        let expected = [(1, More), (2, More), (2, GoOn), (2, GoOn)];
        assert_eq!(run(Unfreeze::EachEpoch, None, 3, &[0.5, 0.4, 0.3, 0.2]), expected);
    }

    #[test]
    fn without_patience_nothing_stops_and_what_is_no_number_is_no_progress() {
        assert!(
            run(Unfreeze::AtOnce, None, 1, &[0.1; 9])
                .iter()
                .all(|(_, next)| *next == Next::GoOn)
        );
        let scores = [0.5, f64::NAN, f64::NAN];
        assert_eq!(run(Unfreeze::AtOnce, Some(1), 1, &scores)[2], (0, Next::Stop));
    }
}
