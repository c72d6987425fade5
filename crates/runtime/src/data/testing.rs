//! What the tests of sources share: a folder of files made by hand, and what is made of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Content, DataOptions, Dataset, Split, SplitRule, Unlabelled};

/// A folder of its own for each test.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(&path)
            .unwrap()
            .write_all(bytes.as_ref())
            .unwrap();
        path
    }
}

/// Any split, labels or not.
pub(super) fn loose() -> DataOptions {
    DataOptions {
        unlabelled: Unlabelled::Keep,
        ..DataOptions::new(SplitRule::Loose)
    }
}

/// The source's own splits, labels needed.
pub(super) fn strict() -> DataOptions {
    DataOptions::new(SplitRule::Folders)
}

/// A sample as one line: `name class split content`, where `-` stands for no class.
pub(super) fn lines(data: &Dataset) -> Vec<String> {
    let mut reader = data.reader();
    (0..data.len())
        .map(|idx| {
            let class = data
                .label(idx)
                .map_or("-", |label| &data.classes()[label as usize]);
            let split = match data.split(idx) {
                Split::Train => "train",
                Split::Val => "val",
            };
            let content = match reader.read(idx) {
                Ok(Content::Encoded(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
                Ok(Content::Text(text)) => format!("text:{text}"),
                Ok(Content::Pixels { width, height, rgb }) => format!("{width}x{height}:{rgb:?}"),
                Err(reason) => format!("error:{reason}"),
            };
            format!("{} {class} {split} {content}", data.name(idx))
        })
        .collect()
}

/// What is left out, as lines `name: reason`.
pub(super) fn left_out(data: &Dataset) -> Vec<String> {
    data.left_out()
        .iter()
        .map(|left_out| format!("{}: {}", left_out.name, left_out.reason))
        .collect()
}

/// Opening gives an error that ends with `message`.
pub(super) fn check_rejects(source: &Path, options: &DataOptions, message: &str) {
    match Dataset::open(source, options) {
        Ok(data) => panic!("{:?} was taken, {message} expected", lines(&data)),
        Err(error) => {
            let error = error.to_string();
            assert!(error.ends_with(message), "{error}");
        }
    }
}
