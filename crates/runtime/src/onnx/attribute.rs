//! `AttributeProto`s of nodes that are made here.

use super::wire;

/// Of an integer.
pub(crate) fn integer(name: &str, value: i64) -> Vec<u8> {
    const INT: u64 = 2;
    let mut attribute = named(name);
    wire::put_varint(&mut attribute, 3, value.cast_unsigned());
    wire::put_varint(&mut attribute, 20, INT);
    attribute
}

/// Of a list of integers.
pub(crate) fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    const INTS: u64 = 7;
    let mut attribute = named(name);
    for value in values {
        wire::put_varint(&mut attribute, 8, value.cast_unsigned());
    }
    wire::put_varint(&mut attribute, 20, INTS);
    attribute
}

/// Of a float.
pub(crate) fn float(name: &str, value: f32) -> Vec<u8> {
    const FLOAT: u64 = 1;
    let mut attribute = named(name);
    wire::put_fixed32(&mut attribute, 2, value.to_bits());
    wire::put_varint(&mut attribute, 20, FLOAT);
    attribute
}

fn named(name: &str) -> Vec<u8> {
    let mut attribute = Vec::new();
    wire::put_bytes(&mut attribute, 1, name.as_bytes());
    attribute
}
