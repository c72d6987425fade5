//! Answers on their way: into a file that appears whole, or onto stdout as they come.

use std::io::{self, Write};
use std::path::PathBuf;

use pth::FileError;
use runtime::predict::{Detail, Known, PredictionWriter, Predictions};
use runtime::{Error, Task};
use serde::{Serialize, Serializer};

use super::PredictArgs;
use crate::text;
use crate::writing::existing;

/// Text that is held back at most, in bytes.
const MAX_HELD: usize = 1 << 16;

/// Where answers go.
pub(super) enum Answers {
    /// A table, finished at the end.
    File {
        writer: PredictionWriter,
        path: PathBuf,
        is_json: bool,
    },
    /// Lines on stdout.
    Lines(Lines),
}

/// Lines for stdout that are not written yet.
pub(super) struct Lines {
    head: Predictions,
    is_json: bool,
    /// What a row's name is called.
    key: &'static str,
    held: String,
    /// Whether who read them has gone away (`| head`): no error, and no more work.
    is_gone: bool,
}

impl Answers {
    /// A file is begun before the work, so that a place where it cannot be is said first.
    pub(super) fn begin(args: &PredictArgs, head: Predictions) -> anyhow::Result<Answers> {
        Ok(match &args.output {
            Some(path) => Answers::File {
                writer: PredictionWriter::create(path, head, existing(args.force))?,
                path: path.clone(),
                is_json: args.json,
            },
            None => Answers::Lines(Lines {
                head,
                is_json: args.json,
                key: if args.features.is_some() { "name" } else { "path" },
                held: String::new(),
                is_gone: false,
            }),
        })
    }

    /// Adds a row.
    pub(super) fn push(&mut self, name: &str, known: Known<'_>, logits: &[f32]) -> Result<(), Error> {
        match self {
            Answers::File { writer, .. } => writer.push(name, known, logits),
            Answers::Lines(lines) => {
                lines.add(name, known, logits)?;
                match lines.held.len() < MAX_HELD {
                    true => Ok(()),
                    false => lines.write(),
                }
            }
        }
    }

    /// Lets nothing wait that can be seen already.
    pub(super) fn hand_on(&mut self) -> Result<(), Error> {
        match self {
            Answers::File { .. } => Ok(()),
            Answers::Lines(lines) => lines.write(),
        }
    }

    /// Ends the job: a file gets its name where the work was done, and is gone where it was not.
    pub(super) fn finish(self, result: Result<(), Error>, n_left_out: usize) -> anyhow::Result<()> {
        if n_left_out > 0 && result.is_ok() {
            text::remark(&format!("{n_left_out} could not be read and are left out"));
        }
        match self {
            Answers::File {
                writer,
                path,
                is_json,
            } => {
                result.map_err(|error| match error {
                    // Of a table nothing is kept.
                    Error::Interrupted { .. } => surgery::Error::Interrupted.into(),
                    other => anyhow::Error::from(other),
                })?;
                let n_rows = writer.finish()?;
                if is_json {
                    return text::json(&serde_json::json!({
                        "file": path.to_string_lossy(),
                        "rows": n_rows,
                        "left_out": n_left_out,
                    }));
                }
                let rows = text::grouped(n_rows);
                text::print(&format!("wrote {}: {rows} rows\n", path.display()))
            }
            Answers::Lines(mut lines) => {
                let written = match lines.is_gone {
                    true => return Ok(()),
                    false => lines.write(),
                };
                result?;
                if lines.is_gone { Ok(()) } else { Ok(written?) }
            }
        }
    }
}

impl Lines {
    fn add(&mut self, name: &str, known: Known<'_>, logits: &[f32]) -> Result<(), Error> {
        let outputs = &self.head.outputs;
        let said = self.head.of(logits)?;
        let mut classes = said.predicted;
        if self.head.detail == Detail::All && self.head.task != Task::Regression {
            classes = said.all.iter().copied().enumerate().collect();
            // Stable: of equal ones the first, as the accuracy counts it.
            classes.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
        if self.is_json {
            let is_regression = self.head.task == Task::Regression;
            let line = Line {
                path: (self.key == "path").then_some(name),
                name: (self.key == "name").then_some(name),
                label: match known {
                    Known::Class(class) => outputs.get(class as usize).map(String::as_str),
                    _ => None,
                },
                predictions: (!is_regression).then(|| {
                    let classes = classes.iter();
                    let answers = classes.map(|&(class, probability)| Answer {
                        class: &outputs[class],
                        probability,
                    });
                    answers.collect()
                }),
                values: is_regression.then_some(Values(outputs, &said.all)),
            };
            self.held += &serde_json::to_string(&line).expect("plain data is JSON");
        } else {
            self.held += &text::plain(name);
            for (class, probability) in classes {
                self.held += &format!("\t{}\t{probability:.4}", text::plain(&outputs[class]));
            }
            if self.head.task == Task::Regression {
                for (output, value) in outputs.iter().zip(&said.all) {
                    self.held += &format!("\t{}\t{value}", text::plain(output));
                }
            }
        }
        self.held.push('\n');
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        let written = out.write_all(self.held.as_bytes()).and_then(|()| out.flush());
        self.held.clear();
        written.map_err(|error| {
            self.is_gone = error.kind() == io::ErrorKind::BrokenPipe;
            FileError::at("write", "stdout".as_ref())(error).into()
        })
    }
}

/// A row as JSON.
#[derive(Serialize)]
struct Line<'l> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predictions: Option<Vec<Answer<'l>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Values<'l>>,
}

/// A class of a row.
#[derive(Serialize)]
struct Answer<'l> {
    class: &'l str,
    probability: f32,
}

/// A regression's outputs by name.
struct Values<'l>(&'l [String], &'l [f32]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(self.1))
    }
}
