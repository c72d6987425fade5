//! The report of a run, and the list of labels to look at.

use serde_json::Value;

use super::train::{Descent, Trained, Way};
use crate::features::Labelled;
use crate::report::{Chart, ReportInput, Rows, Scale, Series, Suspects, Thumbnail, charts_of_history, html};
use crate::solve::Selection;
use crate::targets::Targets;
use crate::tune::Split;

/// The picture of a row.
pub(super) type Picture<'p> = &'p dyn Fn(usize) -> Option<Thumbnail>;

/// What is wanted of rows, and what they are called.
#[derive(Clone, Copy)]
pub(super) struct Named<'p> {
    pub(super) targets: &'p Targets,
    pub(super) names: &'p [String],
}

impl<'p> From<&'p Labelled> for Named<'p> {
    fn from(rows: &'p Labelled) -> Named<'p> {
        Named {
            targets: &rows.targets,
            names: &rows.names,
        }
    }
}

impl<'p> From<&'p Split<'_>> for Named<'p> {
    fn from(rows: &'p Split<'_>) -> Named<'p> {
        Named {
            targets: &rows.targets,
            names: &rows.names,
        }
    }
}

/// What a report is made of beside the head.
pub(super) struct Page<'p> {
    pub(super) title: &'p str,
    /// What `metrics.json` holds.
    pub(super) metrics: &'p Value,
    /// Names of settings, and where `metrics.json` has them.
    pub(super) said: &'p [(&'p str, &'p str)],
    pub(super) train: Named<'p>,
    pub(super) val: Option<Named<'p>>,
    /// Pictures of training and validation rows, where there are such.
    pub(super) train_picture: Option<Picture<'p>>,
    pub(super) val_picture: Option<Picture<'p>>,
}

/// What the leave-one-out error of a row is called.
const SCORE: &str = "leave-one-out residual";

impl Page<'_> {
    /// `report.html`.
    pub(super) fn html(&self, trained: &Trained) -> String {
        let mut settings = way(&trained.way);
        for (name, pointer) in self.said {
            let value = match self.metrics.pointer(pointer) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            };
            settings.push(((*name).to_owned(), value));
        }
        let judged = self.val.map(|val| Rows {
            logits: &trained.val_logits,
            targets: val.targets,
            names: val.names,
            thumbnail: self.val_picture,
        });
        let suspects = (!trained.suspects.is_empty()).then(|| Suspects {
            rows: &trained.suspects,
            score: SCORE,
            of: Rows {
                logits: &[],
                targets: self.train.targets,
                names: self.train.names,
                thumbnail: self.train_picture,
            },
        });
        html(&ReportInput {
            title: self.title,
            task: trained.head.task(),
            outputs: trained.head.outputs(),
            settings: &settings,
            train: Some(&trained.train),
            val: trained.val.as_ref(),
            judged,
            temperature: trained.temperature.as_ref(),
            charts: &charts(&trained.way),
            baselines: &trained.baselines,
            suspects,
        })
    }
}

/// All suspects as CSV: which row, its name, the class it is said to have, the class the others speak for, and the score.
pub(super) fn suspects_csv(trained: &Trained, train: &Labelled) -> Option<String> {
    if trained.suspects.is_empty() {
        return None;
    }
    let outputs = trained.head.outputs();
    let mut text = String::from("row,name,label,predicted,score\n");
    for suspect in &trained.suspects {
        let name = train.names.get(suspect.row).map_or("", String::as_str);
        let [label, predicted] = [suspect.label, suspect.predicted].map(|class| &outputs[class as usize]);
        text.push_str(&format!(
            "{},{},{},{},{}\n",
            suspect.row,
            quoted(name),
            quoted(label),
            quoted(predicted),
            suspect.score
        ));
    }
    Some(text)
}

/// A field by RFC 4180.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

/// How the head came about, as settings of the report.
fn way(way: &Way) -> Vec<(String, String)> {
    let settings = match way {
        Way::Solved { fitted, selection } => {
            let chosen = match selection {
                Some(_) => " (chosen on held-out training rows)",
                None => "",
            };
            vec![
                ("C", format!("{}{chosen}", fitted.c)),
                ("passes of the solver", fitted.passes.to_string()),
            ]
        }
        Way::Descended {
            heads,
            chosen,
            ran_on,
        } => {
            let head = &heads[*chosen];
            let mut settings = vec![
                ("trained on", ran_on.clone()),
                ("learning rate", head.settings.lr.to_string()),
                ("weight decay", head.settings.weight_decay.to_string()),
                ("best epoch", format!("{} of {}", head.best_epoch, head.epochs)),
            ];
            if heads.len() > 1 {
                let text = format!("{} (chosen by their best epochs' figures)", heads.len());
                settings.insert(0, ("heads of the sweep", text));
            }
            settings
        }
    };
    let owned = |(name, value): (&str, String)| (name.to_owned(), value);
    settings.into_iter().map(owned).collect()
}

fn charts(way: &Way) -> Vec<Chart> {
    match way {
        Way::Solved { selection, .. } => selection.as_ref().map_or_else(Vec::new, of_selection),
        Way::Descended { heads, chosen, .. } => {
            let best = heads[*chosen].best_epoch as u64;
            let mut charts = charts_of_history(&heads[*chosen].scalars(), Some(best));
            charts.extend(of_sweep(heads, *chosen));
            charts
        }
    }
}

/// How the held-out rows fared over C.
fn of_selection(selection: &Selection) -> Vec<Chart> {
    let chart = |title: &str, of: fn(&crate::solve::Candidate) -> f64| {
        let points = selection.candidates.iter();
        Chart {
            title: title.to_owned(),
            x_label: "C".to_owned(),
            x_scale: Scale::Log,
            series: vec![Series {
                name: title.to_owned(),
                points: points.map(|candidate| (candidate.c, of(candidate))).collect(),
            }],
            mark: Some(selection.c),
        }
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

/// The best validation loss over the learning rate, a line for each weight decay and seed.
fn of_sweep(heads: &[Descent], chosen: usize) -> Option<Chart> {
    if heads.len() < 2 {
        return None;
    }
    let mut series: Vec<Series> = Vec::new();
    for head in heads {
        let Some(best) = &head.best else { continue };
        let name = format!(
            "weight decay {}, seed {}",
            head.settings.weight_decay, head.settings.init_seed
        );
        let point = (head.settings.lr, best.val_loss.unwrap_or(best.train_loss));
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Some(Chart {
        title: "loss of the best epoch over the learning rate".to_owned(),
        x_label: "learning rate".to_owned(),
        x_scale: Scale::Log,
        series,
        mark: Some(heads[chosen].settings.lr),
    })
}
