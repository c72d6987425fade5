//! Files of tensors: which format it is, and safetensors.

mod header;
pub(crate) mod open;
pub(crate) mod safetensors;
