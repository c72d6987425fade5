//! Preprocessing that others have written down: presets by name, timm's and transformers' files, and our own JSON.

use serde_json::{Map, Value};

use super::presets;
use super::spec::Preprocess;
use super::{huggingface, timm};

impl Preprocess {
    /// What `--preprocess` takes: `torchvision:MODEL`, `torchvision:MODEL.WEIGHTS`, or the path of a JSON file.
    ///
    /// # Errors
    /// A sentence that names the file or preset, and the option that is not understood.
    pub fn from_source(source: &str) -> Result<Preprocess, String> {
        if let Some(name) = source.strip_prefix("torchvision:") {
            return Preprocess::torchvision(name);
        }
        let text = std::fs::read_to_string(source).map_err(|error| format!("`{source}`: {error}"))?;
        Preprocess::from_json(&text).map_err(|error| format!("`{source}`: {error}"))
    }

    /// The transform of torchvision's weights, as `weights.transforms()` has it: `resnet50` (its newest weights) or
    /// `resnet50.IMAGENET1K_V1`.
    ///
    /// # Errors
    /// A sentence that says which model or weights are not known.
    pub fn torchvision(name: &str) -> Result<Preprocess, String> {
        presets::torchvision(name)
    }

    /// Reads timm's `config.json` or `pretrained_cfg`, transformers' `preprocessor_config.json`, or a [`Preprocess`] as
    /// this crate writes it.
    ///
    /// # Errors
    /// A sentence that names the option or the type of processor that is not understood.
    pub fn from_json(text: &str) -> Result<Preprocess, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let Value::Object(object) = &value else {
            return Err("not a JSON object".to_owned());
        };
        let preprocess = if is_ours(object) {
            // From the text: a number that went through f64 is another f32.
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else if huggingface::is_one(object) {
            huggingface::read(object)?
        } else if let Some(config) = timm::find(object) {
            timm::read(config)?
        } else {
            return Err(
                "neither a timm config (`pretrained_cfg`), nor a transformers image processor \
                        (`image_processor_type`), nor a preprocessing of graftwork (`resize`, `crop`, …)"
                    .to_owned(),
            );
        };
        preprocess.check()?;
        Ok(preprocess)
    }
}

fn is_ours(object: &Map<String, Value>) -> bool {
    object.contains_key("resize") && object.contains_key("crop") && object.contains_key("mean")
}

/// Three numbers, or one for all three channels, rounded to float32 as torch and numpy round Python's floats.
pub(super) fn triple(name: &str, value: &Value) -> Result<[f32; 3], String> {
    let number = |value: &Value| value.as_f64().map(|number| number as f32);
    match value {
        Value::Number(_) => number(value).map(|all| [all; 3]),
        Value::Array(items) => match items.as_slice() {
            [all] => number(all).map(|all| [all; 3]),
            [red, green, blue] => {
                let channels = (number(red), number(green), number(blue));
                if let (Some(red), Some(green), Some(blue)) = channels {
                    Some([red, green, blue])
                } else {
                    None
                }
            }
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| format!("`{name}` is {value}, not three numbers"))
}

/// A positive whole number.
pub(super) fn side(name: &str, value: &Value) -> Result<usize, String> {
    value
        .as_u64()
        .and_then(|side| usize::try_from(side).ok())
        .filter(|&side| side > 0)
        .ok_or_else(|| format!("`{name}` is {value}, not a number of pixels"))
}

/// A member that is there and not null.
pub(super) fn given<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}
