//! `report.html`: one page without anything from elsewhere, that says how good a head is, where it errs, and what to look at.
//!
//! [`html`] makes it of plain data, so that every kind of job can have one. No script; light and dark as the reader has it;
//! names are escaped. A section without data is left out.

mod chart;
mod confusion;
mod page;
mod rows;
mod thumbnail;

pub use chart::{Chart, Scale, Series, charts_of_history};
pub use rows::Rows;
pub use thumbnail::Thumbnail;

use crate::metrics::{Marks, Reliability, Temperature};
use crate::solve::Suspect;
use crate::targets::{Targets, Task};
use page::Page;

/// What a report is made of; all of it is shown as it is.
#[derive(Debug, Clone)]
pub struct ReportInput<'r> {
    /// What was done: `graftwork fit`, and on what.
    pub title: &'r str,
    /// What the outputs mean.
    pub task: Task,
    /// Names of the outputs, in order.
    pub outputs: &'r [String],
    /// Figures and settings in the order in which they are shown: name and value.
    pub settings: &'r [(String, String)],
    /// Marks on the rows that it was trained on.
    pub train: Option<&'r Marks>,
    /// Marks on the validation rows.
    pub val: Option<&'r Marks>,
    /// The rows that mistakes and calibration are taken from: the validation rows, or those of training where there are none.
    pub judged: Option<Rows<'r>>,
    /// How the probabilities were calibrated.
    pub temperature: Option<&'r Temperature>,
    /// Figures per epoch, or per value of C.
    pub charts: &'r [Chart],
    /// Simpler ways to the same end.
    pub baselines: &'r [Baseline],
    /// Training rows whose label looks wrong, with a score that is shown, the likeliest first.
    pub suspects: Option<Suspects<'r>>,
}

/// One line of the table of baselines.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// What it is: `nearest class mean`, `20 nearest neighbours, cosine`.
    pub name: String,
    /// Its headline figure on the validation rows: see [`Marks::headline`].
    pub figure: f64,
    /// Wall time, where it was measured.
    pub seconds: Option<f64>,
}

/// Rows whose labels look wrong.
#[derive(Debug, Clone)]
pub struct Suspects<'r> {
    /// The likeliest first.
    pub rows: &'r [Suspect],
    /// What the score is, as a phrase: `leave-one-out residual`.
    pub score: &'r str,
    /// The rows that the numbers count.
    pub of: Rows<'r>,
}

/// Mistakes and suspects that are listed.
const N_LISTED: usize = 24;
/// Classes up to which the table of classes is open.
const MAX_OPEN_CLASSES: usize = 60;
/// The worst of more classes are shown in front of the closed table.
const N_WORST_CLASSES: usize = 20;

/// The page.
pub fn html(input: &ReportInput<'_>) -> String {
    let mut page = Page::new(input.title);
    summary(&mut page, input);
    baselines(&mut page, input);
    page.charts(
        input
            .charts
            .iter()
            .map(|chart| (chart.title.as_str(), chart.svg())),
    );
    if let Some(marks) = input.val.or(input.train) {
        match marks {
            Marks::SingleLabel(marks) => confusion::section(&mut page, marks),
            Marks::MultiLabel(_) | Marks::Regression(_) => {}
        }
        classes(&mut page, marks);
    }
    calibration(&mut page, input);
    if let Some(rows) = &input.judged {
        rows::mistakes(&mut page, input.task, input.outputs, rows);
    }
    if let Some(suspects) = &input.suspects {
        rows::suspects(&mut page, input.outputs, suspects);
    }
    settings(&mut page, input);
    page.finish()
}

fn summary(page: &mut Page, input: &ReportInput<'_>) {
    let Some(marks) = input.val.or(input.train) else {
        return;
    };
    let of = if input.val.is_some() {
        "validation"
    } else {
        "training"
    };
    page.headline(&match marks {
        Marks::SingleLabel(marks) => {
            format!("{:.2} % right on {} {of} rows", marks.accuracy * 100.0, marks.n)
        }
        Marks::MultiLabel(marks) => {
            format!(
                "{:.2} % mean average precision on {} {of} rows",
                marks.mean_average_precision * 100.0,
                marks.n
            )
        }
        Marks::Regression(marks) => format!("R² {:.4} on {} {of} rows", marks.r2, marks.n),
    });
    let mut table = page.table(&["", "validation", "training"]);
    let both = [input.val, input.train];
    let labels: Vec<&str> = both.iter().flatten().next().map_or(Vec::new(), |marks| {
        figures(marks).into_iter().map(|(label, _)| label).collect()
    });
    for (at, label) in labels.into_iter().enumerate() {
        let cell = |marks: Option<&Marks>| {
            marks
                .and_then(|marks| figures(marks).into_iter().nth(at))
                .map_or_else(String::new, |(_, value)| value)
        };
        table.row(&[label, &cell(both[0]), &cell(both[1])]);
    }
}

/// The figures of some marks with their names.
fn figures(marks: &Marks) -> Vec<(&'static str, String)> {
    let share = |value: f64| format!("{:.2} %", value * 100.0);
    let number = |value: f64| format!("{value:.4}");
    match marks {
        Marks::SingleLabel(marks) => {
            let mut figures = vec![("rows", marks.n.to_string()), ("accuracy", share(marks.accuracy))];
            figures.extend(
                marks
                    .top5_accuracy
                    .map(|top5| ("accuracy of the best five", share(top5))),
            );
            figures.extend([
                ("log loss", number(marks.log_loss)),
                ("macro F1", number(marks.macro_f1)),
                ("Brier score", number(marks.brier)),
                ("expected calibration error", share(marks.ece)),
            ]);
            figures
        }
        Marks::MultiLabel(marks) => vec![
            ("rows", marks.n.to_string()),
            ("mean average precision", share(marks.mean_average_precision)),
            ("micro F1", number(marks.micro_f1)),
            ("macro F1", number(marks.macro_f1)),
            ("rows that are right in all", share(marks.exact_match)),
            ("log loss", number(marks.log_loss)),
            ("Brier score", number(marks.brier)),
            ("expected calibration error", share(marks.ece)),
        ],
        Marks::Regression(marks) => vec![
            ("rows", marks.n.to_string()),
            ("mean absolute error", number(marks.mae)),
            ("root mean squared error", number(marks.rmse)),
            ("R²", number(marks.r2)),
        ],
    }
}

fn baselines(page: &mut Page, input: &ReportInput<'_>) {
    if input.baselines.is_empty() {
        return;
    }
    page.section("Baselines");
    let (name, own) = input.val.or(input.train).map_or(("figure", None), |marks| {
        let (name, figure) = marks.headline();
        (name, Some(figure))
    });
    let shown = |figure: f64| match input.task {
        Task::Regression => format!("{figure:.4}"),
        Task::SingleLabel | Task::MultiLabel => format!("{:.2} %", figure * 100.0),
    };
    let mut table = page.table(&["", name, "seconds"]);
    if let Some(own) = own {
        table.row(&["this head", &shown(own), ""]);
    }
    for baseline in input.baselines {
        let seconds = baseline
            .seconds
            .map_or_else(String::new, |seconds| format!("{seconds:.2}"));
        table.row(&[&baseline.name, &shown(baseline.figure), &seconds]);
    }
}

/// A line of the table of classes: name, figures, rows, and what the worst are sorted by.
struct ClassLine {
    cells: Vec<String>,
    worth: f64,
}

fn classes(page: &mut Page, marks: &Marks) {
    let three = |figures: [f64; 3]| figures.map(|figure| format!("{figure:.3}"));
    let (title, heads, lines): (&str, &[&str], Vec<ClassLine>) = match marks {
        Marks::SingleLabel(marks) => {
            let line = |class: &crate::metrics::ClassMetrics| {
                let [precision, recall, f1] = three([class.precision, class.recall, class.f1]);
                ClassLine {
                    cells: vec![
                        class.class.clone(),
                        precision,
                        recall,
                        f1,
                        class.support.to_string(),
                    ],
                    worth: class.f1,
                }
            };
            let heads = &["class", "precision", "recall", "F1", "rows"];
            ("Classes", heads, marks.per_class.iter().map(line).collect())
        }
        Marks::MultiLabel(marks) => {
            let line = |class: &crate::metrics::LabelMetrics| {
                let average_precision = class
                    .average_precision
                    .map_or("–".to_owned(), |ap| format!("{ap:.3}"));
                let [precision, recall, f1] = three([class.precision, class.recall, class.f1]);
                let name = class.class.clone();
                ClassLine {
                    cells: vec![
                        name,
                        average_precision,
                        precision,
                        recall,
                        f1,
                        class.support.to_string(),
                    ],
                    worth: class.average_precision.unwrap_or(2.0),
                }
            };
            let heads = &["class", "average precision", "precision", "recall", "F1", "rows"];
            ("Classes", heads, marks.per_class.iter().map(line).collect())
        }
        Marks::Regression(marks) => {
            let line = |output: &crate::metrics::OutputMetrics| {
                let [mae, rmse, r2] =
                    [output.mae, output.rmse, output.r2].map(|figure| format!("{figure:.4}"));
                ClassLine {
                    cells: vec![output.output.clone(), mae, rmse, r2],
                    worth: output.r2,
                }
            };
            let heads = &["output", "mean absolute error", "root mean squared error", "R²"];
            ("Outputs", heads, marks.per_output.iter().map(line).collect())
        }
    };
    page.section(title);
    let is_open = lines.len() <= MAX_OPEN_CLASSES;
    if !is_open {
        let mut worst: Vec<&ClassLine> = lines.iter().collect();
        worst.sort_by(|a, b| a.worth.total_cmp(&b.worth));
        page.text(&format!("The {N_WORST_CLASSES} worst of {}:", lines.len()));
        let mut table = page.table(heads);
        for line in worst.into_iter().take(N_WORST_CLASSES) {
            table.row(&line.cells);
        }
        drop(table);
        page.fold("all of them");
    }
    let mut table = page.table(heads);
    lines.iter().for_each(|line| table.row(&line.cells));
    drop(table);
    if !is_open {
        page.end_fold();
    }
}

fn calibration(page: &mut Page, input: &ReportInput<'_>) {
    let reliability = input
        .judged
        .as_ref()
        .and_then(|rows| Reliability::new(input.task, rows.logits, rows.targets, input.outputs.len()).ok());
    if reliability.is_none() && input.temperature.is_none() {
        return;
    }
    page.section("Calibration");
    if let Some(reliability) = &reliability {
        let what = match input.task {
            Task::SingleLabel => "how often the head is right",
            Task::MultiLabel | Task::Regression => "how often a class is there",
        };
        page.text(&format!(
            "Each bar is {what} where it is sure to the degree below it; the line is where the bars would end if its \
             probabilities meant what they say. Expected calibration error: {:.2} %.",
            reliability.ece * 100.0
        ));
        page.svg(&chart::reliability(reliability));
    }
    if let Some(temperature) = input.temperature {
        page.text(&format!(
            "Divided by a temperature of {:.3}, fitted on {} held-out rows, the logits' log loss is {:.4} where it was {:.4}, \
             and their expected calibration error {:.2} % where it was {:.2} %.",
            temperature.value,
            temperature.n,
            temperature.log_loss_after,
            temperature.log_loss_before,
            temperature.ece_after * 100.0,
            temperature.ece_before * 100.0
        ));
    }
}

fn settings(page: &mut Page, input: &ReportInput<'_>) {
    if input.settings.is_empty() {
        return;
    }
    page.section("Settings");
    let mut table = page.table(&[]);
    for (name, value) in input.settings {
        table.row(&[name, value]);
    }
}

/// What a row is, as text: its class, its classes, or nothing.
fn wanted(targets: &Targets, row: usize, outputs: &[String]) -> String {
    match targets {
        Targets::Classes(labels) => {
            let label = labels.get(row).and_then(|label| outputs.get(*label as usize));
            label.cloned().unwrap_or_default()
        }
        Targets::Dense { values, n_outputs } => {
            let values = values
                .get(row * n_outputs..(row + 1) * n_outputs)
                .unwrap_or_default();
            let has = outputs.iter().zip(values).filter(|(_, value)| **value > 0.5);
            let has: Vec<&str> = has.map(|(output, _)| output.as_str()).collect();
            has.join(", ")
        }
    }
}

#[cfg(test)]
mod tests;
