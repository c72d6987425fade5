//! What the caller says about a source.

use super::split::SplitRule;

/// How a source is read.
#[derive(Debug, Clone, PartialEq)]
pub struct DataOptions {
    /// Where validation samples come from.
    pub split: SplitRule,
    /// What happens to samples without a label.
    pub unlabelled: Unlabelled,
    /// What is wanted of samples that have several parts.
    pub wanted: Wanted,
    /// Which columns of a manifest mean what, where the usual names do not say it.
    pub columns: Columns,
}

impl DataOptions {
    /// Labelled samples, columns by their usual names.
    pub fn new(split: SplitRule) -> DataOptions {
        DataOptions {
            split,
            unlabelled: Unlabelled::LeaveOut,
            wanted: Wanted::Auto,
            columns: Columns::default(),
        }
    }
}

/// What happens to samples without a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabelled {
    /// They are left out, named and counted; a source without any label is an error.
    LeaveOut,
    /// They are listed, and [`Dataset::label`](super::Dataset::label) is `None`.
    Keep,
}

/// What is wanted of samples that have a picture and a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The picture where the source has one, else the text.
    Auto,
    /// The picture.
    Pictures,
    /// The text.
    Texts,
}

/// Names of columns, of a manifest, of Parquet, or of the fields of a JSON object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The picture: a path below the manifest, or its bytes.
    pub path: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// The split.
    pub split: Option<String>,
    /// What the sample is called, instead of its path or row.
    pub id: Option<String>,
}
