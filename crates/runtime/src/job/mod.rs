//! Whole jobs: a head from labelled features, and the main job from a backbone and a folder to a run folder.

mod baselines;
mod cached;
mod fit;
mod frozen;
mod page;
mod recipe;
mod room;
mod run_folder;
mod settings;
mod train;
mod tune;

pub use cached::{TrainConfig, train_to_folder};
pub use fit::{ExtractSummary, FitConfig, FitReport, fit};
pub use frozen::Recompute;
pub use recipe::{HeadRecipe, Method, Regularisation};
pub use train::{Descent, OnEpoch, Trained, Way, train};
pub use tune::{TuneEvent, TuneJob, fine_tune};

/// Pictures per run of the network where neither the caller nor the network says: measured best on two cores with one
/// session per core, where more only pushes activations out of the cache.
pub const DEFAULT_BATCH_SIZE: usize = 8;
