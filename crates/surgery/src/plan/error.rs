//! What is wrong with a plan, and where.

use std::fmt::Write as _;

use super::lex::Span;
use crate::Error;

/// A step that cannot be read or cannot be done, with its place in the text.
#[derive(Debug)]
pub struct PlanError {
    /// What is wrong; for an error of an operation the same as its text.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Line in the plan, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The text of the line.
    pub text: String,
    /// How many characters are meant.
    pub width: usize,
    /// Why a step that was read could not be done.
    pub cause: Option<Box<Error>>,
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PlanError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The message is the cause's own text.
        self.cause.as_ref().and_then(|cause| cause.source())
    }
}

impl PlanError {
    /// The line with a mark under what is meant:
    ///
    /// ```text
    ///  --> line 2, column 6
    ///   |
    /// 2 | drop fc.**
    ///   |      ^^^^^
    /// ```
    pub fn excerpt(&self) -> String {
        let number = self.line.to_string();
        let gap = " ".repeat(number.len());
        let mut out = String::new();
        let _ = writeln!(out, "{gap}--> line {}, column {}", self.line, self.column);
        let _ = writeln!(out, "{gap} |");
        let _ = writeln!(out, "{number} | {}", self.text);
        let _ = write!(
            out,
            "{gap} | {}{}",
            " ".repeat(self.column - 1),
            "^".repeat(self.width.max(1))
        );
        out
    }
}

/// What is wrong, before it is known in which text it stands.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) span: Option<Span>,
    pub(crate) what: What,
    pub(crate) hint: Option<String>,
}

#[derive(Debug)]
pub(crate) enum What {
    Text(String),
    Error(Box<Error>),
}

impl Fault {
    pub(crate) fn new(text: impl Into<String>) -> Fault {
        Fault {
            span: None,
            what: What::Text(text.into()),
            hint: None,
        }
    }

    pub(crate) fn at(self, span: &Span) -> Fault {
        Fault {
            span: Some(self.span.unwrap_or_else(|| span.clone())),
            ..self
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Fault {
        Fault {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The error for people, in the text that the plan is.
    pub(crate) fn in_text(self, text: &str, step: &Span) -> PlanError {
        let span = self.span.unwrap_or_else(|| step.clone());
        // What stands in quotes is shorter than it is written, so that a place in it may fall into a letter.
        let snapped = |at: usize| {
            (0..=at.min(text.len()))
                .rev()
                .find(|&at| text.is_char_boundary(at))
                .unwrap_or(0)
        };
        let start = snapped(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = snapped(span.end).clamp(start, line_end);
        let (message, cause) = match self.what {
            What::Text(text) => (text, None),
            What::Error(error) => (error.to_string(), Some(error)),
        };
        // Tabs would move the mark.
        let line = text[line_start..line_end].replace(['\t', '\r'], " ");
        PlanError {
            message,
            hint: self.hint,
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: line,
            width: text[start..end].chars().count(),
            cause,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault {
            span: None,
            what: What::Error(Box::new(error)),
            hint: None,
        }
    }
}
