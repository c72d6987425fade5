//! What a model folder says about its texts, in the files that sentence-transformers and transformers write.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;
use serde_json::Value;

use super::pool::Pooling;
use crate::error::Error;

/// A configuration is a few kilobytes; a vocabulary of 256,000 tokens about 35 MB.
const MAX_BYTES: u64 = 512 << 20;

/// What the files beside a tokenizer say; `None` and `false` where they say nothing.
#[derive(Debug, Default, PartialEq)]
pub(super) struct FolderConfig {
    pub(super) max_length: Option<usize>,
    pub(super) lowercase: bool,
    pub(super) truncate_left: bool,
    pub(super) pooling: Option<Vec<Pooling>>,
    /// Tokens of the prompt are not pooled.
    pub(super) skip_prompt: bool,
    pub(super) normalize: bool,
    pub(super) prompt: Option<String>,
    pub(super) pad_token: Option<String>,
    pub(super) pad_id: Option<u32>,
    /// A layer behind the pooling that is not done here.
    pub(super) unknown_layer: Option<String>,
}

/// Reads a whole file that is no larger than any tokenizer.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = fs::File::open(path).map_err(FileError::at("read", path))?;
    let n_bytes = file.metadata().map_err(FileError::at("read", path))?.len();
    if n_bytes > MAX_BYTES {
        return Err(bad(
            path,
            format!("it has {n_bytes} bytes, which is more than any of its kind"),
        ));
    }
    fs::read(path).map_err(|error| FileError::at("read", path)(error).into())
}

pub(super) fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadFile {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// The JSON of a file; `None` where there is no such file.
fn json(path: PathBuf) -> Result<Option<(PathBuf, Value)>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    match serde_json::from_slice(&read(&path)?) {
        Ok(value) => Ok(Some((path, value))),
        Err(error) => Err(bad(&path, format!("it is not JSON: {error}"))),
    }
}

impl FolderConfig {
    /// Reads what `folder` holds of `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`,
    /// `config_sentence_transformers.json`, `tokenizer_config.json`, `special_tokens_map.json` and `config.json`.
    ///
    /// # Errors
    /// [`Error::BadFile`] where one of them is damaged; the file system's.
    pub(super) fn read(folder: &Path) -> Result<FolderConfig, Error> {
        let mut config = FolderConfig::default();
        let mut encoder = folder.to_owned();
        match json(folder.join("modules.json"))? {
            Some((path, modules)) => {
                let modules = modules
                    .as_array()
                    .ok_or_else(|| bad(&path, "it is no list of layers"))?;
                for module in modules {
                    let kind = module["type"]
                        .as_str()
                        .ok_or_else(|| bad(&path, "a layer has no `type`"))?;
                    let place = folder.join(inside(&path, module["path"].as_str().unwrap_or(""))?);
                    match kind.rsplit('.').next().unwrap_or(kind) {
                        "Transformer" => encoder = place,
                        "Pooling" => config.read_pooling(&place)?,
                        "Normalize" => config.normalize = true,
                        "Dropout" => {}
                        other => config.unknown_layer = Some(other.to_owned()),
                    }
                }
            }
            None => {
                config.read_pooling(&folder.join("1_Pooling"))?;
                config.normalize = folder.join("2_Normalize").is_dir();
            }
        }
        config.read_lengths(&encoder)?;
        if let Some((path, value)) = json(folder.join("config_sentence_transformers.json"))?
            && let Some(name) = value["default_prompt_name"].as_str()
        {
            let prompt = value["prompts"][name].as_str().ok_or_else(|| {
                bad(
                    &path,
                    format!("it has no prompt `{name}`, which it says is the default"),
                )
            })?;
            config.prompt = Some(prompt.to_owned());
        }
        Ok(config)
    }

    fn read_pooling(&mut self, place: &Path) -> Result<(), Error> {
        let Some((path, value)) = json(place.join("config.json"))? else {
            return Ok(());
        };
        let parse = |name: &str| name.parse::<Pooling>().map_err(|error| bad(&path, error));
        let modes = match &value["pooling_mode"] {
            Value::String(name) => vec![parse(name)?],
            Value::Array(names) => names
                .iter()
                .map(|name| parse(name.as_str().unwrap_or("")))
                .collect::<Result<_, Error>>()?,
            // Before version 5.2 there was a switch for each.
            _ => {
                let switches = [
                    ("pooling_mode_cls_token", Pooling::Cls),
                    ("pooling_mode_max_tokens", Pooling::Max),
                    ("pooling_mode_mean_tokens", Pooling::Mean),
                    ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
                    ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
                    ("pooling_mode_lasttoken", Pooling::LastToken),
                ];
                let on = switches.iter().filter(|(key, _)| value[key] == Value::Bool(true));
                on.map(|&(_, pooling)| pooling).collect()
            }
        };
        self.pooling = (!modes.is_empty()).then_some(modes);
        self.skip_prompt = value["include_prompt"] == Value::Bool(false);
        Ok(())
    }

    fn read_lengths(&mut self, folder: &Path) -> Result<(), Error> {
        let mut limits = Vec::new();
        if let Some((_, value)) = json(folder.join("tokenizer_config.json"))? {
            // "No limit" is written as 10^30.
            limits.extend(
                value["model_max_length"]
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok()),
            );
            self.truncate_left = value["truncation_side"] == "left";
            self.pad_token = token_text(&value["pad_token"]);
        }
        if let Some((_, value)) = json(folder.join("special_tokens_map.json"))? {
            self.pad_token = self.pad_token.take().or_else(|| token_text(&value["pad_token"]));
        }
        if let Some((_, value)) = json(folder.join("config.json"))? {
            let positions = value["max_position_embeddings"].as_u64();
            limits.extend(positions.and_then(|n| usize::try_from(n).ok()));
            self.pad_id = value["pad_token_id"]
                .as_u64()
                .and_then(|id| u32::try_from(id).ok());
        }
        self.max_length = limits.into_iter().min();
        for kind in [
            "bert",
            "roberta",
            "distilbert",
            "camembert",
            "albert",
            "xlm-roberta",
            "xlnet",
        ] {
            if let Some((path, value)) = json(folder.join(format!("sentence_{kind}_config.json")))? {
                match &value["max_seq_length"] {
                    Value::Null => {}
                    length => {
                        let length = length.as_u64().and_then(|n| usize::try_from(n).ok());
                        self.max_length = Some(
                            length.ok_or_else(|| bad(&path, "its `max_seq_length` is no whole number"))?,
                        );
                    }
                }
                self.lowercase = value["do_lower_case"] == Value::Bool(true);
                break;
            }
        }
        Ok(())
    }
}

/// A token as the files spell it: a string, or an object with its `content`.
fn token_text(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// A folder's name in `modules.json` leads to no other place than below the model.
fn inside<'n>(modules: &Path, name: &'n str) -> Result<&'n str, Error> {
    let plain = Path::new(name).components().all(|part| {
        matches!(
            part,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if plain {
        Ok(name)
    } else {
        Err(bad(
            modules,
            format!("its path `{name}` leads out of the model's folder"),
        ))
    }
}
