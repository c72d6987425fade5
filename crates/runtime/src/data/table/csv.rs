//! CSV and TSV record by record, with bounded buffers and each record's place in the file.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

/// A record's bytes and its fields' ends stay below this: an open quote would make one record of the whole file.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// Reads records one after another.
pub(super) struct Records<R> {
    input: R,
    core: csv_core::Reader,
    fields: Vec<u8>,
    ends: Vec<usize>,
    n_fields: usize,
    /// Bytes of the file before what is read next.
    at: u64,
    /// The line that is read next, from 1.
    line: u64,
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) line: u64,
}

impl<R: BufRead> Records<R> {
    /// `at` and `line` are where `input` begins.
    pub(super) fn new(input: R, delimiter: u8, at: u64) -> Records<R> {
        Records {
            input,
            core: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            fields: vec![0; 1 << 10],
            ends: vec![0; 64],
            n_fields: 0,
            at,
            line: 1,
        }
    }

    /// Reads the next record; its fields are then [`field`](Records::field)s.
    ///
    /// # Errors
    /// The file's, and `InvalidData` for a record that is too long.
    pub(super) fn next(&mut self) -> io::Result<Option<Span>> {
        self.skip_line_ends()?;
        let (at, line) = (self.at, self.line);
        let (mut n_bytes, mut n_ends) = (0, 0);
        loop {
            let input = self.input.fill_buf()?;
            let (result, n_in, n_out, n_new_ends) =
                self.core
                    .read_record(input, &mut self.fields[n_bytes..], &mut self.ends[n_ends..]);
            self.line += input[..n_in].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.input.consume(n_in);
            self.at += n_in as u64;
            n_bytes += n_out;
            n_ends += n_new_ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => grow(&mut self.fields, line)?,
                ReadRecordResult::OutputEndsFull => grow(&mut self.ends, line)?,
                ReadRecordResult::Record => {
                    self.n_fields = n_ends;
                    let len = self.at - at;
                    return Ok(Some(Span { at, len, line }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// How many fields the last record has.
    pub(super) fn n_fields(&self) -> usize {
        self.n_fields
    }

    /// A field of the last record.
    pub(super) fn field(&self, idx: usize) -> Option<&[u8]> {
        let end = *self.ends[..self.n_fields].get(idx)?;
        let start = idx.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.fields.get(start..end)
    }

    /// Blank lines are no records.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            let input = self.input.fill_buf()?;
            let n = input
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                .count();
            let is_all = n == input.len() && n > 0;
            self.line += input[..n].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.at += n as u64;
            self.input.consume(n);
            if !is_all {
                return Ok(());
            }
        }
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, line: u64) -> io::Result<()> {
    if buffer.len() >= MAX_RECORD_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "line {line} begins a record of more than {} MiB; is a quote left open?",
                MAX_RECORD_BYTES >> 20
            ),
        ));
    }
    buffer.resize((buffer.len() * 2).min(MAX_RECORD_BYTES), T::default());
    Ok(())
}

/// The delimiter that a header line has: a comma, unless there is none and one of the others is.
pub(super) fn delimiter_of(header: &[u8], is_tsv: bool) -> u8 {
    let line = header.split(|byte| *byte == b'\n').next().unwrap_or_default();
    match is_tsv {
        true => b'\t',
        false if line.contains(&b',') => b',',
        false if line.contains(&b'\t') => b'\t',
        false if line.contains(&b';') => b';',
        false => b',',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_parse(text: &[u8], expected: &[(u64, &[&str])]) {
        // Chopped reads equal whole ones.
        for capacity in [1, 2, 3, 1 << 16] {
            let mut records = Records::new(io::BufReader::with_capacity(capacity, text), b',', 0);
            let mut seen = Vec::new();
            while let Some(span) = records.next().unwrap() {
                let field = |idx| String::from_utf8(records.field(idx).unwrap().to_vec()).unwrap();
                let fields: Vec<String> = (0..records.n_fields()).map(field).collect();
                // The span alone gives the same record.
                let part = &text[span.at as usize..][..span.len as usize];
                let mut again = Records::new(part, b',', 0);
                again.next().unwrap().unwrap();
                assert_eq!(again.n_fields(), fields.len());
                for (idx, field) in fields.iter().enumerate() {
                    assert_eq!(again.field(idx), Some(field.as_bytes()));
                }
                assert_eq!(records.field(fields.len()), None);
                seen.push((span.line, fields));
            }
            let expected: Vec<(u64, Vec<String>)> = expected
                .iter()
                .map(|(line, fields)| (*line, fields.iter().map(|&field| field.to_owned()).collect()))
                .collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn records_have_their_places() {
        check_parse(b"a,b\n1,2\n", &[(1, &["a", "b"]), (2, &["1", "2"])]);
        check_parse(
            b"a\r\n\r\n\"x\r\ny\",\"say \"\"so\"\"\"\r\nlast",
            &[(1, &["a"]), (3, &["x\r\ny", "say \"so\""]), (5, &["last"])],
        );
        check_parse(b"", &[]);
        check_parse(b"\n\n", &[]);
        check_parse(b",\n", &[(1, &["", ""])]);
    }

    #[test]
    fn an_open_quote_ends_at_a_bound() {
        let mut text = b"a\n\"".to_vec();
        text.resize(MAX_RECORD_BYTES + 100, b'x');
        let mut records = Records::new(&text[..], b',', 0);
        records.next().unwrap();
        let error = records.next().unwrap_err().to_string();
        assert_eq!(
            error,
            "line 2 begins a record of more than 16 MiB; is a quote left open?"
        );
    }

    #[test]
    fn the_header_shows_the_delimiter() {
        assert_eq!(delimiter_of(b"a,b;c\nx\ty", false), b',');
        assert_eq!(delimiter_of(b"a;b\n1,2", false), b';');
        assert_eq!(delimiter_of(b"a\tb", false), b'\t');
        assert_eq!(delimiter_of(b"a,b", true), b'\t');
        assert_eq!(delimiter_of(b"a", false), b',');
    }
}
