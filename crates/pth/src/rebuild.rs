//! The globals that are understood: torch's functions that rebuild a tensor, read as what they would make.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::HashMap;

use crate::container::Contents;
use crate::error::TensorFault;
use crate::pickle::{Arena, Node, NodeId};
use crate::tensor::Pending;
use crate::{DType, Storage, Tensor, objects};

/// Wrappers around a tensor: Parameter around a subclass around a device copy. More than a few is an attack.
const MAX_WRAPPERS: usize = 8;

/// A persistent id that names a storage.
pub(crate) struct Reference<'a> {
    pub(crate) key: Cow<'a, str>,
    /// None for an untyped storage, or one whose type is not read.
    pub(crate) dtype: Option<DType>,
    pub(crate) class: &'a str,
    pub(crate) element_size: usize,
    /// In elements of the class.
    pub(crate) numel: u64,
    /// Where a legacy view begins in its storage, in elements.
    pub(crate) view_offset: usize,
    pub(crate) is_meta: bool,
}

/// The element type of torch's typed storage classes.
pub(crate) fn class_dtype(class: (&str, &str)) -> Option<DType> {
    if !matches!(class.0, "torch" | "torch.cuda" | "torch.storage") {
        return None;
    }
    Some(match class.1 {
        "DoubleStorage" => DType::Float64,
        "FloatStorage" => DType::Float32,
        "HalfStorage" => DType::Float16,
        "BFloat16Storage" => DType::BFloat16,
        "LongStorage" => DType::Int64,
        "IntStorage" => DType::Int32,
        "ShortStorage" => DType::Int16,
        "CharStorage" => DType::Int8,
        "ByteStorage" => DType::Uint8,
        "BoolStorage" => DType::Bool,
        "ComplexFloatStorage" => DType::Complex64,
        "ComplexDoubleStorage" => DType::Complex128,
        _ => return None,
    })
}

/// Reads `('storage', class, key, location, numel[, view])` behind a persistent node; none for anything else.
pub(crate) fn reference(arena: &Arena, node: NodeId) -> Option<Reference<'_>> {
    let Node::Persistent(id) = arena.node(node) else {
        return None;
    };
    let &[tag, class, key, location, numel, ref view @ ..] = arena.items(id) else {
        return None;
    };
    if arena.str(tag)? != "storage" {
        return None;
    }
    let class = arena.global_name(class)?;
    let key = arena
        .str(key)
        .or_else(|| Some(arena.int(key)?.to_string().into()))?;
    let dtype = class_dtype(class);
    let element_size = match (dtype, class.1) {
        (Some(dtype), _) => dtype.size(),
        (None, "QInt32Storage") => 4,
        (None, _) => 1,
    };
    let view_offset = match view.first().map(|&view| arena.items(view)) {
        Some(&[_, offset, _]) => usize::try_from(arena.int(offset)?).ok()?,
        _ => 0,
    };
    Some(Reference {
        key,
        dtype,
        class: class.1,
        element_size,
        numel: u64::try_from(arena.int(numel)?).ok()?,
        view_offset,
        is_meta: arena.str(location).is_some_and(|location| location == "meta"),
    })
}

/// Makes tensors of nodes, each storage once.
pub(crate) struct Rebuilder<'c> {
    contents: &'c Contents,
    storages: HashMap<String, (Storage, String)>,
}

/// The arguments of a call that makes a tensor.
type Args<'a> = &'a [NodeId];

impl<'c> Rebuilder<'c> {
    pub(crate) fn new(contents: &'c Contents) -> Rebuilder<'c> {
        Rebuilder {
            contents,
            storages: HashMap::new(),
        }
    }

    /// The tensor that `node` stands for; none if it stands for something else.
    pub(crate) fn tensor(&mut self, node: NodeId) -> Option<Result<Tensor, TensorFault>> {
        let arena = &self.contents.arena;
        match arena.node(node) {
            Node::Persistent(_) => return Some(self.whole_storage(node)),
            Node::Call { .. } | Node::CallEx { .. } => {}
            _ => return None,
        }
        let mut requires_grad = None;
        let mut node = node;
        let mut name = arena.callee_name(node)?;
        let mut args: Args<'c> = arena.args(node);
        let mut is_tensor = false;
        for _ in 0..MAX_WRAPPERS {
            let flag = |at: usize| args.get(at).map(|&flag| arena.node(flag) == Node::Bool(true));
            let inner = match name {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                    requires_grad = requires_grad.or(flag(1));
                    args.first()
                }
                ("torch._tensor" | "torch.tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => {
                    // (function, class, its arguments, state)
                    let (Some(&function), Some(&inner)) = (args.first(), args.get(2)) else {
                        return Some(malformed("a tensor subclass without its function"));
                    };
                    let Some(function) = arena.global_name(function) else {
                        return Some(malformed("a tensor subclass without its function"));
                    };
                    name = function;
                    args = arena.items(inner);
                    is_tensor = true;
                    continue;
                }
                ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => args.first(),
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                    let tensor = self.strided(name.1, args);
                    return Some(tensor.map(|tensor| match requires_grad {
                        Some(requires_grad) => tensor.with_requires_grad(requires_grad),
                        None => tensor,
                    }));
                }
                ("torch.nn.parameter", "Parameter" | "Buffer")
                | ("torch.autograd.variable", "Variable")
                | ("torch" | "torch.cuda", _) => match old_state(arena, node) {
                    Some(OldState::View(view)) => {
                        let tensor = self.strided("_rebuild_tensor", view);
                        return Some(tensor.map(|t| t.with_requires_grad(requires_grad.unwrap_or(false))));
                    }
                    Some(OldState::Data { data, trains }) => {
                        requires_grad = requires_grad.or(Some(trains));
                        Some(data)
                    }
                    None if name.1 == "Parameter" && !args.is_empty() => {
                        requires_grad = requires_grad.or(flag(1));
                        args.first()
                    }
                    None => return is_tensor.then(|| malformed("no data")),
                },
                (module, function) => {
                    return match unsupported(module, function) {
                        Some(why) => Some(Err(TensorFault::Unsupported(why.to_owned()))),
                        None if is_tensor => Some(Err(TensorFault::Unsupported(format!(
                            "needs {module}.{function}"
                        )))),
                        None => None,
                    };
                }
            };
            let Some(&inner) = inner else {
                return Some(malformed("a parameter without its tensor"));
            };
            is_tensor = true;
            node = inner;
            let Some(inner_name) = arena.callee_name(node) else {
                return Some(malformed("a parameter that holds no tensor"));
            };
            (name, args) = (inner_name, arena.args(node));
        }
        Some(malformed("too many wrappers around a tensor"))
    }

    fn strided(&mut self, function: &str, args: Args<'c>) -> Result<Tensor, TensorFault> {
        let arena = &self.contents.arena;
        let &[storage, offset, size, stride, ref rest @ ..] = args else {
            return malformed("fewer than four arguments");
        };
        let Some(reference) = reference(arena, storage) else {
            return malformed("its storage is no reference to one");
        };
        let flag = |at: usize| {
            rest.get(at)
                .is_some_and(|&flag| arena.node(flag) == Node::Bool(true))
        };
        // v2: requires_grad, hooks, metadata. v3: requires_grad, hooks, dtype, metadata.
        let (dtype, metadata) = if function == "_rebuild_tensor_v3" {
            let named = rest.get(2).and_then(|&dtype| arena.global_name(dtype));
            let Some(("torch", named)) = named else {
                return malformed("its dtype is not one of torch's");
            };
            let dtype =
                DType::from_name(named).ok_or_else(|| TensorFault::Unsupported(format!("dtype {named}")))?;
            (dtype, rest.get(3))
        } else {
            let dtype = reference.dtype.ok_or_else(|| {
                TensorFault::Unsupported(format!("a tensor over torch.{}", reference.class))
            })?;
            (dtype, rest.get(2))
        };
        let number = |node: NodeId| arena.int(node).and_then(|value| usize::try_from(value).ok());
        let (Some(offset), Some(shape), Some(stride)) = (
            number(offset),
            objects::sizes(arena, size),
            objects::sizes(arena, stride),
        ) else {
            return malformed("offset, size or stride is not a natural number");
        };
        let Some(offset) = offset.checked_add(reference.view_offset) else {
            return Err(TensorFault::Overflow { shape });
        };
        if reference.is_meta {
            return Err(TensorFault::Unsupported(
                "it is on the meta device and has no data".to_owned(),
            ));
        }
        let requires_grad = flag(0);
        let pending = metadata.map_or_else(Pending::default, |&metadata| {
            let entries = objects::mapping(arena, metadata).unwrap_or_default();
            let is_set = |key| {
                objects::get(arena, &entries, key).is_some_and(|value| arena.node(value) == Node::Bool(true))
            };
            Pending {
                conj: is_set("conj"),
                neg: is_set("neg"),
            }
        });
        let storage = self.storage(&reference)?;
        let tensor = Tensor::view(storage, dtype, shape, stride, offset)?;
        Ok(tensor.with_requires_grad(requires_grad).with_pending(pending))
    }

    /// A storage that is a value of its own, as a tensor of one dimension.
    fn whole_storage(&mut self, node: NodeId) -> Result<Tensor, TensorFault> {
        let Some(reference) = reference(&self.contents.arena, node) else {
            return malformed("a reference that names no storage");
        };
        let dtype = match (reference.dtype, reference.class) {
            (Some(dtype), _) => dtype,
            (None, "UntypedStorage") => DType::Uint8,
            (None, class) => return Err(TensorFault::Unsupported(format!("a torch.{class}"))),
        };
        let numel = usize::try_from(reference.numel).unwrap_or(usize::MAX);
        let storage = self.storage(&reference)?;
        Tensor::view(storage, dtype, vec![numel], vec![1], reference.view_offset)
    }

    fn storage(&mut self, reference: &Reference<'_>) -> Result<Storage, TensorFault> {
        let key = reference.key.as_ref();
        if let Some((storage, class)) = self.storages.get(key) {
            if class != reference.class && storage.nbytes() > 0 {
                return Err(TensorFault::StorageDType {
                    key: key.to_owned(),
                    first: class.clone(),
                    second: reference.class.to_owned(),
                });
            }
            return Ok(storage.clone());
        }
        let size = u64::try_from(reference.element_size).unwrap_or(u64::MAX);
        let expected = reference
            .numel
            .checked_mul(size)
            .ok_or_else(|| TensorFault::Overflow {
                shape: vec![usize::try_from(reference.numel).unwrap_or(usize::MAX)],
            })?;
        let storage = match self.contents.storage(key) {
            Some(Ok(storage)) => storage,
            Some(Err(why)) => return Err(TensorFault::Malformed(format!("storage `{key}`: {why}"))),
            // libtorch writes no record for what is empty.
            None if expected == 0 => Storage::owned(Vec::new()).labelled(self.contents.byte_order, key),
            None => return Err(TensorFault::MissingStorage(key.to_owned())),
        };
        let found = u64::try_from(storage.nbytes()).unwrap_or(u64::MAX);
        // A torch bug leaves one byte or more in the records of some empty storages; nothing can reach it.
        if found != expected && expected > 0 {
            return Err(TensorFault::StorageSize {
                key: key.to_owned(),
                expected,
                found,
            });
        }
        self.storages
            .insert(key.to_owned(), (storage.clone(), reference.class.to_owned()));
        Ok(storage)
    }
}

/// States that `__setstate__` took before torch 0.4.
enum OldState<'a> {
    /// (storage, offset, size, stride)
    View(Args<'a>),
    /// (data, gradient, hooks, requires_grad, ...)
    Data { data: &'a NodeId, trains: bool },
}

fn old_state(arena: &Arena, node: NodeId) -> Option<OldState<'_>> {
    let state = arena.items(*arena.states(node).last()?);
    match state {
        [storage, _, _, _] if matches!(arena.node(*storage), Node::Persistent(_)) => {
            Some(OldState::View(state))
        }
        [data, _, _, trains, _] if matches!(arena.node(*data), Node::Call { .. }) => Some(OldState::Data {
            data,
            trains: arena.node(*trains) == Node::Bool(true),
        }),
        _ => None,
    }
}

/// Tensors of a kind that this crate knows and does not read.
fn unsupported(module: &str, function: &str) -> Option<&'static str> {
    Some(match (module, function) {
        ("torch._utils", "_rebuild_qtensor") => "quantized",
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => "sparse",
        ("torch._utils", "_rebuild_nested_tensor") => "nested",
        ("torch.nested._internal.nested_tensor", "_rebuild_njt") => "nested (jagged)",
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => "it is on the meta device and has no data",
        ("torch._utils", "_rebuild_wrapper_subclass") => "a tensor subclass made of other tensors",
        ("torch._utils", "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor") => {
            "stored as a numpy array"
        }
        ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => {
            "it was never initialised"
        }
        _ => return None,
    })
}

fn malformed<T>(what: &str) -> Result<T, TensorFault> {
    Err(TensorFault::Malformed(what.to_owned()))
}
