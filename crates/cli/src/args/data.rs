//! Where samples come from.

use std::path::PathBuf;

use clap::Args;

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
    pub(crate) fn options(&self) -> runtime::data::DataOptions {
        runtime::data::DataOptions::new(self.split())
    }

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
