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

/// raw-unicode-escape: Latin-1 with `\uXXXX` and `\UXXXXXXXX`, to UTF-8. A lone surrogate becomes the replacement character.
pub(super) fn unescape_unicode(line: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(line.len());
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
                out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                rest = after.get(n_digits.saturating_add(1)..).unwrap_or_default();
            }
            None => {
                out.push(char::from(byte));
                rest = after;
            }
        }
    }
    out.into_bytes()
}
