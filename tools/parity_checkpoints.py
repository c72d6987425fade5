#!/usr/bin/env python3
"""Compares the graftwork binary with PyTorch, bit for bit, on a generated zoo of checkpoints.

    python tools/parity_checkpoints.py target/debug/graftwork [--only PART]... [--file CHECKPOINT]...

Needs torch, numpy, safetensors (torchvision for the whole models). Exits 1 if anything differs.
"""

import argparse
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch

import parity_models
import parity_scan
from parity_common import CLASSIC, V3, check, compare_listing, compare_plain_profile, compare_pth, compare_safetensors, finish, random_bits, run, save, whole

warnings.filterwarnings("ignore")


def forms_of(name):
    """One tensor of each form, and two that share the first one's storage."""
    make = lambda *shape: random_bits(name, shape)
    tensors = OrderedDict(
        contiguous=make(3, 4, 2), transposed=make(5, 3).t(), sliced=make(6, 4)[1:4, 1:3], stepped=make(12)[1::3],
        expanded=make(1, 3).expand(4, 3), empty=make(0, 4), scalar=make(1)[0],
    )
    tensors["shared"] = tensors["contiguous"]
    tensors["view"] = tensors["contiguous"].reshape(-1)[2:5]
    return tensors


def zoo(binary, folder):
    path = os.path.join(folder, "zoo.bin")
    for container in ["zip", "deflated", "legacy", "big"]:
        for name in CLASSIC + V3:
            # The old format has typed storages only, and torch cannot swap the bytes of bits16 back.
            if (container, name) == ("big", "bits16") or (container == "legacy" and name in V3):
                continue
            tensors = forms_of(name)
            save(tensors, path, container)
            expected = torch.load(path, weights_only=True)
            if container == "big":
                swap_bytes(path)
            label = f"{container}/{name}"
            whole(binary, label, path, folder, expected, by_npy=name in ("float32", "int16", "bool", "uint32"))
            if container == "zip":
                compare_plain_profile(binary, label, path, folder, expected)
    x = torch.randn(3, 2, dtype=torch.complex64)
    y = torch.randn(3, 2, dtype=torch.complex64)
    lazy = OrderedDict(conj=x.conj(), neg=y.conj().imag, slice=x.conj()[1:], plain=x, both=y.imag)
    for container in ["zip", "legacy"]:
        save(lazy, path, container)
        whole(binary, f"{container}/lazy bits", path, folder, torch.load(path, weights_only=True), by_npy=True)
    # Protocol 0 writes a storage's reference as the text of a tuple, which torch itself cannot read back.
    for protocol in range(1, 6):
        for container in ["zip", "legacy"]:
            tensors = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor(7))
            torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
            whole(binary, f"{container}/protocol {protocol}", path, folder, tensors)
    torch.save(forms_of("float32"), path)
    outs = [os.path.join(folder, name) for name in ("once.pth", "twice.pth")]
    written = []
    for out in outs:
        check("convert twice", run(binary, "convert", path, out)[0], 0)
        if os.path.exists(out):
            with open(out, "rb") as file:
                written.append(file.read())
    check("two conversions are the same bytes", len(written) == 2 and written[0] == written[1], True)


def swap_bytes(path):
    """Rewrites an archive as a big-endian machine would have written it."""
    sizes = {}
    for tensor in torch.load(path, weights_only=True).values():
        half = 2 if tensor.dtype.is_complex else 1
        sizes.setdefault(tensor.untyped_storage()._cdata, tensor.dtype.itemsize // half)
    with zipfile.ZipFile(path) as source:
        records = [(info.filename, source.read(info)) for info in source.infolist()]
    with zipfile.ZipFile(path, "w") as out:
        for name, data in records:
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:
                # Storages are numbered as the pickler meets them, and each belongs to one tensor or more of the same type.
                size = list(sizes.values())[int(name.rsplit("/", 1)[1])]
                data = np.frombuffer(data, np.uint8).reshape(-1, size)[:, ::-1].tobytes()
            out.writestr(name, data)


class Scaled(torch.Tensor):
    """A tensor without a storage of its own, as torchao's are: the numbers are in its attributes."""

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers, scale):
        self.integers, self.scale, self.block_size = integers, scale, [1, 4]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def quantized():
    out = OrderedDict()
    data, scales, zeros = torch.randn(4, 6), torch.rand(4, dtype=torch.float64) + 0.1, torch.arange(4)
    for dtype in [torch.qint8, torch.quint8, torch.qint32]:
        name = str(dtype)[6:]
        out[f"{name}"] = torch.quantize_per_tensor(data, 0.05, 3, dtype)
        out[f"{name}_t"] = torch.quantize_per_tensor(data, 0.1, 0, dtype).t()
        out[f"{name}_slice"] = torch.quantize_per_tensor(data, 0.1, 0, dtype)[1:3, 2:]
        out[f"{name}_channel"] = torch.quantize_per_channel(data, scales, zeros, 0, dtype)
        out[f"{name}_channel1"] = torch.quantize_per_channel(data.t().contiguous(), scales, zeros, 1, dtype)
    out["empty"] = torch.quantize_per_tensor(torch.empty(0, 3), 0.1, 0, torch.qint8)
    out["quint4x2"] = torch.quantize_per_channel(data, scales.float(), zeros.float(), 0, torch.quint4x2)
    out["quint2x4"] = torch.quantize_per_channel(torch.randn(4, 8), scales.float(), zeros.float(), 0, torch.quint2x4)
    out["float_qparams"] = torch.quantize_per_channel(data, scales.float(), zeros.float(), 0, torch.quint8)
    return out


def sparse():
    out = OrderedDict()
    data = torch.randn(4, 6) * (torch.rand(4, 6) > 0.5)
    out["coo"] = data.to_sparse_coo()
    out["coo_twice"] = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1]]), torch.randn(3), (4,), is_coalesced=False)
    out["hybrid"] = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.randn(2, 3), (4, 3))
    out["coo_empty"] = torch.zeros(3, 3).to_sparse()
    out["coo_int"] = torch.eye(3, dtype=torch.int16).to_sparse()
    for layout in ["csr", "csc"]:
        out[layout] = getattr(data, f"to_sparse_{layout}")()
    for layout in ["bsr", "bsc"]:
        out[layout] = getattr(data, f"to_sparse_{layout}")((2, 3))
    out["batched_csr"] = torch.stack([torch.eye(3), torch.eye(3).flip(0)]).to_sparse_csr()
    return out


def records(binary, folder):
    path = os.path.join(folder, "records.bin")
    wrapper = Scaled(torch.randint(-9, 9, (2, 4), dtype=torch.int8), torch.randn(2, 1))
    parts = [torch.randn(2, 3), torch.randn(1, 3)]
    families = {
        "quantized": quantized(), "sparse": sparse(),
        "meta": OrderedDict(m=torch.empty(2, 3, device="meta"), t=torch.empty(2, 3, device="meta", dtype=torch.int8).t(), p=torch.nn.Parameter(torch.empty(2, device="meta"))),
        "nested": OrderedDict(n=torch.nested.nested_tensor(parts)), "jagged": OrderedDict(j=torch.nested.nested_tensor(parts, layout=torch.jagged)), "subclass": OrderedDict(w=wrapper),
    }
    for container in ["zip", "legacy"]:
        for family, tensors in families.items():
            mixed = OrderedDict(before=torch.randn(3))
            mixed.update(tensors)
            mixed["after"] = torch.nn.Parameter(torch.randn(2))
            save(mixed, path, container)
            if family == "quantized":
                # Loaded again: torch writes the scheme of float parameters as `per_channel_affine`, and tells them by the type of the scales.
                mixed = torch.load(path, weights_only=True)
            whole(binary, f"{container}/{family}", path, folder, mixed, by_npy=True)


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


def verified(binary, label, path):
    code, out, err = run(binary, "verify", path, "--json")
    try:
        return code, json.loads(out)
    except ValueError:
        check(f"verify {label}: {err or out}", "no JSON", "JSON")
        return None


def verify(binary, folder):
    """`verify`: every sum of an archive, and the sizes that a file of either format states."""
    path = os.path.join(folder, "sums.bin")
    tensors = OrderedDict(a=torch.randn(40), b=torch.arange(9), c=torch.empty(0))
    for container in ["zip", "deflated", "legacy", "without sums"]:
        torch.serialization.set_crc32_options(container != "without sums")
        save(tensors, path, container)
        torch.serialization.set_crc32_options(True)
        answer = verified(binary, container, path)
        if answer is None:
            continue
        check(f"verify {container}", (answer[0], answer[1]["ok"], answer[1]["faults"]), (0, True, []))
        if container != "legacy":
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
            found = (answer[1]["records"], answer[1]["without_crc"])
            check(f"verify {container} records", found, (len(infos), sum(1 for info in infos if info.CRC == 0 and info.file_size > 0)))
    save(tensors, path, "zip")
    with open(path, "rb") as file:
        data = file.read()
    numbers = tensors["a"].numpy().tobytes()
    damaged = {"a flipped bit": data.replace(numbers, bytes([numbers[0] ^ 1]) + numbers[1:]), "cut off": data[: len(data) // 2]}
    save(tensors, path, "legacy")
    with open(path, "rb") as file:
        # One byte more than the size of an empty storage, which may be the last.
        damaged["legacy cut off"] = file.read()[:-9]
    for label, content in damaged.items():
        with open(path, "wb") as file:
            file.write(content)
        answer = verified(binary, label, path)
        if answer is not None:
            check(f"verify {label}", (answer[0], answer[1]["ok"], bool(answer[1]["faults"])), (1, False, True))


def main():
    parts = {"zoo": zoo, "records": records, "models": parity_models.models, "training": parity_models.training, "scan": parity_scan.scans, "verify": verify, "printing": printing, "bad": bad_files}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--only", action="append", choices=list(parts), help="run this part and no other; may be given again")
    parser.add_argument("--file", action="append", default=[], help="a checkpoint of your own to compare, beside the parts named by --only or instead of all")
    args = parser.parse_args()
    chosen = args.only or ([] if args.file else list(parts))
    for name in chosen:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            parts[name](args.binary, folder)
    with tempfile.TemporaryDirectory() as folder:
        for path in args.file:
            state = torch.load(path, map_location="cpu", weights_only=False)
            state = state.get("state_dict", state)
            code, out, err = run(args.binary, "inspect", path, "--json")
            check(f"{path}: {err}", code, 0)
            compare_listing(path, json.loads(out), state)
            compare_safetensors(args.binary, path, path, folder, state)
            compare_pth(args.binary, path, path, folder, state)
    finish()


if __name__ == "__main__":
    main()
