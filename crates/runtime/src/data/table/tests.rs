use super::super::testing::{Folder, check_rejects, left_out, lines, loose, strict};
use super::super::{Columns, DataOptions, Dataset, SplitRule, Wanted};

fn columns(change: impl FnOnce(&mut Columns)) -> DataOptions {
    let mut options = loose();
    change(&mut options.columns);
    options
}

#[test]
fn rows_of_csv_are_samples() {
    let folder = Folder::new();
    folder.write("img/1.jpg", "one");
    folder.write("img/2.jpg", "two");
    folder.write("3.jpg", "three");
    // A byte order mark, quotes, Windows line ends, a blank line.
    let csv =
        "\u{feff}path,label,split\r\n./img/1.jpg,10,train\r\n\r\n\"img/2.jpg\",9,training\r\n3.jpg,9,dev\r\n";
    let path = folder.write("list.csv", csv);
    let data = Dataset::open(&path, &strict()).unwrap();
    // Numbers are in order of their values.
    assert_eq!(data.classes(), ["9", "10"]);
    assert_eq!(
        lines(&data),
        [
            "img/1.jpg 10 train one",
            "img/2.jpg 9 train two",
            "3.jpg 9 val three"
        ]
    );
    assert!(data.left_out().is_empty());
}

#[test]
fn tabs_json_and_other_columns() {
    let folder = Folder::new();
    folder.write("a b.jpg", "one");
    let tsv = folder.write("list.tsv", "Image\tClass\na b.jpg\tx, y\n");
    assert_eq!(
        lines(&Dataset::open(&tsv, &loose()).unwrap()),
        ["a b.jpg x, y train one"]
    );
    let semicolons = folder.write("list2.csv", "image;class\na b.jpg;z\n");
    assert_eq!(
        lines(&Dataset::open(&semicolons, &loose()).unwrap()),
        ["a b.jpg z train one"]
    );
    let json = "{\"file_name\": \"a b.jpg\", \"label\": true, \"n\": [1]}\n{\"file_name\": \"a b.jpg\", \"label\": null}\n";
    let jsonl = folder.write("list.jsonl", json);
    assert_eq!(
        lines(&Dataset::open(&jsonl, &loose()).unwrap()),
        ["a b.jpg true train one", "a b.jpg - train one"]
    );
    let odd = folder.write("odd.csv", "where,what,called\na b.jpg,q,first\n");
    let options = columns(|columns| {
        columns.path = Some("where".to_owned());
        columns.label = Some("what".to_owned());
        columns.id = Some("called".to_owned());
    });
    assert_eq!(
        lines(&Dataset::open(&odd, &options).unwrap()),
        ["first q train one"]
    );
}

#[test]
fn names_of_their_own_stay_with_their_files_when_rows_go() {
    let folder = Folder::new();
    for name in ["1", "2", "3"] {
        folder.write(name, format!("content {name}"));
    }
    let csv = "path,label,split,id\n1,a,test,first\n2,a,val,second\n3,a,train,third\n";
    let path = folder.write("list.csv", csv);
    let options = DataOptions {
        columns: Columns {
            id: Some("id".to_owned()),
            ..Columns::default()
        },
        ..strict()
    };
    let data = Dataset::open(&path, &options).unwrap();
    assert_eq!(
        lines(&data),
        ["second a val content 2", "third a train content 3"]
    );
    assert_eq!(data.set_aside(), [("test".to_owned(), 1)]);
    assert_eq!(data.n_left_out(), 0);
}

#[test]
fn broken_rows_are_left_out_by_their_lines() {
    let folder = Folder::new();
    folder.write("1.jpg", "one");
    let mut csv = b"path,label,split\n1.jpg,a,train\n1.jpg,a\n1.jpg,a,val,more\nx\xe9.jpg,a,train\n".to_vec();
    csv.extend(b",a,train\nhttp://x/1.jpg,a,train\n1.jpg,,train\n1.jpg,a,\ngone.jpg,a,val\n");
    let path = folder.write("list.csv", csv);
    let data = Dataset::open(&path, &strict()).unwrap();
    assert_eq!(
        left_out(&data),
        [
            "list.csv:3: the row has 2 fields, and the header 3",
            "list.csv:4: the row has 4 fields, and the header 3",
            "list.csv:5: its path cannot be read: it is not UTF-8",
            "list.csv:6: it has no path",
            "list.csv:7: `http://x/1.jpg` is an address and no path",
            "1.jpg: it has no label",
            "1.jpg: it has no split, and other samples have one",
        ]
    );
    assert_eq!(
        lines(&data),
        [
            "1.jpg a train one",
            "gone.jpg a val error:it cannot be read: No such file or directory (os error 2); it is named on line 10 of the manifest"
        ]
    );
    let jsonl = folder.write(
        "list.jsonl",
        b"{\"path\":\"1.jpg\",\"label\":1}\n[1]\n{\"path\":\n{\"label\":1}\n{\"path\":{},\"label\":1}\n{\"path\":\"\xe9\"}\n",
    );
    let data = Dataset::open(&jsonl, &loose()).unwrap();
    assert_eq!(
        left_out(&data),
        [
            "list.jsonl:2: it is no JSON object",
            "list.jsonl:3: it is no JSON: EOF while parsing a value at column 8",
            "list.jsonl:4: it has no path",
            "list.jsonl:5: its path cannot be read: an object where one value is wanted",
            "list.jsonl:6: it is not UTF-8",
        ]
    );
    assert_eq!(data.len(), 1);
}

#[test]
fn manifests_that_say_too_little_are_refused() {
    let folder = Folder::new();
    let check = |name: &str, text: &[u8], options: &DataOptions, message: &str| {
        check_rejects(&folder.write(name, text), options, message);
    };
    check("a.csv", b"", &loose(), "the file is empty");
    check(
        "a.csv",
        b"\xff\xfea\0",
        &loose(),
        "it is UTF-16; save it as UTF-8",
    );
    check(
        "a.csv",
        b"\x1f\x8b\x08",
        &loose(),
        "it is compressed; unpack it first",
    );
    check("a.csv", b"path,la\xe9\nx,y\n", &loose(), "line 1 is not UTF-8");
    check("a.csv", b"pa\0th\n", &loose(), "it is no text");
    check(
        "a.csv",
        b"a,b\n1,2\n",
        &loose(),
        "none of its columns is one of paths; there are `a`, `b`",
    );
    check(
        "a.csv",
        b"path,b\n1,2\n",
        &strict(),
        "none of its columns is one of labels; there are `path`, `b`",
    );
    check(
        "a.csv",
        b"path,label\n1,\n2,\n",
        &DataOptions::new(SplitRule::Loose),
        "no sample in it has a label",
    );
    check("a.csv", b"path,label\n", &loose(), "there are no samples in it");
    check(
        "a.csv",
        b"path,label\nx\n",
        &loose(),
        "no sample in it can be used; the first, `a.csv:2`: the row has 1 field, and the header 2",
    );
    check(
        "a.csv",
        b"path,label\n1,a\n",
        &strict(),
        "it does not say which samples are for validation; say which share is",
    );
    check(
        "a.csv",
        b"path,label,split\n1,a,train\n",
        &strict(),
        "it has training samples and none for validation; say which share is for validation",
    );
    check(
        "a.csv",
        b"path,label,split\n1,a,train\n2,b,val\n",
        &strict(),
        "class `b` of `2` is not among those trained on",
    );
    let fraction = DataOptions::new(SplitRule::Fraction {
        fraction: 0.5,
        seed: 0,
    });
    check(
        "a.csv",
        b"path,label,split\n1,a,train\n2,b,val\n",
        &fraction,
        "says itself which samples are for validation: --val-fraction is for sources that do not",
    );
    check(
        "a.csv",
        b"path,label\n1,a\n2,b\n3,b\n",
        &fraction,
        "class `a` has one sample, which cannot be split into training and validation",
    );
    let said = columns(|columns| columns.label = Some("species".to_owned()));
    check(
        "a.csv",
        b"path,b\n1,2\n",
        &said,
        "there is no column `species`; there are `path`, `b`",
    );
    check(
        "a.json",
        b"[{\"path\": 1}]",
        &loose(),
        "it is a JSON list; write one object per line instead",
    );
    let mut open_quote = b"path,label\n\"1,a\n".to_vec();
    open_quote.resize(17 << 20, b'x');
    check(
        "a.csv",
        &open_quote,
        &loose(),
        "line 2 begins a record of more than 16 MiB; is a quote left open?",
    );
}

#[test]
fn a_share_is_stratified_and_the_order_stays() {
    let folder = Folder::new();
    let mut csv = "path,label,split\n".to_owned();
    for n in 0..40 {
        // Training samples that a source says may be split further.
        csv.push_str(&format!("{n:02},{},train\n", n % 2));
    }
    let path = folder.write("list.csv", csv);
    let open = |seed| {
        Dataset::open(
            &path,
            &DataOptions::new(SplitRule::Fraction { fraction: 0.2, seed }),
        )
        .unwrap()
    };
    let data = open(1);
    let val: Vec<usize> = (0..40)
        .filter(|&idx| data.split(idx) == super::super::Split::Val)
        .collect();
    assert_eq!(
        (val.len(), val.iter().filter(|idx| *idx % 2 == 0).count()),
        (8, 4)
    );
    assert_eq!(data.name(17), "17");
    let splits = |data: &Dataset| (0..40).map(|idx| data.split(idx)).collect::<Vec<_>>();
    assert_eq!(splits(&data), splits(&open(1)));
    assert_ne!(splits(&data), splits(&open(2)));
}

#[test]
fn a_head_is_judged_on_validation_rows_with_its_own_classes() {
    let folder = Folder::new();
    let path = folder.write(
        "list.csv",
        "path,label,split\n1,a,train\n2,b,val\n3,a,val\n4,b,test\n",
    );
    let classes = ["b".to_owned(), "a".to_owned()];
    let data = Dataset::open_for_eval(&path, &strict(), &classes).unwrap();
    assert_eq!(data.classes(), classes);
    let labels: Vec<_> = (0..data.len())
        .map(|idx| (data.name(idx), data.label(idx)))
        .collect();
    assert_eq!(labels, [("2".into(), Some(0)), ("3".into(), Some(1))]);
    let error = Dataset::open_for_eval(&path, &strict(), &classes[..1])
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("class `a` of `3` is not among those trained on"),
        "{error}"
    );
    let all = folder.write("all.csv", "path,label\n1,a\n2,b\n");
    assert_eq!(
        Dataset::open_for_eval(&all, &strict(), &classes).unwrap().len(),
        2
    );
}

#[test]
fn texts_are_read_at_their_places() {
    let folder = Folder::new();
    let csv = folder.write("t.csv", "label,text\nx,\"several\nlines, \"\"so\"\"\"\ny,\nz,ü\n");
    let data = Dataset::open(&csv, &loose()).unwrap();
    assert!(data.is_text());
    assert_eq!(
        lines(&data),
        [
            "t.csv#2 x train text:several\nlines, \"so\"",
            "t.csv#5 z train text:ü"
        ]
    );
    assert_eq!(left_out(&data), ["t.csv:4: it has no text"]);
    let jsonl = folder.write("t.jsonl", "{\"caption\":\"a\\nb\"}\n\n{\"caption\":\"c\"}");
    let data = Dataset::open(&jsonl, &loose()).unwrap();
    assert_eq!(
        lines(&data),
        ["t.jsonl#1 - train text:a\nb", "t.jsonl#3 - train text:c"]
    );
    let txt = folder.write("t.txt", b"one\r\n\n  two \nb\xe9\n");
    let data = Dataset::open(&txt, &loose()).unwrap();
    assert_eq!(
        lines(&data),
        ["t.txt#1 - train text:one", "t.txt#3 - train text:two"]
    );
    assert_eq!(left_out(&data), ["t.txt:4: it is not UTF-8"]);
    check_rejects(&txt, &strict(), "texts on lines have no labels");
    // Where both are there, the caller says which is wanted.
    let both = folder.write("b.csv", "path,text\n1.jpg,hello\n");
    assert!(!Dataset::open(&both, &loose()).unwrap().is_text());
    let options = DataOptions {
        wanted: Wanted::Texts,
        ..loose()
    };
    assert_eq!(
        lines(&Dataset::open(&both, &options).unwrap()),
        ["b.csv#2 - train text:hello"]
    );
    let path = folder.write("p.csv", "path,label\n1,2\n");
    check_rejects(
        &path,
        &options,
        "none of its columns is one of texts; there are `path`, `label`",
    );
    let options = DataOptions {
        wanted: Wanted::Pictures,
        ..loose()
    };
    check_rejects(&txt, &options, "it holds texts, and pictures are wanted");
    // A file that changed is told of, not misread.
    let data = Dataset::open(&jsonl, &loose()).unwrap();
    folder.write("t.jsonl", "{}");
    assert!(lines(&data)[1].ends_with("error:the file has changed since it was listed"));
}
