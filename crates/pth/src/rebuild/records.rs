//! Tensors that are not one strided array, read as what they are made of.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::class::{self, Callee};
use super::{Args, Made, Rebuilder, malformed};
use crate::error::TensorFault;
use crate::pickle::{Node, NodeId, render};
use crate::record::{QScheme, Record, RecordKind};
use crate::tensor::Dims;
use crate::{DType, Tensor, layout, objects};

/// Subclasses within subclasses, as torchao nests them. More have not been seen.
const MAX_SUBCLASSES: usize = 8;

const BY_ROW: [&str; 3] = ["crow_indices", "col_indices", "values"];
const BY_COLUMN: [&str; 3] = ["ccol_indices", "row_indices", "values"];

impl<'c> Rebuilder<'c> {
    pub(super) fn record(&mut self, callee: Callee, args: Args<'c>) -> Result<Record, TensorFault> {
        match callee {
            Callee::Quantized => self.quantized(args),
            Callee::Sparse => self.sparse(args),
            Callee::Nested => self.nested(args),
            Callee::Jagged => self.jagged(args),
            _ => self.meta(args),
        }
    }

    /// `(storage, offset, size, stride, quantizer, requires_grad, hooks)`
    fn quantized(&mut self, args: Args<'c>) -> Result<Record, TensorFault> {
        let arena = &self.container.arena;
        let &[storage, offset, size, stride, quantizer, ref rest @ ..] = args else {
            return malformed("fewer than five arguments");
        };
        let dims = self.dims(size, stride)?;
        let offset = self.natural(offset)?;
        let name = self
            .classes
            .reference(arena, storage)
            .and_then(|reference| reference.class.quantized);
        let Some(dtype) = name else {
            return malformed("its storage is not of a quantized type");
        };
        let view = self.storage(storage)?;
        let integer = view.dtype.unwrap_or(DType::Uint8);
        let packing = class::packing(dtype);
        let (shape, stride) = (self.sizes.clone(), self.strides.clone());
        let overflow = || TensorFault::Overflow { shape: shape.clone() };
        let offset = offset.checked_add(view.offset).ok_or_else(overflow)?;
        let int_repr = if packing == 1 {
            Tensor::view(view.storage, integer, dims, offset)?
        } else {
            let extent = layout::extent(&shape, &stride, offset).ok_or_else(overflow)?;
            layout::numel(&shape).ok_or_else(overflow)?;
            let needed = extent.div_ceil(packing);
            if needed > view.storage.nbytes() {
                return Err(TensorFault::Outside {
                    needed,
                    storage: view.storage.nbytes(),
                    key: view.storage.key().into_owned(),
                });
            }
            Tensor::view(view.storage, integer, Dims::new(&[view.numel], &[1]), 0)?
        };
        let mut parts = vec![("int_repr".to_owned(), int_repr)];
        let scheme = self.quantizer(quantizer, &mut parts)?;
        Ok(Record {
            kind: RecordKind::Quantized(scheme),
            dtype: dtype.to_owned(),
            shape,
            stride,
            requires_grad: is_true(self, rest.first()),
            is_parameter: false,
            parts,
        })
    }

    /// `(scheme, scale, zero_point)` or `(scheme, scales, zero_points, axis)`
    fn quantizer(&mut self, node: NodeId, parts: &mut Vec<(String, Tensor)>) -> Result<QScheme, TensorFault> {
        let arena = &self.container.arena;
        let items = arena.items(node);
        let scheme = items.first().and_then(|&scheme| arena.global_name(scheme));
        let Some(("torch", scheme)) = scheme else {
            return malformed("its quantization scheme is not one of torch's");
        };
        match (scheme, items) {
            ("per_tensor_affine" | "per_tensor_symmetric", &[_, scale, zero_point, ..]) => {
                let scale = match arena.node(scale) {
                    Node::Float(scale) => scale,
                    _ => return malformed("its scale is no float"),
                };
                let Some(zero_point) = arena.int(zero_point) else {
                    return malformed("its zero point is no integer");
                };
                Ok(QScheme::PerTensor {
                    is_symmetric: scheme == "per_tensor_symmetric",
                    scale,
                    zero_point,
                })
            }
            (_, &[_, scales, zero_points, axis]) => {
                let scales = self.part(scales, DType::Float64)?;
                let zero_points = self.part(zero_points, DType::Int64)?;
                // torch writes the schemes with float zero points under the name of the one with integers.
                let name = match scheme {
                    "per_channel_affine" if zero_points.dtype().is_float() => {
                        "per_channel_affine_float_qparams"
                    }
                    "per_channel_affine" => "per_channel_affine",
                    "per_channel_symmetric" => "per_channel_symmetric",
                    "per_channel_affine_float_qparams" => "per_channel_affine_float_qparams",
                    other => return malformed(&format!("quantization scheme `{other}`")),
                };
                let axis = self.natural(axis)?;
                parts.push(("scales".to_owned(), scales));
                parts.push(("zero_points".to_owned(), zero_points));
                Ok(QScheme::PerChannel { name, axis })
            }
            _ => malformed("its quantizer has too few parameters"),
        }
    }

    /// A tensor, or a list of numbers as old files have it, which becomes one of `dtype`.
    fn part(&mut self, node: NodeId, dtype: DType) -> Result<Tensor, TensorFault> {
        match self.tensor(node) {
            Some(Ok(Made::Tensor(tensor))) => return Ok(tensor),
            Some(Ok(Made::Record(_))) => return malformed("a part of it is no plain tensor"),
            Some(Err(fault)) => return Err(fault),
            None => {}
        }
        let arena = &self.container.arena;
        let Some(items) = objects::sequence(arena, node) else {
            return malformed("a part of it is no tensor");
        };
        let mut bytes = Vec::new();
        for &item in items {
            let number = match (arena.node(item), dtype) {
                (Node::Float(value), DType::Float64) => value.to_le_bytes(),
                (Node::Int(value), DType::Int64) => value.to_le_bytes(),
                _ => return malformed("a part of it is a list of something else than numbers"),
            };
            bytes.extend(number);
        }
        let unfit = |_| TensorFault::Overflow {
            shape: vec![items.len()],
        };
        Tensor::from_bytes(dtype, &[items.len()], bytes).map_err(unfit)
    }

    fn tensor_part(&mut self, node: NodeId) -> Result<Tensor, TensorFault> {
        match self.tensor(node) {
            Some(Ok(Made::Tensor(tensor))) => Ok(tensor),
            Some(Err(fault)) => Err(fault),
            _ => malformed("a part of it is no plain tensor"),
        }
    }

    /// `(layout, data)`
    fn sparse(&mut self, args: Args<'c>) -> Result<Record, TensorFault> {
        let arena = &self.container.arena;
        let &[layout, data, ..] = args else {
            return malformed("fewer than two arguments");
        };
        // `torch.serialization._get_layout('torch.sparse_coo')`
        let layout = arena.args(layout).first().and_then(|&name| arena.str(name));
        let layout = layout.unwrap_or_default();
        let data = arena.items(data);
        let (kind, names): (RecordKind, &[&str]) = match layout.strip_prefix("torch.").unwrap_or(&layout) {
            "sparse_coo" => {
                let is_coalesced = match data.get(3).map(|&flag| arena.node(flag)) {
                    Some(Node::Bool(flag)) => Some(flag),
                    _ => None,
                };
                (RecordKind::SparseCoo { is_coalesced }, &["indices", "values"])
            }
            "sparse_csr" => (RecordKind::SparseCompressed("sparse_csr"), &BY_ROW),
            "sparse_csc" => (RecordKind::SparseCompressed("sparse_csc"), &BY_COLUMN),
            "sparse_bsr" => (RecordKind::SparseCompressed("sparse_bsr"), &BY_ROW),
            "sparse_bsc" => (RecordKind::SparseCompressed("sparse_bsc"), &BY_COLUMN),
            other => return Err(TensorFault::Unsupported(format!("sparse of layout `{other}`"))),
        };
        let (Some(tensors), Some(&size)) = (data.get(..names.len()), data.get(names.len())) else {
            return malformed("a sparse tensor without its parts");
        };
        let Some(shape) = objects::sizes(arena, size) else {
            return malformed("its size is not of natural numbers");
        };
        let mut parts = Vec::with_capacity(names.len());
        for (name, &tensor) in names.iter().zip(tensors) {
            parts.push(((*name).to_owned(), self.tensor_part(tensor)?));
        }
        if let (RecordKind::SparseCoo { .. }, [(_, indices), (_, values)]) = (&kind, parts.as_slice()) {
            check_coo(indices, values, &shape)?;
        }
        let values = parts
            .last()
            .map(|(_, values)| (values.dtype(), values.requires_grad()));
        Ok(Record {
            kind,
            dtype: values.map_or_else(String::new, |(dtype, _)| dtype.to_string()),
            shape,
            stride: Vec::new(),
            requires_grad: values.is_some_and(|(_, trains)| trains),
            is_parameter: false,
            parts,
        })
    }

    /// `(buffer, sizes, strides, offsets)`
    fn nested(&mut self, args: Args<'c>) -> Result<Record, TensorFault> {
        let names = ["values", "sizes", "strides", "offsets"];
        let mut parts = Vec::with_capacity(names.len());
        for (name, &node) in names.iter().zip(args) {
            parts.push(((*name).to_owned(), self.tensor_part(node)?));
        }
        Ok(Record {
            dtype: parts
                .first()
                .map_or_else(String::new, |(_, values)| values.dtype().to_string()),
            kind: RecordKind::Nested,
            shape: Vec::new(),
            stride: Vec::new(),
            requires_grad: false,
            is_parameter: false,
            parts,
        })
    }

    /// A dict of attributes.
    fn jagged(&mut self, args: Args<'c>) -> Result<Record, TensorFault> {
        let arena = &self.container.arena;
        let entries = args.first().and_then(|&state| objects::mapping(arena, state));
        let Some(entries) = entries else {
            return malformed("a jagged tensor without its state");
        };
        // One level down: its cache of the longest and shortest row.
        let mut todo: Vec<(String, NodeId)> = Vec::new();
        for (key, value) in entries {
            let name = arena.str(key).unwrap_or_default();
            let name = name.strip_prefix('_').unwrap_or(&name).to_owned();
            match objects::mapping(arena, value) {
                Some(inner) => {
                    for (key, value) in inner {
                        todo.push((format!("{name}.{}", arena.str(key).unwrap_or_default()), value));
                    }
                }
                None => todo.push((name, value)),
            }
        }
        let mut parts = Vec::new();
        for (name, value) in todo {
            if let Some(tensor) = self.tensor(value) {
                let Made::Tensor(tensor) = tensor? else {
                    return malformed("a part of it is no plain tensor");
                };
                parts.push((name, tensor));
            }
        }
        let values = parts.iter().find(|(name, _)| name == "values");
        let dtype = values.map_or_else(String::new, |(_, values)| values.dtype().to_string());
        Ok(Record {
            kind: RecordKind::Jagged,
            dtype,
            shape: Vec::new(),
            stride: Vec::new(),
            requires_grad: false,
            is_parameter: false,
            parts,
        })
    }

    /// `(dtype, size, stride, requires_grad)`
    fn meta(&mut self, args: Args<'c>) -> Result<Record, TensorFault> {
        let &[dtype, size, stride, ref rest @ ..] = args else {
            return malformed("fewer than three arguments");
        };
        let dtype = class::dtype(&self.container.arena, dtype)?;
        self.dims(size, stride)?;
        Ok(self.meta_record(dtype, is_true(self, rest.first())))
    }

    /// Of the shape and stride that `dims` has just read.
    pub(super) fn meta_record(&self, dtype: DType, requires_grad: bool) -> Record {
        Record {
            kind: RecordKind::Meta,
            dtype: dtype.to_string(),
            shape: self.sizes.clone(),
            stride: self.strides.clone(),
            requires_grad,
            is_parameter: false,
            parts: Vec::new(),
        }
    }

    /// `_rebuild_wrapper_subclass(class, dtype, size, stride, offset, layout, device, requires_grad)`, and the attributes.
    pub(super) fn subclass(
        &mut self,
        class: NodeId,
        args: Args<'c>,
        state: Option<NodeId>,
    ) -> Result<Record, TensorFault> {
        let arena = &self.container.arena;
        let name = |node| {
            arena.global_name(node).map_or_else(
                || "an unnamed class".to_owned(),
                |(module, name)| format!("{module}.{name}"),
            )
        };
        let dtype = args
            .get(1)
            .and_then(|&dtype| arena.global_name(dtype))
            .map(|(_, name)| name.to_owned());
        let shape = args.get(2).and_then(|&size| objects::sizes(arena, size));
        let mut parts = Vec::new();
        let mut values = Vec::new();
        // Attributes that are subclasses themselves are taken apart too.
        let mut todo = vec![(String::new(), state, 0_usize)];
        while let Some((prefix, state, depth)) = todo.pop() {
            if depth > MAX_SUBCLASSES {
                return malformed("subclasses nested beyond all measure");
            }
            let entries = state
                .and_then(|state| objects::state_entries(arena, state))
                .unwrap_or_default();
            for (key, value) in entries {
                let key = format!("{prefix}{}", arena.str(key).unwrap_or_default());
                if let Some((class, state)) = objects::wrapped_subclass(arena, value) {
                    values.push((format!("{key}.class"), name(class)));
                    todo.push((format!("{key}."), state, depth.saturating_add(1)));
                    continue;
                }
                match self.tensor(value) {
                    Some(Ok(Made::Tensor(tensor))) => parts.push((key, tensor)),
                    Some(Ok(Made::Record(record))) => {
                        let inner = record.parts.into_iter();
                        parts.extend(inner.map(|(part, tensor)| (format!("{key}.{part}"), tensor)));
                    }
                    Some(Err(fault)) => return Err(fault),
                    None => values.push((key, render::render(arena, value))),
                }
            }
        }
        Ok(Record {
            kind: RecordKind::Subclass {
                class: name(class),
                values,
            },
            dtype: dtype.unwrap_or_default(),
            shape: shape.unwrap_or_default(),
            stride: Vec::new(),
            requires_grad: is_true(self, args.get(7)),
            is_parameter: false,
            parts,
        })
    }
}

fn is_true(rebuilder: &Rebuilder<'_>, flag: Option<&NodeId>) -> bool {
    flag.is_some_and(|&flag| rebuilder.container.arena.node(flag) == Node::Bool(true))
}

/// Indices `[n_sparse, nnz]`, values `[nnz, ...]`, and as many dimensions together as the shape has.
fn check_coo(indices: &Tensor, values: &Tensor, shape: &[usize]) -> Result<(), TensorFault> {
    let fits = match (indices.shape(), values.shape().split_first()) {
        (&[n_sparse, n_values], Some((&n, dense))) => {
            n == n_values && n_sparse.saturating_add(dense.len()) == shape.len()
        }
        _ => false,
    };
    if fits && indices.dtype() == DType::Int64 {
        return Ok(());
    }
    malformed(&format!(
        "sparse indices of shape {:?} and values of shape {:?} do not make a tensor of shape {shape:?}",
        indices.shape(),
        values.shape()
    ))
}
