//! Random views of the training samples.

use clap::{Args, ValueEnum};
use runtime::features::Views;
use runtime::image::Augment;

use crate::usage::UsageError;

/// Kinds of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AugmentArg {
    /// torchvision's RandomResizedCrop (8 % to 100 %, 3/4 to 4/3) and RandomHorizontalFlip
    Crop,
    /// The mirrored picture
    Flip,
}

/// How many views, of which kind.
#[derive(Debug, Args)]
#[command(next_help_heading = "Views")]
pub(crate) struct ViewArgs {
    /// Random views of each training picture, beside the plain one; more can be added later
    #[arg(long, value_name = "K", default_value_t = 0)]
    views: u32,
    /// What a view is
    #[arg(long, value_enum, default_value_t = AugmentArg::Crop, requires = "views")]
    augment: AugmentArg,
    /// Smallest share of the picture that a view takes [default: 0.08]
    #[arg(long, value_name = "SHARE", requires = "views")]
    view_scale: Option<f64>,
    /// Decides the views
    #[arg(long, value_name = "N", default_value_t = 0, requires = "views")]
    view_seed: u64,
}

impl ViewArgs {
    pub(crate) fn checked(&self) -> anyhow::Result<Option<Views>> {
        if self.views == 0 {
            return Ok(None);
        }
        let augment = match self.augment {
            AugmentArg::Crop => {
                let mut augment = Augment::imagenet(self.view_seed);
                if let (Some(scale), Some(crop)) = (self.view_scale, &mut augment.crop) {
                    crop.scale[0] = scale;
                }
                augment
            }
            AugmentArg::Flip if self.view_scale.is_some() => {
                return Err(UsageError::new("--view-scale is for --augment crop").into());
            }
            AugmentArg::Flip if self.views > 1 => {
                let text = "there is one mirrored picture: --augment flip goes with --views 1";
                return Err(UsageError::new(text).into());
            }
            AugmentArg::Flip => Augment::mirror(),
        };
        let views = Views {
            augment,
            count: self.views,
        };
        views.check().map_err(UsageError::new)?;
        Ok(Some(views))
    }
}
