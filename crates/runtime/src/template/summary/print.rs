//! The table, character by character as torchinfo 1.8.0 prints it.

use std::fmt::Write;

use surgery::grouped;

use super::{NetworkRow, NetworkSummary};

/// Width of a column behind the first, in characters.
const COLUMN: usize = 25;
/// Least width of the first column; wider ones are multiples of `STEP`.
const MIN_NAMES: usize = 40;
/// What a level of depth takes.
const STEP: usize = 5;

/// A column of the table, by torchinfo's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// `kernel_size`.
    Kernel,
    /// `input_size`.
    Input,
    /// `output_size`.
    Output,
    /// `num_params`.
    Params,
    /// `params_percent`.
    Percent,
    /// `mult_adds`.
    MultAdds,
    /// `trainable`.
    Trainable,
}

const COLUMNS: [(&str, Column, &str); 7] = [
    ("kernel_size", Column::Kernel, "Kernel Shape"),
    ("input_size", Column::Input, "Input Shape"),
    ("output_size", Column::Output, "Output Shape"),
    ("num_params", Column::Params, "Param #"),
    ("params_percent", Column::Percent, "Param %"),
    ("mult_adds", Column::MultAdds, "Mult-Adds"),
    ("trainable", Column::Trainable, "Trainable"),
];

impl std::str::FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Column, String> {
        let found = COLUMNS.iter().find(|(name, _, _)| *name == text);
        found.map(|(_, column, _)| *column).ok_or_else(|| {
            let names: Vec<&str> = COLUMNS.iter().map(|(name, _, _)| *name).collect();
            format!("`{text}` is no column: there are {}", names.join(", "))
        })
    }
}

/// How a summary is printed: `Default` is torchinfo's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryFormat {
    /// Show modules down to this depth.
    pub depth: usize,
    /// Behind the names.
    pub columns: Vec<Column>,
    /// Show what a module is called in the one that holds it.
    pub var_names: bool,
}

impl Default for SummaryFormat {
    fn default() -> SummaryFormat {
        SummaryFormat {
            depth: 3,
            columns: vec![Column::Output, Column::Params],
            var_names: false,
        }
    }
}

impl NetworkSummary {
    /// The summary as a table, followed by the sums; ends with a line break.
    pub fn to_text(&self, how: &SummaryFormat) -> String {
        let mut out = String::new();
        self.write(&mut out, how).expect("a String takes every write");
        out
    }

    fn write(&self, out: &mut String, how: &SummaryFormat) -> std::fmt::Result {
        let longest = self
            .rows
            .iter()
            .map(|row| row.title(how.var_names).chars().count() + row.depth * STEP + 1)
            .max()
            .unwrap_or(0);
        let names = if longest >= MIN_NAMES {
            longest.next_multiple_of(STEP)
        } else {
            MIN_NAMES
        };
        let divider = "=".repeat(names + how.columns.len() * COLUMN);
        let line = |out: &mut String, name: &str, cells: &[String]| {
            let mut text = format!("{name:<names$} ");
            for cell in cells {
                text.push_str(&format!("{cell:<COLUMN$} "));
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        writeln!(out, "{divider}")?;
        let of_names = if how.var_names { " (var_name)" } else { "" };
        let titles: Vec<String> = how
            .columns
            .iter()
            .map(|column| title_of(*column).to_owned())
            .collect();
        line(out, &format!("Layer (type{of_names}:depth-idx)"), &titles);
        writeln!(out, "{divider}")?;
        for (at, row) in self
            .rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.depth <= how.depth)
        {
            let cells: Vec<String> = how
                .columns
                .iter()
                .map(|column| self.cell(at, *column, row.depth == how.depth))
                .collect();
            line(
                out,
                &format!("{}{}", branch(row.depth), row.title(how.var_names)),
                &cells,
            );
        }
        writeln!(out, "{divider}")?;
        writeln!(out, "Total params: {}", grouped(self.n_params))?;
        writeln!(out, "Trainable params: {}", grouped(self.n_trainable))?;
        let frozen = self.n_params.saturating_sub(self.n_trainable);
        writeln!(out, "Non-trainable params: {}", grouped(frozen))?;
        writeln!(out, "Total mult-adds{}", readable(self.n_mult_adds))?;
        writeln!(out, "{divider}")?;
        let megabytes = |n: usize| n as f64 / 1e6;
        let all = self.input_nbytes + self.passes_nbytes + self.params_nbytes;
        for (what, n) in [
            ("Input size", self.input_nbytes),
            ("Forward/backward pass size", self.passes_nbytes),
            ("Params size", self.params_nbytes),
            ("Estimated Total Size", all),
        ] {
            writeln!(out, "{what} (MB): {:.2}", megabytes(n))?;
        }
        writeln!(out, "{divider}")
    }

    fn cell(&self, at: usize, column: Column, is_deepest: bool) -> String {
        let row = &self.rows[at];
        let shown = if is_deepest || row.is_leaf {
            row.n_params
        } else {
            row.n_left
        };
        let text = match column {
            Column::Kernel => match row.kernel.as_slice() {
                [n] => n.to_string(),
                kernel => sizes(kernel),
            },
            Column::Input => sizes(&row.input),
            Column::Output => sizes(&row.output),
            Column::Params if row.n_params == 0 => String::new(),
            Column::Params | Column::Percent if row.is_recursive => "(recursive)".to_owned(),
            Column::Params if is_deepest || row.is_leaf => match row.n_trainable {
                0 => format!("({})", grouped(shown)),
                _ => grouped(shown),
            },
            Column::Params => match shown {
                0 => String::new(),
                n => grouped(n),
            },
            Column::Percent => match shown {
                0 => "     --".to_owned(),
                n => {
                    let share = format!("{:.2}%", 100.0 * n as f64 / self.n_params as f64);
                    format!("{share:>7}")
                }
            },
            Column::MultAdds => match (row.n_mult_adds, row.is_leaf) {
                (0, _) => String::new(),
                (n, true) => grouped(n),
                (_, false) if is_deepest => {
                    let below = &self.rows[at + 1..=at + row.n_below];
                    grouped(
                        below
                            .iter()
                            .filter(|row| row.is_leaf)
                            .map(|row| row.n_mult_adds)
                            .sum(),
                    )
                }
                _ => String::new(),
            },
            Column::Trainable => match row.n_trainable {
                _ if row.n_params == 0 => String::new(),
                0 => "False".to_owned(),
                n if n == row.n_params => "True".to_owned(),
                _ => "Partial".to_owned(),
            },
        };
        if text.is_empty() { "--".to_owned() } else { text }
    }
}

impl NetworkRow {
    /// `Conv2d: 2-1`.
    fn title(&self, var_names: bool) -> String {
        let mut title = self.class.clone();
        if var_names && !self.var_name.is_empty() {
            title.push_str(&format!(" ({})", self.var_name));
        }
        if self.depth > 0 {
            title.push_str(&format!(": {}-{}", self.depth, self.depth_idx));
        }
        title
    }
}

fn title_of(column: Column) -> &'static str {
    let found = COLUMNS.iter().find(|(_, other, _)| *other == column);
    found.map_or("", |(_, _, title)| title)
}

/// Sizes as Python prints a list; nothing of none.
fn sizes(sizes: &[usize]) -> String {
    if sizes.is_empty() {
        return String::new();
    }
    format!("{sizes:?}")
}

/// What stands before a name. torchinfo has one glyph for depth 1 and another for all below.
fn branch(depth: usize) -> String {
    match depth {
        0 => String::new(),
        1 => "├─".to_owned(),
        _ => "│    ".repeat(depth - 1) + "└─",
    }
}

/// ` (G): 18.14`: the unit that suits, two decimals unless there is nothing behind the point.
fn readable(n: usize) -> String {
    let number = n as f64;
    let (unit, value) = match number {
        1e12.. => ("T", number / 1e12),
        1e9.. => ("G", number / 1e9),
        _ => ("M", number / 1e6),
    };
    if value.fract() == 0.0 {
        return format!(" ({unit}): {}", grouped(value as usize));
    }
    let text = format!("{value:.2}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, "0"));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), grouped);
    format!(" ({unit}): {whole}.{rest}")
}
