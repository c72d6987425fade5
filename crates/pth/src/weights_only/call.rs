//! What the allowed classes and functions make of their arguments.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::machine::Machine;
use super::value::{Chain, DType, DictKind, Function, Id, Tensor, Value};
use super::{Fault, allowed, fault};

impl<'t> Machine<'t> {
    /// `class.__new__(class, *args)`, without `__init__`.
    pub(super) fn make(&mut self, class: Function, args: &[Id]) -> Result<Value<'t>, Fault> {
        match class {
            // These leave their arguments to `__init__`.
            Function::OrderedDict => Ok(Value::Dict(DictKind::Ordered, Chain::default())),
            Function::Counter => Ok(Value::Dict(DictKind::Counter, Chain::default())),
            Function::Set => Ok(Value::Set(Chain::default())),
            Function::ByteArray => Ok(Value::ByteArray(true)),
            Function::TypedStorage => Ok(Value::HollowStorage),
            _ => self.call(class, args),
        }
    }

    pub(super) fn call(&mut self, function: Function, args: &[Id]) -> Result<Value<'t>, Fault> {
        match function {
            Function::OrderedDict => self.ordered_dict(args),
            Function::Counter => self.counter(args),
            Function::Set => self.set(args),
            Function::ByteArray => self.byte_array(args),
            Function::Complex => self.complex(args),
            Function::Encode => self.encode(args),
            Function::Device => self.device(args),
            Function::GetLayout => self.layout(args),
            Function::Size => self.size(args),
            Function::Parameter => match *args {
                [] => self.parameter(None, None),
                [data] => self.parameter(Some(data), None),
                [data, requires_grad] => self.parameter(Some(data), Some(requires_grad)),
                _ => arity("Parameter", args),
            },
            Function::Tensor => self.tensor(allowed::DEFAULT, args),
            Function::TensorOf(dtype) => self.tensor(dtype, args),
            Function::SparseTensorOf(dtype) => self.sparse_tensor(dtype, args),
            Function::UntypedStorage | Function::TypedStorage => self.new_storage(function, args),
            _ => self.rebuild(function, args),
        }
    }

    fn ordered_dict(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let mut chain = Chain::default();
        match *args {
            [] => {}
            [from] => chain = self.pairs_of(from)?,
            _ => return arity("OrderedDict", args),
        }
        Ok(Value::Dict(DictKind::Ordered, chain))
    }

    /// What `dict.update` takes: another dict, or pairs.
    pub(super) fn pairs_of(&mut self, from: Id) -> Result<Chain, Fault> {
        let mut chain = Chain::default();
        if let Value::Dict(_, pairs) = self.heap.get(from) {
            for (key, value) in self.heap.pairs(pairs)? {
                self.heap.link(&mut chain, key, value);
            }
            return Ok(chain);
        }
        for pair in self.heap.sequence(from)? {
            let pair = self.heap.sequence(pair)?;
            let &[key, value] = pair.as_slice() else {
                return fault(format!(
                    "{} items where a key and a value are expected",
                    pair.len()
                ));
            };
            self.heap.check_hashable(key)?;
            self.heap.link(&mut chain, key, value);
        }
        Ok(chain)
    }

    fn counter(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let chain = match *args {
            [] => Chain::default(),
            [from] => match self.heap.get(from) {
                Value::None => Chain::default(),
                Value::Dict(..) => self.pairs_of(from)?,
                _ => self.hashables(from)?,
            },
            _ => return arity("Counter", args),
        };
        Ok(Value::Dict(DictKind::Counter, chain))
    }

    fn set(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        Ok(Value::Set(match *args {
            [] => Chain::default(),
            [from] => self.hashables(from)?,
            _ => return arity("set", args),
        }))
    }

    fn hashables(&mut self, from: Id) -> Result<Chain, Fault> {
        let mut chain = Chain::default();
        for item in self.heap.sequence(from)? {
            self.heap.check_hashable(item)?;
            self.heap.link(&mut chain, item, item);
        }
        Ok(chain)
    }

    fn byte_array(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let is_empty = match *args {
            [] => true,
            [from] => match self.heap.get(from) {
                Value::Bytes(bytes) => bytes.is_empty(),
                Value::OtherBytes => false,
                Value::ByteArray(is_empty) => is_empty,
                Value::Bool(len) => !len,
                Value::Int(len) if len >= 0 => len == 0,
                Value::Int(_) | Value::BigInt => return fault("a bytearray of a length that none has"),
                Value::Str(_) => return fault("a bytearray of a text without an encoding"),
                _ => {
                    let items = self.heap.sequence(from)?;
                    for &item in &items {
                        if !(0..256).contains(&self.index(item)?) {
                            return fault("a bytearray of ints that are not bytes");
                        }
                    }
                    items.is_empty()
                }
            },
            [text, _] | [text, _, _] => {
                if !matches!(self.heap.get(text), Value::Str(_)) {
                    return fault(format!("a bytearray encodes {}", self.heap.class_name(text)));
                }
                self.encode(args)?;
                !self.heap.is_true(text)?
            }
            _ => return arity("bytearray", args),
        };
        Ok(Value::ByteArray(is_empty))
    }

    fn complex(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        if args.len() > 2 {
            return arity("complex", args);
        }
        if let [text] = *args
            && let Value::Str(text) = self.heap.get(text)
        {
            self.heap.spend(text.len())?;
            if !is_complex(text) {
                return fault("complex of a text that is not a number");
            }
            return Ok(Value::Complex);
        }
        for &part in args {
            match self.heap.get(part) {
                Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Complex => {}
                Value::Tensor(Tensor {
                    numel: Some(1) | None,
                    ..
                }) => {}
                Value::BigInt => return fault("complex of an int beyond 64 bits"),
                other => return fault(format!("complex of {}", other.class_name())),
            }
        }
        Ok(Value::Complex)
    }

    /// `_codecs.encode(object, encoding, errors)`.
    fn encode(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let (object, encoding, errors) = match *args {
            [object] => (object, None, None),
            [object, encoding] => (object, Some(encoding), None),
            [object, encoding, errors] => (object, Some(encoding), Some(errors)),
            _ => return arity("encode", args),
        };
        let name = match encoding {
            None => "utf_8".to_owned(),
            Some(id) => self.short_text(id, "an encoding")?,
        };
        let errors = match errors {
            None => "strict".to_owned(),
            Some(id) => self.short_text(id, "the handling of errors")?,
        };
        let name = name.to_ascii_lowercase().replace(['-', ' '], "_");
        let value = self.heap.get(object);
        if matches!(
            name.trim_end_matches("_codec"),
            "hex" | "base64" | "base_64" | "bz2" | "zlib" | "zip" | "quopri" | "quoted_printable" | "uu"
        ) {
            return match value {
                Value::Bytes(_) | Value::OtherBytes | Value::ByteArray(_) => Ok(Value::OtherBytes),
                other => fault(format!("{name} of {}", other.class_name())),
            };
        }
        let text = match value {
            Value::Str(text) => text,
            Value::OtherStr => return Ok(Value::OtherBytes),
            other => return fault(format!("{} is encoded as {name}", other.class_name())),
        };
        self.heap.spend(text.len())?;
        let is_ascii = text.is_ascii();
        let fits = match name.as_str() {
            "rot13" | "rot_13" => return Ok(Value::OtherStr),
            "latin1" | "latin_1" | "latin" | "l1" | "iso_8859_1" | "iso8859_1" | "iso8859" | "8859"
            | "cp819" | "ibm819" => {
                // The characters up to U+00FF begin with no byte above 0xc3.
                text.iter().all(|&byte| byte < 0xc4)
            }
            "utf8" | "utf_8" | "u8" | "utf" | "cp65001" | "utf_8_sig" | "utf_16" | "utf16" | "u16"
            | "utf_16_le" | "utf_16le" | "utf_16_be" | "utf_16be" | "utf_32" | "utf32" | "u32"
            | "utf_32_le" | "utf_32le" | "utf_32_be" | "utf_32be" => {
                std::str::from_utf8(text).is_ok() || errors == "surrogatepass"
            }
            "utf_7" | "utf7" | "u7" | "unicode_escape" | "raw_unicode_escape" | "punycode" => true,
            "ascii" | "us_ascii" | "646" | "ansi_x3.4_1968" => is_ascii,
            // Others hold ASCII and some characters more, which are not told apart here.
            _ if is_charset(&name) => is_ascii,
            _ => return fault(format!("the encoding `{name}` is unknown")),
        };
        let is_lenient = matches!(
            errors.as_str(),
            "ignore" | "replace" | "xmlcharrefreplace" | "backslashreplace" | "namereplace"
        );
        if !fits && !is_lenient {
            return fault(format!("a text has characters that {name} lacks"));
        }
        let is_plain = !name.contains("16") && !name.contains("32") && name != "utf_8_sig";
        Ok(
            if is_ascii && is_plain && !name.contains("escape") && !name.contains("code") {
                Value::Bytes(text)
            } else {
                Value::OtherBytes
            },
        )
    }

    fn short_text(&self, id: Id, what: &'static str) -> Result<String, Fault> {
        match self.heap.get(id) {
            Value::Str(text) if text.len() <= 40 => Ok(String::from_utf8_lossy(text).into_owned()),
            Value::Str(_) => fault(format!("{what} is unknown")),
            other => fault(format!("{what} is {}, expected a str", other.class_name())),
        }
    }

    fn device(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let (first, index) = match *args {
            [first] => (first, None),
            [first, index] => (first, Some(index)),
            _ => return arity("device", args),
        };
        let name = match self.heap.get(first) {
            Value::Device if index.is_none() => return Ok(Value::Device),
            Value::Int(index @ 0..) if args.len() == 1 && i32::try_from(index).is_ok() => {
                return Ok(Value::Device);
            }
            Value::Str(name) | Value::Bytes(name) => name,
            other => return fault(format!("the device of {}", other.class_name())),
        };
        self.heap.spend(name.len())?;
        let Some((_, has_index)) = device(name) else {
            let shown = name.get(..name.len().min(40)).unwrap_or_default();
            return fault(format!(
                "the device `{}` is unknown",
                String::from_utf8_lossy(shown)
            ));
        };
        match index.map(|index| self.heap.get(index)) {
            None | Some(Value::None) => Ok(Value::Device),
            Some(Value::Int(0..)) if !has_index => Ok(Value::Device),
            Some(other) => fault(format!("the index of a device is {}", other.class_name())),
        }
    }

    fn layout(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let &[name] = args else {
            return arity("_get_layout", args);
        };
        let found = match self.heap.get(name) {
            Value::Str(name) => allowed::LAYOUTS
                .iter()
                .find(|layout| layout.as_bytes() == name)
                .copied(),
            _ => None,
        };
        match found {
            Some(layout) => Ok(Value::Layout(layout)),
            None => fault("a layout is unknown"),
        }
    }

    fn size(&mut self, args: &[Id]) -> Result<Value<'t>, Fault> {
        let items = match *args {
            [] => Vec::new(),
            [from] => self.heap.sequence(from)?,
            _ => return arity("Size", args),
        };
        for &item in &items {
            self.index(item)?;
        }
        // As in torch, what stood for an int is one afterwards.
        let ints: Vec<Id> = items
            .into_iter()
            .map(|item| match self.heap.get(item) {
                Value::Bool(value) => self.heap.push(Value::Int(i64::from(value))),
                _ => item,
            })
            .collect();
        Ok(Value::Size(self.heap.keep(&ints)))
    }

    /// As `operator.index`.
    fn index(&self, id: Id) -> Result<i64, Fault> {
        match self.heap.get(id) {
            Value::Bool(value) => Ok(i64::from(value)),
            _ => self.heap.int(id, "an index"),
        }
    }

    /// `Parameter(data, requires_grad)`.
    pub(super) fn parameter(
        &mut self,
        data: Option<Id>,
        requires_grad: Option<Id>,
    ) -> Result<Value<'t>, Fault> {
        let data = match data.map(|data| self.heap.get(data)) {
            None | Some(Value::None) => Tensor {
                dtype: allowed::DEFAULT,
                requires_grad: false,
                is_parameter: false,
                numel: Some(0),
            },
            Some(Value::Tensor(tensor)) => tensor,
            Some(other) => return fault(format!("a Parameter of {}", other.class_name())),
        };
        let requires_grad = match requires_grad {
            None if data.dtype.has_gradients() => true,
            None => return fault(no_gradients(data.dtype)),
            Some(id) => self.requires_grad(id, data.dtype)?,
        };
        Ok(Value::Tensor(Tensor {
            requires_grad,
            is_parameter: true,
            ..data
        }))
    }

    pub(super) fn requires_grad(&self, id: Id, dtype: DType) -> Result<bool, Fault> {
        match self.heap.get(id) {
            Value::Bool(true) if !dtype.has_gradients() => fault(no_gradients(dtype)),
            Value::Bool(value) => Ok(value),
            other => fault(format!(
                "requires_grad is {}, expected a bool",
                other.class_name()
            )),
        }
    }

    /// `torch.FloatTensor(*args)` and its like.
    fn tensor(&mut self, dtype: DType, args: &[Id]) -> Result<Value<'t>, Fault> {
        let made = |numel| {
            Ok(Value::Tensor(Tensor {
                dtype,
                requires_grad: false,
                is_parameter: false,
                numel,
            }))
        };
        let &[only] = args else {
            return made(Some(self.sizes(args)?));
        };
        match self.heap.get(only) {
            Value::Int(_) => made(Some(self.sizes(args)?)),
            Value::Size(run) => {
                self.heap.spend(run.len)?;
                let sizes = self.heap.run(run).to_vec();
                made(Some(self.sizes(&sizes)?))
            }
            Value::Storage(found, _) | Value::Tensor(Tensor { dtype: found, .. }) if found != dtype => {
                fault(format!("a tensor of {} made from {}", dtype.name, found.name))
            }
            Value::Storage(..) | Value::UntypedStorage(_) => made(None),
            Value::Tensor(tensor) => made(tensor.numel),
            Value::Tuple(_) | Value::List(_) => {
                let items = self.heap.sequence(only)?;
                for &item in &items {
                    match self.heap.get(item) {
                        Value::Bool(_) | Value::Int(_) | Value::Tensor(_) => {}
                        Value::Float(_) | Value::Tuple(_) | Value::List(_) => {}
                        other => return fault(format!("a tensor of {}", other.class_name())),
                    }
                }
                made(i64::try_from(items.len()).ok())
            }
            other => fault(format!("a tensor of {}", other.class_name())),
        }
    }

    fn sparse_tensor(&mut self, dtype: DType, args: &[Id]) -> Result<Value<'t>, Fault> {
        let sizes = match *args {
            [only] if matches!(self.heap.get(only), Value::Size(_)) => self.heap.sequence(only)?,
            [indices, values] | [indices, values, _]
                if matches!(self.heap.get(indices), Value::Tensor(_)) =>
            {
                let Value::Tensor(values) = self.heap.get(values) else {
                    return fault("a sparse tensor of values that are no tensor");
                };
                if values.dtype != dtype {
                    return fault(format!(
                        "a tensor of {} made from {}",
                        dtype.name, values.dtype.name
                    ));
                }
                Vec::new()
            }
            _ => args.to_vec(),
        };
        self.sizes(&sizes)?;
        Ok(Value::Tensor(Tensor {
            dtype,
            requires_grad: false,
            is_parameter: false,
            numel: None,
        }))
    }

    /// How many elements a tensor of these sizes has; one of no sizes at all is empty here.
    fn sizes(&self, sizes: &[Id]) -> Result<i64, Fault> {
        let mut numel = i64::from(!sizes.is_empty());
        for &size in sizes {
            let size = self.heap.int(size, "the size of a tensor")?;
            numel = match numel.checked_mul(size) {
                Some(numel) if size >= 0 => numel,
                _ => return fault("a tensor of a size that none has"),
            };
        }
        Ok(numel)
    }

    fn new_storage(&mut self, class: Function, args: &[Id]) -> Result<Value<'t>, Fault> {
        let is_typed = class == Function::TypedStorage;
        let len = match *args {
            [] => 0,
            [only] => match self.heap.get(only) {
                Value::Int(len @ 0..) => len,
                Value::Bool(len) if is_typed => i64::from(len),
                Value::UntypedStorage(_) if !is_typed => return Ok(self.heap.get(only)),
                Value::Tuple(_) | Value::List(_) | Value::Size(_) => {
                    let items = self.heap.sequence(only)?;
                    for &item in &items {
                        match self.heap.get(item) {
                            Value::Int(_) | Value::Bool(_) => {}
                            Value::Float(_) if is_typed => {}
                            other => return fault(format!("a storage of {}", other.class_name())),
                        }
                    }
                    i64::try_from(items.len()).unwrap_or(i64::MAX)
                }
                other => return fault(format!("a storage of {}", other.class_name())),
            },
            _ => return arity("a storage", args),
        };
        // These grow when a tensor needs more.
        Ok(match len.checked_mul(allowed::DEFAULT.size) {
            None => return fault("a storage of a size that none has"),
            Some(_) if is_typed => Value::Storage(allowed::DEFAULT, None),
            Some(_) => Value::UntypedStorage(None),
        })
    }
}

pub(super) fn arity<T>(function: &'static str, args: &[Id]) -> Result<T, Fault> {
    fault(format!("{function} of {} arguments", args.len()))
}

pub(super) fn no_gradients(dtype: DType) -> String {
    format!("a tensor of {} cannot require gradients", dtype.name)
}

/// The type of a device string, and whether it has an index.
pub(super) fn device(name: &[u8]) -> Option<(&'static str, bool)> {
    let name = std::str::from_utf8(name).ok()?;
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let kind = allowed::DEVICES.iter().find(|known| **known == kind)?;
    if let Some(index) = index {
        let is_number = index.bytes().all(|byte| byte.is_ascii_digit());
        let is_padded = index.len() > 1 && index.starts_with('0');
        if !is_number || is_padded || index.parse::<i32>().is_err() {
            return None;
        }
    }
    Some((kind, index.is_some()))
}

/// Whether Python reads a complex number in it: `1`, `2j`, `1+2j`, within parentheses or not.
fn is_complex(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let text = text.trim();
    let text = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
        .map_or(text, str::trim);
    if text.parse::<f64>().is_ok() {
        return true;
    }
    let Some(text) = text.strip_suffix(['j', 'J']) else {
        return false;
    };
    let is_imaginary = |text: &str| matches!(text, "" | "+" | "-") || text.parse::<f64>().is_ok();
    if is_imaginary(text) {
        return true;
    }
    // The last sign that does not belong to an exponent parts the two.
    let bytes = text.as_bytes();
    let sign = bytes
        .windows(2)
        .rposition(|pair| matches!(pair, [before, b'+' | b'-'] if !matches!(before, b'e' | b'E')));
    sign.and_then(|before| text.split_at_checked(before.saturating_add(1)))
        .is_some_and(|(real, imaginary)| real.parse::<f64>().is_ok() && is_imaginary(imaginary))
}

/// The families of Python's codecs of character sets.
fn is_charset(name: &str) -> bool {
    let is_numbered = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
        })
    };
    is_numbered("iso8859_")
        || is_numbered("iso_8859_")
        || is_numbered("cp12")
        || matches!(
            name,
            "cp437"
                | "cp850"
                | "cp852"
                | "cp866"
                | "cp932"
                | "cp936"
                | "cp949"
                | "cp950"
                | "big5"
                | "gbk"
                | "gb2312"
                | "gb18030"
                | "euc_jp"
                | "euc_kr"
                | "shift_jis"
                | "koi8_r"
                | "koi8_u"
                | "mac_roman"
                | "idna"
        )
}
