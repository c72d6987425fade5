//! numpy's arrays and scalars in a pickle, as typed values.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::fmt;

use crate::pickle::{Arena, Node, NodeId, render};
use crate::{DType, Tensor, layout, objects};

/// An array of numbers of one type; a scalar has no dimensions.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// numpy's name of the type, with its byte order: `<f4`, `|u1`, `<U5`.
    pub descr: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Whether the elements lie column-major.
    pub is_fortran: bool,
    /// The elements as they are in the file.
    pub bytes: Vec<u8>,
    /// Whether it was a scalar (`numpy.float64(0.5)`) and not an array of no dimensions.
    pub is_scalar: bool,
}

impl Array {
    /// The type in torch, where it has one.
    pub fn dtype(&self) -> Option<DType> {
        Some(match self.descr.get(1..)? {
            "b1" => DType::Bool,
            "u1" => DType::Uint8,
            "u2" => DType::Uint16,
            "u4" => DType::Uint32,
            "u8" => DType::Uint64,
            "i1" => DType::Int8,
            "i2" => DType::Int16,
            "i4" => DType::Int32,
            "i8" => DType::Int64,
            "f2" => DType::Float16,
            "f4" => DType::Float32,
            "f8" => DType::Float64,
            "c8" => DType::Complex64,
            "c16" => DType::Complex128,
            _ => return None,
        })
    }

    /// The elements row-major and little-endian; none for a type that torch lacks.
    fn little_endian(&self, dtype: DType) -> Cow<'_, [u8]> {
        let mut bytes = Cow::Borrowed(self.bytes.as_slice());
        if self.descr.starts_with('>') && dtype.component_size() > 1 {
            bytes
                .to_mut()
                .chunks_exact_mut(dtype.component_size())
                .for_each(<[u8]>::reverse);
        }
        bytes
    }

    /// The same values as a tensor of its own; none for a type that torch lacks.
    pub fn tensor(&self) -> Option<Tensor> {
        let dtype = self.dtype()?;
        let storage = crate::Storage::owned(self.little_endian(dtype).into_owned());
        let mut stride = layout::contiguous_stride(&self.shape);
        if self.is_fortran {
            let reversed: Vec<usize> = self.shape.iter().rev().copied().collect();
            stride = layout::contiguous_stride(&reversed);
            stride.reverse();
        }
        Tensor::from_storage(storage, dtype, &self.shape, &stride, 0).ok()
    }

    /// The one number of a scalar, as Python would have it.
    pub(crate) fn number(&self) -> Option<Number> {
        let dtype = self.dtype().filter(|_| self.is_scalar)?;
        let bytes = self.little_endian(dtype);
        let wide = |sign: bool| {
            let fill = if sign && bytes.last().is_some_and(|&last| last >= 0x80) {
                0xff
            } else {
                0
            };
            let mut wide = [fill; 16];
            for (to, from) in wide.iter_mut().zip(bytes.iter()) {
                *to = *from;
            }
            i128::from_le_bytes(wide)
        };
        Some(match dtype {
            DType::Bool => Number::Bool(bytes.first().is_some_and(|&byte| byte != 0)),
            DType::Float16 => Number::Float(half_to_f64(u16::from_le_bytes(*bytes.first_chunk()?))),
            DType::Float32 => Number::Float(f64::from(f32::from_le_bytes(*bytes.first_chunk()?))),
            DType::Float64 => Number::Float(f64::from_le_bytes(*bytes.first_chunk()?)),
            DType::Complex64 => {
                let (re, im) = bytes.split_first_chunk::<4>()?;
                let im = f32::from_le_bytes(*im.first_chunk()?);
                Number::Complex(f64::from(f32::from_le_bytes(*re)), f64::from(im))
            }
            DType::Complex128 => {
                let (re, im) = bytes.split_first_chunk::<8>()?;
                Number::Complex(f64::from_le_bytes(*re), f64::from_le_bytes(*im.first_chunk()?))
            }
            DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => Number::Int(wide(false)),
            _ => Number::Int(wide(true)),
        })
    }

    /// The text of a string scalar (`<U5`).
    pub(crate) fn text(&self) -> Option<String> {
        let is_text = self.is_scalar && self.descr.get(1..2) == Some("U");
        is_text.then(|| {
            let big = self.descr.starts_with('>');
            let codes = self.bytes.as_chunks::<4>().0.iter().map(|&code| {
                if big {
                    u32::from_be_bytes(code)
                } else {
                    u32::from_le_bytes(code)
                }
            });
            codes
                .take_while(|&code| code != 0)
                .map(|code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        })
    }
}

/// A Python number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
}

impl fmt::Display for Array {
    /// A scalar's value; of an array its type and shape: `array(float32[3, 4])`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.number(), self.text()) {
            (Some(Number::Bool(value)), _) => f.write_str(if value { "True" } else { "False" }),
            (Some(Number::Int(value)), _) => write!(f, "{value}"),
            (Some(Number::Float(value)), _) => f.write_str(&render::float_repr(value)),
            (Some(Number::Complex(re, im)), _) => write!(f, "({re}{im:+}j)"),
            (None, Some(text)) => write!(f, "'{}'", text.escape_debug()),
            (None, None) => {
                let name = self
                    .dtype()
                    .map_or_else(|| self.descr.clone(), |dtype| dtype.to_string());
                write!(f, "array({name}{:?})", self.shape)
            }
        }
    }
}

/// The value of a binary16 number, which a double holds exactly.
fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    sign * match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent.saturating_sub(15)),
    }
}

fn is_numpy(module: &str) -> bool {
    matches!(module.split('.').next(), Some("numpy"))
}

/// The array or scalar that `node` stands for; none for anything else, and for arrays of Python objects.
pub(crate) fn array(arena: &Arena<'_>, node: NodeId) -> Option<Array> {
    let (module, name) = arena.callee_name(node)?;
    if !is_numpy(module) {
        return None;
    }
    let found = match name {
        "scalar" => {
            let &[dtype, ref data @ ..] = arena.args(node) else {
                return None;
            };
            Array {
                descr: descr(arena, dtype)?,
                shape: Vec::new(),
                is_fortran: false,
                bytes: bytes(arena, *data.first()?)?,
                is_scalar: true,
            }
        }
        "_reconstruct" => {
            // (version, shape, dtype, is_fortran, data)
            let &[_, shape, dtype, is_fortran, data] = arena.items(*arena.states(node).last()?) else {
                return None;
            };
            Array {
                descr: descr(arena, dtype)?,
                shape: objects::sizes(arena, shape)?,
                is_fortran: arena.node(is_fortran) == Node::Bool(true),
                bytes: bytes(arena, data)?,
                is_scalar: false,
            }
        }
        // (buffer, dtype, shape, order)
        "_frombuffer" => {
            let &[data, dtype, shape, order] = arena.args(node) else {
                return None;
            };
            Array {
                descr: descr(arena, dtype)?,
                shape: objects::sizes(arena, shape)?,
                is_fortran: arena.str_bytes(order) == Some(b"F"),
                bytes: bytes(arena, data)?,
                is_scalar: false,
            }
        }
        _ => return None,
    };
    let size: usize = found.descr.get(2..)?.parse().ok()?;
    // Text is counted in characters of four bytes.
    let size = if found.descr.get(1..2) == Some("U") {
        size.checked_mul(4)?
    } else {
        size
    };
    let expected = layout::numel(&found.shape)?.checked_mul(size)?;
    (found.bytes.len() == expected).then_some(found)
}

/// `numpy.dtype('f4', False, True)` with the state `(3, '<', ...)`.
fn descr(arena: &Arena<'_>, node: NodeId) -> Option<String> {
    let (module, name) = arena.callee_name(node)?;
    if !is_numpy(module) || name != "dtype" {
        return None;
    }
    let code = arena.str(*arena.args(node).first()?)?;
    let order = arena
        .states(node)
        .last()
        .and_then(|&state| arena.str(*arena.items(state).get(1)?))
        .unwrap_or(Cow::Borrowed("|"));
    // `=` is the byte order of the machine that wrote it, which nothing tells; all that is left is little-endian.
    let order = if order == "=" { "<".into() } else { order };
    let is_plain = code.len() >= 2 && code.is_ascii() && !code.starts_with('O') && !code.starts_with('V');
    (is_plain && order.len() == 1).then(|| format!("{order}{code}"))
}

/// Bytes as they are, or as protocol 2 spells them: Latin-1 text to be encoded.
pub(crate) fn bytes(arena: &Arena<'_>, node: NodeId) -> Option<Vec<u8>> {
    match arena.node(node) {
        Node::Bytes(span) | Node::Str(span) => Some(arena.bytes(span).to_vec()),
        _ => encoded(arena, node),
    }
}

/// `_codecs.encode(text, 'latin1')`, or the empty `bytes()`.
pub(crate) fn encoded(arena: &Arena<'_>, node: NodeId) -> Option<Vec<u8>> {
    match arena.callee_name(node)? {
        ("_codecs", "encode") => {
            let text = std::str::from_utf8(arena.str_bytes(*arena.args(node).first()?)?).ok()?;
            text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
        }
        ("builtins" | "__builtin__", "bytes" | "bytearray") => match arena.args(node) {
            [] => Some(Vec::new()),
            &[inner, ..] if matches!(arena.node(inner), Node::Bytes(_)) => bytes(arena, inner),
            // bytearray(text, 'latin-1') of Python 2, or bytearray(_codecs.encode(...))
            &[text, _] => {
                let text = std::str::from_utf8(arena.str_bytes(text)?).ok()?;
                text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
            }
            &[inner] if arena.callee_name(inner) == Some(("_codecs", "encode")) => {
                let text = arena.str_bytes(*arena.args(inner).first()?)?;
                let text = std::str::from_utf8(text).ok()?;
                text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
            }
            _ => None,
        },
        _ => None,
    }
}
