//! Everything that can go wrong with files and names.

use std::path::{Path, PathBuf};

use pth::{DType, FileError};

use crate::plan::PlanError;

/// Why a file could not be read or written, or an operation not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused. For the machine's owner.
    #[error(transparent)]
    File(#[from] FileError),

    /// A checkpoint could not be read.
    #[error("cannot read `{}`", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        source: pth::Error,
    },

    /// A safetensors file breaks the format's rules.
    #[error("`{}` is not a valid safetensors file: {fault}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        fault: String,
    },

    /// A set of files with an index is not whole, or not what the index says.
    #[error("the set of `{}` cannot be read: {fault}", path.display())]
    Sharded {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },

    /// A distributed checkpoint is not whole, or not one.
    #[error("the distributed checkpoint `{}` cannot be read: {fault}", path.display())]
    Dcp {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },

    /// A folder holds several files of which none is the usual one.
    #[error("`{}` holds {}, and none of them is the usual one", path.display(), list(names))]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// The files.
        names: Vec<String>,
    },

    /// safetensors has no such element type.
    #[error("tensor `{name}` is {dtype}, which safetensors cannot express")]
    Inexpressible {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },

    /// safetensors has no such kind of tensor.
    #[error("tensor `{name}` is {kind}, which safetensors cannot express")]
    Composed {
        /// The tensor.
        name: String,
        /// What it is: `quantized`, `sparse_coo`.
        kind: &'static str,
    },

    /// A name that safetensors keeps for itself.
    #[error("a tensor cannot be called `{0}` in safetensors")]
    ReservedName(String),

    /// The tensors are so many that the header would be larger than the format allows.
    #[error("the safetensors header needs {needed} bytes, the format allows {limit}")]
    HeaderTooLarge {
        /// Its size.
        needed: usize,
        /// What the format allows.
        limit: usize,
    },

    /// A new header does not fit in the place of the old one; nothing was written.
    #[error("the new header of `{}` needs {needed} bytes, and the file has room for {available}", path.display())]
    HeaderFull {
        /// The file.
        path: PathBuf,
        /// Bytes of the new header.
        needed: usize,
        /// Bytes of the old one, with its padding.
        available: usize,
    },

    /// A crash has left a header half-written; the old one is kept.
    #[error("an edit of `{}` was not finished; its old header is kept in `{}`", path.display(), backup.display())]
    UnfinishedEdit {
        /// The file.
        path: PathBuf,
        /// What keeps the old header.
        backup: PathBuf,
    },

    /// A name that no tensor has.
    #[error("there is no tensor `{0}`")]
    UnknownTensor(String),

    /// A tensor would get two names; nothing was renamed.
    #[error("`{name}` cannot be called `{first}` and `{second}`")]
    TwoNames {
        /// The tensor.
        name: String,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },

    /// A tensor's bytes could not be made.
    #[error("tensor `{name}`")]
    Tensor {
        /// The tensor.
        name: String,
        /// Why not.
        source: pth::Error,
    },

    /// A rule that no name obeys is most likely a typing mistake.
    #[error("no tensor name {rule}")]
    NoMatch {
        /// The rule, as the end of the sentence: ``starts with `module.` ``.
        rule: String,
    },

    /// Two tensors would get one name; nothing was renamed.
    #[error("`{first}` and `{second}` would both be called `{name}`")]
    Collision {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// The name.
        name: String,
    },

    /// A plan that cannot be read, or a step of it that cannot be done.
    #[error(transparent)]
    Plan(Box<PlanError>),

    /// What verbs of values need, and a record is not.
    #[error("tensor `{name}` is {kind}, which is not one array")]
    NotOneArray {
        /// The tensor.
        name: String,
        /// What it is: `quantized`, `sparse_coo`.
        kind: &'static str,
    },

    /// Tensors that are to become one are not alike.
    #[error("`{first}` is {first_is}, but `{second}` is {second_is}")]
    Disagree {
        /// The one.
        first: String,
        /// Its type and shape.
        first_is: String,
        /// The other.
        second: String,
        /// Its type and shape.
        second_is: String,
    },

    /// An input of a merge lacks what another has.
    #[error("tensor `{name}` of `{has}` is missing in `{lacks}`")]
    MissingInInput {
        /// The tensor.
        name: String,
        /// An input that has it.
        has: String,
        /// The input that does not.
        lacks: String,
    },

    /// It is not known what a layer would draw for a tensor of that name.
    #[error("no default initialiser is known for `{name}`: name one")]
    NoDefault {
        /// The tensor.
        name: String,
    },

    /// An initialiser that counts inputs and outputs needs a matrix.
    #[error("`{name}` {shape:?} has no inputs and outputs to count, which takes two dimensions")]
    NoFans {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },

    /// A state dict does not fit a model; in torch's own words.
    #[error("{0}")]
    Load(String),

    /// What a plan expects is not so.
    #[error("{0}")]
    Unexpected(String),

    /// State dicts that cannot be merged so.
    #[error("{0}")]
    Merge(String),

    /// NaN where none may be.
    #[error("tensor `{name}`{} holds NaN", input.as_ref().map(|input| format!(" of `{input}`")).unwrap_or_default())]
    NotANumber {
        /// The tensor.
        name: String,
        /// The file it is in, where that is known.
        input: Option<String>,
    },

    /// A value could not be made; the caller knows of which tensor.
    #[error("a tensor's values could not be read")]
    Computed(#[source] pth::Error),

    /// Values of this type mean nothing without a scale, or are no numbers.
    #[error("values of {0} are not calculated with")]
    NotCalculated(DType),

    /// A tensor is made of itself too often to be computed.
    #[error("a tensor is made of too many others")]
    TooEntangled,

    /// A tensor of the output cannot be made.
    #[error("tensor `{name}` cannot be made: {cause}")]
    CannotBeMade {
        /// The tensor.
        name: String,
        /// Why not.
        cause: String,
    },

    /// The work was stopped from outside.
    #[error("interrupted")]
    Interrupted,

    /// A tensor cannot be converted to the type asked for.
    #[error("tensor `{name}` is {from}, which is not converted to {to}")]
    Cast {
        /// The tensor.
        name: String,
        /// Its type.
        from: DType,
        /// The type asked for.
        to: DType,
    },
}

/// `a`, `b` and `c`
fn list(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

impl Error {
    /// Whether it is about a file, so that the plan that names the file has nothing to add.
    pub(crate) fn is_of_a_file(&self) -> bool {
        matches!(
            self,
            Error::File(_)
                | Error::Checkpoint { .. }
                | Error::Safetensors { .. }
                | Error::Sharded { .. }
                | Error::Dcp { .. }
                | Error::Ambiguous { .. }
                | Error::UnfinishedEdit { .. }
        )
    }

    /// The error with the name of the tensor whose making it ended.
    pub(crate) fn of_tensor(self, name: &str) -> Error {
        match self {
            Error::Computed(source) => Error::Tensor {
                name: name.to_owned(),
                source,
            },
            error @ (Error::NotCalculated(_) | Error::TooEntangled) => Error::CannotBeMade {
                name: name.to_owned(),
                cause: error.to_string(),
            },
            error => error,
        }
    }

    pub(crate) fn sharded(path: &Path, fault: impl Into<String>) -> Error {
        Error::Sharded {
            path: path.to_owned(),
            fault: fault.into(),
        }
    }

    pub(crate) fn safetensors(path: &Path, fault: impl Into<String>) -> Error {
        Error::Safetensors {
            path: path.to_owned(),
            fault: fault.into(),
        }
    }
}
