//! What the file knows beyond torchinfo: sizes by type, buffers, ties, the largest tensor.

use std::fmt::Write;

use super::Totals;
use super::print::shown;

/// Ties that are listed; more are only counted.
const MAX_TIES: usize = 8;

/// Appends a line for each that there is something to say about.
pub(super) fn write(out: &mut String, totals: &Totals) {
    lines(out, totals).expect("a String takes every write");
}

fn lines(out: &mut String, totals: &Totals) -> std::fmt::Result {
    writeln!(out, "Params size (MB): {:.2}", totals.params_nbytes as f64 / 1e6)?;
    if totals.n_buffers > 0 {
        let megabytes = totals.buffers_nbytes as f64 / 1e6;
        writeln!(
            out,
            "Buffers size (MB): {megabytes:.2} ({} tensors)",
            totals.n_buffers
        )?;
    }
    let types: Vec<String> = totals
        .dtypes
        .iter()
        .map(|sum| {
            let dtype = if sum.dtype.is_empty() {
                "unknown"
            } else {
                &sum.dtype
            };
            format!(
                "{} {} {}B",
                shown(dtype),
                scaled(sum.numel).trim_end(),
                scaled(sum.nbytes)
            )
        })
        .collect();
    if !types.is_empty() {
        writeln!(out, "Types: {}", types.join(", "))?;
    }
    for tie in totals.ties.iter().take(MAX_TIES) {
        writeln!(
            out,
            "tied: {} = {}, counted once",
            shown(&tie.name),
            shown(&tie.first)
        )?;
    }
    if let Some(more @ 1..) = totals.ties.len().checked_sub(MAX_TIES) {
        writeln!(out, "tied: {more} more names")?;
    }
    if let Some(largest) = &totals.largest {
        let (name, dtype) = (shown(&largest.name), shown(&largest.dtype));
        writeln!(
            out,
            "Largest tensor: {name} {dtype} {:?} {}B",
            largest.shape,
            scaled(largest.nbytes)
        )?;
    }
    if !totals.is_marked && totals.n_params > 0 {
        writeln!(
            out,
            "Marks: none in the file, so that every parameter counts as trainable"
        )?;
    }
    Ok(())
}

/// Three digits and a decimal prefix: `20 `, `11.7 M`.
fn scaled(n: usize) -> String {
    if n < 1000 {
        return format!("{n} ");
    }
    let mut value = n as f64;
    let mut unit = "";
    for prefix in ["k", "M", "G", "T", "P", "E"] {
        // What would be rounded to a thousand is one of the next unit.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = prefix;
    }
    let n_decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.n_decimals$} {unit}")
}
