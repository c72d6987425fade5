#![expect(
    clippy::disallowed_methods,
    reason = "tests write the files that are then read"
)]

use std::fs;

use ::parquet::file::reader::{FileReader, SerializedFileReader};

use super::*;

fn head(task: Task, detail: Detail) -> Predictions {
    Predictions {
        task,
        outputs: vec!["cat".into(), "a, \"dog\"".into(), "cow".into()],
        detail,
    }
}

/// A row of even odds but for one class.
const LOGITS: [f32; 3] = [0.0, std::f32::consts::LN_2, 0.0];

fn written(ending: &str, head: &Predictions, rows: &[(&str, Known<'_>, &[f32])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("p.{ending}"));
    let mut writer = PredictionWriter::create(&path, head.clone(), Existing::Refuse).unwrap();
    for (name, known, logits) in rows {
        writer.push(name, *known, logits).unwrap();
    }
    assert!(!path.exists(), "a file that is not finished has no name");
    assert_eq!(writer.finish().unwrap(), rows.len());
    fs::read(path).unwrap()
}

fn text(ending: &str, head: &Predictions, rows: &[(&str, Known<'_>, &[f32])]) -> String {
    String::from_utf8(written(ending, head, rows)).unwrap()
}

#[test]
fn csv_quotes_what_needs_it() {
    let rows: [(&str, Known<'_>, &[f32]); 2] = [
        ("a/1.png", Known::Class(0), &LOGITS),
        ("line\nbreak", Known::Nothing, &[3.0, 1.0, 2.0]),
    ];
    let expected = "name,label,predicted,probability,predicted_2,probability_2\n\
        a/1.png,cat,\"a, \"\"dog\"\"\",0.5,cat,0.25\n\
        \"line\nbreak\",,cat,0.66524094,cow,0.24472848\n";
    assert_eq!(
        text("csv", &head(Task::SingleLabel, Detail::Top(2)), &rows),
        expected
    );
    let expected = "name,label,predicted,probability,p_cat,\"p_a, \"\"dog\"\"\",p_cow\n\
        a/1.png,cat,\"a, \"\"dog\"\"\",0.5,0.25,0.5,0.25\n";
    assert_eq!(
        text("csv", &head(Task::SingleLabel, Detail::All), &rows[..1]),
        expected
    );
}

#[test]
fn json_lines_nest() {
    let rows: [(&str, Known<'_>, &[f32]); 2] = [
        ("1", Known::Class(2), &LOGITS),
        ("2", Known::Nothing, &[9.0, 0.0, -9.0]),
    ];
    let lines = text("jsonl", &head(Task::SingleLabel, Detail::Top(1)), &rows[..1]);
    let expected =
        "{\"name\":\"1\",\"label\":\"cow\",\"predicted\":\"a, \\\"dog\\\"\",\"probability\":0.5}\n";
    assert_eq!(lines, expected);
    let lines = text("ndjson", &head(Task::SingleLabel, Detail::Top(3)), &rows);
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["label"], &last["top"][2]["class"]),
        (&serde_json::Value::Null, &"cow".into())
    );
    let several: [(&str, Known<'_>, &[f32]); 1] =
        [("1", Known::Numbers(&[1.0, 0.0, 1.0]), &[0.0, 1.0, -1.0])];
    let line = text("jsonl", &head(Task::MultiLabel, Detail::All), &several);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["label"], serde_json::json!(["cat", "cow"]));
    assert_eq!(line["predicted"], serde_json::json!(["a, \"dog\""]));
    assert_eq!(line["probabilities"]["cat"], 0.5);
}

#[test]
fn a_regression_has_a_column_for_each_output_and_target() {
    let head = Predictions {
        task: Task::Regression,
        outputs: vec!["age".into(), "height".into()],
        detail: Detail::Top(1),
    };
    let rows: [(&str, Known<'_>, &[f32]); 2] = [
        ("1", Known::Numbers(&[30.0, 1.5]), &[31.25, 1.625]),
        ("2", Known::Nothing, &[1.0, 2.0]),
    ];
    let expected = "name,age,height,age_target,height_target\n1,31.25,1.625,30,1.5\n2,1,2,,\n";
    assert_eq!(text("csv", &head, &rows), expected);
    assert_eq!(
        text("jsonl", &head, &rows[1..]),
        "{\"name\":\"2\",\"predicted\":{\"age\":1,\"height\":2},\"target\":null}\n"
    );
}

#[test]
fn parquet_holds_the_same_cells() {
    let several = head(Task::MultiLabel, Detail::All);
    let rows: [(&str, Known<'_>, &[f32]); 2] = [
        ("1", Known::Numbers(&[1.0, 0.0, 1.0]), &[0.0, 1.0, -1.0]),
        ("ü", Known::Nothing, &[0.0; 3]),
    ];
    let file = written("parquet", &several, &rows);
    let reader = SerializedFileReader::new(bytes::Bytes::from(file)).unwrap();
    let rows: Vec<String> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().to_string())
        .collect();
    assert_eq!(rows.len(), 2);
    assert!(
        rows[0].contains(r#"name: "1", label: "["cat","cow"]", predicted: "["#),
        "{}",
        rows[0]
    );
    assert!(
        rows[1].contains(r#"name: "ü", label: null, predicted: "[]", p_cat: 0.5"#),
        "{}",
        rows[1]
    );
}

#[test]
fn what_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let single = head(Task::SingleLabel, Detail::Top(1));
    let create =
        |file: &str| PredictionWriter::create(&folder.path().join(file), single.clone(), Existing::Refuse);
    assert!(
        create("p.xml")
            .unwrap_err()
            .to_string()
            .ends_with("p.xml` is neither .csv, .jsonl nor .parquet")
    );
    fs::write(folder.path().join("p.csv"), "mine").unwrap();
    assert!(create("p.csv").is_err());
    let mut writer = create("q.csv").unwrap();
    let message = |known, logits: &[f32], writer: &mut PredictionWriter| {
        writer.push("x", known, logits).unwrap_err().to_string()
    };
    assert!(message(Known::Nothing, &[0.0; 2], &mut writer).contains("`x`: 2 logits for 3 outputs"));
    assert!(message(Known::Class(3), &[0.0; 3], &mut writer).contains("label 3, and there are 3 classes"));
    assert!(
        message(Known::Numbers(&[0.0; 3]), &[0.0; 3], &mut writer)
            .contains("numbers where a row has one class")
    );
    drop(writer);
    assert!(!folder.path().join("q.csv").exists());
}

#[test]
fn the_best_are_those_of_a_whole_sort() {
    let logits = [1.0, 5.0, 3.0, 5.0, -1.0, 3.0];
    assert_eq!(top(&logits, 1), [1]);
    assert_eq!(top(&logits, 4), [1, 3, 2, 5]);
    assert_eq!(top(&logits, 6), [1, 3, 2, 5, 0, 4]);
}
