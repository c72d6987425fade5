"""`graftwork scan` against `torch.load(weights_only=True)`: files provoked one by one, and what torch says of each.

    python tools/parity_scan.py [target/debug/graftwork]

Without a binary it prints torch's verdict on every file, the table that the rules of `scan` were written from.
"""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import io
import json
import os
import pathlib
import pickle
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import torch

import parity_common as common
from parity_common import check, run
from parity_pickles import BARE, EXTRA, GLOBALS, NONE, archive, glob, opcodes, references, storage, tensor, text, tuple_of, whole


class Colour(enum.Enum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


class Tagged(torch.Tensor):
    pass


def values():
    """Ordinary values as people save them, each by torch.save itself."""
    recursive_list, recursive_dict, recursive_tuple = [], {}, ([],)
    recursive_list.append(recursive_list)
    recursive_dict["self"] = recursive_dict
    recursive_tuple[0].append(recursive_tuple)
    ones, linear = torch.ones(2), torch.nn.Linear(2, 1)
    attributes, traced = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    attributes.note, traced.note = "a", "b"
    adam = torch.optim.Adam(linear.parameters())
    linear(ones).backward()
    adam.step()
    saved = {
        "state dict": linear.state_dict(), "keep_vars": linear.state_dict(keep_vars=True), "module": linear, "optimizer": adam.state_dict(),
        "empty bytes": b"", "bytes": b"ab", "bytearray": bytearray(b"ab"), "empty bytearray": bytearray(), "complex": 1 + 2j, "set": {1, 2},
        "empty set": set(), "set of tuples": {(1, 2)}, "frozenset": frozenset([1]), "range": range(3), "slice": slice(3), "Counter": Counter("aab"),
        "OrderedDict": OrderedDict(a=1), "defaultdict": defaultdict(list), "deque": deque([1]), "namedtuple": Point(1, 2), "enum": Colour.RED,
        "class": Colour, "datetime": datetime.date(2020, 1, 1), "Decimal": decimal.Decimal(1), "path": pathlib.PurePosixPath("a"),
        "Namespace": argparse.Namespace(a=1), "partial": functools.partial(print), "function": torch.relu, "builtin": len, "numpy scalar": np.float64(0.5),
        "numpy array": np.arange(3), "numpy dtype": np.dtype("f4"), "numpy bool": np.bool_(True), "torch.Size": torch.Size([1, 2]),
        "device": torch.device("cuda", 1), "dtype": torch.float8_e5m2, "layout": torch.strided, "memory format": torch.channels_last,
        "qscheme": torch.per_channel_affine, "Generator": torch.Generator(), "storage": ones.untyped_storage(),
        "typed storage": torch.storage.TypedStorage([1.0]), "None key": {None: 1, 1.5: 2, True: 3, b"k": 4, (1, 2): 5}, "int of 255 bytes": 1 << 2030,
        "int of 256 bytes": 1 << 2045, "negative int": -(1 << 70), "recursive list": recursive_list, "recursive dict": recursive_dict,
        "recursive tuple": recursive_tuple, "lone surrogate": "\ud800", "nested": torch.nested.nested_tensor([ones, ones]),
        "jagged": torch.nested.nested_tensor([ones, ones], layout=torch.jagged), "sparse": torch.eye(2).to_sparse(), "csr": torch.eye(2).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8), "meta": torch.empty(2, device="meta"), "subclass": ones.as_subclass(Tagged),
        "Buffer": torch.nn.Buffer(torch.ones(2)), "parameter with an attribute": attributes, "tensor with an attribute": traced,
        "conj": torch.ones(2, dtype=torch.complex64).conj(), "complex32": torch.ones(2, dtype=torch.complex32), "uint16": torch.ones(2).to(torch.uint16),
        "tensor as key": {ones: 1}, "ellipsis": ..., "NotImplemented": NotImplemented, "big string": "a" * 70000,
        "deep": functools.reduce(lambda inner, _: [inner], range(300), 1), "lazy": torch.nn.LazyLinear(2).weight,
    }
    for name, value in saved.items():
        for kind, options in [("", {}), (" legacy", {"_use_new_zipfile_serialization": False})]:
            out = io.BytesIO()
            try:
                torch.save(value, out, **options)
            except Exception:
                continue
            yield f"value {name}{kind}", out.getvalue()
    for protocol in range(6):
        for kind, zipped in [("zip", True), ("legacy", False)]:
            out = io.BytesIO()
            torch.save({"w": ones, "b": b"a", "n": 300}, out, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            yield f"protocol {protocol} {kind}", out.getvalue()
        yield f"protocol {protocol} of nothing", archive(pickle.dumps(None, protocol))


def containers():
    dict_ = BARE + b"}" + text("w") + tensor() + b"s."
    good = archive(dict_)
    yield "archive", good
    yield "root with a dot", archive(dict_, root="a.b/")
    yield "no root", archive(dict_, root="")
    yield "nested root", archive(dict_, root="a/b/")
    yield "version 11", archive(dict_, version=b"11\n")
    yield "version 0", archive(dict_, version=b"0\n")
    yield "version 10", archive(dict_, version=b"10\n")
    yield "version empty", archive(dict_, version=b"")
    yield "version text", archive(dict_, version=b"three\n")
    yield "no version", archive(dict_, skip=["version"])
    yield "version under .data", archive(dict_, skip=["version"], extra=[("archive/.data/version", b"6\n")])
    yield "no byteorder", archive(dict_, skip=["byteorder"])
    yield "byteorder nonsense", archive(dict_, skip=["byteorder"], extra=[("archive/byteorder", b"middle")])
    yield "byteorder big", archive(dict_, skip=["byteorder"], extra=[("archive/byteorder", b"big")])
    yield "no data.pkl", archive(dict_, skip=["data.pkl"])
    yield "no storage", archive(dict_, skip=["data/0"])
    yield "upper case", archive(dict_, skip=["data.pkl"], extra=[("archive/DATA.PKL", dict_)])
    yield "constants.pkl", archive(dict_, extra=[("archive/constants.pkl", b"\x80\x02).")])
    yield "constants.pkl elsewhere", archive(dict_, extra=[("other/constants.pkl", b"\x80\x02).")])
    yield "second root last", archive(dict_, extra=[("other/data.pkl", dict_)])
    yield "unused record", archive(dict_, extra=[("archive/notes.txt", b"hello")])
    yield "duplicate record", archive(dict_, extra=[("archive/data.pkl", BARE + glob("os", "system") + b".")])
    yield "deflated", archive(dict_, method=zipfile.ZIP_DEFLATED)
    yield "bzip2", archive(dict_, method=zipfile.ZIP_BZIP2)
    yield "prefix", b"junk" + good
    yield "suffix", good + b"junk"
    yield "truncated", good[: len(good) // 2]
    yield "wrong sum", good.replace(np.arange(4, dtype="<f4").tobytes(), np.arange(1, 5, dtype="<f4").tobytes())
    yield "empty archive", b"PK\x05\x06" + bytes(18)
    yield "no PROTO", archive(dict_[2:])
    yield "protocol 77", archive(b"\x80\x4d" + dict_[2:])
    yield "no STOP", archive(dict_[:-1])
    yield "empty pickle", archive(b"")
    yield "STOP of nothing", archive(BARE + b".")
    yield "bytes after STOP", archive(dict_ + b"more")
    yield "carriage returns", archive(BARE + b"ccollections\r\nOrderedDict\r\n.")
    yield "name of a global not UTF-8", archive(BARE + b"ccollections\n\xff\n.")
    yield "name of a global cut off", archive(BARE + b"ccollections\nOrderedDic")
    yield "name of a global of dotted name", archive(BARE + glob("torch.nn", "parameter.Parameter") + b".")
    yield "name of a global without a dot", archive(BARE + glob("", "set") + b".")
    yield "string past the end", archive(BARE + b"X\xff\xff\x00\x00a.")
    yield "number past the end", archive(BARE + b"J\x01")
    state = torch.nn.Linear(2, 1)
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(state), out)
    yield "TorchScript", out.getvalue()
    out = io.BytesIO()
    torch.save({"w": torch.ones(2)}, out, _use_new_zipfile_serialization=False)
    legacy = out.getvalue()
    magic, protocol = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    yield "legacy truncated", legacy[:-4]
    yield "legacy without storages", legacy[:-16]
    yield "legacy suffix", legacy + b"junk"
    yield "legacy twice", legacy + legacy
    yield "legacy wrong magic", legacy.replace(b"\x6c\xfc\x9c", b"\x6d\xfc\x9c", 1)
    yield "legacy wrong protocol", legacy.replace(protocol, pickle.dumps(1002, 2), 1)
    yield "legacy wrong count", legacy[:-16] + (3).to_bytes(8, "little") + legacy[-8:]
    yield "legacy sys_info names code", magic + protocol + BARE + glob("os", "system") + b"." + BARE + b"}." + BARE + b"]."
    yield "legacy sys_info anything", magic + protocol + BARE + b"N." + BARE + b"}." + BARE + b"]."
    yield "legacy unknown key", magic + protocol + BARE + b"}." + BARE + b"}." + BARE + b"]" + text("1") + b"a." + bytes(16)
    view = lambda more: magic + protocol + BARE + b"}." + BARE + storage(more=more) + b"." + BARE + b"]" + text("0") + b"a." + (4).to_bytes(8, "little") + bytes(16)
    yield "legacy storage", view((NONE,))
    yield "legacy five fields", view(())
    yield "legacy view", view((tuple_of(text("1"), whole(1), whole(2)),))
    yield "legacy view past the end", view((tuple_of(text("1"), whole(3), whole(9)),))
    yield "legacy storage never filled", magic + protocol + BARE + b"}." + BARE + storage(more=(NONE,)) + b"." + BARE + b"]."
    yield "bare pickle", pickle.dumps({"a": 1}, 2)
    yield "bare pickle 4", pickle.dumps({"a": 1}, 4)
    yield "bare data.pkl", dict_
    yield "extracted pickle of one int", BARE + b"K\x01."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in [("sys_info", pickle.dumps({}, 2)), ("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)), ("tensors", pickle.dumps(0, 2)), ("pickle", pickle.dumps({}, 2))]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    yield "tar", out.getvalue()
    out = io.BytesIO()
    tarfile.open(fileobj=out, mode="w").close()
    yield "tar of nothing", out.getvalue()
    yield "empty file", b""
    yield "web page", b"<!DOCTYPE html><html></html>"
    yield "LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield "gzip", b"\x1f\x8b\x08\x00" + bytes(20)


def cases():
    for name, code in opcodes():
        yield f"opcode {name}", archive(BARE + code + b".", extra=EXTRA)
    for name, code in references():
        yield name, archive(BARE + code + b".", extra=EXTRA)
    for path in GLOBALS:
        yield f"global {path}", archive(BARE + glob(*path.rsplit(".", 1)) + b".")
    yield from values()
    yield from containers()


def verdict(path):
    """What torch says: None where it loads, else the text of its error."""
    try:
        torch.load(path, weights_only=True)
        return None
    except Exception as error:
        message = str(error)
        start = message.find("WeightsUnpickler error: ")
        message = message[start + 24 :] if start >= 0 else message
        return f"{type(error).__name__}: {' '.join(message.split())[:200]}"


# Where graftwork is stricter on purpose: torch does not look again at a storage that it has, whatever the second reference claims.
STRICTER = {"pid numel changes"}


def scans(binary, folder):
    path = os.path.join(folder, "provoked.pth")
    # Parts of torch allow their own classes when they are imported, and `torch.compile` imports many.
    torch.serialization.clear_safe_globals()
    for name, data in cases():
        with open(path, "wb") as file:
            file.write(data)
        expected = verdict(path)
        if binary is None:
            print(f"{name}\t{expected or 'loads'}")
            continue
        code, out, err = run(binary, "scan", path, "--json")
        try:
            found = json.loads(out)
        except ValueError:
            check(f"scan {name}: {err or out}", "no JSON", "JSON")
            continue
        loads, reason = found["weights_only"]["loads"], found["weights_only"]["reason"]
        check(f"scan {name} loads ({reason}; torch: {expected})", loads, expected is None and name not in STRICTER)
        check(f"scan {name} has a reason exactly if it does not load", reason is None, loads)
        severe = any(finding["severity"].lower() != "note" for finding in found["findings"])
        check(f"scan {name} exit code", code, 1 if severe else 0)
        if name.startswith("global "):
            listed = [(use["module"], use["name"], use["called"]) for use in found["globals"]]
            check(f"{name} listed", listed, [(*name[7:].rsplit(".", 1), False)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scans(args.binary, folder)
    if args.binary:
        common.finish()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
