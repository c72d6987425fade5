//! The words of one step, taken one after the other.

use std::str::FromStr;

use pth::DType;

use super::error::Fault;
use super::lex::{Span, Word, WordKind};
use crate::pattern::{Pattern, Target, Template};

/// Something that stands in the plan.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// Patterns, and those that are excepted.
#[derive(Debug, Clone)]
pub(crate) struct Patterns {
    pub(crate) any: Vec<At<Pattern>>,
    pub(crate) except: Vec<At<Pattern>>,
}

/// A pattern and what becomes of the names that match.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) source: At<Pattern>,
    pub(crate) target: Template,
}

/// The words behind a verb.
pub(crate) struct Args {
    words: std::collections::VecDeque<Word>,
    usage: &'static str,
    verb: Span,
    /// `verb?`
    pub(crate) is_optional: bool,
    /// `verb!`
    pub(crate) is_strict: bool,
}

impl Args {
    pub(crate) fn new(words: Vec<Word>, usage: &'static str, verb: Span) -> Args {
        Args {
            words: words.into(),
            usage,
            verb,
            is_optional: false,
            is_strict: false,
        }
    }

    /// Where the verb stands.
    pub(crate) fn verb_span(&self) -> Span {
        self.verb.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether `->` stands anywhere.
    pub(crate) fn has_arrow(&self) -> bool {
        self.words.iter().any(|word| word.kind == WordKind::Arrow)
    }

    fn missing(&self, what: &str) -> Fault {
        Fault::new(format!("{what} is missing"))
            .at(&self.verb)
            .hint(format!("the form is `{}`", self.usage))
    }

    /// The value of the option `key=value`, wherever it stands.
    pub(crate) fn option(&mut self, key: &str) -> Option<At<String>> {
        let is_it = |word: &Word| {
            word.kind == WordKind::Bare
                && word
                    .text
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with('='))
        };
        let at = self.words.iter().position(is_it)?;
        let word = self.words.remove(at)?;
        let start = word.span.start + key.len() + 1;
        Some(At {
            value: word.text[key.len() + 1..].to_owned(),
            span: start.min(word.span.end)..word.span.end,
        })
    }

    /// The option as a number or another type with a text form; `what` says what it is, as in "a number of rows".
    pub(crate) fn parsed<T: FromStr>(&mut self, key: &str, what: &str) -> Result<Option<T>, Fault> {
        self.option(key).map(|text| parse(&text, what)).transpose()
    }

    /// `key=true` or `key=false`.
    pub(crate) fn flag(&mut self, key: &str, default: bool) -> Result<bool, Fault> {
        Ok(self.parsed(key, "true or false")?.unwrap_or(default))
    }

    /// Whether the word `text` stands next, which is then taken.
    pub(crate) fn take(&mut self, text: &str) -> bool {
        let is_next = self
            .words
            .front()
            .is_some_and(|word| word.kind != WordKind::Quoted && word.text == text);
        if is_next {
            self.words.pop_front();
        }
        is_next
    }

    /// The next word as it is.
    pub(crate) fn word(&mut self, what: &str) -> Result<At<String>, Fault> {
        match self.words.pop_front() {
            Some(Word {
                text,
                span,
                kind: WordKind::Bare | WordKind::Quoted,
            }) => Ok(At { value: text, span }),
            Some(word) => Err(Fault::new(format!("`{}` where {what} is expected", word.text))
                .at(&word.span)
                .hint(format!("the form is `{}`", self.usage))),
            None => Err(self.missing(what)),
        }
    }

    /// The next word, if it satisfies `fits`.
    pub(crate) fn word_if(&mut self, fits: impl Fn(&str) -> bool) -> Option<At<String>> {
        let word = self.words.front()?;
        let is_plain = matches!(word.kind, WordKind::Bare | WordKind::Quoted);
        if !is_plain || !fits(&word.text) {
            return None;
        }
        let word = self.words.pop_front()?;
        Some(At {
            value: word.text,
            span: word.span,
        })
    }

    /// The first word behind the first one that satisfies `fits`, wherever it stands.
    pub(crate) fn take_word_if(&mut self, fits: impl Fn(&str) -> bool) -> Option<At<String>> {
        let is_it = |word: &Word| word.kind == WordKind::Bare && fits(&word.text);
        let at = self.words.iter().skip(1).position(is_it)? + 1;
        let word = self.words.remove(at)?;
        Some(At {
            value: word.text,
            span: word.span,
        })
    }

    /// The last word, if it satisfies `fits`.
    pub(crate) fn pop_back_if(&mut self, fits: impl Fn(&str) -> bool) -> Option<At<String>> {
        let is_it = self
            .words
            .back()
            .is_some_and(|word| word.kind == WordKind::Bare && fits(&word.text));
        let word = if is_it {
            self.words.pop_back()?
        } else {
            return None;
        };
        Some(At {
            value: word.text,
            span: word.span,
        })
    }

    /// All that is left, as one text.
    pub(crate) fn rest(&mut self) -> At<String> {
        let span = match (self.words.front(), self.words.back()) {
            (Some(first), Some(last)) => first.span.start..last.span.end,
            _ => self.verb.clone(),
        };
        let quoted = |word: &Word| match word.kind {
            WordKind::Quoted => format!("\"{}\"", word.text),
            _ => word.text.clone(),
        };
        let words: Vec<String> = self.words.iter().map(quoted).collect();
        self.words.clear();
        At {
            value: words.join(" ").replace(" ,", ","),
            span,
        }
    }

    /// The next word as a number or another type with a text form.
    pub(crate) fn value<T: FromStr>(&mut self, what: &str) -> Result<T, Fault> {
        let word = self.word(what)?;
        parse(&word, what)
    }

    /// The next word as a pattern.
    pub(crate) fn pattern(&mut self) -> Result<At<Pattern>, Fault> {
        let is_quoted = self
            .words
            .front()
            .is_some_and(|word| word.kind == WordKind::Quoted);
        let word = self.word("a pattern")?;
        if is_quoted {
            return Ok(At {
                value: Pattern::literal(&word.value),
                span: word.span,
            });
        }
        let value = Pattern::parse(&word.value).map_err(|error| {
            let start = word.span.start + error.at;
            Fault::new(error.reason).at(&(start..word.span.end.max(start + 1)))
        })?;
        Ok(At {
            value,
            span: word.span,
        })
    }

    /// All words up to one of `ends` or the end as patterns, `except` between those that are meant and those that are not.
    pub(crate) fn patterns(&mut self, n_behind: usize) -> Result<Patterns, Fault> {
        let mut patterns = Patterns {
            any: Vec::new(),
            except: Vec::new(),
        };
        let mut is_exception = false;
        while self.n_plain() > n_behind {
            if self.take("except") {
                is_exception = true;
                continue;
            }
            if self.take(",") {
                continue;
            }
            let pattern = self.pattern()?;
            let list = if is_exception {
                &mut patterns.except
            } else {
                &mut patterns.any
            };
            list.push(pattern);
        }
        if patterns.any.is_empty() || (is_exception && patterns.except.is_empty()) {
            return Err(self.missing("a pattern"));
        }
        Ok(patterns)
    }

    /// How many words are left that are no options.
    fn n_plain(&self) -> usize {
        self.words.len()
    }

    /// `source -> target`.
    pub(crate) fn pair(&mut self, target: Target) -> Result<Pair, Fault> {
        let source = self.pattern()?;
        if !self.take("->") {
            return Err(self.missing(&format!("`->` behind `{}`", source.value.as_str())));
        }
        let word = self.word("a new name")?;
        let template = Template::parse(&word.value, &source.value, target).map_err(|error| {
            let start = word.span.start + error.at;
            Fault::new(error.reason).at(&(start..word.span.end.max(start + 1)))
        })?;
        Ok(Pair {
            source,
            target: template,
        })
    }

    /// `source -> target, source -> target`, at least one.
    pub(crate) fn pairs(&mut self, target: Target) -> Result<Vec<Pair>, Fault> {
        let mut pairs = vec![self.pair(target)?];
        while self.take(",") {
            if self.is_empty() {
                break;
            }
            pairs.push(self.pair(target)?);
        }
        Ok(pairs)
    }

    /// The next word as a type's name, torch's or a short one.
    pub(crate) fn dtype(&mut self) -> Result<DType, Fault> {
        let word = self.word("a type")?;
        parse_dtype(&word)
    }

    /// Refuses what nothing has taken.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        match self.words.pop_front() {
            None => Ok(()),
            Some(word) => Err(Fault::new(format!("`{}` is not understood here", word.text))
                .at(&word.span)
                .hint(format!("the form is `{}`", self.usage))),
        }
    }
}

/// A value from its text.
pub(crate) fn parse<T: FromStr>(text: &At<String>, what: &str) -> Result<T, Fault> {
    let value = text.value.parse();
    value.map_err(|_| Fault::new(format!("`{}` is not {what}", text.value)).at(&text.span))
}

/// `0,2,1`, `24x24`.
pub(crate) fn list<T: FromStr>(text: &At<String>, separator: char, what: &str) -> Result<Vec<T>, Fault> {
    let items = text.value.split(separator).map(|item| item.trim().parse());
    let list: Result<Vec<T>, _> = items.collect();
    list.map_err(|_| Fault::new(format!("`{}` is not {what}", text.value)).at(&text.span))
}

/// One of `words`, with the nearest where it is none.
pub(crate) fn one_of<T: Copy>(text: &At<String>, words: &[(&str, T)]) -> Result<T, Fault> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
        return Ok(*value);
    }
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let fault = Fault::new(format!("`{}` is none of {}", text.value, names.join(", "))).at(&text.span);
    Err(match nearest(&text.value, &names) {
        Some(near) => fault.hint(format!("did you mean `{near}`?")),
        None => fault,
    })
}

/// The type of torch that `text` names, if it does.
pub(crate) fn short_dtype(text: &str) -> Option<DType> {
    const SHORT: [(&str, DType); 10] = [
        ("f16", DType::Float16),
        ("half", DType::Float16),
        ("bf16", DType::BFloat16),
        ("f32", DType::Float32),
        ("float", DType::Float32),
        ("f64", DType::Float64),
        ("double", DType::Float64),
        ("i64", DType::Int64),
        ("i32", DType::Int32),
        ("u8", DType::Uint8),
    ];
    let short = SHORT
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, dtype)| *dtype);
    short.or_else(|| DType::from_name(text))
}

/// A type by torch's name or a short one.
pub(crate) fn parse_dtype(word: &At<String>) -> Result<DType, Fault> {
    if let Some(dtype) = short_dtype(&word.value) {
        return Ok(dtype);
    }
    let names: Vec<&str> = DType::all().map(DType::as_str).collect();
    let near = nearest(&word.value, &names).map(|near| format!("did you mean `{near}`?"));
    Err(Fault {
        hint: near,
        ..Fault::new(format!("`{}` is not a type of torch", word.value)).at(&word.span)
    })
}

/// The word that was most likely meant.
pub(crate) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let distance = |word: &str| crate::edit_distance(text, word);
    let near = words.iter().min_by_key(|word| distance(word))?;
    (distance(near) <= 2.max(text.len() / 3)).then_some(*near)
}
