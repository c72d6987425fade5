//! torch's names: which function rebuilds what, and what a storage class holds.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::HashMap;

use crate::DType;
use crate::error::TensorFault;
use crate::pickle::arena::Quick;
use crate::pickle::{Arena, Node, NodeId};

/// What a call makes, as far as tensors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callee {
    Tensor(Version),
    /// `(tensor, requires_grad, hooks[, state])`
    Parameter,
    /// `(function, class, arguments, state)`
    FromType,
    DeviceFromCpu,
    DeviceFromNumpy,
    Quantized,
    Sparse,
    Nested,
    Jagged,
    MetaTensor,
    /// The class of an old tensor, parameter or variable, whose state says what it is.
    Class {
        is_parameter: bool,
    },
    Uninitialized,
    /// Nothing that makes a tensor.
    Other,
}

/// Which of the three functions that make a strided tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
    /// With an untyped storage, and the type among the arguments.
    V3,
}

pub(crate) fn callee(module: &str, name: &str) -> Callee {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Callee::Tensor(Version::V1),
        ("torch._utils", "_rebuild_tensor_v2") => Callee::Tensor(Version::V2),
        ("torch._utils", "_rebuild_tensor_v3") => Callee::Tensor(Version::V3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Callee::Parameter,
        ("torch._tensor" | "torch.tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => {
            Callee::FromType
        }
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => Callee::DeviceFromCpu,
        ("torch._utils", "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor") => {
            Callee::DeviceFromNumpy
        }
        ("torch._utils", "_rebuild_qtensor") => Callee::Quantized,
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => Callee::Sparse,
        ("torch._utils", "_rebuild_nested_tensor") => Callee::Nested,
        ("torch.nested._internal.nested_tensor", "_rebuild_njt") => Callee::Jagged,
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => Callee::MetaTensor,
        ("torch.nn.parameter", "Parameter") => Callee::Class { is_parameter: true },
        ("torch.nn.parameter", "Buffer") | ("torch.autograd.variable", "Variable") => {
            Callee::Class { is_parameter: false }
        }
        ("torch" | "torch.cuda", name) if name.ends_with("Tensor") => Callee::Class { is_parameter: false },
        ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => Callee::Uninitialized,
        _ => Callee::Other,
    }
}

/// What a storage class of torch holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StorageClass {
    pub(crate) name: String,
    /// None for an untyped storage, and for a type that is not one of integers.
    pub(crate) dtype: Option<DType>,
    /// The quantized type.
    pub(crate) quantized: Option<&'static str>,
    pub(crate) element_size: usize,
}

impl StorageClass {
    /// None for the name of anything else.
    pub(crate) fn new(module: &str, name: &str) -> Option<StorageClass> {
        if !matches!(module, "torch" | "torch.cuda" | "torch.storage") || !name.ends_with("Storage") {
            return None;
        }
        let (dtype, quantized) = match name {
            "DoubleStorage" => (Some(DType::Float64), None),
            "FloatStorage" => (Some(DType::Float32), None),
            "HalfStorage" => (Some(DType::Float16), None),
            "BFloat16Storage" => (Some(DType::BFloat16), None),
            "LongStorage" => (Some(DType::Int64), None),
            "IntStorage" => (Some(DType::Int32), None),
            "ShortStorage" => (Some(DType::Int16), None),
            "CharStorage" => (Some(DType::Int8), None),
            "ByteStorage" => (Some(DType::Uint8), None),
            "BoolStorage" => (Some(DType::Bool), None),
            "ComplexFloatStorage" => (Some(DType::Complex64), None),
            "ComplexDoubleStorage" => (Some(DType::Complex128), None),
            "QInt8Storage" => (Some(DType::Int8), Some("qint8")),
            "QUInt8Storage" => (Some(DType::Uint8), Some("quint8")),
            "QInt32Storage" => (Some(DType::Int32), Some("qint32")),
            // Their elements are counted in bytes, each of two or four numbers.
            "QUInt4x2Storage" => (Some(DType::Uint8), Some("quint4x2")),
            "QUInt2x4Storage" => (Some(DType::Uint8), Some("quint2x4")),
            _ => (None, None),
        };
        Some(StorageClass {
            name: name.to_owned(),
            dtype,
            quantized,
            element_size: dtype.map_or(1, DType::size),
        })
    }
}

/// How many numbers a byte of that quantized type holds.
pub(crate) fn packing(quantized: &str) -> usize {
    match quantized {
        "quint4x2" => 2,
        "quint2x4" => 4,
        _ => 1,
    }
}

/// A persistent id that names a storage.
pub(crate) struct Reference<'c> {
    pub(crate) class: &'c StorageClass,
    /// The same for all references of one class.
    pub(crate) class_id: u16,
    pub(crate) key: NodeId,
    /// In elements of the class.
    pub(crate) numel: i64,
    /// Where a legacy view begins in its storage, in elements.
    pub(crate) view_offset: i64,
    pub(crate) is_meta: bool,
}

/// A number of elements; one beyond 64 bits is as impossible as the greatest.
fn claim(arena: &Arena<'_>, node: NodeId) -> Option<i64> {
    match arena.node(node) {
        Node::Int(value) => Some(value),
        Node::BigInt(span) => match arena.bytes(span).last() {
            Some(0x80..) => Some(i64::MIN),
            _ => Some(i64::MAX),
        },
        _ => None,
    }
}

/// The storage classes of one pickle, each looked up once.
#[derive(Default)]
pub(crate) struct StorageClasses {
    known: Vec<StorageClass>,
    ids: HashMap<NodeId, Option<u16>, Quick>,
}

impl StorageClasses {
    /// Reads `('storage', class, key, location, numel[, view])` behind a persistent node; none for anything else.
    pub(crate) fn reference(&mut self, arena: &Arena<'_>, node: NodeId) -> Option<Reference<'_>> {
        let Node::Persistent(id) = arena.node(node) else {
            return None;
        };
        let &[tag, class, key, location, numel, ref view @ ..] = arena.items(id) else {
            return None;
        };
        if arena.str_bytes(tag)? != b"storage" {
            return None;
        }
        let class_id = self.class_id(arena, class)?;
        let view_offset = match view.first().map(|&view| arena.items(view)) {
            Some(&[_, offset, _]) => claim(arena, offset)?,
            _ => 0,
        };
        Some(Reference {
            class: self.known.get(usize::from(class_id))?,
            class_id,
            key,
            numel: claim(arena, numel)?,
            view_offset,
            is_meta: arena.str_bytes(location) == Some(b"meta"),
        })
    }

    fn class_id(&mut self, arena: &Arena<'_>, node: NodeId) -> Option<u16> {
        let known = &mut self.known;
        *self.ids.entry(node).or_insert_with(|| {
            let (module, name) = arena.global_name(node)?;
            let class = StorageClass::new(module, name)?;
            if let Some(id) = known.iter().position(|known| known.name == class.name) {
                return u16::try_from(id).ok();
            }
            let id = u16::try_from(known.len()).ok()?;
            known.push(class);
            Some(id)
        })
    }

    /// The name of the class of that number.
    pub(crate) fn name(&self, class_id: u16) -> &str {
        self.known
            .get(usize::from(class_id))
            .map_or("", |class| class.name.as_str())
    }
}

/// A storage's key, which is text, or a number in the files of torch.package.
pub(crate) fn key_bytes<'a>(arena: &'a Arena<'_>, key: NodeId) -> Option<Cow<'a, [u8]>> {
    match arena.str_bytes(key) {
        Some(key) => Some(Cow::Borrowed(key)),
        None => Some(Cow::Owned(arena.int(key)?.to_string().into_bytes())),
    }
}

/// `torch.float32` and the like.
pub(crate) fn dtype(arena: &Arena<'_>, node: NodeId) -> Result<DType, TensorFault> {
    let Some(("torch", name)) = arena.global_name(node) else {
        return Err(TensorFault::Malformed(
            "its dtype is not one of torch's".to_owned(),
        ));
    };
    DType::from_name(name).ok_or_else(|| TensorFault::Unsupported(format!("dtype {name}")))
}
