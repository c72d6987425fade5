//! What the caller must change: exit code 2.

use std::fmt;

/// A request that cannot be meant as it stands.
#[derive(Debug)]
pub(crate) struct UsageError {
    /// What is wrong with it.
    pub(crate) what: String,
    /// What to try instead.
    pub(crate) hint: Option<String>,
}

impl UsageError {
    pub(crate) fn new(what: impl Into<String>) -> UsageError {
        UsageError {
            what: what.into(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> UsageError {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for UsageError {}
