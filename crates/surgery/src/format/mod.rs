//! Files of tensors: which format it is, and safetensors.

pub(crate) mod header;
pub(crate) mod open;
pub(crate) mod safetensors;
