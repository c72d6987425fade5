//! What a feature depends on, and nothing else.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::pool::Pool;
use crate::error::Error;
use crate::image::{Augment, Preprocess};
use crate::text::TextRecipe;

/// Raised when the same fields would give other numbers.
const FORMAT: u32 = 2;

/// The number type that features are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureType {
    /// Half the space; a value is off by at most one part in 2,048.
    Float16,
    /// As the network gives them.
    Float32,
}

impl FeatureType {
    /// Bytes of one number.
    pub fn n_bytes(self) -> usize {
        match self {
            FeatureType::Float16 => 2,
            FeatureType::Float32 => 4,
        }
    }
}

/// How a sample becomes the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Decoded, resized, cropped, normalised.
    Picture(Preprocess),
    /// Cut into tokens; what the network gives for them is pooled.
    Text(TextRecipe),
}

/// One random view of every picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewKey {
    /// What is random, and the seed.
    pub augment: Augment,
    /// Which of the views: view 3 is the same whether 4 or 40 are computed.
    pub index: u32,
}

/// Everything that decides a feature's value. Its digest names the cache entry, and it lies in the entry as
/// `key.json`, so that a person can see why two entries differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    format: u32,
    /// Content of the graph in front of the boundary: see
    /// [`Model::prefix_digest`](crate::onnx::Model::prefix_digest).
    prefix: String,
    /// What becomes of a spatial boundary.
    pool: Pool,
    /// How a sample becomes input.
    input: Recipe,
    /// Which random view; none for the plain picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<ViewKey>,
    /// Stored number type.
    dtype: FeatureType,
    /// Class of device that computed it.
    provider: String,
}

/// What decides a feature's value apart from the graph.
#[derive(Debug, Clone)]
pub struct KeySpec<'k> {
    /// What becomes of a spatial boundary.
    pub pool: Pool,
    /// How a sample becomes input.
    pub recipe: &'k Recipe,
    /// Which random view; none for the plain picture.
    pub view: Option<ViewKey>,
    /// Stored number type.
    pub dtype: FeatureType,
    /// Class of device: `cpu`, `cuda`, `cuda-tf32`.
    pub provider: &'k str,
}

/// A field in which two keys differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where in `key.json`, as `input.picture.resize`.
    pub field: String,
    /// What was asked for.
    pub wanted: String,
    /// What the other entry has.
    pub found: String,
}

impl Key {
    /// The key of a graph whose content up to the boundary has the digest `prefix`: see
    /// [`Model::prefix_digest`](crate::onnx::Model::prefix_digest).
    pub fn new(prefix: blake3::Hash, spec: KeySpec<'_>) -> Key {
        Key {
            format: FORMAT,
            prefix: prefix.to_hex().to_string(),
            pool: spec.pool,
            input: spec.recipe.clone(),
            view: spec.view,
            dtype: spec.dtype,
            provider: spec.provider.to_owned(),
        }
    }

    /// The key of another view of the same samples; none is the plain one.
    pub(super) fn with_view(&self, view: Option<ViewKey>) -> Key {
        Key { view, ..self.clone() }
    }

    /// What `key.json` holds: the same bytes for the same key.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data is JSON");
        bytes.push(b'\n');
        bytes
    }

    /// The name of the cache entry: 32 hexadecimal digits, BLAKE3 of `key.json`.
    pub fn digest(&self) -> String {
        digest_of(&self.to_bytes())
    }

    /// Reads the key of an entry's folder, whose name is its digest.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a byte of it has changed; [`Error::BadFile`] where another version wrote it.
    pub fn open(entry: &Path) -> Result<Key, Error> {
        let path = entry.join("key.json");
        let bad = |reason: String| Error::BadFile {
            path: path.clone(),
            reason,
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::BadFile {
                    path: entry.to_owned(),
                    reason: "this is no feature cache entry: it holds no `key.json`".to_owned(),
                });
            }
            Err(error) => return Err(pth::FileError::at("read", &path)(error).into()),
        };
        let folder = std::fs::canonicalize(entry).unwrap_or_else(|_| entry.to_owned());
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if digest_of(&bytes) != name {
            return Err(Error::Damaged {
                path,
                reason: "its digest is not its folder's name, unless that was changed".to_owned(),
            });
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| bad(format!("another version of graftwork wrote it: {error}")))
    }

    /// What became of a spatial boundary.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Stored number type.
    pub fn dtype(&self) -> FeatureType {
        self.dtype
    }

    /// How a sample becomes input.
    pub fn recipe(&self) -> &Recipe {
        &self.input
    }

    /// Which random view; none for the plain picture.
    pub fn view(&self) -> Option<&ViewKey> {
        self.view.as_ref()
    }

    /// Content of the graph in front of the boundary, 64 hexadecimal digits.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What a person tells entries apart by, in one line.
    pub fn summary(&self) -> String {
        let input = match &self.input {
            Recipe::Picture(preprocess) => {
                let [_, height, width] = preprocess.shape();
                format!("{height} x {width}")
            }
            Recipe::Text(recipe) => format!("texts of {} tokens", recipe.max_length()),
        };
        let prefix = &self.prefix[..8.min(self.prefix.len())];
        let mut text = format!("graph {prefix}, {input}, {}", self.provider);
        if self.pool != Pool::None {
            text.push_str(if self.pool == Pool::Avg {
                ", average"
            } else {
                ", first token"
            });
        }
        if let Some(view) = &self.view {
            text.push_str(&format!(", view {}", view.index));
        }
        text
    }

    /// Every field in which `found` is another key than this one; none where they are equal.
    pub fn differences(&self, found: &Key) -> Vec<Difference> {
        let flat = |key: &Key| {
            let mut fields = Vec::new();
            flatten(
                "",
                &serde_json::to_value(key).expect("plain data is JSON"),
                &mut fields,
            );
            fields
        };
        let (wanted, found) = (flat(self), flat(found));
        let value = |fields: &[(String, String)], name: &str| {
            let of_name = fields.iter().find(|(field, _)| field == name);
            of_name.map_or("(none)".to_owned(), |(_, value)| value.clone())
        };
        let only_found = found
            .iter()
            .filter(|(name, _)| !wanted.iter().any(|(other, _)| other == name));
        let names = wanted.iter().chain(only_found).map(|(name, _)| name.as_str());
        names
            .map(|name| Difference {
                field: name.to_owned(),
                wanted: value(&wanted, name),
                found: value(&found, name),
            })
            .filter(|difference| difference.wanted != difference.found)
            .collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} here, {} there", self.field, self.wanted, self.found)
    }
}

/// Names things by their content: half a BLAKE3 digest, for which nobody finds a second content.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

/// Leaves of a JSON value by their path; an array of numbers is a leaf.
fn flatten(prefix: &str, value: &serde_json::Value, into: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&path, value, into);
            }
        }
        serde_json::Value::String(text) => into.push((prefix.to_owned(), text.clone())),
        other => into.push((prefix.to_owned(), other.to_string())),
    }
}
