use std::path::Path;

use pth::Existing;

use super::*;

fn options(n_rows: usize, partition_rows: usize) -> WriteOptions {
    WriteOptions {
        modality: Modality::Images,
        precision: Precision::F32,
        n_features: 3,
        n_rows,
        partition_rows,
        existing: Existing::Refuse,
    }
}

fn row(n: usize) -> [f32; 3] {
    [n as f32, -0.5, n as f32 / 8.0]
}

fn write(folder: &Path, n_rows: usize, options: WriteOptions) -> usize {
    let mut writer = ClipRetrievalWriter::create(folder, options).unwrap();
    for n in 0..n_rows {
        let label = (n % 3 != 0).then(|| format!("class {}", n % 3));
        writer
            .push(&format!("dir/{n}.jpg"), label.as_deref(), &row(n))
            .unwrap();
    }
    writer.finish().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_in_its_order() {
    for precision in [Precision::F16, Precision::F32] {
        let dir = tempfile::tempdir().unwrap();
        let n = write(
            dir.path(),
            25,
            WriteOptions {
                precision,
                ..options(25, 2)
            },
        );
        assert_eq!(n, 13);
        let files = names(&dir.path().join("img_emb"));
        assert_eq!(
            (files.len(), files[0].as_str(), files[12].as_str()),
            (13, "img_emb_00.npy", "img_emb_12.npy")
        );
        assert_eq!(names(&dir.path().join("metadata"))[12], "metadata_12.parquet");
        let read = read_clip_retrieval(dir.path(), Modality::Images).unwrap();
        let expected: Vec<f32> = (0..25).flat_map(row).collect();
        assert_eq!(read.features.values(), expected);
        assert_eq!(read.names[24], "dir/24.jpg");
        assert_eq!(
            read.labels[..4],
            [None, Some("class 1".into()), Some("class 2".into()), None]
        );
    }
}

#[test]
fn one_partition_has_one_digit_and_a_short_one_its_own_rows() {
    let dir = tempfile::tempdir().unwrap();
    // A thousand said, three came: the header's room is kept.
    assert_eq!(write(dir.path(), 3, options(1000, 1_000_000)), 1);
    assert_eq!(names(&dir.path().join("img_emb")), ["img_emb_0.npy"]);
    assert_eq!(
        read_clip_retrieval(dir.path(), Modality::Images)
            .unwrap()
            .features
            .n_rows(),
        3
    );
}

#[test]
fn a_writer_that_is_dropped_leaves_whole_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ClipRetrievalWriter::create(dir.path(), options(9, 2)).unwrap();
    (0..5).for_each(|n| writer.push("x", None, &row(n)).unwrap());
    drop(writer);
    assert_eq!(
        names(&dir.path().join("img_emb")),
        ["img_emb_0.npy", "img_emb_1.npy"]
    );
    assert_eq!(
        names(&dir.path().join("metadata")),
        ["metadata_0.parquet", "metadata_1.parquet"]
    );
    let read = read_clip_retrieval(dir.path(), Modality::Images).unwrap();
    assert_eq!(read.features.n_rows(), 4);
    assert!(read.labels.is_empty());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 4, options(4, 2));
    let error = ClipRetrievalWriter::create(dir.path(), options(1, 1))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("already holds partitions of features"), "{error}");
    let replaced = WriteOptions {
        existing: Existing::Replace,
        precision: Precision::F16,
        ..options(1, 1)
    };
    let mut writer = ClipRetrievalWriter::create(dir.path(), replaced).unwrap();
    for (row, message) in [
        (&[1.0, 2.0][..], "row 0 has 2 numbers and not 3"),
        (&[1.0, 1e6, 2.0], "row 0 holds 1000000, which is beyond float16"),
    ] {
        let error = writer.push("x", None, row).unwrap_err().to_string();
        assert!(error.ends_with(message), "{error}");
    }
    drop(writer);
    assert!(names(&dir.path().join("img_emb")).is_empty());
    let mut writer = ClipRetrievalWriter::create(dir.path(), options(1, 1)).unwrap();
    writer.push("x", None, &row(0)).unwrap();
    let error = writer.push("x", None, &row(0)).unwrap_err().to_string();
    assert!(
        error.ends_with("there are more rows than the 1 that were said"),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_together_is_named() {
    let check = |damage: &dyn Fn(&Path), message: &str| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 4, options(4, 2));
        damage(dir.path());
        let error = read_clip_retrieval(dir.path(), Modality::Images)
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    };
    check(
        &|folder| std::fs::remove_file(folder.join("metadata/metadata_1.parquet")).unwrap(),
        "metadata_1.parquet`: it cannot be read: No such file",
    );
    check(
        &|folder| {
            let other = tempfile::tempdir().unwrap();
            write(other.path(), 1, options(1, 2));
            std::fs::copy(
                other.path().join("metadata/metadata_0.parquet"),
                folder.join("metadata/metadata_1.parquet"),
            )
            .unwrap();
        },
        "metadata_1.parquet`: it has 1 rows, and the features 2",
    );
    check(
        &|folder| std::fs::remove_dir_all(folder.join("img_emb")).unwrap(),
        "there are no `img_emb/img_emb_*.npy` in it",
    );
    check(
        &|folder| {
            let mut bytes = crate::npy::header::write("<f4", &[2, 1]);
            bytes.extend([0; 8]);
            std::io::Write::write_all(
                &mut std::fs::File::create(folder.join("img_emb/img_emb_1.npy")).unwrap(),
                &bytes,
            )
            .unwrap();
        },
        "img_emb_1.npy`: its rows have 1 numbers, and those before it 3",
    );
}
