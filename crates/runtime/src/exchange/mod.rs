//! Features in the layouts of other programs.
//!
//! clip-retrieval's, which its indexer, `embedding-reader` and much else read: partitions `img_emb/img_emb_<n>.npy`,
//! `text_emb/text_emb_<n>.npy` and `metadata/metadata_<n>.parquet`, whose rows belong together by their order.
//!
//! Source: clip-retrieval 2.45 `clip_inference/writer.py`, embedding-reader 1.8 `numpy_reader.py`.

mod read;
mod write;

pub use read::{Embeddings, read_clip_retrieval};
pub use write::{ClipRetrievalWriter, Precision, WriteOptions};

/// What features are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// `img_emb`, with `image_path` in the metadata.
    Images,
    /// `text_emb`, with `caption` in the metadata.
    Texts,
}

impl Modality {
    /// The folder, and what its files begin with.
    fn folder(self) -> &'static str {
        match self {
            Modality::Images => "img_emb",
            Modality::Texts => "text_emb",
        }
    }

    /// The column that names a row.
    fn name_column(self) -> &'static str {
        match self {
            Modality::Images => "image_path",
            Modality::Texts => "caption",
        }
    }
}

#[cfg(test)]
mod tests;
