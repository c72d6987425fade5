//! Flags that several verbs share.

use clap::{Args, ValueEnum};

mod backbone;
mod data;
mod engine;
mod features;
mod head;
mod preprocess;
mod text;
mod tune;
mod views;

pub(crate) use backbone::{BackboneArgs, GraphArgs, TemplateArgs};
pub(crate) use data::{ColumnArgs, DataArgs};
pub(crate) use engine::{BatchArgs, EngineArgs, all_cores};
pub(crate) use features::{CacheArg, KeepArgs, age, size};
pub(crate) use head::HeadArgs;
pub(crate) use preprocess::PreprocessArgs;
pub(crate) use text::TextArgs;
pub(crate) use tune::TuneArgs;
pub(crate) use views::ViewArgs;

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
