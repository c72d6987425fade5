//! How pictures become network input.

use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use runtime::image::{Crop, Interpolation, Preprocess, Resize};

use crate::usage::UsageError;

/// How pictures become network input; the defaults are torchvision's for ImageNet.
#[derive(Debug, Args)]
#[command(next_help_heading = "Preprocessing")]
pub(crate) struct PreprocessArgs {
    /// Preprocessing as others wrote it down: torchvision:MODEL[.WEIGHTS], timm's config.json, transformers'
    /// preprocessor_config.json, or graftwork's own JSON; the flags below change parts of it
    #[arg(long, value_name = "FILE|torchvision:NAME")]
    pub(crate) preprocess: Option<String>,
    /// Short side after resizing, or HEIGHTxWIDTH to squash to, cover:HxW, inside:HxW, or none [default: 256]
    #[arg(long, value_name = "SIZE")]
    pub(crate) resize: Option<ResizeArg>,
    /// Side of the centre crop, or HEIGHTxWIDTH, or none [default: 224]
    #[arg(long, value_name = "SIZE")]
    pub(crate) crop: Option<CropArg>,
    /// Filter of the resize [default: bilinear]
    #[arg(long, value_name = "FILTER", value_parser = filters())]
    pub(crate) interpolation: Option<Interpolation>,
    /// What bytes are multiplied by before mean and deviation [default: 1/255]
    #[arg(long, value_name = "FACTOR")]
    pub(crate) rescale: Option<f64>,
    /// Mean per channel, subtracted after the rescaling [default: 0.485,0.456,0.406]
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub(crate) mean: Option<Vec<f32>>,
    /// Deviation per channel, divided by after that [default: 0.229,0.224,0.225]
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub(crate) std: Option<Vec<f32>>,
    /// Turn pictures as their EXIF orientation says, which torchvision does not
    #[arg(long)]
    pub(crate) exif: bool,
    /// Let the JPEG decoder shrink large photographs: faster, and other features than without
    #[arg(long)]
    pub(crate) scaled_decode: bool,
}

/// `--resize`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResizeArg(Resize);

/// `--crop`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CropArg(Crop);

impl FromStr for ResizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ResizeArg, String> {
        type Kind = fn(usize, usize) -> Resize;
        let kinds: [(&str, Kind); 2] = [("cover:", Resize::Cover), ("inside:", Resize::Inside)];
        for (prefix, kind) in kinds {
            if let Some((height, width)) = text.strip_prefix(prefix).and_then(rectangle) {
                return Ok(ResizeArg(kind(height, width)));
            }
        }
        match (text, text.parse(), rectangle(text)) {
            ("none", ..) => Ok(ResizeArg(Resize::Keep)),
            (_, Ok(side), _) => Ok(ResizeArg(Resize::ShortSide(side))),
            (_, _, Some((height, width))) => Ok(ResizeArg(Resize::Exact(height, width))),
            _ => {
                Err("a short side, HEIGHTxWIDTH, cover:HEIGHTxWIDTH, inside:HEIGHTxWIDTH, or none".to_owned())
            }
        }
    }
}

impl FromStr for CropArg {
    type Err = String;

    fn from_str(text: &str) -> Result<CropArg, String> {
        match (text, text.parse(), rectangle(text)) {
            ("none", ..) => Ok(CropArg(Crop::Whole)),
            (_, Ok(side), _) => Ok(CropArg(Crop::Center(side, side))),
            (_, _, Some((height, width))) => Ok(CropArg(Crop::Center(height, width))),
            _ => Err("a side, HEIGHTxWIDTH, or none".to_owned()),
        }
    }
}

/// The filters by the names that the library gives them.
fn filters() -> impl TypedValueParser<Value = Interpolation> {
    PossibleValuesParser::new(Interpolation::ALL.map(Interpolation::name))
        .try_map(|name| Interpolation::from_name(&name).ok_or("no such filter"))
}

/// Height and width from `HEIGHTxWIDTH`.
fn rectangle(text: &str) -> Option<(usize, usize)> {
    let (height, width) = text.split_once('x')?;
    Some((height.parse().ok()?, width.parse().ok()?))
}

impl PreprocessArgs {
    /// The first of the flags that was given: a network for texts has no use for it.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--preprocess", self.preprocess.is_some()),
            ("--resize", self.resize.is_some()),
            ("--crop", self.crop.is_some()),
            ("--interpolation", self.interpolation.is_some()),
            ("--rescale", self.rescale.is_some()),
            ("--mean", self.mean.is_some()),
            ("--std", self.std.is_some()),
            ("--exif", self.exif),
            ("--scaled-decode", self.scaled_decode),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    pub(crate) fn checked(&self) -> anyhow::Result<Preprocess> {
        let mut preprocess = match &self.preprocess {
            None => Preprocess::imagenet(),
            Some(source) => Preprocess::from_source(source).map_err(UsageError::new)?,
        };
        if let Some(ResizeArg(resize)) = self.resize {
            preprocess.resize = resize;
        }
        if let Some(CropArg(crop)) = self.crop {
            preprocess.crop = crop;
        }
        if let Some(filter) = self.interpolation {
            preprocess.interpolation = filter;
        }
        let triple = |flag: &str, values: &Option<Vec<f32>>, default: [f32; 3]| match values.as_deref() {
            None => Ok(default),
            Some(&[r, g, b]) => Ok([r, g, b]),
            Some(_) => Err(UsageError::new(format!(
                "{flag} takes three numbers, as in {flag} 0.5,0.5,0.5"
            ))),
        };
        preprocess.mean = triple("--mean", &self.mean, preprocess.mean)?;
        preprocess.std = triple("--std", &self.std, preprocess.std)?;
        preprocess.rescale = self.rescale.unwrap_or(preprocess.rescale);
        preprocess.exif |= self.exif;
        preprocess.scaled_decode |= self.scaled_decode;
        preprocess.check().map_err(UsageError::new)?;
        Ok(preprocess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let resize = |text: &str| text.parse::<ResizeArg>().map(|arg| arg.0);
        assert_eq!(resize("256"), Ok(Resize::ShortSide(256)));
        assert_eq!(resize("240x320"), Ok(Resize::Exact(240, 320)));
        assert_eq!(resize("cover:240x320"), Ok(Resize::Cover(240, 320)));
        assert_eq!(resize("inside:240x320"), Ok(Resize::Inside(240, 320)));
        assert_eq!(resize("none"), Ok(Resize::Keep));
        for bad in ["", "x", "4x", "-1", "cover:5", "4x5x6"] {
            assert!(resize(bad).is_err(), "{bad}");
        }
        let crop = |text: &str| text.parse::<CropArg>().map(|arg| arg.0);
        assert_eq!(crop("224"), Ok(Crop::Center(224, 224)));
        assert_eq!(crop("240x320"), Ok(Crop::Center(240, 320)));
        assert_eq!(crop("none"), Ok(Crop::Whole));
        assert!(crop("all").is_err());
    }
}
