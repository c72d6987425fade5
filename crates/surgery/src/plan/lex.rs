//! The text of a plan to steps of words, each with its place.

use std::ops::Range;

/// A place in the text of a plan, in bytes.
pub(crate) type Span = Range<usize>;

/// One act: a verb and its words.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawStep {
    pub(crate) span: Span,
    pub(crate) words: Vec<Word>,
}

/// A word of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Word {
    /// As it is meant: without quotes.
    pub(crate) text: String,
    pub(crate) span: Span,
    pub(crate) kind: WordKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordKind {
    Bare,
    Quoted,
    /// `->`
    Arrow,
    /// `,` behind a word, which ends a pair.
    Comma,
}

/// What is no plan, and where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LexError {
    pub(crate) span: Span,
    pub(crate) reason: &'static str,
}

/// Splits `text` at newlines and `;` into steps, and these at spaces into words. `#` in front of a word begins a comment.
pub(crate) fn lex(text: &str) -> Result<Vec<RawStep>, LexError> {
    let mut steps = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    let mut at = 0;
    let finish = |words: &mut Vec<Word>, steps: &mut Vec<RawStep>| {
        if let (Some(first), Some(last)) = (words.first(), words.last()) {
            let span = first.span.start..last.span.end;
            steps.push(RawStep {
                span,
                words: std::mem::take(words),
            });
        }
    };
    while let Some(char) = text[at..].chars().next() {
        let rest = &text[at..];
        match char {
            '\n' | ';' => {
                finish(&mut words, &mut steps);
                at += 1;
            }
            // A backslash at the end of a line goes on with the next.
            '\\' if rest[1..].starts_with('\n') => at += 2,
            '\\' if rest[1..].starts_with("\r\n") => at += 3,
            char if char.is_whitespace() => at += char.len_utf8(),
            '#' => at += rest.find('\n').unwrap_or(rest.len()),
            '"' => {
                let (text, len) = quoted(rest).ok_or(LexError {
                    span: at..at + 1,
                    reason: "a quote that is not closed",
                })?;
                words.push(Word {
                    text,
                    span: at..at + len,
                    kind: WordKind::Quoted,
                });
                at += len;
            }
            ',' => {
                words.push(Word {
                    text: ",".to_owned(),
                    span: at..at + 1,
                    kind: WordKind::Comma,
                });
                at += 1;
            }
            _ => {
                let len = bare(rest).ok_or(LexError {
                    span: at..at + 1,
                    reason: "a regular expression that is not closed: it ends with `/`",
                })?;
                push_bare(&mut words, &rest[..len], at);
                at += len;
            }
        }
    }
    finish(&mut words, &mut steps);
    Ok(steps)
}

/// The length of a word that begins here: to the next space or `;`, but not within a regular expression or behind `=` a quote.
fn bare(rest: &str) -> Option<usize> {
    // The sign of a division stands alone.
    if rest.starts_with('/') && rest[1..].starts_with(char::is_whitespace) {
        return Some(1);
    }
    if let Some(regex) = rest.strip_prefix('/') {
        let mut is_escaped = false;
        for (at, char) in regex.char_indices() {
            match char {
                '\n' => break,
                '/' if !is_escaped => {
                    let end = at + 2;
                    let is_end = rest[end..]
                        .chars()
                        .next()
                        .is_none_or(|next| next.is_whitespace() || matches!(next, ';' | ','));
                    if is_end {
                        return Some(end);
                    }
                }
                _ => {}
            }
            is_escaped = char == '\\' && !is_escaped;
        }
        // A path such as `/models/a.pth` is a word; an expression with a space must be closed.
        let plain = rest
            .find(|char: char| char.is_whitespace() || char == ';')
            .unwrap_or(rest.len());
        return rest[1..plain].contains(['/', '.']).then_some(plain);
    }
    let mut in_quotes = false;
    for (at, char) in rest.char_indices() {
        match char {
            '"' => in_quotes = !in_quotes,
            ';' if !in_quotes => return Some(at),
            char if char.is_whitespace() && !in_quotes => return Some(at),
            _ => {}
        }
    }
    Some(rest.len())
}

fn push_bare(words: &mut Vec<Word>, text: &str, at: usize) {
    if text == "->" || text == "→" {
        return words.push(Word {
            text: "->".to_owned(),
            span: at..at + text.len(),
            kind: WordKind::Arrow,
        });
    }
    let (word, has_comma) = match text.strip_suffix(',') {
        Some(word) if !word.is_empty() => (word, true),
        _ => (text, false),
    };
    words.push(Word {
        // A value in quotes: `base="my model.pth"`.
        text: word.replace('"', ""),
        span: at..at + word.len(),
        kind: WordKind::Bare,
    });
    if has_comma {
        words.push(Word {
            text: ",".to_owned(),
            span: at + word.len()..at + text.len(),
            kind: WordKind::Comma,
        });
    }
}

/// The text in quotes, and the length with them.
fn quoted(rest: &str) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((text, at + 1)),
            '\\' => text.push(chars.next()?.1),
            '\n' => return None,
            char => text.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<String>> {
        let steps = lex(text).unwrap();
        steps
            .into_iter()
            .map(|step| step.words.into_iter().map(|word| word.text).collect())
            .collect()
    }

    #[test]
    fn steps_are_words_in_lines_or_between_semicolons() {
        assert_eq!(
            words("strip module.; rename a -> b, c -> d # why\n\n  drop \"x y\" /a b;c/ base=\"p q\"\n"),
            [
                vec!["strip", "module."],
                vec!["rename", "a", "->", "b", ",", "c", "->", "d"],
                vec!["drop", "x y", "/a b;c/", "base=p q"],
            ]
        );
        assert_eq!(
            words("from /models/a.pth take fc.**"),
            [["from", "/models/a.pth", "take", "fc.**"]]
        );
        assert_eq!(words("keep \\\n  a"), [["keep", "a"]]);
        assert_eq!(words("let a = b / 4"), [["let", "a", "=", "b", "/", "4"]]);
        assert!(words(" ;; # nothing").is_empty());
    }

    #[test]
    fn places_are_those_of_the_text() {
        let steps = lex("strip a;  drop bb.*").unwrap();
        assert_eq!(steps[1].span, 10..19);
        assert_eq!(steps[1].words[1].span, 15..19);
        assert_eq!(lex("drop \"x").unwrap_err().span, 5..6);
        assert_eq!(lex("drop /x y").unwrap_err().span, 5..6);
    }
}
