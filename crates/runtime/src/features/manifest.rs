//! Which row belongs to which picture: labels and splits beside the features, so that relabelling computes nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::matrix::Features;
use super::store::{RowId, Store, write_whole};
use crate::data::Split;
use crate::error::Error;

/// A labelled view of a cache entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The folder the pictures were read from.
    pub root: PathBuf,
    /// Class names in order.
    pub classes: Vec<String>,
    /// One per picture, in the data set's order.
    pub rows: Vec<Row>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// BLAKE3 of its file.
    #[serde(with = "hex")]
    pub id: RowId,
    /// Path below the root.
    pub path: PathBuf,
    /// Index into the classes.
    pub label: u32,
    /// What it is for.
    pub split: Split,
}

/// Features with their labels, ready to be fitted or judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// `[N, D]`.
    pub features: Features,
    /// `[N]`, indices into the classes.
    pub labels: Vec<u32>,
    /// Paths of the pictures, empty where the features come from an array.
    pub paths: Vec<PathBuf>,
}

impl Manifest {
    /// The rows of one split with their features.
    ///
    /// # Errors
    /// [`Error::Features`] where a row is not in the store or is not finite.
    pub fn labelled(&self, store: &Store, split: Split) -> Result<Labelled, Error> {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.split == split).collect();
        let n_features = store.n_features().unwrap_or(1);
        let mut values = Vec::with_capacity(rows.len() * n_features);
        for row in &rows {
            if !store.read(&row.id, &mut values)? {
                return Err(Error::Features(format!(
                    "`{}` is not in the cache entry",
                    row.path.display()
                )));
            }
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let path = rows[at / n_features].path.display();
            return Err(Error::Features(format!(
                "the backbone gives {} for `{path}`",
                values[at]
            )));
        }
        Ok(Labelled {
            features: Features::new(values, n_features)?,
            labels: rows.iter().map(|row| row.label).collect(),
            paths: rows.iter().map(|row| row.path.clone()).collect(),
        })
    }

    /// Writes the manifest into a cache entry under a name made from its content, and returns the path.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, entry: &Path) -> Result<PathBuf, Error> {
        let text = serde_json::to_vec(self).map_err(|error| Error::BadFile {
            path: self.root.clone(),
            reason: format!("a path in it is not UTF-8: {error}"),
        })?;
        let path = entry.join(format!("labels-{}.json", &blake3::hash(&text).to_hex()[..12]));
        write_whole(&path, &text)?;
        Ok(path)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it is none.
    pub fn open(path: &Path) -> Result<Manifest, Error> {
        let bytes = std::fs::read(path).map_err(pth::FileError::at("read", path))?;
        let bad = |reason: String| Error::BadFile {
            path: path.to_owned(),
            reason,
        };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|error| bad(format!("this is no label manifest: {error}")))?;
        match manifest
            .rows
            .iter()
            .find(|row| row.label as usize >= manifest.classes.len())
        {
            Some(row) => Err(bad(format!(
                "label {} of `{}` is beyond the classes",
                row.label,
                row.path.display()
            ))),
            None => Ok(manifest),
        }
    }

    /// The manifests of a cache entry, newest first.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(entry: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut found: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(entry)
            .map_err(pth::FileError::at("read", entry))?
            .flatten()
            .filter(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                name.starts_with("labels-") && name.ends_with(".json")
            })
            .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
            .collect();
        found.sort();
        Ok(found.into_iter().rev().map(|(_, path)| path).collect())
    }
}

/// A digest as hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(blake3::Hash::from(*id).to_hex().as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text)
            .map(Into::into)
            .map_err(D::Error::custom)
    }
}
