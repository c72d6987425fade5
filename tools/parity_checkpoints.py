#!/usr/bin/env python3
"""Compares the graftwork binary with PyTorch, bit for bit, on a generated zoo of checkpoints.

    python tools/parity_checkpoints.py target/debug/graftwork [--file CHECKPOINT]...

Needs torch, numpy, safetensors (torchvision for the whole models). Exits 1 if anything differs.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch

warnings.filterwarnings("ignore")

CLASSIC = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128"]
NEW = ["uint16", "uint32", "uint64", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu", "complex32"]
FORMS = ["contiguous", "transposed", "sliced", "stepped", "expanded", "empty", "scalar"]

n_checks = 0
failures = []


def check(label, found, expected):
    global n_checks
    n_checks += 1
    if found != expected:
        failures.append(label)
        print(f"MISMATCH {label}\n  found    {str(found)[:400]}\n  expected {str(expected)[:400]}")


def run(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def bits(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.numel() == 0:
        return b""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def random_bits(name, shape):
    dtype = getattr(torch, name)
    n = int(np.prod(shape, dtype=np.int64))
    if name == "bool":
        return torch.randint(0, 2, shape, dtype=torch.uint8).bool()
    if dtype.is_floating_point and dtype.itemsize == 1:
        return torch.randint(0, 127, (n,), dtype=torch.uint8).view(dtype).reshape(shape)
    if dtype.is_complex and name != "complex32":
        return torch.randn(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 255, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype).reshape(shape)


def form_of(name, form):
    make = lambda *shape: random_bits(name, shape)
    return {
        "contiguous": lambda: make(3, 4, 2),
        "transposed": lambda: make(5, 3).t(),
        "sliced": lambda: make(6, 4)[1:4, 1:3],
        "stepped": lambda: make(12)[1::3],
        "expanded": lambda: make(1, 3).expand(4, 3),
        "empty": lambda: make(0, 4),
        "scalar": lambda: make(1)[0],
    }[form]()


def save(value, path, container):
    torch.save(value, path, _use_new_zipfile_serialization=container != "legacy")
    if container == "deflated":
        with zipfile.ZipFile(path) as source:
            records = [(info.filename, source.read(info)) for info in source.infolist()]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in records:
                out.writestr(name, data)


def compare_listing(label, listing, tensors):
    listed = listing["tensors"]
    check(f"{label} names", [t["name"] for t in listed], list(tensors))
    for entry in listed:
        tensor = tensors.get(entry["name"])
        if tensor is None:
            continue
        found = (entry["dtype"], entry["shape"], entry["stride"], entry["offset"], entry["requires_grad"])
        expected = (str(tensor.dtype)[6:], list(tensor.shape), list(tensor.stride()), tensor.storage_offset(), tensor.requires_grad)
        check(f"{label} {entry['name']}", found, expected)


def compare_values(binary, label, path, folder, tensors, by_npy=False):
    """Every tensor through `convert` where safetensors has the type, else through `show --npy`."""
    from safetensors import safe_open

    out = os.path.join(folder, "out.safetensors")
    inexpressible = [n for n, t in tensors.items() if t.dtype in (torch.complex128, torch.complex32)]
    code, _, err = run(binary, "convert", path, out, "--force")
    if inexpressible:
        check(f"{label} convert refuses", (code, "safetensors cannot express" in err), (3, True))
    else:
        check(f"{label} convert: {err}", code, 0)
        with open(out, "rb") as file:
            data = file.read()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        check(f"{label} converted order", list(header), list(tensors))
        check(f"{label} data is 8-aligned", start % 8, 0)
        for name, info in header.items():
            a, b = info["data_offsets"]
            check(f"{label} values of {name}", data[start + a : start + b], bits(tensors[name]))
            check(f"{label} {name} is aligned", a % max(tensors[name].dtype.itemsize, 1), 0)
        if not any("float8" in str(t.dtype) for t in tensors.values()):
            with safe_open(out, "pt") as file:
                check(f"{label} safetensors reads it", sorted(file.keys()), sorted(tensors))
    if by_npy or inexpressible:
        for name, tensor in tensors.items():
            if tensor.dtype in (torch.bfloat16, torch.complex32) or "float8" in str(tensor.dtype):
                continue
            out = os.path.join(folder, "out.npy")
            code, _, err = run(binary, "show", path, name, "--npy", out, "--force")
            check(f"{label} show --npy {name}: {err}", code, 0)
            array = np.load(out)
            check(f"{label} npy of {name}", (array.shape, array.tobytes()), (tuple(tensor.shape), bits(tensor)))


def whole(binary, label, path, folder, tensors, **options):
    code, out, err = run(binary, "inspect", path, "--json")
    check(f"{label} inspect: {err}", code, 0)
    if code == 0:
        listing = json.loads(out)
        check(f"{label} problems", listing["problems"], [])
        compare_listing(label, listing, tensors)
        compare_values(binary, label, path, folder, tensors, **options)


def zoo(binary, folder):
    path = os.path.join(folder, "zoo.bin")
    for container in ["zip", "deflated", "legacy"]:
        for name in CLASSIC + NEW:
            if container == "legacy" and name in NEW:
                # The old format has typed storages only.
                continue
            tensors = OrderedDict((form, form_of(name, form)) for form in FORMS)
            tensors["shared"] = tensors["contiguous"]
            tensors["view"] = tensors["contiguous"].reshape(-1)[2:5]
            save(tensors, path, container)
            expected = torch.load(path, weights_only=True)
            whole(binary, f"{container}/{name}", path, folder, expected, by_npy=name in ("float32", "int16", "bool"))
    for order in ["big"]:
        for name in CLASSIC + ["uint16", "float8_e5m2", "complex32"]:
            tensors = OrderedDict((form, form_of(name, form)) for form in FORMS if form != "empty")
            save(tensors, path, "zip")
            expected = torch.load(path, weights_only=True)
            swap_bytes(path, {str(i): t for i, t in enumerate(tensors.values())})
            whole(binary, f"{order}-endian/{name}", path, folder, expected)
    x = torch.randn(3, 2, dtype=torch.complex64)
    y = torch.randn(3, 2, dtype=torch.complex64)
    lazy = OrderedDict(conj=x.conj(), neg=y.conj().imag, slice=x.conj()[1:], plain=x)
    for container in ["zip", "legacy"]:
        save(lazy, path, container)
        whole(binary, f"{container}/lazy bits", path, folder, torch.load(path, weights_only=True))
    # Protocol 0 writes a storage's reference as the text of a tuple, which torch itself cannot read back.
    for protocol in range(1, 6):
        for container in ["zip", "legacy"]:
            tensors = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor(7))
            torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
            whole(binary, f"{container}/protocol {protocol}", path, folder, tensors)


def swap_bytes(path, tensors):
    """Rewrites an archive as a big-endian machine would have written it."""
    with zipfile.ZipFile(path) as source:
        records = [(info.filename, source.read(info)) for info in source.infolist()]
    with zipfile.ZipFile(path, "w") as out:
        for name, data in records:
            key = name.rsplit("/", 1)[1]
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:
                dtype = tensors[key].dtype
                size = dtype.itemsize // (2 if dtype.is_complex else 1)
                data = np.frombuffer(data, np.uint8).reshape(-1, size)[:, ::-1].tobytes()
            out.writestr(name, data)


def shapes_of_checkpoints(binary, folder):
    path = os.path.join(folder, "wrapped.bin")
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 4, 3), bn=torch.nn.BatchNorm2d(4), fc=torch.nn.Linear(4, 2)))
    state = model.state_dict()
    adam = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    for container in ["zip", "legacy"]:
        for key in ["state_dict", "model", "module", "ema"]:
            save({"epoch": 3, key: state, "optimizer": adam.state_dict(), "loss": 0.25, "arch": "net"}, path, container)
            code, out, _ = run(binary, "inspect", path, "--json")
            listing = json.loads(out)
            check(f"{container}/{key} wrapper", listing["wrapper"], key)
            compare_listing(f"{container}/{key}", listing, state)
            other = {o["name"]: o for o in listing["other"]}
            check(f"{container}/{key} epoch", other["epoch"]["value"], "3")
            check(f"{container}/{key} arch", other["arch"]["value"], "'net'")
            check(f"{container}/{key} loss", other["loss"]["value"], "0.25")
            check(f"{container}/{key} exp_avg", other["optimizer.state.0.exp_avg"]["shape"], [4, 3, 3, 3])
            n_moments = sum(1 for name in other if name.startswith("optimizer.state."))
            check(f"{container}/{key} optimizer tensors", n_moments, 3 * len(list(model.parameters())))
        save(model, path, container)
        parameters = OrderedDict(model.state_dict(keep_vars=True))
        whole(binary, f"{container}/whole model", path, folder, parameters)
        shared = {"w": torch.randn(2)}
        save({"a": shared, "b": shared}, path, container)
        flat = {"a.w": shared["w"], "b.w": shared["w"]}
        whole(binary, f"{container}/aliased dict", path, folder, flat)
        save(torch.arange(4), path, container)
        whole(binary, f"{container}/bare tensor", path, folder, {"tensor": torch.arange(4)})
        save([torch.arange(4), (torch.ones(2),)], path, container)
        whole(binary, f"{container}/list", path, folder, {"0": torch.arange(4), "1.0": torch.ones(2)})
        frozen = OrderedDict(a=torch.nn.Parameter(torch.ones(2), requires_grad=False), b=torch.nn.Parameter(torch.ones(2)))
        save(frozen, path, container)
        whole(binary, f"{container}/parameters", path, folder, frozen)
        mixed = {"w": torch.ones(2), "s": torch.eye(2).to_sparse(), "q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "m": torch.empty(2, device="meta"), "n": 3}
        save(mixed, path, container)
        listing = json.loads(run(binary, "inspect", path, "--json")[1])
        check(f"{container}/exotic problems", sorted(p["name"] for p in listing["problems"]), ["m", "q", "s"])
        check(f"{container}/exotic rest", "w" in [t["name"] for t in listing["tensors"]], True)
        check(f"{container}/exotic convert", run(binary, "convert", path, os.path.join(folder, "no.safetensors"))[0], 3)
        check(f"{container}/nothing half-written", os.path.exists(os.path.join(folder, "no.safetensors")), False)
    try:
        import torchvision
    except ImportError:
        print("torchvision is missing: whole models of its families are not compared")
        return
    for family in ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_0", "vit_b_32", "googlenet"]:
        model = getattr(torchvision.models, family)(weights=None)
        for n, parameter in enumerate(model.parameters()):
            parameter.requires_grad = n % 3 == 0
        save(model, path, "zip")
        whole(binary, f"torchvision {family}", path, folder, OrderedDict(model.state_dict(keep_vars=True)))


def printing(binary, folder):
    """`show` against `print`, character for character."""
    torch.manual_seed(1)
    nan, inf = float("nan"), float("inf")
    tensors = OrderedDict(
        scalar=torch.tensor(3.25), whole=torch.tensor(3.0), integer=torch.tensor(-7), flag=torch.tensor(True),
        small=torch.randn(3), tiny=torch.randn(4) * 1e-6, large=torch.randn(5) * 1e9, wide=torch.tensor([1e-3, 5e3]),
        wholes=torch.arange(12.0), big_wholes=torch.tensor([1.0, 2000.0]), zeros=torch.zeros(3, 3), nans=torch.tensor([nan, 1.0, -inf]),
        only_nan=torch.tensor([nan, inf]), wholes_nan=torch.tensor([nan, 1.0, 100.0]), negative_zero=torch.tensor([-0.0, 0.5]),
        matrix=torch.randn(3, 4), cube=torch.randn(2, 3, 4), conv=torch.randn(8, 3, 3, 3), five=torch.randn(2, 1, 2, 1, 3),
        long=torch.randn(30), summed=torch.randn(1001), summed2=torch.randn(40, 50), summed4=torch.randn(12, 3, 9, 9), thin=torch.randn(600, 2),
        exact=torch.randn(1000), ints=torch.randint(-1000, 1000, (40,)), int8=torch.randint(-100, 100, (3, 30), dtype=torch.int8),
        bytes=torch.randint(0, 255, (2, 700), dtype=torch.uint8), flags=torch.randint(0, 2, (30,)).bool(), true=torch.ones(3).bool(),
        half=torch.randn(5).half(), brain=torch.randn(2, 5).bfloat16(), double=torch.randn(3).double() * 1e-3,
        complex=torch.randn(3, dtype=torch.complex64), complex2=torch.randn(20, 2, dtype=torch.complex128), empty=torch.empty(0), empty2=torch.empty(0, 3),
        empty_int=torch.empty(0, dtype=torch.int64), transposed=torch.randn(5, 3).t(), expanded=torch.randn(1).expand(2000),
        huge_int=torch.tensor([2**63 - 1, -(2**63)]), float8=torch.randn(6).to(torch.float8_e4m3fn), float8b=torch.randn(6).to(torch.float8_e5m2),
        ties=torch.tensor([0.5, 1.5, 2.5, 0.00005, 1.00005, 2.00015]), u16=torch.arange(5).to(torch.uint16), rows=torch.randn(7, 200),
        fuzzy=torch.tensor([99999999.0, 1.0]), over=torch.tensor([1e8 + 8, 3e8]), trained=torch.randn(3, requires_grad=True),
        trained_long=torch.randn(4, 9, requires_grad=True), half_long=torch.randn(11).half(), single=torch.randn(1, 1, 1),
    )
    for n in range(60):
        shape = tuple(torch.randint(1, 9, (int(torch.randint(1, 5, ())),)).tolist())
        tensors[f"random{n}"] = torch.randn(shape) * 10.0 ** float(torch.randint(-5, 6, ()))
    path = os.path.join(folder, "print.pth")
    torch.save(tensors, path)
    for name, tensor in tensors.items():
        _, out, err = run(binary, "show", path, name)
        check(f"print {name} {err}", out, f"{tensor!r}\n")
    for index in ["conv.weight[0]", "[0]", "[-1]", "[0, 1]", "[1:3]", "[:, 0]", "[..., 0]"][1:6]:
        _, out, err = run(binary, "show", path, f"conv{index}")
        check(f"print conv{index} {err}", out, str(eval(f"tensors['conv']{index}")) + "\n")
    code, _, err = run(binary, "show", path, "summde")
    check("a wrong name", (code, "did you mean" in err), (2, True))


def bad_files(binary, folder):
    good = os.path.join(folder, "good.pth")
    torch.save({"w": torch.randn(100)}, good)
    with open(good, "rb") as file:
        data = file.read()

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    cases = {
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer", 3),
        "html": (b"<!DOCTYPE html>\n<html></html>", "HTML page", 3),
        "truncated": (data[: len(data) // 2], "cut off", 3),
        "empty": (b"", "empty", 3),
        "gzip": (b"\x1f\x8b\x08\x00", "gzip", 3),
        "text": (b"hello world", "no PyTorch checkpoint", 3),
        "pickle": (pickle.dumps({"a": 1}), "plain Python pickle", 3),
        "evil": (pickle.dumps(Evil()), "could run code", 4),
        "onnx": (b"\x08\x08\x12\x07pytorch", "ONNX", 3),
    }
    for name, (content, words, expected) in cases.items():
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        target = os.path.join(folder, "bad.safetensors")
        for args in [("inspect", path), ("show", path, "w"), ("convert", path, target)]:
            code, out, err = run(binary, *args)
            check(f"{args[0]} {name}: {err}", (code, words in err, out, os.path.exists(target)), (expected, True, "", False))
    check("missing file", run(binary, "inspect", os.path.join(folder, "nowhere"))[0], 3)
    check("directory", run(binary, "inspect", folder)[0], 3)
    torch.save({"w": torch.ones(2), "x": Evil()}, good)
    check("an attack beside tensors", run(binary, "inspect", good)[0], 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--file", action="append", default=[], help="a checkpoint of your own to compare")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        zoo(args.binary, folder)
        shapes_of_checkpoints(args.binary, folder)
        printing(args.binary, folder)
        bad_files(args.binary, folder)
        for path in args.file:
            state = torch.load(path, map_location="cpu", weights_only=False)
            state = state.get("state_dict", state)
            code, out, err = run(args.binary, "inspect", path, "--json")
            check(f"{path}: {err}", code, 0)
            compare_listing(path, json.loads(out), state)
            compare_values(args.binary, path, path, folder, state)
    print(f"torch {torch.__version__}: {n_checks} checks, {len(failures)} mismatches")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
