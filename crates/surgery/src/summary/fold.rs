//! Repeated layers: which neighbours are the same but for their number.

use std::collections::HashMap;

use super::{Kind, Row};

/// All that must be equal for two modules to fold, but their own names.
#[derive(PartialEq, Eq, Hash)]
struct Signature<'r> {
    kind: Kind,
    kernel: &'r [usize],
    is_recursive: bool,
    counts: [usize; 3],
    params: Vec<(&'r str, &'r [usize], &'r str, bool)>,
    /// Names and classes of the modules in it.
    children: Vec<(&'r str, usize)>,
}

/// For each row: 1 where it stands alone, n where it and its n - 1 next siblings are alike, 0 where it is one of those.
pub(super) fn n_alike(rows: &[Row]) -> Vec<usize> {
    let classes = classes(rows);
    let mut n_alike = vec![1; rows.len()];
    for at in 0..rows.len() {
        let mut head: Option<usize> = None;
        for child in children(rows, at) {
            match head {
                Some(first) if continues(rows, &classes, first, n_alike[first], child) => {
                    n_alike[first] += 1;
                    n_alike[child] = 0;
                }
                _ => head = Some(child),
            }
        }
    }
    n_alike
}

/// Whether `child` is what `first` is, and numbered `n` after it.
fn continues(rows: &[Row], classes: &[usize], first: usize, n: usize, child: usize) -> bool {
    let (Some((stem, number)), Some(next)) =
        (numbered(&rows[first].var_name), numbered(&rows[child].var_name))
    else {
        return false;
    };
    classes[first] == classes[child] && number.checked_add(n).is_some_and(|number| next == (stem, number))
}

/// A name and the number that it ends with: `layer_12` is `layer_` and 12.
pub(super) fn numbered(name: &str) -> Option<(&str, usize)> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[stem.len()..];
    // `08` is not what 7 is followed by.
    let is_plain = digits == "0" || !digits.starts_with('0');
    Some((stem, digits.parse().ok().filter(|_| is_plain)?))
}

/// A number for each row that is equal for equal modules.
fn classes(rows: &[Row]) -> Vec<usize> {
    let mut classes = vec![0; rows.len()];
    let mut numbers: HashMap<Signature<'_>, usize> = HashMap::new();
    // What a module holds comes after it.
    for (at, row) in rows.iter().enumerate().rev() {
        let params = row.params.iter();
        let signature = Signature {
            kind: row.kind,
            kernel: &row.kernel,
            is_recursive: row.is_recursive,
            counts: [row.n_own, row.n_params, row.n_trainable],
            params: params
                .map(|param| {
                    (
                        param.name.as_str(),
                        &*param.shape,
                        param.dtype.as_str(),
                        param.trains,
                    )
                })
                .collect(),
            children: children(rows, at)
                .map(|child| (rows[child].var_name.as_str(), classes[child]))
                .collect(),
        };
        let next = numbers.len();
        classes[at] = *numbers.entry(signature).or_insert(next);
    }
    classes
}

/// The rows right below that of index `at`.
fn children(rows: &[Row], at: usize) -> impl Iterator<Item = usize> {
    let end = at + rows[at].n_below;
    let mut next = at + 1;
    std::iter::from_fn(move || {
        let child = (next <= end).then_some(next)?;
        next += 1 + rows[child].n_below;
        Some(child)
    })
}
