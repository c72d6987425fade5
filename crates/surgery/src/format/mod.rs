//! Files of tensors: which format it is, safetensors, sets of files.

pub(crate) mod header;
pub(crate) mod open;
pub(crate) mod safetensors;
pub(crate) mod sharded;
