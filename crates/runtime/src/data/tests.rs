use super::testing::{Folder, check_rejects, left_out, lines, loose, strict};
use super::*;

fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let mut bytes = crate::npy::header::write(descr, shape);
    bytes.extend(data);
    bytes
}

#[test]
fn rows_of_metadata_are_the_samples_of_an_image_folder() {
    let folder = Folder::new();
    folder.write("train/a/1.png", "one");
    folder.write("train/b/2.png", "two");
    folder.write("test/3.png", "three");
    folder.write(
        "train/metadata.csv",
        "file_name,label\na/1.png,x\nb/2.png,y\n../test/3.png,x\n/etc/passwd,x\n",
    );
    folder.write("test/metadata.csv", "file_name,label\n3.png,y\n");
    let data = Dataset::open(folder.path(), &strict()).unwrap();
    assert_eq!(data.classes(), ["x", "y"]);
    assert_eq!(
        lines(&data),
        [
            "test/3.png y val three",
            "train/a/1.png x train one",
            "train/b/2.png y train two"
        ]
    );
    assert_eq!(
        left_out(&data),
        [
            "train/metadata.csv:4: `../test/3.png` leads out of the folder",
            "train/metadata.csv:5: `/etc/passwd` leads out of the folder",
        ]
    );
    // One file for all: the folders in its paths are the splits.
    let folder = Folder::new();
    folder.write("train/1.png", "one");
    folder.write("dev/2.png", "two");
    folder.write(
        "metadata.jsonl",
        "{\"file_name\": \"train/1.png\", \"label\": 1}\n{\"file_name\": \"dev/2.png\", \"label\": 1}\n",
    );
    assert_eq!(
        lines(&Dataset::open(folder.path(), &strict()).unwrap()),
        ["train/1.png 1 train one", "dev/2.png 1 val two"]
    );
    folder.write("train/metadata.csv", "file_name,label\n1.png,1\n");
    check_rejects(
        folder.path(),
        &strict(),
        "it has metadata files of different kinds",
    );
    // Rows without labels are no classes by their folders.
    let folder = Folder::new();
    folder.write("train/a/1.png", "one");
    folder.write("train/metadata.csv", "file_name,note\na/1.png,x\n");
    check_rejects(
        folder.path(),
        &strict(),
        "none of its columns is one of labels; there are `file_name`, `note`",
    );
    assert_eq!(
        lines(&Dataset::open(folder.path(), &loose()).unwrap()),
        ["train/a/1.png - train one"]
    );
}

#[test]
fn somebody_elses_metadata_leaves_a_folder_as_it_is() {
    let folder = Folder::new();
    folder.write("metadata.csv", "date,author\n2026,x\n");
    folder.write("notes.tar", "no tar");
    folder.write("train/a/1.png", "one");
    folder.write("val/a/2.png", "two");
    assert_eq!(
        lines(&Dataset::open(folder.path(), &strict()).unwrap()),
        ["train/a/1.png a train one", "val/a/2.png a val two"]
    );
}

#[test]
fn splits_of_other_names_are_found_as_datasets_finds_them() {
    let folder = Folder::new();
    for (name, content) in [
        ("training/a/1.png", "1"),
        ("training/b/2.png", "2"),
        ("testing/a/3.png", "3"),
        ("extras/c/4.png", "4"),
    ] {
        folder.write(name, content);
    }
    for options in [strict(), loose()] {
        assert_eq!(
            lines(&Dataset::open(folder.path(), &options).unwrap()),
            [
                "testing/a/3.png a val 3",
                "training/a/1.png a train 1",
                "training/b/2.png b train 2"
            ]
        );
    }
    // Not equally deep: nothing is known of the labels.
    folder.write("training/b/deeper/5.png", "5");
    check_rejects(folder.path(), &strict(), "no sample in it has a label");
    assert_eq!(Dataset::open(folder.path(), &loose()).unwrap().label(0), None);
    // Names of classes that hold a split's name stay classes where no split is asked for.
    let folder = Folder::new();
    folder.write("test-tube/1.png", "1");
    folder.write("train-station/2.png", "2");
    let data = Dataset::open(folder.path(), &loose()).unwrap();
    assert_eq!(data.classes(), ["test-tube", "train-station"]);
}

#[test]
fn arrays_of_pixels_have_their_labels_beside() {
    let folder = Folder::new();
    let colour: Vec<u8> = (0..24).collect();
    folder.write("X.npy", npy("|u1", &[2, 2, 2, 3], &colour));
    folder.write(
        "y.npy",
        npy("<i8", &[2], &[7i64.to_le_bytes(), 10i64.to_le_bytes()].concat()),
    );
    let data = Dataset::open(&folder.at("X.npy"), &loose()).unwrap();
    assert_eq!(data.classes(), ["7", "10"]);
    assert_eq!(
        lines(&data),
        [
            format!("X.npy#0 7 train 2x2:{:?}", &colour[..12]),
            format!("X.npy#1 10 train 2x2:{:?}", &colour[12..])
        ]
    );
    // Grey, in a folder, by splits.
    let folder = Folder::new();
    folder.write("x_train.npy", npy("|u1", &[2, 1, 2], &[1, 2, 3, 4]));
    folder.write("y_train.npy", npy("|u1", &[2, 1], &[0, 1]));
    folder.write("x_test.npy", npy("|u1", &[1, 1, 2, 1], &[5, 6]));
    folder.write("y_test.npy", npy("|u1", &[1], &[1]));
    assert_eq!(
        lines(&Dataset::open(folder.path(), &strict()).unwrap()),
        [
            "x_test.npy#0 1 val 2x1:[5, 5, 5, 6, 6, 6]",
            "x_train.npy#0 0 train 2x1:[1, 1, 1, 2, 2, 2]",
            "x_train.npy#1 1 train 2x1:[3, 3, 3, 4, 4, 4]",
        ]
    );
}

#[test]
fn archives_of_arrays_are_read_by_their_names() {
    let folder = Folder::new();
    let arrays = [
        ("x_train", npy("|u1", &[3, 1, 1], &[1, 2, 3])),
        ("y_train", npy("|u1", &[3], &[4, 5, 4])),
        ("x_test", npy("|u1", &[1, 1, 1], &[9])),
        ("y_test", npy("|u1", &[1], &[5])),
    ];
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in &arrays {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            writer.start_file(format!("{name}.npy"), options).unwrap();
            std::io::Write::write_all(&mut writer, bytes).unwrap();
        }
        let path = folder.write("mnist.npz", writer.finish().unwrap().into_inner());
        assert_eq!(
            lines(&Dataset::open(&path, &strict()).unwrap()),
            [
                "mnist.npz/x_test#0 5 val 1x1:[9, 9, 9]",
                "mnist.npz/x_train#0 4 train 1x1:[1, 1, 1]",
                "mnist.npz/x_train#1 5 train 1x1:[2, 2, 2]",
                "mnist.npz/x_train#2 4 train 1x1:[3, 3, 3]",
            ]
        );
    }
}

#[test]
fn arrays_that_are_no_pictures_are_refused() {
    let folder = Folder::new();
    let check = |bytes: Vec<u8>, message: &str| {
        check_rejects(&folder.write("X.npy", bytes), &loose(), message);
    };
    check(
        npy("<f4", &[1, 1, 1], &[0; 4]),
        "pictures are uint8, and this array is `f4`",
    );
    check(
        npy("|u1", &[1, 2], &[0; 2]),
        "pictures are [N, H, W, 3] or [N, H, W], and this array is [1, 2]",
    );
    check(
        npy("|u1", &[1, 3, 4, 5], &[0; 60]),
        "its shape [1, 3, 4, 5] has the channels first; save array.transpose(0, 2, 3, 1) of it",
    );
    check(
        npy("|u1", &[1, 0, 4], &[]),
        "pictures of 4 x 0 pixels are not read",
    );
    check(
        npy("|O", &[1, 1, 1], &[0; 8]),
        "it holds pickled Python objects, which are not read",
    );
    check(
        npy("|u1", &[2, 1, 1], &[0; 3]),
        "its data is not as long as its shape says",
    );
    folder.write("X.npy", npy("|u1", &[2, 1, 1], &[0; 2]));
    check_rejects(
        &folder.at("X.npy"),
        &strict(),
        "there are no labels beside `X.npy`, such as `y.npy`",
    );
    folder.write("y.npy", npy("|u1", &[3], &[0; 3]));
    check_rejects(
        &folder.at("X.npy"),
        &loose(),
        "y.npy`: it has 3 rows, and the pictures 2",
    );
}

#[test]
fn what_a_source_is_shows_in_its_bytes() {
    let folder = Folder::new();
    check_rejects(&folder.at("gone"), &loose(), "gone`: no such folder or file");
    let of_no_kind = "this is not a folder, and of no kind of file that lists samples: .csv, .tsv, .jsonl, .parquet, .tar, .npy, .npz, .txt";
    check_rejects(&folder.write("x.bin", "?"), &loose(), of_no_kind);
    let path = folder.write("array", npy("|u1", &[1, 1, 1], &[3]));
    assert_eq!(
        lines(&Dataset::open(&path, &loose()).unwrap()),
        ["array#0 - train 1x1:[3, 3, 3]"]
    );
    std::fs::create_dir_all(folder.at("clip/img_emb")).unwrap();
    check_rejects(
        &folder.at("clip"),
        &loose(),
        "this is clip-retrieval's output: features rather than pictures",
    );
}

#[test]
fn a_digest_is_of_names_alone() {
    let folder = Folder::new();
    let digest = |text: &str| {
        let path = folder.write("list.csv", text);
        Dataset::open(&path, &loose()).unwrap().listing_digest()
    };
    let one = digest("path,label\nx/1,a\nx/2,b\n");
    assert_eq!(one, digest("path,label\nx/1,c\nx/2,\n"));
    assert_ne!(one, digest("path,label\nx/2,b\nx/1,a\n"));
    assert_ne!(one, digest("path,label\nx/1,a\n"));
    assert_ne!(one, digest("path,label\nx/1x,a\n/2,b\n"));
}
