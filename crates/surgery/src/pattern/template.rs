//! The right side of a rename: a new name, made of what the left side has matched.

use super::{Captures, Part, Pattern, PatternError, braces, is_name, parse_parts};

/// A name with places for what a pattern has matched.
///
/// The k-th star stands for the k-th star of the pattern; `{i}`, `{i+16}`, `{2*i+1}` for its integers; `{a|b}` for its words, of the
/// pattern's list that has the same words, or else of the next one that has as many.
#[derive(Debug, Clone)]
pub struct Template {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Parts(Vec<Piece>),
    /// `$1` and `${1}` are groups.
    Replacement(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Star(usize),
    Integer {
        index: usize,
        factor: u64,
        offset: i64,
    },
    Choice {
        index: usize,
        words: Vec<String>,
    },
    /// Words that the pattern does not have: one name for each.
    FreeWords(Vec<String>),
    /// An integer that the pattern does not have: one name for each.
    FreeInteger,
}

/// What a template may have that its pattern lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing: one name for one name.
    One,
    /// One list of words or one integer, which says the parts that one tensor becomes.
    Several,
}

impl Template {
    /// Reads the template `text` for names that `source` has matched.
    ///
    /// # Errors
    /// A place for something that the pattern does not have.
    pub fn parse(text: &str, source: &Pattern, target: Target) -> Result<Template, PatternError> {
        if source.regex().is_some() {
            return Ok(Template {
                text: text.to_owned(),
                kind: Kind::Replacement(replacement(text)),
            });
        }
        let mut places = Places::of(source);
        let mut pieces = Vec::new();
        let mut n_free = 0;
        for (at, part) in positions(text)? {
            let fault = |reason: String| PatternError { at, reason };
            let piece = match part {
                TemplatePart::Plain(Part::Literal(literal)) => Piece::Literal(literal),
                TemplatePart::Plain(Part::Segment | Part::Any) => {
                    let index = places.next_star();
                    Piece::Star(
                        index.ok_or_else(|| fault(format!("more stars than `{}` has", source.as_str())))?,
                    )
                }
                TemplatePart::Plain(Part::OneOf(words)) => match places.choice(&words) {
                    Some(index) => Piece::Choice { index, words },
                    None if target == Target::Several => {
                        n_free += 1;
                        Piece::FreeWords(words)
                    }
                    None => {
                        return Err(fault(format!(
                            "`{}` has no list of {} words for `{{{}}}`",
                            source.as_str(),
                            words.len(),
                            words.join("|")
                        )));
                    }
                },
                TemplatePart::Plain(Part::Integer { name, .. }) | TemplatePart::Sum { name, .. }
                    if places.integer(&name).is_none() =>
                {
                    if target == Target::One {
                        return Err(fault(format!("`{}` has no `{{{name}}}`", source.as_str())));
                    }
                    n_free += 1;
                    Piece::FreeInteger
                }
                TemplatePart::Plain(Part::Integer { name, .. }) => Piece::Integer {
                    index: places.integer(&name).expect("the arm before has looked"),
                    factor: 1,
                    offset: 0,
                },
                TemplatePart::Sum { name, factor, offset } => Piece::Integer {
                    index: places.integer(&name).expect("the arm before has looked"),
                    factor,
                    offset,
                },
            };
            pieces.push(piece);
        }
        if target == Target::Several && n_free != 1 {
            return Err(PatternError {
                at: 0,
                reason: format!(
                    "`{text}` needs one list of words or one integer that `{}` has not, to name the parts",
                    source.as_str()
                ),
            });
        }
        Ok(Template {
            text: text.to_owned(),
            kind: Kind::Parts(pieces),
        })
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The words of the list that the pattern has not.
    pub fn free_words(&self) -> Option<&[String]> {
        let Kind::Parts(pieces) = &self.kind else {
            return None;
        };
        pieces.iter().find_map(|piece| match piece {
            Piece::FreeWords(words) => Some(words.as_slice()),
            _ => None,
        })
    }

    /// The integers and lists of the pattern that this template uses: `(integers, choices, number of stars)`.
    pub(crate) fn uses(&self) -> (Vec<usize>, Vec<usize>, usize) {
        let Kind::Parts(pieces) = &self.kind else {
            return (Vec::new(), Vec::new(), 0);
        };
        let (mut integers, mut choices, mut stars) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Integer { index, .. } => integers.push(*index),
                Piece::Choice { index, .. } => choices.push(*index),
                Piece::Star(index) => stars = stars.max(index + 1),
                _ => {}
            }
        }
        (integers, choices, stars)
    }

    /// The name that `name` becomes; `part` counts the parts of a template that names several.
    ///
    /// None where an integer would be negative or too large.
    pub fn fill(&self, source: &Pattern, name: &str, captures: &Captures, part: usize) -> Option<String> {
        let pieces = match (&self.kind, source.regex()) {
            (Kind::Replacement(replacement), Some(regex)) => {
                return Some(regex.replace_all(name, replacement.as_str()).into_owned());
            }
            (Kind::Parts(pieces), None) => pieces,
            _ => unreachable!("a template is parsed for its pattern"),
        };
        let mut out = String::with_capacity(name.len() + 8);
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => out.push_str(literal),
                Piece::Star(index) => out.push_str(&name[captures.stars[*index].clone()]),
                Piece::Integer {
                    index,
                    factor,
                    offset,
                } => {
                    let value = captures.integers[*index];
                    let value = value.checked_mul(*factor)?.checked_add_signed(*offset)?;
                    // `fmt` into the text itself: a rename of many layers writes many numbers.
                    let _ = std::fmt::Write::write_fmt(&mut out, format_args!("{value}"));
                }
                Piece::Choice { index, words } => out.push_str(&words[captures.choices[*index]]),
                Piece::FreeWords(words) => out.push_str(words.get(part)?),
                Piece::FreeInteger => out.push_str(&part.to_string()),
            }
        }
        Some(out)
    }
}

/// What the pattern offers, and what of it is taken.
struct Places<'p> {
    n_stars: usize,
    next_star: usize,
    integers: Vec<&'p str>,
    choices: Vec<(&'p [String], bool)>,
}

impl<'p> Places<'p> {
    fn of(source: &'p Pattern) -> Places<'p> {
        let mut places = Places {
            n_stars: 0,
            next_star: 0,
            integers: Vec::new(),
            choices: Vec::new(),
        };
        for part in source.parts() {
            match part {
                Part::Literal(_) => {}
                Part::Segment | Part::Any => places.n_stars += 1,
                Part::Integer { name, .. } => places.integers.push(name),
                Part::OneOf(words) => places.choices.push((words, false)),
            }
        }
        places
    }

    fn next_star(&mut self) -> Option<usize> {
        self.next_star += 1;
        (self.next_star <= self.n_stars).then(|| self.next_star - 1)
    }

    fn integer(&self, name: &str) -> Option<usize> {
        self.integers.iter().position(|candidate| *candidate == name)
    }

    fn choice(&mut self, words: &[String]) -> Option<usize> {
        let same = self
            .choices
            .iter()
            .position(|(candidate, taken)| !taken && *candidate == words);
        let as_many = || {
            self.choices
                .iter()
                .position(|(candidate, taken)| !taken && candidate.len() == words.len())
        };
        let index = same.or_else(as_many)?;
        self.choices[index].1 = true;
        Some(index)
    }
}

enum TemplatePart {
    Plain(Part),
    Sum { name: String, factor: u64, offset: i64 },
}

/// The parts of a template with their positions; sums are read here, all else as in a pattern.
fn positions(text: &str) -> Result<Vec<(usize, TemplatePart)>, PatternError> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with('{') {
            let inside = braces(text, at)?;
            let part = match sum(inside) {
                Some((name, factor, offset)) => TemplatePart::Sum { name, factor, offset },
                None => {
                    let mut plain = parse_parts(&rest[..inside.len() + 2]).map_err(|error| PatternError {
                        at: at + error.at,
                        ..error
                    })?;
                    TemplatePart::Plain(plain.remove(0))
                }
            };
            parts.push((at, part));
            at += inside.len() + 2;
        } else {
            let len = rest.find('{').unwrap_or(rest.len());
            let plain = parse_parts(&rest[..len]).map_err(|error| PatternError {
                at: at + error.at,
                ..error
            })?;
            parts.extend(plain.into_iter().map(|part| (at, TemplatePart::Plain(part))));
            at += len;
        }
    }
    Ok(parts)
}

/// `i+16`, `i-1`, `2*i`, `i*2+1`, `2*i+1`, also in parentheses.
fn sum(inside: &str) -> Option<(String, u64, i64)> {
    let text: String = inside
        .chars()
        .filter(|char| !matches!(char, ' ' | '(' | ')'))
        .collect();
    let sign = text.rfind(['+', '-']).filter(|&at| at > 0);
    let (product, offset) = match sign {
        Some(at) => (&text[..at], text[at..].trim_start_matches('+').parse().ok()?),
        None => (text.as_str(), 0),
    };
    let (name, factor) = match product.split_once('*') {
        Some((a, b)) if is_name(b) => (b, a.parse().ok()?),
        Some((a, b)) => (a, b.parse().ok()?),
        None => (product, 1),
    };
    (is_name(name) && (offset != 0 || factor != 1)).then(|| (name.to_owned(), factor, offset))
}

/// `\1` as `${1}`, which the regex crate knows, so that `$1x` and `\1x` mean the group 1 and an x.
fn replacement(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let is_group = matches!(char, '\\' | '$') && chars.peek().is_some_and(char::is_ascii_digit);
        if !is_group {
            out.push(char);
            continue;
        }
        out.push_str("${");
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            out.push(digit);
        }
        out.push('}');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, template: &str, name: &str, expected: &str) {
        let pattern = Pattern::parse(source).unwrap();
        let template = Template::parse(template, &pattern, Target::One).unwrap();
        let captures = pattern.captures(name).unwrap();
        assert_eq!(
            template.fill(&pattern, name, &captures, 0).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn names_are_made_of_what_matched() {
        check(
            "conv1.**",
            "pretrained.0.**",
            "conv1.weight",
            "pretrained.0.weight",
        );
        check(
            "blocks.{i}.ln_{n}",
            "b.{i+1}.norm{n}",
            "blocks.3.ln_2",
            "b.4.norm2",
        );
        check("l.{i}.*", "l.{2*i+1}.*", "l.5.w", "l.11.w");
        check(
            "**.{q|k|v}.*",
            "**.{query|key|value}.*",
            "a.b.k.bias",
            "a.b.key.bias",
        );
        check("{q|k}.{weight|bias}", "{weight|bias}.{q|k}", "k.bias", "bias.k");
        check(
            r"/^module\.(layer)(\d)/",
            r"$1_\2",
            "module.layer1.w",
            "layer_1.w",
        );
        check("/ln_/", "norm", "ln_1.ln_2", "norm1.norm2");
    }

    #[test]
    fn parts_are_named_by_what_the_pattern_lacks() {
        let pattern = Pattern::parse("in_proj_*").unwrap();
        let template = Template::parse("{q|k|v}_proj.*", &pattern, Target::Several).unwrap();
        let captures = pattern.captures("in_proj_bias").unwrap();
        assert_eq!(template.free_words().unwrap(), ["q", "k", "v"]);
        let name = template.fill(&pattern, "in_proj_bias", &captures, 1);
        assert_eq!(name.as_deref(), Some("k_proj.bias"));
    }

    #[test]
    fn places_that_the_pattern_lacks_are_refused() {
        let pattern = Pattern::parse("a.{i}.*").unwrap();
        for (text, reason) in [
            ("b.{j}.*", "`a.{i}.*` has no `{j}`"),
            ("b.{i}.*.*", "more stars than `a.{i}.*` has"),
            ("b.{x|y}", "`a.{i}.*` has no list of 2 words for `{x|y}`"),
        ] {
            let error = Template::parse(text, &pattern, Target::One).unwrap_err();
            assert_eq!(error.reason, reason);
        }
        let captures = pattern.captures("a.0.w").unwrap();
        let template = Template::parse("a.{i-1}.*", &pattern, Target::One).unwrap();
        assert_eq!(template.fill(&pattern, "a.0.w", &captures, 0), None);
    }
}
