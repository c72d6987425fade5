//! What a state dict says of its model: the tree of modules with their parameters, as torchinfo would show the model itself.
//!
//! Names, shapes, types, marks and shared storages are all that is looked at; no tensor's bytes are read.
//! What needs the graph is absent: output shapes, multiply-adds, sizes of activations, and modules without tensors (activations,
//! pooling, dropout), which a state dict does not name.

mod count;
mod fold;
mod kind;
mod print;
mod totals;
mod tree;
mod verbose;

#[cfg(test)]
mod tests;

use pth::StateDict;
use serde::Serialize;

pub use kind::Kind;
pub use print::SummaryText;
pub use print::grouped;

/// A model as its state dict tells of it. [`to_text`](Summary::to_text) prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Modules that hold tensors, in the order of the state dict, each followed by what it holds; the first is the model.
    pub rows: Vec<Row>,
    /// Sums over all tensors.
    pub totals: Totals,
}

/// One module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// 0 for the model, 1 for its children.
    pub depth: usize,
    /// 1 for the first module of this depth, 2 for the next, wherever it is; 0 for the model.
    ///
    /// torchinfo counts modules without tensors too, so that its numbers are larger.
    pub depth_idx: usize,
    /// The module's name within the one that holds it; empty for the model.
    pub var_name: String,
    /// What kind of layer the tensors suggest.
    pub kind: Kind,
    /// Sizes of a convolution's kernel, outermost first; empty for all else.
    pub kernel: Vec<usize>,
    /// The module's own parameters, without those of the modules in it.
    pub params: Vec<Param>,
    /// Elements of its own parameters.
    pub n_own: usize,
    /// Elements of all parameters in it, each once.
    pub n_params: usize,
    /// How many of those train.
    pub n_trainable: usize,
    /// Whether every parameter in it is one that a row above has already.
    pub is_recursive: bool,
    /// How many of the rows that follow are in it.
    pub n_below: usize,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Param {
    /// Its name within the module.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type as torch spells it; empty where the file does not say.
    pub dtype: String,
    /// Number of elements.
    pub numel: usize,
    /// Whether training changes it.
    pub trains: bool,
    /// Equal for the names of one tensor.
    pub id: usize,
}

/// How much of a module trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainable {
    /// All parameters.
    All,
    /// Some.
    Partial,
    /// None.
    Frozen,
    /// There are no parameters.
    Empty,
}

/// Sums over a state dict. A tensor with several names counts once; sums end at `usize::MAX`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Elements of all parameters.
    pub n_params: usize,
    /// How many of those train.
    pub n_trainable: usize,
    /// Size of all parameters in bytes.
    pub params_nbytes: usize,
    /// Number of tensors that are no parameters.
    pub n_buffers: usize,
    /// Their size in bytes.
    pub buffers_nbytes: usize,
    /// Parameters and buffers by element type, in order of appearance.
    pub dtypes: Vec<DtypeSum>,
    /// Names of tensors that have an earlier name.
    pub ties: Vec<Tie>,
    /// The tensor with the most bytes, the first of equals.
    pub largest: Option<Largest>,
    /// Whether the file says which tensors are parameters or train; if not, names and types decide, and all parameters train.
    pub is_marked: bool,
}

/// The tensors of one element type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DtypeSum {
    /// As torch spells it; empty where the file does not say.
    pub dtype: String,
    /// Number of tensors.
    pub n_tensors: usize,
    /// Number of elements.
    pub numel: usize,
    /// Size in bytes.
    pub nbytes: usize,
}

/// Two names of one tensor: same storage, offset, shape and stride.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tie {
    /// The later name.
    pub name: String,
    /// The first.
    pub first: String,
}

/// The tensor that an operation on one tensor at a time needs the most memory for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// Its name.
    pub name: String,
    /// Element type as torch spells it.
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Size in bytes.
    pub nbytes: usize,
}

impl Summary {
    /// Summarises `tensors`, records among them.
    ///
    /// Where nothing is marked, as in `torch.save(model.state_dict())`, whatever is floating and not called like a buffer is a
    /// parameter that trains. Where something is a `torch.nn.Parameter`, only those are parameters, and `requires_grad` decides.
    pub fn of(tensors: &StateDict) -> Summary {
        let tree = tree::Tree::of(tensors);
        let mut rows = kind::rows(&tree);
        let totals = count::count(&tree, &mut rows);
        Summary { rows, totals }
    }
}

impl Row {
    /// How much of it trains.
    pub fn trainable(&self) -> Trainable {
        match self.n_trainable {
            _ if self.n_params == 0 => Trainable::Empty,
            0 => Trainable::Frozen,
            n if n == self.n_params => Trainable::All,
            _ => Trainable::Partial,
        }
    }

    /// Whether no module is in it.
    pub fn is_leaf(&self) -> bool {
        self.n_below == 0
    }
}
