use super::*;
use crate::metrics::{Metrics, MultiLabelMetrics, RegressionMetrics};

fn names(n: usize) -> Vec<String> {
    (0..n).map(|class| format!("class {class}")).collect()
}

/// `n` rows of `k` logits of which every seventh names the next class.
fn logits(n: usize, k: usize) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..n).map(|row| (row % k) as u32).collect();
    let mut logits = vec![0.0; n * k];
    for (row, label) in labels.iter().enumerate() {
        let said = (*label as usize + usize::from(row % 7 == 3)) % k;
        logits[row * k + said] = 1.0 + row as f32 / n as f32;
    }
    (logits, labels)
}

/// Whether each tag that is opened is closed, for those that HTML does not close by itself.
fn check_balanced(html: &str) {
    for tag in [
        "table", "div", "svg", "details", "thead", "ol", "h1", "h2", "style", "title", "html",
    ] {
        let open = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        let closed = html.matches(&format!("</{tag}>")).count();
        assert_eq!(open, closed, "{tag}");
    }
    for from_elsewhere in ["http:", "https:", "<script", "@import", "url("] {
        assert!(!html.contains(from_elsewhere), "{from_elsewhere}");
    }
}

#[test]
fn a_classifiers_report_has_all_of_it() {
    let (logits, labels) = logits(100, 3);
    let outputs = vec!["cat".to_owned(), "<b>dog</b>".to_owned(), "cow & calf".to_owned()];
    let targets = Targets::Classes(labels.clone());
    let marks = Marks::SingleLabel(Metrics::new(&logits, &labels, &outputs));
    let row_names: Vec<String> = (0..100).map(|row| format!("a/\"{row}\".png")).collect();
    let temperature = Temperature::fit(Task::SingleLabel, &logits, &targets, 3).unwrap();
    let thumbnail = |row: usize| (row == 3).then(|| Thumbnail::shades(1, 1, &[9]).unwrap());
    let rows = Rows {
        logits: &logits,
        targets: &targets,
        names: &row_names,
        thumbnail: Some(&thumbnail),
    };
    let suspect = |row, label, predicted, score| Suspect {
        row,
        label,
        predicted,
        score,
    };
    let charts = [Chart {
        title: "held-out log loss".into(),
        x_label: "C".into(),
        x_scale: Scale::Log,
        series: vec![Series {
            name: "log loss".into(),
            points: vec![(0.01, 0.5), (0.1, 0.4), (1.0, 0.45)],
        }],
        mark: Some(0.1),
    }];
    let page = html(&ReportInput {
        title: "graftwork fit of `pets`",
        task: Task::SingleLabel,
        outputs: &outputs,
        settings: &[("C".into(), "0.1".into())],
        train: Some(&marks),
        val: Some(&marks),
        judged: Some(rows),
        temperature: Some(&temperature),
        charts: &charts,
        baselines: &[Baseline {
            name: "nearest class mean".into(),
            figure: 0.5,
            seconds: Some(0.01),
        }],
        suspects: Some(Suspects {
            // What the other rows speak for need not be what the head says.
            rows: &[suspect(3, 0, 2, 0.9), suspect(10, 1, 2, 0.8)],
            score: "leave-one-out residual",
            of: rows,
        }),
    });
    check_balanced(&page);
    for part in [
        "86.00 % right on 100 validation rows",
        "graftwork fit of `pets`",
        "nearest class mean",
        "held-out log loss",
        "<h2>Confusion</h2>",
        "cat taken for &lt;b&gt;dog&lt;/b&gt;",
        "cow &amp; calf",
        "<h2>Calibration</h2>",
        "Divided by a temperature of",
        "14 of 14 rows that are wrong",
        "a/&quot;3&quot;.png",
        "data:image/png;base64,",
        "labelled cat, rather cow &amp; calf (0.900)",
        "<td>C</td><td>0.1</td>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<b>"), "names are escaped");
    assert_eq!(
        page.matches("data:image").count(),
        2,
        "of the one row with a picture, in both lists"
    );
}

#[test]
fn many_classes_are_a_picture_and_a_closed_table() {
    let (logits, labels) = logits(3000, 300);
    let outputs = names(300);
    let marks = Marks::SingleLabel(Metrics::new(&logits, &labels, &outputs));
    let page = html(&ReportInput {
        title: "many",
        task: Task::SingleLabel,
        outputs: &outputs,
        settings: &[],
        train: None,
        val: Some(&marks),
        judged: None,
        temperature: None,
        charts: &[],
        baselines: &[],
        suspects: None,
    });
    check_balanced(&page);
    assert!(page.contains("<img class=\"heat\" width=\"600\""));
    assert!(page.contains("The 20 worst of 300:") && page.contains("<details>"));
    assert!(page.len() < 120_000, "{} bytes", page.len());
}

#[test]
fn other_tasks_have_what_they_have() {
    let outputs = names(2);
    let values = vec![0.5, -0.5, -2.0, 2.0, 1.0, 1.0];
    let labels = vec![1.0, 0.0, 1.0, 1.0, 0.0, 1.0];
    let targets = Targets::dense(labels.clone(), 2).unwrap();
    let rows = Rows {
        logits: &values,
        targets: &targets,
        names: &[],
        thumbnail: None,
    };
    let page = |task, marks: &Marks| {
        html(&ReportInput {
            title: "other",
            task,
            outputs: &outputs,
            settings: &[],
            train: Some(marks),
            val: None,
            judged: Some(rows),
            temperature: None,
            charts: &[],
            baselines: &[],
            suspects: None,
        })
    };
    let several = page(
        Task::MultiLabel,
        &Marks::MultiLabel(MultiLabelMetrics::new(&values, &labels, &outputs)),
    );
    check_balanced(&several);
    for part in [
        "mean average precision on 3 training rows",
        "[class 0, class 1], but class 0 with 11.9 %",
        "how often a class is there",
        "row 1",
    ] {
        assert!(several.contains(part), "{part}");
    }
    let numbers = page(
        Task::Regression,
        &Marks::Regression(RegressionMetrics::new(&values, &labels, &outputs)),
    );
    check_balanced(&numbers);
    for part in [
        "on 3 training rows",
        "Largest errors",
        "class 0 is 1 and predicted as -2",
        "<h2>Outputs</h2>",
    ] {
        assert!(numbers.contains(part), "{part}");
    }
    assert!(!numbers.contains("Calibration"));
}

#[test]
fn a_run_without_rows_has_a_title() {
    let page = html(&ReportInput {
        title: "empty <run>",
        task: Task::SingleLabel,
        outputs: &[],
        settings: &[],
        train: None,
        val: None,
        judged: None,
        temperature: None,
        charts: &[],
        baselines: &[],
        suspects: None,
    });
    check_balanced(&page);
    assert!(page.contains("<h1>empty &lt;run&gt;</h1>"));
}
