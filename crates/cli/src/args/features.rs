//! What is kept of a network's output, and where.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use runtime::features::{FeatureType, Pool};

/// What becomes of a spatial boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolArg {
    /// The mean over positions
    Avg,
    /// The first token
    Cls,
    /// All positions
    None,
}

/// Number types by torch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FeatureTypeArg {
    Float16,
    Float32,
}

/// How features are kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Features")]
pub(crate) struct KeepArgs {
    /// What becomes of a boundary with positions: [N, C, H, W] or [N, T, C]
    #[arg(long, value_enum, default_value_t = PoolArg::None)]
    pub(crate) pool: PoolArg,
    /// How features are stored; float16 is off by at most one part in 2,048
    #[arg(long, value_enum, default_value_t = FeatureTypeArg::Float16)]
    pub(crate) dtype: FeatureTypeArg,
    /// Rows that are made durable at once: what a crash can cost at most
    #[arg(long, value_name = "N", default_value_t = runtime::features::DEFAULT_BLOCK_ROWS)]
    pub(crate) block_rows: usize,
    /// Stop before all files of the cache together are larger than this, as in 50GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_cache_size: Option<u64>,
}

impl KeepArgs {
    pub(crate) fn pool(&self) -> Pool {
        match self.pool {
            PoolArg::Avg => Pool::Avg,
            PoolArg::Cls => Pool::Cls,
            PoolArg::None => Pool::None,
        }
    }

    pub(crate) fn dtype(&self) -> FeatureType {
        match self.dtype {
            FeatureTypeArg::Float16 => FeatureType::Float16,
            FeatureTypeArg::Float32 => FeatureType::Float32,
        }
    }
}

/// The cache folder, the user's own where none is given.
#[derive(Debug, Args)]
pub(crate) struct CacheArg {
    /// Folder of cached features [default: graftwork/features in your cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl CacheArg {
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        match &self.cache {
            Some(folder) => Ok(folder.clone()),
            None => Ok(runtime::features::default_cache()?),
        }
    }

    /// The folder, which must be there.
    pub(crate) fn existing(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder()?;
        if folder.is_dir() {
            return Ok(folder);
        }
        let text = format!("there is no cache `{}`", folder.display());
        Err(crate::usage::UsageError::new(text)
            .with_hint("graftwork extract makes one")
            .into())
    }
}

/// `50GB`, `4MiB`, bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    surgery::parse_size(text).ok_or_else(|| format!("`{text}` is no size: 50GB, 512MiB and 4096 are"))
}

/// `90m`, `36h`, `30d`.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no age: 90m, 36h and 30d are");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}
