//! JSON lines: one object per line, each at its place in the file.

use std::io::{self, BufRead, Read};

use super::csv::{MAX_RECORD_BYTES, Span};

/// Reads lines one after another.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    at: u64,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, at: u64) -> Lines<R> {
        Lines {
            input,
            line: Vec::new(),
            at,
            number: 0,
        }
    }

    /// The next line that is not blank, without its end.
    ///
    /// # Errors
    /// The file's, and `InvalidData` for a line that is too long.
    pub(super) fn next(&mut self) -> io::Result<Option<(Span, &[u8])>> {
        loop {
            self.line.clear();
            let n = (&mut self.input)
                .take(MAX_RECORD_BYTES as u64 + 1)
                .read_until(b'\n', &mut self.line)?;
            if n == 0 {
                return Ok(None);
            }
            self.number += 1;
            if n > MAX_RECORD_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "line {} is longer than {} MiB",
                        self.number,
                        MAX_RECORD_BYTES >> 20
                    ),
                ));
            }
            self.at += n as u64;
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let n = self.line.len() as u64;
        let span = Span {
            at: self.at - n,
            len: n,
            line: self.number,
        };
        Ok(Some((span, self.line.trim_ascii())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_places() {
        let text = b"{\"a\":1}\n\n  \r\n{\"a\":2}\r\n{}";
        for capacity in [1, 3, 1 << 10] {
            let mut lines = Lines::new(io::BufReader::with_capacity(capacity, &text[..]), 0);
            let mut seen = Vec::new();
            while let Some((span, line)) = lines.next().unwrap() {
                let part = &text[span.at as usize..][..span.len as usize];
                assert_eq!(part.trim_ascii(), line);
                seen.push((span.line, String::from_utf8(line.to_vec()).unwrap()));
            }
            assert_eq!(
                seen,
                [
                    (1, "{\"a\":1}".to_owned()),
                    (4, "{\"a\":2}".to_owned()),
                    (5, "{}".to_owned())
                ]
            );
        }
        let long = vec![b' '; MAX_RECORD_BYTES + 2];
        let error = Lines::new(&long[..], 0).next().unwrap_err().to_string();
        assert_eq!(error, "line 1 is longer than 16 MiB");
    }
}
