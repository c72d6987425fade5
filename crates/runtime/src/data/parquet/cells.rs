//! Columns of plain values, row by row in batches.

use std::borrow::Cow;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};

use super::file::{ParquetFile, guarded};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Bytes(ByteArray),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Cell {
    /// The text that stands for the value in a label, a path or a split; `None` for null and for NaN.
    ///
    /// # Errors
    /// Bytes that are not UTF-8.
    pub(super) fn text(&self) -> Result<Option<Cow<'_, str>>, String> {
        Ok(match self {
            Cell::Null => None,
            Cell::Bytes(bytes) => Some(Cow::Borrowed(
                std::str::from_utf8(bytes.data()).map_err(|_| "it is not UTF-8".to_owned())?,
            )),
            Cell::Int(value) => Some(Cow::Owned(value.to_string())),
            // pandas keeps a missing number as NaN.
            Cell::Float(value) if value.is_nan() => None,
            Cell::Float(value) => Some(Cow::Owned(format!("{value:?}"))),
            Cell::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
        })
    }
}

/// Reads a column of one row group from its first row on.
pub(super) struct Cells {
    reader: ColumnReader,
    /// The definition level at which there is a value.
    defined: i16,
    is_unsigned: bool,
}

impl Cells {
    pub(super) fn open(file: &ParquetFile, group: usize, leaf: usize) -> Result<Cells, String> {
        let column = file.metadata().file_metadata().schema_descr().column(leaf);
        let is_unsigned = match column.logical_type_ref() {
            Some(LogicalType::Integer(kind)) => !kind.is_signed,
            _ => matches!(
                column.converted_type(),
                ConvertedType::UINT_32 | ConvertedType::UINT_64
            ),
        };
        Ok(Cells {
            reader: file.column(group, leaf)?,
            defined: column.max_def_level(),
            is_unsigned,
        })
    }

    /// Passes over rows without decompressing whole pages of them; returns how many there were.
    pub(super) fn skip(&mut self, n_rows: usize) -> Result<usize, String> {
        let reader = &mut self.reader;
        guarded(|| match reader {
            ColumnReader::BoolColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::Int32ColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::Int64ColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::Int96ColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::FloatColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::DoubleColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::ByteArrayColumnReader(reader) => reader.skip_records(n_rows),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => reader.skip_records(n_rows),
        })
    }

    /// The next rows, at most `n_rows`; none at the end.
    pub(super) fn read(&mut self, n_rows: usize) -> Result<Vec<Cell>, String> {
        let (defined, is_unsigned) = (self.defined, self.is_unsigned);
        match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => read(reader, n_rows, defined, Cell::Bool),
            ColumnReader::Int32ColumnReader(reader) => read(reader, n_rows, defined, |value: i32| {
                Cell::Int(if is_unsigned {
                    i64::from(value.cast_unsigned())
                } else {
                    i64::from(value)
                })
            }),
            ColumnReader::Int64ColumnReader(reader) => read(reader, n_rows, defined, Cell::Int),
            ColumnReader::FloatColumnReader(reader) => read(reader, n_rows, defined, |value: f32| {
                Cell::Float(f64::from(value))
            }),
            ColumnReader::DoubleColumnReader(reader) => read(reader, n_rows, defined, Cell::Float),
            ColumnReader::ByteArrayColumnReader(reader) => read(reader, n_rows, defined, Cell::Bytes),
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
                Err("its type is not one of values that are read".to_owned())
            }
        }
    }
}

fn read<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    n_rows: usize,
    defined: i16,
    cell: impl Fn(T::T) -> Cell,
) -> Result<Vec<Cell>, String> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (n_read, ..) = guarded(|| reader.read_records(n_rows, Some(&mut levels), None, &mut values))?;
    let mut values = values.into_iter();
    let cells: Vec<Cell> = if defined == 0 {
        values.map(cell).collect()
    } else {
        let value = |level: &i16| match *level == defined {
            true => values.next().map_or(Cell::Null, &cell),
            false => Cell::Null,
        };
        levels.iter().map(value).collect()
    };
    if cells.len() != n_read {
        return Err("its pages do not have as many values as rows".to_owned());
    }
    Ok(cells)
}
