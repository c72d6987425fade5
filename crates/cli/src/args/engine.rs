//! What runs a network, and how.

use std::path::PathBuf;

use clap::Args;

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

/// How many pictures go through the network at once.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Pictures per run of the network
    #[arg(short, long, value_name = "N", default_value_t = runtime::job::DEFAULT_BATCH_SIZE)]
    pub(crate) batch_size: usize,
}

impl EngineArgs {
    pub(crate) fn device(&self) -> anyhow::Result<runtime::engine::Device> {
        Ok(runtime::engine::Device::Cpu)
    }

    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores).max(1)
    }
}
