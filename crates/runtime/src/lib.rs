//! Frozen ONNX backbone -> cached features -> trained head -> one deployable model.
//!
//! A picture's way: [`data`] lists it, [`image`] makes network input of it, [`engine`] runs the graph that [`onnx`] cut,
//! [`features`] keeps the result ([`text`] is for graphs that take tokens), [`solve`] fits a head on all of them, [`export`] puts head and graph together and
//! proves that they agree. [`job::fit`] is all of it in one call.
//!
//! [`template`] makes graphs of checkpoints; [`grad`] differentiates the part of a graph behind a boundary, and [`tune`]
//! trains it.

mod awake;
mod contained;
pub mod data;
pub mod device;
pub mod engine;
mod error;
pub mod exchange;
pub mod export;
pub mod features;
pub mod fetch;
pub mod grad;
pub mod head;
pub mod history;
pub mod image;
pub mod job;
pub mod metrics;
mod monitor;
pub mod npy;
pub mod onnx;
mod panels;
pub mod predict;
mod random;
pub mod report;
mod scratch;
pub mod solve;
mod targets;
pub mod template;
pub mod text;
pub mod train;
pub mod tune;

pub use contained::is_contained;
pub use error::Error;
pub use monitor::{Monitor, Progress, Stage};
pub use targets::{Targets, Task};
