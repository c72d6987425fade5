//! Everything but the text and the network that decides a text's vector.

use serde::{Deserialize, Serialize};

use super::batch::LEN_STEP;
use super::config::FolderConfig;
use super::pool::Pooling;

/// What a caller asks for instead of what the model's files say.
#[derive(Debug, Clone, Default)]
pub struct TextOptions {
    /// Tokens of a text at most, special ones included; what is behind them is cut off.
    pub max_length: Option<usize>,
    /// How tokens become one vector.
    pub pooling: Option<Vec<Pooling>>,
    /// Whether vectors are made one long.
    pub normalize: Option<bool>,
    /// What is put in front of each text.
    pub prompt: Option<String>,
}

/// How texts become vectors: part of a cache's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRecipe {
    /// BLAKE3 of `tokenizer.json`'s content, whatever the order and the spacing of it, padding and truncation left out.
    tokenizer: String,
    /// The token that stands where there is none; some graphs count what is not it. Entries of before do not say.
    #[serde(default)]
    pad_id: Option<u32>,
    lowercase: bool,
    prompt: String,
    max_length: usize,
    truncate_left: bool,
    /// Lengths of batches are multiples of this: padding changes the last bits of some networks.
    length_step: usize,
    pooling: Vec<Pooling>,
    skip_prompt: bool,
    normalize: bool,
}

/// Where nothing says how long a text may be.
const DEFAULT_MAX_LENGTH: usize = 512;

impl TextRecipe {
    /// Options before files before defaults; what was assumed is said in `notes`.
    pub(super) fn new(
        (tokenizer, pad_id): (String, u32),
        in_tokenizer: Option<usize>,
        config: &FolderConfig,
        options: &TextOptions,
        notes: &mut Vec<String>,
    ) -> TextRecipe {
        let max_length = options.max_length.or(config.max_length).or(in_tokenizer);
        let max_length = max_length.unwrap_or_else(|| {
            notes.push(format!(
                "nothing says how long a text may be: {DEFAULT_MAX_LENGTH} tokens"
            ));
            DEFAULT_MAX_LENGTH
        });
        let pooling = options.pooling.clone().filter(|modes| !modes.is_empty());
        let pooling = pooling.or_else(|| config.pooling.clone()).unwrap_or_else(|| {
            notes.push("nothing says how tokens are pooled: the mean of them".to_owned());
            vec![Pooling::Mean]
        });
        TextRecipe {
            tokenizer,
            pad_id: Some(pad_id),
            lowercase: config.lowercase,
            prompt: options
                .prompt
                .clone()
                .or_else(|| config.prompt.clone())
                .unwrap_or_default(),
            max_length,
            truncate_left: config.truncate_left,
            length_step: LEN_STEP,
            pooling,
            skip_prompt: config.skip_prompt,
            normalize: options.normalize.unwrap_or(config.normalize),
        }
    }

    /// Tokens of a text at most, special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// How tokens become one vector; several are put after one another.
    pub fn pooling(&self) -> &[Pooling] {
        &self.pooling
    }

    /// Whether vectors are made one long.
    pub fn normalize(&self) -> bool {
        self.normalize
    }

    /// What is put in front of each text.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    pub(super) fn pad_id(&self) -> u32 {
        self.pad_id.unwrap_or(0)
    }

    pub(super) fn lowercase(&self) -> bool {
        self.lowercase
    }

    pub(super) fn truncate_left(&self) -> bool {
        self.truncate_left
    }

    pub(super) fn skip_prompt(&self) -> bool {
        self.skip_prompt && !self.prompt.is_empty()
    }
}
