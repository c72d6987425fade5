//! Values to a pickle of protocol 2 that `torch.load(weights_only=True)` takes.
//!
//! Only the opcodes and globals that its unpickler knows occur. [torch/_weights_only_unpickler.py]

use std::collections::HashMap;

use super::op;
use crate::record::{QScheme, Record, RecordKind};
use crate::save::Profile;
use crate::storage::ByteOrder;
use crate::value::{Dict, Value};
use crate::walk::join;
use crate::{DType, Error, Storage, Tensor};

/// A storage to be written, under the number that is its place.
pub(crate) struct Planned {
    pub(crate) storage: Storage,
    /// torch's class of it.
    class: &'static str,
    /// Bytes of a component, the unit in which a big-endian source is turned round.
    pub(crate) component: usize,
}

/// Makes the pickle of `value`. Returns it with the storages that it refers to.
///
/// # Errors
/// A value that has no plain form, or that `profile` lacks.
pub(crate) fn write(value: &Value, profile: Profile) -> Result<(Vec<u8>, Vec<Planned>), Error> {
    let mut writer = Writer {
        out: vec![op::PROTO, 2],
        profile,
        memo: HashMap::new(),
        n_memo: 0,
        storages: Vec::new(),
        places: HashMap::new(),
    };
    writer.value(value, "")?;
    writer.out.push(op::STOP);
    Ok((writer.out, writer.storages))
}

struct Writer {
    out: Vec<u8>,
    profile: Profile,
    /// Texts and globals that were written before.
    memo: HashMap<String, u32>,
    n_memo: u32,
    storages: Vec<Planned>,
    places: HashMap<(usize, u32), usize>,
}

/// torch's typed storage class, and the size of its elements; none for the types that have none.
fn typed_storage(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Float64 => "DoubleStorage",
        DType::Float32 => "FloatStorage",
        DType::Float16 => "HalfStorage",
        DType::BFloat16 => "BFloat16Storage",
        DType::Int64 => "LongStorage",
        DType::Int32 => "IntStorage",
        DType::Int16 => "ShortStorage",
        DType::Int8 => "CharStorage",
        DType::Uint8 => "ByteStorage",
        DType::Bool => "BoolStorage",
        DType::Complex64 => "ComplexFloatStorage",
        DType::Complex128 => "ComplexDoubleStorage",
        _ => return None,
    })
}

const UNTYPED: &str = "UntypedStorage";

fn quantized_storage(dtype: &str) -> Option<&'static str> {
    Some(match dtype {
        "qint8" => "QInt8Storage",
        "quint8" => "QUInt8Storage",
        "qint32" => "QInt32Storage",
        "quint4x2" => "QUInt4x2Storage",
        "quint2x4" => "QUInt2x4Storage",
        _ => return None,
    })
}

fn inexpressible(name: &str, fault: impl Into<String>) -> Error {
    let name = if name.is_empty() { "(all of it)" } else { name };
    Error::Inexpressible {
        name: name.to_owned(),
        fault: fault.into(),
    }
}

/// Python takes no list, dict or set as a key or in a set.
fn check_hashable(key: &Value, name: &str) -> Result<(), Error> {
    match key {
        Value::List(_) | Value::Dict(_) | Value::Set(_) => {
            Err(inexpressible(name, format!("{key} cannot be a key or in a set")))
        }
        Value::Tuple(items) => items.iter().try_for_each(|item| check_hashable(item, name)),
        _ => Ok(()),
    }
}

impl Writer {
    fn value(&mut self, value: &Value, name: &str) -> Result<(), Error> {
        match value {
            Value::None => self.out.push(op::NONE),
            Value::Bool(value) => self.bool(*value),
            Value::Int(value) => self.int(*value),
            Value::BigInt(bytes) => self.big_int(bytes, name)?,
            Value::Float(value) => self.float(*value),
            Value::Complex(re, im) => {
                self.global("__builtin__", "complex");
                self.float(*re);
                self.float(*im);
                self.out.extend([op::TUPLE2, op::REDUCE]);
            }
            Value::Str(text) => self.text(text),
            Value::RawStr(bytes) => self.text_bytes(bytes),
            Value::Bytes(bytes) => {
                // Latin-1 maps each byte to the character of its number.
                let text: String = bytes.iter().copied().map(char::from).collect();
                self.global("_codecs", "encode");
                self.text(&text);
                self.repeated_text("latin1");
                self.out.extend([op::TUPLE2, op::REDUCE]);
            }
            Value::Tuple(items) => self.tuple(items, name)?,
            Value::List(items) => {
                self.out.push(op::EMPTY_LIST);
                self.append(items, name)?;
            }
            Value::Set(items) => {
                for item in items {
                    check_hashable(item, name)?;
                }
                self.global("__builtin__", "set");
                self.out.push(op::EMPTY_LIST);
                self.append(items, name)?;
                self.out.extend([op::TUPLE1, op::REDUCE]);
            }
            Value::Dict(dict) => self.dict(dict, name)?,
            Value::Tensor(tensor) => self.tensor(tensor, name)?,
            Value::Record(record) => self.record(record, name)?,
            Value::Storage(tensor) => {
                let class = match typed_storage(tensor.dtype()) {
                    Some(class) => class,
                    None => UNTYPED,
                };
                self.storage(
                    tensor.storage(),
                    class,
                    tensor.dtype().size(),
                    tensor.dtype(),
                    name,
                )?;
            }
            Value::DType(dtype) => self.global("torch", dtype),
            Value::Device(device) => {
                self.global("torch", "device");
                self.text(device);
                self.out.extend([op::TUPLE1, op::REDUCE]);
            }
            Value::Size(sizes) => {
                self.global("torch", "Size");
                let sizes: Vec<Value> = sizes.iter().map(|&size| Value::Int(size)).collect();
                self.tuple(&sizes, name)?;
                self.out.extend([op::TUPLE1, op::REDUCE]);
            }
            Value::FrozenSet(_)
            | Value::Module(..)
            | Value::Array(_)
            | Value::Global(_)
            | Value::Object(_) => {
                return Err(inexpressible(name, format!("{value} is no plain value")));
            }
        }
        Ok(())
    }

    fn bool(&mut self, value: bool) {
        self.out.push(if value { op::NEWTRUE } else { op::NEWFALSE });
    }

    fn float(&mut self, value: f64) {
        self.out.push(op::BINFLOAT);
        self.out.extend(value.to_be_bytes());
    }

    fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.out.extend([op::BININT1, value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.out.push(op::BININT2);
            self.out.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.out.push(op::BININT);
            self.out.extend(value.to_le_bytes());
        } else {
            // libtorch's unpickler takes eight bytes and no other number of them.
            self.out.extend([op::LONG1, 8]);
            self.out.extend(value.to_le_bytes());
        }
    }

    fn size(&mut self, value: usize) {
        self.int(i64::try_from(value).expect("sizes in memory are below 2^63"));
    }

    fn sizes(&mut self, sizes: &[usize]) {
        match sizes.len() {
            0 => self.out.push(op::EMPTY_TUPLE),
            1..=3 => {}
            _ => self.out.push(op::MARK),
        }
        sizes.iter().for_each(|&size| self.size(size));
        match sizes.len() {
            0 => {}
            1 => self.out.push(op::TUPLE1),
            2 => self.out.push(op::TUPLE2),
            3 => self.out.push(op::TUPLE3),
            _ => self.out.push(op::TUPLE),
        }
    }

    fn big_int(&mut self, bytes: &[u8], name: &str) -> Result<(), Error> {
        let is_libtorch = self.profile == Profile::LibTorch;
        let len = u8::try_from(bytes.len()).ok().filter(|_| !is_libtorch);
        let len = len.ok_or_else(|| inexpressible(name, "the integer is too large"))?;
        self.out.extend([op::LONG1, len]);
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.text_bytes(text.as_bytes());
    }

    /// UTF-8, perhaps with lone surrogates, which torch decodes with `surrogatepass`.
    fn text_bytes(&mut self, text: &[u8]) {
        self.out.push(op::BINUNICODE);
        let len = u32::try_from(text.len())
            .expect("texts come from a pickle of at most 1 GiB, or from a program's own names");
        self.out.extend(len.to_le_bytes());
        self.out.extend_from_slice(text);
    }

    /// Text that occurs often.
    fn repeated_text(&mut self, text: &str) {
        if !self.recall(text) {
            self.text(text);
            self.memoize(text);
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        let key = format!("{module}\n{name}\n");
        if !self.recall(&key) {
            self.out.push(op::GLOBAL);
            self.out.extend_from_slice(key.as_bytes());
            self.memoize(&key);
        }
    }

    fn recall(&mut self, key: &str) -> bool {
        let Some(&index) = self.memo.get(key) else {
            return false;
        };
        match u8::try_from(index) {
            Ok(index) => self.out.extend([op::BINGET, index]),
            Err(_) => {
                self.out.push(op::LONG_BINGET);
                self.out.extend(index.to_le_bytes());
            }
        }
        true
    }

    fn memoize(&mut self, key: &str) {
        let index = self.n_memo;
        self.n_memo += 1;
        self.memo.insert(key.to_owned(), index);
        match u8::try_from(index) {
            Ok(index) => self.out.extend([op::BINPUT, index]),
            Err(_) => {
                self.out.push(op::LONG_BINPUT);
                self.out.extend(index.to_le_bytes());
            }
        }
    }

    fn tuple(&mut self, items: &[Value], name: &str) -> Result<(), Error> {
        if items.is_empty() {
            self.out.push(op::EMPTY_TUPLE);
            return Ok(());
        }
        self.out.push(op::MARK);
        for (i, item) in items.iter().enumerate() {
            self.value(item, &join(name, &i.to_string()))?;
        }
        self.out.push(op::TUPLE);
        Ok(())
    }

    fn append(&mut self, items: &[Value], name: &str) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        self.out.push(op::MARK);
        for (i, item) in items.iter().enumerate() {
            self.value(item, &join(name, &i.to_string()))?;
        }
        self.out.push(op::APPENDS);
        Ok(())
    }

    fn dict(&mut self, dict: &Dict, name: &str) -> Result<(), Error> {
        // libtorch reads an OrderedDict as nothing at all.
        let is_ordered = dict.is_ordered && self.profile == Profile::Torch;
        if is_ordered {
            self.empty_ordered_dict();
        } else {
            self.out.push(op::EMPTY_DICT);
        }
        self.set_items(&dict.items, name)?;
        if is_ordered && !dict.attributes.is_empty() {
            self.out.push(op::EMPTY_DICT);
            self.set_items(&dict.attributes, name)?;
            self.out.push(op::BUILD);
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[(Value, Value)], name: &str) -> Result<(), Error> {
        // As many as CPython sets at once.
        const BATCH: usize = 1000;
        for batch in items.chunks(BATCH) {
            self.out.push(op::MARK);
            for (key, value) in batch {
                check_hashable(key, name)?;
                self.value(key, name)?;
                match (key, value) {
                    (_, Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_)) => {
                        self.value(value, name)?;
                    }
                    (Value::Str(key), value) => self.value(value, &join(name, key))?,
                    (key, value) => self.value(value, &join(name, &key.to_string()))?,
                }
            }
            self.out.push(op::SETITEMS);
        }
        Ok(())
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.out.extend([op::EMPTY_TUPLE, op::REDUCE]);
    }

    fn tensor(&mut self, tensor: &Tensor, name: &str) -> Result<(), Error> {
        let dtype = tensor.dtype();
        if tensor.requires_grad() && !dtype.is_float() && !dtype.is_complex() {
            return Err(inexpressible(
                name,
                format!("torch gives no gradients to {dtype}"),
            ));
        }
        let is_parameter = tensor.is_parameter() && self.profile == Profile::Torch;
        if is_parameter {
            self.global("torch._utils", "_rebuild_parameter");
        }
        self.strided(tensor, tensor.requires_grad() && !is_parameter, name)?;
        if is_parameter {
            self.bool(tensor.requires_grad());
            self.empty_ordered_dict();
            self.out.extend([op::TUPLE3, op::REDUCE]);
        }
        Ok(())
    }

    fn strided(&mut self, tensor: &Tensor, requires_grad: bool, name: &str) -> Result<(), Error> {
        let dtype = tensor.dtype();
        let class = typed_storage(dtype);
        let function = match class {
            Some(_) => "_rebuild_tensor_v2",
            None if self.profile == Profile::LibTorch => {
                return Err(inexpressible(
                    name,
                    format!("libtorch does not read {dtype} from a file"),
                ));
            }
            None => "_rebuild_tensor_v3",
        };
        self.global("torch._utils", function);
        self.out.push(op::MARK);
        self.storage(
            tensor.storage(),
            class.unwrap_or(UNTYPED),
            dtype.size(),
            dtype,
            name,
        )?;
        self.size(tensor.storage_offset());
        self.sizes(tensor.shape());
        self.sizes(tensor.stride());
        self.bool(requires_grad);
        self.empty_ordered_dict();
        if class.is_none() {
            self.global("torch", dtype.as_str());
        }
        let pending = tensor.pending();
        if pending.conj || pending.neg {
            self.out.push(op::EMPTY_DICT);
            for (key, is_set) in [("conj", pending.conj), ("neg", pending.neg)] {
                if is_set {
                    self.text(key);
                    self.out.extend([op::NEWTRUE, op::SETITEM]);
                }
            }
        }
        self.out.extend([op::TUPLE, op::REDUCE]);
        Ok(())
    }

    /// `('storage', class, key, 'cpu', numel)`
    fn storage(
        &mut self,
        storage: &Storage,
        class: &'static str,
        element_size: usize,
        dtype: DType,
        name: &str,
    ) -> Result<(), Error> {
        let n_bytes = storage.nbytes();
        let component = dtype.component_size();
        if !n_bytes.is_multiple_of(element_size) {
            return Err(inexpressible(
                name,
                format!("its storage of {n_bytes} bytes is no whole number of elements of {element_size}"),
            ));
        }
        let place = match self.places.get(&storage.id()) {
            Some(&place) => place,
            None => {
                let place = self.storages.len();
                self.places.insert(storage.id(), place);
                self.storages.push(Planned {
                    storage: storage.clone(),
                    class,
                    component,
                });
                place
            }
        };
        let planned = &self.storages[place];
        let is_swapped = storage.byte_order() == ByteOrder::Big;
        if n_bytes > 0 && (planned.class != class || is_swapped && planned.component != component) {
            let fault = format!(
                "it shares its storage with a tensor of another type (torch.{}), which torch does not save",
                planned.class
            );
            return Err(inexpressible(name, fault));
        }
        let (module, numel) = if class == UNTYPED {
            ("torch.storage", n_bytes)
        } else {
            ("torch", n_bytes / element_size)
        };
        self.out.push(op::MARK);
        self.repeated_text("storage");
        self.global(module, class);
        self.text(&place.to_string());
        self.repeated_text("cpu");
        self.size(numel);
        self.out.extend([op::TUPLE, op::BINPERSID]);
        Ok(())
    }

    fn record(&mut self, record: &Record, name: &str) -> Result<(), Error> {
        if self.profile == Profile::LibTorch {
            let fault = format!(
                "libtorch does not read a {} tensor from a file",
                record.kind.as_str()
            );
            return Err(inexpressible(name, fault));
        }
        if record.is_parameter {
            self.global("torch._utils", "_rebuild_parameter");
        }
        match &record.kind {
            RecordKind::Quantized(scheme) => self.quantized(record, scheme, name)?,
            RecordKind::SparseCoo { is_coalesced } => self.sparse(record, *is_coalesced, name)?,
            RecordKind::SparseCompressed(_) => self.sparse(record, None, name)?,
            RecordKind::Meta => {
                self.global("torch._utils", "_rebuild_meta_tensor_no_storage");
                self.out.push(op::MARK);
                self.global("torch", &record.dtype);
                self.sizes(&record.shape);
                self.sizes(&record.stride);
                self.bool(record.requires_grad && !record.is_parameter);
                self.out.extend([op::TUPLE, op::REDUCE]);
            }
            RecordKind::Nested | RecordKind::Jagged | RecordKind::Subclass { .. } => {
                let fault = format!("torch loads a {} tensor only with code", record.kind.as_str());
                return Err(inexpressible(name, fault));
            }
        }
        if record.is_parameter {
            self.bool(record.requires_grad);
            self.empty_ordered_dict();
            self.out.extend([op::TUPLE3, op::REDUCE]);
        }
        Ok(())
    }

    fn quantized(&mut self, record: &Record, scheme: &QScheme, name: &str) -> Result<(), Error> {
        let missing = |part: &str| inexpressible(name, format!("its part `{part}` is missing"));
        let int_repr = record.part("int_repr").ok_or_else(|| missing("int_repr"))?;
        let class = quantized_storage(&record.dtype)
            .ok_or_else(|| inexpressible(name, format!("{} is no quantized type", record.dtype)))?;
        self.global("torch._utils", "_rebuild_qtensor");
        self.out.push(op::MARK);
        self.storage(
            int_repr.storage(),
            class,
            int_repr.dtype().size(),
            int_repr.dtype(),
            name,
        )?;
        self.size(int_repr.storage_offset());
        self.sizes(&record.shape);
        self.sizes(&record.stride);
        self.out.push(op::MARK);
        match scheme {
            QScheme::PerTensor {
                is_symmetric,
                scale,
                zero_point,
            } => {
                let scheme = if *is_symmetric {
                    "per_tensor_symmetric"
                } else {
                    "per_tensor_affine"
                };
                self.global("torch", scheme);
                self.float(*scale);
                self.int(*zero_point);
            }
            QScheme::PerChannel { name: scheme, axis } => {
                // torch writes the scheme with float zero points under this name too, and reads no other.
                let scheme = if *scheme == "per_channel_symmetric" {
                    scheme
                } else {
                    "per_channel_affine"
                };
                self.global("torch", scheme);
                for part in ["scales", "zero_points"] {
                    let tensor = record.part(part).ok_or_else(|| missing(part))?;
                    self.strided(tensor, false, name)?;
                }
                self.size(*axis);
            }
        }
        self.out.push(op::TUPLE);
        self.bool(record.requires_grad && !record.is_parameter);
        self.empty_ordered_dict();
        self.out.extend([op::TUPLE, op::REDUCE]);
        Ok(())
    }

    fn sparse(&mut self, record: &Record, is_coalesced: Option<bool>, name: &str) -> Result<(), Error> {
        self.global("torch._utils", "_rebuild_sparse_tensor");
        self.global("torch.serialization", "_get_layout");
        self.repeated_text(&format!("torch.{}", record.kind.as_str()));
        self.out.extend([op::TUPLE1, op::REDUCE, op::MARK]);
        for (part, tensor) in &record.parts {
            self.strided(tensor, false, &join(name, part))?;
        }
        self.sizes(&record.shape);
        if let Some(is_coalesced) = is_coalesced {
            self.bool(is_coalesced);
        }
        self.out.extend([op::TUPLE, op::TUPLE2, op::REDUCE]);
        Ok(())
    }
}
