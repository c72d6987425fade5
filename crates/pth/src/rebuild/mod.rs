//! The globals that are understood: torch's functions that rebuild a tensor, read as what they would make.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

mod class;
mod records;

use std::collections::HashMap;

pub(crate) use class::{Callee, StorageClass, StorageClasses, Version, key_bytes};

use crate::container::Container;
use crate::error::TensorFault;
use crate::pickle::arena::Quick;
use crate::pickle::{Node, NodeId};
use crate::tensor::{Dims, Pending};
use crate::{DType, Record, Storage, Tensor, numpy, objects};

/// Wrappers around a tensor: Parameter around a subclass around a device copy. More than a few is an attack.
const MAX_WRAPPERS: usize = 8;

/// What a node turns out to be.
#[derive(Debug, Clone)]
pub(crate) enum Made {
    Tensor(Tensor),
    Record(Box<Record>),
}

impl Made {
    fn marked(self, parameter: Option<bool>) -> Made {
        match (self, parameter) {
            (made, None) => made,
            (Made::Tensor(tensor), Some(requires_grad)) => Made::Tensor(tensor.into_parameter(requires_grad)),
            (Made::Record(mut record), Some(requires_grad)) => {
                record.requires_grad = requires_grad;
                record.is_parameter = true;
                Made::Record(record)
            }
        }
    }
}

/// Makes tensors of nodes, each storage once.
pub(crate) struct Rebuilder<'c> {
    container: &'c Container<'c>,
    callees: HashMap<NodeId, Callee, Quick>,
    classes: StorageClasses,
    /// The class under which each storage was first referred to, by index.
    class_of: Vec<u16>,
    /// Nodes that were looked at as tensors, by their place in the arena.
    is_seen: Vec<bool>,
    dims: Vec<Option<Dims>>,
    sizes: Vec<usize>,
    strides: Vec<usize>,
}

/// The arguments of a call that makes a tensor.
type Args<'a> = &'a [NodeId];

/// No reference was met yet.
const NO_CLASS: u16 = u16::MAX;

/// How many shapes are remembered for the next tensor that has the same.
const N_DIMS: usize = 256;

impl<'c> Rebuilder<'c> {
    pub(crate) fn new(container: &'c Container<'c>) -> Rebuilder<'c> {
        Rebuilder {
            container,
            callees: HashMap::default(),
            classes: StorageClasses::default(),
            class_of: vec![NO_CLASS; container.table.len()],
            is_seen: vec![false; container.arena.n_stored()],
            dims: vec![None; N_DIMS],
            sizes: Vec::new(),
            strides: Vec::new(),
        }
    }

    fn callee(&mut self, node: NodeId) -> Callee {
        let arena = &self.container.arena;
        *self.callees.entry(node).or_insert_with(|| {
            arena
                .global_name(node)
                .map_or(Callee::Other, |(module, name)| class::callee(module, name))
        })
    }

    /// Whether the call makes a tensor, of whatever kind.
    pub(crate) fn makes_tensor(&mut self, node: NodeId) -> bool {
        let callee = self.container.arena.callee(node);
        match callee.map(|callee| self.callee(callee)) {
            // An old class only with a state that holds a storage, which is found below it.
            None | Some(Callee::Other | Callee::Class { .. }) => false,
            Some(_) => true,
        }
    }

    /// How many tensors there are that nothing has looked at: attributes of tensors, and places that are not understood.
    pub(crate) fn n_unseen(&mut self) -> usize {
        let arena = &self.container.arena;
        let mut n_unseen = 0_usize;
        for id in arena.ids() {
            let is_seen = self.is_seen.get(id.place()).copied().unwrap_or(true);
            if !is_seen && arena.callee(id).is_some() && self.makes_tensor(id) {
                n_unseen = n_unseen.saturating_add(1);
            }
        }
        n_unseen
    }

    /// The tensor that `node` stands for; none if it stands for something else.
    pub(crate) fn tensor(&mut self, node: NodeId) -> Option<Result<Made, TensorFault>> {
        let arena = &self.container.arena;
        match arena.node(node) {
            Node::Persistent(_) if arena.global_name(node).is_none() => {
                return Some(self.whole_storage(node).map(Made::Tensor));
            }
            Node::Call { .. } | Node::CallEx { .. } => {}
            _ => return None,
        }
        // Whether a Parameter was met on the way, and whether it trains.
        let mut parameter = None;
        let mut trains = None;
        let mut node = node;
        let mut callee = self.callee(arena.callee(node)?);
        let mut args: Args<'c> = arena.args(node);
        let mut is_tensor = false;
        for _ in 0..MAX_WRAPPERS {
            if let Some(seen) = self.is_seen.get_mut(node.place()) {
                *seen = true;
            }
            let is_class = matches!(callee, Callee::Class { .. } | Callee::Other);
            if !is_class && arena.is_changed_later(node) {
                return Some(malformed("a tensor that is changed after it was made"));
            }
            let flag = |at: usize| args.get(at).map(|&flag| arena.node(flag) == Node::Bool(true));
            let inner = match callee {
                Callee::Tensor(version) => {
                    let made = self.strided(version, args).map(|made| match (made, trains) {
                        (Made::Tensor(tensor), Some(trains)) => {
                            Made::Tensor(tensor.with_requires_grad(trains))
                        }
                        (made, _) => made,
                    });
                    return Some(made.map(|made| made.marked(parameter)));
                }
                Callee::Parameter => {
                    parameter = parameter.or(Some(flag(1).unwrap_or(true)));
                    args.first()
                }
                Callee::FromType => {
                    let &[function, class, inner, ref state @ ..] = args else {
                        return Some(malformed("a tensor subclass without its function"));
                    };
                    if arena.global_name(function) == Some(("torch._utils", "_rebuild_wrapper_subclass")) {
                        let record = self.subclass(class, arena.items(inner), state.first().copied());
                        return Some(record.map(|record| Made::Record(Box::new(record)).marked(parameter)));
                    }
                    callee = self.callee(function);
                    if callee == Callee::Other {
                        let needs = arena.global_name(function).unwrap_or(("", "an unnamed function"));
                        return Some(Err(TensorFault::Unsupported(format!(
                            "needs {}.{}",
                            needs.0, needs.1
                        ))));
                    }
                    args = arena.items(inner);
                    is_tensor = true;
                    continue;
                }
                Callee::DeviceFromCpu => args.first(),
                Callee::DeviceFromNumpy => {
                    let tensor = self.device_tensor(args);
                    return Some(tensor.map(|tensor| Made::Tensor(tensor).marked(parameter)));
                }
                Callee::Quantized | Callee::Sparse | Callee::Nested | Callee::Jagged | Callee::MetaTensor => {
                    let record = self.record(callee, args);
                    return Some(record.map(|record| Made::Record(Box::new(record)).marked(parameter)));
                }
                Callee::Uninitialized => {
                    return Some(Err(TensorFault::Unsupported(
                        "it was never initialised".to_owned(),
                    )));
                }
                Callee::Class { is_parameter } => match self.old_state(node) {
                    Some(OldState::View(view)) => {
                        let made = self.strided(Version::V1, view).map(|made| match (made, trains) {
                            (Made::Tensor(tensor), Some(trains)) => {
                                Made::Tensor(tensor.with_requires_grad(trains))
                            }
                            (made, _) => made,
                        });
                        return Some(made.map(|made| made.marked(parameter)));
                    }
                    Some(OldState::Data { data, requires_grad }) => {
                        if is_parameter {
                            parameter = parameter.or(Some(requires_grad));
                        } else {
                            trains = trains.or(Some(requires_grad));
                        }
                        Some(data)
                    }
                    None if is_parameter && !args.is_empty() => {
                        parameter = parameter.or(Some(flag(1).unwrap_or(true)));
                        args.first()
                    }
                    None => return is_tensor.then(|| malformed("no data")),
                },
                Callee::Other => {
                    return is_tensor.then(|| malformed("a parameter that holds no tensor"));
                }
            };
            let Some(&inner) = inner else {
                return Some(malformed("a parameter without its tensor"));
            };
            is_tensor = true;
            node = inner;
            let Some(inner_callee) = arena.callee(node) else {
                return Some(malformed("a parameter that holds no tensor"));
            };
            (callee, args) = (self.callee(inner_callee), arena.args(node));
        }
        Some(malformed("too many wrappers around a tensor"))
    }

    fn strided(&mut self, version: Version, args: Args<'c>) -> Result<Made, TensorFault> {
        let arena = &self.container.arena;
        let &[storage, offset, size, stride, ref rest @ ..] = args else {
            return malformed("fewer than four arguments");
        };
        let flag = |at: usize| {
            rest.get(at)
                .is_some_and(|&flag| arena.node(flag) == Node::Bool(true))
        };
        // v2: requires_grad, hooks, metadata. v3: requires_grad, hooks, dtype, metadata.
        let (told_dtype, metadata) = match version {
            Version::V1 | Version::V2 => (None, rest.get(2)),
            Version::V3 => match rest.get(2) {
                Some(&dtype) => (Some(class::dtype(arena, dtype)?), rest.get(3)),
                None => return malformed("no dtype"),
            },
        };
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
        let dims = self.dims(size, stride)?;
        let offset = self.natural(offset)?;
        let Some(view) = self.view(storage)? else {
            // On the meta device, where tensors have shape and type only.
            let class_dtype = self
                .classes
                .reference(arena, storage)
                .and_then(|reference| reference.class.dtype);
            let Some(dtype) = told_dtype.or(class_dtype) else {
                return malformed("no dtype");
            };
            return Ok(Made::Record(Box::new(self.meta_record(dtype, requires_grad))));
        };
        let dtype = match (told_dtype, view.dtype) {
            (Some(dtype), _) => dtype,
            (None, Some(dtype)) if !view.is_quantized => dtype,
            (None, _) => {
                let class = self.class_name(storage);
                return Err(TensorFault::Unsupported(format!("a tensor over torch.{class}")));
            }
        };
        let offset = offset
            .checked_add(view.offset)
            .ok_or_else(|| TensorFault::Overflow {
                shape: self.sizes.clone(),
            })?;
        let tensor = Tensor::view(view.storage, dtype, dims, offset)?;
        let tensor = tensor.with_requires_grad(requires_grad).with_pending(pending);
        Ok(Made::Tensor(tensor))
    }

    fn natural(&self, node: NodeId) -> Result<usize, TensorFault> {
        let arena = &self.container.arena;
        let value = arena.int(node).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(not_natural)
    }

    /// Shape and stride, the same ones for tensors that have the same.
    fn dims(&mut self, size: NodeId, stride: NodeId) -> Result<Dims, TensorFault> {
        let arena = &self.container.arena;
        objects::sizes_into(arena, size, &mut self.sizes).ok_or_else(not_natural)?;
        objects::sizes_into(arena, stride, &mut self.strides).ok_or_else(not_natural)?;
        if self.sizes.len() != self.strides.len() {
            return Err(TensorFault::RankMismatch {
                shape: self.sizes.len(),
                stride: self.strides.len(),
            });
        }
        let mix = |hash: usize, &n: &usize| hash.rotate_left(5).wrapping_add(n).wrapping_mul(0x9e37_79b1);
        let hash = self.sizes.iter().chain(&self.strides).fold(0, mix);
        let slot = self.dims.get_mut(hash.checked_rem(N_DIMS).unwrap_or(0));
        let slot = slot.expect("the remainder is smaller than the table");
        match slot {
            Some(dims) if dims.is(&self.sizes, &self.strides) => Ok(dims.clone()),
            _ => Ok(slot.insert(Dims::new(&self.sizes, &self.strides)).clone()),
        }
    }

    /// A storage that is a value of its own, as a tensor of one dimension.
    fn whole_storage(&mut self, node: NodeId) -> Result<Tensor, TensorFault> {
        let view = self.storage(node)?;
        let dtype = match view.dtype {
            Some(dtype) => dtype,
            None if self.class_name(node) == "UntypedStorage" => DType::Uint8,
            None => {
                let class = self.class_name(node);
                return Err(TensorFault::Unsupported(format!("a torch.{class}")));
            }
        };
        Tensor::view(view.storage, dtype, Dims::new(&[view.numel], &[1]), view.offset)
    }

    fn class_name(&mut self, storage: NodeId) -> String {
        let reference = self.classes.reference(&self.container.arena, storage);
        reference.map_or_else(String::new, |reference| reference.class.name.clone())
    }

    fn storage(&mut self, node: NodeId) -> Result<View, TensorFault> {
        let view = self.view(node)?;
        view.ok_or_else(|| TensorFault::Unsupported("it is on the meta device and has no data".to_owned()))
    }

    /// The storage behind a persistent id, proven to have the size that the id claims; none on the meta device.
    fn view(&mut self, node: NodeId) -> Result<Option<View>, TensorFault> {
        let arena = &self.container.arena;
        let Some(reference) = self.classes.reference(arena, node) else {
            return malformed("its storage is no reference to one");
        };
        let Some(key) = key_bytes(arena, reference.key) else {
            return malformed("its storage has no key");
        };
        let text = || String::from_utf8_lossy(&key).into_owned();
        if reference.is_meta {
            return Ok(None);
        }
        let claims_none = |what: &str, claimed| TensorFault::StorageClaim {
            key: text(),
            claim: format!("{what} {claimed}"),
        };
        let size = reference.class.element_size;
        let numel = usize::try_from(reference.numel).map_err(|_| claims_none("numel", reference.numel))?;
        let expected = numel
            .checked_mul(size)
            .ok_or_else(|| claims_none("numel", reference.numel))?;
        let offset = usize::try_from(reference.view_offset)
            .map_err(|_| claims_none("view offset", reference.view_offset))?;
        let storage = match self.container.storage(&key) {
            // A torch bug leaves one byte or more in the records of some empty storages; nothing can reach it.
            Some(storage) if expected > 0 || storage.nbytes() == 0 => storage,
            Some(_) => Storage::owned(Vec::new()),
            // libtorch writes no record for what is empty.
            None if expected == 0 => Storage::owned(Vec::new()),
            None => {
                return Err(match self.container.unreadable.get(&text()) {
                    Some(why) => TensorFault::Malformed(format!("storage `{}`: {why}", text())),
                    None => TensorFault::MissingStorage(text()),
                });
            }
        };
        let found = storage.nbytes();
        if found != expected {
            let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            return Err(TensorFault::StorageSize {
                key: text(),
                expected: wide(expected),
                found: wide(found),
            });
        }
        // One storage has one type.
        let slot = usize::try_from(storage.id().1).ok().filter(|_| found > 0);
        if let Some(first) = slot.and_then(|slot| self.class_of.get_mut(slot)) {
            let class_id = reference.class_id;
            if *first != NO_CLASS && *first != class_id {
                return Err(TensorFault::StorageDType {
                    key: text(),
                    first: self.classes.name(*first).to_owned(),
                    second: self.classes.name(class_id).to_owned(),
                });
            }
            *first = class_id;
        }
        Ok(Some(View {
            storage,
            dtype: reference.class.dtype,
            is_quantized: reference.class.quantized.is_some(),
            numel,
            offset,
        }))
    }

    /// `_rebuild_device_tensor_device_tensor(array, dtype, device, requires_grad)`
    fn device_tensor(&mut self, args: Args<'c>) -> Result<Tensor, TensorFault> {
        let arena = &self.container.arena;
        let &[array, dtype, _, ref rest @ ..] = args else {
            return malformed("fewer than three arguments");
        };
        let dtype = class::dtype(arena, dtype)?;
        let Some(array) = numpy::array(arena, array) else {
            return malformed("its data is no numpy array");
        };
        let tensor = array
            .tensor()
            .ok_or_else(|| TensorFault::Unsupported("a numpy array of this type".to_owned()))?;
        // bfloat16 travels as float32 and is narrowed on arrival, which this crate leaves to whoever computes.
        if tensor.dtype() != dtype {
            let found = tensor.dtype();
            return Err(TensorFault::Unsupported(format!(
                "{dtype} stored as a numpy array of {found}"
            )));
        }
        let trains = rest
            .first()
            .is_some_and(|&flag| arena.node(flag) == Node::Bool(true));
        Ok(tensor.with_requires_grad(trains))
    }

    /// States that `__setstate__` took before torch 0.4.
    fn old_state(&self, node: NodeId) -> Option<OldState<'c>> {
        let arena = &self.container.arena;
        let state = arena.items(*arena.states(node).last()?);
        match state {
            [storage, _, _, _] if matches!(arena.node(*storage), Node::Persistent(_)) => {
                Some(OldState::View(state))
            }
            [data, _, _, trains, _] if matches!(arena.node(*data), Node::Call { .. }) => {
                Some(OldState::Data {
                    data,
                    requires_grad: arena.node(*trains) == Node::Bool(true),
                })
            }
            _ => None,
        }
    }
}

/// What a persistent id gives.
struct View {
    storage: Storage,
    dtype: Option<DType>,
    is_quantized: bool,
    /// In elements of the class.
    numel: usize,
    /// Where a legacy view begins, in elements.
    offset: usize,
}

enum OldState<'a> {
    /// (storage, offset, size, stride)
    View(Args<'a>),
    /// (data, gradient, hooks, requires_grad, ...)
    Data { data: &'a NodeId, requires_grad: bool },
}

fn not_natural() -> TensorFault {
    TensorFault::Malformed("offset, size or stride is not a natural number".to_owned())
}

fn malformed<T>(what: &str) -> Result<T, TensorFault> {
    Err(TensorFault::Malformed(what.to_owned()))
}
