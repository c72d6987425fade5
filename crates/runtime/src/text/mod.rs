//! Texts to vectors with a sentence-transformers export: tokens as the model's own `tokenizer.json` says, batches in
//! which no text's value depends on its neighbours, and the pooling that the model was trained with.
//!
//! A text's way: [`TextEncoder::encode`] makes tokens of it, [`Buckets`] puts it among others of about its length,
//! [`TextGraph::inputs`] names a batch's arrays as the graph does, and [`TextEncoder::pool`] makes one row per text of
//! what the graph gives for its tokens.
//!
//! Deliberately absent: slow tokenizers (`vocab.txt` without `tokenizer.json`), chat templates, pairs of texts, `Dense`
//! layers behind the pooling, and training a tokenizer.

mod batch;
mod config;
mod graph;
mod pool;
mod recipe;
#[cfg(test)]
mod tests;
mod tokenize;

pub use batch::{Buckets, TextBatch};
pub use graph::TextGraph;
pub use pool::Pooling;
pub use recipe::{TextOptions, TextRecipe};
pub use tokenize::{TextEncoder, TokenIds, utf8};
