//! Writing clip-retrieval's layout, a partition at a time and each file whole or not at all.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use pth::{AtomicFile, Existing, FileError};

use super::Modality;
use super::read::partitions;
use crate::error::Error;
use crate::npy::header;

/// Rows of metadata that are held before they are written.
const GROUP_ROWS: usize = 1 << 14;

/// How wide the numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// float16, rounded to the nearest.
    F16,
    /// float32.
    F32,
}

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// What the features are of.
    pub modality: Modality,
    /// How wide the numbers are.
    pub precision: Precision,
    /// D.
    pub n_features: usize,
    /// Rows that will come; it decides how many zeros the files' names have.
    pub n_rows: usize,
    /// Rows in a partition; clip-retrieval's `write_batch_size` is a million.
    pub partition_rows: usize,
    /// What happens to partitions that the folder already holds.
    pub existing: Existing,
}

/// Takes rows one by one. Partitions that are complete are kept when it is dropped; [`finish`](ClipRetrievalWriter::finish)
/// writes the last.
#[derive(Debug)]
pub struct ClipRetrievalWriter {
    folder: PathBuf,
    options: WriteOptions,
    /// Digits of a partition's number.
    width: usize,
    n_pushed: usize,
    n_partitions: usize,
    partition: Option<Partition>,
}

impl ClipRetrievalWriter {
    /// Makes the folders.
    ///
    /// # Errors
    /// [`Error::Exists`] where the folder holds partitions and `existing` refuses; those are removed otherwise.
    /// [`Error::Usage`] for no features and no rows in a partition.
    pub fn create(folder: &Path, options: WriteOptions) -> Result<ClipRetrievalWriter, Error> {
        if options.n_features == 0 || options.partition_rows == 0 {
            return Err(Error::Usage(
                "a partition has rows, and a row has numbers".to_owned(),
            ));
        }
        let embeddings = folder.join(options.modality.folder());
        let metadata = folder.join("metadata");
        let mut old = partitions(&embeddings, options.modality.folder(), "npy")?;
        old.extend(partitions(&metadata, "metadata", "parquet")?);
        if !old.is_empty() && options.existing == Existing::Refuse {
            return Err(Error::Exists {
                path: folder.to_owned(),
                what: "partitions of features".to_owned(),
            });
        }
        for (_, path) in old {
            fs::remove_file(&path).map_err(FileError::at("remove", &path))?;
        }
        for path in [&embeddings, &metadata] {
            fs::create_dir_all(path).map_err(FileError::at("create", path))?;
        }
        let n_partitions = options.n_rows.div_ceil(options.partition_rows).max(1);
        Ok(ClipRetrievalWriter {
            folder: folder.to_owned(),
            // `int(log10(partitions)) + 1`, as clip-retrieval pads.
            width: n_partitions.to_string().len(),
            options,
            n_pushed: 0,
            n_partitions: 0,
            partition: None,
        })
    }

    /// Adds a row: what it is called, its label where there is one, and its D numbers.
    ///
    /// # Errors
    /// The file system's; [`Error::Features`] for a row of another length, for one more than `n_rows`, and for numbers that
    /// the precision cannot hold.
    pub fn push(&mut self, name: &str, label: Option<&str>, row: &[f32]) -> Result<(), Error> {
        if row.len() != self.options.n_features {
            return Err(Error::Features(format!(
                "row {} has {} numbers and not {}",
                self.n_pushed,
                row.len(),
                self.options.n_features
            )));
        }
        if self.n_pushed >= self.options.n_rows {
            return Err(Error::Features(format!(
                "there are more rows than the {} that were said",
                self.options.n_rows
            )));
        }
        let partition = match &mut self.partition {
            Some(partition) => partition,
            empty => {
                let number = format!("{:0width$}", self.n_partitions, width = self.width);
                empty.insert(Partition::create(&self.folder, &number, &self.options)?)
            }
        };
        partition.push(name, label, row, self.n_pushed)?;
        self.n_pushed += 1;
        if partition.n_rows == self.options.partition_rows {
            self.close()?;
        }
        Ok(())
    }

    /// Writes the last partition; how many there are.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(mut self) -> Result<usize, Error> {
        self.close()?;
        Ok(self.n_partitions)
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some(partition) = self.partition.take() {
            partition.commit()?;
            self.n_partitions += 1;
        }
        Ok(())
    }
}

/// Two files that grow side by side.
struct Partition {
    embeddings: BufWriter<AtomicFile>,
    embeddings_path: PathBuf,
    metadata: SerializedFileWriter<AtomicFile>,
    metadata_path: PathBuf,
    options: WriteOptions,
    names: Vec<ByteArray>,
    labels: Vec<Option<ByteArray>>,
    n_rows: usize,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("path", &self.embeddings_path)
            .field("n_rows", &self.n_rows)
            .finish_non_exhaustive()
    }
}

impl Partition {
    fn create(folder: &Path, number: &str, options: &WriteOptions) -> Result<Partition, Error> {
        let name = options.modality.folder();
        let embeddings_path = folder.join(name).join(format!("{name}_{number}.npy"));
        let metadata_path = folder.join("metadata").join(format!("metadata_{number}.parquet"));
        let mut embeddings = AtomicFile::create(&embeddings_path, options.existing)?;
        // Room for the header; how many rows there are is known at the end.
        embeddings
            .write_all(&Partition::header(options, options.partition_rows))
            .map_err(FileError::at("write", &embeddings_path))?;
        let schema = format!(
            "message schema {{ REQUIRED BYTE_ARRAY {} (UTF8); OPTIONAL BYTE_ARRAY label (UTF8); }}",
            options.modality.name_column()
        );
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .build();
        let file = AtomicFile::create(&metadata_path, options.existing)?;
        let metadata = parse_message_type(&schema)
            .and_then(|schema| SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)))
            .map_err(|error| metadata_error(&metadata_path, &error))?;
        Ok(Partition {
            embeddings: BufWriter::with_capacity(1 << 16, embeddings),
            embeddings_path,
            metadata,
            metadata_path,
            options: options.clone(),
            names: Vec::new(),
            labels: Vec::new(),
            n_rows: 0,
        })
    }

    fn header(options: &WriteOptions, n_rows: usize) -> Vec<u8> {
        let descr = match options.precision {
            Precision::F16 => "<f2",
            Precision::F32 => "<f4",
        };
        header::write(descr, &[n_rows, options.n_features])
    }

    fn push(&mut self, name: &str, label: Option<&str>, row: &[f32], number: usize) -> Result<(), Error> {
        for &value in row {
            let written = match self.options.precision {
                Precision::F16 => {
                    let half = half::f16::from_f32(value);
                    if half.is_infinite() && value.is_finite() {
                        return Err(Error::Features(format!(
                            "row {number} holds {value}, which is beyond float16"
                        )));
                    }
                    self.embeddings.write_all(&half.to_le_bytes())
                }
                Precision::F32 => self.embeddings.write_all(&value.to_le_bytes()),
            };
            written.map_err(FileError::at("write", &self.embeddings_path))?;
        }
        self.names.push(name.as_bytes().to_vec().into());
        self.labels
            .push(label.map(|label| label.as_bytes().to_vec().into()));
        self.n_rows += 1;
        if self.names.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), Error> {
        let names = std::mem::take(&mut self.names);
        let labels = std::mem::take(&mut self.labels);
        let levels: Vec<i16> = labels.iter().map(|label| i16::from(label.is_some())).collect();
        let labels: Vec<ByteArray> = labels.into_iter().flatten().collect();
        let columns = [(&names, None), (&labels, Some(&levels[..]))];
        let mut write = || {
            let mut group = self.metadata.next_row_group()?;
            for (values, levels) in columns {
                if let Some(mut column) = group.next_column()? {
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(values, levels, None)?;
                    column.close()?;
                }
            }
            group.close()
        };
        write().map_err(|error| metadata_error(&self.metadata_path, &error))?;
        Ok(())
    }

    /// Completes both files and gives them their names, the features last: where they are, their metadata are.
    fn commit(mut self) -> Result<(), Error> {
        if !self.names.is_empty() {
            self.write_group()?;
        }
        let metadata = self
            .metadata
            .into_inner()
            .map_err(|error| metadata_error(&self.metadata_path, &error))?;
        let embeddings = self
            .embeddings
            .into_inner()
            .map_err(|error| FileError::at("write", &self.embeddings_path)(error.into_error()))?;
        let room = Partition::header(&self.options, self.options.partition_rows).len();
        let header = header::write_padded(&Partition::header(&self.options, self.n_rows), room);
        crate::data::positional::write_all_at(embeddings.file(), &header, 0)
            .map_err(FileError::at("write", &self.embeddings_path))?;
        metadata.commit()?;
        embeddings.commit()?;
        Ok(())
    }
}

fn metadata_error(path: &Path, error: &ParquetError) -> Error {
    Error::BadFile {
        path: path.to_owned(),
        reason: format!("it cannot be written: {error}"),
    }
}
