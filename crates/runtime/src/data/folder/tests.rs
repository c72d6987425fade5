use super::super::Dataset;
use super::*;

/// Makes `files` (empty ones) below a fresh folder.
fn tree(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        if let Some(folder) = file.strip_suffix('/') {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap();
    }
    dir
}

fn samples(data: &Dataset) -> Vec<(String, Option<u32>, Split)> {
    (0..data.len())
        .map(|idx| (data.name(idx).into_owned(), data.label(idx), data.split(idx)))
        .collect()
}

fn check_rejects(files: &[&str], rule: SplitRule, message: &str) {
    let dir = tree(files);
    let error = Dataset::open(dir.path(), &DataOptions::new(rule))
        .unwrap_err()
        .to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn folders_are_read_as_torchvision_reads_them() {
    let dir = tree(&[
        "train/b/2.png",
        "train/b/10.JPG",
        "train/a/x/1.jpeg",
        "train/a/notes.txt",
        "test/b/1.png",
    ]);
    let data = Dataset::open(dir.path(), &DataOptions::new(SplitRule::Folders)).unwrap();
    assert_eq!(data.classes(), ["a", "b"]);
    let seen = samples(&data);
    let seen: Vec<_> = seen
        .iter()
        .map(|(name, label, split)| (name.as_str(), label.unwrap(), *split))
        .collect();
    assert_eq!(
        seen,
        [
            ("train/a/x/1.jpeg", 0, Split::Train),
            ("train/b/10.JPG", 1, Split::Train),
            ("train/b/2.png", 1, Split::Train),
            ("test/b/1.png", 1, Split::Val),
        ]
    );
}

#[test]
fn a_fraction_is_stratified_and_the_seed_alone_decides() {
    let names: Vec<String> = (0..40)
        .map(|n| format!("{}/{n:02}.png", ["a", "b"][n % 2]))
        .collect();
    let dir = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let open = |seed| {
        let rule = SplitRule::Fraction { fraction: 0.2, seed };
        Dataset::open(dir.path(), &DataOptions::new(rule)).unwrap()
    };
    let data = open(7);
    for label in 0..2 {
        let n_val = samples(&data)
            .iter()
            .filter(|(_, l, split)| *l == Some(label) && *split == Split::Val)
            .count();
        assert_eq!(n_val, 4);
    }
    assert_eq!(samples(&data), samples(&open(7)));
    assert_ne!(samples(&data), samples(&open(8)));
}

#[test]
fn what_is_missing_is_named() {
    let fraction = SplitRule::Fraction {
        fraction: 0.5,
        seed: 0,
    };
    check_rejects(
        &["train/a/1.png", "train/b/", "val/a/1.png"],
        SplitRule::Folders,
        "b`: this class has no pictures",
    );
    check_rejects(
        &["train/", "val/"],
        SplitRule::Folders,
        "there are no pictures in it",
    );
    check_rejects(&["train/a/1.png"], SplitRule::Folders, "no `val` or `test`");
    check_rejects(&["a/1.png"], SplitRule::Folders, "there is no `train` folder");
    check_rejects(
        &["train/a/1.png", "val/c/1.png"],
        SplitRule::Folders,
        "class `c` is not among",
    );
    check_rejects(&["1.png"], fraction, "lie in no class folders");
    check_rejects(&["a/1.png"], fraction, "one picture cannot be split");
}

#[cfg(unix)]
#[test]
#[expect(clippy::print_stderr, reason = "a skipped part says so")]
fn what_cannot_be_listed_is_left_out_by_name() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tree(&[
        "train/a/1.png",
        "train/a/deep/2.png",
        "train/b/1.png",
        "val/b/1.png",
    ]);
    let at = |name: &[u8]| dir.path().join("train/a").join(std::ffi::OsStr::from_bytes(name));
    fs::File::create(at(b"caf\xe9.jpg")).unwrap();
    symlink("nowhere.jpg", at(b"gone.jpg")).unwrap();
    symlink("nowhere", at(b"gone")).unwrap();
    let mut expected = vec![
        ("train/a/caf\u{fffd}.jpg", "the file name is not UTF-8"),
        ("train/a/gone.jpg", "it cannot be read: No such file"),
    ];
    fs::set_permissions(at(b"deep"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut names = vec!["train/a/1.png", "train/b/1.png", "val/b/1.png"];
    if fs::read_dir(at(b"deep")).is_ok() {
        eprintln!("skipped: folders without permission are open to this user");
        names.insert(1, "train/a/deep/2.png");
    } else {
        expected.insert(
            1,
            ("train/a/deep", "the folder cannot be read: Permission denied"),
        );
    }
    let data = Dataset::open(dir.path(), &DataOptions::new(SplitRule::Folders)).unwrap();
    fs::set_permissions(at(b"deep"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(data.n_left_out(), expected.len());
    for (left_out, (name, reason)) in data.left_out().iter().zip(expected) {
        assert_eq!(left_out.name, name);
        assert!(left_out.reason.starts_with(reason), "{}", left_out.reason);
    }
    let seen: Vec<String> = samples(&data).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(seen, names);
}

#[test]
fn order_is_of_the_parts_of_paths() {
    let dir = tree(&[
        "train/a/b-c/1.png",
        "train/a/b/2.png",
        "train/a/b.png",
        "train/c/1.png",
    ]);
    let data = Dataset::open(dir.path(), &DataOptions::new(SplitRule::Loose)).unwrap();
    let seen: Vec<String> = samples(&data).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(
        seen,
        [
            "train/a/b/2.png",
            "train/a/b-c/1.png",
            "train/a/b.png",
            "train/c/1.png"
        ]
    );
    let mut paths: Vec<PathBuf> = seen.iter().map(PathBuf::from).collect();
    paths.sort();
    assert_eq!(paths, seen.iter().map(PathBuf::from).collect::<Vec<_>>());
}

#[test]
fn a_loose_folder_needs_neither_split_nor_labels() {
    let keep = DataOptions {
        unlabelled: Unlabelled::Keep,
        ..DataOptions::new(SplitRule::Loose)
    };
    let flat = tree(&["2.png", "1.png"]);
    let data = Dataset::open(flat.path(), &keep).unwrap();
    assert_eq!(
        samples(&data),
        [
            ("1.png".into(), None, Split::Train),
            ("2.png".into(), None, Split::Train)
        ]
    );
    let classes = tree(&["b/1.png", "a/1.png"]);
    let data = Dataset::open(classes.path(), &keep).unwrap();
    assert_eq!(data.classes(), ["a", "b"]);
    assert_eq!(data.label(1), Some(1));
    let empty = tree(&["notes.txt"]);
    let error = Dataset::open(empty.path(), &keep).unwrap_err().to_string();
    assert!(error.ends_with("there are no pictures in it"), "{error}");
}

#[test]
fn names_alone_make_the_digest() {
    let open = |files: &[&str]| {
        let dir = tree(files);
        Dataset::open(dir.path(), &DataOptions::new(SplitRule::Loose))
            .unwrap()
            .listing_digest()
    };
    let one = open(&["train/a/1.png", "train/b/2.png"]);
    assert_eq!(one, open(&["train/b/2.png", "train/a/1.png"]));
    assert_ne!(one, open(&["train/a/1.png", "train/b/3.png"]));
    assert_ne!(one, open(&["train/a/1.png", "train/a/3.png", "train/b/2.png"]));
}

#[test]
fn pictures_are_called_as_they_are_given() {
    let dir = tree(&["in/2.png", "in/1.png", "3.png"]);
    let paths = [
        dir.path().join("3.png"),
        dir.path().join("in"),
        dir.path().join("none.png"),
    ];
    let data = Dataset::of_pictures(&paths).unwrap();
    let seen: Vec<String> = samples(&data).into_iter().map(|(name, ..)| name).collect();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(
        seen,
        [at("3.png"), at("in/1.png"), at("in/2.png"), at("none.png")]
    );
    let mut reader = data.reader();
    assert_eq!(
        reader.read(1).unwrap(),
        super::super::Content::Encoded((&[][..]).into())
    );
    assert!(
        reader
            .read(3)
            .unwrap_err()
            .starts_with("it cannot be read: No such file")
    );
}
