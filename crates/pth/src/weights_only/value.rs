//! What is known of a value: as much as decides whether torch's next step succeeds.

/// Index into the heap's values.
pub(super) type Id = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Complex,
    /// Integers, bool, and packed bits.
    Whole,
    Quantized,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DTypeFacts {
    pub(super) name: &'static str,
    /// Bytes of an element.
    pub(super) size: i64,
    pub(super) kind: Kind,
}

/// Borrowed, which keeps a value small.
pub(super) type DType = &'static DTypeFacts;

impl DTypeFacts {
    /// Whether its tensors can require gradients.
    pub(super) fn has_gradients(&self) -> bool {
        matches!(self.kind, Kind::Float | Kind::Complex)
    }
}

/// A global that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    DType(DType),
    QScheme(&'static str),
    /// An instance with a dtype that stands for the class of the old typed storage.
    StorageType(DType),
    Function(Function),
}

/// A global that can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    ByteArray,
    Complex,
    Counter,
    Device,
    Encode,
    GetLayout,
    OrderedDict,
    Parameter,
    RebuildFromCpuTensor,
    RebuildFromNumpy,
    RebuildFromType,
    RebuildMeta,
    RebuildParameter,
    RebuildParameterWithState,
    RebuildQuantized,
    RebuildSparse,
    RebuildV1,
    RebuildV2,
    RebuildV3,
    RebuildWrapper,
    Set,
    Size,
    SparseTensorOf(DType),
    Tensor,
    TensorOf(DType),
    TypedStorage,
    UntypedStorage,
}

impl Function {
    pub(super) fn is_class(self) -> bool {
        use Function::*;
        matches!(
            self,
            ByteArray
                | Complex
                | Counter
                | Device
                | OrderedDict
                | Parameter
                | Set
                | Size
                | SparseTensorOf(_)
                | Tensor
                | TensorOf(_)
                | TypedStorage
                | UntypedStorage
        )
    }
}

/// Items that lie side by side in the heap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Items that were added one after another, by the indices of their links.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chain {
    pub(super) ends: Option<(usize, usize)>,
    pub(super) len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DictKind {
    Plain,
    Ordered,
    Counter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) dtype: DType,
    pub(super) requires_grad: bool,
    pub(super) is_parameter: bool,
    /// Elements, where they are known.
    pub(super) numel: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'t> {
    None,
    Bool(bool),
    Int(i64),
    /// Beyond 64 bits.
    BigInt,
    Float(f64),
    Complex,
    /// UTF-8 with lone surrogates.
    Str(&'t [u8]),
    /// A text of which nothing is known.
    OtherStr,
    Bytes(&'t [u8]),
    OtherBytes,
    /// Whether it is empty.
    ByteArray(bool),
    Tuple(Run),
    Size(Run),
    List(Chain),
    Dict(DictKind, Chain),
    Set(Chain),
    Device,
    Layout(&'static str),
    Global(Global),
    /// A typed storage; no number of bytes if it grows as needed.
    Storage(DType, Option<i64>),
    UntypedStorage(Option<i64>),
    /// A typed storage that was made without being initialised.
    HollowStorage,
    Tensor(Tensor),
}

impl Value<'_> {
    /// As Python names the class.
    pub(super) fn class_name(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::BigInt => "an int",
            Value::Float(_) => "a float",
            Value::Complex => "a complex",
            Value::Str(_) | Value::OtherStr => "a str",
            Value::Bytes(_) | Value::OtherBytes => "bytes",
            Value::ByteArray(_) => "a bytearray",
            Value::Tuple(_) => "a tuple",
            Value::Size(_) => "a torch.Size",
            Value::List(_) => "a list",
            Value::Dict(DictKind::Plain, _) => "a dict",
            Value::Dict(DictKind::Ordered, _) => "an OrderedDict",
            Value::Dict(DictKind::Counter, _) => "a Counter",
            Value::Set(_) => "a set",
            Value::Device => "a torch.device",
            Value::Layout(_) => "a torch.layout",
            Value::Global(Global::DType(_)) => "a torch.dtype",
            Value::Global(Global::QScheme(_)) => "a torch.qscheme",
            Value::Global(Global::StorageType(_)) => "a class of storages",
            Value::Global(Global::Function(function)) if function.is_class() => "a class",
            Value::Global(Global::Function(_)) => "a function",
            Value::Storage(..) | Value::UntypedStorage(_) | Value::HollowStorage => "a storage",
            Value::Tensor(tensor) if tensor.is_parameter => "a Parameter",
            Value::Tensor(_) => "a Tensor",
        }
    }

    /// The class, if it is one that is allowed.
    pub(super) fn class(&self) -> Option<Function> {
        Some(match self {
            Value::Complex => Function::Complex,
            Value::ByteArray(_) => Function::ByteArray,
            Value::Size(_) => Function::Size,
            Value::Dict(DictKind::Ordered, _) => Function::OrderedDict,
            Value::Dict(DictKind::Counter, _) => Function::Counter,
            Value::Set(_) => Function::Set,
            Value::Device => Function::Device,
            Value::Storage(..) | Value::HollowStorage => Function::TypedStorage,
            Value::UntypedStorage(_) => Function::UntypedStorage,
            Value::Tensor(tensor) if tensor.is_parameter => Function::Parameter,
            Value::Tensor(_) => Function::Tensor,
            _ => return None,
        })
    }

    /// Whether it has a `__dict__`.
    pub(super) fn has_attributes(&self) -> bool {
        matches!(
            self,
            Value::Dict(DictKind::Ordered | DictKind::Counter, _)
                | Value::Storage(..)
                | Value::UntypedStorage(_)
                | Value::HollowStorage
                | Value::Tensor(_)
        )
    }
}
