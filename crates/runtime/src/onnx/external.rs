//! Initialisers whose bytes lie outside the model's own.

use std::sync::Arc;

use super::graph::Model;

/// An initialiser that the graph names and whose bytes are handed to ONNX Runtime beside it.
#[derive(Debug, Clone)]
pub struct External {
    /// The tensor's name.
    pub name: String,
    /// `TensorProto.DataType`.
    pub dtype: i64,
    /// The sizes of its axes.
    pub shape: Vec<usize>,
    /// Its elements, row-major, little-endian.
    pub bytes: Arc<[u8]>,
}

impl External {
    /// Its elements, row-major, little-endian; the address stays when the struct moves.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Model {
    /// Initialisers whose bytes lie outside [`Model::bytes`].
    pub fn external(&self) -> &[External] {
        &[]
    }
}
