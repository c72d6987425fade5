//! The header of a `.npy` array: a Python dict in front of the numbers.
//!
//! Source: NumPy Enhancement Proposal 1 and `numpy/lib/_format_impl.py`. Nothing is evaluated: the dict's three values are a
//! string, a truth value and a tuple of sizes, or the array is refused.

use std::io::{self, Read};

/// A header is a few dozen bytes; NumPy itself refuses to evaluate one over 10,000.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// NumPy's description without the byte order, such as `f4`.
    pub(crate) kind: String,
    /// The numbers' order in memory is that of the last axis first.
    pub(crate) is_fortran: bool,
    pub(crate) shape: Vec<usize>,
    /// Bytes in front of the numbers.
    pub(crate) data_at: u64,
    /// Bytes of the numbers.
    pub(crate) n_bytes: u64,
}

impl Header {
    /// Reads a header from an array's beginning.
    ///
    /// # Errors
    /// Why it is none that is read, in one phrase.
    pub(crate) fn read(reader: &mut impl Read) -> Result<Header, String> {
        const NO_ARRAY: &str = "this is no .npy array";
        let cut = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "its header is cut short".to_owned(),
            _ => format!("it cannot be read: {error}"),
        };
        let mut start = [0; 8];
        let start = match reader.read_exact(&mut start) {
            Ok(()) => start,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(NO_ARRAY.to_owned()),
            Err(error) => return Err(cut(error)),
        };
        if start[..6] != *b"\x93NUMPY" {
            return Err(NO_ARRAY.to_owned());
        }
        let (length, before) = match start[6] {
            1 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length).map_err(cut)?;
                (usize::from(u16::from_le_bytes(length)), 10)
            }
            2 | 3 => {
                let mut length = [0; 4];
                reader.read_exact(&mut length).map_err(cut)?;
                (u32::from_le_bytes(length) as usize, 12)
            }
            version => return Err(format!("its format version is {version}")),
        };
        if length > MAX_HEADER_BYTES {
            return Err(format!("its header claims {length} bytes"));
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text).map_err(cut)?;
        let text = std::str::from_utf8(&text).map_err(|_| "its header is not text".to_owned())?;
        Header::parse(text, (before + length) as u64)
    }

    fn parse(text: &str, data_at: u64) -> Result<Header, String> {
        let (mut kind, mut is_fortran, mut shape) = (None, None, None);
        let mut rest = text
            .trim()
            .strip_prefix('{')
            .ok_or("its header is no dict")?
            .trim_start();
        while !rest.starts_with('}') {
            let (key, after) = string(rest).ok_or("its header is no dict of names")?;
            let value = after
                .trim_start()
                .strip_prefix(':')
                .ok_or("its header is no dict")?
                .trim_start();
            let after = match key {
                "descr" => {
                    let (descr, after) = string(value).ok_or("its type is not simple")?;
                    kind = Some(kind_of(descr)?);
                    after
                }
                "fortran_order" => {
                    let (value, after) = match value.strip_prefix("True") {
                        Some(after) => (true, after),
                        None => (
                            false,
                            value
                                .strip_prefix("False")
                                .ok_or("its order is neither True nor False")?,
                        ),
                    };
                    is_fortran = Some(value);
                    after
                }
                "shape" => {
                    let (inside, after) = value
                        .strip_prefix('(')
                        .and_then(|value| value.split_once(')'))
                        .ok_or("its shape is not a list of sizes")?;
                    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
                    let sizes: Result<Vec<usize>, _> = sizes.map(str::parse).collect();
                    shape = Some(sizes.map_err(|_| "its shape is not a list of sizes")?);
                    after
                }
                other => return Err(format!("its header holds `{}`", other.escape_default())),
            };
            rest = after.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        let (kind, size) = kind.ok_or("it has no type")?;
        let shape = shape.ok_or("it has no shape")?;
        let n_bytes = shape
            .iter()
            .try_fold(size as u64, |total, size| total.checked_mul(*size as u64));
        Ok(Header {
            kind,
            is_fortran: is_fortran.ok_or("it has no order")?,
            n_bytes: n_bytes.ok_or("its shape is beyond all files")?,
            shape,
            data_at,
        })
    }

    /// Bytes of a number.
    pub(crate) fn item_bytes(&self) -> usize {
        item_bytes(&self.kind).unwrap_or(1)
    }
}

/// A quoted string without escapes, and what follows it.
fn string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (inside, after) = text[1..].split_once(quote)?;
    (!inside.contains('\\')).then_some((inside, after))
}

fn kind_of(descr: &str) -> Result<(String, usize), String> {
    let kind = descr
        .strip_prefix(['<', '|', '='])
        .ok_or_else(|| match descr.starts_with('>') {
            true => "it is big-endian".to_owned(),
            false => "its type is not simple".to_owned(),
        })?;
    if kind.starts_with('O') {
        return Err("it holds pickled Python objects, which are not read".to_owned());
    }
    let size = item_bytes(kind).ok_or("its type is not simple")?;
    Ok((kind.to_owned(), size))
}

fn item_bytes(kind: &str) -> Option<usize> {
    let size: usize = kind.get(1..)?.parse().ok()?;
    match kind.as_bytes().first()? {
        b'U' => size.checked_mul(4),
        b'b' | b'i' | b'u' | b'f' | b'S' => Some(size),
        _ => None,
    }
}

/// The header that NumPy writes in front of a C-contiguous array, padded so that the numbers begin at a multiple of 64.
pub(crate) fn write(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let sizes = match sizes.as_slice() {
        [one] => format!("({one},)"),
        many => format!("({})", many.join(", ")),
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {sizes}, }}");
    const BEFORE: usize = 10;
    let unpadded = BEFORE + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let length = u16::try_from(text.len()).expect("a shape of a few axes is short");
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// The same header with spaces in front of its end, so that it fills `n_bytes` that were kept free for a longer one.
pub(crate) fn write_padded(header: &[u8], n_bytes: usize) -> Vec<u8> {
    const BEFORE: usize = 10;
    let text = header.get(BEFORE..).unwrap_or_default().trim_ascii_end();
    let n_text = n_bytes.saturating_sub(BEFORE);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(n_text).unwrap_or(0).to_le_bytes());
    bytes.extend(text);
    bytes.resize(n_bytes.saturating_sub(1), b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn check_rejects(header: &str, message: &str) {
        assert_eq!(
            Header::read(&mut &npy(header, &[])[..]).unwrap_err(),
            message,
            "{header}"
        );
    }

    #[test]
    fn headers_are_read() {
        let good = npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }   \n",
            &[],
        );
        let header = Header::read(&mut &good[..]).unwrap();
        assert_eq!((header.kind.as_str(), header.is_fortran), ("f4", false));
        assert_eq!((header.shape.as_slice(), header.n_bytes), (&[2, 1][..], 8));
        assert_eq!(header.data_at, good.len() as u64);
        for n in 0..good.len() {
            assert!(Header::read(&mut &good[..n]).is_err(), "{n}");
        }
        // Any order of keys, either quote, no comma at the end, a scalar.
        let other = npy("{\"shape\":(),'fortran_order':True,'descr':'|U3'}", &[]);
        let header = Header::read(&mut &other[..]).unwrap();
        assert_eq!(
            (header.n_bytes, header.is_fortran, header.item_bytes()),
            (12, true, 12)
        );
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [&[3usize][..], &[2, 5], &[0, 7], &[]] {
            let bytes = write("<f2", shape);
            assert!(bytes.len().is_multiple_of(64));
            let header = Header::read(&mut &bytes[..]).unwrap();
            assert_eq!((header.shape.as_slice(), header.kind.as_str()), (shape, "f2"));
        }
        assert!(write("<f4", &[1, 2]).starts_with(
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }"
        ));
    }

    #[test]
    fn other_things_are_refused() {
        check_rejects(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            "it holds pickled Python objects, which are not read",
        );
        check_rejects(
            "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }",
            "it is big-endian",
        );
        check_rejects(
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
            "its type is not simple",
        );
        check_rejects(
            "{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }",
            "its type is not simple",
        );
        check_rejects("{'descr': '<f4', 'shape': (1,), }", "it has no order");
        check_rejects(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "its shape is not a list of sizes",
        );
        check_rejects("__import__('os')", "its header is no dict");
        check_rejects(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (18446744073709551615, 2), }",
            "its shape is beyond all files",
        );
        check_rejects("{'descr': '<f4', 'evil': 1}", "its header holds `evil`");
        assert_eq!(
            Header::read(&mut &b"PK\x03\x04    "[..]).unwrap_err(),
            "this is no .npy array"
        );
        assert_eq!(
            Header::read(&mut &b"\x93NUMPY\x09\x00"[..]).unwrap_err(),
            "its format version is 9"
        );
    }
}
