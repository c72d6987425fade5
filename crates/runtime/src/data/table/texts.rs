//! Texts that stay in their manifest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::super::listing::Place;
use super::csv::{MAX_RECORD_BYTES, Records};
use super::json::{object, text};

/// Texts that lie in a manifest, each at its place.
#[derive(Debug)]
pub(in super::super) struct Texts {
    pub(in super::super) file: PathBuf,
    cell: TextCell,
}

/// Where in a record the text is.
#[derive(Debug)]
pub(super) enum TextCell {
    Csv { delimiter: u8, column: usize },
    Json { key: String },
    Line,
}

impl Texts {
    pub(super) fn new(file: &Path, cell: TextCell) -> Texts {
        Texts {
            file: file.to_owned(),
            cell,
        }
    }

    /// The text of the record at a place.
    ///
    /// # Errors
    /// Why it cannot be read, in one sentence.
    pub(in super::super) fn read(&self, file: &mut File, place: Place) -> Result<String, String> {
        const CHANGED: &str = "the file has changed since it was listed";
        let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
        let n_bytes = usize::try_from(place.len)
            .unwrap_or(usize::MAX)
            .min(MAX_RECORD_BYTES + 2);
        file.seek(SeekFrom::Start(place.at)).map_err(cannot)?;
        let mut record = Vec::with_capacity(n_bytes);
        file.take(n_bytes as u64)
            .read_to_end(&mut record)
            .map_err(cannot)?;
        if record.len() != n_bytes {
            return Err(CHANGED.to_owned());
        }
        match &self.cell {
            TextCell::Line => String::from_utf8(record.trim_ascii().to_vec()).map_err(|_| CHANGED.to_owned()),
            TextCell::Json { key } => match text(object(record.trim_ascii())?.get(key))? {
                Some(text) => Ok(text.into_owned()),
                None => Err(CHANGED.to_owned()),
            },
            TextCell::Csv { delimiter, column } => {
                let mut records = Records::new(&record[..], *delimiter, 0);
                records.next().map_err(cannot)?;
                let cell = records.field(*column).map(<[u8]>::to_vec);
                cell.and_then(|cell| String::from_utf8(cell).ok())
                    .ok_or_else(|| CHANGED.to_owned())
            }
        }
    }
}
