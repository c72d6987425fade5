//! Budgets. What a file can make this crate allocate is bounded by the size of the file, or by a constant here.
//!
//! The pickle machine needs no constant of its own: each opcode makes at most two nodes and each node or stack slot costs the file at
//! least one byte, so that its memory is linear in the pickle by construction.

/// Deflate cannot expand more than about 1,032 to 1; a member that claims more is a bomb. [zlib's technical details]
pub(crate) const MAX_INFLATE_RATIO: u64 = 1_100;

/// A pickle is at most 1 GiB, about 12 million tensors; so that with its unescaped texts it can be addressed by 32 bits.
pub(crate) const MAX_PICKLE_BYTES: usize = 1 << 30;

/// Dimensions of a tensor, as torch bounds them.
pub(crate) const MAX_RANK: usize = 64;

/// A view may claim more elements than its storage holds (`expand`). Up to this many bytes it is gathered without asking.
pub(crate) const FREE_EXPANSION_BYTES: usize = 1 << 30;

/// Beyond that, a gathered view may be this many times larger than its storage.
pub(crate) const MAX_EXPANSION: usize = 64;

/// How many values a walk over a pickle of `n_bytes` may visit.
///
/// A value is visited once under each of its names, so that aliases multiply: a dict of dicts can name its leaf 2^50 times in a kilobyte.
/// Honest files visit a value a few times at most, and each value has cost a byte.
pub(crate) fn max_visits(n_bytes: usize) -> usize {
    n_bytes.saturating_mul(4).saturating_add(1 << 16)
}

/// How many visits a value with `n_text_bytes` of name and text counts for: a text of a megabyte is repeated by an alias of two bytes.
pub(crate) fn visits_for(n_text_bytes: usize) -> usize {
    n_text_bytes.checked_div(16).unwrap_or(0).saturating_add(1)
}

/// The longest name of a module or of something in it; the longest that have been seen are below 200 bytes.
pub(crate) const MAX_GLOBAL_BYTES: usize = 1 << 17;

/// How often state may be built onto an object. pickle does it once.
pub(crate) const MAX_STATES: usize = 8;

/// How deep values may be nested, so that names stay bounded too.
pub(crate) const MAX_DEPTH: usize = 1_000;
