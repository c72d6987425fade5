//! Manifests: a row per sample in CSV, TSV or JSON lines, read in one pass.

mod csv;
mod files;
pub(super) mod json;
mod jsonl;
mod texts;

use std::borrow::Cow;
use std::io::{BufRead, BufReader};
use std::path::Path;

use csv::{Records, Span, delimiter_of};
pub(super) use files::FileRows;
use json::{object, text};
use jsonl::Lines;
use pth::FileError;
use texts::TextCell;
pub(super) use texts::Texts;

use super::columns::{Found, list};
use super::gather::Gather;
use super::listing::Place;
use super::options::{Unlabelled, Wanted};
use super::split::Tag;
use super::{Backing, Parts, Request, bad, positional};
use crate::error::Error;

/// How a manifest is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Csv,
    Tsv,
    Jsonl,
    /// A text per line.
    Lines,
}

/// A manifest that is one data set.
pub(super) fn open(source: &Path, kind: Kind, request: &Request<'_>) -> Result<Parts, Error> {
    let root = source.parent().map(Path::to_owned).unwrap_or_default();
    let mut gather = Gather::new(source, request);
    let mut rows = FileRows::new(&root, request, false);
    let name = super::file_name(source);
    let table = Table {
        path: source,
        name: &name,
        below: "",
        tag: Tag::Unsaid,
        kind,
    };
    let texts = table.gather(request, &mut gather, &mut rows)?;
    let gathered = gather.finish()?;
    let backing = match texts {
        Some(cell) => Backing::Texts(Texts::new(source, cell)),
        None => rows.finish(gathered.kept.as_deref()),
    };
    Ok(Parts::new(gathered, backing))
}

/// A `metadata.csv` or `metadata.jsonl` of an image folder; `below` is the folder it is in.
pub(super) fn add_metadata(
    path: &Path,
    below: &str,
    kind: Kind,
    tag: Tag,
    request: &Request<'_>,
    gather: &mut Gather<'_>,
    rows: &mut FileRows,
) -> Result<(), Error> {
    let name = format!("{below}{}", super::file_name(path));
    let table = Table {
        path,
        name: &name,
        below,
        tag,
        kind,
    };
    match table.gather(request, gather, rows)? {
        None => Ok(()),
        Some(_) => Err(bad(path, "it has no column of file names")),
    }
}

/// The columns of a manifest, or the keys of its first object; none where it has none.
pub(super) fn column_names(path: &Path, kind: Kind) -> Vec<String> {
    let Ok(file) = positional::open_regular(path) else {
        return Vec::new();
    };
    let mut input = BufReader::with_capacity(1 << 16, file);
    let Ok(head) = input.fill_buf() else {
        return Vec::new();
    };
    let delimiter = delimiter_of(head, kind == Kind::Tsv);
    if head.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    match kind {
        Kind::Csv | Kind::Tsv => {
            let mut records = Records::new(input, delimiter, 0);
            match records.next() {
                Ok(Some(_)) => (0..records.n_fields())
                    .filter_map(|at| Some(String::from_utf8_lossy(records.field(at)?).into_owned()))
                    .collect(),
                _ => Vec::new(),
            }
        }
        Kind::Jsonl => match Lines::new(input, 0).next() {
            Ok(Some((_, line))) => object(line)
                .map(|object| object.keys().cloned().collect())
                .unwrap_or_default(),
            _ => Vec::new(),
        },
        Kind::Lines => Vec::new(),
    }
}

/// A manifest file.
struct Table<'t> {
    path: &'t Path,
    /// What rows are called by.
    name: &'t str,
    /// The folder that paths in it are below.
    below: &'t str,
    /// The split of rows that name none.
    tag: Tag,
    kind: Kind,
}

/// The cells of a row that matter.
struct Row<'r> {
    path: Option<Cow<'r, str>>,
    label: Option<Cow<'r, str>>,
    text: Option<Cow<'r, str>>,
    split: Option<Cow<'r, str>>,
    id: Option<Cow<'r, str>>,
}

impl Table<'_> {
    /// Adds all rows; the cell of the text where the samples are texts.
    fn gather(
        &self,
        request: &Request<'_>,
        gather: &mut Gather<'_>,
        rows: &mut FileRows,
    ) -> Result<Option<TextCell>, Error> {
        let file = positional::open_regular(self.path).map_err(|reason| bad(self.path, reason))?;
        let mut input = BufReader::with_capacity(1 << 16, file);
        let head = input.fill_buf().map_err(FileError::at("read", self.path))?;
        let start = match head {
            [] => return Err(bad(self.path, "the file is empty")),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                return Err(bad(self.path, "it is UTF-16; save it as UTF-8"));
            }
            [0x1f, 0x8b, ..] => return Err(bad(self.path, "it is compressed; unpack it first")),
            [0xef, 0xbb, 0xbf, ..] => 3,
            _ if head.iter().take(1 << 12).any(|byte| *byte == 0) => {
                return Err(bad(self.path, "it is no text"));
            }
            _ => 0,
        };
        let delimiter = delimiter_of(head, self.kind == Kind::Tsv);
        input.consume(start);
        match self.kind {
            Kind::Csv | Kind::Tsv => self.gather_csv(input, delimiter, start as u64, request, gather, rows),
            Kind::Jsonl => self.gather_json(input, start as u64, request, gather, rows),
            Kind::Lines => self.gather_lines(input, start as u64, request, gather),
        }
    }

    fn gather_csv(
        &self,
        input: impl BufRead,
        delimiter: u8,
        start: u64,
        request: &Request<'_>,
        gather: &mut Gather<'_>,
        rows: &mut FileRows,
    ) -> Result<Option<TextCell>, Error> {
        let mut records = Records::new(input, delimiter, start);
        let header = records.next().map_err(|error| self.io(error))?;
        let header: Option<Vec<String>> = header.map_or(Some(Vec::new()), |_| {
            (0..records.n_fields())
                .map(|at| String::from_utf8(records.field(at)?.to_vec()).ok())
                .collect()
        });
        let Some(header) = header else {
            return Err(bad(self.path, "line 1 is not UTF-8"));
        };
        let names: Vec<&str> = header.iter().map(String::as_str).collect();
        let (found, is_text) = self.plan(&names, request)?;
        while let Some(span) = records.next().map_err(|error| self.io(error))? {
            if records.n_fields() != header.len() {
                let (n, wanted) = (records.n_fields(), header.len());
                let fields = if n == 1 { "field" } else { "fields" };
                gather.leave_out(
                    self.at_line(span.line),
                    format!("the row has {n} {fields}, and the header {wanted}"),
                );
                continue;
            }
            let cell = |at: Option<usize>| match at.and_then(|at| records.field(at)) {
                None | Some([]) => Ok(None),
                Some(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(Some(Cow::Borrowed(text))),
                    Err(_) => Err("it is not UTF-8".to_owned()),
                },
            };
            self.add(row(&found, cell), is_text, span, gather, rows)?;
        }
        Ok(found
            .text
            .filter(|_| is_text)
            .map(|column| TextCell::Csv { delimiter, column }))
    }

    fn gather_json(
        &self,
        input: impl BufRead,
        start: u64,
        request: &Request<'_>,
        gather: &mut Gather<'_>,
        rows: &mut FileRows,
    ) -> Result<Option<TextCell>, Error> {
        let mut lines = Lines::new(input, start);
        // The first object's keys are the columns.
        let mut columns: Option<(Vec<String>, Found, bool)> = None;
        while let Some((span, line)) = lines.next().map_err(|error| self.io(error))? {
            if columns.is_none() && line.first() == Some(&b'[') {
                return Err(bad(
                    self.path,
                    "it is a JSON list; write one object per line instead",
                ));
            }
            let object = match object(line) {
                Ok(object) => object,
                Err(reason) => {
                    gather.leave_out(self.at_line(span.line), reason);
                    continue;
                }
            };
            if columns.is_none() {
                let names: Vec<&str> = object.keys().map(String::as_str).collect();
                let (found, is_text) = self.plan(&names, request)?;
                columns = Some((object.keys().cloned().collect(), found, is_text));
            }
            let Some((keys, found, is_text)) = &columns else {
                continue;
            };
            let cell = |at: Option<usize>| text(at.and_then(|at| object.get(&keys[at])));
            self.add(row(found, cell), *is_text, span, gather, rows)?;
        }
        Ok(columns.and_then(|(mut keys, found, is_text)| {
            let key = found.text.filter(|_| is_text).map(|at| keys.swap_remove(at))?;
            Some(TextCell::Json { key })
        }))
    }

    fn gather_lines(
        &self,
        input: impl BufRead,
        start: u64,
        request: &Request<'_>,
        gather: &mut Gather<'_>,
    ) -> Result<Option<TextCell>, Error> {
        if request.options.wanted == Wanted::Pictures {
            return Err(bad(self.path, "it holds texts, and pictures are wanted"));
        }
        if request.options.unlabelled == Unlabelled::LeaveOut {
            return Err(bad(self.path, "texts on lines have no labels"));
        }
        let mut lines = Lines::new(input, start);
        while let Some((span, line)) = lines.next().map_err(|error| self.io(error))? {
            if std::str::from_utf8(line).is_err() {
                gather.leave_out(self.at_line(span.line), "it is not UTF-8");
                continue;
            }
            self.add_text(None, None, self.tag, span, gather)?;
        }
        Ok(Some(TextCell::Line))
    }

    /// Which columns serve for what, and whether the samples are texts.
    fn plan(&self, names: &[&str], request: &Request<'_>) -> Result<(Found, bool), Error> {
        let found = Found::among(names, &request.options.columns).map_err(|reason| bad(self.path, reason))?;
        let is_text = match (request.options.wanted, found.path, found.text) {
            (Wanted::Auto | Wanted::Pictures, Some(_), _) => false,
            (Wanted::Auto | Wanted::Texts, _, Some(_)) => true,
            (Wanted::Texts, ..) => {
                let reason = format!("none of its columns is one of texts; there {}", list(names));
                return Err(bad(self.path, reason));
            }
            _ => {
                let reason = format!("none of its columns is one of paths; there {}", list(names));
                return Err(bad(self.path, reason));
            }
        };
        if found.label.is_none() && request.options.unlabelled == Unlabelled::LeaveOut {
            let reason = format!("none of its columns is one of labels; there {}", list(names));
            return Err(bad(self.path, reason));
        }
        Ok((found, is_text))
    }

    fn add(
        &self,
        row: Result<Row<'_>, String>,
        is_text: bool,
        span: Span,
        gather: &mut Gather<'_>,
        rows: &mut FileRows,
    ) -> Result<(), Error> {
        let row = match row {
            Ok(row) => row,
            Err(reason) => {
                gather.leave_out(self.at_line(span.line), reason);
                return Ok(());
            }
        };
        let tag = match row.split.as_deref() {
            Some(split) => gather.tag(Some(split))?,
            None => self.tag,
        };
        let (id, label) = (row.id.as_deref(), row.label.as_deref());
        if is_text {
            return match row.text {
                Some(_) => self.add_text(id, label, tag, span, gather),
                None => {
                    gather.leave_out(self.at_line(span.line), "it has no text");
                    Ok(())
                }
            };
        }
        let name = || self.at_line(span.line);
        let path = row.path.as_deref().unwrap_or_default();
        rows.add(gather, self.below, path, id, label, tag, span.line, &name)
    }

    fn add_text(
        &self,
        id: Option<&str>,
        label: Option<&str>,
        tag: Tag,
        span: Span,
        gather: &mut Gather<'_>,
    ) -> Result<(), Error> {
        match id {
            Some(id) => gather.folders.push(&mut gather.listing.names, id),
            None => {
                let folder = gather
                    .folders
                    .folder(&mut gather.listing.names, &format!("{}#", self.name));
                gather.listing.names.push(folder, &span.line.to_string());
            }
        }
        let place = Place {
            at: span.at,
            len: span.len,
        };
        gather.add_rest(label, tag, place)
    }

    fn at_line(&self, line: u64) -> String {
        format!("{}:{line}", self.name)
    }

    fn io(&self, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::InvalidData => bad(self.path, error.to_string()),
            _ => FileError::at("read", self.path)(error).into(),
        }
    }
}

fn row<'r>(
    found: &Found,
    cell: impl Fn(Option<usize>) -> Result<Option<Cow<'r, str>>, String>,
) -> Result<Row<'r>, String> {
    let named = |what: &str, at| cell(at).map_err(|reason| format!("its {what} cannot be read: {reason}"));
    Ok(Row {
        path: named("path", found.path)?,
        label: named("label", found.label)?,
        text: named("text", found.text)?,
        split: named("split", found.split)?,
        id: named("name", found.id)?,
    })
}

#[cfg(test)]
mod tests;
