//! The solver of linear heads: Gram-preconditioned L-BFGS on scikit-learn's objective, and the choice of C.
//!
//! The problem is convex, so that there is no learning rate to tune. Boehning's bound (1992) on the Hessian of the
//! softmax loss, `C/2 X'X + I`, is the same for every class; its Cholesky factor turns the problem into one whose
//! Hessian is nearly the identity, whatever the scale and correlation of the features.

mod lbfgs;
mod linalg;
mod select;
mod softmax;

pub(crate) use linalg::matmul_transposed;
pub use select::{Candidate, Selection, select_c};
pub use softmax::{Fitted, SolverOptions, fit};
