//! ONNX graphs, read and edited at wire level: what is not changed keeps its bytes.
//!
//! Deliberately absent: shape inference, operators' meaning, and models whose weights lie in external files.

mod cut;
mod digest;
mod external;
mod graph;
mod splice;
mod wire;

pub use external::External;
pub use graph::{Input, Model};
pub use splice::HeadWeights;
