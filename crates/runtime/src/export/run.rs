//! One deployable model of a run that has none: a head that was trained on a cache entry, behind the network that the
//! entry's features came from.

use std::path::{Path, PathBuf};

use pth::FileError;

use super::classifier::Classifier;
use super::pattern::{Runner, assemble_proven};
use super::verify::{Expected, Verified, verify};
use crate::data::Dataset;
use crate::error::Error;
use crate::features::{FeatureType, Key, Manifest, Recipe, RowId, Store};
use crate::head::Head;
use crate::monitor::Monitor;
use crate::onnx::{Model, Outputs};

/// Pictures that the model is compared on at most, spread over all that the entry lists.
const MAX_PICTURES: usize = 64;

/// A model put together of a run and a backbone.
#[derive(Debug)]
pub struct Assembled {
    /// Backbone and head.
    pub model: Model,
    /// The cache entry that the head was trained on.
    pub entry: PathBuf,
    /// The tensor of the backbone that its features are.
    pub boundary: String,
    /// By how much a logit differs at most on a test pattern.
    pub max_abs_logit_diff: f32,
    /// The comparison with the head on the cached features, where the entry's pictures still lie where they lay.
    pub on_pictures: Option<Verified>,
}

/// Puts the head of a run on a cache entry behind the backbone that the entry's features came from, which is known by the
/// content of its graph: at `cut`, or at whichever tensor has that content. Proven on a test pattern, and where the pictures
/// are at hand on those.
///
/// # Errors
/// [`Error::Usage`] for a run on an array, or on texts; [`Error::BadFile`] where the entry is gone; [`Error::Backbone`] where
/// the backbone is another; as [`assemble_proven`] and [`verify`].
pub fn assemble_run(
    run: &Path,
    head: &Head,
    backbone: &Model,
    cut: Option<&str>,
    outputs: Outputs,
    runner: Runner<'_>,
    monitor: Monitor<'_>,
) -> Result<Assembled, Error> {
    let entry = features_of(run)?;
    if entry.is_file() {
        return Err(Error::Usage(format!(
            "`{}` was trained on the array `{}`, and nothing tells which network its rows came from",
            run.display(),
            entry.display()
        )));
    }
    if !entry.exists() {
        return Err(Error::BadFile {
            path: entry,
            reason: format!(
                "`{}` was trained on these features, and they are gone",
                run.display()
            ),
        });
    }
    let key = Key::open(&entry)?;
    let Recipe::Picture(preprocess) = key.recipe() else {
        let text = format!(
            "the features in `{}` are of texts; one model is made for pictures only",
            entry.display()
        );
        return Err(Error::Usage(text));
    };
    let boundary = boundary_of(backbone, cut, &key, &entry)?;
    let (model, max_abs_logit_diff) =
        assemble_proven(backbone, &boundary, key.pool(), head, outputs, preprocess, runner)?;
    let classifier = Classifier::new(
        model.clone(),
        runner.engine.clone(),
        runner.device,
        runner.threads,
    )?;
    let on_pictures = verify_on_entry(&classifier, head, &entry, key.dtype(), monitor)?;
    Ok(Assembled {
        model,
        entry,
        boundary,
        max_abs_logit_diff,
        on_pictures,
    })
}

/// The features that a run was trained on, by its settings.
fn features_of(run: &Path) -> Result<PathBuf, Error> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path).map_err(FileError::at("read", &path))?;
    let top = text.lines().take_while(|line| !line.starts_with('['));
    let values = top.filter_map(|line| line.strip_prefix("features")?.trim_start().strip_prefix('='));
    // Strings are written as JSON writes them, which is TOML too.
    let mut features = values.filter_map(|value| serde_json::from_str::<String>(value.trim()).ok());
    match features.next() {
        Some(features) => Ok(PathBuf::from(features)),
        None => Err(Error::BadFile {
            path,
            reason: "it does not say which features the run was trained on".to_owned(),
        }),
    }
}

/// The tensor whose content is that of the entry's key.
fn boundary_of(backbone: &Model, cut: Option<&str>, key: &Key, entry: &Path) -> Result<String, Error> {
    let found = match cut {
        None => backbone.find_prefix(key.prefix())?,
        Some(name) => {
            let is_it = backbone.prefix_digest(name)?.to_hex().as_str() == key.prefix();
            is_it.then(|| name.to_owned())
        }
    };
    found.ok_or_else(|| Error::Backbone {
        path: backbone.path().to_owned(),
        reason: match cut {
            None => format!("the features in `{}` are of another network", entry.display()),
            Some(name) => format!("the features in `{}` are not its `{name}`", entry.display()),
        },
    })
}

/// Compares the model on pictures with the head on their cached features; none where no picture is where it was.
fn verify_on_entry(
    classifier: &Classifier,
    head: &Head,
    entry: &Path,
    dtype: FeatureType,
    monitor: Monitor<'_>,
) -> Result<Option<Verified>, Error> {
    let Some(manifest) = Manifest::list(entry)?.into_iter().next() else {
        return Ok(None);
    };
    let manifest = Manifest::open(&manifest)?;
    let source = &manifest.header.source;
    let folder = match source.is_dir() {
        true => Some(source.as_path()),
        false => source.parent(),
    };
    let step = manifest.len().div_ceil(MAX_PICTURES).max(1);
    let spread = manifest.lines().step_by(step).filter_map(|line| {
        let (id, path) = (line.id?, folder?.join(&*line.name));
        // What is no file is not even opened: a pipe would wait for a writer.
        let is_the_same = path.is_file() && *blake3::hash(&std::fs::read(&path).ok()?).as_bytes() == id;
        (is_the_same && path.to_str().is_some()).then_some((id, path))
    });
    let (ids, paths): (Vec<RowId>, Vec<PathBuf>) = spread.unzip();
    if paths.is_empty() {
        return Ok(None);
    }
    let store = Store::open_entry(entry)?;
    let features = store.features(&ids, |row| format!("`{}`", paths[row].display()))?;
    let logits = head.logits(&features)?;
    let expected = Expected {
        samples: (0..paths.len()).collect(),
        slack: match dtype {
            FeatureType::Float16 => head.rounding_slack(&features),
            FeatureType::Float32 => vec![0.0; logits.len()],
        },
        logits,
    };
    let data = Dataset::of_pictures(&paths)?;
    Ok(Some(verify(classifier, &data, &expected, monitor)?))
}
