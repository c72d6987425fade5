//! Everything that can go wrong, sorted by who must act.

use std::path::PathBuf;
use std::{fmt, io};

use crate::{DType, FileError, limits};

/// Why a checkpoint could not be read, or a tensor not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused. For the machine's owner.
    #[error(transparent)]
    File(#[from] FileError),

    /// The file is something else. For whoever supplied it; `found` is a sentence.
    #[error("{found}")]
    NotACheckpoint {
        /// What the file is instead, as a phrase: `this is a Git LFS pointer, ...`.
        found: String,
    },

    /// The container is damaged or contradicts itself. For whoever supplied the file.
    #[error("record `{record}`: {fault}")]
    Container {
        /// The record of the container.
        record: String,
        /// What is wrong with it.
        fault: String,
    },

    /// A pickle cannot be parsed.
    #[error("pickle `{record}` is broken at byte {offset}: {kind}")]
    Format {
        /// The record that holds the pickle.
        record: String,
        /// Offset of the opcode within the record.
        offset: usize,
        /// What is wrong there.
        kind: PickleFault,
    },

    /// A pickle names something that exists to run code. Nothing was run; nothing of the file is used.
    #[error("pickle `{record}` refers to `{global}` at byte {offset}, which could run code")]
    Unsafe {
        /// The record that holds the pickle.
        record: String,
        /// Offset of the opcode within the record.
        offset: usize,
        /// `module.name`.
        global: String,
    },

    /// One tensor cannot be used. For whoever supplied the file.
    #[error("tensor `{name}`: {fault}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// Why it cannot.
        fault: TensorFault,
    },

    /// The caller's own numbers do not make a tensor.
    #[error("{0}")]
    Layout(TensorFault),

    /// The file is no longer what it was when it was opened; bytes read before may not fit those read now. For the caller.
    #[error("`{}` was changed while it was being read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },

    /// The bytes of a [promised](crate::Storage::promised) storage were asked for. For the caller.
    #[error("a storage of {n_bytes} bytes that are still to be computed cannot be read")]
    Promised {
        /// Size of the storage.
        n_bytes: usize,
    },

    /// The writer that tensors are written to refused. For the machine's owner.
    #[error("cannot write")]
    Output {
        /// What it answered.
        source: io::Error,
    },

    /// A value that the format to be written has no place for. For the caller.
    #[error("`{name}`: {fault}")]
    Inexpressible {
        /// The value's dotted name.
        name: String,
        /// Why it cannot be written.
        fault: String,
    },

    /// The budget does not suffice.
    #[error("{what} needs {needed}, the limit is {limit}")]
    Limit {
        /// What was to be done.
        what: String,
        /// How much it takes.
        needed: u64,
        /// How much is allowed.
        limit: u64,
    },
}

impl Error {
    pub(crate) fn container(record: impl Into<String>, fault: impl Into<String>) -> Error {
        Error::Container {
            record: record.into(),
            fault: fault.into(),
        }
    }

    pub(crate) fn not_a_checkpoint(found: impl Into<String>) -> Error {
        Error::NotACheckpoint { found: found.into() }
    }
}

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "Display says it")]
pub enum PickleFault {
    UnknownOpcode(u8),
    Truncated {
        needed: usize,
        left: usize,
    },
    StackUnderflow,
    NoMark,
    MissingMemo(u64),
    MemoIndex(u64),
    BadText(&'static str),
    BadTarget {
        opcode: &'static str,
        found: &'static str,
    },
    OddItems,
    Protocol(u8),
    Frame {
        len: u64,
        left: usize,
    },
    FrameCrossed,
    FrameInFrame,
    TooDeep,
    Unsupported(&'static str),
    NoStop,
    LeftOver(usize),
    Trailing(usize),
    BadPersistentId(String),
}

impl fmt::Display for PickleFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PickleFault::UnknownOpcode(byte) => write!(f, "unknown opcode 0x{byte:02x}"),
            PickleFault::Truncated { needed, left } => {
                write!(f, "an operand of {needed} bytes, but {left} are left")
            }
            PickleFault::StackUnderflow => f.write_str("the stack is empty"),
            PickleFault::NoMark => f.write_str("no mark on the stack"),
            PickleFault::MissingMemo(index) => write!(f, "memo {index} was never stored"),
            PickleFault::MemoIndex(index) => write!(f, "memo {index} is out of any honest range"),
            PickleFault::BadText(what) => write!(f, "{what} is malformed"),
            PickleFault::BadTarget { opcode, found } => write!(f, "{opcode} on {found}"),
            PickleFault::OddItems => f.write_str("a key without a value"),
            PickleFault::Protocol(version) => write!(f, "protocol {version}, expected 0 to 5"),
            PickleFault::Frame { len, left } => write!(f, "a frame of {len} bytes, but {left} are left"),
            PickleFault::FrameCrossed => {
                f.write_str("a frame that ends elsewhere than an operand or the pickle")
            }
            PickleFault::TooDeep => write!(f, "values nested more than {} deep", limits::MAX_DEPTH),
            PickleFault::FrameInFrame => f.write_str("a frame begins before the last one ends"),
            PickleFault::Unsupported(what) => write!(f, "{what} has no meaning in a checkpoint"),
            PickleFault::NoStop => f.write_str("the pickle ends without STOP"),
            PickleFault::LeftOver(n) => write!(f, "{n} values on the stack at STOP, expected 1"),
            PickleFault::Trailing(n) => write!(f, "{n} bytes after STOP"),
            PickleFault::BadPersistentId(what) => write!(f, "persistent id is {what}"),
        }
    }
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "Display says it")]
pub enum TensorFault {
    /// Sizes whose product does not fit.
    Overflow {
        shape: Vec<usize>,
    },
    RankMismatch {
        shape: usize,
        stride: usize,
    },
    TooManyDimensions(usize),
    /// The view reaches past its storage; both in bytes.
    Outside {
        needed: usize,
        storage: usize,
        key: String,
    },
    /// The bytes given are not as many as the shape needs.
    ByteCount {
        dtype: DType,
        shape: Vec<usize>,
        expected: usize,
        found: usize,
    },
    NoSuchIndex {
        index: usize,
        size: usize,
    },
    TooFewDimensions {
        dim: usize,
        rank: usize,
    },
    Malformed(String),
    Unsupported(String),
    MissingStorage(String),
    /// A storage of a size that no storage has.
    StorageClaim {
        key: String,
        claim: String,
    },
    StorageSize {
        key: String,
        expected: u64,
        found: u64,
    },
    StorageDType {
        key: String,
        first: String,
        second: String,
    },
    /// Two entries that are flattened to one name: `a.b`, and `b` in `a`.
    DuplicateName,
    /// One dict was given the key twice.
    DuplicateKey,
}

impl TensorFault {
    /// Whether the file contradicts itself so that nothing of it deserves trust: a storage that is not what its reference claims.
    pub(crate) fn condemns_the_file(&self) -> bool {
        matches!(
            self,
            TensorFault::StorageSize { .. } | TensorFault::StorageClaim { .. }
        )
    }
}

impl fmt::Display for TensorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorFault::Overflow { shape } => {
                write!(f, "shape {shape:?} has more elements than can be addressed")
            }
            TensorFault::RankMismatch { shape, stride } => {
                write!(f, "{shape} sizes, but {stride} strides")
            }
            TensorFault::TooManyDimensions(rank) => write!(f, "{rank} dimensions, expected at most 64"),
            TensorFault::Outside { needed, storage, key } => {
                write!(f, "needs {needed} bytes of storage `{key}`, which has {storage}")
            }
            TensorFault::ByteCount {
                dtype,
                shape,
                expected,
                found,
            } => write!(f, "{dtype} of shape {shape:?} is {expected} bytes, found {found}"),
            TensorFault::NoSuchIndex { index, size } => {
                write!(f, "index {index} is out of range for a dimension of {size}")
            }
            TensorFault::TooFewDimensions { dim, rank } => {
                write!(f, "too many indices: dimension {dim} of a tensor with {rank}")
            }
            TensorFault::Malformed(what) => write!(f, "malformed: {what}"),
            TensorFault::Unsupported(what) => write!(f, "not read: {what}"),
            TensorFault::MissingStorage(key) => write!(f, "its storage `{key}` is not in the file"),
            TensorFault::StorageClaim { key, claim } => write!(f, "storage `{key}` claims {claim}"),
            TensorFault::StorageSize { key, expected, found } => {
                write!(f, "storage `{key}` has {found} bytes, expected {expected}")
            }
            TensorFault::StorageDType { key, first, second } => {
                write!(f, "storage `{key}` is {first} elsewhere and {second} here")
            }
            TensorFault::DuplicateKey => f.write_str("its dict has a second entry of this key"),
            TensorFault::DuplicateName => f.write_str("a second entry of this name"),
        }
    }
}
