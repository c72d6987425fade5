//! The quoted and escaped texts of protocol 0.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

/// The value of a Python 2 `repr` of a str.
pub(super) fn unquote(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii();
    let (&quote, rest) = line.split_first()?;
    let (&end, inner) = rest.split_last()?;
    if quote != end || !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'x' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            other => out.push(other),
        }
    }
    Some(out)
}

/// raw-unicode-escape: Latin-1 with `\uXXXX` and `\UXXXXXXXX`, to UTF-8. A lone surrogate is encoded as other characters are, as everywhere in a pickle.
pub(super) fn unescape_unicode(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let n_digits = match after.first() {
            Some(b'u') if byte == b'\\' => 4_usize,
            Some(b'U') if byte == b'\\' => 8,
            _ => 0,
        };
        let digits = (n_digits > 0)
            .then(|| after.get(1..n_digits.saturating_add(1)))
            .flatten();
        let code = digits.and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match code {
            Some(code) => {
                put(code, &mut out);
                rest = after.get(n_digits.saturating_add(1)..).unwrap_or_default();
            }
            None => {
                put(u32::from(byte), &mut out);
                rest = after;
            }
        }
    }
    out
}

/// UTF-8 of a code point, a surrogate like any other; the replacement character for what is none.
fn put(code: u32, out: &mut Vec<u8>) {
    match (char::from_u32(code), code.to_le_bytes()) {
        (Some(c), _) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        // 1110xxxx 10xxxxxx 10xxxxxx of 0xD800 to 0xDFFF.
        (None, [low, high @ 0xd8..=0xdf, 0, 0]) => {
            let middle = (high & 0x0f) << 2 | low >> 6;
            out.extend([0xed, 0x80 | middle, 0x80 | low & 0x3f]);
        }
        (None, _) => out.extend_from_slice("\u{fffd}".as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_stay_apart() {
        assert_eq!(unescape_unicode(b"a\\ud800"), b"a\xed\xa0\x80");
        assert_eq!(unescape_unicode(b"\\udfff"), b"\xed\xbf\xbf");
        assert_eq!(
            unescape_unicode(b"\\u00e4\\U0001f9ea\xe4"),
            "ä\u{1f9ea}ä".as_bytes()
        );
        assert_eq!(unescape_unicode(b"\\Uffffffff"), "\u{fffd}".as_bytes());
    }
}
