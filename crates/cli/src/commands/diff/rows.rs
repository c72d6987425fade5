//! A comparison as text: the verdict, the counts, then rows, of which equal ones are folded and the worst come first.

use std::fmt::Write;

use surgery::{CastProof, Census, Changed, Diff, FailOnReport, OneSided, Side, fold};

use crate::text::{grouped, plain};

/// Names that a line shows of a list that may be long.
const MAX_NAMES: usize = 12;

pub(super) fn text(diff: &Diff) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", diff.verdict);
    for report in &diff.fail_on {
        let _ = writeln!(out, "{}", fail_on(report));
    }
    let _ = writeln!(out, "{}", counts(diff));
    let mut rows = changed(diff);
    rows.extend(reshaped(diff));
    rows.extend(transposed(diff));
    rows.extend(cast(diff));
    rows.extend(one_sided('+', &diff.added));
    rows.extend(one_sided('-', &diff.removed));
    rows.extend(renamed(diff));
    rows.extend(ties(diff));
    rows.extend(marks(diff));
    rows.extend(metadata(diff));
    rows.extend(health(diff));
    rows.extend(layout(diff));
    if !rows.is_empty() {
        out.push('\n');
    }
    for row in rows {
        let _ = writeln!(out, "{}", plain(&row));
    }
    out
}

fn counts(diff: &Diff) -> String {
    let counts = &diff.counts;
    let mut text = format!(
        "= {}  ~ {}  + {}  - {}",
        grouped(counts.same),
        grouped(counts.changed),
        grouped(counts.added),
        grouped(counts.removed)
    );
    for (n, what) in [
        (counts.renamed, "» renamed"),
        (counts.cast, "⇄ cast"),
        (counts.reshaped, "reshaped"),
        (counts.transposed, "transposed"),
        (counts.ties, "tie"),
        (counts.marks, "marks"),
    ] {
        if n > 0 {
            let _ = write!(text, "  {what} {}", grouped(n));
        }
    }
    text
}

fn fail_on(report: &FailOnReport) -> String {
    let asked = format!("{}:{}", report.asked.kind.as_str(), report.asked.pattern.as_str());
    if report.found.is_empty() {
        let n = grouped(report.n_matched);
        return plain(&format!("fail-on {asked}: holds, none of {n} names"));
    }
    let rows: Vec<(&str, ())> = report.found.iter().map(|name| (name.as_str(), ())).collect();
    plain(&format!(
        "fail-on {asked}: FAILED, {} of {} names: {}",
        grouped(report.found.len()),
        grouped(report.n_matched),
        names(&rows)
    ))
}

/// Folded names, of a long list the first.
fn names(rows: &[(&str, ())]) -> String {
    let folds = fold(rows);
    let mut shown: Vec<String> = folds
        .iter()
        .take(MAX_NAMES)
        .map(|fold| fold.name.clone())
        .collect();
    if folds.len() > MAX_NAMES {
        let n: usize = folds[MAX_NAMES..].iter().map(|fold| fold.rows.len()).sum();
        shown.push(format!("and {} more", grouped(n)));
    }
    shown.join(", ")
}

/// `bfloat16`, or `float32 -> bfloat16`.
fn types(a: &str, b: &str) -> String {
    if a == b {
        a.to_owned()
    } else {
        format!("{a} -> {b}")
    }
}

fn changed(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, _)> = diff
        .changed
        .iter()
        .map(|tensor| {
            let kind = (&tensor.shape, &tensor.dtype_a, &tensor.dtype_b, &tensor.note);
            (tensor.name.as_str(), kind)
        })
        .collect();
    let mut folded: Vec<(f64, String)> = fold(&rows)
        .into_iter()
        .map(|fold| {
            let members: Vec<&Changed> = fold.rows.iter().map(|&row| &diff.changed[row]).collect();
            changed_row(&fold.name, &members)
        })
        .collect();
    // The worst first; stable, so that equals keep the model's order.
    folded.sort_by(|x, y| y.0.total_cmp(&x.0));
    folded.into_iter().map(|(_, row)| row).collect()
}

/// One row for tensors of which the worst numbers are shown, and how bad it is.
fn changed_row(name: &str, members: &[&Changed]) -> (f64, String) {
    let highest = |value: fn(&Changed) -> Option<f64>| {
        members
            .iter()
            .filter_map(|tensor| value(tensor))
            .max_by(f64::total_cmp)
    };
    let first = members[0];
    let mut row = format!(
        "~ {name}  {:?} {}",
        first.shape,
        types(&first.dtype_a, &first.dtype_b)
    );
    let share = highest(|tensor| tensor.share_changed);
    if let Some(share) = share {
        let _ = write!(row, "  changed {}", surgery::percent(share));
    }
    if let Some(max_abs) = highest(|tensor| tensor.max_abs) {
        let _ = write!(row, "  max|Δ| {}", short(max_abs));
    }
    let rel = highest(|tensor| tensor.rel);
    if let Some(rel) = rel {
        let _ = write!(row, "  ΔW/W {}", surgery::percent(rel));
    }
    if let Some(cos) = highest(|tensor| tensor.cos.map(|cos| -cos)) {
        let _ = write!(row, "  cos {}", cosine(-cos));
    }
    if let Some(steps) = members.iter().filter_map(|tensor| tensor.max_ulp).max() {
        let _ = write!(row, "  ulp<={steps}");
    }
    if let Some(rank) = members.iter().filter_map(|tensor| tensor.rank).max() {
        let _ = write!(row, "  rank<={rank}");
    }
    if let Some(note) = &first.note {
        let _ = write!(row, "  {note}");
    }
    // Where there is no distance, another value is as bad as can be.
    (rel.or(share).unwrap_or(f64::INFINITY), row)
}

/// Two significant digits: `0.31`, `3.1e-3`, `31`.
fn short(x: f64) -> String {
    if x == 0.0 || (0.01..1e6).contains(&x.abs()) {
        let digits = if x == 0.0 {
            0
        } else {
            (1.0 - x.abs().log10().floor()).max(0.0) as usize
        };
        format!("{x:.digits$}")
    } else {
        format!("{x:.1e}")
    }
}

/// `.9998` with as many digits as tell it from one, at most eight.
fn cosine(cos: f64) -> String {
    let digits = (4..=8)
        .find(|&digits| cos.abs() < 1.0 - 0.5 * 10_f64.powi(-digits))
        .unwrap_or(4);
    let digits = usize::try_from(digits).unwrap_or(4);
    let text = format!("{cos:.digits$}");
    match text.strip_prefix("0.") {
        Some(rest) => format!(".{rest}"),
        None => text.replace("-0.", "-."),
    }
}

fn one_sided(sign: char, tensors: &[OneSided]) -> Vec<String> {
    let rows: Vec<(&str, _)> = tensors
        .iter()
        .map(|tensor| {
            let kind = (&tensor.shape, &tensor.dtype, &tensor.tied_to);
            (tensor.name.as_str(), kind)
        })
        .collect();
    let folds = fold(&rows).into_iter().map(|fold| {
        let first = &tensors[fold.rows[0]];
        let n_bytes: usize = fold.rows.iter().map(|&row| tensors[row].n_bytes).sum();
        let tied = first
            .tied_to
            .as_ref()
            .map_or_else(String::new, |other| format!("  (tied to {other})"));
        format!(
            "{sign} {}  {:?} {}  {} bytes{tied}",
            fold.name,
            first.shape,
            first.dtype,
            grouped(n_bytes)
        )
    });
    folds.collect()
}

/// Pairs of names fold where both fold alike.
fn renamed(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, _)> = diff
        .renamed
        .iter()
        .map(|tensor| {
            // The new name with the numbers taken out is the same for all rows of one fold.
            let shape_of_name: String = tensor.to.split(|c: char| c.is_ascii_digit()).collect();
            let kind = (&tensor.shape, &tensor.dtype_a, &tensor.dtype_b, shape_of_name);
            (tensor.from.as_str(), kind)
        })
        .collect();
    let mut out = Vec::new();
    for from in fold(&rows) {
        let tensors: Vec<_> = from.rows.iter().map(|&row| &diff.renamed[row]).collect();
        let targets: Vec<(&str, ())> = tensors.iter().map(|tensor| (tensor.to.as_str(), ())).collect();
        let to = fold(&targets);
        // In one fold, both sides count alike; else each pair has its row.
        let is_parallel = to.len() == 1 && to[0].rows.is_sorted();
        let pairs = if is_parallel {
            vec![(from.name.as_str(), to[0].name.as_str())]
        } else {
            let pairs = tensors.iter();
            pairs
                .map(|tensor| (tensor.from.as_str(), tensor.to.as_str()))
                .collect()
        };
        for (from, to) in pairs {
            let same = if tensors[0].dtype_a == tensors[0].dtype_b {
                "same bytes".to_owned()
            } else {
                format!("cast {}", types(&tensors[0].dtype_a, &tensors[0].dtype_b))
            };
            out.push(format!("» {from} -> {to}  ({same})"));
        }
    }
    out
}

fn cast(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, _)> = diff
        .cast
        .iter()
        .map(|tensor| {
            let is_back = tensor.proof == CastProof::OfB;
            let kind = (&tensor.shape, &tensor.from, &tensor.to, is_back);
            (tensor.name.as_str(), kind)
        })
        .collect();
    let folds = fold(&rows).into_iter().map(|fold| {
        let first = &diff.cast[fold.rows[0]];
        let proof = match first.proof {
            CastProof::OfA => "",
            CastProof::OfB => "  (A is rounded from B)",
            CastProof::Unread => "  (values not read)",
        };
        format!(
            "⇄ {}  {:?} {} -> {}{proof}",
            fold.name, first.shape, first.from, first.to
        )
    });
    folds.collect()
}

fn reshaped(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, _)> = diff
        .reshaped
        .iter()
        .map(|tensor| {
            let kind = (
                &tensor.from,
                &tensor.to,
                &tensor.dtype_a,
                &tensor.dtype_b,
                tensor.is_view,
            );
            (tensor.name.as_str(), kind)
        })
        .collect();
    let folds = fold(&rows).into_iter().map(|fold| {
        let first = &diff.reshaped[fold.rows[0]];
        let same = if first.is_view { "  (same bytes)" } else { "" };
        format!(
            "~ {}  {:?} -> {:?} {}{same}",
            fold.name,
            first.from,
            first.to,
            types(&first.dtype_a, &first.dtype_b)
        )
    });
    folds.collect()
}

fn transposed(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, _)> = diff
        .transposed
        .iter()
        .map(|tensor| (tensor.name.as_str(), (&tensor.shape, &tensor.dtype)))
        .collect();
    let folds = fold(&rows).into_iter().map(|fold| {
        let first = &diff.transposed[fold.rows[0]];
        let mut reverse = first.shape.clone();
        reverse.reverse();
        format!(
            "~ {}  {:?} -> {reverse:?} {}  (transposed)",
            fold.name, first.shape, first.dtype
        )
    });
    folds.collect()
}

fn letter(side: Side) -> char {
    match side {
        Side::A => 'A',
        Side::B => 'B',
    }
}

fn ties(diff: &Diff) -> Vec<String> {
    let rows = diff.ties.iter().map(|tie| {
        let (one, several) = match tie.tied_in {
            Side::A => ('A', 'B'),
            Side::B => ('B', 'A'),
        };
        format!(
            "tie {}  one tensor in {one}, several in {several}",
            tie.names.join(" = ")
        )
    });
    rows.collect()
}

fn marks(diff: &Diff) -> Vec<String> {
    let rows: Vec<(&str, char)> = diff
        .marks
        .iter()
        .map(|change| (change.name.as_str(), letter(change.trainable_in)))
        .collect();
    let mut out: Vec<String> = fold(&rows)
        .into_iter()
        .map(|fold| {
            let change = match diff.marks[fold.rows[0]].trainable_in {
                Side::A => "trainable -> frozen",
                Side::B => "frozen -> trainable",
            };
            format!("mark {}  {change}", fold.name)
        })
        .collect();
    if let Some(side) = diff.unmarked {
        out.push(format!("mark: {} says nothing of what is frozen", letter(side)));
    }
    out
}

fn metadata(diff: &Diff) -> Vec<String> {
    let text = |value: &Option<String>| match value {
        None => "(none)".to_owned(),
        Some(value) => cut(value),
    };
    let rows = diff.metadata.iter();
    rows.map(|change| format!("meta {}: {} -> {}", change.key, text(&change.a), text(&change.b)))
        .collect()
}

/// Metadata may be whole documents.
fn cut(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

fn health(diff: &Diff) -> Vec<String> {
    let texts: Vec<String> = diff
        .health
        .iter()
        .map(|health| match (health.a, health.b) {
            (Some(a), Some(b)) if a == b => format!("in both: {}", census(a)),
            (a, b) => {
                let side = |side: char, census_of: Option<Census>| {
                    census_of.map(|found| format!("{side}: {}", census(found)))
                };
                let sides: Vec<String> = [side('A', a), side('B', b)].into_iter().flatten().collect();
                sides.join("; ")
            }
        })
        .collect();
    let rows: Vec<(&str, &str)> = diff
        .health
        .iter()
        .zip(&texts)
        .map(|(health, text)| (health.name.as_str(), text.as_str()))
        .collect();
    let folds = fold(&rows).into_iter();
    folds
        .map(|fold| format!("! {}  {}", fold.name, texts[fold.rows[0]]))
        .collect()
}

fn census(census: Census) -> String {
    let mut parts = Vec::new();
    if census.n_nan > 0 {
        parts.push(format!("{} NaN", census.n_nan));
    }
    if census.n_inf > 0 {
        parts.push(format!("{} Inf", census.n_inf));
    }
    if census.is_zero {
        parts.push("all zero".to_owned());
    }
    if parts.is_empty() {
        parts.push("finite".to_owned());
    }
    parts.join(", ")
}

fn layout(diff: &Diff) -> Vec<String> {
    let layout = &diff.layout;
    let mut rows = Vec::new();
    let [a, b] = &layout.format;
    if a != b {
        rows.push(format!("disk: {a} -> {b}"));
    }
    let [a, b] = &layout.wrapper;
    if a != b {
        let name = |wrapper: &str| {
            if wrapper.is_empty() {
                "the root".to_owned()
            } else {
                format!("`{wrapper}`")
            }
        };
        rows.push(format!("disk: state dict at {} -> {}", name(a), name(b)));
    }
    let [a, b] = layout.n_bytes;
    if a != b {
        rows.push(format!("disk: {} -> {} bytes of tensors", grouped(a), grouped(b)));
    }
    rows
}
