//! Marks the rows of a JSON object on standard input as JSON, for comparison with scikit-learn (`tools/check_metrics.py`):
//! `{"task": "single-label", "outputs": […], "logits": […], "labels": […]}`, or `"values"` in the place of the labels.

#![expect(clippy::print_stdout, reason = "an example for the terminal")]

use std::error::Error;

use runtime::metrics::{Marks, Reliability, Temperature};
use runtime::{Targets, Task};
use serde::Deserialize;

#[derive(Deserialize)]
struct Given {
    task: Task,
    outputs: Vec<String>,
    logits: Vec<f32>,
    labels: Option<Vec<u32>>,
    values: Option<Vec<f32>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let given: Given = serde_json::from_reader(std::io::stdin().lock())?;
    let k = given.outputs.len();
    let targets = match (given.labels, given.values) {
        (Some(labels), None) => Targets::Classes(labels),
        (None, Some(values)) => Targets::dense(values, k)?,
        _ => return Err("either labels or values".into()),
    };
    let marks = Marks::new(given.task, &given.logits, &targets, &given.outputs)?;
    let mut said = serde_json::json!({ "marks": marks, "table": marks.table(3) });
    if given.task != Task::Regression {
        said["reliability"] =
            serde_json::to_value(Reliability::new(given.task, &given.logits, &targets, k)?)?;
        said["temperature"] =
            serde_json::to_value(Temperature::fit(given.task, &given.logits, &targets, k)?)?;
    }
    println!("{said}");
    Ok(())
}
