//! Protobuf at the level of its wire format: enough to cut and splice an ONNX file and keep every byte in between.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::ops::Range;

/// One field of a message. `span` covers tag and value, so that the field can be copied as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) value: Value,
    pub(crate) span: Range<usize>,
}

/// The value of a field; lengths are checked, so that a range may index the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Range<usize>),
}

/// Where the bytes stop being protobuf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not protobuf at byte {offset}: {what}")]
pub(crate) struct WireError {
    pub(crate) offset: usize,
    pub(crate) what: &'static str,
}

/// Reads the fields of the message that `span` of `bytes` holds.
pub(crate) fn fields(bytes: &[u8], span: Range<usize>) -> Result<Vec<Field>, WireError> {
    each(bytes, span).collect()
}

/// The fields of the message that `span` of `bytes` holds, one after the other; after an error there is nothing more.
pub(crate) fn each(bytes: &[u8], span: Range<usize>) -> Fields<'_> {
    Fields {
        bytes,
        at: span.start,
        end: span.end,
    }
}

/// See [`each`].
#[derive(Debug, Clone)]
pub(crate) struct Fields<'b> {
    bytes: &'b [u8],
    at: usize,
    end: usize,
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, WireError>;

    fn next(&mut self) -> Option<Result<Field, WireError>> {
        if self.at >= self.end {
            return None;
        }
        let read = field(self.bytes, self.at, self.end);
        self.at = match &read {
            Ok(field) => field.span.end,
            Err(_) => self.end,
        };
        Some(read)
    }
}

fn field(bytes: &[u8], start: usize, end: usize) -> Result<Field, WireError> {
    let error = |what| WireError { offset: start, what };
    let (tag, mut at) = varint(bytes, start, end).ok_or_else(|| error("a tag is cut short"))?;
    let number = u32::try_from(tag >> 3)
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| error("no such field number"))?;
    let value = match tag & 7 {
        0 => {
            let (value, next) = varint(bytes, at, end).ok_or_else(|| error("a number is cut short"))?;
            at = next;
            Value::Varint(value)
        }
        1 => Value::Fixed64(u64::from_le_bytes(
            take(bytes, &mut at, end).ok_or_else(|| error("cut short"))?,
        )),
        5 => Value::Fixed32(u32::from_le_bytes(
            take(bytes, &mut at, end).ok_or_else(|| error("cut short"))?,
        )),
        2 => {
            let (n_bytes, next) = varint(bytes, at, end).ok_or_else(|| error("a length is cut short"))?;
            let stop = usize::try_from(n_bytes).ok().and_then(|n| next.checked_add(n));
            let stop = stop
                .filter(|&stop| stop <= end)
                .ok_or_else(|| error("a length reaches past the end"))?;
            at = stop;
            Value::Bytes(next..stop)
        }
        _ => return Err(error("an unknown wire type")),
    };
    Ok(Field {
        number,
        value,
        span: start..at,
    })
}

/// The numbers of a packed field; ends early where the last is cut short.
pub(crate) fn packed(bytes: &[u8], span: Range<usize>) -> impl Iterator<Item = u64> {
    let mut at = span.start;
    std::iter::from_fn(move || {
        let (value, next) = varint(bytes, at, span.end)?;
        at = next;
        Some(value)
    })
}

fn varint(bytes: &[u8], mut at: usize, end: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at).filter(|_| at < end)?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

fn take<const N: usize>(bytes: &[u8], at: &mut usize, end: usize) -> Option<[u8; N]> {
    let stop = at.checked_add(N).filter(|&stop| stop <= end)?;
    let taken = bytes.get(*at..stop)?.try_into().ok()?;
    *at = stop;
    Some(taken)
}

/// Appends a field of bytes: a string, an embedded message or packed numbers.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_raw_varint(out, u64::from(number) << 3 | 2);
    put_raw_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an integer field.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_raw_varint(out, u64::from(number) << 3);
    put_raw_varint(out, value);
}

/// Appends a field of four bytes: a float, say.
pub(crate) fn put_fixed32(out: &mut Vec<u8>, number: u32, bits: u32) {
    put_raw_varint(out, u64::from(number) << 3 | 5);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Appends a field of eight bytes: a double, say.
pub(crate) fn put_fixed64(out: &mut Vec<u8>, number: u32, bits: u64) {
    put_raw_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&bits.to_le_bytes());
}

fn put_raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_back_and_spans_tile_the_message() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 1, 300);
        put_bytes(&mut bytes, 7, b"graph");
        put_varint(&mut bytes, 2000, u64::MAX);
        let read = fields(&bytes, 0..bytes.len()).unwrap();
        assert_eq!(read.iter().map(|f| f.number).collect::<Vec<_>>(), [1, 7, 2000]);
        assert_eq!(read[0].value, Value::Varint(300));
        assert_eq!(read[2].value, Value::Varint(u64::MAX));
        let Value::Bytes(span) = &read[1].value else {
            panic!("not bytes")
        };
        assert_eq!(&bytes[span.clone()], b"graph");
        assert!(read.windows(2).all(|pair| pair[0].span.end == pair[1].span.start));
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_message() {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, &[7; 200]);
        put_varint(&mut bytes, 2, 1 << 40);
        for n in 0..bytes.len() {
            match fields(&bytes, 0..n) {
                Ok(read) => assert!(read.iter().all(|f| f.span.end <= n)),
                Err(error) => assert!(error.offset < n),
            }
        }
        assert_eq!(fields(&[0x0b], 0..1).unwrap_err().what, "an unknown wire type");
    }
}
