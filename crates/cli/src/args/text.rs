//! How texts become network input and vectors.

use std::path::{Path, PathBuf};

use clap::Args;
use runtime::text::{Pooling, TextEncoder, TextOptions};

use crate::text;

/// Texts; what is not said comes from the files beside the model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Texts")]
pub(crate) struct TextArgs {
    /// A tokenizer.json, or the folder it is in [default: beside the backbone]
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a text at most; what is behind them is cut off [default: the model's]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// How tokens become one vector: mean, cls, max, mean-sqrt-len, weighted-mean, last-token, or several [default: the model's]
    #[arg(long, value_name = "POOLING", value_delimiter = ',')]
    text_pool: Vec<Pooling>,
    /// Whether vectors are made one long [default: the model's]
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// What is put in front of each text
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
}

impl TextArgs {
    /// The first of the flags that was given: a network for pictures has no use for it.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--tokenizer", self.tokenizer.is_some()),
            ("--max-length", self.max_length.is_some()),
            ("--text-pool", !self.text_pool.is_empty()),
            ("--normalize", self.normalize.is_some()),
            ("--prompt", self.prompt.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// The encoder for a backbone; what was assumed is said.
    pub(crate) fn open(&self, backbone: &Path) -> anyhow::Result<TextEncoder> {
        let options = TextOptions {
            max_length: self.max_length,
            pooling: (!self.text_pool.is_empty()).then(|| self.text_pool.clone()),
            normalize: self.normalize,
            prompt: self.prompt.clone(),
        };
        let encoder = match &self.tokenizer {
            Some(path) => TextEncoder::new(path, &options)?,
            None => TextEncoder::beside(backbone, &options)?,
        };
        encoder.notes().iter().for_each(|note| text::remark(note));
        Ok(encoder)
    }
}
