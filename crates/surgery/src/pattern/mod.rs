//! Patterns over dotted names, and templates that make new names of what a pattern has matched.
//!
//! `*` is any run within one segment, `**` any run at all, `{i}` an integer, `{i=8..23}` an integer of that range, `{q|k|v}` one of
//! several words, and `/re/` a regular expression, which is searched for instead of matched whole.

mod template;

use std::ops::{Range, RangeInclusive};

pub use template::{Target, Template};

/// A pattern such as `layer1.**`, `blocks.{i}.attn.{q|k|v}.weight` or `/^module\./`.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Parts(Vec<Part>),
    Regex(regex_lite::Regex),
}

/// What a pattern is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(String),
    /// Any bytes but dots.
    Segment,
    /// Any bytes.
    Any,
    /// Decimal digits; none for a name that is not given.
    Integer {
        name: String,
        range: Option<RangeInclusive<u64>>,
    },
    /// One of several words.
    OneOf(Vec<String>),
}

/// A text that is no pattern, and where it stops being one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PatternError {
    /// Where in the text, in bytes.
    pub at: usize,
    /// What is wrong there.
    pub reason: String,
}

/// What the parts of a pattern have matched in one name, in the order of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captures {
    /// What each star stands for, as a range of the name.
    pub stars: Vec<Range<usize>>,
    /// What each `{i}` stands for.
    pub integers: Vec<u64>,
    /// Which word of each `{a|b}` it was.
    pub choices: Vec<usize>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A brace without its other half, a range that is none, a regular expression that is none.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let regex = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let kind = match regex.filter(|regex| !regex.is_empty()) {
            Some(regex) => Kind::Regex(regex_lite::Regex::new(regex).map_err(|error| PatternError {
                at: 1,
                reason: format!("`{regex}` is not a regular expression: {error}"),
            })?),
            None => Kind::Parts(parse_parts(text)?),
        };
        Ok(Pattern {
            text: text.to_owned(),
            kind,
        })
    }

    /// The pattern that matches `name` only, whatever stands in it.
    pub fn literal(name: &str) -> Pattern {
        Pattern {
            text: name.to_owned(),
            kind: Kind::Parts(vec![Part::Literal(name.to_owned())]),
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn regex(&self) -> Option<&regex_lite::Regex> {
        match &self.kind {
            Kind::Regex(regex) => Some(regex),
            Kind::Parts(_) => None,
        }
    }

    pub(crate) fn parts(&self) -> &[Part] {
        match &self.kind {
            Kind::Regex(_) => &[],
            Kind::Parts(parts) => parts,
        }
    }

    /// Whether the whole of `name` matches, or a regular expression is found in it.
    /// A name always matches itself, also where it contains a star.
    pub fn matches(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Regex(regex) => regex.is_match(name),
            Kind::Parts(_) if self.text == name => true,
            // The common case costs no table.
            Kind::Parts(parts) => match parts.as_slice() {
                [Part::Any] => true,
                [Part::Literal(literal)] => literal == name,
                [Part::Literal(literal), Part::Any] => name.starts_with(literal.as_str()),
                [Part::Any, Part::Literal(literal)] => name.ends_with(literal.as_str()),
                parts => Matcher::new(parts, name).run().is_some(),
            },
        }
    }

    /// What the parts stand for in `name`, if the whole of it matches. Stars take as much as they can, the first one first.
    ///
    /// A regular expression captures nothing here.
    pub fn captures(&self, name: &str) -> Option<Captures> {
        match &self.kind {
            Kind::Regex(regex) => regex.is_match(name).then(Captures::default),
            Kind::Parts(parts) => Matcher::new(parts, name).run(),
        }
    }
}

/// Matches by trying. After many steps it remembers what has failed, so that the cost is at most parts times name times longest run.
struct Matcher<'p> {
    parts: &'p [Part],
    name: &'p str,
    n_steps: usize,
    /// `failed[part * (len + 1) + at]`: the parts from `part` on do not match what begins at `at`. Empty at first.
    failed: Vec<bool>,
}

impl<'p> Matcher<'p> {
    fn new(parts: &'p [Part], name: &'p str) -> Matcher<'p> {
        Matcher {
            parts,
            name,
            n_steps: 0,
            failed: Vec::new(),
        }
    }

    fn run(mut self) -> Option<Captures> {
        const FEW: usize = 16;
        let (mut few, mut many) = ([0; FEW], Vec::new());
        let ends = if self.parts.len() <= FEW {
            &mut few[..self.parts.len()]
        } else {
            many.resize(self.parts.len(), 0);
            many.as_mut_slice()
        };
        if !self.rest(0, 0, ends) {
            return None;
        }
        let mut captures = Captures::default();
        let mut start = 0;
        for (part, &end) in self.parts.iter().zip(&*ends) {
            let text = &self.name[start..end];
            match part {
                Part::Literal(_) => {}
                Part::Segment | Part::Any => captures.stars.push(start..end),
                Part::Integer { .. } => {
                    captures
                        .integers
                        .push(text.parse().expect("the matcher has parsed it"));
                }
                Part::OneOf(words) => {
                    let choice = words.iter().position(|word| word == text);
                    captures.choices.push(choice.expect("the matcher has found it"));
                }
            }
            start = end;
        }
        Some(captures)
    }

    /// As deep as the pattern has parts.
    fn rest(&mut self, part: usize, at: usize, ends: &mut [usize]) -> bool {
        let Some(here) = self.parts.get(part) else {
            return at == self.name.len();
        };
        const PATIENCE: usize = 200;
        let memo = part * (self.name.len() + 1) + at;
        self.n_steps += 1;
        if self.n_steps == PATIENCE {
            self.failed = vec![false; self.parts.len() * (self.name.len() + 1)];
        }
        if self.failed.get(memo).is_some_and(|failed| *failed) {
            return false;
        }
        let tail = &self.name[at..];
        let mut found = |matcher: &mut Self, len: usize| {
            ends[part] = at + len;
            matcher.rest(part + 1, at + len, ends)
        };
        let matched = match here {
            Part::Literal(literal) => tail.starts_with(literal.as_str()) && found(self, literal.len()),
            Part::Segment | Part::Any => {
                let longest = match here {
                    Part::Any => tail.len(),
                    _ => tail.find('.').unwrap_or(tail.len()),
                };
                (0..=longest)
                    .rev()
                    .filter(|&len| tail.is_char_boundary(len))
                    .any(|len| found(self, len))
            }
            Part::Integer { range, .. } => {
                let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
                let fits = |len: usize| {
                    let value = tail[..len].parse::<u64>();
                    value.is_ok_and(|value| range.as_ref().is_none_or(|range| range.contains(&value)))
                };
                // An integer ends where its digits do: `{i}` in `12` is 12 and not 1.
                digits > 0 && fits(digits) && found(self, digits)
            }
            Part::OneOf(words) => words
                .iter()
                .any(|word| tail.starts_with(word.as_str()) && found(self, word.len())),
        };
        if let Some(failed) = self.failed.get_mut(memo) {
            *failed = !matched;
        }
        matched
    }
}

/// The parts of a text: of a pattern, or of a template, whose integers may be sums.
fn parse_parts(text: &str) -> Result<Vec<Part>, PatternError> {
    let mut parts: Vec<Part> = Vec::new();
    let mut at = 0;
    while let Some(char) = text[at..].chars().next() {
        /// More than anybody writes, and few enough for the matcher's stack.
        const MAX_PARTS: usize = 256;
        if parts.len() > MAX_PARTS {
            return Err(PatternError {
                at,
                reason: format!("a pattern of more than {MAX_PARTS} parts"),
            });
        }
        let len = match char {
            '*' if text[at..].starts_with("**") => {
                parts.push(Part::Any);
                text[at..].bytes().take_while(|&byte| byte == b'*').count()
            }
            '*' => {
                parts.push(Part::Segment);
                1
            }
            '{' => {
                let inside = braces(text, at)?;
                parts.push(parse_braces(inside, at + 1)?);
                inside.len() + 2
            }
            '}' => {
                return Err(PatternError {
                    at,
                    reason: "`}` without its `{`".to_owned(),
                });
            }
            char => {
                match parts.last_mut() {
                    Some(Part::Literal(literal)) => literal.push(char),
                    _ => parts.push(Part::Literal(char.to_string())),
                }
                char.len_utf8()
            }
        };
        at += len;
    }
    Ok(parts)
}

/// What stands between the brace at `at` and its other half.
fn braces(text: &str, at: usize) -> Result<&str, PatternError> {
    let rest = &text[at + 1..];
    match rest.find('}') {
        Some(end) if !rest[..end].is_empty() => Ok(&rest[..end]),
        Some(_) => Err(PatternError {
            at,
            reason: "`{}` holds neither a name, as in `{i}`, nor words, as in `{q|k|v}`".to_owned(),
        }),
        None => Err(PatternError {
            at,
            reason: "`{` without its `}`".to_owned(),
        }),
    }
}

fn parse_braces(inside: &str, at: usize) -> Result<Part, PatternError> {
    let fault = |reason: String| PatternError { at, reason };
    if inside.contains('|') {
        return Ok(Part::OneOf(inside.split('|').map(str::to_owned).collect()));
    }
    let (name, range) = match inside.split_once('=') {
        None => (inside, None),
        Some((name, range)) => {
            let ends = range.split_once("..").and_then(|(first, last)| {
                Some((
                    first.parse::<u64>().ok()?,
                    last.trim_start_matches('=').parse::<u64>().ok()?,
                ))
            });
            let (first, last) = ends
                .filter(|(first, last)| first <= last)
                .ok_or_else(|| fault(format!("`{range}` is not a range of integers such as `8..23`")))?;
            (name, Some(first..=last))
        }
    };
    if !is_name(name) {
        return Err(fault(format!(
            "`{{{inside}}}` is neither an integer's name, as in `{{i}}`, nor words, as in `{{q|k|v}}`"
        )));
    }
    Ok(Part::Integer {
        name: name.to_owned(),
        range,
    })
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
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
            ("layer{i}.**", "layer12.0.w", true),
            ("layer{i=1..2}.**", "layer3.0.w", false),
            ("layer{i=1..2}.**", "layer2.0.w", true),
            ("{q|k|v}_proj.*", "k_proj.weight", true),
            ("{q|k|v}_proj.*", "o_proj.weight", false),
            ("/bn[12]/", "layer1.0.bn2.weight", true),
            ("/^bn/", "layer1.0.bn2.weight", false),
            ("größe.*", "größe.ß", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(name),
                expected,
                "`{pattern}` on `{name}`"
            );
        }
    }

    #[test]
    fn captures_are_what_the_parts_stand_for() {
        let pattern = Pattern::parse("**.layers.{i}.{q|k}_proj.*").unwrap();
        let name = "model.layers.7.k_proj.weight";
        let captures = pattern.captures(name).unwrap();
        let stars: Vec<&str> = captures.stars.iter().map(|star| &name[star.clone()]).collect();
        assert_eq!(stars, ["model", "weight"]);
        assert_eq!(captures.integers, [7]);
        assert_eq!(captures.choices, [1]);
        assert_eq!(pattern.captures("model.layers.x.k_proj.weight"), None);
    }

    #[test]
    fn texts_that_are_no_patterns_say_where() {
        for (text, at, reason) in [
            ("a.{i", 2, "`{` without its `}`"),
            ("a}", 1, "`}` without its `{`"),
            ("{}", 0, "`{}` holds neither"),
            ("{i=3..1}", 1, "`3..1` is not a range"),
            ("{i+1}", 1, "`{i+1}` is neither"),
            ("/(/", 1, "`(` is not a regular expression"),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!(error.at, at, "{text}");
            assert!(error.reason.starts_with(reason), "{}", error.reason);
        }
    }

    #[test]
    fn many_stars_cost_no_more_than_their_table() {
        let pattern = Pattern::parse(&"**a".repeat(30)).unwrap();
        assert!(!pattern.matches(&"a".repeat(29)));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(2_000))));
    }
}
