//! ONNX Runtime: finding it, installing it, running a model with it.
//!
//! Types of the `ort` crate stay inside this folder; everything else sees slices of numbers.

mod cuda;
mod device;
mod external;
mod find;
mod install;
mod providers;
mod session;
mod tensor;

pub(crate) use cuda::driver_devices;
pub use cuda::{CudaMissing, cuda_devices};
pub use device::Device;
pub use find::{Candidate, Found, Origin, candidates, find};
pub use install::{InstallReport, install, installed_dir};
pub use providers::{providers, short_provider};
pub use session::{Engine, Session, SessionOptions};
pub use tensor::{Input, Output, OutputView};
