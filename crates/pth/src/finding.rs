//! What a close look at a file comes across.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::fmt;

use crate::Error;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing, and normal.
    Note,
    /// Out of the ordinary; the file still opens.
    Flag,
    /// The file, or a tensor of it, is not read because of it.
    High,
    /// Made to attack, as far as one can tell.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Flag => "flag",
            Severity::High => "high",
            Severity::Critical => "critical",
        })
    }
}

/// One thing found, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable name for programs: `zip.duplicate`, `global.unsafe`.
    pub id: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// The record of the container, the pickle or the tensor that it is about.
    pub record: String,
    /// What is the matter, as a phrase.
    pub detail: String,
}

impl Finding {
    pub(crate) fn new(
        id: &'static str,
        severity: Severity,
        record: impl Into<String>,
        detail: impl Into<String>,
    ) -> Finding {
        Finding {
            id,
            severity,
            record: record.into(),
            detail: detail.into(),
        }
    }

    pub(crate) fn into_error(self) -> Error {
        Error::container(self.record, self.detail)
    }
}

/// Takes findings while a file is read; an error ends the reading.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(Finding) -> Result<(), Error>;

/// The sink of a reader: what weighs heavily ends the reading, the rest is of no interest.
pub(crate) fn refuse_high(finding: Finding) -> Result<(), Error> {
    if finding.severity >= Severity::High {
        return Err(finding.into_error());
    }
    Ok(())
}
