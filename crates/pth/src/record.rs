//! Tensors that are not one strided array: quantized, sparse, nested, on the meta device, or made of others by a subclass.

use std::fmt;

use crate::Tensor;

/// A tensor that is made of several, or of none. Its parts are ordinary tensors; nothing is decoded.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Element type as torch spells it (`qint8`, `float32`); empty where the file does not say.
    pub dtype: String,
    /// Sizes, outermost first; empty also where the file does not say.
    pub shape: Vec<usize>,
    /// Steps in elements, for the kinds that have them (quantized, meta).
    pub stride: Vec<usize>,
    /// Whether training would change it.
    pub requires_grad: bool,
    /// Whether it is a `torch.nn.Parameter`.
    pub is_parameter: bool,
    /// What it is made of, under the names that torch's methods have for them: `indices`, `values`, `int_repr`, `scales`.
    pub parts: Vec<(String, Tensor)>,
}

/// What a [`Record`] is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RecordKind {
    /// Integers with scales; part `int_repr`, and per channel `scales [C]` and `zero_points [C]`.
    ///
    /// `int_repr` has the record's shape and stride, but for the packed types (`quint4x2`, `quint2x4`), where it is the bytes.
    Quantized(QScheme),
    /// Parts `indices [n_sparse, nnz]` and `values [nnz, ...]`.
    SparseCoo {
        /// Whether the indices are sorted and unique, where the file says so.
        is_coalesced: Option<bool>,
    },
    /// `sparse_csr`, `sparse_csc`, `sparse_bsr` or `sparse_bsc`; three parts named as torch's methods.
    SparseCompressed(&'static str),
    /// Parts `values` (all elements in one row), `sizes`, `strides`, `offsets`.
    Nested,
    /// A nested tensor with one ragged dimension; parts under their names in the file (`values`, `offsets`, ...).
    Jagged,
    /// Shape and type without data.
    Meta,
    /// A tensor subclass of which the file holds the attributes; parts are the tensors among them.
    Subclass {
        /// `module.name` of the class.
        class: String,
        /// The other attributes, in Python's spelling.
        values: Vec<(String, String)>,
    },
}

/// How quantized integers stand for real numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum QScheme {
    /// `scale * (q - zero_point)`.
    PerTensor {
        /// Whether `torch.per_tensor_symmetric` is named.
        is_symmetric: bool,
        /// Real size of one step.
        scale: f64,
        /// The integer that stands for zero.
        zero_point: i64,
    },
    /// The same with a scale and a zero point for each index of dimension `axis`.
    PerChannel {
        /// The name in torch: `per_channel_affine`, `per_channel_symmetric`, `per_channel_affine_float_qparams`.
        name: &'static str,
        /// The dimension of the channels.
        axis: usize,
    },
}

impl RecordKind {
    /// One word: `quantized`, `sparse_coo`, `sparse_csr`, `nested`, `jagged`, `meta`, `subclass`.
    pub fn as_str(&self) -> &'static str {
        match self {
            RecordKind::Quantized(_) => "quantized",
            RecordKind::SparseCoo { .. } => "sparse_coo",
            RecordKind::SparseCompressed(layout) => layout,
            RecordKind::Nested => "nested",
            RecordKind::Jagged => "jagged",
            RecordKind::Meta => "meta",
            RecordKind::Subclass { .. } => "subclass",
        }
    }

    /// What there is to know beside the parts, as names and texts.
    pub fn facts(&self) -> Vec<(String, String)> {
        let fact = |name: &str, value: &dyn fmt::Display| (name.to_owned(), value.to_string());
        match self {
            RecordKind::Quantized(QScheme::PerTensor {
                is_symmetric,
                scale,
                zero_point,
            }) => {
                let scheme = if *is_symmetric {
                    "per_tensor_symmetric"
                } else {
                    "per_tensor_affine"
                };
                vec![
                    fact("qscheme", &scheme),
                    fact("scale", &crate::pickle::render::float_repr(*scale)),
                    fact("zero_point", zero_point),
                ]
            }
            RecordKind::Quantized(QScheme::PerChannel { name, axis }) => {
                vec![fact("qscheme", name), fact("axis", axis)]
            }
            RecordKind::SparseCoo {
                is_coalesced: Some(is_coalesced),
            } => vec![fact("is_coalesced", is_coalesced)],
            RecordKind::Subclass { class, values } => {
                let mut facts = vec![fact("class", class)];
                facts.extend(values.iter().cloned());
                facts
            }
            _ => Vec::new(),
        }
    }
}

impl Record {
    /// The part of that name.
    pub fn part(&self, name: &str) -> Option<&Tensor> {
        self.parts
            .iter()
            .find(|(part, _)| part == name)
            .map(|(_, tensor)| tensor)
    }
}
