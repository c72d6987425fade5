//! What is done to state dicts: the verbs of the language, one file per family.
//!
//! Each verb is a struct with what its words say, a function that reads it, and [`Operation::apply`](crate::plan::Operation).

pub(crate) mod align;
pub(crate) mod cast;
pub(crate) mod channels;
pub(crate) mod deep_copy;
pub(crate) mod expect;
pub(crate) mod files;
pub(crate) mod fold;
pub(crate) mod freeze;
pub(crate) mod group;
pub(crate) mod init;
mod interpolation;
pub(crate) mod join;
pub(crate) mod load;
pub(crate) mod lora;
pub(crate) mod math;
pub(crate) mod merge;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod resample;
pub(crate) mod select;
pub(crate) mod shape;

mod matching;
mod matrix;
mod svd;

use matching::{map_tensors, matched, names_at, pairs_of};
