//! The solver of linear heads: scikit-learn's objectives to their minimum, for one C or many, without a learning rate;
//! and what can be said of features in closed form.
//!
//! [`fit`] and [`path`] are preconditioned L-BFGS on the softmax or on sigmoids, [`select()`] chooses C on held-out rows.
//!
//! A pass: `rows` prepares a few hundred rows, `kernel` multiplies, `loss` makes residuals, `problem` puts it together;
//! `lbfgs` searches in the metric of `precondition`, `rehearsal` finds the lengths of its steps, `solver` leads it from C to C,
//! `progress` says when it is done.

mod cholesky;
mod closed;
mod config;
mod eigen;
mod fit;
mod gram;
mod kernel;
mod knn;
mod lbfgs;
mod leave_one_out;
pub(crate) mod linalg;
mod loss;
mod precondition;
mod problem;
mod progress;
mod rehearsal;
mod ridge;
mod rows;
mod scalar;
mod select;
mod solver;
mod targets;
#[cfg(test)]
mod tests;
mod vector;

pub use closed::{Closed, lda, nearest_mean};
pub use config::{ClassWeights, SolverConfig};
pub use fit::{Fitted, Trace, fit, fit_traced, path};
pub use knn::{Knn, KnnConfig, Metric, Vote, knn};
pub use leave_one_out::{LeaveOneOut, Penalty, Suspect, leave_one_out};
pub(crate) use linalg::matmul_transposed;
pub(crate) use precondition::MAX_DENSE;
pub use select::{Candidate, HoldOut, SelectConfig, Selection, Values, select};
