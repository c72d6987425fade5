"""Fixtures of checkpoints: tiny files of every shape that PyTorch writes, with the digest of each tensor as torch reads it back.

`expected.json` is made by opening the written files with `torch.load`, never from the objects that were saved.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import struct
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import reference

SEED = 5
# The dtypes that have a typed storage of their own, which is how files before "v3" tensors name them.
CLASSIC = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")
# The dtypes that only `torch._utils._rebuild_tensor_v3` can carry.
V3 = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


def make(folder: Path) -> dict:
    """Writes everything below `folder`; returns the numbers that the manifest records."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "dtypes.pth": zip_bytes(dtypes(CLASSIC)),
        "dtypes-legacy.pth": legacy_bytes(dtypes(CLASSIC)),
        "dtypes-v3.pth": zip_bytes(dtypes(V3)),
        "layouts.pth": zip_bytes(layouts()),
        "layouts-legacy.pth": legacy_bytes(layouts()),
        "training.pth": zip_bytes(training()),
        "training-legacy.pth.tar": legacy_bytes(training()),
        "parameters.pth": zip_bytes(parameters()),
        "conj-neg.pth": zip_bytes(conj_neg()),
    }
    expected = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        expected[name] = describe(folder / name)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return {"checkpoints": len(files)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def dtypes(names: tuple[str, ...]) -> OrderedDict:
    """One [2, 3] tensor per dtype, random bits where every pattern is a value of the dtype."""
    random, out = generator(), OrderedDict()
    for name in names:
        dtype = getattr(torch, name)
        if dtype == torch.bool:
            out[f"{name}.weight"] = torch.randint(0, 2, (2, 3), generator=random).bool()
            continue
        n_bytes = torch.empty(0, dtype=dtype).element_size() * 6
        out[f"{name}.weight"] = torch.randint(0, 256, (n_bytes,), generator=random).to(torch.uint8).view(dtype).reshape(2, 3)
    # Values that a conversion through another dtype would lose: signed zero, infinities, a NaN payload, a subnormal.
    if "float32" in names:
        bits = torch.tensor([0x80000000, 0x7F800000, 0xFF800000, 0x7FC12345, 0x00000001, 0x3F800000], dtype=torch.int64)
        out["float32.special"] = bits.to(torch.int32).view(torch.float32)
    return out


def layouts() -> OrderedDict:
    """Views: transposed, sliced, strided, expanded, shared, empty, zero-dimensional, channels-last."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tied = torch.randn(3, 5, generator=generator())
    return OrderedDict([
        ("contiguous", base),
        ("transposed", base.t()),
        ("sliced", base[1:3, 2:5]),
        ("every_other", base[::2, 1::3]),
        ("one_column", base[:, 4]),
        ("expanded", torch.tensor([[1.5], [-2.5]]).expand(2, 4)),
        ("expanded_from_one", torch.tensor(7.0).expand(3, 2)),
        ("permuted", torch.arange(24, dtype=torch.int32).reshape(2, 3, 4).permute(2, 0, 1)),
        ("channels_last", torch.arange(36, dtype=torch.float16).reshape(1, 3, 3, 4).contiguous(memory_format=torch.channels_last)),
        ("overlapping", torch.arange(6, dtype=torch.float64).as_strided((4, 3), (1, 1))),
        ("embed.weight", tied),
        ("head.weight", tied),
        ("zero_dimensional", torch.tensor(42, dtype=torch.int64)),
        ("empty", torch.empty(0)),
        ("empty_with_shape", torch.empty(0, 3, 2)),
        ("slice_of_large", torch.arange(300, dtype=torch.int16)[250:]),
        # An accent, a non-Latin script and a character outside the first plane.
        ("n\u00e4me.\u91cd\u307f.\U0001f9ea", torch.ones(2)),
    ])


def training() -> dict:
    """What the classic ImageNet training script saves, with DataParallel's prefix and SGD's momentum."""
    torch.manual_seed(SEED)
    model = nn.Module()
    model.module = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loss = model.module.fc(model.module.bn(model.module.conv(torch.ones(2, 3, 4, 4))).mean((2, 3))).square().sum()
    loss.backward()
    optimizer.step()
    return {
        "epoch": 18, "arch": "tiny", "state_dict": model.state_dict(), "best_acc1": torch.tensor(46.58), "optimizer": optimizer.state_dict(),
        "notes": {"seed": SEED, "resumed": False, "lr": 0.1, "tags": ["a", "b"], "shape": (3, 224, 224), "none": None},
    }


def parameters() -> OrderedDict:
    random = generator()
    frozen = nn.Parameter(torch.randn(2, 3, generator=random), requires_grad=False)
    return OrderedDict([
        ("conv.weight", frozen),
        ("fc.weight", nn.Parameter(torch.randn(4, 2, generator=random))),
        ("fc.bias", nn.Parameter(torch.zeros(4))),
        ("half.weight", nn.Parameter(torch.randn(2, 2, generator=random).half(), requires_grad=False)),
        ("plain", torch.ones(2)),
        ("plain_with_grad", torch.ones(2, requires_grad=True)),
        ("tied.weight", frozen),
    ])


def conj_neg() -> OrderedDict:
    """Tensors whose conjugation or negation is a flag that the file carries, not a change of the bytes."""
    numbers = torch.randn(2, 3, dtype=torch.complex64, generator=generator())
    # torch refuses one storage under two dtypes, so the float views have a storage of their own.
    apart = numbers.clone()
    return OrderedDict([
        ("complex", numbers),
        ("conjugated", numbers.conj()),
        ("conjugated_transposed", numbers.mH),
        ("negated", apart.conj().imag),
        ("real_part", apart.real),
    ])


def zip_bytes(value) -> bytes:
    # The name of the folder inside the archive comes from the file's; a stream gives the constant "archive".
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def legacy_bytes(value) -> bytes:
    """The stacked-pickle format, with storage keys that do not change from run to run.

    torch keys the storages by their addresses and writes them in that order. The keys are renamed in order of appearance (to numbers
    that look like the addresses they were) and the storages reordered; nothing else is touched.
    """
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    data = out.getvalue()
    starts, sizes = [0], {}
    for _ in range(5):  # magic number, protocol version, system, the object, the storage keys
        stream = io.BytesIO(data[starts[-1] :])
        for _op, _arg, _position in pickletools.genops(stream):
            pass
        starts.append(starts[-1] + stream.tell())
    obj, keys = data[starts[3] : starts[4]], pickle.loads(data[starts[4] : starts[5]])

    class Reader(pickle.Unpickler):
        def persistent_load(self, record):
            _kind, storage_type, key, _location, _numel, _view = record
            sizes[key] = storage_type(0).element_size()
            return torch.storage.TypedStorage(0, dtype=storage_type.dtype)

        def find_class(self, module, name):
            found = super().find_class(module, name)
            return (lambda *args: None) if name.startswith("_rebuild") else found

    Reader(io.BytesIO(obj)).load()
    blobs, position = {}, starts[5]
    for key in keys:
        (numel,) = struct.unpack_from("<q", data, position)
        end = position + 8 + numel * sizes[key]
        blobs[key], position = data[position:end], end
    assert position == len(data), "every byte of the legacy file is accounted for"
    order = sorted(keys, key=lambda key: obj.index(key.encode()))
    renamed = {key.encode(): f"{94000000000000 + 64 * i}".encode() for i, key in enumerate(order)}
    text = re.compile(b"X(....)(%s)" % b"|".join(map(re.escape, renamed)), re.DOTALL)
    obj = text.sub(lambda m: b"X" + struct.pack("<I", len(renamed[m[2]])) + renamed[m[2]], obj)
    new_keys = pickle.dumps([renamed[key.encode()].decode() for key in order], protocol=2)
    return data[: starts[3]] + obj + new_keys + b"".join(blobs[key] for key in order)


def describe(path: Path) -> dict:
    """Tensors by dotted path in file order, and every other leaf, as torch reads the file."""
    # The files are this script's own, and whole training checkpoints are more than `weights_only` admits in every version.
    tensors, other = [], []
    walk(torch.load(path, weights_only=False), "", tensors, other)
    entry = {"size": path.stat().st_size, "tensors": [tensor_entry(n, t) for n, t in tensors], "other": other}
    shared = {}
    for name, tensor in tensors:
        if tensor.untyped_storage().nbytes():
            shared.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    entry["shared"] = [names for names in shared.values() if len(names) > 1]
    return entry


def walk(value, path: str, tensors: list, other: list) -> None:
    if isinstance(value, torch.Tensor):
        tensors.append((path, value))
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            walk(item, f"{path}.{key}" if path else str(key), tensors, other)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple, torch.Tensor)) for item in value):
        for index, item in enumerate(value):
            walk(item, f"{path}.{index}", tensors, other)
    else:
        other.append({"name": path, "type": type(value).__name__, "value": value})


def tensor_entry(name: str, tensor: torch.Tensor) -> dict:
    flags = [flag for flag, is_set in (("conj", tensor.is_conj()), ("neg", tensor.is_neg())) if is_set]
    # The digest is over the values: conjugation and negation applied, strides gathered.
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    data = bytes(values.reshape(-1).view(torch.uint8).numpy()) if values.numel() else b""
    entry = {
        "name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "stride": list(tensor.stride()),
        "storage_offset": tensor.storage_offset(), "requires_grad": tensor.requires_grad,
        "parameter": isinstance(tensor, nn.Parameter), "sha256": reference.sha256(data),
    }
    return entry | ({"flags": flags} if flags else {})
