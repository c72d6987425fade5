//! What is done to state dicts.

pub(crate) mod cast;
pub(crate) mod copy;
pub(crate) mod freeze;
pub(crate) mod rename;
