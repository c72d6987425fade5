//! Tensors that are not computed yet.
//!
//! A [`LazyTensor`] has a shape and a type at once; its bytes are made when they are read, from the first element to the last, in
//! chunks that the reader chooses. What can be said as a view of the file stays one; joins, casts and sums pass chunks on; only what
//! needs all of a tensor at once (resampling, a view of a sum) holds it, and says so in [`LazyTensor::held_bytes`].

mod convert;
mod dict;
mod draw;
mod read;
mod sum;
mod view;

use std::fmt;
use std::sync::Arc;

use pth::{DType, Tensor};

pub use dict::{Group, LazyEntry, LazyStateDict, LazyValue};
pub use draw::{Distribution, Draw};
pub use read::LazyReader;

pub(crate) use convert::{convert, is_convertible, promote, to_f64};
pub(crate) use view::resolve_dim;

use crate::{Error, Pieces};

/// A tensor whose bytes are made when they are read. A clone is the same tensor, also when a state dict has it under two names.
#[derive(Clone)]
pub struct LazyTensor(Arc<Node>);

struct Node {
    dtype: DType,
    /// Empty where the kind has another tensor of the same shape, which is asked.
    shape: Box<[usize]>,
    kind: Kind,
    /// Bytes that are held while it is read.
    held_bytes: usize,
    /// How often something is read for it, and through how many others.
    n_reads: usize,
    depth: usize,
}

/// How the bytes come about.
enum Kind {
    /// A view of a file or of memory; as it was found there, or made here.
    Stored(Tensor, Origin),
    /// Put together of what several files hold of it.
    Pieced(Box<Pieces>),
    /// The same elements in the same order under another shape.
    Reshaped(LazyTensor),
    /// Another element type, by way of float32 as torch converts, or exactly where both are integers.
    Cast(LazyTensor),
    /// Joined along dimension `dim`.
    Joined { dim: usize, parts: Vec<LazyTensor> },
    /// Sum of weighted terms of the same shape, accumulated in float64 and rounded once.
    Sum {
        terms: Vec<(f64, LazyTensor)>,
        nan: NanPolicy,
    },
    /// One value.
    Filled(f64),
    /// Random values that depend on a seed, a name and the place.
    Drawn(Draw),
    /// A view of something that is made whole for it.
    View { base: LazyTensor, dims: Strided },
    /// Made whole of whole inputs.
    Computed {
        inputs: Vec<LazyTensor>,
        compute: Arc<Compute>,
        held_bytes: usize,
    },
    /// Rows made of rows: see [`RowWise`].
    Rows {
        inputs: Vec<LazyTensor>,
        rows: Arc<dyn RowWise>,
    },
    /// The same values, in which no NaN may be.
    Checked { of: LazyTensor, name: String },
}

/// Whether a stored tensor is as its file has it, so that what it shares with others is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Found,
    Made,
}

/// Shape is the node's; strides and offset in elements of the base.
#[derive(Debug, Clone)]
struct Strided {
    stride: Vec<usize>,
    offset: usize,
}

/// Inputs to the whole output in float64.
pub(crate) type Compute = dyn Fn(&[LazyTensor]) -> Result<Vec<f64>, Error> + Send + Sync;

/// What is made of the rows of its first input, a bounded number at a time, with all other inputs at hand whole.
pub(crate) trait RowWise: Send + Sync {
    /// `rows` are whole rows of the first input from row `first` on, changed in place; `others` the other inputs.
    fn apply(&self, first: usize, rows: &mut [f64], others: &[Vec<f64>]) -> Result<(), Error>;
}

/// What a NaN in the terms of a sum means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NanPolicy {
    /// It is passed on.
    Allow,
    /// It is an error, which tells the tensor's name and of which inputs the terms are.
    Refuse { name: String, inputs: Arc<[String]> },
}

impl LazyTensor {
    /// A tensor of a file or of memory.
    pub fn stored(tensor: Tensor) -> LazyTensor {
        LazyTensor::of_origin(tensor, Origin::Found)
    }

    fn of_origin(tensor: Tensor, origin: Origin) -> LazyTensor {
        LazyTensor::node(tensor.dtype(), Box::default(), Kind::Stored(tensor, origin))
    }

    /// The tensor as its file has it, if it is one.
    pub(crate) fn as_found(&self) -> Option<&Tensor> {
        match self.kind() {
            Kind::Stored(tensor, Origin::Found) => Some(tensor),
            _ => None,
        }
    }

    /// A tensor that lies in pieces.
    pub(crate) fn pieced(pieces: Pieces) -> LazyTensor {
        let (dtype, shape) = (pieces.dtype(), pieces.shape().into());
        LazyTensor::node(dtype, shape, Kind::Pieced(Box::new(pieces)))
    }

    /// `value` everywhere, as `torch.full`.
    pub fn filled(dtype: DType, shape: &[usize], value: f64) -> LazyTensor {
        LazyTensor::node(dtype, shape.into(), Kind::Filled(value))
    }

    /// Random values, the same whenever and by however many threads they are made.
    pub fn drawn(dtype: DType, shape: &[usize], draw: Draw) -> LazyTensor {
        LazyTensor::node(dtype, shape.into(), Kind::Drawn(draw))
    }

    /// The same values in another type: floats by way of float32, rounding to nearest even, as `Tensor.to` does.
    pub fn cast(&self, dtype: DType) -> LazyTensor {
        match self.kind() {
            _ if dtype == self.dtype() => self.clone(),
            Kind::Filled(value) => LazyTensor::filled(dtype, self.shape(), *value),
            _ => LazyTensor::node(dtype, Box::default(), Kind::Cast(self.clone())),
        }
    }

    /// `terms` weighted and added in float64, rounded once to `dtype`. All have one shape.
    pub(crate) fn sum(dtype: DType, terms: Vec<(f64, LazyTensor)>, nan: NanPolicy) -> LazyTensor {
        let shape: Box<[usize]> = terms.first().expect("a sum of something").1.shape().into();
        debug_assert!(terms.iter().all(|(_, term)| *term.shape() == *shape));
        LazyTensor::node(dtype, shape, Kind::Sum { terms, nan })
    }

    /// Made whole of whole inputs; for what is small, or cannot be had otherwise.
    pub(crate) fn computed(
        dtype: DType,
        shape: &[usize],
        inputs: Vec<LazyTensor>,
        compute: impl Fn(&[Vec<f64>]) -> Result<Vec<f64>, Error> + Send + Sync + 'static,
    ) -> LazyTensor {
        let held = inputs.iter().map(|input| input.numel().saturating_mul(8)).sum();
        LazyTensor::reduced(dtype, shape, inputs, held, move |inputs| {
            let inputs = inputs
                .iter()
                .map(LazyTensor::to_f64)
                .collect::<Result<Vec<_>, _>>()?;
            compute(&inputs)
        })
    }

    /// Made whole of inputs that `compute` reads as it likes, holding `held_bytes` meanwhile.
    pub(crate) fn reduced(
        dtype: DType,
        shape: &[usize],
        inputs: Vec<LazyTensor>,
        held_bytes: usize,
        compute: impl Fn(&[LazyTensor]) -> Result<Vec<f64>, Error> + Send + Sync + 'static,
    ) -> LazyTensor {
        let kind = Kind::Computed {
            inputs,
            compute: Arc::new(compute),
            held_bytes,
        };
        LazyTensor::node(dtype, shape.into(), kind)
    }

    /// Made row by row of the rows of `inputs[0]`; same shape and type as it.
    pub(crate) fn row_wise(inputs: Vec<LazyTensor>, rows: Arc<dyn RowWise>) -> LazyTensor {
        let first = inputs.first().expect("rows of something");
        let (dtype, shape) = (first.dtype(), first.shape().into());
        LazyTensor::node(dtype, shape, Kind::Rows { inputs, rows })
    }

    /// The same values, and an error where one is NaN. `name` is told of.
    pub(crate) fn checked(&self, name: &str) -> LazyTensor {
        let kind = Kind::Checked {
            of: self.clone(),
            name: name.to_owned(),
        };
        LazyTensor::node(self.dtype(), Box::default(), kind)
    }

    fn node(dtype: DType, shape: Box<[usize]>, kind: Kind) -> LazyTensor {
        // Known from the parts at once: a tensor that is made of itself again and again is no tree that could be walked.
        let parts = kind.parts();
        let over =
            |of: fn(&LazyTensor) -> usize| parts.iter().map(|part| of(part)).fold(0, usize::saturating_add);
        let n_reads = over(|part| part.0.n_reads).max(1);
        let depth = 1 + parts.iter().map(|part| part.0.depth).max().unwrap_or(0);
        let numel = shape.iter().fold(1, |n: usize, &size| n.saturating_mul(size));
        let held_bytes = match &kind {
            Kind::Drawn(draw) => draw.held_bytes(numel),
            Kind::View { base, .. } => base.held_bytes().saturating_add(base.nbytes()),
            Kind::Computed { held_bytes, .. } => numel.saturating_mul(8).saturating_add(*held_bytes),
            Kind::Rows { inputs, .. } => {
                let others = inputs[1..].iter().map(|other| other.numel().saturating_mul(8));
                others.fold(inputs[0].held_bytes(), usize::saturating_add)
            }
            _ => over(LazyTensor::held_bytes),
        };
        LazyTensor(Arc::new(Node {
            dtype,
            shape,
            kind,
            held_bytes,
            n_reads,
            depth,
        }))
    }

    fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self.kind() {
            Kind::Stored(tensor, _) => tensor.shape(),
            Kind::Cast(of) | Kind::Checked { of, .. } => of.shape(),
            _ => &self.0.shape,
        }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape()
            .iter()
            .fold(1, |n: usize, &size| n.saturating_mul(size))
    }

    /// Size of its elements in bytes.
    pub fn nbytes(&self) -> usize {
        self.numel().saturating_mul(self.dtype().size())
    }

    /// The view of a file that it is, if it is one.
    pub fn as_stored(&self) -> Option<&Tensor> {
        match self.kind() {
            Kind::Stored(tensor, _) => Some(tensor),
            _ => None,
        }
    }

    /// What is equal for two names of one tensor, and different for all other tensors alive.
    pub(crate) fn identity(&self) -> Identity {
        Arc::as_ptr(&self.0).addr()
    }

    /// Bytes that are held in memory at once while it is read, beside the chunks.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes
    }

    /// Whether it can be made: of numbers that are calculated with, and not of itself beyond all measure.
    pub(crate) fn check(&self) -> Result<(), Error> {
        const MOST_READS: usize = 1 << 20;
        const MOST_DEPTH: usize = 1000;
        if self.0.n_reads > MOST_READS || self.0.depth > MOST_DEPTH {
            return Err(Error::TooEntangled);
        }
        let needs_numbers = match self.kind() {
            Kind::Sum { .. } | Kind::Computed { .. } | Kind::Rows { .. } | Kind::Drawn(_) | Kind::Cast(_) => {
                true
            }
            Kind::Filled(value) => *value != 0.0,
            _ => false,
        };
        let mut all = self.kind().parts().into_iter().chain([self]);
        match all.find(|tensor| needs_numbers && !is_convertible(tensor.dtype())) {
            Some(tensor) => Err(Error::NotCalculated(tensor.dtype())),
            None => Ok(()),
        }
    }

    /// Calls `visit` for each view of a file that it is made of, once for each time that it is there.
    pub(crate) fn for_each_stored<'t>(&'t self, visit: &mut dyn FnMut(&'t Tensor)) {
        if let Kind::Stored(tensor, _) = self.kind() {
            return visit(tensor);
        }
        let mut seen: std::collections::HashSet<Identity> = std::collections::HashSet::new();
        let mut stack = vec![self];
        while let Some(tensor) = stack.pop() {
            match tensor.kind() {
                Kind::Stored(tensor, _) => visit(tensor),
                Kind::Pieced(pieces) => pieces.pieces().iter().for_each(|piece| visit(&piece.tensor)),
                kind => {
                    // What is met again has been walked through.
                    let parts = kind.parts();
                    stack.extend(
                        parts
                            .into_iter()
                            .rev()
                            .filter(|part| part.as_stored().is_some() || seen.insert(part.identity())),
                    );
                }
            }
        }
    }
}

impl Kind {
    /// What it is made of.
    fn parts(&self) -> Vec<&LazyTensor> {
        match self {
            Kind::Stored(..) | Kind::Pieced(_) | Kind::Filled(_) | Kind::Drawn(_) => Vec::new(),
            Kind::Reshaped(of) | Kind::Cast(of) | Kind::Checked { of, .. } => vec![of],
            Kind::View { base, .. } => vec![base],
            Kind::Joined { parts: inputs, .. }
            | Kind::Computed { inputs, .. }
            | Kind::Rows { inputs, .. } => inputs.iter().collect(),
            Kind::Sum { terms, .. } => terms.iter().map(|(_, term)| term).collect(),
        }
    }
}

/// See [`LazyTensor::identity`].
pub(crate) type Identity = usize;

/// Maps by names and identities: a hundred thousand of them are looked up several times in every plan.
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

impl fmt::Debug for LazyTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind() {
            Kind::Stored(..) => "stored",
            Kind::Pieced(_) => "pieced",
            Kind::Reshaped(_) => "reshaped",
            Kind::Cast(_) => "cast",
            Kind::Joined { .. } => "joined",
            Kind::Sum { .. } => "sum",
            Kind::Filled(_) => "filled",
            Kind::Drawn(_) => "drawn",
            Kind::View { .. } => "view",
            Kind::Computed { .. } => "computed",
            Kind::Rows { .. } => "rows",
            Kind::Checked { .. } => "checked",
        };
        write!(f, "LazyTensor({} {:?}, {kind})", self.dtype(), self.shape())
    }
}
