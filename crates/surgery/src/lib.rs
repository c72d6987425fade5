//! State dicts in, state dicts out: safetensors, renaming, freezing.
#![forbid(unsafe_code)]

mod error;
mod format;
mod marks;
mod pattern;

pub use error::Error;
pub use format::safetensors::{SaveReport, open_safetensors, save_safetensors};
pub use pattern::Pattern;
