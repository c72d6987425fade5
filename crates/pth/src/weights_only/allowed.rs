//! The 144 names that torch's `weights_only` unpickler takes, and its renaming of Python 2's.
//!
//! As of torch 2.15 without the names that parts of it add when they are imported. [torch/_weights_only_unpickler.py, torch/_utils.py]

use super::value::{DType, DTypeFacts, Function, Global, Kind};

macro_rules! dtypes {
    ($($constant:ident: $name:literal, $size:literal, $kind:ident;)*) => {
        $(const $constant: DType = &DTypeFacts { name: $name, size: $size, kind: Kind::$kind };)*
    };
}

dtypes! {
    BCOMPLEX32: "torch.bcomplex32", 4, Complex;
    BFLOAT16: "torch.bfloat16", 2, Float;
    BITS16: "torch.bits16", 2, Whole;
    BITS1X8: "torch.bits1x8", 1, Whole;
    BITS2X4: "torch.bits2x4", 1, Whole;
    BITS4X2: "torch.bits4x2", 1, Whole;
    BITS8: "torch.bits8", 1, Whole;
    BOOL: "torch.bool", 1, Whole;
    COMPLEX128: "torch.complex128", 16, Complex;
    COMPLEX32: "torch.complex32", 4, Complex;
    COMPLEX64: "torch.complex64", 8, Complex;
    FLOAT16: "torch.float16", 2, Float;
    FLOAT32: "torch.float32", 4, Float;
    FLOAT4_E2M1FN_X2: "torch.float4_e2m1fn_x2", 1, Float;
    FLOAT64: "torch.float64", 8, Float;
    FLOAT8_E4M3FN: "torch.float8_e4m3fn", 1, Float;
    FLOAT8_E4M3FNUZ: "torch.float8_e4m3fnuz", 1, Float;
    FLOAT8_E5M2: "torch.float8_e5m2", 1, Float;
    FLOAT8_E5M2FNUZ: "torch.float8_e5m2fnuz", 1, Float;
    FLOAT8_E8M0FNU: "torch.float8_e8m0fnu", 1, Float;
    INT1: "torch.int1", 1, Whole;
    INT16: "torch.int16", 2, Whole;
    INT2: "torch.int2", 1, Whole;
    INT3: "torch.int3", 1, Whole;
    INT32: "torch.int32", 4, Whole;
    INT4: "torch.int4", 1, Whole;
    INT5: "torch.int5", 1, Whole;
    INT6: "torch.int6", 1, Whole;
    INT64: "torch.int64", 8, Whole;
    INT7: "torch.int7", 1, Whole;
    INT8: "torch.int8", 1, Whole;
    QINT32: "torch.qint32", 4, Quantized;
    QINT8: "torch.qint8", 1, Quantized;
    QUINT2X4: "torch.quint2x4", 1, Quantized;
    QUINT4X2: "torch.quint4x2", 1, Quantized;
    QUINT8: "torch.quint8", 1, Quantized;
    UINT1: "torch.uint1", 1, Whole;
    UINT16: "torch.uint16", 2, Whole;
    UINT2: "torch.uint2", 1, Whole;
    UINT3: "torch.uint3", 1, Whole;
    UINT32: "torch.uint32", 4, Whole;
    UINT4: "torch.uint4", 1, Whole;
    UINT5: "torch.uint5", 1, Whole;
    UINT6: "torch.uint6", 1, Whole;
    UINT64: "torch.uint64", 8, Whole;
    UINT7: "torch.uint7", 1, Whole;
    UINT8: "torch.uint8", 1, Whole;
}

/// What torch takes for `bytes` that it counts one by one.
pub(super) const BYTE: DType = UINT8;

/// What torch makes where nothing else is said.
pub(super) const DEFAULT: DType = FLOAT32;

/// By the joined name, sorted.
pub(super) const ALLOWED: [(&str, Global); 144] = [
    ("_codecs.encode", Global::Function(Function::Encode)),
    ("builtins.bytearray", Global::Function(Function::ByteArray)),
    ("builtins.complex", Global::Function(Function::Complex)),
    ("builtins.set", Global::Function(Function::Set)),
    ("collections.Counter", Global::Function(Function::Counter)),
    ("collections.OrderedDict", Global::Function(Function::OrderedDict)),
    ("torch.BFloat16Storage", Global::StorageType(BFLOAT16)),
    (
        "torch.BFloat16Tensor",
        Global::Function(Function::TensorOf(BFLOAT16)),
    ),
    ("torch.BoolStorage", Global::StorageType(BOOL)),
    ("torch.BoolTensor", Global::Function(Function::TensorOf(BOOL))),
    ("torch.ByteStorage", Global::StorageType(UINT8)),
    ("torch.ByteTensor", Global::Function(Function::TensorOf(UINT8))),
    ("torch.CharStorage", Global::StorageType(INT8)),
    ("torch.CharTensor", Global::Function(Function::TensorOf(INT8))),
    ("torch.ComplexDoubleStorage", Global::StorageType(COMPLEX128)),
    ("torch.ComplexFloatStorage", Global::StorageType(COMPLEX64)),
    ("torch.DoubleStorage", Global::StorageType(FLOAT64)),
    (
        "torch.DoubleTensor",
        Global::Function(Function::TensorOf(FLOAT64)),
    ),
    ("torch.FloatStorage", Global::StorageType(FLOAT32)),
    ("torch.FloatTensor", Global::Function(Function::TensorOf(FLOAT32))),
    ("torch.HalfStorage", Global::StorageType(FLOAT16)),
    ("torch.HalfTensor", Global::Function(Function::TensorOf(FLOAT16))),
    ("torch.IntStorage", Global::StorageType(INT32)),
    ("torch.IntTensor", Global::Function(Function::TensorOf(INT32))),
    ("torch.LongStorage", Global::StorageType(INT64)),
    ("torch.LongTensor", Global::Function(Function::TensorOf(INT64))),
    ("torch.QInt32Storage", Global::StorageType(QINT32)),
    ("torch.QInt8Storage", Global::StorageType(QINT8)),
    ("torch.QUInt2x4Storage", Global::StorageType(QUINT2X4)),
    ("torch.QUInt4x2Storage", Global::StorageType(QUINT4X2)),
    ("torch.QUInt8Storage", Global::StorageType(QUINT8)),
    ("torch.ShortStorage", Global::StorageType(INT16)),
    ("torch.ShortTensor", Global::Function(Function::TensorOf(INT16))),
    ("torch.Size", Global::Function(Function::Size)),
    ("torch.Tensor", Global::Function(Function::Tensor)),
    (
        "torch._tensor._rebuild_from_type_v2",
        Global::Function(Function::RebuildFromType),
    ),
    (
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        Global::Function(Function::RebuildFromCpuTensor),
    ),
    (
        "torch._utils._rebuild_device_tensor_from_numpy",
        Global::Function(Function::RebuildFromNumpy),
    ),
    (
        "torch._utils._rebuild_meta_tensor_no_storage",
        Global::Function(Function::RebuildMeta),
    ),
    (
        "torch._utils._rebuild_parameter",
        Global::Function(Function::RebuildParameter),
    ),
    (
        "torch._utils._rebuild_parameter_with_state",
        Global::Function(Function::RebuildParameterWithState),
    ),
    (
        "torch._utils._rebuild_qtensor",
        Global::Function(Function::RebuildQuantized),
    ),
    (
        "torch._utils._rebuild_sparse_tensor",
        Global::Function(Function::RebuildSparse),
    ),
    (
        "torch._utils._rebuild_tensor",
        Global::Function(Function::RebuildV1),
    ),
    (
        "torch._utils._rebuild_tensor_v2",
        Global::Function(Function::RebuildV2),
    ),
    (
        "torch._utils._rebuild_tensor_v3",
        Global::Function(Function::RebuildV3),
    ),
    (
        "torch._utils._rebuild_wrapper_subclass",
        Global::Function(Function::RebuildWrapper),
    ),
    ("torch.bcomplex32", Global::DType(BCOMPLEX32)),
    ("torch.bfloat16", Global::DType(BFLOAT16)),
    ("torch.bits16", Global::DType(BITS16)),
    ("torch.bits1x8", Global::DType(BITS1X8)),
    ("torch.bits2x4", Global::DType(BITS2X4)),
    ("torch.bits4x2", Global::DType(BITS4X2)),
    ("torch.bits8", Global::DType(BITS8)),
    ("torch.bool", Global::DType(BOOL)),
    ("torch.complex128", Global::DType(COMPLEX128)),
    ("torch.complex32", Global::DType(COMPLEX32)),
    ("torch.complex64", Global::DType(COMPLEX64)),
    ("torch.cuda.BFloat16Storage", Global::StorageType(BFLOAT16)),
    (
        "torch.cuda.BFloat16Tensor",
        Global::Function(Function::TensorOf(BFLOAT16)),
    ),
    ("torch.cuda.BoolStorage", Global::StorageType(BOOL)),
    (
        "torch.cuda.BoolTensor",
        Global::Function(Function::TensorOf(BOOL)),
    ),
    ("torch.cuda.ByteStorage", Global::StorageType(UINT8)),
    (
        "torch.cuda.ByteTensor",
        Global::Function(Function::TensorOf(UINT8)),
    ),
    ("torch.cuda.CharStorage", Global::StorageType(INT8)),
    (
        "torch.cuda.CharTensor",
        Global::Function(Function::TensorOf(INT8)),
    ),
    ("torch.cuda.ComplexDoubleStorage", Global::StorageType(COMPLEX128)),
    ("torch.cuda.ComplexFloatStorage", Global::StorageType(COMPLEX64)),
    ("torch.cuda.DoubleStorage", Global::StorageType(FLOAT64)),
    (
        "torch.cuda.DoubleTensor",
        Global::Function(Function::TensorOf(FLOAT64)),
    ),
    ("torch.cuda.FloatStorage", Global::StorageType(FLOAT32)),
    (
        "torch.cuda.FloatTensor",
        Global::Function(Function::TensorOf(FLOAT32)),
    ),
    ("torch.cuda.HalfStorage", Global::StorageType(FLOAT16)),
    (
        "torch.cuda.HalfTensor",
        Global::Function(Function::TensorOf(FLOAT16)),
    ),
    ("torch.cuda.IntStorage", Global::StorageType(INT32)),
    (
        "torch.cuda.IntTensor",
        Global::Function(Function::TensorOf(INT32)),
    ),
    ("torch.cuda.LongStorage", Global::StorageType(INT64)),
    (
        "torch.cuda.LongTensor",
        Global::Function(Function::TensorOf(INT64)),
    ),
    ("torch.cuda.ShortStorage", Global::StorageType(INT16)),
    (
        "torch.cuda.ShortTensor",
        Global::Function(Function::TensorOf(INT16)),
    ),
    (
        "torch.cuda.sparse.BFloat16Tensor",
        Global::Function(Function::SparseTensorOf(BFLOAT16)),
    ),
    (
        "torch.cuda.sparse.ByteTensor",
        Global::Function(Function::SparseTensorOf(UINT8)),
    ),
    (
        "torch.cuda.sparse.CharTensor",
        Global::Function(Function::SparseTensorOf(INT8)),
    ),
    (
        "torch.cuda.sparse.DoubleTensor",
        Global::Function(Function::SparseTensorOf(FLOAT64)),
    ),
    (
        "torch.cuda.sparse.FloatTensor",
        Global::Function(Function::SparseTensorOf(FLOAT32)),
    ),
    (
        "torch.cuda.sparse.HalfTensor",
        Global::Function(Function::SparseTensorOf(FLOAT16)),
    ),
    (
        "torch.cuda.sparse.IntTensor",
        Global::Function(Function::SparseTensorOf(INT32)),
    ),
    (
        "torch.cuda.sparse.LongTensor",
        Global::Function(Function::SparseTensorOf(INT64)),
    ),
    (
        "torch.cuda.sparse.ShortTensor",
        Global::Function(Function::SparseTensorOf(INT16)),
    ),
    ("torch.device", Global::Function(Function::Device)),
    ("torch.float16", Global::DType(FLOAT16)),
    ("torch.float32", Global::DType(FLOAT32)),
    ("torch.float4_e2m1fn_x2", Global::DType(FLOAT4_E2M1FN_X2)),
    ("torch.float64", Global::DType(FLOAT64)),
    ("torch.float8_e4m3fn", Global::DType(FLOAT8_E4M3FN)),
    ("torch.float8_e4m3fnuz", Global::DType(FLOAT8_E4M3FNUZ)),
    ("torch.float8_e5m2", Global::DType(FLOAT8_E5M2)),
    ("torch.float8_e5m2fnuz", Global::DType(FLOAT8_E5M2FNUZ)),
    ("torch.float8_e8m0fnu", Global::DType(FLOAT8_E8M0FNU)),
    ("torch.int1", Global::DType(INT1)),
    ("torch.int16", Global::DType(INT16)),
    ("torch.int2", Global::DType(INT2)),
    ("torch.int3", Global::DType(INT3)),
    ("torch.int32", Global::DType(INT32)),
    ("torch.int4", Global::DType(INT4)),
    ("torch.int5", Global::DType(INT5)),
    ("torch.int6", Global::DType(INT6)),
    ("torch.int64", Global::DType(INT64)),
    ("torch.int7", Global::DType(INT7)),
    ("torch.int8", Global::DType(INT8)),
    (
        "torch.nn.parameter.Parameter",
        Global::Function(Function::Parameter),
    ),
    (
        "torch.per_channel_affine",
        Global::QScheme("torch.per_channel_affine"),
    ),
    (
        "torch.per_channel_affine_float_qparams",
        Global::QScheme("torch.per_channel_affine_float_qparams"),
    ),
    (
        "torch.per_channel_symmetric",
        Global::QScheme("torch.per_channel_symmetric"),
    ),
    (
        "torch.per_tensor_affine",
        Global::QScheme("torch.per_tensor_affine"),
    ),
    (
        "torch.per_tensor_symmetric",
        Global::QScheme("torch.per_tensor_symmetric"),
    ),
    ("torch.qint32", Global::DType(QINT32)),
    ("torch.qint8", Global::DType(QINT8)),
    ("torch.quint2x4", Global::DType(QUINT2X4)),
    ("torch.quint4x2", Global::DType(QUINT4X2)),
    ("torch.quint8", Global::DType(QUINT8)),
    (
        "torch.serialization._get_layout",
        Global::Function(Function::GetLayout),
    ),
    (
        "torch.sparse.BFloat16Tensor",
        Global::Function(Function::SparseTensorOf(BFLOAT16)),
    ),
    (
        "torch.sparse.ByteTensor",
        Global::Function(Function::SparseTensorOf(UINT8)),
    ),
    (
        "torch.sparse.CharTensor",
        Global::Function(Function::SparseTensorOf(INT8)),
    ),
    (
        "torch.sparse.DoubleTensor",
        Global::Function(Function::SparseTensorOf(FLOAT64)),
    ),
    (
        "torch.sparse.FloatTensor",
        Global::Function(Function::SparseTensorOf(FLOAT32)),
    ),
    (
        "torch.sparse.HalfTensor",
        Global::Function(Function::SparseTensorOf(FLOAT16)),
    ),
    (
        "torch.sparse.IntTensor",
        Global::Function(Function::SparseTensorOf(INT32)),
    ),
    (
        "torch.sparse.LongTensor",
        Global::Function(Function::SparseTensorOf(INT64)),
    ),
    (
        "torch.sparse.ShortTensor",
        Global::Function(Function::SparseTensorOf(INT16)),
    ),
    (
        "torch.storage.TypedStorage",
        Global::Function(Function::TypedStorage),
    ),
    (
        "torch.storage.UntypedStorage",
        Global::Function(Function::UntypedStorage),
    ),
    ("torch.uint1", Global::DType(UINT1)),
    ("torch.uint16", Global::DType(UINT16)),
    ("torch.uint2", Global::DType(UINT2)),
    ("torch.uint3", Global::DType(UINT3)),
    ("torch.uint32", Global::DType(UINT32)),
    ("torch.uint4", Global::DType(UINT4)),
    ("torch.uint5", Global::DType(UINT5)),
    ("torch.uint6", Global::DType(UINT6)),
    ("torch.uint64", Global::DType(UINT64)),
    ("torch.uint7", Global::DType(UINT7)),
    ("torch.uint8", Global::DType(UINT8)),
];

/// Where Python 3 keeps what Python 2 called so: old module and name, new module and name.
pub(super) const NAME_MAPPING: [[&str; 4]; 17] = [
    ["__builtin__", "xrange", "builtins", "range"],
    ["__builtin__", "reduce", "functools", "reduce"],
    ["__builtin__", "intern", "sys", "intern"],
    ["__builtin__", "unichr", "builtins", "chr"],
    ["__builtin__", "unicode", "builtins", "str"],
    ["__builtin__", "long", "builtins", "int"],
    ["itertools", "izip", "builtins", "zip"],
    ["itertools", "imap", "builtins", "map"],
    ["itertools", "ifilter", "builtins", "filter"],
    ["itertools", "ifilterfalse", "itertools", "filterfalse"],
    ["itertools", "izip_longest", "itertools", "zip_longest"],
    ["UserDict", "IterableUserDict", "collections", "UserDict"],
    ["UserList", "UserList", "collections", "UserList"],
    ["UserString", "UserString", "collections", "UserString"],
    ["__builtin__", "basestring", "builtins", "str"],
    ["exceptions", "StandardError", "builtins", "Exception"],
    ["UserDict", "UserDict", "collections", "UserDict"],
];

/// The same of whole modules, for the names that are not above.
pub(super) const IMPORT_MAPPING: [[&str; 2]; 11] = [
    ["__builtin__", "builtins"],
    ["copy_reg", "copyreg"],
    ["Queue", "queue"],
    ["repr", "reprlib"],
    ["_abcoll", "collections.abc"],
    ["UserDict", "collections"],
    ["UserList", "collections"],
    ["UserString", "collections"],
    ["whichdb", "dbm"],
    ["StringIO", "io"],
    ["cStringIO", "io"],
];

/// Never taken, whatever the user allows.
pub(super) const BLOCKED_MODULES: [&str; 4] = ["sys", "os", "posix", "nt"];

/// What `_get_layout` knows.
pub(super) const LAYOUTS: [&str; 8] = [
    "torch.strided",
    "torch.sparse_coo",
    "torch.sparse_csr",
    "torch.sparse_csc",
    "torch.sparse_bsr",
    "torch.sparse_bsc",
    "torch._mkldnn",
    "torch.jagged",
];

/// Device types, in the order in which torch lists them.
pub(super) const DEVICES: [&str; 20] = [
    "cpu",
    "cuda",
    "ipu",
    "xpu",
    "mkldnn",
    "opengl",
    "opencl",
    "ideep",
    "hip",
    "ve",
    "fpga",
    "maia",
    "xla",
    "lazy",
    "vulkan",
    "mps",
    "meta",
    "hpu",
    "mtia",
    "privateuseone",
];

/// Attributes of a tensor that cannot be set.
pub(super) const READ_ONLY: [&str; 42] = [
    "H",
    "T",
    "__cuda_array_interface__",
    "__weakref__",
    "_base",
    "_cdata",
    "_has_grad_dtype_override",
    "_has_symbolic_sizes_strides",
    "_python_dispatch",
    "_version",
    "device",
    "dtype",
    "grad_fn",
    "imag",
    "is_cpu",
    "is_cuda",
    "is_ipu",
    "is_leaf",
    "is_maia",
    "is_meta",
    "is_mkldnn",
    "is_mps",
    "is_mtia",
    "is_nested",
    "is_quantized",
    "is_sparse",
    "is_sparse_csr",
    "is_vulkan",
    "is_xla",
    "is_xpu",
    "itemsize",
    "layout",
    "mH",
    "mT",
    "name",
    "nbytes",
    "ndim",
    "output_nr",
    "real",
    "retains_grad",
    "shape",
    "__class__",
];
