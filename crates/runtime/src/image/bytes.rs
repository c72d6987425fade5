//! Numbers out of a file's bytes; what lies beyond the end makes the picture truncated.

use super::decode::DecodeError;

/// `count` bytes from `at` on.
pub(super) fn slice(bytes: &[u8], at: usize, count: usize) -> Result<&[u8], DecodeError> {
    at.checked_add(count)
        .and_then(|end| bytes.get(at..end))
        .ok_or(DecodeError::Truncated)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DecodeError> {
    slice(bytes, at, N)?
        .try_into()
        .map_err(|_| DecodeError::Truncated)
}

pub(super) fn u8(bytes: &[u8], at: usize) -> Result<u8, DecodeError> {
    array(bytes, at).map(u8::from_le_bytes)
}

pub(super) fn u16_le(bytes: &[u8], at: usize) -> Result<u16, DecodeError> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_le(bytes: &[u8], at: usize) -> Result<u32, DecodeError> {
    array(bytes, at).map(u32::from_le_bytes)
}
