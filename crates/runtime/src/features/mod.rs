//! Features of a frozen backbone, computed once: keyed by what they depend on, found again by the bytes of a picture.
//!
//! [`extract`] fills cache entries; [`Store`] is one of them, [`Manifest`] says which row is which sample; [`Shard`] and
//! [`Job`] split the work among processes; [`list_entries`], [`verify_cache`], [`collect_garbage`] and [`explain`] look
//! after a whole cache.

mod block;
mod cache;
mod extract;
mod extraction;
mod index;
mod job;
mod key;
mod manifest;
mod matrix;
mod pipeline;
mod pool;
mod reasons;
mod recompute;
mod runner;
mod shard;
mod store;
mod texts;
mod work;
mod writer;

pub use cache::{
    EntryInfo, GarbageOptions, KeyState, Problem, Removed, Verification, collect_garbage, explain,
    list_entries, verify_cache,
};
pub use extract::{ExtractConfig, Preparation, Tap, Views, extract, keys};
pub(crate) use extract::{check_input, sessions_for};
pub use extraction::Extraction;
pub use job::{Finalized, Job, JobStatus, Plan};
pub use key::{Difference, FeatureType, Key, KeySpec, Recipe, ViewKey};
pub use manifest::{Header, Labelled, Line, Manifest, save_manifest};
pub use matrix::Features;
pub(crate) use matrix::{Piece, max_abs};
pub(crate) use pipeline::{Kept, Pipeline, Spent};
pub use pool::Pool;
pub(crate) use recompute::{Recomputed, Wanted};
pub use shard::{Shard, to_array_expression};
pub(crate) use store::write_whole;
pub use store::{Budget, RowId, Store, default_cache};
pub(crate) use work::prepare;
pub use writer::DEFAULT_BLOCK_ROWS;
