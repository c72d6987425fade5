//! timm's `pretrained_cfg`: `resolve_data_config` and `transforms_imagenet_eval`, as of timm 1.0.

use serde_json::{Map, Value};

use super::config::{given, side, triple};
use super::filter::Interpolation;
use super::spec::{Crop, Preprocess, Resize};

/// The config: a file of its own, or `pretrained_cfg` inside a model's `config.json`.
pub(super) fn find(object: &Map<String, Value>) -> Option<&Map<String, Value>> {
    match given(object, "pretrained_cfg") {
        Some(Value::Object(config)) => Some(config),
        _ => ["input_size", "crop_pct"]
            .iter()
            .any(|name| object.contains_key(*name))
            .then_some(object),
    }
}

pub(super) fn read(config: &Map<String, Value>) -> Result<Preprocess, String> {
    const DEFAULT_CROP_PCT: f64 = 0.875;
    let (height, width) = match given(config, "input_size") {
        None => (224, 224),
        Some(Value::Array(sizes)) => match sizes.as_slice() {
            [channels, height, width] if channels.as_u64() == Some(3) => {
                (side("input_size", height)?, side("input_size", width)?)
            }
            _ => {
                return Err(format!(
                    "`input_size` is {}, not 3 channels, a height and a width",
                    Value::Array(sizes.clone())
                ));
            }
        },
        Some(other) => return Err(format!("`input_size` is {other}, not three numbers")),
    };
    let interpolation = match given(config, "interpolation") {
        None => Interpolation::Bicubic,
        Some(name) => name
            .as_str()
            .and_then(Interpolation::from_name)
            .ok_or_else(|| format!("`interpolation` is {name}, which timm's evaluation does not know"))?,
    };
    // Python's `or`: zero stands for the default, too.
    let crop_pct = match given(config, "crop_pct") {
        None => DEFAULT_CROP_PCT,
        Some(share) => match share.as_f64() {
            Some(0.0) => DEFAULT_CROP_PCT,
            Some(share) if share > 0.0 && share.is_finite() => share,
            _ => return Err(format!("`crop_pct` is {share}, not a positive share")),
        },
    };
    let numbers =
        |name: &str, default: [f32; 3]| given(config, name).map_or(Ok(default), |value| triple(name, value));
    let imagenet = Preprocess::imagenet();
    let mut preprocess = Preprocess {
        crop: Crop::Center(height, width),
        interpolation,
        mean: numbers("mean", imagenet.mean)?,
        std: numbers("std", imagenet.std)?,
        ..imagenet
    };
    let scaled = |side: usize| (side as f64 / crop_pct).floor() as usize;
    let (scaled_height, scaled_width) = (scaled(height), scaled(width));
    preprocess.resize = match given(config, "crop_mode").map(|mode| (mode, mode.as_str())) {
        None | Some((_, Some("center"))) if scaled_height == scaled_width => Resize::ShortSide(scaled_height),
        None | Some((_, Some("center"))) => Resize::Cover(scaled_height, scaled_width),
        Some((_, Some("squash"))) => Resize::Exact(scaled_height, scaled_width),
        Some((_, Some("border"))) => {
            let mean = given(config, "mean");
            preprocess.fill = fill(mean, preprocess.mean);
            Resize::Inside(scaled_height, scaled_width)
        }
        Some((mode, _)) => {
            return Err(format!(
                "`crop_mode` is {mode}; center, squash and border are known"
            ));
        }
    };
    Ok(preprocess)
}

/// `[round(255 * v) for v in mean]`, in f64 and to even.
fn fill(stored: Option<&Value>, default: [f32; 3]) -> [u8; 3] {
    let exact: Vec<f64> = match stored {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_f64).collect(),
        _ => Vec::new(),
    };
    std::array::from_fn(|channel| {
        let mean = match exact.as_slice() {
            [all] => *all,
            [_, _, _] => exact[channel],
            // The default's decimal digits, not the float32 nearest to them.
            _ => default[channel].to_string().parse().unwrap_or(0.0),
        };
        (255.0 * mean).round_ties_even().clamp(0.0, 255.0) as u8
    })
}
