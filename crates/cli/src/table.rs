//! The marks of a classifier as a table, in the manner of scikit-learn's `classification_report`.

use runtime::metrics::Metrics;

use crate::text::plain;

/// Classes up to which the confusion matrix fits a terminal.
const MAX_CONFUSION: usize = 20;

pub(crate) fn metrics(marks: &Metrics) -> String {
    let width = marks
        .per_class
        .iter()
        .map(|class| class.class.chars().count())
        .max()
        .unwrap_or(0)
        .clamp(8, 40);
    let mut text = format!("{:>width$}  precision  recall      f1  pictures\n", "");
    for class in &marks.per_class {
        text.push_str(&format!(
            "{:>width$}  {:>9.3}  {:>6.3}  {:>6.3}  {:>8}\n",
            plain(&class.class),
            class.precision,
            class.recall,
            class.f1,
            class.support
        ));
    }
    if marks.per_class.len() <= MAX_CONFUSION {
        let cell = marks
            .confusion
            .iter()
            .flatten()
            .max()
            .map_or(1, |count| count.to_string().len())
            .max(3);
        text.push_str(&format!(
            "\n{:>width$}  (rows: is; columns: taken for, in the same order)\n",
            "confusion"
        ));
        for (class, row) in marks.per_class.iter().zip(&marks.confusion) {
            text.push_str(&format!("{:>width$} ", plain(&class.class)));
            row.iter()
                .for_each(|count| text.push_str(&format!(" {count:>cell$}")));
            text.push('\n');
        }
    }
    text.push_str(&format!(
        "\naccuracy {:.2} %  macro f1 {:.4}  log loss {:.4}  ({} pictures)\n",
        marks.accuracy * 100.0,
        marks.macro_f1,
        marks.log_loss,
        marks.n
    ));
    text
}
