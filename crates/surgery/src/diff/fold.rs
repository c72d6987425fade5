//! Names of equal rows to one row: `blocks.{0..11}.attn.qkv.weight`.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use indexmap::IndexMap;

/// Rows that differ in one integer of their names only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The name, with the integers as ranges where there are several: `{0..11}`, `{0,2,5..9}`.
    pub name: String,
    /// The rows it stands for, as indices, in the order of the integers.
    pub rows: Vec<usize>,
}

/// Joins rows of one `kind` whose names differ in one integer only; in the order of each fold's first row.
///
/// Where several integers of a name could be the one, it is that which joins most.
pub fn fold<K: Eq + Hash>(rows: &[(&str, K)]) -> Vec<Fold> {
    // A place is the kind, and the name before and after the integer.
    let places = |row: usize| {
        let (name, kind) = &rows[row];
        integers(name).map(move |at| (kind, &name[..at.start], &name[at.end..]))
    };
    let mut n_at: HashMap<_, usize> = HashMap::new();
    for row in 0..rows.len() {
        for place in places(row) {
            *n_at.entry(place).or_default() += 1;
        }
    }
    let mut groups: IndexMap<_, Vec<(u64, usize)>> = IndexMap::new();
    for (row, (name, kind)) in rows.iter().enumerate() {
        let mut best: Option<(usize, Range<usize>)> = None;
        for (place, at) in places(row).zip(integers(name)) {
            let n = n_at[&place];
            if n > 1 && best.as_ref().is_none_or(|(most, _)| n > *most) {
                best = Some((n, at));
            }
        }
        let (place, integer) = match best {
            Some((_, at)) => {
                let integer = name[at.clone()].parse().expect("only what fits is an integer");
                ((kind, &name[..at.start], Some(&name[at.end..])), integer)
            }
            None => ((kind, *name, None), 0),
        };
        groups.entry(place).or_default().push((integer, row));
    }
    let folds = groups.into_iter().map(|((_, before, after), mut members)| {
        members.sort_unstable();
        let name = match after {
            Some(after) if members.len() > 1 => {
                let integers: Vec<u64> = members.iter().map(|(integer, _)| *integer).collect();
                format!("{before}{{{}}}{after}", ranges(&integers))
            }
            _ => rows[members[0].1].0.to_owned(),
        };
        Fold {
            name,
            rows: members.into_iter().map(|(_, row)| row).collect(),
        }
    });
    folds.collect()
}

/// Where integers stand in a name: runs of digits as a number is written, without zeros in front.
fn integers(name: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = name.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
            let n = bytes[start..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            at = start + n;
            let is_canonical = bytes[start] != b'0' || n == 1;
            if is_canonical && name[start..at].parse::<u64>().is_ok() {
                return Some(start..at);
            }
        }
    })
}

/// Ascending integers as `0..11,13`; two neighbours stay two.
fn ranges(integers: &[u64]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for run in integers.chunk_by(|x, y| x.checked_add(1) == Some(*y)) {
        match run {
            [first, .., last] if run.len() > 2 => parts.push(format!("{first}..{last}")),
            _ => parts.extend(run.iter().map(u64::to_string)),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expected: &[&str]) {
        let rows: Vec<(&str, ())> = names.iter().map(|name| (*name, ())).collect();
        let folds = fold(&rows);
        let found: Vec<&str> = folds.iter().map(|fold| fold.name.as_str()).collect();
        assert_eq!(found, expected);
        let mut all: Vec<usize> = folds.iter().flat_map(|fold| fold.rows.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..names.len()).collect::<Vec<_>>(), "every row once");
    }

    #[test]
    fn names_fold_over_the_integer_that_joins_most() {
        check(&[], &[]);
        check(&["a.b"], &["a.b"]);
        check(&["h.10.w", "h.2.w", "h.0.w", "h.1.w"], &["h.{0..2,10}.w"]);
        check(&["h.0.w", "h.1.w", "h.0.b"], &["h.{0,1}.w", "h.0.b"]);
        check(
            &["l1.0.c1", "l1.0.c2", "l1.1.c1", "l1.1.c2", "l1.2.c1", "l1.2.c2"],
            &["l1.{0..2}.c1", "l1.{0..2}.c2"],
        );
        check(&["a.01", "a.02"], &["a.01", "a.02"]);
        check(
            &["a.99999999999999999999", "a.5"],
            &["a.99999999999999999999", "a.5"],
        );
    }

    #[test]
    fn rows_of_another_kind_stay_apart() {
        let folds = fold(&[("h.0", 'x'), ("h.1", 'y'), ("h.2", 'x')]);
        let found: Vec<&str> = folds.iter().map(|fold| fold.name.as_str()).collect();
        assert_eq!(found, ["h.{0,2}", "h.1"]);
        assert_eq!(folds[0].rows, [0, 2]);
    }
}
