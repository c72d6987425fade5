//! Bytes of a PyTorch checkpoint <-> named tensors, without Python and without executing anything in the file.
//!
//! Begin with [`Checkpoint::open`].

mod atomic;
mod checkpoint;
mod container;
mod diagnose;
mod dtype;
mod error;
mod layout;
mod limits;
mod map;
mod objects;
mod pickle;
mod rebuild;
mod state_dict;
mod storage;
mod tensor;
mod walk;

pub use atomic::{AtomicFile, Existing, FileError};
pub use checkpoint::{Checkpoint, Other, Problem};
pub use container::Format;
pub use dtype::DType;
pub use error::{Error, PickleFault, TensorFault};
pub use map::FileMap;
pub use state_dict::{ModuleVersion, StateDict};
pub use storage::{ByteOrder, Storage};
pub use tensor::Tensor;
