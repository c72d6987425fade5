//! Where a run is, what comes of it, and which epoch is the best.

use serde::{Deserialize, Serialize};

use super::config::{Best, TrainerConfig};
use super::dense::Array;
use super::network::Network;
use super::step::Totals;
use super::sweep::SweepHead;
use crate::head::{Head, Layer};

/// Marks of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// From 1.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean loss of its steps, each with the weights before it.
    pub train_loss: f64,
    /// Share of right outputs in its steps; none for a regression.
    pub train_accuracy: Option<f64>,
    /// Mean loss over the validation rows after it.
    pub val_loss: Option<f64>,
    /// Share of right outputs over the validation rows: rows of the right class, or with several labels outputs on the
    /// right side of one half.
    pub val_accuracy: Option<f64>,
}

/// [`EpochMetrics`] in a checkpoint: all but the epoch's number, as integers, so that they come back to the bit.
pub(crate) type EpochBits = [Option<u64>; 5];

impl EpochMetrics {
    pub(crate) fn to_bits(self) -> EpochBits {
        let EpochMetrics {
            epoch: _,
            lr,
            train_loss,
            train_accuracy,
            val_loss,
            val_accuracy,
        } = self;
        [Some(lr), Some(train_loss), train_accuracy, val_loss, val_accuracy].map(|x| x.map(f64::to_bits))
    }

    pub(crate) fn from_bits(epoch: usize, bits: EpochBits) -> EpochMetrics {
        let [lr, train_loss, train_accuracy, val_loss, val_accuracy] =
            bits.map(|bits| bits.map(f64::from_bits));
        EpochMetrics {
            epoch,
            lr: lr.unwrap_or(0.0),
            train_loss: train_loss.unwrap_or(f64::NAN),
            train_accuracy,
            val_loss,
            val_accuracy,
        }
    }
}

/// How a head's training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has not.
    Running,
    /// All epochs are done.
    Finished,
    /// The loss did not fall any more.
    StoppedEarly,
    /// Others of the sweep were better after so many epochs.
    Dropped,
    /// Its loss or gradient was not finite; its weights are those before that step.
    Diverged {
        /// From 1.
        epoch: usize,
        /// Within the epoch, from 1.
        step: usize,
    },
}

/// Everything of a head that changes in a run, but for the numbers in the network.
#[derive(Debug, Clone)]
pub(super) struct HeadState {
    pub(super) settings: SweepHead,
    pub(super) outcome: Outcome,
    pub(super) history: Vec<EpochMetrics>,
    /// The best epoch, from 1, and its layers.
    pub(super) best: Option<(usize, Vec<Layer>)>,
    /// Lowest loss so far, and epochs since.
    pub(super) lowest: f64,
    pub(super) stalled: usize,
    /// Last layers and moving average, once the head has left the network.
    pub(super) ended: Option<(Vec<Layer>, Option<Vec<Layer>>)>,
}

/// Where a run is.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) network: Network,
    pub(super) heads: Vec<HeadState>,
    /// Which head each column block of the network is.
    pub(super) columns: Vec<usize>,
    pub(super) epoch: usize,
    /// Batches of the epoch that are done.
    pub(super) cursor: usize,
    /// Steps since the beginning.
    pub(super) step: usize,
    /// Of the epoch so far, per column.
    pub(super) totals: Totals,
}

/// A trained head and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedHead {
    /// By the weights of the best epoch.
    pub head: Head,
    /// By the weights at the end.
    pub last: Head,
    /// By the moving average of the weights at the end.
    pub ema: Option<Head>,
    /// One per epoch.
    pub history: Vec<EpochMetrics>,
    /// From 1; 0 where none was finished.
    pub best_epoch: usize,
    /// How it ended.
    pub outcome: Outcome,
}

impl Run {
    /// Notes a head's last numbers and how it ended.
    pub(super) fn leave(&mut self, column: usize, outcome: Outcome) {
        let state = &mut self.heads[self.columns[column]];
        let ema = self
            .network
            .has(Array::Ema)
            .then(|| self.network.layers(column, Array::Ema));
        state.ended = Some((self.network.layers(column, Array::Weights), ema));
        state.outcome = outcome;
    }

    /// Closes the gaps of heads that have left.
    pub(super) fn compact(&mut self, config: &TrainerConfig) {
        let stays = |column: &usize| self.heads[self.columns[*column]].ended.is_none();
        let staying: Vec<usize> = (0..self.columns.len()).filter(stays).collect();
        if staying.len() == self.columns.len() {
            return;
        }
        if !staying.is_empty() {
            let mut network = Network::new(
                config,
                self.network.output.n_in,
                self.network.n_outputs,
                staying.len(),
            );
            for (to, &from) in staying.iter().enumerate() {
                network.copy_head(to, &self.network, from);
            }
            self.network = network;
        }
        self.columns = staying.iter().map(|&column| self.columns[column]).collect();
    }
}

/// How good an epoch is; more is better.
pub(crate) fn score(best: Best, metrics: &EpochMetrics) -> f64 {
    let loss = -metrics.val_loss.unwrap_or(metrics.train_loss);
    let score = match best {
        Best::Accuracy => metrics.val_accuracy.or(metrics.train_accuracy).unwrap_or(loss),
        Best::Loss | Best::Last => loss,
    };
    // What is no number is the worst, not the first.
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}

/// Whether the last epoch is the best so far. Without validation rows it is: the training loss says nothing of others.
pub(crate) fn is_best(best: Best, history: &[EpochMetrics]) -> bool {
    let (last, before) = history.split_last().expect("an epoch was judged");
    if best == Best::Last || last.val_loss.is_none() {
        return true;
    }
    before
        .iter()
        .all(|metrics| score(best, last) > score(best, metrics))
}

/// The best of several heads by what their best epochs were judged by, the first of equals; none where all are without a
/// finished epoch.
pub fn best_of(heads: &[TrainedHead], best: Best) -> Option<usize> {
    let score_of = |head: &TrainedHead| {
        let epoch = head.best_epoch.checked_sub(1)?;
        Some(score(best, &head.history[epoch]))
    };
    let mut chosen: Option<(usize, f64)> = None;
    for (at, head) in heads.iter().enumerate() {
        if let Some(score) = score_of(head)
            && chosen.is_none_or(|(_, highest)| score > highest)
        {
            chosen = Some((at, score));
        }
    }
    chosen.map(|(at, _)| at)
}
