//! Element types, spelled as torch spells them.

use std::fmt;

/// The element type of a tensor: everything torch stores one value per whole number of bytes.
///
/// Quantized types are absent: their values mean nothing without a scale and a zero point, and are read as [`Record`](crate::Record)s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant is the torch dtype of the same name")]
pub enum DType {
    Bool,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    BFloat16,
    Float32,
    Float64,
    /// Two float16.
    Complex32,
    /// Two float32.
    Complex64,
    /// Two float64.
    Complex128,
    /// Two bfloat16.
    BComplex32,
    Float8E5M2,
    Float8E4M3Fn,
    Float8E5M2Fnuz,
    Float8E4M3Fnuz,
    Float8E8M0Fnu,
    /// Two 4-bit floats in a byte.
    Float4E2M1FnX2,
    Bits8,
    Bits16,
    Bits1x8,
    Bits2x4,
    Bits4x2,
}

/// What is known of each type: torch's name, bytes per element, bytes per component (the unit in which byte order matters).
const TABLE: [(DType, &str, usize, usize); 28] = [
    (DType::Bool, "bool", 1, 1),
    (DType::Uint8, "uint8", 1, 1),
    (DType::Int8, "int8", 1, 1),
    (DType::Uint16, "uint16", 2, 2),
    (DType::Int16, "int16", 2, 2),
    (DType::Uint32, "uint32", 4, 4),
    (DType::Int32, "int32", 4, 4),
    (DType::Uint64, "uint64", 8, 8),
    (DType::Int64, "int64", 8, 8),
    (DType::Float16, "float16", 2, 2),
    (DType::BFloat16, "bfloat16", 2, 2),
    (DType::Float32, "float32", 4, 4),
    (DType::Float64, "float64", 8, 8),
    (DType::Complex32, "complex32", 4, 2),
    (DType::Complex64, "complex64", 8, 4),
    (DType::Complex128, "complex128", 16, 8),
    (DType::BComplex32, "bcomplex32", 4, 2),
    (DType::Float8E5M2, "float8_e5m2", 1, 1),
    (DType::Float8E4M3Fn, "float8_e4m3fn", 1, 1),
    (DType::Float8E5M2Fnuz, "float8_e5m2fnuz", 1, 1),
    (DType::Float8E4M3Fnuz, "float8_e4m3fnuz", 1, 1),
    (DType::Float8E8M0Fnu, "float8_e8m0fnu", 1, 1),
    (DType::Float4E2M1FnX2, "float4_e2m1fn_x2", 1, 1),
    (DType::Bits8, "bits8", 1, 1),
    (DType::Bits16, "bits16", 2, 2),
    (DType::Bits1x8, "bits1x8", 1, 1),
    (DType::Bits2x4, "bits2x4", 1, 1),
    (DType::Bits4x2, "bits4x2", 1, 1),
];

impl DType {
    /// Every type, in the order of the declaration.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    /// torch's name without the prefix: `float32`, `bfloat16`, `int64`.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The type that torch calls `name` (without `torch.`).
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// Bytes per component: half an element for the complex types, else the whole.
    pub fn component_size(self) -> usize {
        self.row().3
    }

    /// Real floating point of any width.
    pub fn is_float(self) -> bool {
        self.as_str().starts_with("float") || self == DType::BFloat16
    }

    /// Complex of any width.
    pub fn is_complex(self) -> bool {
        self.size() == 2 * self.component_size()
    }

    fn row(self) -> &'static (DType, &'static str, usize, usize) {
        // The table is in the order of the declaration, which a test holds.
        #[expect(clippy::as_conversions, reason = "a fieldless enum's discriminant")]
        &TABLE[self as usize]
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_declaration() {
        for (dtype, name, size, component) in TABLE {
            assert_eq!((dtype.as_str(), dtype.size()), (name, size));
            assert_eq!(DType::from_name(name), Some(dtype));
            assert!(size == component || (dtype.is_complex() && name.contains("complex")));
        }
        assert_eq!(DType::from_name("qint8"), None);
        assert!(DType::BFloat16.is_float() && DType::Float8E4M3Fn.is_float() && !DType::Complex64.is_float());
    }
}
