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

#[cfg(test)]
mod tests {
    use super::super::{Crop, Flavour, Interpolation, Resize};
    use super::*;

    #[test]
    fn a_timm_config_inside_a_model_config() {
        let text = r#"{"architecture": "vit_base_patch16_224", "num_classes": 1000, "pretrained_cfg": {"tag": "augreg", "input_size": [3, 224, 224],
            "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
        let preprocess = Preprocess::from_json(text).unwrap();
        assert_eq!(preprocess.resize, Resize::ShortSide(248));
        assert_eq!(preprocess.crop, Crop::Center(224, 224));
        assert_eq!(preprocess.interpolation, Interpolation::Bicubic);
        assert_eq!((preprocess.mean, preprocess.std), ([0.5; 3], [0.5; 3]));
    }

    #[test]
    fn timms_modes() {
        let of = |mode: &str, size: &str| {
            Preprocess::from_json(&format!(
                r#"{{"input_size": {size}, "crop_pct": 0.5, "crop_mode": "{mode}", "mean": [0.1, 0.2, 0.3]}}"#
            ))
        };
        assert_eq!(of("squash", "[3, 10, 20]").unwrap().resize, Resize::Exact(20, 40));
        let border = of("border", "[3, 10, 20]").unwrap();
        // round(255 * 0.1) and round(255 * 0.3) are 25.5 and 76.5, to even in Python.
        assert_eq!(
            (border.resize, border.fill),
            (Resize::Inside(20, 40), [26, 51, 76])
        );
        assert_eq!(of("center", "[3, 10, 20]").unwrap().resize, Resize::Cover(20, 40));
        assert_eq!(
            of("tile", "[3, 10, 20]").unwrap_err(),
            "`crop_mode` is \"tile\"; center, squash and border are known"
        );
        assert!(
            of("center", "[1, 28, 28]")
                .unwrap_err()
                .contains("`input_size` is [1,28,28], not 3 channels")
        );
    }

    #[test]
    fn a_transformers_processor_as_saved() {
        let text = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224}}"#;
        let preprocess = Preprocess::from_json(text).unwrap();
        assert_eq!(
            preprocess,
            Preprocess::from_json(r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap()
        );
        assert_eq!(
            (preprocess.resize, preprocess.crop),
            (Resize::ShortSide(224), Crop::Center(224, 224))
        );
        assert_eq!(
            (preprocess.flavour, preprocess.rescale),
            (Flavour::Transformers, 1.0 / 255.0)
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let check = |text: &str, message: &str| {
            let error = Preprocess::from_json(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        let of = |rest: &str| format!(r#"{{"image_processor_type": "ViTImageProcessor"{rest}}}"#);
        check(
            r#"{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136}"#,
            "the image processor `Qwen2VLImageProcessor` is not known",
        );
        check(r#"{"do_resize": true}"#, "`image_processor_type` is missing");
        check(
            &of(r#", "crop_pct": 0.9"#),
            "`crop_pct` (0.9) is no option of `ViTImageProcessor`",
        );
        check(
            &of(r#", "size": {"longest_edge": 224}"#),
            "`size` is {\"longest_edge\":224}",
        );
        check(&of(r#", "size": -3"#), "`size` is -3, not a number of pixels");
        check(
            &of(r#", "resample": 9"#),
            "`resample` is 9, not a filter's number in PIL",
        );
        check(
            &of(r#", "do_resize": "yes""#),
            "`do_resize` is \"yes\", neither true nor false",
        );
        check(
            &of(r#", "do_pad": true"#),
            "`do_pad` of `ViTImageProcessor` is not supported",
        );
        check(
            &of(r#", "do_resize": false"#),
            "without a crop pictures have different sizes",
        );
        check(
            &of(r#", "image_mean": [0.5, 0.5]"#),
            "`image_mean` is [0.5,0.5], not three numbers",
        );
        check(&of(r#", "image_std": 0"#), "no std is zero");
        check(r#"{"hidden_size": 768}"#, "neither a timm config");
        check("[]", "not a JSON object");
        check("<html>", "not JSON");
        check(
            r#"{"resize": 256, "crop": 224, "interpolation": "cubic", "mean": [0,0,0], "std": [1,1,1]}"#,
            "unknown variant `cubic`",
        );
        assert!(
            Preprocess::from_source("no/such.json")
                .unwrap_err()
                .starts_with("`no/such.json`: ")
        );
        assert!(
            Preprocess::from_source("torchvision:resnet7")
                .unwrap_err()
                .contains("`resnet7`")
        );
    }
}
