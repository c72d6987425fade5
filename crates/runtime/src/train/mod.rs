//! The mini-batch trainer of linear heads and perceptrons, with PyTorch's losses, updates and schedules to the formula.
//!
//! [`fit`] trains one head, [`sweep()`] many linear ones at once as columns of one product. A run is a function of features,
//! targets and [`TrainerConfig`] alone: orders, dropout, mixup and noise are numbers drawn by where they are used, every sum
//! has an order that only the problem decides, and a checkpoint holds the rest. So a run that was interrupted anywhere, on
//! any number of threads, ends in the same bytes, and a head of a sweep in those that it has when it is trained alone.
//!
//! [`fit_on`] and [`sweep_on`] do the same on a GPU, whose sums round differently; checkpoints are those of the processor.
//!
//! Deliberately absent: gradients of the backbone (see [`tune`](crate::tune)); a learning rate that is found by itself (for linear heads
//! [`solve`](crate::solve) needs none).

#![expect(
    clippy::needless_range_loop,
    reason = "an index over the lanes of several arrays at once says what the vectors do"
)]

mod batch;
mod checkpoint;
mod config;
mod counter;
mod dense;
mod gpu;
mod hidden;
mod kernel;
mod loss;
pub(crate) mod math;
mod network;
mod optimiser;
mod parts;
mod run;
mod schedule;
mod state;
mod step;
mod sweep;
#[cfg(test)]
mod tests;

pub use config::{Activation, Best, EarlyStopping, Init, Norm, Optimiser, TrainerConfig};
pub use counter::epoch_order;
pub use schedule::{Curve, Schedule, Time, Unit};
pub(crate) use state::EpochBits;
pub use state::{EpochMetrics, Outcome, TrainedHead, best_of};
pub use sweep::{Halving, SweepConfig, SweepHead, fit, fit_from, fit_on, sweep, sweep_on};

/// The parts of a step that the tail of a network is trained by too.
pub(crate) mod update {
    pub(crate) use super::kernel::LANES;
    pub(crate) use super::loss::{Loss, RowLoss, Wanted};
    pub(crate) use super::optimiser::{HeadStep, Rule, Scalars, State, Update};
    pub(crate) use super::state::{is_best, score};
}
