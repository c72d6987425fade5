//! How a picture becomes network input, as data: all of it is part of the feature cache's key.
//!
//! The transforms of torchvision, timm and transformers differ in where a crop begins, in what a border is filled with and
//! in how a byte becomes a number; [`Preprocess`] can say each exactly, and none is approximated by another.

use serde::{Deserialize, Serialize};

use super::filter::Interpolation;

/// How a picture becomes network input. All of it is part of the feature cache's key.
///
/// What torchvision's `ImageClassification` preset has no word for is left out of the JSON where it has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Which size the picture is resampled to.
    pub resize: Resize,
    /// What is cut from the centre after that.
    pub crop: Crop,
    /// The filter.
    pub interpolation: Interpolation,
    /// Subtracted per channel after the rescaling.
    pub mean: [f32; 3],
    /// Divided by per channel after that.
    pub std: [f32; 3],
    /// Whose rules decide where a crop begins and how a byte is rescaled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flavour: Flavour,
    /// What a byte is multiplied by before `mean` and `std`: 1/255, or 1 where bytes stay what they are.
    #[serde(default = "by_255", skip_serializing_if = "is_by_255")]
    pub rescale: f64,
    /// Subtracted from all channels between the rescaling and `mean` (transformers' `rescale_offset` is 1 here).
    #[serde(default, skip_serializing_if = "is_default")]
    pub offset: f32,
    /// Divided by once more at the end (transformers' `include_top` of EfficientNet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_std: Option<[f32; 3]>,
    /// Red, green and blue around a picture that is smaller than the crop.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fill: [u8; 3],
    /// Turn the picture as its EXIF orientation says (`PIL.ImageOps.exif_transpose`), before all else.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exif: bool,
    /// Let the JPEG decoder shrink by 1/2, 1/4 or 1/8 as `PIL.Image.draft` does for the size that `resize` asks for:
    /// faster on large photographs, other pixels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scaled_decode: bool,
}

/// Which size a picture is resampled to. JSON: a number is [`ShortSide`](Resize::ShortSide).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ResizeJson", into = "ResizeJson")]
pub enum Resize {
    /// The short side becomes this; the long one keeps the ratio and is rounded down
    /// (`torchvision.transforms.Resize(int)`).
    ShortSide(usize),
    /// As `ShortSide(short)`, then shrunk where the long side is over `long` (DETR's and torchvision's `max_size`).
    ShortSideAtMost {
        /// The short side.
        short: usize,
        /// The most that the long side may be.
        long: usize,
    },
    /// Height and width, whatever the ratio was (`Resize((h, w))`, timm's `squash`).
    Exact(usize, usize),
    /// The smallest size of the same ratio that covers height and width (timm's `ResizeKeepRatio`).
    Cover(usize, usize),
    /// The largest size of the same ratio inside height and width (timm's `ResizeKeepRatio(longest=1)`, for `border`).
    Inside(usize, usize),
    /// No resampling.
    Keep,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ResizeJson {
    ShortSide(usize),
    Other(ResizeOther),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ResizeOther {
    ShortSideAtMost([usize; 2]),
    Exact([usize; 2]),
    Cover([usize; 2]),
    Inside([usize; 2]),
    Keep,
}

impl From<Resize> for ResizeJson {
    fn from(resize: Resize) -> ResizeJson {
        ResizeJson::Other(match resize {
            Resize::ShortSide(side) => return ResizeJson::ShortSide(side),
            Resize::ShortSideAtMost { short, long } => ResizeOther::ShortSideAtMost([short, long]),
            Resize::Exact(height, width) => ResizeOther::Exact([height, width]),
            Resize::Cover(height, width) => ResizeOther::Cover([height, width]),
            Resize::Inside(height, width) => ResizeOther::Inside([height, width]),
            Resize::Keep => ResizeOther::Keep,
        })
    }
}

impl From<ResizeJson> for Resize {
    fn from(json: ResizeJson) -> Resize {
        match json {
            ResizeJson::ShortSide(side) => Resize::ShortSide(side),
            ResizeJson::Other(ResizeOther::ShortSideAtMost([short, long])) => {
                Resize::ShortSideAtMost { short, long }
            }
            ResizeJson::Other(ResizeOther::Exact([height, width])) => Resize::Exact(height, width),
            ResizeJson::Other(ResizeOther::Cover([height, width])) => Resize::Cover(height, width),
            ResizeJson::Other(ResizeOther::Inside([height, width])) => Resize::Inside(height, width),
            ResizeJson::Other(ResizeOther::Keep) => Resize::Keep,
        }
    }
}

/// What is cut from the centre; padded where it is larger than the picture. JSON: a number, `[height, width]` or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "CropJson", into = "CropJson")]
pub enum Crop {
    /// Height and width.
    Center(usize, usize),
    /// The whole picture, whose size [`Resize::Exact`] must then fix.
    Whole,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CropJson {
    Square(usize),
    Rectangle([usize; 2]),
    Whole,
}

impl From<Crop> for CropJson {
    fn from(crop: Crop) -> CropJson {
        match crop {
            Crop::Center(height, width) if height == width => CropJson::Square(height),
            Crop::Center(height, width) => CropJson::Rectangle([height, width]),
            Crop::Whole => CropJson::Whole,
        }
    }
}

impl From<CropJson> for Crop {
    fn from(json: CropJson) -> Crop {
        match json {
            CropJson::Square(side) => Crop::Center(side, side),
            CropJson::Rectangle([height, width]) => Crop::Center(height, width),
            CropJson::Whole => Crop::Whole,
        }
    }
}

impl From<usize> for Resize {
    fn from(side: usize) -> Resize {
        Resize::ShortSide(side)
    }
}

impl From<usize> for Crop {
    fn from(side: usize) -> Crop {
        Crop::Center(side, side)
    }
}

/// Whose arithmetic is followed where the libraries differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// torchvision and timm: a crop begins at half the surplus rounded to even, padding in front is rounded down, and a
    /// byte is divided by 255 in float32.
    #[default]
    Torchvision,
    /// The PIL image processors of transformers: a crop begins at half the surplus rounded down, padding in front is
    /// rounded up, and a byte is multiplied in float64 and then rounded to float32.
    Transformers,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn by_255() -> f64 {
    1.0 / 255.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_by_255(rescale: &f64) -> bool {
    *rescale == by_255()
}

impl Preprocess {
    /// The longest side that a picture may be given, in pixels.
    pub const MAX_SIDE: usize = 1 << 14;

    /// The transform of torchvision's ImageNet models: 256, 224, bilinear, ImageNet's mean and deviation.
    pub fn imagenet() -> Preprocess {
        Preprocess {
            resize: Resize::ShortSide(256),
            crop: Crop::Center(224, 224),
            interpolation: Interpolation::Bilinear,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            flavour: Flavour::Torchvision,
            rescale: by_255(),
            offset: 0.0,
            second_std: None,
            fill: [0; 3],
            exif: false,
            scaled_decode: false,
        }
    }

    /// Whether every part is in range; says which is not.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |what: &str, sides: &[usize]| match sides
            .iter()
            .find(|&&side| side == 0 || side > Preprocess::MAX_SIDE)
        {
            Some(side) => Err(format!(
                "{what} {side} is not between 1 and {}",
                Preprocess::MAX_SIDE
            )),
            None => Ok(()),
        };
        match self.resize {
            Resize::ShortSide(side) => in_range("resize", &[side])?,
            Resize::ShortSideAtMost { short, long } => {
                in_range("resize", &[short, long])?;
                if long < short {
                    return Err(format!(
                        "resize to a short side of {short} and a long one of at most {long}"
                    ));
                }
            }
            Resize::Exact(height, width) | Resize::Cover(height, width) | Resize::Inside(height, width) => {
                in_range("resize", &[height, width])?;
            }
            Resize::Keep => {}
        }
        match (self.crop, self.resize) {
            (Crop::Center(height, width), _) => in_range("crop", &[height, width])?,
            (Crop::Whole, Resize::Exact(..)) => {}
            (Crop::Whole, _) => {
                return Err(
                    "without a crop pictures have different sizes; a network takes one: \
                     give a crop, or resize to an exact height and width"
                        .to_owned(),
                );
            }
        }
        let deviations = self.std.iter().chain(self.second_std.iter().flatten());
        if !self
            .mean
            .iter()
            .chain(deviations.clone())
            .all(|value| value.is_finite())
            || deviations.into_iter().any(|&std| std == 0.0)
        {
            return Err("mean and std are finite, and no std is zero".to_owned());
        }
        if !self.rescale.is_finite() || !self.offset.is_finite() {
            return Err("the rescale factor and the offset are finite".to_owned());
        }
        Ok(())
    }

    /// The shape of one picture: `[3, height, width]`. The sides are 0 where [`check`](Preprocess::check) fails for want
    /// of a size.
    pub fn shape(&self) -> [usize; 3] {
        match (self.crop, self.resize) {
            (Crop::Center(height, width), _) | (Crop::Whole, Resize::Exact(height, width)) => {
                [3, height, width]
            }
            (Crop::Whole, _) => [3, 0, 0],
        }
    }

    /// Numbers in one picture: the product of [`shape`](Preprocess::shape).
    pub fn numel(&self) -> usize {
        self.shape().iter().product()
    }

    /// The same as its JSON, as lines of a TOML table; what has its default is left out.
    pub fn to_toml(&self) -> String {
        let text = serde_json::to_string(self).expect("plain data is JSON");
        let value: serde_json::Value = serde_json::from_str(&text).expect("it was just written");
        let fields = value.as_object().into_iter().flatten();
        fields
            // TOML has no null; no crop is no line.
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name} = {}\n", toml(value)))
            .collect()
    }

    /// What each byte of each channel becomes, in the flavour's own order of float32 operations.
    pub(super) fn table(&self) -> [[f32; 256]; 3] {
        let divide = self.flavour == Flavour::Torchvision && self.rescale == by_255();
        std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let rescaled = if divide {
                    value as f32 / 255.0
                } else {
                    (value as f64 * self.rescale) as f32
                };
                let normalised = (rescaled - self.offset - self.mean[channel]) / self.std[channel];
                self.second_std
                    .map_or(normalised, |std| normalised / std[channel])
            })
        })
    }
}

fn toml(value: &serde_json::Value) -> String {
    use serde_json::Value;
    let join = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", join(items.iter().map(toml).collect())),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name} = {}", toml(value)));
            format!("{{ {} }}", join(fields.collect()))
        }
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"resize":256,"crop":224,"interpolation":"bilinear","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}"#;

    #[test]
    fn a_key_of_before_stays_what_it_was() {
        assert_eq!(serde_json::to_string(&Preprocess::imagenet()).unwrap(), OLD);
        assert_eq!(
            serde_json::from_str::<Preprocess>(OLD).unwrap(),
            Preprocess::imagenet()
        );
    }

    #[test]
    fn toml_says_what_json_says() {
        assert_eq!(
            Preprocess::imagenet().to_toml(),
            "resize = 256\ncrop = 224\ninterpolation = \"bilinear\"\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
        );
        let squash = Preprocess {
            resize: Resize::Exact(5, 6),
            crop: Crop::Whole,
            exif: true,
            ..Preprocess::imagenet()
        };
        let toml = squash.to_toml();
        assert!(
            toml.starts_with("resize = { exact = [5, 6] }\ninterpolation"),
            "{toml}"
        );
        assert!(toml.ends_with("exif = true\n"), "{toml}");
    }

    #[test]
    fn every_part_survives_json() {
        let all = |resize, crop| Preprocess {
            resize,
            crop,
            interpolation: Interpolation::Hamming,
            flavour: Flavour::Transformers,
            rescale: 1.0,
            offset: 1.0,
            second_std: Some([0.5; 3]),
            fill: [1, 2, 3],
            exif: true,
            scaled_decode: true,
            ..Preprocess::imagenet()
        };
        for resize in [
            Resize::ShortSide(5),
            Resize::ShortSideAtMost { short: 4, long: 6 },
            Resize::Exact(3, 4),
            Resize::Cover(3, 4),
            Resize::Inside(3, 4),
            Resize::Keep,
        ] {
            for crop in [Crop::Center(3, 3), Crop::Center(3, 4), Crop::Whole] {
                let text = serde_json::to_string(&all(resize, crop)).unwrap();
                assert_eq!(
                    serde_json::from_str::<Preprocess>(&text).unwrap(),
                    all(resize, crop),
                    "{text}"
                );
            }
        }
        assert!(serde_json::from_str::<Preprocess>(&OLD.replace("resize", "size")).is_err());
        assert!(serde_json::from_str::<Preprocess>(&OLD.replace("256", "{\"exact\":[3]}")).is_err());
    }

    #[test]
    fn what_has_no_fixed_size_or_no_deviation_is_refused() {
        let check = |change: fn(&mut Preprocess), message: &str| {
            let mut preprocess = Preprocess::imagenet();
            change(&mut preprocess);
            let error = preprocess.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        check(
            |p| p.resize = Resize::ShortSide(0),
            "resize 0 is not between 1 and 16384",
        );
        check(
            |p| p.resize = Resize::Exact(4, 20_000),
            "resize 20000 is not between",
        );
        check(
            |p| p.resize = Resize::ShortSideAtMost { short: 5, long: 4 },
            "a short side of 5",
        );
        check(|p| p.crop = Crop::Center(0, 4), "crop 0 is not between");
        check(
            |p| p.crop = Crop::Whole,
            "without a crop pictures have different sizes",
        );
        check(|p| p.std[1] = 0.0, "no std is zero");
        check(|p| p.second_std = Some([1.0, 0.0, 1.0]), "no std is zero");
        check(|p| p.mean[1] = f32::NAN, "mean and std are finite");
        check(
            |p| p.rescale = f64::INFINITY,
            "the rescale factor and the offset are finite",
        );
        let mut exact = Preprocess::imagenet();
        (exact.resize, exact.crop) = (Resize::Exact(2, 3), Crop::Whole);
        assert_eq!(
            (exact.check(), exact.shape(), exact.numel()),
            (Ok(()), [3, 2, 3], 18)
        );
    }
}
