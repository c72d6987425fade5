//! Elements of any type to numbers and back, a block at a time.
//!
//! Loops over blocks are compiled for the widest vectors of the machine by `pulp`, which needs no `unsafe` here.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pth::DType;

/// Whether values of this type are converted: not the 8-bit and 4-bit floats, which need scales, nor complex numbers and bits.
pub(crate) fn is_convertible(dtype: DType) -> bool {
    CONVERTED.contains(&dtype)
}

/// The types that are converted into each other.
pub(crate) const CONVERTED: [DType; 13] = [
    DType::Bool,
    DType::Uint8,
    DType::Int8,
    DType::Uint16,
    DType::Int16,
    DType::Uint32,
    DType::Int32,
    DType::Uint64,
    DType::Int64,
    DType::Float16,
    DType::BFloat16,
    DType::Float32,
    DType::Float64,
];

/// The type of what two types are added or multiplied to, as `torch.promote_types` for the floats; integers yield to floats.
pub(crate) fn promote(a: DType, b: DType) -> DType {
    let rank = |dtype: DType| match dtype {
        DType::Float64 => 4,
        DType::Float32 => 3,
        DType::Float16 | DType::BFloat16 => 2,
        _ => 1,
    };
    match (rank(a), rank(b)) {
        (2, 2) if a != b => DType::Float32,
        (1, 1) if a.size() < b.size() => b,
        (x, y) if x < y => b,
        _ => a,
    }
}

macro_rules! each {
    ($bytes:expr, $out:expr, $type:ty, $convert:expr) => {
        for (element, value) in $bytes
            .as_chunks::<{ size_of::<$type>() }>()
            .0
            .iter()
            .zip($out.iter_mut())
        {
            *value = $convert(<$type>::from_le_bytes(*element));
        }
    };
}

macro_rules! each_back {
    ($values:expr, $out:expr, $type:ty, $convert:expr) => {
        for (value, element) in $values
            .iter()
            .zip($out.as_chunks_mut::<{ size_of::<$type>() }>().0)
        {
            *element = <$type>::to_le_bytes($convert(*value));
        }
    };
}

/// Little-endian elements to float64; exact but for integers of more than 53 bits.
#[inline(always)]
pub(crate) fn to_f64(dtype: DType, bytes: &[u8], out: &mut [f64]) {
    debug_assert_eq!(bytes.len(), out.len() * dtype.size());
    match dtype {
        DType::Bool => each!(bytes, out, u8, |x: u8| f64::from(u8::from(x != 0))),
        DType::Uint8 => each!(bytes, out, u8, f64::from),
        DType::Int8 => each!(bytes, out, i8, f64::from),
        DType::Uint16 => each!(bytes, out, u16, f64::from),
        DType::Int16 => each!(bytes, out, i16, f64::from),
        DType::Uint32 => each!(bytes, out, u32, f64::from),
        DType::Int32 => each!(bytes, out, i32, f64::from),
        DType::Uint64 => each!(bytes, out, u64, |x: u64| x as f64),
        DType::Int64 => each!(bytes, out, i64, |x: i64| x as f64),
        DType::Float16 => each!(bytes, out, u16, |x: u16| f16::from_bits(x).to_f64()),
        DType::BFloat16 => each!(bytes, out, u16, |x: u16| f64::from(f32::from_bits(
            u32::from(x) << 16
        ))),
        DType::Float32 => each!(bytes, out, f32, f64::from),
        DType::Float64 => each!(bytes, out, f64, |x: f64| x),
        _ => unreachable!("`is_convertible` is asked before"),
    }
}

/// Numbers to elements of `dtype`, each rounded once to the nearest, ties to even; towards zero for integers.
#[inline(always)]
pub(crate) fn from_f64(dtype: DType, values: &[f64], out: &mut [u8]) {
    debug_assert_eq!(out.len(), values.len() * dtype.size());
    match dtype {
        DType::Bool => each_back!(values, out, u8, |x: f64| u8::from(x != 0.0)),
        DType::Uint8 => each_back!(values, out, u8, |x: f64| x as u8),
        DType::Int8 => each_back!(values, out, i8, |x: f64| x as i8),
        DType::Uint16 => each_back!(values, out, u16, |x: f64| x as u16),
        DType::Int16 => each_back!(values, out, i16, |x: f64| x as i16),
        DType::Uint32 => each_back!(values, out, u32, |x: f64| x as u32),
        DType::Int32 => each_back!(values, out, i32, |x: f64| x as i32),
        DType::Uint64 => each_back!(values, out, u64, |x: f64| x as u64),
        DType::Int64 => each_back!(values, out, i64, |x: f64| x as i64),
        DType::Float16 => each_back!(values, out, u16, |x: f64| f16::from_f64(x).to_bits()),
        DType::BFloat16 => each_back!(values, out, u16, bf16_bits),
        DType::Float32 => each_back!(values, out, f32, |x: f64| x as f32),
        DType::Float64 => each_back!(values, out, f64, |x: f64| x),
        _ => unreachable!("`is_convertible` is asked before"),
    }
}

/// The nearest bfloat16, ties to even, in one rounding.
///
/// By way of a float32 that is rounded to odd: its last bit then says that something was cut off, so that the second rounding sees
/// what the first one saw (Boldo and Melquiond, "Emulation of a FMA and correctly-rounded sums", IEEE TC 2008).
#[inline(always)]
fn bf16_bits(x: f64) -> u16 {
    let nearest = x as f32;
    let bits = nearest.to_bits();
    let is_inexact = f64::from(nearest) != x;
    // One step back where rounding went away from zero, then odd.
    let truncated = bits - u32::from(f64::from(nearest.abs()) > x.abs());
    let odd = truncated | u32::from(is_inexact);
    // NaN is not equal to itself, and comes out as it went in, with its quiet bit set.
    let odd = if x.is_nan() { bits | 0x0040_0000 } else { odd };
    let rounded = odd.wrapping_add(0x7fff + ((odd >> 16) & 1));
    let rounded = if x.is_nan() { odd } else { rounded };
    (rounded >> 16) as u16
}

/// Little-endian elements of `from` to those of `to`, as `Tensor.to` converts: floats and narrow integers by way of float32.
pub(crate) fn convert(from: DType, to: DType, bytes: &[u8], out: &mut [u8]) {
    const BLOCK: usize = 1024;
    let (from_size, to_size) = (from.size(), to.size());
    // Integers into each other, and everything into float64, are exact by way of 64 bits.
    let is_integer = |dtype: DType| !dtype.is_float() && dtype != DType::Bool;
    if is_integer(from) && is_integer(to) {
        return integers(from, to, bytes, out);
    }
    let is_wide = |dtype| matches!(dtype, DType::Float64);
    if is_wide(to) || !to.is_float() || (is_integer(from) && to == DType::Float32) {
        let mut block = [0.0; BLOCK];
        for (bytes, out) in bytes
            .chunks(BLOCK * from_size)
            .zip(out.chunks_mut(BLOCK * to_size))
        {
            let values = &mut block[..bytes.len() / from_size];
            to_f64(from, bytes, values);
            from_f64(to, values, out);
        }
        return;
    }
    let mut block = [0.0_f32; BLOCK];
    for (bytes, out) in bytes
        .chunks(BLOCK * from_size)
        .zip(out.chunks_mut(BLOCK * to_size))
    {
        let values = &mut block[..bytes.len() / from_size];
        to_f32(from, bytes, values);
        from_f32(to, values, out);
    }
}

fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Float16 => {
            let mut halves = [f16::ZERO; 1024];
            let halves = &mut halves[..out.len()];
            each!(bytes, halves, u16, f16::from_bits);
            halves.convert_to_f32_slice(out);
        }
        DType::BFloat16 => each!(bytes, out, u16, |x: u16| f32::from_bits(u32::from(x) << 16)),
        DType::Float32 => each!(bytes, out, f32, |x: f32| x),
        DType::Float64 => each!(bytes, out, f64, |x: f64| x as f32),
        DType::Uint64 => each!(bytes, out, u64, |x: u64| x as f32),
        DType::Int64 => each!(bytes, out, i64, |x: i64| x as f32),
        DType::Uint32 => each!(bytes, out, u32, |x: u32| x as f32),
        DType::Int32 => each!(bytes, out, i32, |x: i32| x as f32),
        DType::Uint16 => each!(bytes, out, u16, f32::from),
        DType::Int16 => each!(bytes, out, i16, f32::from),
        DType::Int8 => each!(bytes, out, i8, f32::from),
        DType::Uint8 => each!(bytes, out, u8, f32::from),
        DType::Bool => each!(bytes, out, u8, |x: u8| f32::from(u8::from(x != 0))),
        _ => unreachable!("`is_convertible` is asked before"),
    }
}

fn from_f32(dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::Float16 => {
            let mut halves = [f16::ZERO; 1024];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            each_back!(halves, out, u16, f16::to_bits);
        }
        DType::BFloat16 => each_back!(values, out, u16, |x: f32| bf16::from_f32(x).to_bits()),
        DType::Float32 => each_back!(values, out, f32, |x: f32| x),
        _ => unreachable!("all other types go by way of float64"),
    }
}

/// As C and torch do: the low bits, with the sign where there is one.
fn integers(from: DType, to: DType, bytes: &[u8], out: &mut [u8]) {
    let signed = matches!(from, DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64);
    for (element, out) in bytes
        .chunks_exact(from.size())
        .zip(out.chunks_exact_mut(to.size()))
    {
        let is_negative = signed && element.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if is_negative { 0xff } else { 0 }; 8];
        wide[..element.len()].copy_from_slice(element);
        out.copy_from_slice(&wide[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest of all bfloat16 values, found by looking at both neighbours of the truncated value in exact arithmetic.
    fn nearest_bf16(x: f64) -> u16 {
        let wide = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        let x = x.abs();
        let mut below = (0..0x7f80_u16)
            .collect::<Vec<_>>()
            .partition_point(|&bits| wide(bits) <= x) as u16
            - 1;
        let up = if below == 0x7f7f {
            2_f64.powi(128)
        } else {
            wide(below + 1)
        };
        let (down_gap, up_gap) = (x - wide(below), up - x);
        if up_gap < down_gap || (up_gap == down_gap && below & 1 == 1) {
            below += 1;
        }
        below | sign
    }

    #[test]
    fn bfloat16_is_rounded_once() {
        let one = 1.0 + 2_f64.powi(-8);
        let cases = [
            0.0,
            -0.0,
            1.0,
            one,
            one + 2_f64.powi(-40),
            one - 2_f64.powi(-40),
            -one - 2_f64.powi(-50),
            1e-40,
            1.5e-45,
            3.4e38,
            3.396e38,
            1e39,
            0.1,
            -123.456,
            2_f64.powi(-133) * 1.5,
        ];
        for x in cases {
            assert_eq!(bf16_bits(x), nearest_bf16(x), "{x:e}");
        }
        assert!(bf16::from_bits(bf16_bits(f64::NAN)).is_nan());
        assert_eq!(bf16_bits(f64::NEG_INFINITY), 0xff80);
    }

    #[test]
    fn conversions_are_those_of_torch() {
        let convert_one = |from: DType, to: DType, bytes: &[u8]| {
            let mut out = vec![0; to.size()];
            convert(from, to, bytes, &mut out);
            out
        };
        let cases: [(DType, DType, &[u8], &[u8]); 7] = [
            (
                DType::Float32,
                DType::Int64,
                &(-1.9_f32).to_le_bytes(),
                &(-1_i64).to_le_bytes(),
            ),
            (
                DType::Int64,
                DType::Int8,
                &300_i64.to_le_bytes(),
                &44_i8.to_le_bytes(),
            ),
            (
                DType::Int8,
                DType::Int64,
                &(-3_i8).to_le_bytes(),
                &(-3_i64).to_le_bytes(),
            ),
            (
                DType::Int32,
                DType::Float32,
                &16_777_217_i32.to_le_bytes(),
                &16_777_216_f32.to_le_bytes(),
            ),
            (
                DType::Float16,
                DType::Float32,
                &f16::from_f32(0.5).to_le_bytes(),
                &0.5_f32.to_le_bytes(),
            ),
            (DType::Float32, DType::Bool, &0.5_f32.to_le_bytes(), &[1]),
            (DType::Bool, DType::BFloat16, &[1], &bf16::ONE.to_le_bytes()),
        ];
        for (from, to, bytes, expected) in cases {
            assert_eq!(convert_one(from, to, bytes), expected, "{from} to {to}");
        }
    }
}
