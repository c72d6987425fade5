use std::fs;
use std::os::unix::fs::FileExt;

use pth::Existing;

use super::build::{Graph, external, graph, node, tensor, with};
use crate::error::Error;
use crate::onnx::Model;

/// Two matrices that lie in another file, 4 KiB each, and a shape that does, too.
fn network(location: &str) -> Graph {
    let at = |offset: &'static str| [("location", location.to_owned()), ("offset", offset.to_owned())];
    let place = |entries: [(&'static str, String); 2]| entries;
    let one = |name: &str, shape: &[u64], offset: &'static str| {
        let entries = place(at(offset));
        let entries: Vec<(&str, &str)> = entries
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        external(name, shape, &entries)
    };
    graph()
        .input("x", 1, &[0, 32])
        .field(5, one("w", &[32, 32], "0"))
        .field(5, one("v", &[32, 32], "4096"))
        .field(5, one("b", &[32], "8192"))
        .node("MatMul", &["x", "w"], &["a"])
        .node("Add", &["a", "b"], &["c"])
        .node("MatMul", &["c", "v"], &["y"])
        .output("y")
}

fn values(n: usize) -> Vec<u8> {
    (0..n).flat_map(|idx| (idx as f32 / 7.0).to_le_bytes()).collect()
}

#[test]
fn weights_beside_the_model_are_mapped_cut_and_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, network("weights/w.bin").bytes()).unwrap();
    fs::create_dir(folder.path().join("weights")).unwrap();
    let data = values(2080);
    fs::write(folder.path().join("weights/w.bin"), &data).unwrap();

    let model = Model::open(&path).unwrap();
    let names: Vec<&str> = model.external().iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["w", "v"], "`b` is small, and taken in");
    assert_eq!(model.external()[1].bytes(), &data[4096..8192]);
    assert_eq!(model.external()[1].shape, [32, 32]);
    assert_eq!(
        model.elements(&model.initializers["b"]).as_ref(),
        &data[8192..8320]
    );

    let cut = model.cut(&["c"]).unwrap();
    let names: Vec<&str> = cut.external().iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["w"]);
    assert_eq!(cut.prefix_digest("c").unwrap(), model.prefix_digest("c").unwrap());

    let whole = model.inlined().unwrap().unwrap();
    assert!(whole.external().is_empty());
    assert_eq!(
        whole.elements(&whole.initializers["v"]).as_ref(),
        &data[4096..8192]
    );
    assert_eq!(
        whole.prefix_digest("y").unwrap(),
        model.prefix_digest("y").unwrap()
    );

    // Out again, for sessions: the same model, and a cut carries only what it needs.
    let outside = whole.with_weights_outside().unwrap();
    let names: Vec<&str> = outside
        .external()
        .iter()
        .map(|found| found.name.as_str())
        .collect();
    assert_eq!(names, ["w", "v"]);
    assert!(outside.bytes().len() + 8192 < whole.bytes().len() + 256);
    for external in outside.external() {
        assert!(external.bytes().as_ptr().addr().is_multiple_of(4));
    }
    assert_eq!(
        outside.prefix_digest("y").unwrap(),
        model.prefix_digest("y").unwrap()
    );
    let cut = outside.cut(&["c"]).unwrap();
    assert_eq!(cut.external().len(), 1);
    assert_eq!(cut.prefix_digest("c").unwrap(), model.prefix_digest("c").unwrap());

    // Saved, and without what it was read from.
    let saved = folder.path().join("saved.onnx");
    assert_eq!(
        model.save(&saved, Existing::Refuse).unwrap(),
        std::slice::from_ref(&saved)
    );
    let again = Model::open(&saved).unwrap();
    assert_eq!(again.bytes(), whole.bytes());
    assert!(model.save(&saved, Existing::Refuse).is_err());
}

#[test]
fn a_model_over_the_limit_is_saved_in_two_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = values(2080);
    fs::write(folder.path().join("w.bin"), &data).unwrap();
    let model = Model::parse(&folder.path().join("m.onnx"), network("w.bin").bytes()).unwrap();
    let saved = folder.path().join("saved.onnx");
    let files = model.save_below(&saved, Existing::Refuse, 5000).unwrap();
    assert_eq!(files, [saved.clone(), folder.path().join("saved.onnx.data")]);
    fs::remove_file(folder.path().join("w.bin")).unwrap();
    let again = Model::open(&saved).unwrap();
    assert_eq!(again.external().len(), 2);
    assert_eq!(again.external()[1].bytes(), &data[4096..8192]);
    assert_eq!(
        again.prefix_digest("y").unwrap(),
        model.prefix_digest("y").unwrap()
    );
    assert!(model.save_below(&saved, Existing::Refuse, 5000).is_err());
    model.save_below(&saved, Existing::Replace, 5000).unwrap();
    assert_eq!(Model::open(&saved).unwrap().external().len(), 2);
}

#[test]
fn a_model_over_two_gib_is_opened_digested_and_cut() {
    const HUGE: u64 = (2 << 30) + (1 << 17);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let entries = |offset| [("location", "w.bin"), ("offset", offset)];
    let made = graph()
        .input("x", 1, &[0, 32])
        .field(5, external("w", &[32, 32], &entries("0")))
        // 2 GiB of zeros that take no room on the disk, in front of the boundary and behind it.
        .field(5, external("huge", &[32, HUGE / 128], &entries("4096")))
        .node("MatMul", &["x", "w"], &["a"])
        .node("MatMul", &["a", "huge"], &["y"])
        .output("y");
    fs::write(&path, made.bytes()).unwrap();
    let file = fs::File::create(folder.path().join("w.bin")).unwrap();
    file.set_len(4096 + HUGE).unwrap();
    file.write_all_at(&values(1024), 0).unwrap();

    let model = Model::open(&path).unwrap();
    assert_eq!(model.external()[1].bytes().len() as u64, HUGE);
    assert!(model.n_bytes() as u64 > HUGE);
    assert!(model.inlined().unwrap().is_none());
    let cut = model.cut(&["a"]).unwrap();
    assert_eq!(cut.n_bytes(), cut.bytes().len() + 4096);
    assert!(cut.inlined().unwrap().is_some());
    let prefix = model.prefix_digest("a").unwrap();
    assert_eq!(cut.prefix_digest("a").unwrap(), prefix);
    // One bit behind the first 2 GiB.
    let whole = model.prefix_digest("y").unwrap();
    file.write_all_at(&[1], 4096 + HUGE - 1).unwrap();
    let changed = Model::open(&path).unwrap();
    assert_ne!(changed.prefix_digest("y").unwrap(), whole);
    assert_eq!(changed.prefix_digest("a").unwrap(), prefix);
}

#[test]
fn constants_in_other_files_are_weights_and_other_places_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = values(1024);
    fs::write(folder.path().join("w.bin"), &data).unwrap();
    let path = folder.path().join("m.onnx");
    let attribute = |name: &str, number: u32, message: &[u8]| {
        let attribute = with(Vec::new(), 1, name.as_bytes());
        with(attribute, number, message)
    };
    let outside = external("inner", &[32, 32], &[("location", "w.bin")]);
    let constant = with(
        node("Constant", "", "", &[], &["w"]),
        5,
        &attribute("value", 5, &outside),
    );
    let made = graph()
        .input("x", 1, &[0, 32])
        .field(1, constant.clone())
        .node("MatMul", &["x", "w"], &["y"])
        .output("y");
    let model = Model::parse(&path, made.bytes()).unwrap();
    assert_eq!(model.external()[0].name, "w");
    assert_eq!(model.external()[0].bytes(), data);
    let inline = with(tensor("w", 1, &[32, 32]), 9, &data);
    let inline = graph()
        .input("x", 1, &[0, 32])
        .field(5, inline)
        .node("MatMul", &["x", "w"], &["y"])
        .output("y");
    assert_eq!(
        model.prefix_digest("y").unwrap(),
        inline.model().prefix_digest("y").unwrap()
    );
    // The same constant in a branch of an `If`.
    let branch = with(Vec::new(), 1, &constant);
    let branches = with(
        node("If", "choice", "", &["x"], &["y"]),
        5,
        &attribute("then_branch", 6, &branch),
    );
    let made = graph().input("x", 9, &[]).field(1, branches).output("y");
    let error = Model::parse(&path, made.bytes()).unwrap_err().to_string();
    assert!(
        error
            .ends_with("its If `choice` keeps numbers in another file, which only weights and constants can"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_with_a_file_of_weights_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w.bin"), values(100)).unwrap();
    let check = |message: Vec<u8>, expected: &str| {
        let made = graph()
            .input("x", 1, &[0, 32])
            .field(5, message)
            .node("MatMul", &["x", "w"], &["y"])
            .output("y");
        let error = Model::parse(&folder.path().join("m.onnx"), made.bytes()).unwrap_err();
        assert!(matches!(error, Error::ExternalWeights { .. }), "{error}");
        let error = error.to_string();
        let (_, said) = error.split_once("m.onnx` ").unwrap();
        assert_eq!(said, expected);
    };
    let at = |entries: &[(&str, &str)]| external("w", &[10, 10], entries);
    check(
        at(&[("location", "../w.bin")]),
        "keeps `w` in `../w.bin`, which is not below the model's folder",
    );
    check(
        at(&[("location", "/etc/passwd")]),
        "keeps `w` in `/etc/passwd`, which is not below the model's folder",
    );
    check(at(&[]), "keeps `w` in ``, which is not below the model's folder");
    check(
        at(&[("location", "v.bin")]),
        "keeps `w` in `v.bin`, which is missing",
    );
    check(
        at(&[("location", "w.bin"), ("offset", "1")]),
        "keeps `w` in `w.bin`, which has 400 bytes and would have to have 400 from byte 1 on",
    );
    check(
        at(&[("location", "w.bin"), ("offset", "18446744073709551615")]),
        "keeps `w` in `w.bin`, which has 400 bytes and would have to have 400 from byte 18446744073709551615 on",
    );
    check(
        at(&[("location", "w.bin"), ("offset", "-1")]),
        "keeps `w` in `w.bin`, at offset `-1`, which is no number",
    );
    check(
        at(&[("location", "w.bin"), ("length", "396")]),
        "keeps `w` in `w.bin`, where it has 396 bytes, and float32 of [10, 10] has 400",
    );
    check(
        at(&[("location", ".")]),
        "keeps `w` in `.`, which cannot be read: is a directory",
    );
    let mut strings = with(tensor("w", 8, &[2]), 13, &{
        let entry = with(Vec::new(), 1, b"location");
        with(entry, 2, b"w.bin")
    });
    crate::onnx::wire::put_varint(&mut strings, 14, 1);
    check(strings, "keeps `w` in `w.bin`, where no strings can be");
}
