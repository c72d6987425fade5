//! Heads on a GPU: the computations of [`solve`](crate::solve) and of the mini-batch trainer as CUDA kernels.
//!
//! The kernels are `crates/runtime/kernels/*.cu`; their PTX is part of the library, so that NVIDIA's driver is all that a
//! machine needs. cuBLASLt makes the matrix products where it is found, kernels of our own else.
//! [`backend`] is the waist: what is built above it runs on a GPU, on the emulated one of `tests/cuda_emulator`, and on the
//! reference in float64 of `cpu`, with one table of cases for each kernel (`cases`).
//!
//! Sums are made in an order that depends on the sizes alone: the same GPU gives the same bits twice, whatever runs beside.
//!
//! Deliberately absent: several GPUs, TensorFloat-32, kernels that are compiled when they are needed.

pub(crate) mod backend;
mod blas;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod emulator;
mod gemm;
pub(crate) mod network;
mod objective;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

pub use backend::Kind as Precision;
pub use cuda::Cuda;
pub use objective::{Evaluation, Gram, Objective};
