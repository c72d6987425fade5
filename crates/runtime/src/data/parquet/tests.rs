use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::testing::{Folder, check_rejects, left_out, lines, loose, strict};
use super::super::{Columns, DataOptions, Dataset, Split, SplitRule, Unlabelled, Wanted};

/// A column's values; `None` is null.
enum Values {
    Texts(Vec<Option<String>>),
    Numbers(Vec<Option<i64>>),
}

/// How a file is cut into row groups and pages.
#[derive(Clone, Copy)]
struct Layout {
    group_rows: usize,
    page_rows: usize,
    compression: Compression,
}

const SMALL: Layout = Layout {
    group_rows: 40,
    page_rows: 7,
    compression: Compression::SNAPPY,
};

/// The rows of leaf columns, in the order of the schema; `deep` columns are optional within an optional group.
fn file(schema: &str, columns: &[(bool, Values)], layout: Layout, metadata: &str) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(layout.compression)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_row_count_limit(layout.page_rows)
        .set_write_batch_size(1)
        .set_key_value_metadata(Some(vec![KeyValue::new(
            "huggingface".to_owned(),
            metadata.to_owned(),
        )]))
        .build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let n_rows = match &columns[0].1 {
        Values::Texts(values) => values.len(),
        Values::Numbers(values) => values.len(),
    };
    for start in (0..n_rows).step_by(layout.group_rows) {
        let end = (start + layout.group_rows).min(n_rows);
        let mut group = writer.next_row_group().unwrap();
        for (deep, values) in columns {
            let defined = if *deep { 2 } else { 1 };
            let mut column = group.next_column().unwrap().unwrap();
            match values {
                Values::Texts(values) => {
                    let values = &values[start..end];
                    let levels: Vec<i16> = values
                        .iter()
                        .map(|value| if value.is_some() { defined } else { 0 })
                        .collect();
                    let texts: Vec<ByteArray> = values
                        .iter()
                        .flatten()
                        .map(|text| text.as_bytes().to_vec().into())
                        .collect();
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&texts, Some(&levels), None)
                        .unwrap();
                }
                Values::Numbers(values) => {
                    let values = &values[start..end];
                    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
                    let numbers: Vec<i64> = values.iter().flatten().copied().collect();
                    column
                        .typed::<Int64Type>()
                        .write_batch(&numbers, Some(&levels), None)
                        .unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

fn texts(n: usize, text: impl Fn(usize) -> Option<String>) -> Values {
    Values::Texts((0..n).map(text).collect())
}

const PICTURES: &str = "message schema { OPTIONAL GROUP image { OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); } \
     OPTIONAL INT64 label; }";

fn content(n: usize) -> String {
    format!("picture {n} {}", "x".repeat(n % 50))
}

/// As `datasets` writes a split: pictures, labels as numbers, names of classes.
fn pictures(n: usize, layout: Layout) -> Vec<u8> {
    let names = "{\"info\": {\"features\": {\"image\": {\"_type\": \"Image\"}, \"label\": {\"names\": [\"zebra\", \"ape\", \"unseen\"], \"_type\": \"ClassLabel\"}}}}";
    let columns = [
        (true, texts(n, |n| Some(content(n)))),
        (true, texts(n, |n| (n % 2 == 0).then(|| format!("{n}.jpg")))),
        (
            false,
            Values::Numbers((0..n).map(|n| Some(n as i64 % 2)).collect()),
        ),
    ];
    file(PICTURES, &columns, layout, names)
}

#[test]
fn pictures_and_class_names_are_in_the_file() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
    ] {
        let folder = Folder::new();
        let path = folder.write("data.parquet", pictures(100, Layout { compression, ..SMALL }));
        let data = Dataset::open(&path, &loose()).unwrap();
        // The order of the file, and those without samples too.
        assert_eq!(data.classes(), ["zebra", "ape", "unseen"]);
        let lines = lines(&data);
        assert_eq!(lines.len(), 100);
        for (n, line) in lines.iter().enumerate() {
            let class = ["zebra", "ape"][n % 2];
            assert_eq!(*line, format!("data.parquet#{n} {class} train {}", content(n)));
        }
    }
}

#[test]
fn any_order_of_reading_gives_the_same() {
    let folder = Folder::new();
    for (name, n) in [("train-00000-of-00001", 6000), ("test-00000-of-00001", 100)] {
        let layout = Layout {
            group_rows: 900,
            page_rows: 64,
            ..SMALL
        };
        folder.write(&format!("data/{name}.parquet"), pictures(n, layout));
    }
    let data = Dataset::open(folder.path(), &strict()).unwrap();
    assert_eq!((data.count(Split::Train), data.count(Split::Val)), (6000, 100));
    let check = |reader: &mut super::super::Reader<'_>, idx: usize| {
        let name = data.name(idx);
        let n: usize = name.rsplit('#').next().unwrap().parse().unwrap();
        assert_eq!(
            reader.read(idx).unwrap(),
            super::super::Content::Encoded(content(n).into_bytes().into()),
            "{name}"
        );
    };
    let len = data.len();
    // Backwards, in jumps, at random, twice, and from several threads at once.
    let mut reader = data.reader();
    (0..len)
        .rev()
        .step_by(501)
        .for_each(|idx| check(&mut reader, idx));
    (0..len).step_by(333).for_each(|idx| check(&mut reader, idx));
    let mut random = crate::random::Random::new(0, "order");
    (0..200).for_each(|_| check(&mut reader, random.below(len)));
    for _ in 0..2 {
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut reader = data.reader();
                    loop {
                        let first = next.fetch_add(8, std::sync::atomic::Ordering::Relaxed);
                        if first >= len {
                            break;
                        }
                        (first..(first + 8).min(len)).for_each(|idx| check(&mut reader, idx));
                    }
                });
            }
        });
    }
}

#[test]
fn a_column_of_bytes_or_of_paths_serves_too() {
    let folder = Folder::new();
    folder.write("sub/1.jpg", "one");
    let schema = "message schema { OPTIONAL BYTE_ARRAY path (UTF8); OPTIONAL BYTE_ARRAY label (UTF8); OPTIONAL BYTE_ARRAY split (UTF8); OPTIONAL BYTE_ARRAY key (UTF8); }";
    let columns = [
        (
            false,
            Values::Texts(vec![
                Some("sub/1.jpg".into()),
                None,
                Some("sub/2.jpg".into()),
                Some("sub/1.jpg".into()),
            ]),
        ),
        (
            false,
            Values::Texts(vec![Some("a".into()), Some("a".into()), Some("a".into()), None]),
        ),
        (
            false,
            Values::Texts(vec![
                Some("train".into()),
                Some("train".into()),
                Some("val".into()),
                Some("train".into()),
            ]),
        ),
        (false, texts(4, |n| Some(format!("k{n}")))),
    ];
    let path = folder.write("list.parquet", file(schema, &columns, SMALL, "{}"));
    let data = Dataset::open(&path, &strict()).unwrap();
    assert_eq!(
        lines(&data),
        [
            "sub/1.jpg a train one",
            "sub/2.jpg a val error:it cannot be read: No such file or directory (os error 2); it is named on line 3 of the manifest"
        ]
    );
    assert_eq!(
        left_out(&data),
        ["list.parquet#1: it has no path", "sub/1.jpg: it has no label"]
    );
    let options = DataOptions {
        columns: Columns {
            id: Some("key".to_owned()),
            ..Columns::default()
        },
        ..loose()
    };
    assert_eq!(
        lines(&Dataset::open(&path, &options).unwrap())[0],
        "k0 a train one"
    );
    let schema = "message schema { OPTIONAL BYTE_ARRAY jpg; OPTIONAL BYTE_ARRAY y (UTF8); }";
    let columns = [
        (false, texts(2, |n| Some(content(n)))),
        (false, texts(2, |n| Some(format!("{n}")))),
    ];
    let path = folder.write("bytes.parquet", file(schema, &columns, SMALL, "{}"));
    assert_eq!(
        lines(&Dataset::open(&path, &loose()).unwrap()),
        [
            "bytes.parquet#0 0 train picture 0 ",
            "bytes.parquet#1 1 train picture 1 x"
        ]
    );
}

#[test]
fn texts_are_read_from_their_column() {
    let folder = Folder::new();
    let schema = "message schema { OPTIONAL BYTE_ARRAY sentence (UTF8); OPTIONAL INT64 label; }";
    let columns = [
        (
            false,
            Values::Texts(vec![Some("one".into()), None, Some("ü".into())]),
        ),
        (false, Values::Numbers(vec![Some(10), Some(9), None])),
    ];
    let path = folder.write("t.parquet", file(schema, &columns, SMALL, "{}"));
    let data = Dataset::open(&path, &loose()).unwrap();
    assert!(data.is_text());
    assert_eq!(data.classes(), ["9", "10"]);
    assert_eq!(
        lines(&data),
        [
            "t.parquet#0 10 train text:one",
            "t.parquet#1 9 train error:it is null",
            "t.parquet#2 - train text:ü"
        ]
    );
    let pictures = DataOptions {
        wanted: Wanted::Pictures,
        ..loose()
    };
    check_rejects(
        &path,
        &pictures,
        "none of its columns is one of pictures; there are `sentence`, `label`",
    );
}

#[test]
fn pictures_beside_the_file_and_missing_ones() {
    let folder = Folder::new();
    folder.write("d/0.jpg", "beside");
    let columns = [
        (true, Values::Texts(vec![None, None, Some("inside".into())])),
        (
            true,
            Values::Texts(vec![Some("0.jpg".into()), None, Some("gone.jpg".into())]),
        ),
        (false, Values::Numbers(vec![Some(1), Some(-1), Some(7)])),
    ];
    let path = folder.write("d/x.parquet", file(PICTURES, &columns, SMALL, "{}"));
    assert_eq!(
        lines(&Dataset::open(&path, &loose()).unwrap()),
        [
            "x.parquet#0 1 train beside",
            "x.parquet#1 -1 train error:it is null",
            "x.parquet#2 7 train inside"
        ]
    );
    // With names of classes, a negative number is none and one beyond them is a mistake.
    let names =
        "{\"info\": {\"features\": {\"label\": {\"names\": [\"a\", \"b\"], \"_type\": \"ClassLabel\"}}}}";
    let path = folder.write("d/x.parquet", file(PICTURES, &columns, SMALL, names));
    let data = Dataset::open(&path, &loose()).unwrap();
    assert_eq!(data.classes(), ["a", "b"]);
    assert_eq!((data.label(0), data.label(1)), (Some(1), None));
    assert_eq!(
        left_out(&data),
        ["x.parquet#2: its label cannot be read: 7 is beyond its 2 classes"]
    );
}

#[test]
fn splits_are_in_names_and_one_alone_can_be_parted() {
    let folder = Folder::new();
    for name in [
        "train-00000-of-00002",
        "train-00001-of-00002",
        "validation-00000-of-00001",
        "test-00000-of-00001",
        "extra-00000-of-00001",
    ] {
        folder.write(&format!("data/{name}.parquet"), pictures(10, SMALL));
    }
    let data = Dataset::open(folder.path(), &strict()).unwrap();
    assert_eq!((data.count(Split::Train), data.count(Split::Val)), (20, 10));
    assert_eq!(
        data.set_aside(),
        [("extra".to_owned(), 10), ("test".to_owned(), 10)]
    );
    assert_eq!(data.name(10), "data/train-00001-of-00002.parquet#0");
    let list = folder.at("data/train-{00000..00001}-of-00002.parquet");
    let fraction = DataOptions::new(SplitRule::Fraction {
        fraction: 0.25,
        seed: 0,
    });
    let data = Dataset::open(&list, &fraction).unwrap();
    assert_eq!((data.count(Split::Train), data.count(Split::Val)), (14, 6));
}

#[test]
fn what_is_damaged_costs_its_own_rows() {
    let folder = Folder::new();
    let layout = Layout {
        group_rows: 40,
        page_rows: 8,
        compression: Compression::UNCOMPRESSED,
    };
    let whole = pictures(100, layout);
    // Damage in the middle of a page of pictures: its rows are told of, the others are read.
    let needle = b"picture 20 ";
    let at = whole
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    let mut bytes = whole.clone();
    bytes[at - 4..at].copy_from_slice(&[0xff; 4]);
    let path = folder.write("x.parquet", &bytes);
    let data = Dataset::open(&path, &loose()).unwrap();
    let lines = lines(&data);
    let broken: Vec<usize> = (0..100).filter(|&n| lines[n].contains("error:")).collect();
    assert!(broken.contains(&20) && broken.len() <= 8, "{broken:?}");
    for (n, line) in lines.iter().enumerate().filter(|(n, _)| !broken.contains(n)) {
        assert!(line.ends_with(&content(n)), "{line}");
    }
    // Damage anywhere is an error or a listing, never a panic or a flood of memory.
    let mut random = crate::random::Random::new(0, "damage");
    let compressed = pictures(100, SMALL);
    for round in 0..200 {
        let mut bytes = if round % 2 == 0 {
            whole.clone()
        } else {
            compressed.clone()
        };
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        let path = folder.write("x.parquet", &bytes);
        if let Ok(data) = Dataset::open(&path, &loose()) {
            super::super::testing::lines(&data);
        }
    }
}

#[test]
fn labels_that_are_damaged_leave_their_row_group_out() {
    let folder = Folder::new();
    let schema = "message schema { OPTIONAL BYTE_ARRAY text (UTF8); OPTIONAL BYTE_ARRAY label (UTF8); }";
    let columns = [
        (false, texts(80, |n| Some(format!("t{n}")))),
        (false, texts(80, |n| Some(format!("class-of-{}", n % 2)))),
    ];
    let layout = Layout {
        compression: Compression::UNCOMPRESSED,
        page_rows: 100,
        ..SMALL
    };
    let mut bytes = file(schema, &columns, layout, "{}");
    let needle = b"class-of-";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    bytes[at - 4..at].copy_from_slice(&[0xff; 4]);
    let data = Dataset::open(&folder.write("x.parquet", &bytes), &loose()).unwrap();
    assert_eq!((data.len(), data.n_left_out()), (40, 40));
    assert_eq!(data.name(0), "x.parquet#40");
    let line = &left_out(&data)[0];
    assert!(
        line.starts_with("x.parquet#0..39: these 40 rows cannot be read: "),
        "{line}"
    );
}

#[test]
fn what_is_no_parquet_file_is_refused() {
    let folder = Folder::new();
    let check = |bytes: &[u8], message: &str| {
        let path: PathBuf = folder.write("x.parquet", bytes);
        let error = Dataset::open(&path, &loose()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    check(b"", "the file is empty");
    check(b"PAR1", "it is no whole Parquet file: ");
    let whole = pictures(10, SMALL);
    check(&whole[..whole.len() - 1], "it is no whole Parquet file: ");
    let labels = DataOptions {
        unlabelled: Unlabelled::LeaveOut,
        ..loose()
    };
    let schema = "message schema { OPTIONAL BYTE_ARRAY jpg; OPTIONAL BYTE_ARRAY species (UTF8); }";
    let columns = [
        (false, texts(2, |n| Some(content(n)))),
        (false, texts(2, |_| Some("s".into()))),
    ];
    let path = folder.write("x.parquet", file(schema, &columns, SMALL, "{}"));
    check_rejects(
        &path,
        &labels,
        "none of its columns is one of labels; there are `jpg`, `species`",
    );
    // Of several, a broken one is left out by name.
    folder.write("d/a.parquet", b"PAR1");
    folder.write("d/b.parquet", pictures(3, SMALL));
    let data = Dataset::open(&folder.at("d"), &loose()).unwrap();
    assert_eq!((data.len(), data.n_left_out()), (3, 1));
    assert!(left_out(&data)[0].starts_with("a.parquet: it is no whole Parquet file: "));
    folder.write("d/c.parquet", file(schema, &columns, SMALL, "{}"));
    let error = Dataset::open(&folder.at("d"), &loose()).unwrap_err().to_string();
    assert!(
        error.ends_with("its samples are not in the column `image` as in the files before"),
        "{error}"
    );
}
