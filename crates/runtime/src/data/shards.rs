//! Several files that are one data set: lists with braces, and folders of tars or Parquet files.

use std::path::{Path, PathBuf};

use super::bad;
use super::left_out::LeftOuts;
use super::listing::Names;
use super::split::Tag;
use super::walk::walk;
use crate::error::Error;

/// More files than a data set has; braces multiply quickly.
const MAX_SHARDS: usize = 1 << 20;

/// One of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// What its samples are called by.
    pub(super) name: String,
    /// The folder it is in, below the source, with a slash at the end or empty.
    pub(super) below: String,
    /// The split that its name says.
    pub(super) split: Option<String>,
}

/// Whether a source is a list or has braces, rather than being a path.
pub(super) fn is_list(source: &str) -> bool {
    source.contains("::") || (source.contains('{') && source.contains('}'))
}

/// The files of `a-{000..012}.tar::b.tar`, in the order that this says.
///
/// # Errors
/// Braces that are no range and no list; more files than there can be.
pub(super) fn of_list(source: &Path, text: &str) -> Result<Vec<Shard>, Error> {
    let mut paths = Vec::new();
    for part in text.split("::").filter(|part| !part.is_empty()) {
        expand(part, &mut paths).map_err(|reason| bad(source, reason))?;
    }
    let folders: Vec<Option<&Path>> = paths.iter().map(|path| Path::new(path).parent()).collect();
    let same_folder = folders.windows(2).all(|pair| pair[0] == pair[1]);
    let shard = |path: &String| {
        let name = match Path::new(path).file_name() {
            Some(name) if same_folder => name.to_string_lossy().into_owned(),
            _ => path.clone(),
        };
        Shard {
            split: split_of(&name),
            below: String::new(),
            path: path.into(),
            name,
        }
    };
    Ok(paths.iter().map(shard).collect())
}

/// A single file, which names no split.
pub(super) fn of_file(path: &Path) -> Shard {
    Shard {
        path: path.to_owned(),
        name: super::file_name(path),
        below: String::new(),
        split: None,
    }
}

/// All files with this ending in a folder and the folders below it, in order of names.
pub(super) fn in_folder(root: &Path, ending: &str, left_out: &mut LeftOuts) -> Result<Vec<Shard>, Error> {
    let mut names = Names::default();
    let is_shard = |name: &str| {
        let found = Path::new(name).extension();
        found.is_some_and(|found| found.eq_ignore_ascii_case(ending))
    };
    walk(root, "", &is_shard, &mut names, left_out)?;
    let shard = |idx| {
        let (below, file) = names.parts(idx);
        let name = format!("{below}{file}");
        Shard {
            path: root.join(below).join(file),
            split: split_of(&name),
            below: below.to_owned(),
            name,
        }
    };
    Ok((0..names.len()).map(shard).collect())
}

/// The split that a relative path says, as `datasets` finds it: `data/SPLIT-00000-of-00001…`, a folder's name, a file's name.
fn split_of(name: &str) -> Option<String> {
    let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
    let numbered = file.find("-of-").and_then(|at| {
        let digits =
            |text: Option<&str>| text.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let start = at.checked_sub(6)?;
        let is_numbered = file.get(start..=start) == Some("-")
            && digits(file.get(start + 1..at))
            && digits(file.get(at + 4..at + 9));
        is_numbered.then(|| file.get(..start))?
    });
    if let Some(split) = numbered.filter(|split| !split.is_empty()) {
        return Some(split.to_owned());
    }
    let of_folder = folders.split('/').find_map(Tag::of_folder);
    let tag = of_folder.or_else(|| Tag::of_file(file))?;
    Some(tag.name(&[]).to_owned())
}

/// Bash's braces: `{000..012}` counts with the zeros of the longer end, `{a,b}` lists, and they nest.
fn expand(pattern: &str, found: &mut Vec<String>) -> Result<(), String> {
    let Some((before, inside, after)) = braces(pattern) else {
        if found.len() >= MAX_SHARDS {
            return Err(format!("its braces stand for more than {MAX_SHARDS} files"));
        }
        found.push(pattern.to_owned());
        return Ok(());
    };
    let parts = commas(inside);
    if parts.len() >= 2 {
        for part in parts {
            expand(&format!("{before}{part}{after}"), found)?;
        }
        return Ok(());
    }
    if let Some((first, last)) = inside.split_once("..") {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| format!("`{{{inside}}}` is no range of numbers"))
        };
        let (low, high) = (number(first)?, number(last)?);
        let is_padded = [first, last]
            .iter()
            .any(|text| text.len() > 1 && text.starts_with('0'));
        let width = if is_padded { first.len().max(last.len()) } else { 0 };
        let numbers: Box<dyn Iterator<Item = u32>> = match low <= high {
            true => Box::new(low..=high),
            false => Box::new((high..=low).rev()),
        };
        for number in numbers {
            expand(&format!("{before}{number:0width$}{after}"), found)?;
        }
        return Ok(());
    }
    Err(format!("`{{{inside}}}` is neither a range nor a list"))
}

/// The first pair of braces that belong together: what is before, in and behind them.
fn braces(pattern: &str) -> Option<(&str, &str, &str)> {
    let open = pattern.find('{')?;
    let mut depth = 0usize;
    for (at, c) in pattern[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            let close = open + at;
            return Some((&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]));
        }
    }
    None
}

/// Parts between commas that are in no braces of their own.
fn commas(inside: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, expected: &[&str]) {
        let mut found = Vec::new();
        expand(pattern, &mut found).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn braces_expand_as_in_bash() {
        check("x-{000..002}.tar", &["x-000.tar", "x-001.tar", "x-002.tar"]);
        check("x-{9..11}", &["x-9", "x-10", "x-11"]);
        check("{2..0}", &["2", "1", "0"]);
        check("{a,b{1..2}}.tar", &["a.tar", "b1.tar", "b2.tar"]);
        check("{a,b}-{0..1}", &["a-0", "a-1", "b-0", "b-1"]);
        check("plain.tar", &["plain.tar"]);
        check("open{.tar", &["open{.tar"]);
        for (pattern, reason) in [
            ("{a..c}", "`{a..c}` is no range of numbers"),
            ("{one}", "`{one}` is neither a range nor a list"),
            (
                "{0..99999}{0..99}",
                "its braces stand for more than 1048576 files",
            ),
        ] {
            assert_eq!(expand(pattern, &mut Vec::new()).unwrap_err(), reason);
        }
    }

    #[test]
    fn names_say_splits() {
        for (name, split) in [
            ("data/train-00000-of-00002.parquet", Some("train")),
            ("data/odd_one-00000-of-00002-ab12.parquet", Some("odd_one")),
            ("val/0001.tar", Some("validation")),
            ("x_test.tar", Some("test")),
            ("0001.tar", None),
            ("latest-of-all.tar", None),
        ] {
            assert_eq!(split_of(name).as_deref(), split, "{name}");
        }
    }

    #[test]
    fn lists_are_called_by_what_tells_them_apart() {
        let names = |text: &str| -> Vec<String> {
            let shards = of_list(Path::new(text), text).unwrap();
            shards.into_iter().map(|shard| shard.name).collect()
        };
        assert_eq!(
            names("/x/a-{0..1}.tar::/x/b.tar"),
            ["a-0.tar", "a-1.tar", "b.tar"]
        );
        assert_eq!(names("x/a.tar::y/a.tar"), ["x/a.tar", "y/a.tar"]);
    }
}
