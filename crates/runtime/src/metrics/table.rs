//! Marks as text: the tables that scikit-learn's `classification_report` prints, character by character.

use std::fmt::Write;

use super::{Average, Metrics, MultiLabelMetrics, RegressionMetrics};

/// `classification_report(labels, predicted, labels=range(C), target_names=classes, digits=digits, zero_division=0)`.
///
/// Names are printed as they are; who prints to a terminal has to mind control characters in them.
pub fn classification_report(marks: &Metrics, digits: usize) -> String {
    let names = marks.per_class.iter().map(|class| class.class.as_str());
    let mut table = Table::new(names, ["precision", "recall", "f1-score", "support"], digits);
    for class in &marks.per_class {
        let average = Average {
            precision: class.precision,
            recall: class.recall,
            f1: class.f1,
        };
        table.average(&class.class, average, class.support);
    }
    table.text.push('\n');
    let (width, n) = (table.width, marks.n);
    let _ = writeln!(
        table.text,
        "{:>width$}  {:>9} {:>9} {:>9.digits$} {n:>9}",
        "accuracy", "", "", marks.accuracy
    );
    for (name, average) in ["macro avg", "weighted avg"].into_iter().zip(marks.averages()) {
        table.average(name, average, n);
    }
    table.text
}

/// `classification_report(labels, predicted, target_names=classes, digits=digits, zero_division=0)` of indicator matrices.
pub fn multi_label_report(marks: &MultiLabelMetrics, digits: usize) -> String {
    let names = marks.per_class.iter().map(|class| class.class.as_str());
    let mut table = Table::new(names, ["precision", "recall", "f1-score", "support"], digits);
    let mut n_labels = 0;
    for class in &marks.per_class {
        let average = Average {
            precision: class.precision,
            recall: class.recall,
            f1: class.f1,
        };
        table.average(&class.class, average, class.support);
        n_labels += class.support;
    }
    table.text.push('\n');
    let names = ["micro avg", "macro avg", "weighted avg", "samples avg"];
    for (name, average) in names.into_iter().zip(marks.averages) {
        table.average(name, average, n_labels);
    }
    table.text
}

/// Errors of each output, and their means.
pub fn regression_report(marks: &RegressionMetrics, digits: usize) -> String {
    let names = marks.per_output.iter().map(|output| output.output.as_str());
    let mut table = Table::new(names, ["MAE", "RMSE", "R²", "rows"], digits);
    for output in &marks.per_output {
        table.row(&output.output, [output.mae, output.rmse, output.r2], marks.n);
    }
    if marks.per_output.len() > 1 {
        table.text.push('\n');
        table.row("mean", [marks.mae, marks.rmse, marks.r2], marks.n);
    }
    table.text
}

struct Table {
    text: String,
    width: usize,
    digits: usize,
}

impl Table {
    fn new<'n>(names: impl Iterator<Item = &'n str>, headers: [&str; 4], digits: usize) -> Table {
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
        let width = longest.max("weighted avg".len()).max(digits);
        let mut text = format!("{:>width$} ", "");
        for header in headers {
            let _ = write!(text, " {header:>9}");
        }
        text.push_str("\n\n");
        Table { text, width, digits }
    }

    fn average(&mut self, name: &str, average: Average, n: usize) {
        self.row(name, [average.precision, average.recall, average.f1], n);
    }

    fn row(&mut self, name: &str, figures: [f64; 3], n: usize) {
        let (width, digits) = (self.width, self.digits);
        let [first, second, third] = figures;
        let _ = writeln!(
            self.text,
            "{name:>width$}  {first:>9.digits$} {second:>9.digits$} {third:>9.digits$} {n:>9}"
        );
    }
}
