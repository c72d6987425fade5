//! transformers' `preprocessor_config.json`: the image processors over PIL and NumPy (`…ImageProcessorPil` since
//! transformers 5, the "slow" ones before), each with its class's defaults.
//!
//! The processors over torchvision ("fast") resize tensors with other rounding; their pixels may differ by one.

use serde_json::{Map, Value};

use super::config::{given, side, triple};
use super::filter::Interpolation;
use super::spec::{Crop, Flavour, Preprocess, Resize};

/// Whether this is a processor's file.
pub(super) fn is_one(object: &Map<String, Value>) -> bool {
    [
        "image_processor_type",
        "feature_extractor_type",
        "do_resize",
        "do_rescale",
        "do_normalize",
    ]
    .iter()
    .any(|name| object.contains_key(*name))
}

/// How a class turns `size` into a resize.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// By the keys that `size` has; a bare number is the short side.
    ShortSide,
    /// By the keys that `size` has; a bare number is height and width.
    Square,
    /// Below 384: short side `size / crop_pct`, then a crop to `size`; from 384 on height and width.
    ConvNext,
    /// Short side `256 / 224 * size`.
    Levit,
    /// As `Square`; `rescale_offset` and `include_top`.
    EfficientNet,
}

/// A class's defaults.
struct Class {
    rule: Rule,
    size: Size,
    /// Height and width of the crop, where one is made.
    crop: Option<usize>,
    resample: Interpolation,
    mean: [f64; 3],
    std: [f64; 3],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    ShortEdge(usize),
    ShortLong(usize, usize),
    Exact(usize, usize),
}

const HALF: [f64; 3] = [0.5, 0.5, 0.5];
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// The known classes, by the name before `ImageProcessor` or `FeatureExtractor`.
fn class(name: &str) -> Option<Class> {
    use Interpolation::{Bicubic, Bilinear};
    let of = |rule, size, crop, resample, (mean, std)| Class {
        rule,
        size,
        crop,
        resample,
        mean,
        std,
    };
    let (half, clip, imagenet) = ((HALF, HALF), (CLIP_MEAN, CLIP_STD), (IMAGENET_MEAN, IMAGENET_STD));
    Some(match name {
        "ViT" => of(Rule::Square, Size::Exact(224, 224), None, Bilinear, half),
        "CLIP" | "Bit" => of(Rule::ShortSide, Size::ShortEdge(224), Some(224), Bicubic, clip),
        "ConvNext" => of(Rule::ConvNext, Size::ShortEdge(384), None, Bicubic, half),
        "Siglip" => of(Rule::ShortSide, Size::Exact(224, 224), None, Bicubic, half),
        "DeiT" => of(Rule::Square, Size::Exact(256, 256), Some(224), Bicubic, half),
        "Blip" => of(Rule::Square, Size::Exact(384, 384), None, Bicubic, clip),
        "EfficientNet" => of(Rule::EfficientNet, Size::Exact(346, 346), None, Bicubic, half),
        "MobileNetV1" | "MobileNetV2" => of(Rule::ShortSide, Size::ShortEdge(256), Some(224), Bilinear, half),
        "Levit" => of(Rule::Levit, Size::ShortEdge(224), Some(224), Bicubic, imagenet),
        _ => return None,
    })
}

/// Members that say nothing about pixels, or whose only known value changes nothing.
const SILENT: [&str; 18] = [
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "_processor_class",
    "_valid_processor_keys",
    "image_seq_length",
    "do_reduce_labels",
    "do_flip_channel_order",
    "model_input_names",
];

pub(super) fn read(object: &Map<String, Value>) -> Result<Preprocess, String> {
    let type_name = given(object, "image_processor_type")
        .or_else(|| given(object, "feature_extractor_type"))
        .and_then(Value::as_str)
        .ok_or("`image_processor_type` is missing, and defaults depend on it")?;
    let family = [
        "ImageProcessorFast",
        "ImageProcessorPil",
        "ImageProcessor",
        "FeatureExtractor",
    ]
    .iter()
    .find_map(|suffix| type_name.strip_suffix(suffix));
    let class = family.and_then(class).ok_or_else(|| {
        format!("the image processor `{type_name}` is not known; give its parts as flags, or as a graftwork preprocessing")
    })?;
    let mut known: Vec<&str> = SILENT.to_vec();
    known.extend([
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
    ]);
    known.extend([
        "do_normalize",
        "image_mean",
        "image_std",
        "do_pad",
        "pad_size",
        "default_to_square",
    ]);
    match class.rule {
        Rule::ConvNext => known.push("crop_pct"),
        Rule::EfficientNet => known.extend(["rescale_offset", "include_top"]),
        _ => {}
    }
    if let Some((name, value)) = object
        .iter()
        .find(|(name, value)| !known.contains(&name.as_str()) && !value.is_null())
    {
        return Err(format!(
            "`{name}` ({value}) is no option of `{type_name}` that is understood"
        ));
    }
    for name in ["do_pad", "do_reduce_labels", "do_flip_channel_order"] {
        if flag(object, name, false)? {
            return Err(format!("`{name}` of `{type_name}` is not supported"));
        }
    }
    // What a bare number means.
    let squares = flag(
        object,
        "default_to_square",
        matches!(class.rule, Rule::Square | Rule::EfficientNet),
    )?;
    let size = given(object, "size").map_or(Ok(class.size), |value| read_size(value, squares))?;
    let cropped = flag(object, "do_center_crop", class.crop.is_some())?;
    let mut crop = cropped.then(|| read_crop(object, &class)).transpose()?;
    let resize = if flag(object, "do_resize", true)? {
        match (class.rule, size) {
            (Rule::ConvNext, Size::ShortEdge(edge)) if edge < 384 => {
                let share = match given(object, "crop_pct") {
                    None => 224.0 / 256.0,
                    Some(value) => value
                        .as_f64()
                        .filter(|share| *share > 0.0 && share.is_finite())
                        .ok_or_else(|| format!("`crop_pct` is {value}, not a positive share"))?,
                };
                // A second centre crop of the same size would change nothing; another one does.
                if crop.is_some_and(|crop| crop != (edge, edge)) {
                    return Err(format!("`crop_size` of `{type_name}` differs from its `size`"));
                }
                crop = Some((edge, edge));
                Resize::ShortSide((edge as f64 / share) as usize)
            }
            (Rule::ConvNext, Size::ShortEdge(edge)) => Resize::Exact(edge, edge),
            (Rule::ConvNext, _) => return Err(format!("`size` of `{type_name}` has no `shortest_edge`")),
            (Rule::Levit, Size::ShortEdge(edge)) => Resize::ShortSide((256.0 / 224.0 * edge as f64) as usize),
            (_, Size::ShortEdge(edge)) => Resize::ShortSide(edge),
            (_, Size::ShortLong(short, long)) => Resize::ShortSideAtMost { short, long },
            (_, Size::Exact(height, width)) => Resize::Exact(height, width),
        }
    } else {
        Resize::Keep
    };
    let interpolation = match given(object, "resample") {
        None => class.resample,
        Some(value) => value
            .as_u64()
            .and_then(Interpolation::from_pillow)
            .ok_or_else(|| format!("`resample` is {value}, not a filter's number in PIL (0 to 5)"))?,
    };
    let rescale = match (flag(object, "do_rescale", true)?, given(object, "rescale_factor")) {
        (false, _) => 1.0,
        (true, None) => 1.0 / 255.0,
        (true, Some(value)) => value
            .as_f64()
            .filter(|factor| factor.is_finite())
            .ok_or_else(|| format!("`rescale_factor` is {value}, not a number"))?,
    };
    let numbers = |name: &str, default: [f64; 3]| {
        given(object, name).map_or(Ok(default.map(|number| number as f32)), |value| {
            triple(name, value)
        })
    };
    let (mean, std) = (
        numbers("image_mean", class.mean)?,
        numbers("image_std", class.std)?,
    );
    let normalize = flag(object, "do_normalize", true)?;
    let efficient = class.rule == Rule::EfficientNet;
    let offset = efficient && flag(object, "rescale_offset", false)? && flag(object, "do_rescale", true)?;
    let include_top = efficient && flag(object, "include_top", true)?;
    Ok(Preprocess {
        resize,
        crop: crop.map_or(Crop::Whole, |(height, width)| Crop::Center(height, width)),
        interpolation,
        mean: if normalize { mean } else { [0.0; 3] },
        std: if normalize { std } else { [1.0; 3] },
        flavour: Flavour::Transformers,
        rescale,
        offset: if offset { 1.0 } else { 0.0 },
        second_std: include_top.then_some(std),
        ..Preprocess::imagenet()
    })
}

/// Height and width of the crop.
fn read_crop(object: &Map<String, Value>, class: &Class) -> Result<(usize, usize), String> {
    let Some(value) = given(object, "crop_size") else {
        let unused = if class.rule == Rule::EfficientNet {
            289
        } else {
            224
        };
        let side = class.crop.unwrap_or(unused);
        return Ok((side, side));
    };
    match read_size(value, true)? {
        Size::Exact(height, width) => Ok((height, width)),
        Size::ShortEdge(side) => Ok((side, side)),
        Size::ShortLong(..) => Err(format!("`crop_size` is {value}, not a height and a width")),
    }
}

fn flag(object: &Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match given(object, name) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(format!("`{name}` is {other}, neither true nor false")),
    }
}

fn read_size(value: &Value, squares: bool) -> Result<Size, String> {
    let bad = || {
        format!(
            "`size` is {value}; a number, `shortest_edge`, `shortest_edge` with `longest_edge`, or `height` and `width` are understood"
        )
    };
    let Value::Object(object) = value else {
        if let Value::Array(sides) = value {
            let [height, width] = sides.as_slice() else {
                return Err(bad());
            };
            return Ok(Size::Exact(side("size", height)?, side("size", width)?));
        }
        let edge = side("size", value)?;
        return Ok(if squares {
            Size::Exact(edge, edge)
        } else {
            Size::ShortEdge(edge)
        });
    };
    let mut names: Vec<&str> = object
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    let number = |name: &str| side(name, &object[name]);
    match names.as_slice() {
        ["shortest_edge"] => Ok(Size::ShortEdge(number("shortest_edge")?)),
        ["longest_edge", "shortest_edge"] => {
            Ok(Size::ShortLong(number("shortest_edge")?, number("longest_edge")?))
        }
        ["height", "width"] => Ok(Size::Exact(number("height")?, number("width")?)),
        _ => Err(bad()),
    }
}
