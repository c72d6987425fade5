//! Which columns a Parquet file has, and what they can serve for.

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::schema::types::Type;

use super::file::ParquetFile;

/// A top-level column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What a column holds; the numbers are of leaf columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// UTF-8 text.
    Text(usize),
    /// Bytes that are not said to be text.
    Bytes(usize),
    /// A number or truth value.
    Scalar(usize),
    /// Hugging Face's `Image`: `struct<bytes: binary, path: string>`, one of which may be absent.
    Picture {
        bytes: Option<usize>,
        path: Option<usize>,
    },
    /// A list, a map or another struct.
    Nested,
}

impl Kind {
    /// The leaf of a column of plain values.
    pub(super) fn leaf(self) -> Option<usize> {
        match self {
            Kind::Text(leaf) | Kind::Bytes(leaf) | Kind::Scalar(leaf) => Some(leaf),
            Kind::Picture { .. } | Kind::Nested => None,
        }
    }
}

/// The file's columns in order.
pub(super) fn columns(file: &ParquetFile) -> Vec<Column> {
    let schema = file.metadata().file_metadata().schema_descr();
    let leaf = |path: &[&str]| {
        schema.columns().iter().position(|column| {
            column.max_rep_level() == 0
                && column
                    .path()
                    .parts()
                    .iter()
                    .map(String::as_str)
                    .eq(path.iter().copied())
        })
    };
    let fields = schema.root_schema().get_fields();
    fields
        .iter()
        .map(|field| {
            let name = field.name();
            let kind = match leaf(&[name]) {
                Some(at) => kind_of(field, at),
                None if field.is_group() => {
                    let child = |child: &str| {
                        let at = leaf(&[name, child])?;
                        (schema.column(at).physical_type() == Physical::BYTE_ARRAY).then_some(at)
                    };
                    match (child("bytes"), child("path")) {
                        (None, None) => Kind::Nested,
                        (bytes, path) => Kind::Picture { bytes, path },
                    }
                }
                None => Kind::Nested,
            };
            Column {
                name: name.to_owned(),
                kind,
            }
        })
        .collect()
}

fn kind_of(field: &Type, leaf: usize) -> Kind {
    let basic = field.get_basic_info();
    let is_text = matches!(
        basic.logical_type_ref(),
        Some(LogicalType::String | LogicalType::Enum | LogicalType::Json)
    ) || matches!(
        basic.converted_type(),
        ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
    );
    match field.get_physical_type() {
        Physical::BYTE_ARRAY if is_text => Kind::Text(leaf),
        Physical::BYTE_ARRAY => Kind::Bytes(leaf),
        Physical::BOOLEAN | Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE => {
            Kind::Scalar(leaf)
        }
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => Kind::Nested,
    }
}

/// The classes of a column, where the file's `huggingface` metadata says that it is a `ClassLabel`.
pub(super) fn class_names(file: &ParquetFile, column: &str) -> Option<Vec<String>> {
    let metadata = file.metadata().file_metadata().key_value_metadata()?;
    let text = metadata
        .iter()
        .find(|entry| entry.key == "huggingface")?
        .value
        .as_deref()?;
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let feature = value.get("info")?.get("features")?.get(column)?;
    if feature.get("_type")?.as_str()? != "ClassLabel" {
        return None;
    }
    let names = feature.get("names")?.as_array()?;
    names
        .iter()
        .map(|name| name.as_str().map(str::to_owned))
        .collect()
}
