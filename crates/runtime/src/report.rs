//! `report.html`: one page without anything from elsewhere.

use std::fmt::Write;
use std::path::Path;

use crate::features::Labelled;
use crate::job::Trained;
use crate::metrics::{Judged, Metrics};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child{text-align:left}.m td{min-width:2.4rem;text-align:center}h2{margin-top:2rem}\
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}td,th{border-color:#333}}";

/// Mistakes that are listed.
const N_MISTAKES: usize = 20;

pub(crate) fn html(
    data: &Path,
    metrics: &serde_json::Value,
    trained: &Trained,
    val_rows: &Labelled,
) -> String {
    let mut page = String::new();
    let classes = trained.head.outputs();
    let val = trained.val.as_ref().unwrap_or(&trained.train);
    page.push_str("<!doctype html><html lang=en><meta charset=utf-8><title>graftwork report</title>");
    let _ = write!(
        page,
        "<style>{STYLE}</style><h1>{:.2} % right on {} pictures</h1>",
        val.accuracy * 100.0,
        val.n
    );
    let rows = [
        ("data", data.display().to_string()),
        ("classes", classes.len().to_string()),
        ("training pictures", trained.train.n.to_string()),
        (
            "training accuracy",
            format!("{:.2} %", trained.train.accuracy * 100.0),
        ),
        ("validation accuracy", format!("{:.2} %", val.accuracy * 100.0)),
        ("validation log loss", format!("{:.4}", val.log_loss)),
        ("macro F1", format!("{:.4}", val.macro_f1)),
        (
            "C",
            format!(
                "{}{}",
                trained.c,
                if trained.selection.is_some() {
                    " (chosen on held-out training pictures)"
                } else {
                    ""
                }
            ),
        ),
        ("cut at", text(metrics, "/boundary")),
        (
            "features from the cache / computed",
            format!(
                "{} / {}",
                text(metrics, "/cache/hits"),
                text(metrics, "/cache/misses")
            ),
        ),
        ("pictures left out", text(metrics, "/left_out")),
        (
            "largest difference of a logit, exported model against trainer",
            text(metrics, "/export/max_abs_logit_diff"),
        ),
    ];
    page.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(page, "<tr><td>{name}<td>{}", escape(&value));
    }
    page.push_str("</table>");
    per_class(&mut page, val);
    confusion(&mut page, val, classes);
    if let Some(selection) = &trained.selection {
        page.push_str("<h2>Regularisation</h2><table><tr><th>C<th>held-out log loss<th>held-out accuracy");
        for candidate in &selection.candidates {
            let mark = if candidate.c == selection.c { " ←" } else { "" };
            let (loss, accuracy) = (candidate.held_out_log_loss, candidate.held_out_accuracy * 100.0);
            let _ = write!(
                page,
                "<tr><td>{:.4e}{mark}<td>{loss:.4}<td>{accuracy:.2} %",
                candidate.c
            );
        }
        page.push_str("</table>");
    }
    mistakes(&mut page, trained, val_rows);
    page.push_str("</html>\n");
    page
}

fn per_class(page: &mut String, marks: &Metrics) {
    page.push_str("<h2>Classes</h2><table><tr><th>class<th>precision<th>recall<th>F1<th>pictures");
    for class in &marks.per_class {
        let _ = write!(
            page,
            "<tr><td>{}<td>{:.3}<td>{:.3}<td>{:.3}<td>{}",
            escape(&class.class),
            class.precision,
            class.recall,
            class.f1,
            class.support
        );
    }
    page.push_str("</table>");
}

fn confusion(page: &mut String, marks: &Metrics, classes: &[String]) {
    page.push_str("<h2>Confusion</h2><p>Rows are what a picture is, columns what it is taken for.</p><table class=m><tr><th>");
    for class in classes {
        let _ = write!(page, "<th>{}", escape(class));
    }
    for (class, row) in classes.iter().zip(&marks.confusion) {
        let total = row.iter().sum::<usize>().max(1);
        let _ = write!(page, "<tr><td>{}", escape(class));
        for &count in row {
            let share = count as f64 / total as f64;
            let _ = write!(
                page,
                "<td style=\"background:rgba(70,130,220,{share:.2})\">{count}"
            );
        }
    }
    page.push_str("</table>");
}

fn mistakes(page: &mut String, trained: &Trained, val_rows: &Labelled) {
    let classes = trained.head.outputs();
    let rows = trained
        .val_logits
        .chunks_exact(classes.len())
        .zip(val_rows.targets.classes().unwrap_or_default())
        .zip(&val_rows.names);
    let mut wrong: Vec<(f64, usize, u32, &str)> = rows
        .filter_map(|((logits, &label), name)| {
            let judged = Judged::new(logits);
            let probability = judged.probability(judged.class);
            (judged.class != label as usize).then_some((probability, judged.class, label, name.as_str()))
        })
        .collect();
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.3.cmp(b.3)));
    if wrong.is_empty() {
        return;
    }
    page.push_str("<h2>Most confident mistakes</h2><table><tr><th>picture<th>is<th>taken for<th>probability");
    for (probability, class, label, name) in wrong.into_iter().take(N_MISTAKES) {
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{probability:.3}",
            escape(name),
            escape(&classes[label as usize]),
            escape(&classes[class])
        );
    }
    page.push_str("</table>");
}

fn text(metrics: &serde_json::Value, pointer: &str) -> String {
    match metrics.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
