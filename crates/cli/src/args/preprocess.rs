//! How pictures become network input.

use clap::{Args, ValueEnum};
use runtime::image::{Interpolation, Preprocess};

use crate::usage::UsageError;

/// Filters by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InterpolationArg {
    Bilinear,
    Bicubic,
    Lanczos,
}

/// How pictures become network input; the defaults are torchvision's for ImageNet.
#[derive(Debug, Args)]
#[command(next_help_heading = "Preprocessing")]
pub(crate) struct PreprocessArgs {
    /// Short side after resizing
    #[arg(long, value_name = "SIDE", default_value_t = 256)]
    pub(crate) resize: usize,
    /// Side of the centre crop
    #[arg(long, value_name = "SIDE", default_value_t = 224)]
    pub(crate) crop: usize,
    /// Filter of the resize
    #[arg(long, value_enum, default_value_t = InterpolationArg::Bilinear)]
    pub(crate) interpolation: InterpolationArg,
    /// Mean per channel, subtracted after the division by 255 [default: 0.485,0.456,0.406]
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub(crate) mean: Option<Vec<f32>>,
    /// Deviation per channel, divided by after that [default: 0.229,0.224,0.225]
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub(crate) std: Option<Vec<f32>>,
}

impl PreprocessArgs {
    pub(crate) fn checked(&self) -> anyhow::Result<Preprocess> {
        let mut preprocess = Preprocess::imagenet();
        preprocess.resize = self.resize.into();
        preprocess.crop = self.crop.into();
        preprocess.interpolation = match self.interpolation {
            InterpolationArg::Bilinear => Interpolation::Bilinear,
            InterpolationArg::Bicubic => Interpolation::Bicubic,
            InterpolationArg::Lanczos => Interpolation::Lanczos,
        };
        let triple = |flag: &str, values: &Option<Vec<f32>>, default: [f32; 3]| match values.as_deref() {
            None => Ok(default),
            Some(&[r, g, b]) => Ok([r, g, b]),
            Some(_) => Err(UsageError::new(format!(
                "{flag} takes three numbers, as in {flag} 0.5,0.5,0.5"
            ))),
        };
        preprocess.mean = triple("--mean", &self.mean, preprocess.mean)?;
        preprocess.std = triple("--std", &self.std, preprocess.std)?;
        preprocess.check().map_err(UsageError::new)?;
        Ok(preprocess)
    }
}
