//! What a comparison has found.

use super::options::FailOn;
use super::verdict::Verdict;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Side {
    A,
    B,
}

/// All differences between two state dicts. Lists are in the order of A, then of B.
#[derive(Debug, Clone)]
pub struct Diff {
    /// What kind of difference it is, in a word.
    pub verdict: Verdict,
    /// Whether nothing differs that was asked for: exit code 0.
    pub is_identical: bool,
    /// How many of each.
    pub counts: Counts,
    /// Other values under the same name, shape and type, or values of another type that are no conversion.
    pub changed: Vec<Changed>,
    /// In B only.
    pub added: Vec<OneSided>,
    /// In A only.
    pub removed: Vec<OneSided>,
    /// The same bytes under another name.
    pub renamed: Vec<Renamed>,
    /// Another type with the values that a conversion gives.
    pub cast: Vec<Recast>,
    /// Another shape under the same name.
    pub reshaped: Vec<Reshaped>,
    /// Matrices with rows and columns exchanged.
    pub transposed: Vec<Transposed>,
    /// Names that are one tensor in one state dict and several in the other.
    pub ties: Vec<TieChange>,
    /// Frozen in one and trainable in the other, where both have marks.
    pub marks: Vec<MarkChange>,
    /// The side without any mark, where the other has some.
    pub unmarked: Option<Side>,
    /// Changes of `__metadata__`, of torch's `_metadata`, and of other values in two checkpoints.
    pub metadata: Vec<MetadataChange>,
    /// How both lie on disk; no difference by itself.
    pub layout: OnDisk,
    /// Tensors with NaN, infinities or nothing but zeros, on either side.
    pub health: Vec<Health>,
    /// What became of [`DiffOptions::fail_on`](super::DiffOptions::fail_on).
    pub fail_on: Vec<FailOnReport>,
}

/// How many names are how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the length of the list of that name")]
pub struct Counts {
    /// Names with the same values in the same shape and type, or values within the tolerance.
    pub same: usize,
    /// Of these, names with other bits within the tolerance.
    pub within_tolerance: usize,
    pub changed: usize,
    pub added: usize,
    pub removed: usize,
    pub renamed: usize,
    pub cast: usize,
    pub reshaped: usize,
    pub transposed: usize,
    pub ties: usize,
    pub marks: usize,
}

/// A tensor with other values. Sums are over the elements that are finite on both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type in A as torch spells it.
    pub dtype_a: String,
    /// Element type in B.
    pub dtype_b: String,
    /// Part of the elements that differ beyond the tolerance; none where elements have not been counted (records).
    pub share_changed: Option<f64>,
    /// The largest `|b - a|`; none for types whose bits are no numbers here.
    pub max_abs: Option<f64>,
    /// `‖b - a‖ / ‖a‖`, Frobenius; none for integers, and where A is zero.
    pub rel: Option<f64>,
    /// Cosine of the angle between both; none for integers, and where one is zero.
    pub cos: Option<f64>,
    /// The most steps between neighbouring numbers of the type; none for integers and for different types.
    pub max_ulp: Option<u64>,
    /// Numerical rank of `b - a`, where it was looked for and is low.
    pub rank: Option<usize>,
    /// What differs of a record: its kind, a fact or a part.
    pub note: Option<String>,
}

/// A tensor that one has and the other has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneSided {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: String,
    /// Size of its elements.
    pub n_bytes: usize,
    /// A name of the same state dict that is the same tensor.
    pub tied_to: Option<String>,
}

/// The same bytes under another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Its name in A.
    pub from: String,
    /// Its name in B.
    pub to: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type in A.
    pub dtype_a: String,
    /// Element type in B; where it is another, B is what the conversion of A gives.
    pub dtype_b: String,
}

/// Which of two tensors of different types is a conversion of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CastProof {
    /// B is A converted, each number rounded to the nearest.
    OfA,
    /// A is B converted, and B has more than that.
    OfB,
    /// The values were not read.
    Unread,
}

/// Another element type with the values that a conversion gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recast {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type in A.
    pub from: String,
    /// Element type in B.
    pub to: String,
    /// Whose values they are.
    pub proof: CastProof,
}

/// Another shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshaped {
    /// Its name.
    pub name: String,
    /// Element type in A.
    pub dtype_a: String,
    /// Element type in B.
    pub dtype_b: String,
    /// Sizes in A.
    pub from: Vec<usize>,
    /// Sizes in B.
    pub to: Vec<usize>,
    /// Whether all elements are the same in the same order.
    pub is_view: bool,
}

/// A matrix of which the other is the transpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transposed {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Sizes in A; those in B are the reverse.
    pub shape: Vec<usize>,
}

/// Names that share one tensor on one side only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TieChange {
    /// The names, of which the other side has all.
    pub names: Vec<String>,
    /// Where they are one tensor.
    pub tied_in: Side,
}

/// A tensor that is frozen in one and trainable in the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkChange {
    /// Its name.
    pub name: String,
    /// Where it is trainable.
    pub trainable_in: Side,
}

/// A value that is no tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataChange {
    /// Its name in the file.
    pub key: String,
    /// What A has.
    pub a: Option<String>,
    /// What B has.
    pub b: Option<String>,
}

/// How two files hold their tensors: first A, then B.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDisk {
    /// The container, with the number of shards.
    pub format: [String; 2],
    /// Where in a checkpoint the state dict was found.
    pub wrapper: [String; 2],
    /// Size of all elements of the names compared.
    pub n_bytes: [usize; 2],
}

/// What is remarkable about a tensor's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its name.
    pub name: String,
    /// Its values in A, if A has it.
    pub a: Option<Census>,
    /// Its values in B, if B has it.
    pub b: Option<Census>,
}

/// Values of one tensor that are no finite numbers; of complex numbers, both parts count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// NaN.
    pub n_nan: u64,
    /// Positive and negative infinities.
    pub n_inf: u64,
    /// Whether there are elements, and all are zero.
    pub is_zero: bool,
}

/// Whether what must not have happened has happened.
#[derive(Debug, Clone)]
pub struct FailOnReport {
    /// What was asked.
    pub asked: FailOn,
    /// How many names of A or B match the pattern.
    pub n_matched: usize,
    /// Names of differences of that kind that match, by A's names; an added or renamed tensor also by B's.
    pub found: Vec<String>,
}
