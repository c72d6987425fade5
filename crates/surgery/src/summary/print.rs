//! The table, character by character as torchinfo 1.8.0 prints it for a model without an input, with
//! `row_settings=["depth", "var_names"]` and `col_names=("kernel_size", "num_params", "trainable")`.

use std::fmt::Write;

use super::{Row, Summary, Trainable, fold, totals, verbose};

/// Width of a column behind the first, in characters.
const COLUMN: usize = 25;
/// Least width of the first column; wider ones are multiples of `STEP`.
const MIN_NAMES: usize = 40;
/// What a level of depth takes.
const STEP: usize = 5;
/// Characters of a name that are shown: each row is as wide as the longest, and names in a file may be megabytes.
const MAX_NAME: usize = 120;

/// How a summary is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryText {
    /// What to call the model, where torchinfo has its class.
    pub name: String,
    /// Show modules down to this depth; what is deeper is in the sums of that depth.
    pub depth: usize,
    /// Add a line for each parameter, as torchinfo's `verbose=2`.
    pub each_param: bool,
    /// Join neighbours that are the same but for their number; their counts are those of one.
    pub fold: bool,
}

impl Summary {
    /// The summary as a table, followed by the sums; ends with a line break. Control characters in names are escaped.
    pub fn to_text(&self, how: &SummaryText) -> String {
        let n_alike = if how.fold {
            fold::n_alike(&self.rows)
        } else {
            vec![1; self.rows.len()]
        };
        let table = Table {
            rows: &self.rows,
            name: shown(&how.name),
            n_alike,
        };
        let names = table.width_of_names();
        let divider = "=".repeat(names + 3 * COLUMN);
        let mut out = format!("{divider}\n");
        let head = [
            "Layer (type (var_name):depth-idx)",
            "Kernel Shape",
            "Param #",
            "Trainable",
        ];
        line(&mut out, names, head);
        out.push_str(&divider);
        out.push('\n');
        for at in table.unfolded().filter(|&at| self.rows[at].depth <= how.depth) {
            let row = &self.rows[at];
            let title = format!("{}{}", branch(row.depth), table.title(at));
            let kernel = if row.kernel.is_empty() {
                "--".to_owned()
            } else {
                format!("{:?}", row.kernel)
            };
            let count = count(row, row.depth == how.depth);
            line(&mut out, names, [&title, &kernel, &count, trainable(row)]);
            if how.each_param {
                let branch = branch(row.depth + 1);
                for param in verbose::params(&self.rows, at) {
                    let title = format!("{branch}{}", shown(&param.name));
                    line(&mut out, names, [&title, &param.shape, &param.count, ""]);
                }
            }
        }
        let sums = &self.totals;
        let frozen = sums.n_params.saturating_sub(sums.n_trainable);
        writeln!(
            out,
            "{divider}\nTotal params: {}\nTrainable params: {}\nNon-trainable params: {}\n{divider}",
            grouped(sums.n_params),
            grouped(sums.n_trainable),
            grouped(frozen)
        )
        .expect("a String takes every write");
        totals::write(&mut out, sums);
        out.push_str(&divider);
        out.push('\n');
        out
    }
}

struct Table<'s> {
    rows: &'s [Row],
    name: String,
    /// As [`fold::n_alike`] tells.
    n_alike: Vec<usize>,
}

impl Table<'_> {
    /// Rows that no other stands for.
    fn unfolded(&self) -> impl Iterator<Item = usize> {
        let mut next = 0;
        std::iter::from_fn(move || {
            while let Some(&n) = self.n_alike.get(next) {
                let at = next;
                if n > 0 {
                    next += 1;
                    return Some(at);
                }
                next += 1 + self.rows[at].n_below;
            }
            None
        })
    }

    /// Wide enough for every row, shown or not, as torchinfo has it.
    fn width_of_names(&self) -> usize {
        let width = |at: usize| self.title(at).chars().count() + self.rows[at].depth * STEP + 1;
        let longest = self.unfolded().map(width).max().unwrap_or(0);
        if longest >= MIN_NAMES {
            longest.next_multiple_of(STEP)
        } else {
            MIN_NAMES
        }
    }

    /// `Conv2d (conv1): 1-1`; folded `Module (0..11): 2-{1..12}  x12`.
    fn title(&self, at: usize) -> String {
        let row = &self.rows[at];
        if row.depth == 0 {
            // torchinfo takes the class for the variable's name too.
            return format!("{0} ({0})", self.name);
        }
        let mut title = row.kind.to_string();
        let (depth, first, n) = (row.depth, row.depth_idx, self.n_alike[at]);
        let name = shown(&row.var_name);
        let done = match (n, fold::numbered(&row.var_name)) {
            (2.., Some((_, number))) => {
                let (last, last_idx) = (number.saturating_add(n - 1), first + n - 1);
                write!(title, " ({name}..{last}): {depth}-{{{first}..{last_idx}}}  x{n}")
            }
            _ if name.is_empty() => write!(title, ": {depth}-{first}"),
            _ => write!(title, " ({name}): {depth}-{first}"),
        };
        done.expect("a String takes every write");
        title
    }
}

/// What stands before a name. torchinfo has one glyph for depth 1 and another for all below.
fn branch(depth: usize) -> String {
    match depth {
        0 => String::new(),
        1 => "├─".to_owned(),
        _ => "│    ".repeat(depth - 1) + "└─",
    }
}

/// A leaf or a row at the last depth shows all in it, in parentheses if frozen; others what is their own.
fn count(row: &Row, is_deepest: bool) -> String {
    if row.n_params == 0 {
        return "--".to_owned();
    }
    if row.is_recursive {
        return "(recursive)".to_owned();
    }
    if row.is_leaf() || is_deepest {
        let count = grouped(row.n_params);
        return if row.n_trainable > 0 {
            count
        } else {
            format!("({count})")
        };
    }
    match row.n_own {
        0 => "--".to_owned(),
        n => grouped(n),
    }
}

fn trainable(row: &Row) -> &'static str {
    match row.trainable() {
        Trainable::All => "True",
        Trainable::Partial => "Partial",
        Trainable::Frozen => "False",
        Trainable::Empty => "--",
    }
}

fn line(out: &mut String, names: usize, cells: [&str; 4]) {
    let [name, kernel, count, trainable] = cells;
    let text = format!("{name:<names$} {kernel:<COLUMN$} {count:<COLUMN$} {trainable}");
    out.push_str(text.trim_end());
    out.push('\n');
}

/// A name from a file, without what would steer a terminal, and cut where it is no name any more.
pub(super) fn shown(name: &str) -> String {
    let mut out = String::new();
    for (n, c) in name.chars().enumerate() {
        if n == MAX_NAME {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
