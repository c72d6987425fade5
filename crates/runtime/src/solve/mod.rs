//! The solver of linear heads: Gram-preconditioned L-BFGS on scikit-learn's objective, and the choice of C.
//!
//! The problem is convex, so that there is no learning rate to tune, and `precondition.rs` takes the scale and the
//! correlation of the features out of it.

mod config;
mod lbfgs;
mod linalg;
mod precondition;
mod select;
mod softmax;

pub use config::ClassWeights;
pub(crate) use linalg::matmul_transposed;
pub use select::{Candidate, Selection, select_c};
pub use softmax::{Fitted, SolverOptions, fit};
