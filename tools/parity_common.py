"""What the parity scripts share: the tally of checks, the zoo's tensors, and how one file is compared with PyTorch."""

import json
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import torch

# torch.save writes each of these as a class of storage of its own (`torch FloatStorage`).
CLASSIC = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"]
# And these as bytes beside a dtype (`_rebuild_tensor_v3`), in archives only. bcomplex32 is absent from older releases.
V3 = ["uint16", "uint32", "uint64", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu",
      "float4_e2m1fn_x2", "complex32", "bcomplex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]
V3 = [name for name in V3 if hasattr(torch, name)]
# safetensors has no name for these; float4 it counts in halves of a byte, which a writer may also decline.
INEXPRESSIBLE = ["complex128", "complex32", "bcomplex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]
NUMPY_HAS = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128", "uint16", "uint32", "uint64"]

n_checks = 0
failures = []


def check(label, found, expected):
    global n_checks
    n_checks += 1
    if found != expected:
        failures.append(label)
        print(f"MISMATCH {label}\n  found    {str(found)[:400]}\n  expected {str(expected)[:400]}")


def finish():
    print(f"torch {torch.__version__}: {n_checks} checks, {len(failures)} mismatches")
    sys.exit(1 if failures else 0)


def run(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def bits(tensor):
    """The elements of a strided tensor in row-major order. Most operations lack the odd types, so it works on integers of their size."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.numel() == 0:
        return b""
    if tensor.dtype.itemsize == 16:
        tensor = torch.view_as_real(tensor)
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.view(integer).contiguous().numpy().tobytes()


def random_bits(name, shape):
    dtype = getattr(torch, name)
    n = int(np.prod(shape, dtype=np.int64))
    if name == "bool":
        return torch.randint(0, 2, shape, dtype=torch.uint8).bool()
    if dtype.is_floating_point and dtype.itemsize == 1:
        return torch.randint(0, 127, (n,), dtype=torch.uint8).view(dtype).reshape(shape)
    if dtype.is_complex and dtype.itemsize > 4:
        return torch.randn(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 255, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype).reshape(shape)


def save(value, path, container):
    torch.save(value, path, _use_new_zipfile_serialization=container != "legacy")
    if container == "deflated":
        with zipfile.ZipFile(path) as source:
            records = [(info.filename, source.read(info)) for info in source.infolist()]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in records:
                out.writestr(name, data)


def storage_bytes(tensor):
    storage = tensor.untyped_storage()
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy())


def jagged_parts(tensor):
    """What `_rebuild_njt` is given: the attributes that hold tensors, as the file orders them."""
    _rebuild_from_type, (_rebuild, _class, (state,), _attributes) = tensor.__reduce_ex__(2)
    flat = OrderedDict()
    for name, value in state.items():
        # Its cache of the longest and the shortest row is a dict of tensors.
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for key, part in inner:
            if isinstance(part, torch.Tensor):
                flat[name.removeprefix("_") if key is None else f"{name.removeprefix('_')}.{key}"] = part
    return flat


def parts_of(tensor):
    """The kind, the facts and the plain tensors of a tensor that is not one strided array; None for one that is."""
    if tensor.device.type == "meta":
        return "meta", {}, OrderedDict()
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and tensor.layout != torch.jagged:
        state = OrderedDict((name, part) for name, part in vars(tensor).items() if isinstance(part, torch.Tensor))
        return "subclass", {"class": f"{type(tensor).__module__}.{type(tensor).__qualname__}"}, state
    if tensor.is_quantized:
        packed = tensor.dtype in (torch.quint4x2, torch.quint2x4)
        raw = torch.frombuffer(bytearray(storage_bytes(tensor)), dtype=torch.uint8) if packed else strided_like(tensor)
        facts, parts = {"qscheme": str(tensor.qscheme())[6:]}, OrderedDict(int_repr=raw)
        if facts["qscheme"].startswith("per_tensor"):
            facts.update(scale=tensor.q_scale(), zero_point=tensor.q_zero_point())
        else:
            facts["axis"] = tensor.q_per_channel_axis()
            parts.update(scales=tensor.q_per_channel_scales(), zero_points=tensor.q_per_channel_zero_points())
        return "quantized", facts, parts
    if tensor.layout == torch.sparse_coo:
        return "sparse_coo", {"is_coalesced": tensor.is_coalesced()}, OrderedDict(indices=tensor._indices(), values=tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return str(tensor.layout)[6:], {}, OrderedDict(crow_indices=tensor.crow_indices(), col_indices=tensor.col_indices(), values=tensor.values())
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return str(tensor.layout)[6:], {}, OrderedDict(ccol_indices=tensor.ccol_indices(), row_indices=tensor.row_indices(), values=tensor.values())
    if tensor.layout == torch.jagged:
        return "jagged", {}, jagged_parts(tensor)
    if tensor.is_nested:
        parts = (tensor.values(), tensor._nested_tensor_size(), tensor._nested_tensor_strides(), tensor._nested_tensor_storage_offsets())
        return "nested", {}, OrderedDict(zip(["values", "sizes", "strides", "offsets"], parts))
    return None


def strided_like(tensor):
    """The integers of a quantized tensor with its own strides: `int_repr()` gives them afresh."""
    integers = tensor.int_repr()
    out = torch.empty_strided(tensor.shape, tensor.stride(), dtype=integers.dtype)
    return out.copy_(integers)


def description(tensor):
    """Everything of a tensor that must survive, as something that compares by ==; where its storage lies is compared elsewhere."""
    head = (type(tensor).__name__, str(tensor.dtype), tensor.requires_grad)
    record = parts_of(tensor)
    if record is None:
        return head + (tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg(), bits(tensor))
    kind, facts, parts = record
    shape = () if kind in ("nested", "jagged") else tuple(tensor.shape)
    return head + (kind, shape, facts, [(name, description(part)) for name, part in parts.items()])


def sharing(tensors):
    """For each strided tensor: the first name on its storage, and how far from that one it begins."""
    first, out = {}, []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or parts_of(tensor) is not None:
            continue
        owner, start = first.setdefault(tensor.untyped_storage()._cdata, (name, tensor.storage_offset()))
        out.append((name, owner, tensor.storage_offset() - start))
    return out


def same(label, found, expected):
    """Compares two plain structures to the last bit, with the types of containers, order, and which objects hold tensors."""
    if isinstance(expected, torch.Tensor):
        check(label, isinstance(found, torch.Tensor) and description(found), description(expected))
    elif isinstance(expected, dict):
        check(f"{label} is a", type(found), type(expected))
        if isinstance(found, dict):
            check(f"{label} keys", list(found), list(expected))
            for key in expected:
                if key in found:
                    same(f"{label}[{key!r}]", found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        check(f"{label} is a", (type(found), len(found)), (type(expected), len(expected)))
        for n, (a, b) in enumerate(zip(found, expected)):
            same(f"{label}[{n}]", a, b)
    else:
        check(label, (type(found), repr(found)), (type(expected), repr(expected)))


def is_float(text, number):
    try:
        return float(text) == number
    except (TypeError, ValueError):
        return False


def compare_entry(label, entry, tensor):
    found = (entry["dtype"], entry["shape"], entry["stride"], entry["offset"], entry["requires_grad"])
    expected = (str(tensor.dtype)[6:], list(tensor.shape), list(tensor.stride()), tensor.storage_offset(), tensor.requires_grad)
    check(label, found, expected)


def compare_listing(label, listing, tensors):
    """`tensors` and `records` of `inspect --json` against what torch holds."""
    strided = [name for name, tensor in tensors.items() if parts_of(tensor) is None]
    check(f"{label} names", [t["name"] for t in listing["tensors"]], strided)
    for entry in listing["tensors"]:
        if entry["name"] in strided:
            compare_entry(f"{label} {entry['name']}", entry, tensors[entry["name"]])
    records = {record["name"]: record for record in listing.get("records", [])}
    exotic = [name for name in tensors if name not in strided]
    check(f"{label} records", list(records), exotic)
    for name in exotic:
        if name not in records:
            continue
        record, tensor, (kind, facts, parts) = records[name], tensors[name], parts_of(tensors[name])
        found = (record["kind"], record["dtype"], record["requires_grad"])
        check(f"{label} {name}", found, (kind, str(tensor.dtype)[6:], tensor.requires_grad))
        if kind not in ("nested", "jagged"):
            check(f"{label} {name} shape", record["shape"], list(tensor.shape))
        for fact, value in facts.items():
            text = record["facts"].get(fact)
            if isinstance(value, bool):
                check(f"{label} {name} {fact}", str(text).lower(), str(value).lower())
            elif isinstance(value, (int, float)):
                check(f"{label} {name} {fact} {text}", is_float(text, value), True)
            else:
                check(f"{label} {name} {fact}", text, value)
        check(f"{label} {name} parts", [part["name"] for part in record["parts"]], list(parts))
        for entry in record["parts"]:
            part = parts.get(entry["name"])
            if part is not None:
                found = (entry["dtype"], entry["shape"], entry["stride"], entry["requires_grad"])
                check(f"{label} {name}.{entry['name']}", found, (str(part.dtype)[6:], list(part.shape), list(part.stride()), part.requires_grad))


def compare_npy(binary, label, path, folder, tensors):
    """`show --npy` of every tensor and of every part of the records, as far as NumPy has the type."""
    flat = OrderedDict()
    for name, tensor in tensors.items():
        record = parts_of(tensor)
        flat.update({name: tensor} if record is None else {f"{name}.{part}": value for part, value in record[2].items()})
    for name, tensor in flat.items():
        if str(tensor.dtype)[6:] in NUMPY_HAS:
            out = os.path.join(folder, "out.npy")
            code, _, err = run(binary, "show", path, name, "--npy", out, "--force")
            check(f"{label} show --npy {name}: {err}", code, 0)
            if code == 0:
                array = np.load(out)
                check(f"{label} npy of {name}", (array.shape, array.tobytes()), (tuple(tensor.shape), bits(tensor)))


def compare_safetensors(binary, label, path, folder, tensors):
    from safetensors import safe_open

    out = os.path.join(folder, "out.safetensors")
    code, _, err = run(binary, "convert", path, out, "--force")
    types = {str(t.dtype)[6:] for t in tensors.values()}
    inexpressible = [name for name, t in tensors.items() if str(t.dtype)[6:] in INEXPRESSIBLE or parts_of(t) is not None]
    if inexpressible:
        check(f"{label} convert refuses: {err}", (code, any(name in err for name in inexpressible)), (3, True))
        return
    if "float4_e2m1fn_x2" in types and code == 3:
        return
    check(f"{label} convert: {err}", code, 0)
    if code != 0:
        return
    with open(out, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    # One tensor under several names is written once, and its other names are in the metadata, as safetensors' save_model has it.
    second = {name: kept for name, kept in metadata.items() if name in tensors and kept in header}
    for name, kept in second.items():
        same = (tensors[name].data_ptr(), tensors[name].stride(), bits(tensors[name]))
        check(f"{label} {name} is {kept}", same, (tensors[kept].data_ptr(), tensors[kept].stride(), bits(tensors[kept])))
    written = [name for name in tensors if name not in second]
    check(f"{label} converted order", list(header), written)
    check(f"{label} data is 8-aligned", start % 8, 0)
    for name, info in header.items():
        a, b = info["data_offsets"]
        check(f"{label} values of {name}", data[start + a : start + b], bits(tensors[name]))
        check(f"{label} {name} is aligned", a % max(tensors[name].dtype.itemsize, 1), 0)
    if not any("float8" in name or "float4" in name for name in types):
        with safe_open(out, "pt") as file:
            check(f"{label} safetensors reads it", sorted(file.keys()), sorted(written))


def check_archive(label, path):
    """What every archive that Graftwork writes promises: stored, aligned to 64 bytes, sums right."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        check(f"{label} sums", archive.testzip(), None)
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            check(f"{label} {info.filename} stored, aligned", (info.compress_type, start % 64), (zipfile.ZIP_STORED, 0))


def compare_pth(binary, label, path, folder, tensors):
    """`convert` to .pth: torch loads it safely, by reading and by mapping, and finds the same state dict."""
    out = os.path.join(folder, "out.pth")
    code, _, err = run(binary, "convert", path, out, "--force")
    unsafe = [name for name, tensor in tensors.items() if (parts_of(tensor) or [""])[0] in ("nested", "jagged", "subclass")]
    if unsafe:
        # `weights_only` has no function that rebuilds them.
        check(f"{label} to .pth refuses: {err}", (code, any(name in err for name in unsafe)), (3, True))
        return
    check(f"{label} to .pth: {err}", code, 0)
    if code != 0:
        return
    check_archive(f"{label} .pth", out)
    for mmap in [False, True]:
        try:
            loaded = torch.load(out, weights_only=True, mmap=mmap)
        except Exception as error:
            check(f"{label} .pth loads, mmap={mmap}", str(error), "")
            continue
        check(f"{label} .pth root", type(loaded), OrderedDict)
        check(f"{label} .pth names", list(loaded), list(tensors))
        for name, tensor in tensors.items():
            if name in loaded:
                same(f"{label} .pth mmap={mmap} {name}", loaded[name], tensor)
        check(f"{label} .pth sharing", sharing(loaded), sharing(tensors))
        if hasattr(tensors, "_metadata"):
            check(f"{label} .pth _metadata", getattr(loaded, "_metadata", None), tensors._metadata)


def compare_plain_profile(binary, label, path, folder, tensors):
    """`convert --plain`: the C++ reader of libtorch, which Python reaches too, loads it; or the writer says what it cannot take."""
    out = os.path.join(folder, "plain.pth")
    code, _, err = run(binary, "convert", path, out, "--plain", "--force")
    refused = [name for name, tensor in tensors.items() if str(tensor.dtype)[6:] in V3]
    if refused:
        check(f"{label} --plain refuses: {err}", (code, any(name in err for name in refused)), (3, True))
        return
    check(f"{label} --plain: {err}", code, 0)
    if code != 0:
        return
    check_archive(f"{label} --plain", out)
    with open(out, "rb") as file:
        by_cpp = torch._C._pickle_load_obj(file.read())
    for reader, loaded in [("Python", torch.load(out, weights_only=True)), ("C++", by_cpp)]:
        check(f"{label} --plain root, {reader}", (type(loaded), list(loaded)), (dict, list(tensors)))
        for name, tensor in tensors.items():
            # Which is no Parameter but asks for its gradient as before.
            same(f"{label} --plain {name}, {reader}", loaded[name], tensor.detach().requires_grad_(tensor.requires_grad))


def whole(binary, label, path, folder, tensors, by_npy=False, other=None):
    """One file, through every verb that shows or rewrites it. `tensors` is what torch says the state dict is."""
    code, out, err = run(binary, "inspect", path, "--json")
    check(f"{label} inspect: {err}", code, 0)
    if code != 0:
        return None
    listing = json.loads(out)
    check(f"{label} problems", listing["problems"], [])
    compare_listing(label, listing, tensors)
    compare_safetensors(binary, label, path, folder, tensors)
    compare_pth(binary, label, path, folder, tensors)
    if by_npy or any(t.dtype == torch.complex128 for t in tensors.values()):
        compare_npy(binary, label, path, folder, tensors)
    return listing
