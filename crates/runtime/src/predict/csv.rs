//! Comma-separated values as RFC 4180 has them: a header, quotes where they are needed, `\r\n` inside quotes only.

use std::io::{BufWriter, Write};

use pth::AtomicFile;

use super::{Cell, Fault, Predictions, Row};

pub(super) struct CsvSink {
    out: BufWriter<AtomicFile>,
}

impl CsvSink {
    pub(super) fn new(file: AtomicFile, head: &Predictions) -> Result<CsvSink, Fault> {
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let names: Vec<String> = head
            .columns()
            .into_iter()
            .map(|column| quoted(&column.name))
            .collect();
        writeln!(out, "{}", names.join(","))?;
        Ok(CsvSink { out })
    }

    pub(super) fn push(&mut self, head: &Predictions, row: &Row<'_>) -> Result<(), Fault> {
        for (at, cell) in head.cells(row).into_iter().enumerate() {
            if at > 0 {
                self.out.write_all(b",")?;
            }
            match cell {
                Cell::Text(text) => self.out.write_all(quoted(&text).as_bytes())?,
                Cell::Number(value) => write!(self.out, "{value}")?,
                Cell::Empty => {}
            }
        }
        self.out.write_all(b"\n")?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<AtomicFile, Fault> {
        self.out
            .into_inner()
            .map_err(|error| Fault::Io(error.into_error()))
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) || text != text.trim() {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
