//! Files of tensors: which format it is, safetensors, sets of files, adapters.

pub(crate) mod adapter;
pub(crate) mod header;
pub(crate) mod open;
pub(crate) mod safetensors;
pub(crate) mod sharded;
