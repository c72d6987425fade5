//! The part of a graph behind a boundary as something that can be trained: forward, backward, gradients by name.
//!
//! [`Tail::new`] makes a program of the nodes between a boundary and an output: what depends on constants and sizes only is
//! computed then, and what the exporter took apart (an activation, a normalisation) is put together again. The weights are
//! not in it, so that one program serves any number of [`Weights`]; a [`Plan`] says which of them learn.
//! [`Frozen`] is a program with weights that do not change, for the forward pass alone.
//!
//! All numbers are float32. Pictures come in and logits go out as ONNX has them (channels before rows); between, channels
//! are the innermost axis. Sums are made in an order that depends on the sizes alone, so that any number of threads gives
//! the same bits.
//!
//! Deliberately absent: random operators (a `Dropout` is the identity, as in evaluation), second derivatives, number types
//! other than float32, and optimisers.

mod frozen;
mod gradients;
mod lower;
mod op;
mod plan;
mod program;
mod shape;
mod tail;
#[cfg(test)]
mod tests;
mod weights;
mod workspace;

pub use frozen::{Frozen, Room};
pub use gradients::Gradients;
pub use plan::{NormMode, Plan};
pub use tail::{Tail, TailOptions};
pub use weights::{Parameter, ParameterKind, Weights};
