//! Flags that several verbs share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use runtime::image::{Interpolation, Preprocess};

use crate::usage::UsageError;

/// Which ONNX Runtime, how many threads.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// The ONNX Runtime library to use, or the folder it is in (also: ORT_DYLIB_PATH)
    #[arg(long, value_name = "PATH")]
    pub(crate) ort_lib: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// How a checkpoint is read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reading")]
pub(crate) struct OpenArgs {
    /// Read the tensors of a checkpoint that names code; nothing is ever run
    #[arg(long)]
    pub(crate) allow_opaque: bool,
    /// Of equal keys of one dict take the last, as Python would
    #[arg(long)]
    pub(crate) last_wins: bool,
    /// Accept bytes in front of a zip archive
    #[arg(long)]
    pub(crate) allow_prefix: bool,
    /// The byte order of the numbers, where the file tells a wrong one or none
    #[arg(long, value_name = "ORDER", value_enum)]
    pub(crate) byte_order: Option<ByteOrderArg>,
    /// Read the file instead of mapping it into memory: for network file systems
    #[arg(long)]
    pub(crate) no_mmap: bool,
}

/// Which end of a number comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ByteOrderArg {
    Little,
    Big,
}

impl OpenArgs {
    pub(crate) fn options(&self) -> pth::OpenOptions {
        pth::OpenOptions {
            backing: self.backing(),
            allow_opaque: self.allow_opaque,
            last_wins: self.last_wins,
            allow_prefix: self.allow_prefix,
            byte_order: self.byte_order.map(|order| match order {
                ByteOrderArg::Little => pth::ByteOrder::Little,
                ByteOrderArg::Big => pth::ByteOrder::Big,
            }),
        }
    }

    fn backing(&self) -> pth::Backing {
        if self.no_mmap {
            pth::Backing::Read
        } else {
            pth::Backing::Map
        }
    }
}

/// How many pictures go through the network at once.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Pictures per run of the network
    #[arg(short, long, value_name = "N", default_value_t = runtime::job::DEFAULT_BATCH_SIZE)]
    pub(crate) batch_size: usize,
}

impl EngineArgs {
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores).max(1)
    }
}

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
        preprocess.resize = self.resize;
        preprocess.crop = self.crop;
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

/// Where the pictures are and which are for validation.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Image folder: D/train/<class>/* and D/val/<class>/* (or test), or one folder of classes with --val-fraction
    #[arg(long, value_name = "D")]
    pub(crate) data: PathBuf,
    /// Share of each class that is held out for validation, when D has no folders for it
    #[arg(long, value_name = "SHARE")]
    pub(crate) val_fraction: Option<f64>,
    /// Decides which pictures and rows are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl DataArgs {
    pub(crate) fn split(&self) -> runtime::data::SplitRule {
        match self.val_fraction {
            Some(fraction) => runtime::data::SplitRule::Fraction {
                fraction,
                seed: self.seed,
            },
            None => runtime::data::SplitRule::Folders,
        }
    }
}

/// `--c VALUE|auto`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CArg(pub(crate) runtime::job::Regularisation);

impl std::str::FromStr for CArg {
    type Err = String;

    fn from_str(text: &str) -> Result<CArg, String> {
        if text == "auto" {
            return Ok(CArg(runtime::job::Regularisation::Auto));
        }
        match text.parse::<f64>() {
            Ok(c) if c > 0.0 && c.is_finite() => Ok(CArg(runtime::job::Regularisation::C(c))),
            _ => Err("C is a positive number, or auto".to_owned()),
        }
    }
}

/// The folder that features go to where none is given.
pub(crate) fn default_cache() -> anyhow::Result<PathBuf> {
    Ok(runtime::features::default_cache()?)
}
