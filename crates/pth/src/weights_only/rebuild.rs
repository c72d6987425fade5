//! torch's own functions that put tensors together. [torch/_utils.py, torch/_tensor.py]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::call::arity;
use super::machine::Machine;
use super::value::{DType, Function, Global, Id, Kind, Tensor, Value};
use super::{Fault, allowed, fault};

/// How deep `_rebuild_from_type_v2` may call itself: Python's limit, less the frames that torch has below.
const MAX_NESTING: usize = 900;

impl<'t> Machine<'t> {
    pub(super) fn rebuild(&mut self, function: Function, args: &[Id]) -> Result<Value<'t>, Fault> {
        match (function, args) {
            (Function::RebuildV1, &[storage, offset, size, stride]) => {
                self.view(storage, [offset, size, stride], None)
            }
            (Function::RebuildV2, &[storage, offset, size, stride, requires_grad, _, ref metadata @ ..])
                if metadata.len() <= 1 =>
            {
                let tensor = self.view(storage, [offset, size, stride], None)?;
                self.with_gradients(tensor, requires_grad, metadata)
            }
            (
                Function::RebuildV3,
                &[
                    storage,
                    offset,
                    size,
                    stride,
                    requires_grad,
                    _,
                    dtype,
                    ref metadata @ ..,
                ],
            ) if metadata.len() <= 1 => {
                self.rebuild_v3([storage, offset, size, stride], requires_grad, dtype, metadata)
            }
            (Function::RebuildParameter, &[data, requires_grad, _]) => {
                self.parameter(Some(data), Some(requires_grad))
            }
            (Function::RebuildParameterWithState, &[data, requires_grad, _, state]) => {
                let made = self.parameter(Some(data), Some(requires_grad))?;
                self.set_state(made, state)?;
                Ok(made)
            }
            (Function::RebuildMeta, &[dtype, size, stride, requires_grad]) => {
                self.rebuild_meta(dtype, size, stride, requires_grad)
            }
            (Function::RebuildQuantized, &[storage, offset, size, stride, quantizer, requires_grad, _]) => {
                self.quantizer(storage, size, quantizer)?;
                let tensor = self.view(storage, [offset, size, stride], None)?;
                self.with_gradients(tensor, requires_grad, &[])
            }
            (Function::RebuildSparse, &[layout, data]) => self.rebuild_sparse(layout, data),
            (Function::RebuildFromCpuTensor, &[data, dtype, device, requires_grad]) => {
                self.rebuild_from_cpu_tensor(data, dtype, device, requires_grad)
            }
            (Function::RebuildFromType, &[_, _, _, _]) => self.rebuild_from_type(args),
            (Function::RebuildFromNumpy, &[_, _, _, _]) => {
                fault("a tensor of a numpy array, of which none can be made")
            }
            (Function::RebuildWrapper, &[_, _, _, _, _, _, _, _]) => {
                fault("a wrapper of a class without `__torch_dispatch__`, as all that are allowed are")
            }
            _ => arity("a function that rebuilds tensors", args),
        }
    }

    /// A tensor that is a view of a storage, of the storage's dtype where no other is given.
    fn view(&mut self, storage: Id, view: [Id; 3], dtype: Option<DType>) -> Result<Value<'t>, Fault> {
        let Value::Storage(own, n_bytes) = self.heap.get(storage) else {
            return fault(format!(
                "a tensor of {}, expected a typed storage",
                self.heap.class_name(storage)
            ));
        };
        let dtype = dtype.unwrap_or(own);
        let numel = self.extent(dtype, n_bytes, view)?;
        Ok(Value::Tensor(Tensor {
            dtype,
            requires_grad: false,
            is_parameter: false,
            numel: Some(numel),
        }))
    }

    /// Checks the offset, sizes and strides of a view against its storage. Returns how many elements it has.
    pub(super) fn extent(&mut self, dtype: DType, n_bytes: Option<i64>, view: [Id; 3]) -> Result<i64, Fault> {
        let [offset, size, stride] = view;
        let offset = self.heap.int(offset, "the offset of a tensor")?;
        let sizes = self.heap.ints(size, "the size of a tensor")?;
        let numel = numel(&sizes)?;
        let strides = match self.heap.get(stride) {
            Value::None => contiguous(&sizes),
            _ => match self.heap.ints(stride, "the stride of a tensor")? {
                // To torch, none given.
                strides if strides.is_empty() => contiguous(&sizes),
                strides => strides,
            },
        };
        if strides.len() != sizes.len() {
            return fault(format!(
                "a tensor of {} sizes and {} strides",
                sizes.len(),
                strides.len()
            ));
        }
        if offset < 0 {
            return fault("the offset of a tensor is negative");
        }
        if numel == 0 {
            return Ok(0);
        }
        let mut needed = Some(i128::from(offset).saturating_add(1));
        for (&size, &stride) in sizes.iter().zip(&strides) {
            if size > 1 && stride < 0 {
                return fault("a stride of a tensor is negative");
            }
            let reach = i128::from(size.saturating_sub(1)).checked_mul(i128::from(stride));
            needed = needed
                .zip(reach)
                .and_then(|(needed, reach)| needed.checked_add(reach));
        }
        let needed = needed.and_then(|needed| needed.checked_mul(i128::from(dtype.size)));
        match needed.and_then(|needed| i64::try_from(needed).ok()) {
            None => fault("a tensor reaches further than can be addressed"),
            Some(needed) if n_bytes.is_some_and(|n_bytes| needed > n_bytes) => fault(format!(
                "a tensor needs {needed} bytes of a storage of {}",
                n_bytes.unwrap_or(0)
            )),
            Some(_) => Ok(numel),
        }
    }

    fn with_gradients(
        &mut self,
        tensor: Value<'t>,
        requires_grad: Id,
        metadata: &[Id],
    ) -> Result<Value<'t>, Fault> {
        let Value::Tensor(mut tensor) = tensor else {
            return Ok(tensor);
        };
        tensor.requires_grad = self.requires_grad(requires_grad, tensor.dtype)?;
        for &metadata in metadata {
            self.metadata(metadata, tensor.dtype)?;
        }
        Ok(Value::Tensor(tensor))
    }

    /// Whether a tensor is conjugated or negated: texts to what C++ takes as a bool.
    fn metadata(&mut self, id: Id, dtype: DType) -> Result<(), Fault> {
        if !self.heap.is_true(id)? {
            return Ok(());
        }
        let Value::Dict(_, pairs) = self.heap.get(id) else {
            return fault(format!(
                "the metadata of a tensor is {}, expected a dict",
                self.heap.class_name(id)
            ));
        };
        for (key, value) in self.heap.pairs(pairs)? {
            let key = match self.heap.get(key) {
                Value::Str(key) | Value::Bytes(key) => key,
                other => return fault(format!("metadata of {}, expected a str", other.class_name())),
            };
            if key == b"conj" && dtype.kind != Kind::Complex {
                return fault(format!("a tensor of {} is conjugated", dtype.name));
            }
            match self.heap.get(value) {
                Value::None | Value::Bool(_) | Value::Int(_) | Value::BigInt | Value::Float(_) => {}
                Value::Complex | Value::Tensor(_) => {}
                other => return fault(format!("metadata is {}, expected a bool", other.class_name())),
            }
        }
        Ok(())
    }

    fn rebuild_v3(
        &mut self,
        view: [Id; 4],
        requires_grad: Id,
        dtype: Id,
        metadata: &[Id],
    ) -> Result<Value<'t>, Fault> {
        let [storage, offset, size, stride] = view;
        let dtype = self.dtype_or_default(dtype, allowed::DEFAULT)?;
        // The tensor is made with this and filled afterwards, which torch forbids where it is true.
        match self.heap.get(requires_grad) {
            Value::None | Value::Bool(false) => {}
            Value::Bool(true) => return fault("a tensor that requires gradients is filled in place"),
            other => {
                return fault(format!(
                    "requires_grad is {}, expected a bool",
                    other.class_name()
                ));
            }
        }
        let tensor = self.view(storage, [offset, size, stride], Some(dtype))?;
        for &metadata in metadata {
            self.metadata(metadata, dtype)?;
        }
        Ok(tensor)
    }

    fn dtype_or_default(&self, id: Id, default: DType) -> Result<DType, Fault> {
        match self.heap.get(id) {
            Value::None => Ok(default),
            Value::Global(Global::DType(dtype)) => Ok(dtype),
            other => fault(format!("a dtype is {}", other.class_name())),
        }
    }

    fn rebuild_meta(
        &mut self,
        dtype: Id,
        size: Id,
        stride: Id,
        requires_grad: Id,
    ) -> Result<Value<'t>, Fault> {
        let dtype = self.dtype_or_default(dtype, allowed::DEFAULT)?;
        let sizes = self.heap.ints(size, "the size of a tensor")?;
        let strides = self.heap.ints(stride, "the stride of a tensor")?;
        if sizes.len() != strides.len() {
            return fault(format!(
                "a tensor of {} sizes and {} strides",
                sizes.len(),
                strides.len()
            ));
        }
        let numel = numel(&sizes)?;
        let requires_grad = match self.heap.get(requires_grad) {
            Value::None => false,
            _ => self.requires_grad(requires_grad, dtype)?,
        };
        Ok(Value::Tensor(Tensor {
            dtype,
            requires_grad,
            is_parameter: false,
            numel: Some(numel),
        }))
    }

    /// Checks what a quantized tensor is made with.
    fn quantizer(&mut self, storage: Id, size: Id, quantizer: Id) -> Result<(), Fault> {
        let items = self.heap.sequence(quantizer)?;
        let scheme = match items.first().map(|&scheme| self.heap.get(scheme)) {
            Some(Value::Global(Global::QScheme(scheme))) => scheme,
            _ => return fault("a quantized tensor without a scheme"),
        };
        match self.heap.get(storage) {
            Value::Storage(dtype, _) if dtype.kind == Kind::Quantized => {}
            Value::Storage(dtype, _) => {
                return fault(format!("a quantized tensor of {}", dtype.name));
            }
            other => return fault(format!("a quantized tensor of {}", other.class_name())),
        }
        match (scheme, items.as_slice()) {
            ("torch.per_tensor_affine", &[_, scale, zero_point]) => {
                if !matches!(
                    self.heap.get(scale),
                    Value::Float(_) | Value::Int(_) | Value::Bool(_)
                ) {
                    return fault(format!("a scale is {}", self.heap.class_name(scale)));
                }
                self.heap.int(zero_point, "a zero point")?;
                Ok(())
            }
            (
                "torch.per_channel_affine" | "torch.per_channel_affine_float_qparams",
                &[_, scales, zero_points, axis],
            ) => {
                let sizes = self.heap.ints(size, "the size of a tensor")?;
                let axis = self.heap.int(axis, "the axis of the channels")?;
                let n_channels = usize::try_from(axis).ok().and_then(|axis| sizes.get(axis));
                let Some(&n_channels) = n_channels else {
                    return fault(format!("axis {axis} of a tensor of {} dimensions", sizes.len()));
                };
                for per_channel in [scales, zero_points] {
                    let len = match self.heap.get(per_channel) {
                        Value::Tensor(tensor) => tensor.numel.unwrap_or(n_channels),
                        Value::List(chain) => i64::try_from(chain.len).unwrap_or(i64::MAX),
                        other => return fault(format!("one number per channel in {}", other.class_name())),
                    };
                    if len != n_channels {
                        return fault(format!("{len} numbers for {n_channels} channels"));
                    }
                }
                Ok(())
            }
            (
                "torch.per_tensor_affine"
                | "torch.per_channel_affine"
                | "torch.per_channel_affine_float_qparams",
                _,
            ) => fault(format!("a quantizer of {} fields", items.len())),
            _ => fault(format!("a quantized tensor of scheme `{scheme}`")),
        }
    }

    fn rebuild_sparse(&mut self, layout: Id, data: Id) -> Result<Value<'t>, Fault> {
        let Value::Layout(layout) = self.heap.get(layout) else {
            return fault(format!(
                "the layout of a tensor is {}",
                self.heap.class_name(layout)
            ));
        };
        let data = self.heap.sequence(data)?;
        let (parts, size, is_coalesced) = match (layout, data.as_slice()) {
            ("torch.sparse_coo", &[indices, values, size]) => (vec![indices, values], size, None),
            ("torch.sparse_coo", &[indices, values, size, is_coalesced]) => {
                (vec![indices, values], size, Some(is_coalesced))
            }
            (
                "torch.sparse_csr" | "torch.sparse_csc" | "torch.sparse_bsr" | "torch.sparse_bsc",
                &[compressed, plain, values, size],
            ) => (vec![compressed, plain, values], size, None),
            ("torch.strided" | "torch._mkldnn" | "torch.jagged", _) => {
                return fault(format!("a sparse tensor of layout `{layout}`"));
            }
            _ => return fault(format!("a sparse tensor of {} parts", data.len())),
        };
        if let Some(is_coalesced) = is_coalesced
            && !matches!(self.heap.get(is_coalesced), Value::None | Value::Bool(_))
        {
            return fault(format!("is_coalesced is {}", self.heap.class_name(is_coalesced)));
        }
        let mut dtype = allowed::DEFAULT;
        for part in parts {
            match self.heap.get(part) {
                // The last are the values.
                Value::Tensor(tensor) => dtype = tensor.dtype,
                Value::Tuple(_) | Value::List(_) => {}
                other => return fault(format!("a part of a sparse tensor is {}", other.class_name())),
            }
        }
        numel(&self.heap.ints(size, "the size of a tensor")?)?;
        Ok(Value::Tensor(Tensor {
            dtype,
            requires_grad: false,
            is_parameter: false,
            numel: None,
        }))
    }

    fn rebuild_from_cpu_tensor(
        &mut self,
        data: Id,
        dtype: Id,
        device: Id,
        requires_grad: Id,
    ) -> Result<Value<'t>, Fault> {
        let Value::Tensor(data) = self.heap.get(data) else {
            return fault(format!("a tensor of {}", self.heap.class_name(data)));
        };
        let dtype = self.dtype_or_default(dtype, data.dtype)?;
        match self.heap.get(device) {
            Value::None | Value::Device | Value::Int(0..) => {}
            Value::Str(name) | Value::Bytes(name) => {
                self.heap.spend(name.len())?;
                if super::call::device(name).is_none() {
                    return fault("the device of a tensor is unknown");
                }
            }
            other => return fault(format!("the device of a tensor is {}", other.class_name())),
        }
        if (dtype.kind == Kind::Quantized || data.dtype.kind == Kind::Quantized) && dtype != data.dtype {
            return fault(format!(
                "a tensor of {} made from {}",
                dtype.name, data.dtype.name
            ));
        }
        if data.requires_grad
            && dtype != data.dtype
            && matches!(self.heap.get(requires_grad), Value::Bool(false))
        {
            return fault("requires_grad of a tensor that is computed");
        }
        let requires_grad = self.requires_grad(requires_grad, dtype)?;
        Ok(Value::Tensor(Tensor {
            dtype,
            requires_grad,
            is_parameter: data.is_parameter && dtype == data.dtype,
            numel: data.numel,
        }))
    }

    /// `_rebuild_from_type_v2(function, new_type, args, state)`, which may have itself for a function.
    fn rebuild_from_type(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let mut args = args.to_vec();
        let mut waiting = Vec::new();
        let mut made = loop {
            let &[function, new_type, inner, state] = args.as_slice() else {
                return arity("_rebuild_from_type_v2", &args);
            };
            waiting.push((new_type, state));
            self.heap.spend(1)?;
            if waiting.len() > MAX_NESTING {
                return fault("calls are nested deeper than Python allows");
            }
            let Value::Global(Global::Function(function)) = self.heap.get(function) else {
                return fault(format!("{} is called", self.heap.class_name(function)));
            };
            args = self.heap.sequence(inner)?;
            if function != Function::RebuildFromType {
                break self.call(function, &args)?;
            }
        };
        while let Some((new_type, state)) = waiting.pop() {
            made = self.with_class(made, new_type)?;
            self.set_state(made, state)?;
        }
        Ok(made)
    }

    fn with_class(&self, made: Value<'t>, new_type: Id) -> Result<Value<'t>, Fault> {
        let wanted = match self.heap.get(new_type) {
            Value::Global(Global::Function(function)) if function.is_class() => Some(function),
            _ => None,
        };
        if wanted.is_some() && made.class() == wanted {
            return Ok(made);
        }
        match (made, wanted) {
            (Value::Tensor(tensor), Some(Function::Tensor | Function::Parameter)) => {
                Ok(Value::Tensor(Tensor {
                    is_parameter: wanted == Some(Function::Parameter),
                    ..tensor
                }))
            }
            (made, _) => fault(format!(
                "{} is made into another class, of which it cannot be",
                made.class_name()
            )),
        }
    }
}

fn numel(sizes: &[i64]) -> Result<i64, Fault> {
    let mut numel = 1_i64;
    for &size in sizes {
        numel = match numel.checked_mul(size) {
            Some(numel) if size >= 0 => numel,
            _ => return fault("a tensor of a size that none has"),
        };
    }
    Ok(numel)
}

fn contiguous(sizes: &[i64]) -> Vec<i64> {
    let mut next = 1_i64;
    let mut strides: Vec<i64> = sizes
        .iter()
        .rev()
        .map(|&size| {
            let stride = next;
            next = next.saturating_mul(size.max(1));
            stride
        })
        .collect();
    strides.reverse();
    strides
}
