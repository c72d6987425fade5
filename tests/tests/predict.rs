//! What a head says of pictures and of features: on stdout and in tables, for every task.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::runs::npy;
use harness::{Said, Scratch, fixture, run};
use runtime::Task;
use runtime::export::{Outputs, assemble};
use runtime::features::Manifest;
use runtime::head::{Layer, Linear};
use runtime::image::{Crop, Preprocess, Resize};
use runtime::onnx::{Model, Reduction};
use serde_json::Value;

fn linear(n_out: usize, weight: &[f32], bias: &[f32]) -> Vec<Layer> {
    vec![Layer::Linear(Linear {
        weight: weight.to_vec(),
        bias: bias.to_vec(),
        n_in: weight.len() / n_out,
        n_out,
    })]
}

fn predict(scratch: &Scratch, args: &[&str]) -> Said {
    run(scratch.command([&["predict"], args].concat()))
}

/// Without ONNX Runtime: a head alone needs none.
fn predict_rows(scratch: &Scratch, args: &[&str]) -> Said {
    run(scratch.command_without_runtime([&["predict"], args].concat()))
}

fn lines(said: &Said) -> Vec<Value> {
    let lines = said.stdout.lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn val_pictures() -> String {
    fixture("digits/pictures/val").to_str().unwrap().to_owned()
}

#[test]
fn tables_and_lines_say_the_same() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let pictures = val_pictures();
    let on_stdout = lines(&predict(&scratch, &["run", &pictures, "--json", "--top", "2"]).ok());
    assert_eq!(on_stdout.len(), 200);

    let written = predict(
        &scratch,
        &["run", &pictures, "-o", "p.jsonl", "--top", "2", "--json"],
    );
    let written = written.ok().json();
    assert_eq!((&written["rows"], &written["left_out"]), (&200.into(), &0.into()));
    let said = predict(&scratch, &["run", &pictures, "-o", "p.csv", "--top", "2"]).ok();
    assert_eq!(said.stdout, "wrote p.csv: 200 rows\n");
    predict(
        &scratch,
        &["run", &pictures, "-o", "p.parquet", "--probabilities"],
    )
    .ok();
    assert!(fs::read(scratch.path("p.parquet")).unwrap().starts_with(b"PAR1"));

    let jsonl = fs::read_to_string(scratch.path("p.jsonl")).unwrap();
    let csv = fs::read_to_string(scratch.path("p.csv")).unwrap();
    let mut csv = csv.lines();
    assert_eq!(
        csv.next().unwrap(),
        "name,label,predicted,probability,predicted_2,probability_2"
    );
    for ((line, in_table), in_csv) in on_stdout.iter().zip(jsonl.lines()).zip(csv) {
        let in_table: Value = serde_json::from_str(in_table).unwrap();
        let [first, second] = [0, 1].map(|rank| &line["predictions"][rank]);
        assert_eq!(line["path"], in_table["name"]);
        assert_eq!(first["class"], in_table["predicted"]);
        assert_eq!(first["probability"], in_table["probability"]);
        assert_eq!(second, &in_table["top"][1]);
        let cells: Vec<&str> = in_csv.split(',').collect();
        assert_eq!(
            (cells[0], cells[2]),
            (line["path"].as_str().unwrap(), first["class"].as_str().unwrap())
        );
        let probability: f64 = cells[3].parse().unwrap();
        assert!((probability - first["probability"].as_f64().unwrap()).abs() < 1e-6);
    }

    // Every class, on stdout the likeliest first and in a table a column each; together they are certain.
    let all = lines(&predict(&scratch, &["run", &pictures, "--json", "--probabilities"]).ok());
    predict(
        &scratch,
        &["run", &pictures, "-o", "all.jsonl", "--probabilities"],
    )
    .ok();
    let table = fs::read_to_string(scratch.path("all.jsonl")).unwrap();
    for (line, in_table) in all.iter().zip(table.lines()) {
        let in_table: Value = serde_json::from_str(in_table).unwrap();
        let classes = line["predictions"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        let probability = |class: &Value| class["probability"].as_f64().unwrap();
        let sum: f64 = classes.iter().map(probability).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(classes.is_sorted_by(|a, b| probability(a) >= probability(b)));
        for class in classes {
            assert_eq!(
                in_table["probabilities"][class["class"].as_str().unwrap()],
                class["probability"]
            );
        }
    }
}

#[test]
fn a_head_alone_says_of_an_entry_what_the_model_says_of_the_pictures() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let entry = scratch.extract_digits(&fixture("digits/pictures"), &[]);
    let entry = entry.to_str().unwrap();
    let rows = lines(&predict_rows(&scratch, &["run", "--features", entry, "--json"]).ok());
    assert_eq!(rows.len(), 700);
    let of_rows: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| row["name"].as_str().unwrap().starts_with("val/"))
        .map(|row| {
            (
                row["name"].as_str().unwrap(),
                row["predictions"][0]["class"].as_str().unwrap(),
            )
        })
        .collect();
    let of_pictures = lines(&predict(&scratch, &["run", &val_pictures(), "--json"]).ok());
    assert_eq!(of_rows.len(), of_pictures.len());
    for ((name, class), picture) in of_rows.iter().zip(&of_pictures) {
        assert!(picture["path"].as_str().unwrap().ends_with(name), "{name}");
        assert_eq!(picture["predictions"][0]["class"], *class, "{name}");
    }
    // What is known of a row stands beside.
    assert!(
        rows.iter()
            .all(|row| row["name"].as_str().unwrap().split('/').nth(1) == row["label"].as_str())
    );

    let said = predict_rows(&scratch, &["run", "--features", entry, "--ids", "--json"]).ok();
    let ids: Vec<String> = lines(&said)
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    let manifest = Manifest::open(&Manifest::list(entry.as_ref()).unwrap()[0]).unwrap();
    let hex = |id: [u8; 32]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected: Vec<String> = manifest.lines().map(|line| hex(line.id.unwrap())).collect();
    assert_eq!(ids, expected);
    assert!(ids.iter().collect::<BTreeSet<_>>().len() > 690);
}

/// Three rows of one number, by hand: W x + b, then softmax, sigmoid or nothing.
#[test]
fn every_task_by_hand() {
    let scratch = Scratch::new();
    scratch.write("x.npy", &npy(&[3, 1], &[2.0, -3.0, 0.0]));
    let x = ["--features", "x.npy"];
    let check = |run: &str, more: &[&str], expected: &str| {
        let said = predict_rows(&scratch, &[&[run], &x[..], more].concat()).ok();
        assert_eq!(said.stdout, expected);
    };
    scratch.save_head(
        "single",
        Task::SingleLabel,
        &["up", "down"],
        linear(2, &[1.0, -1.0], &[0.0, 0.5]),
    );
    // 1 / (1 + exp(0.5 - 2 x)) is up.
    check("single", &[], "0\tup\t0.9707\n1\tdown\t0.9985\n2\tdown\t0.6225\n");
    check(
        "single",
        &["--probabilities"],
        "0\tup\t0.9707\tdown\t0.0293\n1\tdown\t0.9985\tup\t0.0015\n2\tdown\t0.6225\tup\t0.3775\n",
    );
    scratch.save_head(
        "multi",
        Task::MultiLabel,
        &["up", "down"],
        linear(2, &[1.0, -1.0], &[1.0, 0.5]),
    );
    // 1 / (1 + exp(-1 - x)) is up, 1 / (1 + exp(x - 0.5)) down: of the last row both are.
    check(
        "multi",
        &[],
        "0\tup\t0.9526\n1\tdown\t0.9707\n2\tup\t0.7311\tdown\t0.6225\n",
    );
    check(
        "multi",
        &["--probabilities", "-j", "1"],
        "0\tup\t0.9526\tdown\t0.1824\n1\tdown\t0.9707\tup\t0.1192\n2\tup\t0.7311\tdown\t0.6225\n",
    );
    scratch.save_head(
        "numbers",
        Task::Regression,
        &["age", "height"],
        linear(2, &[2.0, 0.5], &[1.0, 0.0]),
    );
    check(
        "numbers",
        &[],
        "0\tage\t5\theight\t1\n1\tage\t-5\theight\t-1.5\n2\tage\t1\theight\t0\n",
    );
    check(
        "numbers/head.safetensors",
        &["--json"],
        "{\"name\":\"0\",\"values\":{\"age\":5.0,\"height\":1.0}}\n\
         {\"name\":\"1\",\"values\":{\"age\":-5.0,\"height\":-1.5}}\n\
         {\"name\":\"2\",\"values\":{\"age\":1.0,\"height\":0.0}}\n",
    );
    predict_rows(&scratch, &[&["multi"], &x[..], &["-o", "m.csv"]].concat()).ok();
    let table = fs::read_to_string(scratch.path("m.csv")).unwrap();
    assert_eq!(
        table,
        "name,label,predicted\n0,,\"[\"\"up\"\"]\"\n1,,\"[\"\"down\"\"]\"\n2,,\"[\"\"up\"\",\"\"down\"\"]\"\n"
    );
    predict_rows(&scratch, &[&["numbers"], &x[..], &["-o", "n.csv"]].concat()).ok();
    let table = fs::read_to_string(scratch.path("n.csv")).unwrap();
    assert_eq!(
        table,
        "name,age,height,age_target,height_target\n0,5,1,,\n1,-5,-1.5,,\n2,1,0,,\n"
    );
}

/// A model for several labels and one for numbers, of pictures.
#[test]
fn models_of_every_task_on_pictures() {
    let scratch = Scratch::new();
    let backbone = Model::open(&fixture("digits/backbone.onnx")).unwrap();
    let boundary = backbone.default_boundary().unwrap();
    let preprocess = Preprocess {
        resize: Resize::ShortSide(32),
        crop: Crop::Center(32, 32),
        ..Preprocess::imagenet()
    };
    let weight: Vec<f32> = (0..128u8).map(|at| f32::from(at % 7) / 8.0 - 0.4).collect();
    for (name, task) in [("multi", Task::MultiLabel), ("numbers", Task::Regression)] {
        let head = scratch.save_head(name, task, &["a", "b"], linear(2, &weight, &[0.1, -0.1]));
        let outputs = Outputs::LogitsAndProbabilities;
        let model = assemble(&backbone, &boundary, Reduction::None, &head, outputs, &preprocess).unwrap();
        let path = scratch.path(name).join("model.onnx");
        model.save(&path, pth::Existing::Refuse).unwrap();
    }
    let entry = scratch.extract_digits(&fixture("digits/pictures/val"), &["--dtype", "float32"]);
    let entry = entry.to_str().unwrap();
    for name in ["multi", "numbers"] {
        let on_pictures = lines(&predict(&scratch, &[name, &val_pictures(), "--json"]).ok());
        let on_rows = lines(&predict_rows(&scratch, &[name, "--features", entry, "--json"]).ok());
        assert_eq!((on_pictures.len(), on_rows.len()), (200, 200));
        for (picture, row) in on_pictures.iter().zip(&on_rows) {
            if name == "numbers" {
                for output in ["a", "b"] {
                    let [by_model, by_head] =
                        [picture, row].map(|line| line["values"][output].as_f64().unwrap());
                    assert!((by_model - by_head).abs() < 1e-4, "{by_model} {by_head}");
                }
                continue;
            }
            let classes = |line: &Value| -> Vec<String> {
                let classes = line["predictions"].as_array().unwrap().iter();
                classes.map(|class| class["class"].to_string()).collect()
            };
            assert_eq!(classes(picture), classes(row));
        }
    }
}

#[test]
fn unreadable_pictures_are_left_out_by_name() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let good = fixture("digits/pictures/val/5/000.png");
    let good = good.to_str().unwrap();
    scratch.write("broken.png", &fs::read(good).unwrap()[..60]);
    let args = ["run", good, "broken.png", good, "-o", "p.csv"];
    let said = predict(&scratch, &args).fails(3, "error: `broken.png`: ");
    assert!(
        said.stderr.contains("1 could not be read and are left out"),
        "{}",
        said.stderr
    );
    assert_eq!(said.stdout, "wrote p.csv: 2 rows\n");
    assert_eq!(
        fs::read_to_string(scratch.path("p.csv")).unwrap().lines().count(),
        3
    );
    let said = predict(&scratch, &["run", good, "broken.png"]).fails(3, "broken.png");
    assert_eq!(said.stdout.lines().count(), 1);

    // And samples of an entry that could not be read when it was made.
    let pictures = scratch.copy(&fixture("digits/pictures/val"), "pictures");
    fs::rename(scratch.path("broken.png"), pictures.join("5/000.png")).unwrap();
    let entry = scratch.extract_digits(&pictures, &[]);
    let args = ["run", "--features", entry.to_str().unwrap(), "-o", "q.jsonl"];
    let said = predict_rows(&scratch, &args).fails(3, "error: `5/000.png`: ");
    assert_eq!(said.stdout, "wrote q.jsonl: 199 rows\n");
}

#[test]
fn what_cannot_be_is_said_before_the_work() {
    let scratch = Scratch::new();
    scratch.write("x.npy", &npy(&[3, 1], &[2.0, -3.0, 0.0]));
    scratch.write("wide.npy", &npy(&[2, 3], &[0.0; 6]));
    scratch.write("nan.npy", &npy(&[2, 1], &[0.0, f32::NAN]));
    scratch.write("there.csv", b"old");
    scratch.write("empty/config.toml", b"");
    let layers = || linear(2, &[1.0, -1.0], &[0.0, 0.5]);
    scratch.save_head("run", Task::SingleLabel, &["up", "down"], layers());
    scratch.save_head("multi", Task::MultiLabel, &["up", "down"], layers());
    scratch.save_head("numbers", Task::Regression, &["up", "down"], layers());
    scratch.write("damaged/head.safetensors", b"{}");
    let check = |args: &[&str], code: i32, message: &str| {
        predict_rows(&scratch, args).fails(code, message);
    };
    let x =
        |run, more: &[&'static str]| -> Vec<&'static str> { [&[run, "--features", "x.npy"], more].concat() };
    check(
        &x("run", &["-o", "p.xlsx"]),
        2,
        "`p.xlsx` is neither .csv, .jsonl nor .parquet",
    );
    check(&x("run", &["-o", "there.csv"]), 2, "--force replaces it");
    // No ONNX Runtime is at hand here: this comes before it is missed.
    check(&["run", "a.png", "-o", "there.csv"], 2, "--force replaces it");
    check(&["run", "a.png", "-o", "there.xlsx"], 2, "is neither");
    check(
        &x("run", &["-o", "absent/p.csv"]),
        3,
        "cannot create `absent/p.csv`",
    );
    assert_eq!(fs::read(scratch.path("there.csv")).unwrap(), b"old");
    predict_rows(&scratch, &x("run", &["-o", "there.csv", "--force"])).ok();
    check(&x("empty", &[]), 2, "`empty` holds no `head.safetensors`");
    check(&x("absent", &[]), 3, "absent");
    check(&x("damaged", &[]), 3, "damaged/head.safetensors");
    check(&["run", "a.png"], 2, "`run` holds no `model.onnx`");
    check(
        &["run", "--features", "wide.npy", "-o", "wide.csv"],
        3,
        "they have 3 numbers a row, and the head takes 1",
    );
    check(&["run", "--features", "nan.npy"], 3, "row 1 holds NaN");
    check(&["run", "--features", "absent.npy"], 3, "absent.npy");
    check(
        &x("run", &["--ids"]),
        2,
        "--ids is for a cache entry, and `x.npy` is none",
    );
    check(
        &x("run", &["--labels", "y.npy"]),
        2,
        "--labels is for a cache entry",
    );
    check(&["run", "--features", "empty"], 2, "`empty` holds no labels");
    check(
        &x("multi", &["--top", "2"]),
        2,
        "--top asks for what this head does not give",
    );
    check(
        &x("numbers", &["--top", "2"]),
        2,
        "its outputs are numbers, not classes",
    );
    check(
        &x("numbers", &["--probabilities"]),
        2,
        "its outputs are numbers, not classes",
    );
    for usage in [
        &["run"][..],
        &["run", "a.png", "--features", "x.npy"],
        &["run", "--features", "x.npy", "--top", "0"],
        &["run", "--features", "x.npy", "--top", "2", "--probabilities"],
        &["run", "a.png", "--ids"],
        &["run", "--features", "x.npy", "--force"],
    ] {
        assert_eq!(predict_rows(&scratch, usage).code, 2, "{usage:?}");
    }
    assert_eq!(
        scratch.names(""),
        [
            "damaged",
            "empty",
            "multi",
            "nan.npy",
            "numbers",
            "run",
            "there.csv",
            "wide.npy",
            "x.npy"
        ]
    );
}

/// Some tens of thousands of pictures: the same few, again and again.
fn long_job(scratch: &Scratch, more: &[&str]) -> Command {
    let pictures = val_pictures();
    let mut command = scratch.command([&["predict", "run", "-j", "1"], more].concat());
    command.args(std::iter::repeat_n(pictures, 200));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn interrupted_it_leaves_no_file() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let child = long_job(&scratch, &["-o", "p.csv"]).spawn().unwrap();
    // The unfinished file shows that it is at work.
    while scratch.names("").iter().all(|name| !name.ends_with(".tmp")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupt = ["-INT", &child.id().to_string()];
    assert!(Command::new("kill").args(interrupt).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("error: interrupted"), "{stderr}");
    assert!(stderr.contains("hint: nothing was written"), "{stderr}");
    let names = scratch.names("");
    assert!(names.iter().all(|name| !name.contains("p.csv")), "{names:?}");
}

#[test]
fn lines_come_as_they_are_made_and_nobody_need_read_them_all() {
    let scratch = Scratch::new();
    scratch.fit_digits("run");
    let mut child = long_job(&scratch, &[]).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::with_capacity(256, child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("000.png\t5\t"), "{line}");
    assert!(
        child.try_wait().unwrap().is_none(),
        "all was done before a line came"
    );
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
}
