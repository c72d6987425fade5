//! Image folders as torchvision's `ImageFolder` reads them: a folder per class, classes and files in order of names.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use crate::error::Error;
use crate::random::Random;

/// Endings that torchvision's `IMG_EXTENSIONS` lists.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];
/// Names of the folder that validation pictures lie in; the first that is there is taken.
const VAL_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

/// What a picture is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The head is fitted on it.
    Train,
    /// The head is judged on it.
    Val,
}

/// One labelled picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Path below the data set's root.
    pub path: PathBuf,
    /// Index into the classes.
    pub label: u32,
    /// What it is for.
    pub split: Split,
}

/// Labelled pictures in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The folder.
    pub root: PathBuf,
    /// Class names in order.
    pub classes: Vec<String>,
    /// All pictures, by split, class and name.
    pub pictures: Vec<Picture>,
}

/// Where validation pictures come from when the folder does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SplitRule {
    /// The folder must hold `train` and one of `val`, `valid`, `validation`, `test`.
    Folders,
    /// This share of each class, chosen by a seed.
    Fraction {
        /// Between 0 and 1, both excluded.
        fraction: f64,
        /// The same seed and names give the same choice.
        seed: u64,
    },
}

impl Dataset {
    /// Lists `root/train/<class>/*` and `root/val/<class>/*`, or splits `root/<class>/*` by `rule`.
    ///
    /// # Errors
    /// [`Error::Data`] where classes or pictures are missing, [`Error::NoSplit`] where the split is not said and
    /// [`Error::Usage`] where it is said twice.
    pub fn open(root: &Path, rule: SplitRule) -> Result<Dataset, Error> {
        check_is_folder(root)?;
        let train = root.join("train");
        match (train.is_dir(), rule) {
            (true, SplitRule::Folders) => Dataset::from_folders(root, &train),
            (true, SplitRule::Fraction { .. }) => Err(Error::Usage(format!(
                "`{}` has a `train` folder of its own: --val-fraction is for one folder of classes",
                root.display()
            ))),
            (false, SplitRule::Folders) => Err(Error::NoSplit {
                path: root.to_owned(),
            }),
            (false, SplitRule::Fraction { fraction, seed }) => Dataset::from_fraction(root, fraction, seed),
        }
    }

    /// Lists a folder to judge a trained head on: its `val` (or `test`) where there is a `train`, else all of it.
    ///
    /// # Errors
    /// [`Error::Data`] where classes or pictures are missing or a class is not among `classes`.
    pub fn open_for_eval(root: &Path, classes: &[String]) -> Result<Dataset, Error> {
        check_is_folder(root)?;
        let folder = if root.join("train").is_dir() {
            val_folder(root)?
        } else {
            root.to_owned()
        };
        let mut pictures = Vec::new();
        add_known_classes(root, &folder, classes, &mut pictures)?;
        Ok(Dataset {
            root: root.to_owned(),
            classes: classes.to_vec(),
            pictures,
        })
    }

    fn from_folders(root: &Path, train: &Path) -> Result<Dataset, Error> {
        let val = val_folder(root)?;
        let classes = classes_in(train)?;
        let mut pictures = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            let files = non_empty(list_pictures(&train.join(class))?, &train.join(class))?;
            pictures.extend(
                files
                    .into_iter()
                    .map(|path| picture(root, path, label, Split::Train)),
            );
        }
        add_known_classes(root, &val, &classes, &mut pictures)?;
        Ok(Dataset {
            root: root.to_owned(),
            classes,
            pictures,
        })
    }

    fn from_fraction(root: &Path, fraction: f64, seed: u64) -> Result<Dataset, Error> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::Usage(format!(
                "a validation share of {fraction} is not between 0 and 1"
            )));
        }
        let classes = classes_in(root)?;
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for (label, class) in classes.iter().enumerate() {
            let files = non_empty(list_pictures(&root.join(class))?, &root.join(class))?;
            if files.len() < 2 {
                return Err(bad(
                    &root.join(class),
                    "one picture cannot be split into training and validation",
                ));
            }
            let n_val = ((files.len() as f64 * fraction).round() as usize).clamp(1, files.len() - 1);
            let mut order: Vec<usize> = (0..files.len()).collect();
            // A stream per class: adding a class does not reshuffle the others.
            Random::new(seed, class).shuffle(&mut order);
            let mut is_val = vec![false; files.len()];
            order[..n_val].iter().for_each(|&idx| is_val[idx] = true);
            for (path, is_val) in files.into_iter().zip(is_val) {
                let (list, split) = if is_val {
                    (&mut val, Split::Val)
                } else {
                    (&mut train, Split::Train)
                };
                list.push(picture(root, path, label, split));
            }
        }
        train.extend(val);
        Ok(Dataset {
            root: root.to_owned(),
            classes,
            pictures: train,
        })
    }

    /// How many pictures a split has.
    pub fn count(&self, split: Split) -> usize {
        self.pictures
            .iter()
            .filter(|picture| picture.split == split)
            .count()
    }
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::Data {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn check_is_folder(path: &Path) -> Result<(), Error> {
    match path.is_dir() {
        true => Ok(()),
        false if path.exists() => Err(bad(path, "this is not a folder")),
        false => Err(bad(path, "no such folder")),
    }
}

fn picture(root: &Path, path: PathBuf, label: usize, split: Split) -> Picture {
    let path = path.strip_prefix(root).map(Path::to_owned).unwrap_or(path);
    Picture {
        path,
        label: u32::try_from(label).expect("fewer classes than 2^32"),
        split,
    }
}

fn val_folder(root: &Path) -> Result<PathBuf, Error> {
    VAL_NAMES
        .iter()
        .map(|name| root.join(name))
        .find(|folder| folder.is_dir())
        .ok_or_else(|| {
            bad(
                root,
                "there is a `train` folder in it and no `val` or `test` beside",
            )
        })
}

fn add_known_classes(
    root: &Path,
    folder: &Path,
    classes: &[String],
    pictures: &mut Vec<Picture>,
) -> Result<(), Error> {
    let before = pictures.len();
    for class in classes_in(folder)? {
        let Some(label) = classes.iter().position(|known| *known == class) else {
            return Err(bad(
                &folder.join(&class),
                format!("class `{class}` is not among those trained on"),
            ));
        };
        let files = list_pictures(&folder.join(&class))?;
        pictures.extend(
            files
                .into_iter()
                .map(|path| picture(root, path, label, Split::Val)),
        );
    }
    // Order of names on disk, not of the classes given, would differ between data sets.
    pictures[before..].sort_by(|a, b| (a.label, &a.path).cmp(&(b.label, &b.path)));
    if pictures.len() == before {
        return Err(bad(folder, "there are no pictures in it"));
    }
    Ok(())
}

fn classes_in(folder: &Path) -> Result<Vec<String>, Error> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
        let entry = entry.map_err(FileError::at("read", folder))?;
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(bad(&path, "the class name is not UTF-8"));
        };
        if !name.starts_with('.') {
            classes.push(name.to_owned());
        }
    }
    // Bytes of UTF-8 sort as code points do, which is Python's order.
    classes.sort();
    match classes.len() {
        0 if !list_pictures(folder)?.is_empty() => Err(bad(
            folder,
            "its pictures lie in no class folders; a folder per class is needed",
        )),
        0 => Err(bad(folder, "there are no pictures in it")),
        _ => Ok(classes),
    }
}

fn non_empty(files: Vec<PathBuf>, class: &Path) -> Result<Vec<PathBuf>, Error> {
    if files.is_empty() {
        Err(bad(class, "this class has no pictures"))
    } else {
        Ok(files)
    }
}

/// Pictures in a folder and the folders below it, by ending, in order of paths; hidden files are left out.
///
/// # Errors
/// A folder that cannot be read.
pub fn list_pictures(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut pending = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = pending.pop() {
        // A symbolic link to a folder above would lead round for ever.
        const MAX_DEPTH: usize = 64;
        if depth > MAX_DEPTH {
            return Err(bad(
                &folder,
                "folders are nested over 64 deep; is there a link that leads back up?",
            ));
        }
        for entry in fs::read_dir(&folder).map_err(FileError::at("read", &folder))? {
            let entry = entry.map_err(FileError::at("read", &folder))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let ending = path
                .extension()
                .map(|ending| ending.to_string_lossy().to_lowercase())
                .unwrap_or_default();
            if path.is_dir() {
                pending.push((path, depth + 1));
            } else if ENDINGS.contains(&ending.as_str()) && path.to_str().is_none() {
                return Err(bad(&path, "the file name is not UTF-8"));
            } else if ENDINGS.contains(&ending.as_str()) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
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

    fn check_rejects(files: &[&str], rule: SplitRule, message: &str) {
        let dir = tree(files);
        let error = Dataset::open(dir.path(), rule).unwrap_err().to_string();
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
        let data = Dataset::open(dir.path(), SplitRule::Folders).unwrap();
        assert_eq!(data.classes, ["a", "b"]);
        let seen: Vec<_> = data
            .pictures
            .iter()
            .map(|p| (p.path.to_str().unwrap(), p.label, p.split))
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
        let open = |seed| Dataset::open(dir.path(), SplitRule::Fraction { fraction: 0.2, seed }).unwrap();
        let data = open(7);
        for label in 0..2 {
            let n_val = data
                .pictures
                .iter()
                .filter(|p| p.label == label && p.split == Split::Val)
                .count();
            assert_eq!(n_val, 4);
        }
        assert_eq!(data, open(7));
        assert_ne!(data, open(8));
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
}
