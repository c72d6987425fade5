//! Fine-tuning: the part of a network behind a boundary is trained on the boundary's cached features, all at once or a group
//! of parameters after the other.
//!
//! [`TuneConfig`] says what trains, at which rates and when; `groups` finds it in a graph, `stages` the boundaries, `unfreeze`
//! decides when the next group comes. A run (`run`) makes steps with `grad`'s gradients, the losses, schedules and updates of
//! [`train`](crate::train), and keeps the weights of the best epoch as a deep copy; `checkpoint` holds all that it goes on
//! from, so that a run that was killed ends in the same bytes. `network` is the graph that is trained, `results` what is
//! written of it. [`job::fit`](crate::job::fit) is all of it in one call.
//!
//! The best epoch is chosen on the validation rows, so that the accuracy that is reported of them flatters a little.
//!
//! Rows of a split are stored, or the frozen part computes them whenever they are asked for (`rows`): to the bit the same.

mod checkpoint;
mod config;
mod groups;
mod network;
mod optimiser;
mod results;
mod rows;
mod run;
mod stages;
mod unfreeze;

pub use config::{NormPolicy, Rates, TuneConfig, Unfreeze};
pub use network::LoadReport;
pub(crate) use network::{Classifier, Network, NetworkOptions};
pub use results::Origin;
pub(crate) use results::{Written, written};
pub(crate) use rows::{Rows, Source, Split};
pub use run::TuneEpoch;
pub(crate) use run::{Loaded, Run, Tuned};
pub(crate) use stages::{Boundary, Stage};
