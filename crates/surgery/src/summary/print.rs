//! The table, to the column as torchinfo lays it out.

use std::fmt::Write as _;

use super::{Summary, SummaryRow};

/// Which columns a table has beside the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SummaryColumns {
    /// Kernels, counts, and whether training changes them.
    All,
    /// Counts, which is what torchinfo prints of a model without an input.
    Counts,
}

/// How a summary is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryStyle {
    /// What the model is called; torchinfo has its class there.
    pub name: String,
    /// Modules that lie deeper are counted in those that hold them.
    pub depth: usize,
    /// The columns.
    pub columns: SummaryColumns,
    /// A line for each parameter.
    pub is_verbose: bool,
    /// Numbered neighbours that are made alike as one.
    pub folds: bool,
}

/// Width of a column that is not the names'.
const COLUMN: usize = 25;
/// Names have at least this.
const MIN_NAME: usize = 40;
/// And a multiple of this.
const ALIGN: usize = 5;

impl Summary {
    /// The table and the totals, each line ended.
    pub fn render(&self, style: &SummaryStyle) -> String {
        let lines = self.lines(style);
        // As torchinfo: from all rows, also of those that are too deep to be shown.
        let longest = lines
            .iter()
            .map(|line| line.row.depth * ALIGN + 1 + line.label.chars().count())
            .max()
            .unwrap_or(0);
        let name_width = if longest >= MIN_NAME {
            longest.next_multiple_of(ALIGN)
        } else {
            MIN_NAME
        };
        let titles: &[&str] = match style.columns {
            SummaryColumns::All => &["Kernel Shape", "Param #", "Trainable"],
            SummaryColumns::Counts => &["Param #"],
        };
        let divider = "=".repeat(name_width + titles.len() * COLUMN);
        let mut out = String::new();
        let mut row = |name: &str, cells: &[String]| {
            let mut text = format!("{name:<name_width$} ");
            for cell in cells {
                let _ = write!(text, "{cell:<COLUMN$} ");
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        row(&divider, &[]);
        row(
            "Layer (type (var_name):depth-idx)",
            &titles.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>(),
        );
        row(&divider, &[]);
        for line in lines.iter().filter(|line| line.row.depth <= style.depth) {
            let count = count(line.row, line.row.depth == style.depth);
            let cells = match style.columns {
                SummaryColumns::Counts => vec![count],
                SummaryColumns::All => {
                    let kernel = line
                        .row
                        .kernel
                        .as_ref()
                        .map_or_else(|| "--".to_owned(), |kernel| format!("{kernel:?}"));
                    vec![kernel, count, line.row.trainable().to_owned()]
                }
            };
            row(&format!("{}{}", start(line.row.depth), line.label), &cells);
            if style.is_verbose {
                let last = line.row.params.len().saturating_sub(1);
                for (i, (name, shape, numel)) in line.row.params.iter().enumerate() {
                    let glyph = if i == last { "└─" } else { "├─" };
                    let count = format!("{glyph}{}", grouped(*numel));
                    let cells = match style.columns {
                        SummaryColumns::Counts => vec![count],
                        SummaryColumns::All => vec![format!("{:?}", as_torchinfo(name, shape)), count],
                    };
                    row(&format!("{}{name}", start(line.row.depth + 1)), &cells);
                }
            }
        }
        row(&divider, &[]);
        self.totals(&mut out, &divider);
        out
    }

    fn totals(&self, out: &mut String, divider: &str) {
        let frozen = self.n_params - self.n_trainable;
        let _ = writeln!(out, "Total params: {}", grouped(self.n_params));
        let _ = writeln!(out, "Trainable params: {}", grouped(self.n_trainable));
        let _ = writeln!(out, "Non-trainable params: {}", grouped(frozen));
        let _ = writeln!(out, "{divider}");
        let _ = writeln!(out, "Params size (MB): {:.2}", self.param_bytes as f64 / 1e6);
        if self.buffers.0 > 0 {
            let _ = writeln!(
                out,
                "Buffers: {}, {} bytes",
                tensors(self.buffers.0),
                grouped(self.buffers.1)
            );
        }
        for (dtype, n, elements, bytes) in &self.dtypes {
            let (n, elements, bytes) = (tensors(*n), grouped(*elements), grouped(*bytes));
            let _ = writeln!(out, "{dtype}: {n}, {elements} elements, {bytes} bytes");
        }
        if let Some((name, n_bytes)) = &self.largest {
            let _ = writeln!(out, "Largest: {name}, {} bytes", grouped(*n_bytes));
        }
        for names in &self.ties {
            let _ = writeln!(out, "Tied: {}", names.join(" = "));
        }
        let _ = writeln!(out, "{divider}");
    }

    /// The rows with their labels, folded where that is asked for.
    fn lines(&self, style: &SummaryStyle) -> Vec<Line<'_>> {
        let mut lines = Vec::with_capacity(self.rows.len());
        let mut at = 0;
        while let Some(row) = self.rows.get(at) {
            let alike = if style.folds { self.alike(at) } else { Vec::new() };
            let last = alike.last().map(|&last| &self.rows[last]);
            let label = match (row.depth, last) {
                (0, _) => format!("{} ({})", style.name, style.name),
                (depth, None) => format!("{} ({}): {depth}-{}", row.kind, row.var_name, row.depth_index),
                (depth, Some(last)) => format!(
                    "{} ({}..{}): {depth}-{{{}..{}}}, {} alike",
                    row.kind,
                    row.var_name,
                    last.var_name,
                    row.depth_index,
                    last.depth_index,
                    alike.len() + 1
                ),
            };
            lines.push(Line { row, label });
            at += 1;
            if let Some(&last) = alike.last() {
                // The first one's modules stand for those of all.
                let end = self.end(at - 1);
                let mut inside = at;
                while inside < end {
                    let row = &self.rows[inside];
                    let label = format!(
                        "{} ({}): {}-{}",
                        row.kind, row.var_name, row.depth, row.depth_index
                    );
                    lines.push(Line { row, label });
                    inside += 1;
                }
                at = self.end(last);
            }
        }
        lines
    }

    /// One past the last row that lies in row `at`.
    fn end(&self, at: usize) -> usize {
        let depth = self.rows[at].depth;
        let rest = self.rows[at + 1..].iter().position(|row| row.depth <= depth);
        rest.map_or(self.rows.len(), |n| at + 1 + n)
    }

    /// The neighbours behind row `at` that are numbered onwards from it and made as it is.
    fn alike(&self, at: usize) -> Vec<usize> {
        let row = &self.rows[at];
        let Ok(mut number) = row.var_name.parse::<u64>() else {
            return Vec::new();
        };
        let mut alike = Vec::new();
        let mut next = self.end(at);
        while let Some(other) = self.rows.get(next) {
            number += 1;
            let is_alike = other.parent == row.parent
                && other.signature == row.signature
                && other.var_name == number.to_string();
            if !is_alike {
                break;
            }
            alike.push(next);
            next = self.end(next);
        }
        alike
    }
}

struct Line<'s> {
    row: &'s SummaryRow,
    label: String,
}

/// The branches in front of a name.
fn start(depth: usize) -> String {
    match depth {
        0 => String::new(),
        1 => "├─".to_owned(),
        depth => format!("{}└─", "│    ".repeat(depth - 1)),
    }
}

/// In parentheses where nothing of it is trained; of a container above the greatest depth, its own parameters alone.
fn count(row: &SummaryRow, is_deepest: bool) -> String {
    if row.n_params == 0 {
        return "--".to_owned();
    }
    if row.is_recursive {
        return "(recursive)".to_owned();
    }
    if is_deepest || row.is_leaf {
        let n = grouped(row.n_params);
        return if row.n_trainable > 0 { n } else { format!("({n})") };
    }
    if row.n_own > 0 {
        grouped(row.n_own)
    } else {
        "--".to_owned()
    }
}

/// torchinfo writes a weight's inputs in front of its outputs.
fn as_torchinfo(name: &str, shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if name == "weight" && shape.len() > 1 {
        shape.swap(0, 1);
    }
    shape
}

/// `1 tensor`, `1,234 tensors`
fn tensors(n: usize) -> String {
    format!("{} tensor{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// `1,234`
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
