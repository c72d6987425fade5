//! Texts of about the same length, together in batches of one shape.
//!
//! A batch's shape decides which kernels run and in which order they add. For a row to be the same in every run it must
//! depend on the text alone: its length rounded up to a multiple of 16 is the batch's, and the number of texts in a batch
//! follows from that; what is missing of a batch is filled up.

use std::collections::BTreeMap;

use super::graph::TextGraph;
use super::tokenize::{TextEncoder, TokenIds};
use crate::error::Error;

/// Lengths are rounded up to a multiple of this.
pub(super) const LEN_STEP: usize = 16;
/// Tokens in a batch at most: what a batch's activations cost follows from it.
const MAX_TOKENS: usize = 16 * 1024;

/// Texts that wait for others of their length. `K` is what the caller calls a text.
#[derive(Debug)]
pub struct Buckets<K> {
    waiting: BTreeMap<usize, Vec<(K, TokenIds)>>,
    max_texts: usize,
    fixed_batch: Option<usize>,
    fixed_len: Option<usize>,
    step: usize,
    max_len: usize,
    pad_id: u32,
}

/// A batch of one shape, ready for a graph.
#[derive(Debug)]
pub struct TextBatch<K> {
    /// What the caller calls the texts, in the order of the first rows; rows behind them are filling.
    pub keys: Vec<K>,
    /// Texts and tokens, filling included.
    pub(super) shape: [usize; 2],
    pub(super) ids: Vec<i64>,
    pub(super) mask: Vec<i64>,
    pub(super) type_ids: Vec<i64>,
    pub(super) positions: Vec<i64>,
    /// Of each text: how many tokens it has, and from which on they are pooled.
    pub(super) spans: Vec<(usize, usize)>,
}

impl<K> TextBatch<K> {
    /// Texts and tokens of the arrays, filling included.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How many tokens each text has.
    pub fn n_tokens(&self) -> impl ExactSizeIterator<Item = usize> {
        self.spans.iter().map(|&(n_tokens, _)| n_tokens)
    }
}

impl<K> Buckets<K> {
    /// Empty ones, for at most `max_texts` texts in a batch unless the graph fixes their number.
    ///
    /// # Errors
    /// [`Error::Usage`] where texts may be longer than the graph takes them.
    pub fn new(encoder: &TextEncoder, graph: &TextGraph, max_texts: usize) -> Result<Buckets<K>, Error> {
        let max_len = encoder.recipe().max_length();
        if let Some(len) = graph.fixed_len()
            && len < max_len
        {
            return Err(Error::Usage(format!(
                "the network takes texts of {len} tokens, and {max_len} are allowed"
            )));
        }
        // A graph's file may claim any size.
        const MAX_FIXED: usize = 1 << 24;
        let (batch, len) = (
            graph.fixed_batch().unwrap_or(1),
            graph.fixed_len().unwrap_or(max_len),
        );
        if batch.checked_mul(len).is_none_or(|n_tokens| n_tokens > MAX_FIXED) {
            return Err(Error::Usage(format!(
                "the network takes {batch} texts of {len} tokens at once, which is too much"
            )));
        }
        Ok(Buckets {
            waiting: BTreeMap::new(),
            max_texts: max_texts.max(1),
            fixed_batch: graph.fixed_batch(),
            fixed_len: graph.fixed_len(),
            // Without a mask padding would be read as text.
            step: if graph.has_mask() { LEN_STEP } else { 1 },
            max_len,
            pad_id: encoder.pad_id(),
        })
    }

    /// The length to which a text of `n_tokens` is padded.
    fn padded(&self, n_tokens: usize) -> usize {
        let len = n_tokens.max(1).next_multiple_of(self.step);
        // The longest may be no multiple, and positions behind it may not exist in the model.
        self.fixed_len
            .unwrap_or_else(|| len.min(self.max_len.max(n_tokens)))
    }

    /// How many texts of a length make a batch.
    fn n_texts(&self, len: usize) -> usize {
        self.fixed_batch
            .unwrap_or_else(|| (MAX_TOKENS / len.max(1)).clamp(1, self.max_texts))
    }

    /// Adds a text; returns a batch where it filled one.
    pub fn push(&mut self, key: K, tokens: TokenIds) -> Option<TextBatch<K>> {
        let len = self.padded(tokens.ids.len());
        let n_texts = self.n_texts(len);
        let texts = self.waiting.entry(len).or_default();
        texts.push((key, tokens));
        if texts.len() < n_texts {
            return None;
        }
        let texts = std::mem::take(texts);
        Some(self.batch(len, texts))
    }

    /// A batch of what waits, the shortest first, filled up to its shape; none where nothing waits.
    pub fn drain(&mut self) -> Option<TextBatch<K>> {
        loop {
            let (len, texts) = self.waiting.pop_first()?;
            if !texts.is_empty() {
                return Some(self.batch(len, texts));
            }
        }
    }

    /// How many texts wait.
    pub fn n_waiting(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    fn batch(&self, len: usize, texts: Vec<(K, TokenIds)>) -> TextBatch<K> {
        let n_texts = self.n_texts(len);
        let numel = n_texts * len;
        let mut batch = TextBatch {
            keys: Vec::with_capacity(texts.len()),
            shape: [n_texts, len],
            ids: vec![i64::from(self.pad_id); numel],
            mask: vec![0; numel],
            type_ids: vec![0; numel],
            positions: (0..n_texts)
                .flat_map(|_| (0..len).map(|position| position as i64))
                .collect(),
            spans: Vec::with_capacity(texts.len()),
        };
        for (row, (key, tokens)) in texts.into_iter().enumerate() {
            let n_tokens = tokens.ids.len();
            for (position, (&id, &type_id)) in tokens.ids.iter().zip(&tokens.type_ids).enumerate() {
                let at = row * len + position;
                batch.ids[at] = id.into();
                batch.type_ids[at] = type_id.into();
                batch.mask[at] = 1;
            }
            batch.keys.push(key);
            batch.spans.push((n_tokens, tokens.pool_from));
        }
        for row in batch.keys.len()..n_texts {
            // A row in which nothing may be attended to would divide by zero.
            batch.mask[row * len] = 1;
        }
        batch
    }
}
