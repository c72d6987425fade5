//! The report of the main job.

use std::path::Path;

use super::Trained;
use crate::data::Dataset;
use crate::features::Labelled;
use crate::metrics::Marks;
use crate::report::{Chart, ReportInput, Rows, Scale, Series, Thumbnail, html};
use crate::targets::Task;

/// `report.html` of a run on pictures: `metrics` is what `metrics.json` holds, and `samples` says which sample of the data
/// set each validation row is.
pub(super) fn of_fit(
    source: &Path,
    metrics: &serde_json::Value,
    trained: &Trained,
    val_rows: &Labelled,
    data: &Dataset,
    samples: &[usize],
) -> String {
    let train = Marks::SingleLabel(trained.train.clone());
    let val = trained.val.clone().map(Marks::SingleLabel);
    let chosen = if trained.selection.is_some() {
        " (chosen on held-out training rows)"
    } else {
        ""
    };
    let said = |pointer: &str| match metrics.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let settings = [
        ("data", source.display().to_string()),
        ("classes", trained.head.n_outputs().to_string()),
        ("C", format!("{}{chosen}", trained.c)),
        ("cut at", said("/boundary")),
        (
            "features from the cache / computed",
            format!("{} / {}", said("/cache/hits"), said("/cache/misses")),
        ),
        ("pictures left out", said("/left_out")),
        (
            "largest difference of a logit, exported model against trainer",
            said("/export/max_abs_logit_diff"),
        ),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    let thumbnail = |row: usize| {
        let sample = samples.get(row)?;
        let mut reader = data.reader();
        Thumbnail::of(&reader.read(*sample).ok()?)
    };
    html(&ReportInput {
        title: &format!("graftwork fit of {}", source.display()),
        task: Task::SingleLabel,
        outputs: trained.head.outputs(),
        settings: &settings,
        train: Some(&train),
        val: val.as_ref(),
        judged: Some(Rows {
            logits: &trained.val_logits,
            targets: &val_rows.targets,
            names: &val_rows.names,
            thumbnail: Some(&thumbnail),
        }),
        temperature: None,
        charts: &charts(trained),
        baselines: &[],
        suspects: None,
    })
}

/// How the held-out rows fared over C, where it was chosen.
fn charts(trained: &Trained) -> Vec<Chart> {
    let Some(selection) = &trained.selection else {
        return Vec::new();
    };
    let chart = |title: &str, of: fn(&crate::solve::Candidate) -> f64| Chart {
        title: title.to_owned(),
        x_label: "C".to_owned(),
        x_scale: Scale::Log,
        series: vec![Series {
            name: title.to_owned(),
            points: selection
                .candidates
                .iter()
                .map(|candidate| (candidate.c, of(candidate)))
                .collect(),
        }],
        mark: Some(selection.c),
    };
    vec![
        chart("held-out log loss over C", |candidate| {
            candidate.held_out_log_loss
        }),
        chart("held-out accuracy over C", |candidate| {
            candidate.held_out_accuracy
        }),
    ]
}
