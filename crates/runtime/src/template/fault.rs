//! What is wrong in a template, and where.

use std::fmt::Write as _;

use super::lex::Span;

/// A place in a template that cannot be read, or that a network cannot be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// What is wrong.
    pub message: String,
    /// The file, or the name of a template that is shipped.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The text of the line.
    pub text: String,
    /// How many characters are meant.
    pub width: usize,
    /// Who called what is wrong, the innermost first: `file`, line, and what was called.
    pub callers: Vec<(String, usize, String)>,
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TemplateError {}

impl TemplateError {
    /// The line with a mark under what is meant, and the calls that led there:
    ///
    /// ```text
    ///  --> net.template, line 2, column 16
    ///   |
    /// 2 |     conv1 = Conv3d(3, 64)
    ///   |             ^^^^^^
    ///   = in Net, net.template, line 9
    /// ```
    pub fn excerpt(&self) -> String {
        let number = self.line.to_string();
        let gap = " ".repeat(number.len());
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{gap}--> {}, line {}, column {}",
            self.file, self.line, self.column
        );
        let _ = writeln!(out, "{gap} |");
        let _ = writeln!(out, "{number} | {}", self.text);
        let _ = write!(
            out,
            "{gap} | {}{}",
            " ".repeat(self.column - 1),
            "^".repeat(self.width.max(1))
        );
        for (file, line, called) in &self.callers {
            let _ = write!(out, "\n{gap} = in {called}, called in {file}, line {line}");
        }
        out
    }
}

/// What is wrong, before it is known in which text it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) message: String,
    span: Option<Span>,
    /// Which text the span is of.
    file: Option<usize>,
    /// Calls that led there: what was called, and where.
    callers: Vec<(String, usize, Span)>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Fault {
        Fault {
            message: message.into(),
            span: None,
            file: None,
            callers: Vec::new(),
        }
    }

    /// The same at a place, unless it has one.
    pub(super) fn at(mut self, span: &Span) -> Fault {
        self.span.get_or_insert_with(|| span.clone());
        self
    }

    /// The same in a text, unless it is known in which.
    pub(super) fn in_file(mut self, file: usize) -> Fault {
        self.file.get_or_insert(file);
        self
    }

    /// The same, in what was called at a place.
    pub(super) fn called(mut self, name: &str, file: usize, span: &Span) -> Fault {
        const MOST: usize = 8;
        if self.callers.len() < MOST {
            self.callers.push((name.to_owned(), file, span.clone()));
        }
        self
    }

    /// The error for people. `texts` are the names and contents of the files, in their order.
    pub(super) fn located<'t>(self, texts: impl Fn(usize) -> (&'t str, &'t str)) -> TemplateError {
        let (file, text) = texts(self.file.unwrap_or(0));
        let span = self.span.unwrap_or(0..0);
        let start = span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = span.end.clamp(start, line_end);
        let line_of = |text: &str, at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        TemplateError {
            message: self.message,
            file: file.to_owned(),
            line: line_of(text, start),
            column: text[line_start..start].chars().count() + 1,
            // Tabs would move the mark.
            text: text[line_start..line_end].replace(['\t', '\r'], " "),
            width: text[start..end].chars().count(),
            callers: self
                .callers
                .into_iter()
                .map(|(called, file, span)| {
                    let (file, text) = texts(file);
                    (file.to_owned(), line_of(text, span.start), called)
                })
                .collect(),
        }
    }
}

impl Fault {
    /// Whether it is known in which text it is.
    pub(super) fn is_located(&self) -> bool {
        self.file.is_some()
    }
}
