//! A Parquet file under bounds: no page is decompressed that claims more than a page has, nothing outside the file is
//! read, and a panic of the decoder is an error.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::super::positional;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::{ChunkReader, FileReader, Length};
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};

use crate::contained::contain;

/// A page of a hundred large pictures is far below this.
const MAX_PAGE_BYTES: i64 = 1 << 30;

/// An open file with its metadata.
pub(super) struct ParquetFile {
    reader: SerializedFileReader<Bounded>,
}

impl std::fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").finish_non_exhaustive()
    }
}

impl ParquetFile {
    /// Opens a file and reads its metadata.
    ///
    /// # Errors
    /// Why it is no Parquet file that can be read, in one sentence.
    pub(super) fn open(path: &Path) -> Result<ParquetFile, String> {
        let file = positional::open_regular(path)?;
        let len = file
            .metadata()
            .map_err(|error| format!("it cannot be read: {error}"))?
            .len();
        if len == 0 {
            return Err("the file is empty".to_owned());
        }
        let properties = ReaderProperties::builder()
            .set_read_page_statistics(false)
            .set_read_bloom_filter(false)
            .build();
        let options = ReadOptionsBuilder::new()
            .with_reader_properties(properties)
            .build();
        let bounded = Bounded { file, len };
        let reader = guarded(|| SerializedFileReader::new_with_options(bounded, options))
            .map_err(|reason| format!("it is no whole Parquet file: {reason}"))?;
        for group in reader.metadata().row_groups() {
            for column in group.columns() {
                match column.compression() {
                    Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => {}
                    other => {
                        let codec = format!("{other:?}");
                        let codec = codec.split('(').next().unwrap_or_default();
                        return Err(format!(
                            "it is compressed with {codec}; what is read is snappy, zstd and plain"
                        ));
                    }
                }
            }
            let n_rows = u64::try_from(group.num_rows()).unwrap_or(u64::MAX);
            // A sample that differs from the others takes a byte at least.
            if n_rows > len {
                return Err(format!("it claims {} rows in {len} bytes", group.num_rows()));
            }
        }
        Ok(ParquetFile { reader })
    }

    pub(super) fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    /// Rows of each row group.
    pub(super) fn group_rows(&self) -> Vec<u64> {
        let groups = self.metadata().row_groups().iter();
        groups
            .map(|group| u64::try_from(group.num_rows()).unwrap_or(0))
            .collect()
    }

    /// The pages of a leaf column in a row group.
    pub(super) fn column(
        &self,
        group: usize,
        leaf: usize,
    ) -> Result<parquet::column::reader::ColumnReader, String> {
        guarded(|| {
            let group = self.reader.get_row_group(group)?;
            group.get_column_reader(leaf)
        })
    }
}

/// Runs the decoder; what it says, and a panic of it, is the reason.
pub(super) fn guarded<T>(decode: impl FnOnce() -> ParquetResult<T>) -> Result<T, String> {
    match contain(decode) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err("its bytes make no sense".to_owned()),
    }
}

/// The library's words without its prefixes.
fn reason(error: &ParquetError) -> String {
    match error {
        ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => {
            let text = text.split('\n').next().unwrap_or_default().trim();
            let mut chars = text.chars();
            match chars.next() {
                Some(first) => first.to_lowercase().chain(chars).collect(),
                None => "it is damaged".to_owned(),
            }
        }
        other => other.to_string(),
    }
}

/// The file, never beyond its end.
struct Bounded {
    file: File,
    len: u64,
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Bounded {
    type T = BufReader<PositionedRead>;

    /// Pages begin with a header, which is what this is asked for.
    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let mut reader = BufReader::with_capacity(1 << 12, PositionedRead::at(&self.file, start)?);
        let mut head = [0; 32];
        let n = read_up_to(&mut reader, &mut head)?;
        if let Some((uncompressed, compressed)) = page_sizes(&head[..n])
            && (uncompressed > MAX_PAGE_BYTES || compressed > MAX_PAGE_BYTES)
        {
            return Err(ParquetError::General(format!(
                "a page claims {} bytes, over the limit of {} MiB",
                uncompressed.max(compressed),
                MAX_PAGE_BYTES >> 20
            )));
        }
        Ok(BufReader::with_capacity(
            1 << 12,
            PositionedRead::at(&self.file, start)?,
        ))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!(
                "bytes {start} to {start} + {length} lie beyond the end of the file"
            )));
        }
        let mut bytes = vec![0; length];
        PositionedRead::at(&self.file, start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// Reads from a place of its own: the file may be read from elsewhere at the same time.
struct PositionedRead {
    file: File,
    at: u64,
}

impl PositionedRead {
    fn at(file: &File, at: u64) -> std::io::Result<PositionedRead> {
        Ok(PositionedRead {
            file: file.try_clone()?,
            at,
        })
    }
}

impl Read for PositionedRead {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = positional::read_at(&self.file, buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The uncompressed and compressed sizes in a page header (fields 2 and 3 of Thrift's compact `PageHeader`), where the
/// header begins as one does.
fn page_sizes(header: &[u8]) -> Option<(i64, i64)> {
    const I32: u8 = 5;
    let mut rest = header;
    let mut field = || {
        let (&head, after) = rest.split_first()?;
        if head != 0x10 | I32 {
            return None;
        }
        let (mut value, mut shift) = (0u64, 0);
        let mut bytes = after.iter();
        loop {
            let byte = *bytes.next()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        rest = bytes.as_slice();
        // Zigzag.
        i64::try_from(value >> 1)
            .ok()
            .map(|half| if value & 1 == 1 { -half - 1 } else { half })
    };
    let _page_type = field()?;
    Some((field()?, field()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_headers_tell_their_sizes() {
        // Type 0, uncompressed 300, compressed 3: each a field of delta 1 and type i32, zigzag varints.
        assert_eq!(
            page_sizes(&[0x15, 0, 0x15, 0xd8, 0x04, 0x15, 0x06, 0x2c]),
            Some((300, 3))
        );
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 0xd8]), None);
        assert_eq!(page_sizes(b"PAR1"), None);
        assert_eq!(
            page_sizes(&[
                0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01
            ]),
            None
        );
    }

    #[test]
    fn a_panic_of_the_decoder_is_an_error() {
        let result: Result<(), String> = guarded(|| panic!("this is the test's own panic"));
        assert_eq!(result.unwrap_err(), "its bytes make no sense");
    }
}
