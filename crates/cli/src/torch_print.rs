//! A tensor as `print(tensor)` shows it in PyTorch 2, character for character: `torch/_tensor_str.py` with its default options.

use anyhow::{Result, bail};
use half::{bf16, f16};
use pth::{DType, Tensor};

const PRECISION: usize = 4;
const THRESHOLD: usize = 1000;
const EDGE_ITEMS: usize = 3;
const LINE_WIDTH: usize = 80;

/// One element.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value {
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
}

/// What `print(tensor)` prints, without the newline.
///
/// # Errors
/// The element type has no values to print (`bits8`).
pub(crate) fn tensor(tensor: &Tensor) -> Result<String> {
    const PREFIX: &str = "tensor(";
    let dtype = tensor.dtype();
    let mut suffixes = Vec::new();
    let body = if tensor.numel() == 0 {
        if tensor.shape().len() != 1 {
            suffixes.push(format!("size={}", tuple(tensor.shape())));
        }
        if dtype != DType::Float32 {
            suffixes.push(format!("dtype=torch.{dtype}"));
        }
        "[]".to_owned()
    } else {
        if !matches!(
            dtype,
            DType::Float32 | DType::Complex64 | DType::Int64 | DType::Bool
        ) {
            suffixes.push(format!("dtype=torch.{dtype}"));
        }
        let summarize = tensor.numel() > THRESHOLD;
        let data = Data::read(tensor, summarize)?;
        let mut shown = Vec::new();
        data.flatten(&mut shown);
        let formatter = Formatter::new(&shown, dtype);
        data.print(PREFIX.len(), tensor.shape().len(), &formatter)
    };
    if tensor.requires_grad() {
        suffixes.push("requires_grad=True".to_owned());
    }
    Ok(with_suffixes(format!("{PREFIX}{body}"), &suffixes, PREFIX.len()))
}

/// A shape as Python prints a tuple.
pub(crate) fn tuple(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    match sizes.as_slice() {
        [one] => format!("({one},)"),
        _ => format!("({})", sizes.join(", ")),
    }
}

/// The part of a tensor that is shown.
enum Data {
    Scalar(Value),
    /// The values of a vector; whether some are left out in the middle.
    Vector(Vec<Value>, bool),
    Slices(Vec<Data>, bool),
}

impl Data {
    fn read(tensor: &Tensor, summarize: bool) -> Result<Data> {
        let Some(&size) = tensor.shape().first() else {
            return Ok(Data::Scalar(values(tensor)?[0]));
        };
        let is_cut = summarize && size > 2 * EDGE_ITEMS;
        if tensor.shape().len() == 1 {
            if !is_cut {
                return Ok(Data::Vector(values(tensor)?, false));
            }
            let mut ends = values(&tensor.slice_in(0, 0, EDGE_ITEMS, 1)?)?;
            ends.extend(values(&tensor.slice_in(0, size - EDGE_ITEMS, EDGE_ITEMS, 1)?)?);
            return Ok(Data::Vector(ends, true));
        }
        let middle = if is_cut {
            EDGE_ITEMS..size - EDGE_ITEMS
        } else {
            0..0
        };
        let shown = (0..size).filter(|i| !middle.contains(i));
        let slices: Result<Vec<Data>> = shown.map(|i| Data::read(&tensor.select(i)?, summarize)).collect();
        Ok(Data::Slices(slices?, is_cut))
    }

    fn flatten(&self, out: &mut Vec<Value>) {
        match self {
            Data::Scalar(value) => out.push(*value),
            Data::Vector(values, _) => out.extend(values),
            Data::Slices(slices, _) => slices.iter().for_each(|slice| slice.flatten(out)),
        }
    }

    fn print(&self, indent: usize, n_dims: usize, formatter: &Formatter) -> String {
        let (parts, between) = match self {
            Data::Scalar(value) => return formatter.format(*value),
            Data::Vector(values, is_cut) => return vector(values, *is_cut, indent, formatter),
            Data::Slices(slices, is_cut) => {
                let mut parts: Vec<String> = slices
                    .iter()
                    .map(|slice| slice.print(indent + 1, n_dims - 1, formatter))
                    .collect();
                if *is_cut {
                    parts.insert(EDGE_ITEMS, "...".to_owned());
                }
                (
                    parts,
                    format!(",{}{}", "\n".repeat(n_dims - 1), " ".repeat(indent + 1)),
                )
            }
        };
        format!("[{}]", parts.join(&between))
    }
}

fn vector(values: &[Value], is_cut: bool, indent: usize, formatter: &Formatter) -> String {
    // The element, a comma and a space.
    let per_line = (LINE_WIDTH.saturating_sub(indent) / (formatter.width() + 2)).max(1);
    let mut parts: Vec<String> = values.iter().map(|value| formatter.format(*value)).collect();
    if is_cut {
        parts.insert(EDGE_ITEMS, " ...".to_owned());
    }
    let lines: Vec<String> = parts.chunks(per_line).map(|line| line.join(", ")).collect();
    format!("[{}]", lines.join(&format!(",\n{}", " ".repeat(indent + 1))))
}

/// How the elements of one tensor are written, all alike.
enum Formatter {
    Plain { width: usize },
    Real(RealFormatter),
    Complex(RealFormatter, RealFormatter),
}

struct RealFormatter {
    style: Style,
    width: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `1.`
    Integers,
    /// `0.5000`
    Decimals,
    /// `5.0000e-05`
    Scientific,
}

impl Formatter {
    fn new(values: &[Value], dtype: DType) -> Formatter {
        let part = |which: fn(Value) -> f64| {
            RealFormatter::new(&values.iter().map(|&v| which(v)).collect::<Vec<_>>())
        };
        if dtype.is_complex() {
            let real = |value| {
                if let Value::Complex(re, _) = value {
                    re
                } else {
                    0.0
                }
            };
            let imag = |value| {
                if let Value::Complex(_, im) = value {
                    im
                } else {
                    0.0
                }
            };
            Formatter::Complex(part(real), part(imag))
        } else if dtype.is_float() {
            Formatter::Real(part(|value| {
                if let Value::Float(value) = value {
                    value
                } else {
                    0.0
                }
            }))
        } else {
            let width = values.iter().map(|value| whole(*value).len()).max().unwrap_or(1);
            Formatter::Plain { width }
        }
    }

    fn width(&self) -> usize {
        match self {
            Formatter::Plain { width } => *width,
            Formatter::Real(real) => real.width,
            // And a `j`; torch forgets the sign between.
            Formatter::Complex(real, imag) => real.width + imag.width + 1,
        }
    }

    fn format(&self, value: Value) -> String {
        match (self, value) {
            (Formatter::Real(real), Value::Float(value)) => real.format(value),
            (Formatter::Complex(real, imag), Value::Complex(re, im)) => {
                let im = format!("{}j", imag.format(im));
                let im = im.trim_start();
                let sign = if im.starts_with(['+', '-']) { "" } else { "+" };
                format!("{}{sign}{im}", real.format(re))
            }
            (formatter, value) => format!("{:>1$}", whole(value), formatter.width()),
        }
    }
}

/// A value that is no float.
fn whole(value: Value) -> String {
    match value {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Int(value) => value.to_string(),
        Value::Float(_) | Value::Complex(..) => String::new(),
    }
}

impl RealFormatter {
    fn new(values: &[f64]) -> RealFormatter {
        let telling: Vec<f64> = values
            .iter()
            .copied()
            .filter(|value| value.is_finite() && *value != 0.0)
            .collect();
        let mut formatter = RealFormatter {
            style: Style::Integers,
            width: 1,
        };
        if telling.is_empty() {
            return formatter;
        }
        let smallest = telling
            .iter()
            .map(|value| value.abs())
            .fold(f64::INFINITY, f64::min);
        let largest = telling.iter().map(|value| value.abs()).fold(0.0, f64::max);
        formatter.style = if largest / smallest > 1000.0 || largest > 1e8 || smallest < 1e-4 {
            Style::Scientific
        } else if telling.iter().all(|value| *value == value.ceil()) {
            Style::Integers
        } else {
            Style::Decimals
        };
        let widths = telling.iter().map(|&value| formatter.text(value).len());
        formatter.width = widths.max().unwrap_or(1).max(1);
        formatter
    }

    fn text(&self, value: f64) -> String {
        if value.is_nan() {
            return "nan".to_owned();
        }
        if value.is_infinite() {
            return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
        }
        match self.style {
            Style::Integers => format!("{value:.0}."),
            Style::Decimals => format!("{value:.PRECISION$}"),
            Style::Scientific => scientific(value),
        }
    }

    fn format(&self, value: f64) -> String {
        format!("{:>1$}", self.text(value), self.width)
    }
}

/// As Python's `%.4e`: the exponent has a sign and two digits at least.
fn scientific(value: f64) -> String {
    let text = format!("{value:.PRECISION$e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

fn with_suffixes(mut text: String, suffixes: &[String], indent: usize) -> String {
    // `len(text) - text.rfind("\n") + 1`, where `rfind` gives -1 for none.
    let mut line_len = match text.rfind('\n') {
        Some(at) => text.len() - at + 1,
        None => text.len() + 2,
    };
    for suffix in suffixes {
        if line_len + suffix.len() + 2 > LINE_WIDTH {
            text.push_str(&format!(",\n{}{suffix}", " ".repeat(indent)));
            line_len = indent + suffix.len();
        } else {
            text.push_str(&format!(", {suffix}"));
            line_len += suffix.len() + 2;
        }
    }
    text.push(')');
    text
}

/// All elements, in row-major order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<Value>> {
    let dtype = tensor.dtype();
    let bytes = tensor.to_bytes()?;
    bytes
        .chunks_exact(dtype.size())
        .map(|element| value(dtype, element))
        .collect()
}

/// One little-endian element.
pub(crate) fn value(dtype: DType, bytes: &[u8]) -> Result<Value> {
    fn as_int<const N: usize>(bytes: &[u8], from: fn([u8; N]) -> i128) -> Value {
        Value::Int(from(*bytes.first_chunk().expect("as many bytes as the type has")))
    }
    let float = |value: f64| Ok(Value::Float(value));
    match dtype {
        DType::Bool => Ok(Value::Bool(bytes[0] != 0)),
        DType::Uint8 => Ok(Value::Int(bytes[0].into())),
        DType::Int8 => Ok(as_int(bytes, |b| i8::from_le_bytes(b).into())),
        DType::Uint16 => Ok(as_int(bytes, |b| u16::from_le_bytes(b).into())),
        DType::Int16 => Ok(as_int(bytes, |b| i16::from_le_bytes(b).into())),
        DType::Uint32 => Ok(as_int(bytes, |b| u32::from_le_bytes(b).into())),
        DType::Int32 => Ok(as_int(bytes, |b| i32::from_le_bytes(b).into())),
        DType::Uint64 => Ok(as_int(bytes, |b| u64::from_le_bytes(b).into())),
        DType::Int64 => Ok(as_int(bytes, |b| i64::from_le_bytes(b).into())),
        DType::Float16 => float(f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
        DType::BFloat16 => float(bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
        DType::Float32 => float(f32::from_le_bytes(*bytes.first_chunk().expect("four bytes")).into()),
        DType::Float64 => float(f64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"))),
        // Its layout is the upper half of a float16.
        DType::Float8E5M2 => float(f16::from_bits(u16::from(bytes[0]) << 8).to_f64()),
        DType::Float8E4M3Fn => float(float8(bytes[0], 3, 7, bytes[0] & 0x7f == 0x7f)),
        DType::Float8E4M3Fnuz => float(float8(bytes[0], 3, 8, bytes[0] == 0x80)),
        DType::Float8E5M2Fnuz => float(float8(bytes[0], 2, 16, bytes[0] == 0x80)),
        DType::Float8E8M0Fnu => float(if bytes[0] == 0xff {
            f64::NAN
        } else {
            2_f64.powi(i32::from(bytes[0]) - 127)
        }),
        DType::Complex32 | DType::BComplex32 | DType::Complex64 | DType::Complex128 => {
            let part = match dtype {
                DType::Complex32 => DType::Float16,
                DType::BComplex32 => DType::BFloat16,
                DType::Complex64 => DType::Float32,
                _ => DType::Float64,
            };
            let (re, im) = bytes.split_at(part.size());
            match (value(part, re)?, value(part, im)?) {
                (Value::Float(re), Value::Float(im)) => Ok(Value::Complex(re, im)),
                _ => unreachable!("the parts are floats"),
            }
        }
        other => bail!("values of type {other} are not printed"),
    }
}

/// An 8-bit float with `n_mantissa` bits of mantissa, without infinities.
fn float8(byte: u8, n_mantissa: i32, bias: i32, is_nan: bool) -> f64 {
    if is_nan {
        return f64::NAN;
    }
    let exponent = i32::from((byte & 0x7f) >> n_mantissa);
    let mantissa = f64::from(byte & ((1 << n_mantissa) - 1)) / f64::from(1 << n_mantissa);
    let size = if exponent == 0 {
        mantissa * 2_f64.powi(1 - bias)
    } else {
        (1.0 + mantissa) * 2_f64.powi(exponent - bias)
    };
    if byte & 0x80 != 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes(DType::Float32, shape, bytes).unwrap()
    }

    fn check(shape: &[usize], values: &[f32], expected: &str) {
        assert_eq!(tensor(&floats(shape, values)).unwrap(), expected);
    }

    #[test]
    fn small_tensors_are_written_as_torch_writes_them() {
        check(&[], &[1.5], "tensor(1.5000)");
        check(&[3], &[1.0, 2.0, -3.0], "tensor([ 1.,  2., -3.])");
        check(&[2], &[1e-5, 1.0], "tensor([1.0000e-05, 1.0000e+00])");
        check(
            &[3],
            &[f32::NAN, f32::INFINITY, 0.5],
            "tensor([   nan,    inf, 0.5000])",
        );
        check(
            &[2, 2],
            &[0.0, -0.0, 1.0, 2.0],
            "tensor([[0., -0.],\n        [1., 2.]])",
        );
        check(&[0, 3], &[], "tensor([], size=(0, 3))");
        check(&[2, 1, 1], &[1.0, 2.0], "tensor([[[1.]],\n\n        [[2.]]])");
        let flags = Tensor::from_bytes(DType::Bool, &[2], vec![1, 0]).unwrap();
        assert_eq!(tensor(&flags).unwrap(), "tensor([ True, False])");
        let trained = floats(&[1], &[0.25]).with_requires_grad(true);
        assert_eq!(tensor(&trained).unwrap(), "tensor([0.2500], requires_grad=True)");
    }

    #[test]
    fn many_elements_are_cut_in_the_middle() {
        // As torch 2.15 prints arange(1001.) and arange(1002.): beyond a ratio of 1000 it turns to exponents.
        let values: Vec<f32> = (0..1002_u16).map(f32::from).collect();
        check(
            &[1001],
            &values[..1001],
            "tensor([   0.,    1.,    2.,  ...,  998.,  999., 1000.])",
        );
        check(
            &[1002],
            &values,
            "tensor([0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 9.9900e+02, 1.0000e+03,\n        1.0010e+03])",
        );
    }
}
