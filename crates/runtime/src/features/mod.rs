//! Features of a frozen backbone, computed once: keyed by what they depend on, found again by the bytes of a picture.

mod extract;
mod key;
mod manifest;
mod matrix;
mod store;

pub use extract::{ExtractConfig, Extraction, LeftOut, extract};
pub(crate) use extract::{check_input, pixels_of, sessions_for};
pub use key::Key;
pub use manifest::{Labelled, Manifest, Row};
pub use matrix::Features;
pub use store::{RowId, Store, default_cache};
