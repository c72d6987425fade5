//! What runs a network, and how.

use std::path::PathBuf;

use clap::Args;
use runtime::engine::{Device, Engine};

use crate::text;
use crate::usage::UsageError;

/// Which ONNX Runtime, how many threads.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// The ONNX Runtime library to use, or the folder it is in (also: ORT_DYLIB_PATH)
    #[arg(long, value_name = "PATH")]
    pub(crate) ort_lib: Option<PathBuf>,
    /// What runs the network: cpu, cuda or cuda:N (never another than is asked for)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Device,
    /// Let a GPU multiply in TF32, which is faster and less exact; such features are kept apart in the cache
    #[arg(long)]
    pub(crate) tf32: bool,
    /// Threads [default: all cores]
    #[arg(short = 'j', long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// How many pictures go through the network at once.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Pictures per run of the network
    #[arg(short, long, value_name = "N", default_value_t = runtime::job::DEFAULT_BATCH_SIZE)]
    pub(crate) batch_size: usize,
}

impl EngineArgs {
    /// The device, TF32 as asked for.
    pub(crate) fn device(&self) -> Result<Device, UsageError> {
        self.device
            .with_tf32(self.tf32)
            .map_err(|error| UsageError::new(error).with_hint("--device cuda, or leave out --tf32"))
    }

    /// Loads ONNX Runtime, checks that the device is there, and says what will be used.
    pub(crate) fn open(&self) -> anyhow::Result<(Engine, Device)> {
        let device = self.device()?;
        let engine = Engine::open(self.ort_lib.as_deref())?;
        text::remark(&format!("running on {}", engine.describe(device)?));
        Ok((engine, device))
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(all_cores).max(1)
    }
}

pub(crate) fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
