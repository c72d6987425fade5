//! Which classes are taken for which: a coloured table, or a picture of many, and the worst pairs.

use super::page::Page;
use super::thumbnail::Thumbnail;
use crate::metrics::Metrics;

/// Classes up to which the counts can be read in a table.
const MAX_TABLE: usize = 40;
/// Pairs that are listed.
const N_PAIRS: usize = 20;

pub(super) fn section(page: &mut Page, marks: &Metrics) {
    let k = marks.confusion.len();
    if k == 0 {
        return;
    }
    page.section("Confusion");
    page.text(
        "Rows are what a picture is, columns what it is taken for; the colour is the share of the row.",
    );
    let share = |row: &[usize], count: usize| count as f64 / row.iter().sum::<usize>().max(1) as f64;
    if k <= MAX_TABLE {
        let heads: Vec<String> = marks.per_class.iter().map(|class| class.class.clone()).collect();
        let rows = marks.confusion.iter();
        let rows = rows.map(|row| row.iter().map(|&count| (count, share(row, count))).collect());
        page.matrix(&heads, &rows.collect::<Vec<_>>());
    } else {
        // The square root, so that one picture in a hundred is still seen.
        let shades: Vec<u8> = marks
            .confusion
            .iter()
            .flat_map(|row| {
                row.iter()
                    .map(move |&count| (share(row, count).sqrt() * 255.0).round() as u8)
            })
            .collect();
        if let Some(picture) = Thumbnail::shades(k, k, &shades) {
            // Each class a whole number of pixels.
            let side = k * (600 / k).max(1);
            page.heat(&picture, side, &format!("confusion of {k} classes"));
        }
    }
    let pairs = worst_pairs(marks);
    if !pairs.is_empty() {
        page.text("Most often taken for another:");
        page.list(&pairs);
    }
}

/// `cat taken for dog: 12 of 50 (24 %)`, the most frequent first.
fn worst_pairs(marks: &Metrics) -> Vec<String> {
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    for (is, row) in marks.confusion.iter().enumerate() {
        let wrong = row
            .iter()
            .enumerate()
            .filter(|(taken, count)| *taken != is && **count > 0);
        pairs.extend(wrong.map(|(taken, &count)| (count, is, taken)));
    }
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let class = |at: usize| marks.per_class.get(at).map_or("", |class| class.class.as_str());
    let text = |(count, is, taken): (usize, usize, usize)| {
        let total: usize = marks.confusion[is].iter().sum();
        let share = 100.0 * count as f64 / total.max(1) as f64;
        format!(
            "{} taken for {}: {count} of {total} ({share:.0} %)",
            class(is),
            class(taken)
        )
    };
    pairs.into_iter().take(N_PAIRS).map(text).collect()
}
