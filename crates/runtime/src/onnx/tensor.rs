//! Initialisers: their type, sizes and place in the file, checked against each other.

use std::borrow::Cow;
use std::ops::Range;

use super::wire::{self, Value};

/// An initialiser of the graph, as an index into the model's bytes.
#[derive(Debug, Clone)]
pub(super) struct Initializer {
    pub(super) name: String,
    /// The whole field of `GraphProto`, with its tag.
    pub(super) field: Range<usize>,
    /// `TensorProto.DataType`.
    pub(super) dtype: i64,
    pub(super) shape: Vec<usize>,
    pub(super) payload: Payload,
}

/// Where the elements are.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    /// Little-endian, row-major, at these bytes.
    Raw(Range<usize>),
    /// In the typed fields of this `TensorProto`.
    Typed(Range<usize>),
    /// In another file.
    External(Place),
}

/// What `external_data` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) location: String,
    pub(super) offset: Option<String>,
    pub(super) length: Option<String>,
}

/// Names of element types as torch spells them, and their sizes in bits; the index is `TensorProto.DataType`.
const TYPES: [(&str, usize); 27] = [
    ("undefined", 0),
    ("float32", 32),
    ("uint8", 8),
    ("int8", 8),
    ("uint16", 16),
    ("int16", 16),
    ("int32", 32),
    ("int64", 64),
    ("string", 0),
    ("bool", 8),
    ("float16", 16),
    ("float64", 64),
    ("uint32", 32),
    ("uint64", 64),
    ("complex64", 64),
    ("complex128", 128),
    ("bfloat16", 16),
    ("float8_e4m3fn", 8),
    ("float8_e4m3fnuz", 8),
    ("float8_e5m2", 8),
    ("float8_e5m2fnuz", 8),
    ("uint4", 4),
    ("int4", 4),
    ("float4_e2m1", 4),
    ("float8_e8m0", 8),
    ("uint2", 2),
    ("int2", 2),
];

const STRING: i64 = 8;

fn row(dtype: i64) -> Option<(&'static str, usize)> {
    usize::try_from(dtype)
        .ok()
        .and_then(|idx| TYPES.get(idx))
        .copied()
}

/// The name of an element type (`TensorProto.DataType`) as torch spells it: `float32`, `int64`.
pub fn type_name(dtype: i64) -> &'static str {
    row(dtype).map_or("a type of no name", |row| row.0)
}

/// Whether an element type holds fractions.
pub(super) fn is_float(dtype: i64) -> bool {
    let name = type_name(dtype);
    name.starts_with("float") || name.starts_with("bfloat")
}

/// Bytes of `numel` elements; none for strings and unknown types.
pub(super) fn n_bytes(dtype: i64, numel: usize) -> Option<usize> {
    let (_, bits) = row(dtype).filter(|row| row.1 > 0)?;
    numel.checked_mul(bits).map(|bits| bits.div_ceil(8))
}

impl Initializer {
    /// How many elements it has; proven not to overflow when it was read.
    pub(super) fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads a `TensorProto` and checks its elements against its type and sizes.
    pub(super) fn read(
        bytes: &[u8],
        field: Range<usize>,
        tensor: Range<usize>,
    ) -> Result<Initializer, String> {
        let mut read = Initializer {
            name: String::new(),
            field,
            dtype: 0,
            shape: Vec::new(),
            payload: Payload::Typed(tensor.clone()),
        };
        let mut dims: Vec<u64> = Vec::new();
        let mut raw = None;
        let mut place = Place::default();
        let mut is_external = false;
        for part in wire::each(bytes, tensor.clone()) {
            let part = part.map_err(|error| error.to_string())?;
            match (part.number, &part.value) {
                (1, Value::Varint(size)) => dims.push(*size),
                (1, Value::Bytes(span)) => dims.extend(wire::packed(bytes, span.clone())),
                (2, Value::Varint(dtype)) => read.dtype = dtype.cast_signed(),
                (8, Value::Bytes(span)) => read.name = text(bytes, span),
                (9, Value::Bytes(span)) => raw = Some(span.clone()),
                (13, Value::Bytes(span)) => place.entry(bytes, span.clone())?,
                (14, Value::Varint(location)) => is_external = *location == 1,
                _ => {}
            }
        }
        let of = |what: String| {
            let named = if read.name.is_empty() {
                "a tensor without a name".to_owned()
            } else {
                format!("`{}`", read.name)
            };
            format!("{named} {what}")
        };
        let mut numel = 1usize;
        for &size in &dims {
            let size = usize::try_from(size)
                .ok()
                .filter(|&size| size < 1 << 62)
                .ok_or_else(|| of(format!("has an axis of size {}", size.cast_signed())))?;
            read.shape.push(size);
            numel = numel
                .checked_mul(size)
                .filter(|&numel| numel < 1 << 56)
                .ok_or_else(|| of(format!("has more elements than memory ({dims:?})")))?;
        }
        if row(read.dtype).is_none_or(|row| row.0 == "undefined") {
            return Err(of(format!("has element type {}, which is none", read.dtype)));
        }
        if is_external {
            read.payload = Payload::External(place);
            return Ok(read);
        }
        let (found, expected, unit) = match raw {
            Some(span) => {
                let Some(expected) = n_bytes(read.dtype, numel) else {
                    return Err(of("holds strings as raw data".to_owned()));
                };
                let found = span.len();
                read.payload = Payload::Raw(span);
                (found, expected, "bytes")
            }
            None => {
                let found = count_typed(bytes, tensor, read.dtype)?;
                (found, n_typed(read.dtype, numel), "values")
            }
        };
        if found != expected {
            return Err(of(format!(
                "is {} of {:?} and holds {found} {unit}, not {expected}",
                type_name(read.dtype),
                read.shape
            )));
        }
        Ok(read)
    }

    /// The elements as raw data would hold them: little-endian, row-major. None where they lie outside `bytes`.
    ///
    /// Strings have no such form: each is its length in eight bytes and its bytes.
    pub(super) fn raw<'b>(&self, bytes: &'b [u8]) -> Option<Cow<'b, [u8]>> {
        match &self.payload {
            Payload::Raw(span) => Some(Cow::Borrowed(&bytes[span.clone()])),
            Payload::Typed(tensor) => Some(raw_of_typed(bytes, tensor.clone(), self.dtype)),
            Payload::External(_) => None,
        }
    }
}

impl Place {
    fn entry(&mut self, bytes: &[u8], span: Range<usize>) -> Result<(), String> {
        let (mut key, mut value) = (String::new(), String::new());
        for part in wire::each(bytes, span) {
            match part.map_err(|error| error.to_string())? {
                wire::Field {
                    number: 1,
                    value: Value::Bytes(span),
                    ..
                } => key = text(bytes, &span),
                wire::Field {
                    number: 2,
                    value: Value::Bytes(span),
                    ..
                } => value = text(bytes, &span),
                _ => {}
            }
        }
        match key.as_str() {
            "location" => self.location = value,
            "offset" => self.offset = Some(value),
            "length" => self.length = Some(value),
            // `checksum` and whatever else: ONNX Runtime reads none of it.
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn text(bytes: &[u8], span: &Range<usize>) -> String {
    String::from_utf8_lossy(&bytes[span.clone()]).into_owned()
}

/// The typed field of a type, and how wide a value in it is once it is raw data.
fn typed_field(dtype: i64) -> (u32, usize) {
    match dtype {
        1 | 14 => (4, 4),
        11 | 15 => (10, 8),
        7 => (7, 8),
        12 => (11, 4),
        13 => (11, 8),
        STRING => (6, 0),
        6 => (5, 4),
        4 | 5 | 10 | 16 => (5, 2),
        // Of the types below a byte, each value is one byte of packed elements.
        _ => (5, 1),
    }
}

/// Values that a typed field holds for `numel` elements.
fn n_typed(dtype: i64, numel: usize) -> usize {
    match dtype {
        14 | 15 => 2 * numel,
        _ if row(dtype).is_some_and(|row| row.1 > 0 && row.1 < 8) => n_bytes(dtype, numel).unwrap_or(0),
        _ => numel,
    }
}

fn count_typed(bytes: &[u8], tensor: Range<usize>, dtype: i64) -> Result<usize, String> {
    let (number, _) = typed_field(dtype);
    let mut n = 0;
    for part in wire::each(bytes, tensor) {
        let part = part.map_err(|error| error.to_string())?;
        if part.number != number {
            continue;
        }
        n += match part.value {
            Value::Bytes(span) => match number {
                4 => span.len() / 4,
                10 => span.len() / 8,
                6 => 1,
                _ => bytes[span].iter().filter(|&&byte| byte < 0x80).count(),
            },
            _ => 1,
        };
    }
    Ok(n)
}

fn raw_of_typed(bytes: &[u8], tensor: Range<usize>, dtype: i64) -> Cow<'_, [u8]> {
    let (number, width) = typed_field(dtype);
    let mut parts = wire::each(bytes, tensor)
        .flatten()
        .filter(|part| part.number == number)
        .peekable();
    // Packed floats are little-endian already.
    if let (4 | 10, Some(Value::Bytes(span))) = (number, parts.peek().map(|part| part.value.clone())) {
        parts.next();
        if parts.peek().is_none() {
            return Cow::Borrowed(&bytes[span]);
        }
        let mut raw = bytes[span].to_vec();
        for part in parts {
            put_typed(bytes, &part.value, number, width, &mut raw);
        }
        return Cow::Owned(raw);
    }
    let mut raw = Vec::new();
    for part in parts {
        put_typed(bytes, &part.value, number, width, &mut raw);
    }
    Cow::Owned(raw)
}

fn put_typed(bytes: &[u8], value: &Value, number: u32, width: usize, raw: &mut Vec<u8>) {
    match (number, value) {
        (4 | 10, Value::Bytes(span)) => raw.extend_from_slice(&bytes[span.clone()]),
        (6, Value::Bytes(span)) => {
            raw.extend_from_slice(&(span.len() as u64).to_le_bytes());
            raw.extend_from_slice(&bytes[span.clone()]);
        }
        (_, Value::Bytes(span)) => {
            for value in wire::packed(bytes, span.clone()) {
                raw.extend_from_slice(&value.to_le_bytes()[..width]);
            }
        }
        (_, Value::Varint(value)) => raw.extend_from_slice(&value.to_le_bytes()[..width]),
        (_, Value::Fixed32(value)) => raw.extend_from_slice(&value.to_le_bytes()),
        (_, Value::Fixed64(value)) => raw.extend_from_slice(&value.to_le_bytes()),
    }
}
