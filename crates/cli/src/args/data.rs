//! Where samples come from.

use std::path::PathBuf;

use clap::Args;
use runtime::data::{Columns, DataOptions, SplitRule, Unlabelled};

/// Where the samples are and which are for validation.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Samples: an image folder (D/train/<class>/* and D/val/<class>/* or test, one folder of classes, or one with
    /// metadata.csv), a manifest (.csv, .tsv, .jsonl, .parquet), WebDataset tars ("x-{000..012}.tar" or a folder of them),
    /// Parquet files with pictures in them, arrays of pixels (.npy, .npz), or texts on lines (.txt)
    #[arg(long, value_name = "D")]
    pub(crate) data: PathBuf,
    /// Share of each class that is held out for validation, when D does not say which samples are
    #[arg(long, value_name = "SHARE")]
    pub(crate) val_fraction: Option<f64>,
    /// Decides which samples and rows are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) columns: ColumnArgs,
}

/// Which columns of a manifest (or fields of a tar's samples, or keys of JSON objects) mean what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Columns")]
pub(crate) struct ColumnArgs {
    /// The picture's path or its bytes [default: file_name, filename, path, image, image_path or filepath]
    #[arg(long, value_name = "NAME")]
    path_col: Option<String>,
    /// The label [default: label, class, target or y]
    #[arg(long, value_name = "NAME")]
    label_col: Option<String>,
    /// The text [default: text, caption or sentence]
    #[arg(long, value_name = "NAME")]
    text_col: Option<String>,
    /// The split [default: split]
    #[arg(long, value_name = "NAME")]
    split_col: Option<String>,
    /// What a sample is called [default: its path or row]
    #[arg(long, value_name = "NAME")]
    id_col: Option<String>,
}

impl DataArgs {
    /// Labelled samples for training and for validation.
    pub(crate) fn options(&self) -> DataOptions {
        DataOptions {
            columns: self.columns.columns(),
            ..DataOptions::new(self.split())
        }
    }

    /// Samples whose features are wanted, whatever is known of their labels and splits.
    pub(crate) fn options_to_extract(&self) -> DataOptions {
        let mut options = self.options();
        options.unlabelled = Unlabelled::Keep;
        if options.split == SplitRule::Folders {
            options.split = SplitRule::Loose;
        }
        options
    }

    pub(crate) fn split(&self) -> SplitRule {
        match self.val_fraction {
            Some(fraction) => SplitRule::Fraction {
                fraction,
                seed: self.seed,
            },
            None => SplitRule::Folders,
        }
    }
}

impl ColumnArgs {
    pub(crate) fn columns(&self) -> Columns {
        Columns {
            path: self.path_col.clone(),
            label: self.label_col.clone(),
            text: self.text_col.clone(),
            split: self.split_col.clone(),
            id: self.id_col.clone(),
        }
    }
}
