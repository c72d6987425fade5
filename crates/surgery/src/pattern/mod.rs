//! Patterns over dotted names: `*` is any run within one segment, `**` any run at all.

/// A pattern such as `layer1.**` or `layer*.*.weight`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Byte(u8),
    /// Any bytes but dots.
    Segment,
    /// Any bytes.
    Any,
}

impl Pattern {
    /// Every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        let mut parts = Vec::new();
        for byte in text.bytes() {
            match (byte, parts.last()) {
                (b'*', Some(Part::Any)) => {}
                (b'*', Some(Part::Segment)) => {
                    parts.pop();
                    parts.push(Part::Any);
                }
                (b'*', _) => parts.push(Part::Segment),
                _ => parts.push(Part::Byte(byte)),
            }
        }
        Pattern {
            text: text.to_owned(),
            parts,
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `name` matches. A name always matches itself, also where it contains a star.
    pub fn matches(&self, name: &str) -> bool {
        if self.text == name {
            return true;
        }
        // reached[i]: the parts so far match the first i bytes. One pass per part, so O(parts * name) whatever the stars.
        let name = name.as_bytes();
        let mut reached = vec![false; name.len() + 1];
        reached[0] = true;
        for part in &self.parts {
            match part {
                Part::Byte(expected) => {
                    for i in (0..name.len()).rev() {
                        reached[i + 1] = reached[i] && name[i] == *expected;
                    }
                    reached[0] = false;
                }
                Part::Segment | Part::Any => {
                    for i in 0..name.len() {
                        reached[i + 1] |= reached[i] && (*part == Part::Any || name[i] != b'.');
                    }
                }
            }
        }
        reached[name.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_in_their_segment_and_double_stars_do_not() {
        let cases = [
            ("layer1.**", "layer1.0.conv1.weight", true),
            ("layer1.**", "layer10.0.weight", false),
            ("layer1.*", "layer1.0.weight", false),
            ("layer*.*.weight", "layer1.0.weight", true),
            ("layer*.*.weight", "layer1.0.bn1.weight", false),
            ("**.weight", "layer1.0.bn1.weight", true),
            ("**", "", true),
            ("*", "a.b", false),
            ("conv1.weight", "conv1.weight", true),
            ("conv1", "conv1.weight", false),
            ("**bn**", "layer1.bn1.bias", true),
            ("a*.b", "a*.b", true),
            ("fc.**.x", "fc.x", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                expected,
                "`{pattern}` on `{name}`"
            );
        }
    }
}
