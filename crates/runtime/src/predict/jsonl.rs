//! A JSON object per line.

use std::io::{BufWriter, Write};

use pth::AtomicFile;
use serde_json::{Map, Value, json};

use super::{Detail, Fault, Known, Predictions, Row};
use crate::targets::Task;

pub(super) struct JsonlSink {
    out: BufWriter<AtomicFile>,
}

impl JsonlSink {
    pub(super) fn new(file: AtomicFile) -> JsonlSink {
        JsonlSink {
            out: BufWriter::with_capacity(1 << 16, file),
        }
    }

    pub(super) fn push(&mut self, head: &Predictions, row: &Row<'_>) -> Result<(), Fault> {
        writeln!(self.out, "{}", object(head, row))?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<AtomicFile, Fault> {
        self.out
            .into_inner()
            .map_err(|error| Fault::Io(error.into_error()))
    }
}

fn object(head: &Predictions, row: &Row<'_>) -> Value {
    let by_output = |values: &[f32]| -> Value {
        let pairs = head.outputs.iter().zip(values);
        Value::Object(
            pairs
                .map(|(output, value)| (output.clone(), number(*value)))
                .collect::<Map<_, _>>(),
        )
    };
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("name", row.name.into());
    match head.task {
        Task::SingleLabel => {
            let label = match row.known {
                Known::Class(class) => head.name(class as usize).into(),
                _ => Value::Null,
            };
            put("label", label);
            if let Some(&(class, probability)) = row.said.predicted.first() {
                put("predicted", head.name(class).into());
                put("probability", number(probability));
            }
            if row.said.predicted.len() > 1 {
                let top = row.said.predicted.iter();
                let top =
                    top.map(|&(class, p)| json!({ "class": head.name(class), "probability": number(p) }));
                put("top", top.collect());
            }
        }
        Task::MultiLabel => {
            put("label", json!(head.known_classes(row)));
            put(
                "predicted",
                row.said
                    .predicted
                    .iter()
                    .map(|&(class, _)| head.name(class))
                    .collect(),
            );
        }
        Task::Regression => {
            put("predicted", by_output(&row.said.all));
            let target = match row.known {
                Known::Numbers(numbers) => by_output(numbers),
                _ => Value::Null,
            };
            put("target", target);
        }
    }
    if head.detail == Detail::All && head.task != Task::Regression {
        put("probabilities", by_output(&row.said.all));
    }
    Value::Object(object)
}

/// The shortest decimal that float32 reads back as the same, and not what float64 makes of it.
fn number(value: f32) -> Value {
    value
        .to_string()
        .parse::<serde_json::Number>()
        .map_or(Value::Null, Value::Number)
}
