//! Files of tensors, single and in sets: which format it is, and safetensors.

pub(crate) mod adapter;
mod canonical;
mod dcp;
pub(crate) mod edit;
mod folder;
pub(crate) mod header;
mod index;
pub(crate) mod open;
pub(crate) mod pieces;
mod read;
pub(crate) mod safetensors;
mod sharded;
pub(crate) mod ties;
