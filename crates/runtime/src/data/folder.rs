//! Image folders as torchvision's `ImageFolder` reads them: a folder per class, classes and files in order of names.
//!
//! What cannot be listed below the classes (a folder without permission, a name that is not UTF-8) is left out by name; the
//! root and its splits must be readable.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use super::left_out::LeftOuts;
use super::listing::{Listing, Names};
use super::options::{DataOptions, Unlabelled};
use super::split::{Split, SplitRule, held_out};
use super::walk::{UNLISTED, walk};
use super::{Backing, Parts, bad};
use crate::error::Error;

/// Endings that torchvision's `IMG_EXTENSIONS` lists.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];
/// Names of the folder that validation pictures lie in; the first that is there is taken.
const VAL_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

/// Lists `root/train/<class>/*` and `root/val/<class>/*`, or splits `root/<class>/*` by the rule.
pub(super) fn open(root: &Path, options: &DataOptions) -> Result<Parts, Error> {
    let has_train = root.join("train").is_dir();
    let mut listed = Listed::new(root);
    match (has_train, options.split) {
        (true, SplitRule::Fraction { .. }) => {
            return Err(Error::Usage(format!(
                "`{}` has a `train` folder of its own: --val-fraction is for one folder of classes",
                root.display()
            )));
        }
        (true, rule) => {
            let val = match val_folder(root) {
                Err(_) if rule == SplitRule::Loose => None,
                found => Some(found?),
            };
            listed.add_classes("train", Split::Train)?;
            if let Some(val) = val {
                listed.add_known_classes(val)?;
            }
        }
        (false, SplitRule::Folders) => {
            return Err(Error::NoSplit {
                path: root.to_owned(),
                reason: "there is no `train` folder in it; for one folder of classes say which share is for validation",
            });
        }
        (false, SplitRule::Fraction { fraction, seed }) => listed.add_fraction(fraction, seed)?,
        (false, SplitRule::Loose) => {
            let flat = options.unlabelled == Unlabelled::Keep
                && class_names(root, &mut LeftOuts::default())?.is_empty();
            if flat {
                let folder = listed.parts.listing.names.len();
                listed.add_files("", None, Split::Train)?;
                listed.non_empty(folder, root, "there are no pictures in it")?;
            } else {
                listed.add_classes("", Split::Train)?;
            }
        }
    }
    Ok(listed.parts)
}

/// Lists the folder's `val` (or `test`) where there is a `train`, else all of it.
pub(super) fn open_for_eval(root: &Path, classes: &[String]) -> Result<Parts, Error> {
    let mut listed = Listed::new(root);
    listed.parts.classes = classes.to_vec();
    let folder = if root.join("train").is_dir() {
        val_folder(root)?
    } else {
        ""
    };
    listed.add_known_classes(folder)?;
    Ok(listed.parts)
}

/// Files, and pictures in folders, called by the paths given.
pub(super) fn of_pictures(paths: &[PathBuf]) -> Result<Parts, Error> {
    let mut listed = Listed::new(Path::new(""));
    let mut files = None;
    for path in paths {
        let Some(name) = path.to_str() else {
            listed
                .parts
                .left_out
                .push(UNLISTED, path.to_string_lossy(), "the path is not UTF-8");
            continue;
        };
        if path.is_dir() {
            listed.add_files(&format!("{}/", name.trim_end_matches('/')), None, Split::Val)?;
        } else {
            let names = &mut listed.parts.listing.names;
            let folder = *files.get_or_insert_with(|| names.folder(""));
            listed.parts.listing.push(folder, name, None, Split::Val);
        }
    }
    let first = paths.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
    listed.non_empty(0, first, "there are no pictures in it")?;
    Ok(listed.parts)
}

/// A listing that grows.
struct Listed {
    root: PathBuf,
    parts: Parts,
}

impl Listed {
    fn new(root: &Path) -> Listed {
        Listed {
            root: root.to_owned(),
            parts: Parts {
                classes: Vec::new(),
                listing: Listing::default(),
                backing: Backing::Files(root.to_owned()),
                left_out: LeftOuts::default(),
                set_aside: Vec::new(),
            },
        }
    }

    /// The classes in the folder `split` of the root, and their pictures.
    fn add_classes(&mut self, folder: &str, split: Split) -> Result<(), Error> {
        let classes = classes_in(&self.root.join(folder), &mut self.parts.left_out)?;
        for (label, class) in classes.iter().enumerate() {
            let prefix = below(folder, class);
            let (before, left_out) = (self.parts.listing.len(), self.parts.left_out.len());
            self.add_files(&prefix, Some(index(label)), split)?;
            // What cannot be read is named already, and a class may be without pictures for that.
            if self.parts.left_out.len() == left_out {
                let path = self.root.join(folder).join(class);
                self.non_empty(before, &path, "this class has no pictures")?;
            }
        }
        self.parts.classes = classes;
        let folder = self.root.join(folder);
        self.non_empty(0, &folder, "there are no pictures in it")
    }

    /// Pictures for validation, of classes that are known; by class, whatever order the folder's names have.
    fn add_known_classes(&mut self, folder: &str) -> Result<(), Error> {
        let path = self.root.join(folder);
        let mut found = Vec::new();
        for class in classes_in(&path, &mut self.parts.left_out)? {
            let Some(label) = self.parts.classes.iter().position(|known| *known == class) else {
                return Err(bad(
                    &path.join(&class),
                    format!("class `{class}` is not among those trained on"),
                ));
            };
            found.push((label, class));
        }
        found.sort();
        let before = self.parts.listing.len();
        for (label, class) in found {
            self.add_files(&below(folder, &class), Some(index(label)), Split::Val)?;
        }
        self.non_empty(before, &path, "there are no pictures in it")
    }

    /// The classes in the root, with a share of each for validation, after all for training.
    fn add_fraction(&mut self, fraction: f64, seed: u64) -> Result<(), Error> {
        let classes = classes_in(&self.root, &mut self.parts.left_out)?;
        let mut val = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            let path = self.root.join(class);
            let (mut names, n_left_out) = (Names::default(), self.parts.left_out.len());
            walk(
                &self.root,
                &below("", class),
                &is_picture,
                &mut names,
                &mut self.parts.left_out,
            )?;
            match names.len() {
                0 if self.parts.left_out.len() > n_left_out => continue,
                0 => return Err(bad(&path, "this class has no pictures")),
                1 => {
                    return Err(bad(
                        &path,
                        "one picture cannot be split into training and validation",
                    ));
                }
                _ => {}
            }
            let is_val = held_out(names.len(), fraction, seed, class);
            self.add_where(&names, label, Split::Train, |idx| !is_val[idx]);
            val.push((names, label, is_val));
        }
        for (names, label, is_val) in val {
            self.add_where(&names, label, Split::Val, |idx| is_val[idx]);
        }
        self.parts.classes = classes;
        let root = self.root.clone();
        self.non_empty(0, &root, "there are no pictures in it")
    }

    fn add_where(&mut self, names: &Names, label: usize, split: Split, is_wanted: impl Fn(usize) -> bool) {
        let listing = &mut self.parts.listing;
        let mut last: Option<(u32, u32)> = None;
        for idx in (0..names.len()).filter(|&idx| is_wanted(idx)) {
            let (prefix, name) = names.parts(idx);
            let folder = match last {
                Some((from, to)) if from == names.folder_of(idx) => to,
                _ => listing.names.folder(prefix),
            };
            last = Some((names.folder_of(idx), folder));
            listing.push(folder, name, Some(index(label)), split);
        }
    }

    /// All pictures at and below `prefix`.
    fn add_files(&mut self, prefix: &str, label: Option<u32>, split: Split) -> Result<(), Error> {
        let Parts {
            listing, left_out, ..
        } = &mut self.parts;
        let before = listing.names.len();
        walk(&self.root, prefix, &is_picture, &mut listing.names, left_out)?;
        for _ in before..listing.names.len() {
            listing.push_rest(label, split);
        }
        Ok(())
    }

    /// # Errors
    /// Nothing was listed since `before`: because there is nothing, or because the first thing left out could not be.
    fn non_empty(&self, before: usize, path: &Path, reason: &str) -> Result<(), Error> {
        match (self.parts.listing.len() > before, self.parts.left_out.first()) {
            (true, _) => Ok(()),
            (false, Some(first)) => Err(bad(
                path,
                format!("{reason}; the first left out, `{}`: {}", first.name, first.reason),
            )),
            (false, None) => Err(bad(path, reason)),
        }
    }
}

/// Whether a file of this name is a picture by its ending.
pub(super) fn is_picture(name: &str) -> bool {
    let ending = Path::new(name).extension();
    ending.is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn below(folder: &str, class: &str) -> String {
    match folder {
        "" => format!("{class}/"),
        _ => format!("{folder}/{class}/"),
    }
}

fn index(label: usize) -> u32 {
    u32::try_from(label).expect("fewer classes than 2^32")
}

fn val_folder(root: &Path) -> Result<&'static str, Error> {
    VAL_NAMES
        .into_iter()
        .find(|name| root.join(name).is_dir())
        .ok_or_else(|| {
            bad(
                root,
                "there is a `train` folder in it and no `val` or `test` beside",
            )
        })
}

fn classes_in(folder: &Path, left_out: &mut LeftOuts) -> Result<Vec<String>, Error> {
    let classes = class_names(folder, left_out)?;
    if !classes.is_empty() {
        return Ok(classes);
    }
    let mut names = Names::default();
    walk(folder, "", &is_picture, &mut names, left_out)?;
    Err(bad(
        folder,
        match names.len() {
            0 => "there are no pictures in it",
            _ => "its pictures lie in no class folders; a folder per class is needed",
        },
    ))
}

/// The folders in a folder, in order of names.
fn class_names(folder: &Path, left_out: &mut LeftOuts) -> Result<Vec<String>, Error> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
        let entry = entry.map_err(FileError::at("read", folder))?;
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        match entry.file_name().to_str() {
            None => left_out.push(UNLISTED, path.to_string_lossy(), "the class name is not UTF-8"),
            Some(name) if name.starts_with('.') => {}
            Some(name) => classes.push(name.to_owned()),
        }
    }
    // Bytes of UTF-8 sort as code points do, which is Python's order.
    classes.sort();
    Ok(classes)
}

#[cfg(test)]
mod tests;
