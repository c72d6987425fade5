//! The text of a template to tokens, as Python has them: names, numbers, strings, signs, and indentation.

use std::ops::Range;

use super::fault::Fault;

/// A place in a text, in bytes.
pub(super) type Span = Range<usize>;

/// Brackets that may be open at once.
const MAX_BRACKETS: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    Name(String),
    Int(i64),
    Float(f64),
    Str(String),
    /// The pieces of an f-string: text, and the places of expressions.
    Format(Vec<Piece>),
    Sign(&'static str),
    NewLine,
    Indent,
    Dedent,
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Expr(Span),
}

/// Longest first, so that `//=` is not `//` and `=`.
const SIGNS: [&str; 41] = [
    "//=", "**=", "...", "->", ":=", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", "%=", "@=", "//", "**",
    "(", ")", "[", "]", "{", "}", ",", ":", ".", ";", "=", "+", "-", "*", "/", "%", "@", "<", ">", "~", "&",
    "|", "^", "!",
];

/// Splits `text` into tokens; the last is [`TokenKind::End`].
pub(super) fn lex(text: &str) -> Result<Vec<Token>, Fault> {
    Lexer {
        text,
        at: 0,
        tokens: Vec::new(),
        indents: vec![0],
        open: 0,
    }
    .all()
}

/// The tokens of one expression at a place within `text`, which is that of an f-string.
pub(super) fn lex_expr(text: &str, span: &Span) -> Result<Vec<Token>, Fault> {
    let mut lexer = Lexer {
        text: &text[..span.end],
        at: span.start,
        tokens: Vec::new(),
        indents: vec![0],
        open: 1,
    };
    while lexer.skip_space() {
        lexer.token()?;
    }
    lexer.push(TokenKind::End, span.end..span.end);
    Ok(lexer.tokens)
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    tokens: Vec<Token>,
    indents: Vec<usize>,
    /// Brackets that are open: within them a line's end means nothing.
    open: usize,
}

impl<'t> Lexer<'t> {
    fn all(mut self) -> Result<Vec<Token>, Fault> {
        let mut is_line_start = true;
        loop {
            if is_line_start {
                self.indentation()?;
                is_line_start = false;
            }
            if !self.skip_space() {
                break;
            }
            if self.rest().starts_with('\n') {
                // Empty lines were passed over at their beginning.
                self.push(TokenKind::NewLine, self.at..self.at + 1);
                self.at += 1;
                is_line_start = true;
                continue;
            }
            self.token()?;
        }
        let end = self.text.len();
        if self
            .tokens
            .last()
            .is_some_and(|token| token.kind != TokenKind::NewLine)
        {
            self.push(TokenKind::NewLine, end..end);
        }
        for _ in 1..self.indents.len() {
            self.push(TokenKind::Dedent, end..end);
        }
        self.push(TokenKind::End, end..end);
        Ok(self.tokens)
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn push(&mut self, kind: TokenKind, span: Span) {
        self.tokens.push(Token { kind, span });
    }

    /// Counts the spaces in front of a line that holds something.
    fn indentation(&mut self) -> Result<(), Fault> {
        let (width, start) = loop {
            let start = self.at;
            let mut width = 0;
            while let Some(c) = self
                .rest()
                .chars()
                .next()
                .filter(|c| matches!(c, ' ' | '\t' | '\r'))
            {
                width += if c == '\t' { 8 - width % 8 } else { 1 };
                self.at += 1;
            }
            if self.rest().starts_with('#') {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            }
            if self.rest().is_empty() {
                return Ok(());
            }
            if !self.rest().starts_with('\n') {
                break (width, start);
            }
            self.at += 1;
        };
        let span = start..self.at;
        if width > self.indents.last().copied().unwrap_or(0) {
            if self.indents.len() > MAX_BRACKETS {
                return Err(Fault::new("too many blocks within each other").at(&span));
            }
            self.indents.push(width);
            self.push(TokenKind::Indent, span);
            return Ok(());
        }
        while let Some(&last) = self.indents.last()
            && last > width
        {
            self.indents.pop();
            self.push(TokenKind::Dedent, span.clone());
            if self.indents.last().is_some_and(|&outer| outer < width) {
                return Err(Fault::new("this line is indented like no line above it").at(&span));
            }
        }
        Ok(())
    }

    /// Moves to the next token; false at the end.
    fn skip_space(&mut self) -> bool {
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                return false;
            };
            match c {
                '\n' if self.open > 0 => self.at += 1,
                '\n' => return true,
                '\\' if rest[1..].starts_with('\n') => self.at += 2,
                '\\' if rest[1..].starts_with("\r\n") => self.at += 3,
                '#' => self.at += rest.find('\n').unwrap_or(rest.len()),
                c if c.is_whitespace() || c == '\u{feff}' => self.at += c.len_utf8(),
                _ => return true,
            }
        }
    }

    fn token(&mut self) -> Result<(), Fault> {
        let rest = &self.text[self.at..];
        let start = self.at;
        let first = rest.chars().next().unwrap_or(' ');
        let is_number =
            first.is_ascii_digit() || first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if is_number {
            return self.number();
        }
        if first.is_alphabetic() || first == '_' {
            let len = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let name = &rest[..len];
            let quote = rest[len..].starts_with(['"', '\'']);
            if quote && matches!(name, "f" | "F" | "r" | "R") {
                self.at += len;
                return self.string(start, name.to_ascii_lowercase().as_str());
            }
            self.at += len;
            self.push(TokenKind::Name(name.to_owned()), start..start + len);
            return Ok(());
        }
        if matches!(first, '"' | '\'') {
            return self.string(start, "");
        }
        let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) else {
            let span = start..start + first.len_utf8();
            return Err(Fault::new(format!("`{}` has no meaning here", first.escape_default())).at(&span));
        };
        let span = start..start + sign.len();
        match *sign {
            "(" | "[" | "{" => {
                self.open += 1;
                if self.open > MAX_BRACKETS {
                    return Err(Fault::new("too many brackets within each other").at(&span));
                }
            }
            ")" | "]" | "}" => self.open = self.open.saturating_sub(1),
            _ => {}
        }
        self.at += sign.len();
        self.push(TokenKind::Sign(sign), span);
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let mut len = 0;
        let mut is_float = false;
        let bytes = rest.as_bytes();
        while let Some(&byte) = bytes.get(len) {
            match byte {
                b'0'..=b'9' | b'_' => {}
                b'.' | b'e' | b'E' => is_float = true,
                b'+' | b'-' if len > 0 && matches!(bytes[len - 1], b'e' | b'E') => {}
                _ => break,
            }
            len += 1;
        }
        let span = self.at..self.at + len;
        let digits = rest[..len].replace('_', "");
        let kind = if is_float {
            digits.parse().ok().map(TokenKind::Float)
        } else {
            digits.parse().ok().map(TokenKind::Int)
        };
        let Some(kind) = kind else {
            return Err(Fault::new(format!("`{}` is no number", &rest[..len])).at(&span));
        };
        self.at += len;
        self.push(kind, span);
        Ok(())
    }

    fn string(&mut self, start: usize, prefix: &str) -> Result<(), Fault> {
        let unclosed = Fault::new("a string that is not closed").at(&(start..start + 1));
        let rest = self.rest();
        let quote = &rest[..1];
        let triple = quote.repeat(3);
        let close = if rest.starts_with(&triple) {
            triple.as_str()
        } else {
            quote
        };
        self.at += close.len();
        let mut pieces = Vec::new();
        let mut text = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(close) {
                self.at += close.len();
                break;
            }
            let Some(c) = rest.chars().next() else {
                return Err(unclosed);
            };
            match c {
                '\n' if close.len() == 1 => return Err(unclosed),
                '\\' if prefix != "r" => {
                    let Some(escaped) = rest[1..].chars().next() else {
                        return Err(unclosed);
                    };
                    match escaped {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        '\n' => {}
                        other => text.push(other),
                    }
                    self.at += 1 + escaped.len_utf8();
                    continue;
                }
                '{' if prefix == "f" && !rest.starts_with("{{") => {
                    let end = rest.find('}').ok_or(unclosed.clone())?;
                    let span = self.at + 1..self.at + end;
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                    pieces.push(Piece::Expr(span));
                    self.at += end + 1;
                    continue;
                }
                '{' | '}' if prefix == "f" => self.at += 1,
                _ => {}
            }
            text.push(c);
            self.at += c.len_utf8();
        }
        let kind = if prefix == "f" {
            pieces.push(Piece::Text(text));
            TokenKind::Format(pieces)
        } else {
            TokenKind::Str(text)
        };
        self.push(kind, start..self.at);
        Ok(())
    }
}
