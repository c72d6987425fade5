//! The header of a safetensors file in the one spelling that its writers use, several times faster than JSON in general.
//!
//! Whatever is spelled otherwise (spaces, escapes, another order of members) is left to the JSON reader, and so is every error.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error;

use super::header::{Header, METADATA_KEY};

/// Reads `json`; none where it is not spelled like that, or not valid.
pub(super) fn parse(json: &[u8]) -> Option<Header> {
    let mut text = Text(json);
    // An entry takes at least 60 bytes, and most take about 100.
    let mut tensors = Vec::with_capacity(json.len() / 96 + 1);
    let mut metadata = None;
    text.skip(b"{")?;
    loop {
        let name = text.string()?;
        text.skip(b":{")?;
        if name == METADATA_KEY {
            if metadata.is_some() {
                return None;
            }
            metadata = Some(text.strings()?);
        } else {
            tensors.push((name.to_owned(), text.info()?));
        }
        if text.skip(b",").is_none() {
            text.skip(b"}")?;
            break;
        }
    }
    text.0.iter().all(|&byte| byte == b' ').then(|| Header {
        metadata: metadata.unwrap_or_default(),
        tensors,
    })
}

/// What is still to be read.
struct Text<'t>(&'t [u8]);

impl<'t> Text<'t> {
    fn skip(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// `"text"`, without escapes.
    fn string(&mut self) -> Option<&'t str> {
        self.skip(b"\"")?;
        let end = self
            .0
            .iter()
            .position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ')?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    fn integer(&mut self) -> Option<usize> {
        let n_digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(n_digits);
        if digits.is_empty() || (digits[0] == b'0' && digits.len() > 1) {
            return None;
        }
        self.0 = rest;
        digits.iter().try_fold(0_usize, |value, digit| {
            value.checked_mul(10)?.checked_add(usize::from(digit - b'0'))
        })
    }

    /// A tensor's entry behind its `{`.
    fn info(&mut self) -> Option<TensorInfo> {
        self.skip(b"\"dtype\":")?;
        let dtype = self.string()?;
        let dtype: Result<Dtype, Error> = Dtype::deserialize(dtype.into_deserializer());
        self.skip(b",\"shape\":[")?;
        let mut shape = Vec::new();
        if self.skip(b"]").is_none() {
            loop {
                shape.push(self.integer()?);
                if self.skip(b",").is_none() {
                    self.skip(b"]")?;
                    break;
                }
            }
        }
        self.skip(b",\"data_offsets\":[")?;
        let start = self.integer()?;
        self.skip(b",")?;
        let end = self.integer()?;
        self.skip(b"]}")?;
        Some(TensorInfo {
            dtype: dtype.ok()?,
            shape,
            data_offsets: (start, end),
        })
    }

    /// The metadata behind their `{`.
    fn strings(&mut self) -> Option<BTreeMap<String, String>> {
        let mut strings = BTreeMap::new();
        if self.skip(b"}").is_some() {
            return Some(strings);
        }
        loop {
            let key = self.string()?.to_owned();
            self.skip(b":")?;
            strings.insert(key, self.string()?.to_owned());
            if self.skip(b",").is_none() {
                self.skip(b"}")?;
                return Some(strings);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = concat!(
        r#"{"__metadata__":{"format":"pt","b":"x"},"#,
        r#""a":{"dtype":"F32","shape":[2,30],"data_offsets":[0,240]},"#,
        r#""ü.0":{"dtype":"BF16","shape":[],"data_offsets":[240,242]}}  "#
    );

    fn seen(header: &Header) -> String {
        let tensors = header.tensors.iter();
        let tensors: Vec<String> = tensors.map(|(name, info)| format!("{name} {info:?}")).collect();
        format!("{:?} {tensors:?}", header.metadata)
    }

    #[test]
    fn the_usual_spelling_is_read() {
        let header = parse(HEADER.as_bytes()).unwrap();
        assert_eq!(header.tensors.len(), 2);
        let general: Header = serde_json::from_str(HEADER).unwrap();
        assert_eq!(seen(&header), seen(&general));
        assert!(parse(&serde_json::to_vec(&general).unwrap()).is_some());
    }

    /// With any byte changed, left out or put in, what is read is what the JSON reader makes of it.
    #[test]
    fn nothing_is_read_otherwise_than_json() {
        let check = |json: &[u8]| {
            if let Some(header) = parse(json) {
                let general: Header = serde_json::from_slice(json).unwrap();
                assert_eq!(seen(&header), seen(&general), "{}", String::from_utf8_lossy(json));
                return 1;
            }
            0
        };
        let mut n_read = 0;
        for at in 0..HEADER.len() {
            for byte in 0..=255 {
                let mut json = HEADER.as_bytes().to_vec();
                json[at] = byte;
                n_read += check(&json);
                json.insert(at, HEADER.as_bytes()[at]);
                n_read += check(&json);
            }
            let mut json = HEADER.as_bytes().to_vec();
            json.remove(at);
            n_read += check(&json);
        }
        assert!(n_read > 1000, "{n_read}");
        for number in [
            "18446744073709551615",
            "18446744073709551616",
            "00",
            "01",
            "-1",
            "1.0",
            "1e2",
        ] {
            check(HEADER.replace("30", number).as_bytes());
        }
    }
}
