"""Pickles written opcode by opcode, each with one thing that the safe unpickler of PyTorch accepts or refuses."""

import io
import zipfile

import numpy as np


EMPTY = b"}"
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
BARE = b"\x80\x02"


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def whole(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def glob(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def call(function, *args):
    return function + tuple_of(*args) + b"R"


def new(cls, *args):
    return cls + tuple_of(*args) + b"\x81"


HOOKS = call(glob("collections", "OrderedDict"))
FLOATS = glob("torch", "FloatStorage")


def storage(key=text("0"), kind=FLOATS, location=text("cpu"), numel=whole(4), word=text("storage"), more=()):
    return tuple_of(word, kind, key, location, numel, *more) + b"Q"


def tensor(data=None, offset=0, size=(4,), stride=(1,), grad=FALSE, hooks=HOOKS, metadata=()):
    ints = lambda values: tuple_of(*map(whole, values))
    return call(glob("torch._utils", "_rebuild_tensor_v2"), data or storage(), whole(offset), ints(size), ints(stride), grad, hooks, *metadata)


def archive(pickled, version=b"3\n", root="archive/", extra=(), method=zipfile.ZIP_STORED, skip=()):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        records = [("data.pkl", pickled), ("byteorder", b"little"), ("data/0", np.arange(4, dtype="<f4").tobytes()), ("version", version)]
        for name, data in records:
            if name not in skip:
                file.writestr(root + name, data)
        for name, data in extra:
            file.writestr(name, data)
    return out.getvalue()


def opcodes():
    """A value made by one opcode or by a few: what it pushes, then what may be appended to, set in, built, made and called."""
    od, counter = glob("collections", "OrderedDict"), glob("collections", "Counter")
    param, plain = glob("torch.nn.parameter", "Parameter"), glob("torch", "Tensor")
    yield from {
        "EMPTY_DICT": b"}", "EMPTY_LIST": b"]", "EMPTY_TUPLE": b")", "EMPTY_SET": b"\x8f", "NONE": NONE, "NEWTRUE": TRUE, "BININT": whole(-5),
        "BININT1": b"K\x05", "BININT2": b"M\x05\x01", "BINFLOAT": b"G" + bytes(8), "BINUNICODE": text("a"), "lone surrogate": text("\ud800"),
        "bad UTF-8": b"X\x01\x00\x00\x00\xff", "SHORT_BINSTRING": b"U\x01a", "SHORT_BINSTRING, bad UTF-8": b"U\x01\xff", "LONG1": b"\x8a\x01\x05",
        "LONG1 empty": b"\x8a\x00", "TUPLE1": b"N\x85", "TUPLE2": b"NN\x86", "TUPLE3": b"NNN\x87", "MARK TUPLE": b"(NNt", "memo": b"]q\x00h\x00\x86",
        "long memo": b"]r\x00\x01\x00\x00j\x00\x01\x00\x00\x86", "unset memo": b"h\x07", "unset long memo": b"j\x07\x00\x00\x00", "lone MARK below": b"(N",
        "mark with nothing under it": b"t", "underflow": b"R", "TUPLE2 of one": b"N\x86", "TUPLE1 of nothing": b"\x85", "LONG4": b"\x8b\x01\x00\x00\x00\x05",
        "BINSTRING": b"T\x01\x00\x00\x00a", "SHORT_BINBYTES": b"C\x01a", "BINBYTES": b"B\x01\x00\x00\x00a", "BINBYTES8": b"\x8e\x01" + bytes(7) + b"a",
        "BYTEARRAY8": b"\x96\x01" + bytes(7) + b"a", "INT": b"I5\n", "INT true": b"I01\n", "LONG": b"L5L\n", "FLOAT": b"F5.0\n", "STRING": b"S'a'\n",
        "UNICODE": b"Va\n", "LIST": b"(l", "DICT": b"(d", "DUP": b"N2\x86", "POP": b"NN0", "POP_MARK": b"N(N1", "MEMOIZE": b"]\x94",
        "FRAME": b"\x95\x01" + bytes(7) + b"N", "SHORT_BINUNICODE": b"\x8c\x01a", "BINUNICODE8": b"\x8d\x01" + bytes(7) + b"a",
        "STACK_GLOBAL": text("collections") + text("OrderedDict") + b"\x93", "ADDITEMS": b"\x8f(N\x90", "FROZENSET": b"(N\x91", "NEWOBJ_EX": od + b")}\x92",
        "EXT1": b"\x82\x01", "INST": b"(icollections\nOrderedDict\n", "OBJ": b"(" + od + b"o", "PERSID": b"P0\n", "GET": b"]q\x00g0\n", "PUT": b"]p0\n",
        "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"N\x98", "unknown opcode": b"\xf0", "APPEND list": b"]Na", "APPENDS list": b"](NNe",
        "APPEND tuple": b")Na", "APPEND dict": b"}Na", "APPEND set": b"\x8fNa", "APPENDS dict": b"}(Ne",
        "APPEND bytearray": call(glob("__builtin__", "bytearray")) + b"K\x01a", "SETITEM dict": b"}NNs", "SETITEM list": b"]K\x00Ns",
        "SETITEM set": b"\x8fNNs", "SETITEM tensor": tensor() + b"K\x00K\x01s", "SETITEMS OrderedDict": call(od) + b"(NNu",
        "SETITEM Counter": call(counter) + b"NK\x01s", "SETITEMS odd": b"}(NNNu", "SETITEM list as key": b"}]Ns", "SETITEM dict as key": b"}}Ns",
        "SETITEM set as key": b"}\x8fNs", "SETITEM tensor as key": b"}" + tensor() + b"Ns", "SETITEM tuple of list as key": b"}]\x85Ns",
        "SETITEMS bytearray": call(glob("__builtin__", "bytearray"), call(glob("_codecs", "encode"), text("a"), text("latin1"))) + b"(K\x00K\x01u",
        "BUILD OrderedDict": call(od) + b"}" + text("_metadata") + b"}sb", "BUILD OrderedDict None": call(od) + b"Nb",
        "BUILD OrderedDict list": call(od) + b"]b", "BUILD OrderedDict int key": call(od) + b"}K\x01Nsb", "BUILD dict": b"}}b", "BUILD list": b"]}b",
        "BUILD None": b"N}b", "BUILD Counter": call(counter) + b"}" + text("a") + b"Nsb", "BUILD Counter empty": call(counter) + b"}b",
        "BUILD Counter pair": call(counter) + b"}}" + text("a") + b"Ns\x86b", "BUILD set empty": b"\x8f}b", "BUILD set": b"\x8f}" + text("a") + b"Nsb",
        "BUILD set None": b"\x8fNb", "BUILD set tuple": b"\x8fNN\x86b", "BUILD complex": call(glob("__builtin__", "complex"), b"K\x01", b"K\x02") + b"}b",
        "BUILD bytearray": call(glob("__builtin__", "bytearray")) + b"}b", "BUILD Size": call(glob("torch", "Size"), b")") + b"}b",
        "BUILD device": call(glob("torch", "device"), text("cpu")) + b"}b", "BUILD dtype": glob("torch", "float32") + b"}b", "BUILD class": od + b"}b",
        "BUILD function": glob("_codecs", "encode") + b"}b",
        "BUILD tensor": new(glob("torch", "FloatTensor")) + tuple_of(storage(), whole(0), tuple_of(whole(4)), tuple_of(whole(1))) + b"b",
        "BUILD tensor dict": tensor() + b"}b", "BUILD parameter": new(param, tensor()) + tuple_of(TRUE, HOOKS, HOOKS) + b"b",
        "BUILD parameter 4-tuple": new(param, tensor()) + tuple_of(storage(), whole(0), tuple_of(whole(4)), tuple_of(whole(1))) + b"b",
        "BUILD parameter dict": new(param, tensor()) + b"}b", "BUILD storage": storage() + b"}b",
        "BUILD storage dict": storage() + b"}" + text("a") + b"Nsb", "NEWOBJ OrderedDict": new(od), "NEWOBJ Counter": new(counter),
        "NEWOBJ set": new(glob("__builtin__", "set")), "NEWOBJ Parameter": new(param, tensor()), "NEWOBJ Parameter of nothing": new(param),
        "NEWOBJ Tensor": new(plain), "NEWOBJ FloatTensor": new(glob("torch", "FloatTensor")), "NEWOBJ Size": new(glob("torch", "Size"), tuple_of(whole(1))),
        "NEWOBJ device": new(glob("torch", "device"), text("cpu")), "NEWOBJ bytearray": new(glob("__builtin__", "bytearray")),
        "NEWOBJ complex": new(glob("__builtin__", "complex"), whole(1)), "NEWOBJ dtype": new(glob("torch", "float32")),
        "NEWOBJ function": new(glob("torch._utils", "_rebuild_tensor_v2")), "NEWOBJ encode": new(glob("_codecs", "encode"), text("a"), text("latin1")),
        "NEWOBJ FloatStorage": new(FLOATS), "NEWOBJ UntypedStorage": new(glob("torch.storage", "UntypedStorage"), whole(4)),
        "NEWOBJ TypedStorage": new(glob("torch.storage", "TypedStorage")), "NEWOBJ qscheme": new(glob("torch", "per_tensor_affine")),
        "NEWOBJ None": b"N)\x81", "NEWOBJ dict instance": b"})\x81", "NEWOBJ string": text("a") + b")\x81", "NEWOBJ args not a tuple": od + b"N\x81",
        "NEWOBJ sparse FloatTensor": new(glob("torch.sparse", "FloatTensor")),
        "REDUCE dtype": call(glob("torch", "float32")), "REDUCE None": b"N)R", "REDUCE string": text("a") + b")R", "REDUCE twice": call(od) + b")R",
        "REDUCE FloatStorage": call(FLOATS), "REDUCE UntypedStorage": call(glob("torch.storage", "UntypedStorage"), whole(4)),
        "REDUCE wrong args": call(glob("torch", "Size"), NONE), "REDUCE args not a tuple": od + b"NR", "REDUCE args list": od + b"]R",
        "REDUCE Tensor": call(plain), "REDUCE FloatTensor": call(glob("torch", "FloatTensor")), "REDUCE Parameter": call(param, tensor()),
        "REDUCE set of list": call(glob("__builtin__", "set"), b"](K\x01e"), "REDUCE set of lists": call(glob("__builtin__", "set"), b"]]a"),
        "REDUCE Counter dict": call(counter, b"}"), "REDUCE OrderedDict pairs": call(od, b"]](NNea"), "REDUCE OrderedDict not pairs": call(od, b"](K\x01e"),
        "REDUCE device bad": call(glob("torch", "device"), text("warp")), "REDUCE device index": call(glob("torch", "device"), text("cuda"), whole(0)),
        "REDUCE encode rot13": call(glob("_codecs", "encode"), text("a"), text("rot13")),
        "REDUCE encode empty": call(glob("_codecs", "encode"), text(""), text("latin1")),
        "REDUCE encode too wide": call(glob("_codecs", "encode"), text("\u0400"), text("latin1")),
        "REDUCE layout": call(glob("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
        "REDUCE layout unknown": call(glob("torch.serialization", "_get_layout"), text("torch.none")),
    }.items()


def references():
    """Persistent ids, and tensors that torch's own functions decline to build."""
    ref = glob("torch.storage", "UntypedStorage")
    yield from {
        "pid storage": storage(), "pid tensor": tensor(), "pid module": tuple_of(text("module"), NONE, NONE, NONE) + b"Q", "pid string": text("0") + b"Q",
        "pid list": b"]Q", "pid int": b"K\x00Q", "pid empty tuple": b")Q", "pid None": b"NQ", "pid six fields": storage(more=(NONE,)),
        "pid four fields": tuple_of(text("storage"), FLOATS, text("0"), text("cpu")) + b"Q",
        "pid word in bytes": storage(word=call(glob("_codecs", "encode"), text("storage"), text("latin1"))), "pid word is U": storage(word=b"U\x07storage"),
        "pid word other": storage(word=text("Storage")), "pid class untyped": storage(kind=ref, numel=whole(16)),
        "pid class wrong": storage(kind=glob("collections", "OrderedDict")), "pid class None": storage(kind=NONE),
        "pid class dtype": storage(kind=glob("torch", "float32")), "pid class TypedStorage": storage(kind=glob("torch.storage", "TypedStorage")),
        "pid class tensor": storage(kind=glob("torch", "FloatTensor")), "pid class cuda": storage(kind=glob("torch.cuda", "FloatStorage")),
        "pid key int": storage(key=b"K\x00"), "pid key missing": storage(key=text("9")),
        "pid key up": storage(key=text("../version"), kind=ref, numel=whole(2)), "pid key list": storage(key=b"]"),
        "pid numel small": storage(numel=whole(3)), "pid numel large": storage(numel=whole(5)), "pid numel negative": storage(numel=whole(-1)),
        "pid numel None": storage(numel=NONE), "pid numel float": storage(numel=b"G" + bytes(8)), "pid location unknown": storage(location=text("warp:0")),
        "pid location bytes": storage(location=b"U\x03cpu"), "pid location None": storage(location=NONE),
        "pid location meta": storage(location=text("meta")), "pid numel changes": b"(" + storage() + storage(numel=whole(3)) + b"t",
        "pid class changes": b"(" + storage() + storage(kind=glob("torch", "IntStorage")) + b"t",
        "pid class shrinks": b"(" + storage() + storage(kind=glob("torch", "HalfStorage")) + b"t", "view past the end": tensor(size=(5,)),
        "view offset past the end": tensor(offset=4, size=(1,)), "view negative stride": tensor(stride=(-1,)), "view negative offset": tensor(offset=-1),
        "view negative size": tensor(size=(-1,)), "view rank differs": tensor(stride=(1, 1)), "view of nothing": tensor(size=(0,), offset=9),
        "view stride zero": tensor(size=(1000000,), stride=(0,)), "view size None": tensor(data=storage()).replace(tuple_of(whole(4)), NONE, 1),
        "grad of floats": tensor(grad=TRUE), "grad of integers": tensor(storage(kind=glob("torch", "IntStorage")), grad=TRUE),
        "grad None": tensor(grad=NONE), "grad 1": tensor(grad=b"K\x01"), "hooks None": tensor(hooks=NONE), "hooks dict": tensor(hooks=EMPTY),
        "hooks text": tensor(hooks=text("a")), "metadata empty": tensor(metadata=(EMPTY,)), "metadata None": tensor(metadata=(NONE,)),
        "metadata neg": tensor(metadata=(b"}" + text("neg") + TRUE + b"s",)),
        "metadata conj of floats": tensor(metadata=(b"}" + text("conj") + TRUE + b"s",)),
        "metadata unknown": tensor(metadata=(b"}" + text("a") + TRUE + b"s",)), "metadata list": tensor(metadata=(b"]Na",)),
        "v1 tensor": call(glob("torch._utils", "_rebuild_tensor"), storage(), whole(0), tuple_of(whole(4)), tuple_of(whole(1))),
        "parameter of text": call(glob("torch._utils", "_rebuild_parameter"), text("a"), TRUE, HOOKS),
        "parameter": call(glob("torch._utils", "_rebuild_parameter"), tensor(), TRUE, HOOKS),
        "parameter with state": call(glob("torch._utils", "_rebuild_parameter_with_state"), tensor(), TRUE, HOOKS, b"}" + text("tag") + NONE + b"s"),
        "parameter of integers": call(glob("torch._utils", "_rebuild_parameter"), tensor(storage(kind=glob("torch", "IntStorage"))), TRUE, HOOKS),
        "meta tensor": call(glob("torch._utils", "_rebuild_meta_tensor_no_storage"), glob("torch", "float32"), tuple_of(whole(4)), tuple_of(whole(1)), FALSE),
        "wrapper of Tensor": wrapper(),
        "sparse": sparse(0), "sparse out of range": sparse(1), "qtensor": qtensor(), "qtensor scheme": qtensor(glob("torch", "per_channel_symmetric")),
        "v3": v3("float8_e5m2", 16),
        "v3 past the end": v3("uint16", 9),
    }.items()


def sparse(index):
    # The two numbers of this storage are 1 and 9; the tensor has room for four.
    data = storage(key=text("1"), kind=glob("torch", "LongStorage"), numel=whole(2))
    ints = tensor(data, offset=index, size=(1, 1), stride=(1, 1))
    return call(glob("torch._utils", "_rebuild_sparse_tensor"), call(glob("torch.serialization", "_get_layout"), text("torch.sparse_coo")), tuple_of(ints, tensor(size=(1,)), tuple_of(whole(4))))


def v3(dtype, size):
    data = storage(kind=glob("torch.storage", "UntypedStorage"), numel=whole(16))
    return call(glob("torch._utils", "_rebuild_tensor_v3"), data, whole(0), tuple_of(whole(size)), tuple_of(whole(1)), FALSE, HOOKS, glob("torch", dtype))


def wrapper():
    layout, device = call(glob("torch.serialization", "_get_layout"), text("torch.strided")), call(glob("torch", "device"), text("cpu"))
    shape = (tuple_of(whole(4)), tuple_of(whole(1)), whole(0))
    return call(glob("torch._utils", "_rebuild_wrapper_subclass"), glob("torch", "Tensor"), glob("torch", "float32"), *shape, layout, device, FALSE)


def qtensor(scheme=glob("torch", "per_tensor_affine")):
    scale = b"G" + np.array(0.5, ">f8").tobytes()
    data = storage(key=text("2"), kind=glob("torch", "QInt8Storage"))
    return call(glob("torch._utils", "_rebuild_qtensor"), data, whole(0), tuple_of(whole(4)), tuple_of(whole(1)), tuple_of(scheme, scale, whole(0)), FALSE, HOOKS)


EXTRA = [("archive/data/1", np.array([1, 9], "<i8").tobytes()), ("archive/data/2", bytes(4))]

GLOBALS = """
numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct numpy.dtype
numpy.ndarray numpy._core.numeric._frombuffer argparse.Namespace collections.defaultdict collections.deque collections.Counter builtins.frozenset
builtins.range builtins.slice builtins.bytes __builtin__.bytes __builtin__.set __builtin__.complex __builtin__.bytearray __builtin__.long
__builtin__.unicode __builtin__.xrange __builtin__.getattr __builtin__.object builtins.dict builtins.list builtins.tuple builtins.int builtins.str
builtins.object builtins.eval builtins.set builtins.complex builtins.bytearray copy_reg._reconstructor UserDict.OrderedDict UserList.Counter
UserDict.UserDict UserString.Counter collections.UserDict datetime.datetime pathlib.PosixPath pathlib._local.PosixPath decimal.Decimal enum.Enum
functools.partial os.system posix.system nt.system sys.exit sys.intern __builtin__.intern os.path.join subprocess.Popen torch._C.Generator
torch.Generator torch._utils._rebuild_nested_tensor torch.nested._internal.nested_tensor._rebuild_njt torch.nn.modules.linear.Linear torch.nn.Linear
torch.nn.parameter.Parameter torch.nn.Parameter torch.nn.parameter.Buffer torch.nn.parameter.UninitializedParameter torch.UntypedStorage
torch.storage.UntypedStorage torch.storage.TypedStorage torch.TypedStorage torch.storage._LegacyStorage torch.FloatStorage torch.cuda.FloatStorage
torch.cuda.QInt8Storage torch.cuda.BFloat16Storage torch.QUInt4x2Storage torch.QInt32Storage torch.FloatTensor torch.cuda.HalfTensor
torch.sparse.FloatTensor torch.cuda.sparse.DoubleTensor torch.QInt8Tensor torch.ComplexFloatTensor torch.BFloat16Tensor torch.cuda.BFloat16Tensor
torch.sparse.BFloat16Tensor torch.Tensor torch._tensor.Tensor torch._tensor._rebuild_from_type torch._tensor._rebuild_from_type_v2
torch.tensor._rebuild_from_type_v2 torch._utils._rebuild_tensor torch._utils._rebuild_xla_tensor torch._utils._rebuild_device_tensor_from_numpy
torch._utils._rebuild_device_tensor_from_cpu_tensor torch._utils._rebuild_wrapper_subclass torch._utils._rebuild_parameter_v2
torch.serialization._get_layout torch.strided torch.sparse_coo torch.contiguous_format torch.channels_last torch.preserve_format torch.float
torch.float32 torch.half torch.long torch.int64 torch.float8_e4m3fn torch.float8_e8m0fnu torch.float4_e2m1fn_x2 torch.bcomplex32 torch.chalf
torch.complex32 torch.int4 torch.uint1 torch.int8 torch.int9 torch.bits1x8 torch.qint8 torch.quint2x4 torch.per_tensor_affine
torch.per_channel_affine_float_qparams torch.per_channel_symmetric torch.device torch.Size torch.dtype torch.layout torch.qscheme torch.finfo
torch.nn.functional.relu torch.load torch.jit._pickle.build_intlist torch.jit.load torch.distributed.tensor.DTensor
torch.distributed._tensor.api.DTensor torch.utils.hooks.RemovableHandle torch.nn.backends.thnn._get_thnn_function_backend
torch.ao.quantization.observer.MinMaxObserver _codecs.encode _codecs.decode codecs.encode __main__.Net
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint omegaconf.dictconfig.DictConfig ml_dtypes.bfloat16 exceptions.StandardError
""".split()
