//! Parquet: texts are UTF-8 strings, numbers float32; what may be unknown is nullable.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use pth::AtomicFile;

use super::{Cell, Column, Fault, Kind, Predictions, Row};

/// Cells that are held before they are written.
const GROUP_CELLS: usize = 1 << 20;

pub(super) struct ParquetSink {
    out: SerializedFileWriter<AtomicFile>,
    columns: Vec<Values>,
    n_held: usize,
}

/// What a column holds of the rows that are not written yet.
struct Values {
    texts: Vec<ByteArray>,
    numbers: Vec<f32>,
    /// Whether each row has a value.
    levels: Vec<i16>,
    kind: Kind,
}

impl ParquetSink {
    pub(super) fn new(file: AtomicFile, head: &Predictions) -> Result<ParquetSink, Fault> {
        let columns = head.columns();
        let fields = columns.iter().map(field).collect::<Result<Vec<_>, Fault>>()?;
        let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .build();
        let out = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
        let columns = columns.into_iter().map(|column| Values {
            texts: Vec::new(),
            numbers: Vec::new(),
            levels: Vec::new(),
            kind: column.kind,
        });
        Ok(ParquetSink {
            out,
            columns: columns.collect(),
            n_held: 0,
        })
    }

    pub(super) fn push(&mut self, head: &Predictions, row: &Row<'_>) -> Result<(), Fault> {
        for (values, cell) in self.columns.iter_mut().zip(head.cells(row)) {
            match cell {
                Cell::Text(text) => values.texts.push(text.into_bytes().into()),
                Cell::Number(number) => values.numbers.push(number),
                Cell::Empty => {
                    values.levels.push(0);
                    continue;
                }
            }
            values.levels.push(1);
        }
        self.n_held += 1;
        if self.n_held * self.columns.len() >= GROUP_CELLS {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), Fault> {
        let mut group = self.out.next_row_group()?;
        for values in &mut self.columns {
            let levels = std::mem::take(&mut values.levels);
            let levels = match values.kind {
                Kind::MaybeText | Kind::MaybeNumber => Some(levels.as_slice()),
                Kind::Text | Kind::Number => None,
            };
            let Some(mut column) = group.next_column()? else {
                continue;
            };
            match values.kind {
                Kind::Text | Kind::MaybeText => {
                    let texts = std::mem::take(&mut values.texts);
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&texts, levels, None)?;
                }
                Kind::Number | Kind::MaybeNumber => {
                    let numbers = std::mem::take(&mut values.numbers);
                    column.typed::<FloatType>().write_batch(&numbers, levels, None)?;
                }
            }
            column.close()?;
        }
        group.close()?;
        self.n_held = 0;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<AtomicFile, Fault> {
        if self.n_held > 0 {
            self.write_group()?;
        }
        Ok(self.out.into_inner()?)
    }
}

fn field(column: &Column) -> Result<Arc<Type>, Fault> {
    let (kind, logical, repetition) = match column.kind {
        Kind::Text => (
            PhysicalType::BYTE_ARRAY,
            Some(LogicalType::String),
            Repetition::REQUIRED,
        ),
        Kind::MaybeText => (
            PhysicalType::BYTE_ARRAY,
            Some(LogicalType::String),
            Repetition::OPTIONAL,
        ),
        Kind::Number => (PhysicalType::FLOAT, None, Repetition::REQUIRED),
        Kind::MaybeNumber => (PhysicalType::FLOAT, None, Repetition::OPTIONAL),
    };
    let field = Type::primitive_type_builder(&column.name, kind)
        .with_logical_type(logical)
        .with_repetition(repetition)
        .build()?;
    Ok(Arc::new(field))
}
