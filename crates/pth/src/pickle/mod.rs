//! The pickle machine: bytes -> an arena of inert nodes. Nothing is looked up, imported or called.
//!
//! Deliberately absent: recursion, evaluation, and copies of memoised values.
//! A memo entry is the id of a node, so that aliases and cycles stay what they are.

pub(crate) mod arena;
pub(crate) mod op;
pub(crate) mod read;
pub(crate) mod render;
pub(crate) mod safety;
mod text;
pub(crate) mod write;

pub(crate) use arena::{Arena, Node, NodeId};
