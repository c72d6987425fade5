//! ONNX Runtime: finding it, installing it, running a model with it.
//!
//! Types of the `ort` crate stay inside `session.rs`; everything else sees slices of `f32`.

mod find;
mod install;
mod session;

pub use find::{Candidate, Found, Origin, candidates, find};
pub use install::{InstallReport, install, installed_dir};
pub use session::{Engine, Session, SessionOptions};
