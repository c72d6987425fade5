//! One line per parameter, as torchinfo's `verbose=2` adds them to a row.

use std::collections::HashSet;

use super::print::grouped;
use super::{Param, Row};

/// What a line says of a parameter.
pub(super) struct Line {
    /// The name within the row's module.
    pub(super) name: String,
    pub(super) shape: String,
    pub(super) count: String,
}

/// All parameters in the module, each once; of the model itself only its own.
pub(super) fn params(rows: &[Row], at: usize) -> Vec<Line> {
    let end = if at == 0 { 0 } else { at + rows[at].n_below };
    let mut lines = Vec::new();
    let mut seen = HashSet::new();
    // The names from the row down to the module at hand, and where in them each level begins.
    let mut prefix = String::new();
    let mut ends = vec![0];
    for row in &rows[at..=end] {
        let level = row.depth - rows[at].depth;
        if level > 0 {
            ends.truncate(level);
            prefix.truncate(ends[level - 1]);
            prefix.push_str(&row.var_name);
            prefix.push('.');
            ends.push(prefix.len());
        }
        for param in row.params.iter().filter(|param| seen.insert(param.id)) {
            lines.push(Line {
                name: format!("{prefix}{}", param.name),
                shape: shape(&prefix, param),
                count: format!("├─{}", grouped(param.numel)),
            });
        }
    }
    if let Some(last) = lines.last_mut() {
        last.count = last.count.replace('├', "└");
    }
    lines
}

/// The shape; of the module's own `weight` with the first two sizes exchanged, so that inputs come before outputs.
fn shape(prefix: &str, param: &Param) -> String {
    let mut shape = param.shape.clone();
    if prefix.is_empty() && param.name == "weight" && shape.len() > 1 {
        shape.swap(0, 1);
    }
    format!("{shape:?}")
}
