//! Bytes of a PyTorch checkpoint <-> named tensors, without Python and without executing anything in the file.

mod atomic;
mod dtype;
mod error;
mod layout;
mod limits;
mod map;
mod state_dict;
mod storage;
mod tensor;

pub use atomic::{AtomicFile, Existing, FileError};
pub use dtype::DType;
pub use error::{Error, PickleFault, TensorFault};
pub use map::FileMap;
pub use state_dict::{ModuleVersion, StateDict};
pub use storage::{ByteOrder, Storage};
pub use tensor::Tensor;
