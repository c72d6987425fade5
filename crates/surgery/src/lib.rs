//! State dicts in, state dicts out: safetensors, renaming, freezing.
//!
//! Begin with [`open`] for any supported file.
#![forbid(unsafe_code)]

mod distance;
mod error;
mod format;
mod marks;
mod op;
mod pattern;

pub use distance::edit_distance;
pub use error::Error;
pub use format::edit::{HeaderEdit, edit_header, recover_header};
pub use format::open::{Format, Opened, is_safetensors, open, open_with};
pub use format::pieces::{Piece, Pieces};
pub use format::safetensors::{SaveReport, open_safetensors, save_safetensors, save_safetensors_as};
pub use marks::{can_train, is_buffer_name};
pub use op::copy::deep_copy;
pub use op::freeze::{freeze, unfreeze};
pub use op::rename::{rename_prefix, strip_prefix};
pub use pattern::Pattern;
