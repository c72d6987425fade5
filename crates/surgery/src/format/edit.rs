//! Renaming tensors and changing metadata of a safetensors file in place: only the header is written, never the data.
//!
//! The new header takes the room of the old one, which is first kept in a sibling `.NAME.header`; it goes when the new one is
//! durable. A crash between leaves that sibling, and [`recover_header`] puts the old header back.
//! What is not atomic: who reads the header while it is written may see a mixture.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pth::{AtomicFile, Backing, Existing, FileError, Source};

use super::header::{Header, LENGTH_BYTES, METADATA_KEY};
use super::read;
use crate::Error;

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEdit {
    /// How many tensors have another name now.
    pub n_renamed: usize,
    /// Bytes of the header that are in use.
    pub n_used: usize,
    /// Bytes of the header; the rest is spaces.
    pub n_bytes: usize,
}

/// Gives tensors of the safetensors file at `path` other names, all at once, and the file another `__metadata__`.
///
/// `renames` are old and new names; `metadata` are all entries that the file has afterwards. The data are neither read nor written.
/// No memory map of the file may be in use.
///
/// # Errors
/// Before anything is written: the file is not valid; a name is unknown, or two would be equal; the new header is longer than the old
/// one ([`Error::HeaderFull`]); an earlier edit was not finished ([`Error::UnfinishedEdit`]). After it, the disk.
pub fn edit_header(
    path: &Path,
    renames: &[(String, String)],
    metadata: &BTreeMap<String, String>,
) -> Result<HeaderEdit, Error> {
    let path = &fs::canonicalize(path).map_err(FileError::at("open", path))?;
    let backup = backup_path(path);
    if backup.exists() {
        return Err(Error::UnfinishedEdit {
            path: path.clone(),
            backup,
        });
    }
    let source = Source::open(path, Backing::Read)?;
    // All rules are checked, so that no file is made worse.
    read::file(&source, path)?;
    let (mut header, data_start) = read::header(&source, path, &mut Vec::new())?;
    let n_bytes = data_start - LENGTH_BYTES;
    let n_renamed = rename(&mut header, renames)?;
    header.metadata = metadata.clone();
    let mut json = serde_json::to_vec(&header).expect("strings and numbers make JSON");
    let n_used = json.len();
    if n_used > n_bytes {
        return Err(Error::HeaderFull {
            path: path.clone(),
            needed: n_used,
            available: n_bytes,
        });
    }
    json.resize(n_bytes, b' ');

    let mut old = vec![0; data_start];
    source.read_at(0, &mut old).map_err(FileError::at("read", path))?;
    drop(source);
    let mut kept = AtomicFile::create(&backup, Existing::Refuse)?;
    kept.write_all(&old).map_err(FileError::at("write", &backup))?;
    kept.commit()?;
    overwrite(path, LENGTH_BYTES, &json)?;
    remove(&backup)?;
    Ok(HeaderEdit {
        n_renamed,
        n_used,
        n_bytes,
    })
}

/// Puts the header back that an edit of the file at `path` has kept and not finished replacing. Returns whether there was one.
///
/// # Errors
/// What was kept is not of this file; the disk.
pub fn recover_header(path: &Path) -> Result<bool, Error> {
    let path = &fs::canonicalize(path).map_err(FileError::at("open", path))?;
    let backup = backup_path(path);
    if !backup.exists() {
        return Ok(false);
    }
    let old = fs::read(&backup).map_err(FileError::at("read", &backup))?;
    let source = Source::open(path, Backing::Read)?;
    let mut length = [0; LENGTH_BYTES];
    // The length in front of the header is never changed.
    let is_of_it = source.read_at(0, &mut length).is_ok()
        && old.starts_with(&length)
        && u64::try_from(old.len() - LENGTH_BYTES) == Ok(u64::from_le_bytes(length))
        && source.len() >= old.len();
    if !is_of_it {
        let fault = format!("`{}` is the header of another file", backup.display());
        return Err(Error::safetensors(path, fault));
    }
    drop(source);
    overwrite(path, 0, &old)?;
    remove(&backup)?;
    Ok(true)
}

/// `folder/.NAME.header`
fn backup_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.header"))
}

/// Returns how many names are others than before.
fn rename(header: &mut Header, renames: &[(String, String)]) -> Result<usize, Error> {
    let mut new_names: HashMap<&str, &str> = HashMap::new();
    for (old, new) in renames {
        if new == METADATA_KEY {
            return Err(Error::ReservedName(new.clone()));
        }
        if let Some(first) = new_names.insert(old, new)
            && first != new
        {
            return Err(Error::TwoNames {
                name: old.clone(),
                first: first.to_owned(),
                second: new.clone(),
            });
        }
    }
    let known: HashSet<&str> = header.tensors.iter().map(|(name, _)| name.as_str()).collect();
    if let Some((name, _)) = renames.iter().find(|(old, _)| !known.contains(old.as_str())) {
        return Err(Error::UnknownTensor(name.clone()));
    }
    let mut n_renamed = 0;
    let mut taken: HashMap<String, String> = HashMap::with_capacity(header.tensors.len());
    for (name, _) in &mut header.tensors {
        let new = new_names
            .get(name.as_str())
            .map_or(name.as_str(), |new| new)
            .to_owned();
        let old = std::mem::replace(name, new.clone());
        n_renamed += usize::from(old != new);
        if let Some(first) = taken.insert(new.clone(), old.clone()) {
            return Err(Error::Collision {
                first,
                second: old,
                name: new,
            });
        }
    }
    Ok(n_renamed)
}

/// Writes over part of a file, and waits until the disk has it.
fn overwrite(path: &Path, offset: usize, bytes: &[u8]) -> Result<(), Error> {
    let write = FileError::at("write", path);
    let mut file = OpenOptions::new().write(true).open(path).map_err(&write)?;
    let offset = u64::try_from(offset).expect("no machine addresses more than 64 bits");
    file.seek(SeekFrom::Start(offset)).map_err(&write)?;
    file.write_all(bytes).map_err(&write)?;
    file.sync_all().map_err(&write)?;
    Ok(())
}

/// Takes what was kept away for good: if it came back after a crash, a finished edit would be undone.
fn remove(backup: &Path) -> Result<(), Error> {
    fs::remove_file(backup).map_err(FileError::at("remove", backup))?;
    if let Some(folder) = backup.parent().and_then(|folder| File::open(folder).ok()) {
        // Some file systems refuse to sync a folder.
        let _ = folder.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pth::{DType, StateDict, Tensor};

    use super::*;
    use crate::{open_safetensors, save_safetensors};

    fn file(folder: &Path) -> PathBuf {
        let mut tensors = StateDict::new();
        for (i, name) in ["backbone.a", "backbone.b", "head.weight"]
            .into_iter()
            .enumerate()
        {
            let bytes = vec![i as u8 + 1; 8];
            tensors.insert(name, Tensor::from_bytes(DType::Float32, &[2], bytes).unwrap());
        }
        let path = folder.join("m.safetensors");
        let metadata = BTreeMap::from([("note".to_owned(), "a text of some length".to_owned())]);
        save_safetensors(&path, &tensors, &metadata, Existing::Refuse).unwrap();
        path
    }

    fn renames(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|&(old, new)| (old.to_owned(), new.to_owned()))
            .collect()
    }

    #[test]
    fn names_and_metadata_change_and_the_data_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let before = fs::read(&path).unwrap();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let pairs = [
            ("backbone.a", "backbone.b"),
            ("backbone.b", "backbone.a"),
            ("head.weight", "fc.weight"),
        ];
        let edit = edit_header(&path, &renames(&pairs), &metadata).unwrap();
        let after = fs::read(&path).unwrap();
        assert_eq!((edit.n_renamed, edit.n_bytes + 8), (3, before.len() - 24));
        assert_eq!(after[..8], before[..8]);
        assert_eq!(after[8 + edit.n_bytes..], before[8 + edit.n_bytes..]);
        assert!(
            after[8 + edit.n_used..8 + edit.n_bytes]
                .iter()
                .all(|&byte| byte == b' ')
        );
        let (tensors, found) = open_safetensors(&path).unwrap();
        assert!(tensors.names().eq(["backbone.b", "backbone.a", "fc.weight"]));
        assert_eq!(*tensors.get("backbone.b").unwrap().to_bytes().unwrap(), [1; 8]);
        assert_eq!(found, metadata);
        // The reference reader takes it; nothing is left beside it.
        assert_eq!(::safetensors::SafeTensors::deserialize(&after).unwrap().len(), 3);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_or_collides_leaves_the_file_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let before = fs::read(&path).unwrap();
        let (_, metadata) = open_safetensors(&path).unwrap();
        let check = |pairs: &[(&str, &str)], message: &str| {
            let error = edit_header(&path, &renames(pairs), &metadata)
                .unwrap_err()
                .to_string();
            assert!(error.ends_with(message), "{error}");
            assert!(fs::read(&path).unwrap() == before);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        };
        check(&[("x", "y")], "there is no tensor `x`");
        check(
            &[("backbone.a", "backbone.b")],
            "`backbone.a` and `backbone.b` would both be called `backbone.b`",
        );
        check(
            &[("backbone.a", "x"), ("backbone.a", "y")],
            "`backbone.a` cannot be called `x` and `y`",
        );
        check(
            &[("backbone.a", "__metadata__")],
            "a tensor cannot be called `__metadata__` in safetensors",
        );
        let long = "x".repeat(100);
        check(
            &[("backbone.a", &long)],
            "needs 343 bytes, and the file has room for 256",
        );
    }

    #[test]
    fn an_edit_that_was_cut_off_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let before = fs::read(&path).unwrap();
        assert!(!recover_header(&path).unwrap());
        let header_end = before.len() - 24;
        let backup = folder.path().join(".m.safetensors.header");
        let mut kept = AtomicFile::create(&backup, Existing::Refuse).unwrap();
        kept.write_all(&before[..header_end]).unwrap();
        kept.commit().unwrap();
        overwrite(&path, 8, b"{\"half of a head").unwrap();
        let error = edit_header(&path, &[], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, Error::UnfinishedEdit { .. }), "{error}");
        assert!(recover_header(&path).unwrap());
        assert!(fs::read(&path).unwrap() == before && !backup.exists());
        // What was kept of another file is left alone.
        let mut kept = AtomicFile::create(&backup, Existing::Refuse).unwrap();
        kept.write_all(&before[..header_end - 8]).unwrap();
        kept.commit().unwrap();
        assert!(
            recover_header(&path)
                .unwrap_err()
                .to_string()
                .ends_with("is the header of another file")
        );
        assert!(fs::read(&path).unwrap() == before && backup.exists());
    }
}
