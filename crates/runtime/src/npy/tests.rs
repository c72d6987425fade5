use std::io::Write;
use std::path::PathBuf;

use super::*;

fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut bytes = header::write(descr, shape);
    bytes.extend(data);
    bytes
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    fn npz(&self, name: &str, arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> PathBuf {
        let path = self.0.path().join(name);
        let mut writer = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in arrays {
            writer.start_file(format!("{name}.npy"), options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        path
    }
}

fn le<const N: usize, T>(values: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

#[test]
fn features_of_each_width_are_read() {
    let files = Files::new();
    let expected = [1.0f32, -2.5, 0.25, 65504.0];
    let halves = le(&expected, |v| half::f16::from_f32(*v).to_le_bytes());
    let singles = le(&expected, |v| v.to_le_bytes());
    let doubles = le(&expected, |v| f64::from(*v).to_le_bytes());
    for (descr, data) in [("<f2", halves), ("<f4", singles), ("<f8", doubles)] {
        let path = files.write("x.npy", &npy(descr, &[2, 2], &data));
        let features = read_features(&path).unwrap();
        assert_eq!(features, Features::new(expected.to_vec(), 2).unwrap(), "{descr}");
    }
}

#[test]
fn arrays_over_several_chunks_are_whole() {
    let files = Files::new();
    let values: Vec<f32> = (0..700_000).map(|n| n as f32).collect();
    let path = files.write(
        "x.npy",
        &npy("<f4", &[700, 1000], &le(&values, |v| v.to_le_bytes())),
    );
    assert_eq!(read_features(&path).unwrap().values(), values);
}

#[test]
fn what_does_not_fit_is_refused() {
    let files = Files::new();
    let check = |bytes: &[u8], message: &str| {
        let error = read_features(&files.write("x.npy", bytes))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(message), "{error}");
    };
    check(
        &npy("<f4", &[2, 1], &[0; 7]),
        "its data is not as long as its shape says",
    );
    check(
        &npy("<f4", &[2, 1], &[0; 9]),
        "its data is not as long as its shape says",
    );
    check(
        &npy("<f4", &[4], &[0; 16]),
        "features have 2 axes (rows, features), and this array has [4]",
    );
    check(
        &npy("<i4", &[1, 1], &[0; 4]),
        "features are float16, float32 or float64, and this array is `i4`",
    );
    check(&npy("<f4", &[1, 1], &f32::NAN.to_le_bytes()), "row 0 holds NaN");
    check(
        &npy("|O", &[1, 1], &[0; 8]),
        "it holds pickled Python objects, which are not read",
    );
    let fortran = String::from_utf8_lossy(&npy("<f4", &[2, 1], &[0; 8])[10..])
        .replace("'fortran_order': False", "'fortran_order': True ");
    let mut bytes = npy("<f4", &[2, 1], &[0; 8]);
    bytes.truncate(10);
    bytes.extend(fortran.as_bytes());
    check(
        &bytes,
        "it is in Fortran order; save numpy.ascontiguousarray of it",
    );
    let error = read_targets(
        &files.write("y.npy", &npy("<i8", &[2], &le(&[3i64, -1], |v| v.to_le_bytes()))),
        Task::SingleLabel,
    );
    assert!(error.unwrap_err().to_string().ends_with("row 1 has label -1"));
}

#[test]
fn targets_of_other_tasks_are_numbers() {
    let files = Files::new();
    let read = |bytes: &[u8], task| read_targets(&files.write("y.npy", bytes), task);
    let bools = npy("|b1", &[2, 2], &[0, 1, 1, 0]);
    let expected = Targets::dense(vec![0.0, 1.0, 1.0, 0.0], 2).unwrap();
    assert_eq!(read(&bools, Task::MultiLabel).unwrap(), expected);
    let doubles = npy("<f8", &[3], &le(&[0.5, -2.0, 8.0], |v: &f64| v.to_le_bytes()));
    let expected = Targets::dense(vec![0.5, -2.0, 8.0], 1).unwrap();
    assert_eq!(read(&doubles, Task::Regression).unwrap(), expected);

    let message = |bytes: &[u8], task| read(bytes, task).unwrap_err().to_string();
    let several = message(&bools, Task::SingleLabel);
    assert!(
        several.contains("takes one class index a row, and this array has [2, 2]"),
        "{several}"
    );
    let numbers = message(&doubles, Task::SingleLabel);
    assert!(
        numbers.contains("labels are integers, and this array is `f8`"),
        "{numbers}"
    );
    let nan = npy("<f4", &[2], &le(&[1.0, f32::NAN], |v| v.to_le_bytes()));
    let nan = message(&nan, Task::Regression);
    assert!(nan.contains("the target of row 1 is NaN"), "{nan}");
}

#[test]
fn archives_are_read_by_the_names_of_their_arrays() {
    let files = Files::new();
    let one = |value: f32| npy("<f4", &[1, 1], &value.to_le_bytes());
    let label = |value: u8| npy("|u1", &[1], &[value]);
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let arrays = [
            ("x_train", one(1.0)),
            ("y_train", label(3)),
            ("x_test", one(2.0)),
            ("y_test", label(4)),
            ("notes", npy("|O", &[1], &[0; 8])),
        ];
        let path = files.npz("all.npz", &arrays, method);
        let arrays = read_npz(&path, Task::SingleLabel).unwrap();
        assert_eq!(arrays.features.values()[..], [1.0]);
        assert_eq!(arrays.targets, Some(Targets::Classes(vec![3])));
        let (val, targets) = arrays.val.unwrap();
        let expected = (&[2.0][..], Some(Targets::Classes(vec![4])));
        assert_eq!((&val.values()[..], targets), expected);
    }
    let path = files.npz(
        "two.npz",
        &[("X", one(5.0)), ("y", label(6))],
        zip::CompressionMethod::Stored,
    );
    assert_eq!(read_features(&path).unwrap().values()[..], [5.0]);
    assert_eq!(
        read_targets(&path, Task::SingleLabel).unwrap(),
        Targets::Classes(vec![6])
    );
    let path = files.npz("only.npz", &[("w", one(7.0))], zip::CompressionMethod::Stored);
    assert_eq!(read_features(&path).unwrap().values()[..], [7.0]);
    let path = files.npz(
        "odd.npz",
        &[("v", one(7.0)), ("w", one(7.0))],
        zip::CompressionMethod::Stored,
    );
    let error = read_features(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("none of its arrays is called one of features, such as `X` or `x_train`"),
        "{error}"
    );
    let error = read_features(&files.write("no.npz", b"PK\x03\x04"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("this is no .npz archive"), "{error}");
}

#[test]
fn labels_of_other_types_are_texts() {
    let files = Files::new();
    let check = |bytes: &[u8], expected: &[&str]| {
        let array = ArrayFile::open(&files.write("y.npy", bytes)).unwrap();
        let mut seen = Vec::new();
        label_texts(&array, |row, text| {
            assert_eq!(row, seen.len());
            seen.push(text.to_owned());
        })
        .unwrap();
        assert_eq!(seen, expected);
    };
    check(
        &npy("<i2", &[2, 1], &le(&[7i16, -1], |v| v.to_le_bytes())),
        &["7", "-1"],
    );
    check(&npy("|b1", &[2], &[0, 1]), &["False", "True"]);
    let text: Vec<u32> = "cat\0ü\0\0\0".chars().map(u32::from).collect();
    check(&npy("<U4", &[2], &le(&text, |v| v.to_le_bytes())), &["cat", "ü"]);
    check(&npy("|S3", &[2], b"ab\0cde"), &["ab", "cde"]);
}
