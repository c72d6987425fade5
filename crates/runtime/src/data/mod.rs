//! Labelled pictures: which files, which class, which split. Labels lie beside the features, never in their key.

mod folder;

pub use folder::{Dataset, Picture, Split, SplitRule, list_pictures};
