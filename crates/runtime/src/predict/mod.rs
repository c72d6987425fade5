//! What a head says of rows, written as they come: CSV, JSON lines or Parquet, told by the file's ending.
//!
//! Columns, in all three:
//!
//! - `name`, always;
//! - one class a row: `label` (empty where it is not known), `predicted`, `probability`, and for the next best `predicted_2`,
//!   `probability_2` and so on;
//! - several classes a row: `label` and `predicted` as JSON lists of classes, those over one half;
//! - numbers: one column for each output, and `<output>_target` where targets are known;
//! - with [`Detail::All`] of classes, `p_<class>` for each.
//!
//! JSON lines have the same but for what nests better: lists are lists, and probabilities are an object.

mod csv;
mod jsonl;
mod parquet;
mod rows;

use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;
use pth::{AtomicFile, Existing, FileError};

use crate::error::Error;
use crate::metrics::Judged;
use crate::metrics::sigmoid;
use crate::targets::Task;
pub use rows::{EachRow, NamedBy, Rows};

/// How much is written of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// This many classes, the likeliest first; at least one.
    Top(usize),
    /// The likeliest class, and the probability of every class.
    All,
}

/// What is known of a row beside the prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known<'k> {
    /// Nothing.
    Nothing,
    /// Its class.
    Class(u32),
    /// `[K]`: zeros and ones for several classes, numbers of a regression.
    Numbers(&'k [f32]),
}

/// What all rows have in common.
#[derive(Debug, Clone)]
pub struct Predictions {
    /// What the logits mean.
    pub task: Task,
    /// Names of the outputs, in order.
    pub outputs: Vec<String>,
    /// How much is written.
    pub detail: Detail,
}

/// What logits say.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Classes from the likeliest down, with their probabilities; as many as are asked for. Of several classes, those over
    /// one half in their own order. None of a regression.
    pub predicted: Vec<(usize, f32)>,
    /// Probabilities of all classes where they are asked for, or the numbers of a regression.
    pub all: Vec<f32>,
}

/// The kinds of files that predictions are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.csv`.
    Csv,
    /// `.jsonl` or `.ndjson`.
    Jsonl,
    /// `.parquet`.
    Parquet,
}

impl Format {
    /// By the file's ending.
    ///
    /// # Errors
    /// [`Error::Usage`] for another.
    pub fn of(path: &Path) -> Result<Format, Error> {
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        match ending.to_lowercase().as_str() {
            "csv" => Ok(Format::Csv),
            "jsonl" | "ndjson" => Ok(Format::Jsonl),
            "parquet" => Ok(Format::Parquet),
            _ => Err(Error::Usage(format!(
                "`{}` is neither .csv, .jsonl nor .parquet",
                path.display()
            ))),
        }
    }
}

/// One row, ready to be written.
#[derive(Debug)]
struct Row<'r> {
    name: &'r str,
    known: Known<'r>,
    said: Prediction,
}

/// Writes predictions row by row; the file appears whole when it is finished, and not at all when it is dropped before.
pub struct PredictionWriter {
    path: PathBuf,
    head: Predictions,
    sink: Sink,
    n_rows: usize,
}

enum Sink {
    Csv(csv::CsvSink),
    Jsonl(jsonl::JsonlSink),
    Parquet(Box<parquet::ParquetSink>),
}

impl std::fmt::Debug for PredictionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PredictionWriter")
            .field("path", &self.path)
            .field("n_rows", &self.n_rows)
            .finish_non_exhaustive()
    }
}

impl PredictionWriter {
    /// Begins a file of the format that its ending tells.
    ///
    /// # Errors
    /// As [`Format::of`]; the file exists and `existing` refuses; the file system's.
    pub fn create(path: &Path, head: Predictions, existing: Existing) -> Result<PredictionWriter, Error> {
        let format = Format::of(path)?;
        let file = AtomicFile::create(path, existing)?;
        let sink = match format {
            Format::Csv => csv::CsvSink::new(file, &head).map(Sink::Csv),
            Format::Jsonl => Ok(Sink::Jsonl(jsonl::JsonlSink::new(file))),
            Format::Parquet => {
                parquet::ParquetSink::new(file, &head).map(|sink| Sink::Parquet(Box::new(sink)))
            }
        };
        Ok(PredictionWriter {
            path: path.to_owned(),
            sink: sink.map_err(|fault| fault.at(path))?,
            head,
            n_rows: 0,
        })
    }

    /// Adds a row: its name, what is known of it, and its logits `[C]`.
    ///
    /// # Errors
    /// The file system's; [`Error::Features`] for another number of logits, or what is known being of another task.
    pub fn push(&mut self, name: &str, known: Known<'_>, logits: &[f32]) -> Result<(), Error> {
        let row = self.head.judge(name, known, logits)?;
        let pushed = match &mut self.sink {
            Sink::Csv(sink) => sink.push(&self.head, &row),
            Sink::Jsonl(sink) => sink.push(&self.head, &row),
            Sink::Parquet(sink) => sink.push(&self.head, &row),
        };
        pushed.map_err(|fault| fault.at(&self.path))?;
        self.n_rows += 1;
        Ok(())
    }

    /// Makes the file durable and gives it its name; how many rows it has.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> Result<usize, Error> {
        let file = match self.sink {
            Sink::Csv(sink) => sink.finish(),
            Sink::Jsonl(sink) => sink.finish(),
            Sink::Parquet(sink) => sink.finish(),
        };
        file.map_err(|fault| fault.at(&self.path))?.commit()?;
        Ok(self.n_rows)
    }
}

impl Predictions {
    /// What logits `[C]` say, as much of it as is asked for.
    ///
    /// # Errors
    /// [`Error::Features`] for another number of them.
    pub fn of(&self, logits: &[f32]) -> Result<Prediction, Error> {
        let n_outputs = self.outputs.len();
        if logits.len() != n_outputs || n_outputs == 0 {
            let text = format!("{} logits for {n_outputs} outputs", logits.len());
            return Err(Error::Features(text));
        }
        let (predicted, all) = match self.task {
            Task::SingleLabel => {
                let judged = Judged::new(logits);
                let probability = |class: usize| judged.probability(class) as f32;
                let all = match self.detail {
                    Detail::All => (0..n_outputs).map(probability).collect(),
                    Detail::Top(_) => Vec::new(),
                };
                let top = top(logits, self.n_top());
                (
                    top.into_iter().map(|class| (class, probability(class))).collect(),
                    all,
                )
            }
            Task::MultiLabel => {
                let all = logits.iter().map(|logit| sigmoid(f64::from(*logit)) as f32);
                let all: Vec<f32> = all.collect();
                let has = |class: &usize| logits[*class] > 0.0;
                let predicted = (0..n_outputs).filter(has).map(|class| (class, all[class]));
                (predicted.collect(), all)
            }
            Task::Regression => (Vec::new(), logits.to_vec()),
        };
        Ok(Prediction { predicted, all })
    }

    fn judge<'r>(&self, name: &'r str, known: Known<'r>, logits: &[f32]) -> Result<Row<'r>, Error> {
        let n_outputs = self.outputs.len();
        let wrong = |text: String| Err(Error::Features(format!("`{name}`: {text}")));
        let said = match self.of(logits) {
            Err(Error::Features(text)) => return wrong(text),
            said => said?,
        };
        match (known, self.task) {
            (Known::Nothing, _) => {}
            (Known::Class(class), Task::SingleLabel) if (class as usize) < n_outputs => {}
            (Known::Class(class), Task::SingleLabel) => {
                return wrong(format!("label {class}, and there are {n_outputs} classes"));
            }
            (Known::Numbers(numbers), Task::MultiLabel | Task::Regression) if numbers.len() == n_outputs => {}
            (Known::Numbers(_), Task::SingleLabel) => {
                return wrong("numbers where a row has one class".to_owned());
            }
            (Known::Numbers(numbers), _) => {
                return wrong(format!("{} targets for {n_outputs} outputs", numbers.len()));
            }
            (Known::Class(_), _) => return wrong("one class where rows have numbers".to_owned()),
        }
        Ok(Row { name, known, said })
    }

    /// Classes that are named in each row of a task with one class.
    fn n_top(&self) -> usize {
        match self.detail {
            Detail::Top(k) => k.clamp(1, self.outputs.len().max(1)),
            Detail::All => 1,
        }
    }

    /// The columns, for files that have such.
    fn columns(&self) -> Vec<Column> {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            kind,
        };
        let mut columns = vec![column("name", Kind::Text)];
        match self.task {
            Task::SingleLabel => {
                columns.push(column("label", Kind::MaybeText));
                for rank in 1..=self.n_top() {
                    let suffix = if rank == 1 {
                        String::new()
                    } else {
                        format!("_{rank}")
                    };
                    columns.push(column(&format!("predicted{suffix}"), Kind::Text));
                    columns.push(column(&format!("probability{suffix}"), Kind::Number));
                }
            }
            Task::MultiLabel => {
                columns.push(column("label", Kind::MaybeText));
                columns.push(column("predicted", Kind::Text));
            }
            Task::Regression => {
                let numbers = self.outputs.iter().map(|output| column(output, Kind::Number));
                columns.extend(numbers);
                let targets = self.outputs.iter();
                let targets = targets.map(|output| column(&format!("{output}_target"), Kind::MaybeNumber));
                columns.extend(targets);
            }
        }
        if self.detail == Detail::All && self.task != Task::Regression {
            let classes = self.outputs.iter();
            columns.extend(classes.map(|class| column(&format!("p_{class}"), Kind::Number)));
        }
        columns
    }

    /// What the columns hold for a row, in their order.
    fn cells(&self, row: &Row<'_>) -> Vec<Cell> {
        let mut cells = vec![Cell::Text(row.name.to_owned())];
        match self.task {
            Task::SingleLabel => {
                cells.push(match row.known {
                    Known::Class(class) => Cell::Text(self.outputs[class as usize].clone()),
                    _ => Cell::Empty,
                });
                for &(class, probability) in &row.said.predicted {
                    cells.push(Cell::Text(self.outputs[class].clone()));
                    cells.push(Cell::Number(probability));
                }
            }
            Task::MultiLabel => {
                cells.push(match self.known_classes(row) {
                    Some(classes) => Cell::Text(json_list(&classes)),
                    None => Cell::Empty,
                });
                let predicted: Vec<&str> = row
                    .said
                    .predicted
                    .iter()
                    .map(|(class, _)| self.name(*class))
                    .collect();
                cells.push(Cell::Text(json_list(&predicted)));
            }
            Task::Regression => {
                cells.extend(row.said.all.iter().map(|value| Cell::Number(*value)));
                let target = |at: usize| match row.known {
                    Known::Numbers(numbers) => Cell::Number(numbers[at]),
                    _ => Cell::Empty,
                };
                cells.extend((0..self.outputs.len()).map(target));
                return cells;
            }
        }
        if self.detail == Detail::All {
            cells.extend(row.said.all.iter().map(|probability| Cell::Number(*probability)));
        }
        cells
    }

    fn name(&self, class: usize) -> &str {
        &self.outputs[class]
    }

    /// The classes that a row is known to have, where anything is known.
    fn known_classes(&self, row: &Row<'_>) -> Option<Vec<&str>> {
        let Known::Numbers(numbers) = row.known else {
            return None;
        };
        let has = self.outputs.iter().zip(numbers).filter(|(_, has)| **has > 0.5);
        Some(has.map(|(class, _)| class.as_str()).collect())
    }
}

/// The `k` classes with the highest logits, in falling order; of equal ones the first, as the accuracy counts it.
fn top(logits: &[f32], k: usize) -> Vec<usize> {
    // Zero of either sign is zero.
    let falling = |a: &usize, b: &usize| (logits[*b] + 0.0).total_cmp(&(logits[*a] + 0.0)).then(a.cmp(b));
    let mut classes: Vec<usize> = (0..logits.len()).collect();
    if k < classes.len() {
        classes.select_nth_unstable_by(k - 1, falling);
        classes.truncate(k);
    }
    classes.sort_unstable_by(falling);
    classes
}

fn json_list(names: &[&str]) -> String {
    serde_json::to_string(names).expect("strings are JSON")
}

struct Column {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    MaybeText,
    Number,
    MaybeNumber,
}

enum Cell {
    Text(String),
    Number(f32),
    Empty,
}

/// What a sink can run into.
enum Fault {
    Io(std::io::Error),
    Parquet(ParquetError),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault::Io(error)
    }
}

impl From<ParquetError> for Fault {
    fn from(error: ParquetError) -> Fault {
        Fault::Parquet(error)
    }
}

impl Fault {
    fn at(self, path: &Path) -> Error {
        match self {
            Fault::Io(error) => FileError::at("write", path)(error).into(),
            Fault::Parquet(error) => Error::BadFile {
                path: path.to_owned(),
                reason: format!("it cannot be written: {error}"),
            },
        }
    }
}

#[cfg(test)]
mod tests;
