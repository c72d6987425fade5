//! Reading clip-retrieval's layout.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use super::Modality;
use crate::data::parquet::each_text_row;
use crate::error::Error;
use crate::features::Features;
use crate::npy::array::ArrayFile;
use crate::npy::piece_of;

/// Features with what is known of each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `[N, D]`, by partition and row.
    pub features: Features,
    /// `image_path` or `caption` of each row; empty without metadata.
    pub names: Vec<String>,
    /// `label` of each row; empty where the metadata has no such column.
    pub labels: Vec<Option<String>>,
}

/// Reads all partitions of a folder, in order of the files' names as clip-retrieval's own readers take them. The metadata of
/// partition `n` belong to its rows; a folder without `metadata` has rows without names.
///
/// # Errors
/// [`Error::BadFile`] where there are no partitions, one does not fit the others or its metadata, or one is damaged.
pub fn read_clip_retrieval(folder: &Path, modality: Modality) -> Result<Embeddings, Error> {
    let partitions = partitions(&folder.join(modality.folder()), modality.folder(), "npy")?;
    if partitions.is_empty() {
        return Err(Error::BadFile {
            path: folder.to_owned(),
            reason: format!("there are no `{0}/{0}_*.npy` in it", modality.folder()),
        });
    }
    let metadata_folder = folder.join("metadata");
    let has_metadata = metadata_folder.is_dir();
    let (mut pieces, mut rows, mut n_features) = (Vec::new(), Vec::new(), None);
    let (mut names, mut labels) = (Vec::new(), Vec::new());
    for (number, path) in partitions {
        let array = ArrayFile::open(&path)?;
        let [n_rows, width] = array.header.shape[..] else {
            return Err(array.bad(format!("it is no array [N, D] but {:?}", array.header.shape)));
        };
        if *n_features.get_or_insert(width) != width {
            let wanted = n_features.unwrap_or(width);
            return Err(array.bad(format!(
                "its rows have {width} numbers, and those before it {wanted}"
            )));
        }
        let place = |row: usize| Some((u32::try_from(pieces.len()).ok()?, u32::try_from(row).ok()?));
        for row in 0..n_rows {
            rows.push(place(row).ok_or_else(|| array.bad("more rows than can be counted"))?);
        }
        pieces.push(piece_of(&array)?.0);
        if !has_metadata {
            continue;
        }
        let metadata = metadata_folder.join(format!("metadata_{number}.parquet"));
        let columns = [modality.name_column(), "label"];
        let mut n_named = 0usize;
        let has_column = each_text_row(&metadata, &columns, |row| {
            n_named += 1;
            names.push(row[0].as_deref().unwrap_or_default().to_owned());
            labels.push(row[1].as_deref().map(str::to_owned));
        })
        .map_err(|reason| Error::BadFile {
            path: metadata.clone(),
            reason,
        })?;
        if n_named != n_rows {
            return Err(Error::BadFile {
                path: metadata,
                reason: format!("it has {n_named} rows, and the features {n_rows}"),
            });
        }
        if !has_column[0] {
            let reason = format!("it has no column `{}`", modality.name_column());
            return Err(Error::BadFile {
                path: metadata,
                reason,
            });
        }
    }
    if labels.iter().all(Option::is_none) {
        labels.clear();
    }
    let n_features = n_features.unwrap_or(0);
    Ok(Embeddings {
        features: Features::picked(pieces.into(), rows, n_features, |row| format!("row {row}")).map_err(
            |error| match error {
                Error::Features(reason) => Error::BadFile {
                    path: folder.to_owned(),
                    reason,
                },
                other => other,
            },
        )?,
        names,
        labels,
    })
}

/// The files `PREFIX_<n>.ENDING` of a folder in order of their names, each with its number as it is written.
pub(super) fn partitions(folder: &Path, prefix: &str, ending: &str) -> Result<Vec<(String, PathBuf)>, Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::at("read", folder))? {
        let entry = entry.map_err(FileError::at("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('_')?.strip_suffix(ending)?.strip_suffix('.'));
        if let Some(number) =
            number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()) && !number.is_empty())
        {
            found.push((name.clone(), number.to_owned(), entry.path()));
        }
    }
    found.sort();
    Ok(found
        .into_iter()
        .map(|(_, number, path)| (number, path))
        .collect())
}
