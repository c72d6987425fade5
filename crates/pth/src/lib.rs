//! Bytes of a PyTorch checkpoint <-> named tensors, without Python and without executing anything in the file.

mod atomic;

pub use atomic::{AtomicFile, Existing, FileError};
