//! ONNX graphs, read and edited at wire level: what is not changed keeps its bytes.
//!
//! Deliberately absent: shape inference and the operators' meaning.

pub(crate) mod attribute;
mod boundary;
mod check;
mod cut;
mod digest;
mod external;
mod graph;
mod made;
mod node;
mod operation;
mod save;
mod splice;
mod tensor;
#[cfg(test)]
pub(crate) mod tests;
mod values;
mod weights;
pub(crate) mod wire;

#[cfg(test)]
pub(crate) use tests::build::graph as test_graph;

pub use boundary::Boundary;
pub(crate) use cut::nearest;
pub use external::External;
pub use graph::Model;
pub(crate) use made::{Axis, Made, MadeNode, MadeTensor};
pub use node::Input;
pub(crate) use operation::{Numbers, Operation, Values};
pub use splice::{Outputs, Reduction};
pub use tensor::type_name;
pub use weights::{
    ClassifierLayer, DEFAULT_BATCH_NORM_EPS, FoldedNorm, Parameter, WeightsFrom, WeightsOptions,
    WeightsReport,
};
