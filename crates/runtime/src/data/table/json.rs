//! JSON objects about samples.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// A line's object.
///
/// # Errors
/// Why it is none, in one sentence.
pub(in super::super) fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(_) if std::str::from_utf8(line).is_err() => Err("it is not UTF-8".to_owned()),
        Err(error) => {
            // serde_json counts lines within the line that it was given.
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            Err(format!("it is no JSON: {text} at column {}", error.column()))
        }
    }
}

/// A value as the text that stands for it in a label, a path or a split; `None` for null and for what is absent.
///
/// # Errors
/// A list or an object.
pub(in super::super) fn text(value: Option<&Value>) -> Result<Option<Cow<'_, str>>, String> {
    Ok(match value {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(Cow::Borrowed(text)),
        Some(Value::Bool(is)) => Some(Cow::Borrowed(if *is { "true" } else { "false" })),
        Some(Value::Number(number)) => Some(Cow::Owned(number.to_string())),
        Some(Value::Array(_)) => return Err("a list where one value is wanted".to_owned()),
        Some(Value::Object(_)) => return Err("an object where one value is wanted".to_owned()),
    })
}

/// The value of the key that is said, else of the first usual one that is there.
pub(in super::super) fn find<'o>(
    object: &'o Map<String, Value>,
    said: Option<&str>,
    usual: &[&str],
) -> Option<&'o Value> {
    match said {
        Some(said) => object.get(said),
        None => usual.iter().find_map(|usual| {
            object.get(*usual).or_else(|| {
                let same = |(key, _): &(&String, &Value)| key.eq_ignore_ascii_case(usual);
                object.iter().find(same).map(|(_, value)| value)
            })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_says_why() {
        for (line, reason) in [
            (&b"[1]"[..], "it is no JSON object"),
            (b"{\"a\":", "it is no JSON: EOF while parsing a value at column 5"),
            (b"{\"a\":\"\xe9\"}", "it is not UTF-8"),
        ] {
            assert_eq!(object(line).unwrap_err(), reason);
        }
        let object = object(b"{\"a\":null,\"b\":1.0,\"c\":7,\"d\":[1]}").unwrap();
        let seen = |key: &str| text(object.get(key)).map(|text| text.map(Cow::into_owned));
        assert_eq!(seen("a"), Ok(None));
        assert_eq!(seen("b"), Ok(Some("1.0".to_owned())));
        assert_eq!(seen("c"), Ok(Some("7".to_owned())));
        assert!(seen("d").is_err());
    }
}
