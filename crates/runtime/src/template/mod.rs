//! Graphs from checkpoints: a text that says how a network is built, and a state dict that fits it, make an ONNX model.
//!
//! A template is written in the part of Python that `torch.nn` classes are written in: classes with `__init__` and `forward`,
//! functions, loops, comprehensions. It is interpreted here, and never by Python. Beside the language's own names there are
//! `@model`, which says of a class or a function that it is a network (in a file without one it is the last), and three questions
//! to the checkpoint: `size(name, axis, otherwise)`, `count("blocks.{}.norm1.weight")` and `has(name)`. What is imported from
//! torch, torchvision or timm is what is shipped here: [`Template::shipped`] lists the networks.
//!
//! Deliberately absent: values. A template knows the sizes of tensors, and the checkpoint has their numbers; `fresh` draws
//! some where there is none.

mod call;
mod emit;
mod fault;
mod fit;
mod fresh;
mod functions;
mod interpreter;
mod lex;
mod open;
mod parse;
mod shipped;
mod summary;
mod syntax;
#[cfg(test)]
mod tests;
mod trace;
mod value;

pub use emit::InputSize;
pub use fault::TemplateError;
pub use fit::{Choice, NoTemplate, Template};
pub use open::{GraphOptions, Made, open_graph};
pub use summary::{BatchSize, Column, NetworkRow, NetworkSummary, SummaryFormat};
