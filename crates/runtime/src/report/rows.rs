//! Single rows that are worth a look: the most confident mistakes, and those whose label is doubted.

use super::page::{Card, Page};
use super::thumbnail::Thumbnail;
use super::{N_LISTED, Suspects, wanted};
use crate::metrics::{Judged, sigmoid};
use crate::targets::{Targets, Task};

/// Rows with what a head says of them.
#[derive(Clone, Copy)]
pub struct Rows<'r> {
    /// `[N, C]`.
    pub logits: &'r [f32],
    /// What is wanted of each.
    pub targets: &'r Targets,
    /// What they are called; empty where the features come from an array.
    pub names: &'r [String],
    /// The picture of a row, where it has one that can be read.
    pub thumbnail: Option<&'r dyn Fn(usize) -> Option<Thumbnail>>,
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("n", &self.targets.len())
            .finish_non_exhaustive()
    }
}

impl Rows<'_> {
    fn name(&self, row: usize) -> String {
        self.names
            .get(row)
            .cloned()
            .unwrap_or_else(|| format!("row {row}"))
    }

    fn card(&self, row: usize, text: String) -> Card {
        Card {
            picture: self.thumbnail.and_then(|thumbnail| thumbnail(row)),
            text,
            name: self.name(row),
        }
    }
}

/// The rows of which the head is surest and wrong.
pub(super) fn mistakes(page: &mut Page, task: Task, outputs: &[String], rows: &Rows<'_>) {
    let k = outputs.len().max(1);
    let logits = rows.logits.chunks_exact(k).enumerate();
    // How wrong, of which row, and in what.
    let mut wrong: Vec<(f64, usize, String)> = match rows.targets {
        Targets::Classes(labels) => logits
            .zip(labels)
            .filter_map(|((row, logits), &label)| {
                let judged = Judged::new(logits);
                let probability = judged.probability(judged.class);
                let is_wrong = judged.class != label as usize;
                is_wrong.then(|| (probability, row, text_of(outputs, judged.class, probability)))
            })
            .collect(),
        Targets::Dense { values, .. } if task == Task::MultiLabel => logits
            .zip(values.chunks_exact(k))
            .filter_map(|((row, logits), labels)| {
                let missed = |(at, (logit, label)): (usize, (&f32, &f32))| {
                    let probability = sigmoid(f64::from(*logit));
                    let off = (probability - f64::from(*label)).abs();
                    (off > 0.5).then_some((off, at, probability))
                };
                let pairs = logits.iter().zip(labels).enumerate();
                let worst = pairs.filter_map(missed).max_by(|a, b| a.0.total_cmp(&b.0));
                worst.map(|(off, at, probability)| (off, row, text_of(outputs, at, probability)))
            })
            .collect(),
        Targets::Dense { values, .. } => logits
            .zip(values.chunks_exact(k))
            .filter_map(|((row, predicted), targets)| {
                let pairs = predicted.iter().zip(targets).enumerate();
                let off = pairs.map(|(at, (p, t))| ((f64::from(*p) - f64::from(*t)).abs(), at));
                let (off, at) = off.max_by(|a, b| a.0.total_cmp(&b.0))?;
                let text = format!(
                    "{} is {} and predicted as {}",
                    outputs[at], targets[at], predicted[at]
                );
                Some((off, row, text))
            })
            .collect(),
    };
    if wrong.is_empty() {
        return;
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let n_wrong = wrong.len();
    wrong.truncate(N_LISTED);
    let cards: Vec<Card> = wrong
        .into_iter()
        .map(|(_, row, text)| {
            let is = match task {
                Task::Regression => String::new(),
                Task::SingleLabel => format!("{} taken for ", wanted(rows.targets, row, outputs)),
                Task::MultiLabel => format!("[{}], but ", wanted(rows.targets, row, outputs)),
            };
            rows.card(row, format!("{is}{text}"))
        })
        .collect();
    match task {
        Task::Regression => page.section("Largest errors"),
        Task::SingleLabel | Task::MultiLabel => {
            page.section("Most confident mistakes");
            page.text(&format!("{} of {n_wrong} rows that are wrong.", cards.len()));
        }
    }
    page.cards(&cards);
}

fn text_of(outputs: &[String], class: usize, probability: f64) -> String {
    format!("{} with {:.1} %", outputs[class], probability * 100.0)
}

/// Training rows whose label looks wrong.
pub(super) fn suspects(page: &mut Page, outputs: &[String], suspects: &Suspects<'_>) {
    if suspects.rows.is_empty() {
        return;
    }
    let cards: Vec<Card> = suspects
        .rows
        .iter()
        .take(N_LISTED)
        .map(|suspect| {
            let is = wanted(suspects.of.targets, suspect.row, outputs);
            let rather = &outputs[suspect.predicted as usize];
            let text = format!("labelled {is}, rather {rather} ({:.3})", suspect.score);
            suspects.of.card(suspect.row, text)
        })
        .collect();
    page.section("Labels to look at");
    page.text(&format!(
        "Training rows that the others contradict most, in brackets their {}. Not every one is wrong.",
        suspects.score
    ));
    page.cards(&cards);
}
