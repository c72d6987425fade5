//! Texts to tokens, as the model's own `tokenizer.json` says.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, TruncationStrategy};
use tokenizers::{PostProcessor, Tokenizer};

use super::batch::TextBatch;
use super::config::{FolderConfig, bad, read};
use super::pool::{normalize, pool_text};
use super::recipe::{TextOptions, TextRecipe};
use crate::contained::contain;
use crate::error::Error;

/// A text beyond this is refused: tokenizing takes a hundred times its size before the rest is cut off.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// A tokenizer with everything that makes vectors of texts; shared by threads.
pub struct TextEncoder {
    path: PathBuf,
    tokenizer: Tokenizer,
    recipe: TextRecipe,
    n_prompt_tokens: usize,
    notes: Vec<String>,
}

/// A text as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// The tokens, special ones included.
    pub ids: Vec<u32>,
    /// The segment of each.
    pub type_ids: Vec<u32>,
    /// The first token that is pooled; above 0 where a prompt's are not.
    pub pool_from: usize,
}

impl fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextEncoder")
            .field("path", &self.path)
            .field("recipe", &self.recipe)
            .finish_non_exhaustive()
    }
}

/// The text that `bytes` are.
///
/// # Errors
/// Where they are not UTF-8: where that shows first.
pub fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map_err(|error| format!("the text is not UTF-8: byte {} fits nothing", error.valid_up_to()))
}

impl TextEncoder {
    /// Reads a model folder, or a `tokenizer.json` with what lies beside it.
    ///
    /// # Errors
    /// [`Error::BadFile`] where a file is damaged, the tokenizer is of an unknown kind, or a layer follows the pooling
    /// that is not done here; [`Error::Usage`] where the length leaves no room for a token.
    pub fn new(folder_or_tokenizer: &Path, options: &TextOptions) -> Result<TextEncoder, Error> {
        let path = tokenizer_path(folder_or_tokenizer)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let config = FolderConfig::read(folder)?;
        if let (Some(layer), None) = (&config.unknown_layer, &options.pooling) {
            return Err(bad(
                &folder.join("modules.json"),
                format!("its `{layer}` layer behind the network is not supported"),
            ));
        }
        let bytes = read(&path)?;
        let mut content: Value =
            serde_json::from_slice(&bytes).map_err(|error| bad(&path, format!("it is not JSON: {error}")))?;
        let unknown = |error: String| bad(&path, format!("it is no tokenizer that is known here: {error}"));
        check_template(&content["post_processor"]).map_err(unknown)?;
        let mut tokenizer = guarded(|| Tokenizer::from_bytes(&bytes)).map_err(unknown)?;
        let in_tokenizer = content["truncation"]["max_length"]
            .as_u64()
            .and_then(|n| usize::try_from(n).ok());
        let pad_id = pad_id(&content, &config, &tokenizer);
        let mut notes = Vec::new();
        let recipe = TextRecipe::new(
            (digest(&mut content), pad_id),
            in_tokenizer,
            &config,
            options,
            &mut notes,
        );
        set_up(&mut tokenizer, &recipe)?;
        let mut encoder = TextEncoder {
            path,
            tokenizer,
            recipe,
            n_prompt_tokens: 0,
            notes,
        };
        if encoder.recipe.skip_prompt() {
            encoder.n_prompt_tokens = encoder.count_prompt()?;
        }
        Ok(encoder)
    }

    /// As [`TextEncoder::new`], with the files that lie beside a model, or above it where it lies in a folder of its own
    /// (`onnx/model.onnx`).
    ///
    /// # Errors
    /// As [`TextEncoder::new`]; [`Error::BadFile`] where there is no tokenizer.
    pub fn beside(model: &Path, options: &TextOptions) -> Result<TextEncoder, Error> {
        let folder = model.parent().unwrap_or(Path::new(""));
        let above = std::path::absolute(folder)
            .ok()
            .and_then(|folder| folder.parent().map(Path::to_owned));
        match above {
            Some(above)
                if !folder.join("tokenizer.json").exists() && above.join("tokenizer.json").exists() =>
            {
                TextEncoder::new(&above, options)
            }
            _ => TextEncoder::new(folder, options),
        }
    }

    /// How texts become vectors.
    pub fn recipe(&self) -> &TextRecipe {
        &self.recipe
    }

    /// The `tokenizer.json` that is used.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the files did not say and was assumed, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The token that stands where there is none.
    pub fn pad_id(&self) -> u32 {
        self.recipe.pad_id()
    }

    /// Makes tokens of a text.
    ///
    /// # Errors
    /// Why it has none, in one sentence: it is empty, too long, or nothing in it is known.
    pub fn encode(&self, text: &str) -> Result<TokenIds, String> {
        if text.chars().all(char::is_whitespace) {
            return Err("the text is empty".to_owned());
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!(
                "the text has {} bytes, and {MAX_TEXT_BYTES} are the most",
                text.len()
            ));
        }
        let tokens = self.tokens(&format!("{}{text}", self.recipe.prompt()))?;
        if tokens.ids.len() <= tokens.pool_from {
            return Err("no token of the text is left behind the prompt".to_owned());
        }
        Ok(tokens)
    }

    fn tokens(&self, text: &str) -> Result<TokenIds, String> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, true))
            .map_err(|error| format!("the tokenizer fails on the text: {error}"))?;
        if encoding.get_ids().is_empty() {
            return Err("the text has no token that the model knows".to_owned());
        }
        Ok(TokenIds {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            pool_from: self.n_prompt_tokens,
        })
    }

    /// How many tokens the prompt alone has, a special one at its end not counted: as sentence-transformers counts.
    fn count_prompt(&self) -> Result<usize, Error> {
        let tokens = self
            .tokens(self.recipe.prompt())
            .map_err(|reason| bad(&self.path, format!("of the prompt: {reason}")))?;
        let vocabulary = self.tokenizer.get_added_vocabulary();
        let ends_special = tokens
            .ids
            .last()
            .and_then(|&id| self.tokenizer.id_to_token(id))
            .is_some_and(|token| vocabulary.is_special_token(&token));
        Ok(tokens.ids.len() - usize::from(ends_special))
    }

    /// One row per text, after one another, of what a graph gave for `batch`: `[texts, tokens, D]` is pooled,
    /// `[texts, D]` is taken as it is; both are made one long where the recipe says so.
    ///
    /// # Errors
    /// Where the shape is neither.
    pub fn pool<K>(&self, shape: &[usize], values: &[f32], batch: &TextBatch<K>) -> Result<Vec<f32>, String> {
        let [n_texts, len] = batch.shape;
        let mut rows = Vec::new();
        let row_len = match *shape {
            [n, dim] if n == n_texts && dim > 0 && values.len() == n * dim => {
                rows.extend_from_slice(&values[..batch.keys.len() * dim]);
                dim
            }
            [n, l, dim] if (n, l) == (n_texts, len) && dim > 0 && values.len() == n * l * dim => {
                for (text, &(n_tokens, from)) in values.chunks_exact(l * dim).zip(&batch.spans) {
                    pool_text(
                        self.recipe.pooling(),
                        &text[..n_tokens * dim],
                        dim,
                        from,
                        &mut rows,
                    );
                }
                self.recipe.pooling().len() * dim
            }
            _ => {
                return Err(format!(
                    "{shape:?} are neither a row per text nor per token of {n_texts} texts of {len} tokens"
                ));
            }
        };
        if self.recipe.normalize() {
            rows.chunks_exact_mut(row_len).for_each(normalize);
        }
        Ok(rows)
    }
}

/// Does what the `tokenizers` crate may panic in, since it takes much of a file at its word.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // What is borrowed is only read, or thrown away after a panic.
    match contain(work) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its parts do not fit together".to_owned()),
    }
}

/// A template's special tokens are defined: the crate takes that for granted, and files made by hand forget it.
fn check_template(processor: &Value) -> Result<(), String> {
    if let Some(processors) = processor["processors"].as_array() {
        return processors.iter().try_for_each(check_template);
    }
    if processor["type"] != "TemplateProcessing" {
        return Ok(());
    }
    let pieces = ["single", "pair"]
        .iter()
        .flat_map(|kind| processor[kind].as_array());
    for piece in pieces.flatten() {
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && processor["special_tokens"].get(token).is_none()
        {
            return Err(format!("its template uses `{token}`, which it does not define"));
        }
    }
    Ok(())
}

fn tokenizer_path(given: &Path) -> Result<PathBuf, Error> {
    if !given.is_dir() {
        return Ok(given.to_owned());
    }
    let path = given.join("tokenizer.json");
    if path.is_file() {
        return Ok(path);
    }
    let slow = [
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "vocab.json",
    ];
    let reason = match slow.iter().find(|name| given.join(name).is_file()) {
        Some(name) => format!("there is a `{name}` in it and no `tokenizer.json`, which alone is read"),
        None => "there is no `tokenizer.json` in it".to_owned(),
    };
    Err(bad(given, reason))
}

/// Padding and truncation are done by the recipe, not by what the file says.
fn set_up(tokenizer: &mut Tokenizer, recipe: &TextRecipe) -> Result<(), Error> {
    let n_special = tokenizer
        .get_post_processor()
        .map_or(0, |processor| processor.added_tokens(false));
    if recipe.max_length() <= n_special {
        return Err(Error::Usage(format!(
            "texts of at most {} tokens hold no word, for the tokenizer adds {n_special} of its own",
            recipe.max_length()
        )));
    }
    tokenizer.with_padding(None);
    let truncation = TruncationParams {
        direction: if recipe.truncate_left() {
            TruncationDirection::Left
        } else {
            TruncationDirection::Right
        },
        max_length: recipe.max_length(),
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    };
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(|error| Error::Usage(error.to_string()))?;
    if recipe.lowercase() {
        let mut normalizers = vec![NormalizerWrapper::Lowercase(Lowercase)];
        normalizers.extend(tokenizer.get_normalizer().cloned());
        let normalizer = NormalizerWrapper::Sequence(Sequence::new(normalizers));
        tokenizer
            .with_normalizer(Some(normalizer))
            .map_err(|error| Error::Usage(error.to_string()))?;
    }
    Ok(())
}

/// The padding token; its number hardly matters where the graph is given a mask, but some graphs count what is not it.
fn pad_id(content: &Value, config: &FolderConfig, tokenizer: &Tokenizer) -> u32 {
    let in_tokenizer = || {
        let id = content["padding"]["pad_id"].as_u64()?;
        u32::try_from(id).ok()
    };
    let named = config.pad_token.as_deref();
    named
        .and_then(|token| tokenizer.token_to_id(token))
        .or_else(in_tokenizer)
        .or(config.pad_id)
        .or_else(|| {
            ["[PAD]", "<pad>"]
                .iter()
                .find_map(|token| tokenizer.token_to_id(token))
        })
        .unwrap_or(0)
}

/// BLAKE3 of a tokenizer's content with sorted keys; how it pads and truncates is the recipe's.
fn digest(content: &mut Value) -> String {
    if let Some(parts) = content.as_object_mut() {
        parts.remove("padding");
        parts.remove("truncation");
    }
    content.sort_all_objects();
    let canonical = serde_json::to_vec(content).expect("a value is JSON");
    blake3::hash(&canonical).to_hex().to_string()
}
