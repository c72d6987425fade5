use super::super::testing::{Folder, check_rejects, left_out, lines, loose, strict};
use super::super::{Columns, DataOptions, Dataset, SplitRule, Wanted};
use super::sample::key_and_field;

/// A tar made by hand, header by header.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(name: &[u8], size: u64, flag: u8) -> [u8; 512] {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Tar::sum(&mut block);
        block
    }

    fn sum(block: &mut [u8; 512]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn member(mut self, name: &str, flag: u8, data: &[u8]) -> Tar {
        self.0
            .extend(Tar::header(name.as_bytes(), data.len() as u64, flag));
        self.data(data)
    }

    fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Tar {
        self.member(name, b'0', data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let len = (rest.len()..)
            .find(|len| len.to_string().len() + rest.len() == *len)
            .unwrap();
        all.extend(format!("{len}{rest}").into_bytes());
    }
    all
}

#[test]
fn neighbouring_members_of_one_name_are_a_sample() {
    let folder = Folder::new();
    let tar = Tar::default()
        .file("a/0001.jpg", b"one")
        .file("a/0001.CLS", b"10\n")
        .file("a/0001.txt", b"caption")
        .file("a/0002.v2.png", b"two")
        .file("a/0002.cls", b"9")
        .file("a/0003.json", b"{\"label\": 10, \"more\": [1]}")
        .file("a/0003.jpeg", b"three")
        .end();
    let path = folder.write("x.tar", tar);
    let data = Dataset::open(&path, &loose()).unwrap();
    assert_eq!(data.classes(), ["9", "10"]);
    assert_eq!(
        lines(&data),
        [
            "x.tar/a/0001 10 train one",
            "x.tar/a/0002 9 train two",
            "x.tar/a/0003 10 train three",
        ]
    );
    assert!(data.left_out().is_empty());
    let options = DataOptions {
        wanted: Wanted::Texts,
        ..loose()
    };
    let data = Dataset::open(&path, &options).unwrap();
    assert_eq!(lines(&data), ["x.tar/a/0001 10 train text:caption"]);
}

#[test]
fn names_are_parted_as_webdataset_parts_them() {
    for (name, expected) in [
        ("a/b.c.d", Some(("a/b", "c.d"))),
        ("x.y/b.JPG", Some(("x.y/b", "jpg"))),
        ("b.jpg", Some(("b", "jpg"))),
        ("./b.jpg", Some(("./b", "jpg"))),
        ("noending", None),
        ("x.y/noending", None),
        (".hidden", None),
        ("a/.hidden", Some(("a/", "hidden"))),
        ("x.y/.hidden", None),
        ("b.", Some(("b", ""))),
    ] {
        let expected = expected.map(|(key, field)| (key, field.to_owned()));
        assert_eq!(key_and_field(name), expected, "{name}");
    }
}

#[test]
fn what_is_no_sample_is_passed_over() {
    let folder = Folder::new();
    let tar = Tar::default()
        .member("dir/", b'5', b"")
        .file("__meta__/x.jpg", b"no")
        .file("__url__", b"no")
        .file("README", b"no")
        .file("1.jpg", b"one")
        // A hard link's size is no data's.
        .member("1.png", b'1', b"")
        .file("1.cls", b"a")
        .end();
    let path = folder.write("x.tar", tar);
    assert_eq!(
        lines(&Dataset::open(&path, &loose()).unwrap()),
        ["x.tar/1 a train one"]
    );
}

#[test]
fn samples_that_are_no_samples_are_left_out_by_name() {
    let folder = Folder::new();
    let tar = Tar::default()
        .file("1.jpg", b"one")
        .file("1.cls", b"a")
        .file("1.cls", b"a")
        .file("2.cls", b"a")
        .file("3.left.jpg", b"x")
        .file("3.right.jpg", b"y")
        .file("4.jpg", b"x")
        .file("4.cls", b"\xff")
        .file("5.jpg", b"x")
        .file("5.json", b"{\"label\":")
        .file("6.jpg", b"x")
        .file("6.cls", &[b'a'; 5000])
        .file("7.jpg", b"seven")
        .end();
    let path = folder.write("x.tar", tar);
    let data = Dataset::open(&path, &loose()).unwrap();
    assert_eq!(lines(&data), ["x.tar/7 - train seven"]);
    assert_eq!(
        left_out(&data),
        [
            "x.tar/1: it has `cls` twice",
            "x.tar/2: it has no picture",
            "x.tar/3: it has several pictures, `left.jpg` and `right.jpg`, and none that is called by its ending alone",
            "x.tar/4: its label is not UTF-8",
            "x.tar/5: its JSON cannot be read: it is no JSON: EOF while parsing a value at column 9",
            "x.tar/6: its label has 5000 bytes, over 4096",
        ]
    );
    let said = DataOptions {
        columns: Columns {
            path: Some("left.jpg".to_owned()),
            ..Columns::default()
        },
        ..loose()
    };
    assert_eq!(
        lines(&Dataset::open(&path, &said).unwrap()),
        ["x.tar/3 - train x"]
    );
}

#[test]
fn long_names_and_large_sizes_are_read_in_each_dialect() {
    let folder = Folder::new();
    let long = format!("{}/{}.jpg", "d".repeat(120), "n".repeat(120));
    let key = long.strip_suffix(".jpg").unwrap();
    let gnu = Tar::default()
        .member("././@LongLink", b'L', format!("{long}\0").as_bytes())
        .file("cut.jpg", b"one")
        .end();
    let global = pax(&[("comment", "x")]);
    let local = pax(&[("path", &long), ("size", "3")]);
    let mut named = Tar::default()
        .member("g", b'g', &global)
        .member("p", b'x', &local);
    // The size in the header is wrong; that of the pax header counts.
    named.0.extend(Tar::header(b"cut.jpg", 0, b'0'));
    let pax = named.data(b"one").end();
    let mut prefixed = Tar::header(format!("{}.jpg", "n".repeat(90)).as_bytes(), 3, b'0');
    prefixed[345..349].copy_from_slice(b"pre/");
    Tar::sum(&mut prefixed);
    let ustar = Tar(prefixed.to_vec()).data(b"one").end();
    let mut binary = Tar::header(b"b.jpg", 0, b'0');
    binary[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    Tar::sum(&mut binary);
    let binary = Tar(binary.to_vec()).data(b"one").end();
    for (tar, key) in [
        (gnu, key.to_owned()),
        (pax, key.to_owned()),
        (ustar, format!("pre//{}", "n".repeat(90))),
        (binary, "b".to_owned()),
    ] {
        let path = folder.write("x.tar", tar);
        assert_eq!(
            lines(&Dataset::open(&path, &loose()).unwrap()),
            [format!("x.tar/{key} - train one")]
        );
    }
}

#[test]
fn a_tar_cut_short_gives_what_is_whole() {
    let folder = Folder::new();
    let whole = Tar::default()
        .file("1.jpg", b"one")
        .file("1.cls", b"a")
        .file("2.jpg", &[b'x'; 700])
        .file("2.cls", b"b")
        .end();
    for (n, samples, expected) in [
        (whole.len(), vec!["x.tar/1", "x.tar/2"], vec![]),
        // Without its end mark.
        (
            whole.len() - 1024,
            vec!["x.tar/1", "x.tar/2"],
            vec!["x.tar: it ends without an end mark: it was cut short"],
        ),
        // In the label, in a header, in a picture.
        (
            4096,
            vec!["x.tar/1"],
            vec![
                "x.tar/2: its label is cut short",
                "x.tar: it is cut short at byte 4096, in `2.cls`",
            ],
        ),
        (
            3584 + 100,
            vec!["x.tar/1", "x.tar/2"],
            vec!["x.tar: it is cut short at byte 3684, in a header"],
        ),
        (
            2560 + 300,
            vec!["x.tar/1"],
            vec![
                "x.tar/2: its picture is cut short",
                "x.tar: it is cut short at byte 2860, in `2.jpg`",
            ],
        ),
    ] {
        let path = folder.write("x.tar", &whole[..n]);
        let data = Dataset::open(&path, &loose()).unwrap();
        let names: Vec<_> = (0..data.len()).map(|idx| data.name(idx).into_owned()).collect();
        assert_eq!(
            (names, left_out(&data)),
            (
                samples.iter().map(|name| (*name).to_owned()).collect(),
                expected.iter().map(|line| (*line).to_owned()).collect()
            ),
            "{n}"
        );
    }
    // At each length something is said or something whole is read, and nothing panics.
    for n in (0..whole.len() - 1024).step_by(5) {
        let path = folder.write("x.tar", &whole[..n]);
        match Dataset::open(&path, &loose()) {
            Ok(data) => assert!(!data.is_empty() && !left_out(&data).is_empty(), "{n}"),
            Err(error) => assert!(n < 2048, "{n}: {error}"),
        }
    }
}

#[test]
fn damaged_headers_end_a_tar_and_no_tar_is_none() {
    let folder = Folder::new();
    let mut tar = Tar::default().file("1.jpg", b"one").file("2.jpg", b"two").end();
    tar[1024 + 3] ^= 1;
    let data = Dataset::open(&folder.write("x.tar", &tar), &loose()).unwrap();
    assert_eq!(lines(&data), ["x.tar/1 - train one"]);
    assert_eq!(left_out(&data), ["x.tar: its header at byte 1024 is damaged"]);
    let compressed =
        "it is compressed, and samples are read at their places: unpack it to a plain .tar first";
    let mut gzip = vec![0; 600];
    gzip[..2].copy_from_slice(&[0x1f, 0x8b]);
    check_rejects(&folder.write("x.tar.gz", &gzip), &loose(), compressed);
    check_rejects(&folder.write("x.tar", &gzip), &loose(), compressed);
    check_rejects(&folder.write("x.tar", b"no"), &loose(), "this is no tar");
    check_rejects(&folder.write("x.tar", [7; 600]), &loose(), "this is no tar");
    check_rejects(&folder.write("x.tar", b""), &loose(), "the file is empty");
    let mut huge = Tar::header(b"long", u64::MAX >> 31, b'L').to_vec();
    huge.extend([0; 512]);
    check_rejects(
        &folder.write("x.tar", huge),
        &loose(),
        "its name at byte 0 claims 8589934591 bytes",
    );
    let sparse = Tar::default()
        .member("1.jpg", b'S', b"one")
        .file("2.jpg", b"two")
        .end();
    let data = Dataset::open(&folder.write("x.tar", sparse), &loose()).unwrap();
    assert_eq!(
        left_out(&data),
        ["x.tar/1: its picture is stored sparse, which is not read"]
    );
    assert_eq!(lines(&data), ["x.tar/2 - train two"]);
    let pax_sparse = Tar::default()
        .member(
            "p",
            b'x',
            &pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.name", "3.jpg")]),
        )
        .file("GNUSparseFile.0/3.jpg", b"one")
        .file("2.jpg", b"two")
        .end();
    let data = Dataset::open(&folder.write("x.tar", pax_sparse), &loose()).unwrap();
    assert_eq!(
        left_out(&data),
        ["x.tar/3: its picture is stored sparse, which is not read"]
    );
}

#[test]
fn several_tars_are_one_data_set() {
    let folder = Folder::new();
    let tar = |name: &str| {
        let mut tar = Tar::default();
        for n in 0..3 {
            tar = tar
                .file(&format!("{n}.jpg"), format!("{name}{n}").as_bytes())
                .file(&format!("{n}.cls"), b"c");
        }
        tar.end()
    };
    for name in ["x-000", "x-001", "x-002"] {
        folder.write(&format!("{name}.tar"), tar(name));
    }
    folder.write("other/test-0.tar", tar("t"));
    let list = folder.at("x-{000..001}.tar");
    let data = Dataset::open(&list, &loose()).unwrap();
    assert_eq!(data.len(), 6);
    assert_eq!(lines(&data)[3], "x-001.tar/0 c train x-0010");
    // A list of lists; samples of a tar that is missing are missing by name.
    let list = format!(
        "{}::{}",
        folder.at("x-{002..003}.tar").display(),
        folder.at("x-000.tar").display()
    );
    let data = Dataset::open(list.as_ref(), &loose()).unwrap();
    assert_eq!(
        (data.len(), data.name(0).as_ref(), data.name(3).as_ref()),
        (6, "x-002.tar/0", "x-000.tar/0")
    );
    assert_eq!(
        left_out(&data),
        ["x-003.tar: it cannot be read: No such file or directory (os error 2)"]
    );
    // A folder, whose names say splits.
    folder.write("other/train/0.tar", tar("r"));
    let data = Dataset::open(&folder.at("other"), &strict()).unwrap();
    assert_eq!(data.count(super::super::Split::Train), 3);
    assert_eq!(lines(&data)[3], "train/0.tar/0 c train r0");
    assert_eq!(lines(&data)[0], "test-0.tar/0 c val t0");
    check_rejects(
        &folder.at("x-{a..b}.tar"),
        &loose(),
        "`{a..b}` is no range of numbers",
    );
    check_rejects(
        &folder.at("x-{0..1}.zip"),
        &loose(),
        "no such folder or file, and no list of .tar or .parquet files",
    );
    let fraction = DataOptions::new(SplitRule::Fraction {
        fraction: 0.3,
        seed: 0,
    });
    let data = Dataset::open(&folder.at("x-{000..002}.tar"), &fraction).unwrap();
    assert_eq!(data.count(super::super::Split::Val), 3);
}

#[test]
fn keys_of_objects_name_splits_and_samples() {
    let folder = Folder::new();
    let tar = Tar::default()
        .file("1.jpg", b"one")
        .file(
            "1.json",
            b"{\"class\": \"a\", \"fold\": \"train\", \"sha\": \"s1\", \"caption\": \"c1\"}",
        )
        .file("2.jpg", b"two")
        .file(
            "2.json",
            b"{\"class\": \"a\", \"fold\": \"val\", \"sha\": \"s2\", \"caption\": \"c2\"}",
        )
        .end();
    let path = folder.write("x.tar", tar);
    let options = DataOptions {
        columns: Columns {
            split: Some("fold".to_owned()),
            id: Some("sha".to_owned()),
            ..Columns::default()
        },
        ..strict()
    };
    assert_eq!(
        lines(&Dataset::open(&path, &options).unwrap()),
        ["s1 a train one", "s2 a val two"]
    );
    let texts = DataOptions {
        wanted: Wanted::Texts,
        ..loose()
    };
    assert_eq!(
        lines(&Dataset::open(&path, &texts).unwrap()),
        ["x.tar/1 a train text:c1", "x.tar/2 a train text:c2"]
    );
}
