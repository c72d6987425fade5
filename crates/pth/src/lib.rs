//! Bytes of a PyTorch checkpoint <-> named tensors, without Python and without executing anything in the file.
//!
//! Begin with [`Checkpoint::open`].

#![deny(unsafe_code)]

mod archive;
mod atomic;
mod bare;
mod checkpoint;
mod container;
mod diagnose;
mod dtype;
mod error;
mod finding;
mod gather;
mod layout;
mod limits;
mod module;
mod numpy;
mod objects;
mod pickle;
mod plain;
mod reader;
mod rebuild;
mod record;
mod save;
mod scan;
mod source;
mod state_dict;
mod storage;
mod tensor;
mod value;
mod verify;
mod walk;
mod weights_only;

pub use archive::{Archive, Slot};
pub use atomic::{AtomicFile, Existing, FileError, put_in_place, sync_folder};
pub use bare::read_pickle;
pub use checkpoint::{Checkpoint, Other, Problem};
pub use container::{Format, ModuleSource, OpenOptions};
pub use dtype::DType;
pub use error::{Error, PickleFault, TensorFault};
pub use finding::{Finding, Severity};
pub use numpy::Array;
pub use plain::Change;
pub use reader::TensorReader;
pub use record::{QScheme, Record, RecordKind};
pub use save::{Profile, SaveOptions, save, save_state_dict, save_to_bytes};
pub use scan::{GlobalUse, GlobalVerdict, Scan, WeightsOnly, scan};
pub use source::{Backing, Source};
pub use state_dict::{Entry, ModuleVersion, StateDict};
pub use storage::{ByteOrder, Storage};
pub use tensor::Tensor;
pub use value::{Dict, Module, Object, Value};
pub use verify::{Verification, verify};
