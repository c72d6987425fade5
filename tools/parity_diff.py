#!/usr/bin/env python3
"""Compares what `graftwork diff --json` says of generated pairs of state dicts with PyTorch's arithmetic.

    python tools/parity_diff.py --graftwork target/debug/graftwork

Needs torch, numpy, safetensors. Exits 1 if anything differs.
"""

import argparse
import json
import os
import tempfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file

from parity_common import check, finish, run

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def close(label, found, expected, rel=1e-9):
    same = found is not None and abs(found - expected) <= rel * abs(expected) + 1e-300
    check(f"{label}: {found} and {expected}", same, True)


def ordered(tensor):
    """The place of each float among all of its type."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    bits = tensor.contiguous().view(integer).to(torch.int64)
    low = bits & (2 ** (8 * tensor.dtype.itemsize - 1) - 1)
    return torch.where(bits < 0, -low, low)


def diff(binary, folder, a, b, *args, save=("pt", "pt"), code=1):
    paths = []
    for name, tensors, kind in [("a", a, save[0]), ("b", b, save[1])]:
        path = os.path.join(folder, f"{name}.{kind}")
        if kind == "safetensors":
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        else:
            torch.save(tensors, path)
        paths.append(path)
    found, out, err = run(binary, "diff", *paths, "--json", *args)
    check(f"exit code of {args} ({err.strip()[:200]})", found, code)
    return json.loads(out) if out else {}


def statistics(binary, folder):
    """Shares, distances, cosines and steps of one tensor, against float64."""
    for dtype in FLOATS:
        for shape in [(1,), (7,), (513,), (64, 33), (300_000,), (3, 5, 7, 11)]:
            torch.manual_seed(len(shape))
            a = torch.randn(shape, dtype=torch.float64).to(dtype)
            b = (a.double() * (1 + 0.01 * torch.randn(shape, dtype=torch.float64))).to(dtype)
            keep = torch.rand(shape) < 0.3
            b = torch.where(keep, a, b)
            b.view(-1)[0] = -a.view(-1)[0]
            got = diff(binary, folder, {"x": a, "y": torch.ones(9)}, {"x": b, "y": torch.ones(9)})
            row = got["changed"][0]
            x, y = a.double().reshape(-1), b.double().reshape(-1)
            label = f"{dtype} {shape}"
            close(f"{label} share", row["share_changed"], (a != b).double().mean().item())
            close(f"{label} max_abs", row["max_abs"], (y - x).abs().max().item())
            close(f"{label} rel", row["rel"], ((y - x).norm() / x.norm()).item())
            close(f"{label} cos", row["cos"], (x @ y / (x.norm() * y.norm())).item())
            check(f"{label} ulp", row["max_ulp"], (ordered(b) - ordered(a)).abs().max().item())
            # Through a view with gaps, the numbers are the same.
            if len(shape) > 1:
                wide = torch.zeros(shape[-1], *shape[:-1], dtype=dtype).movedim(0, -1)
                other = diff(binary, folder, {"x": a, "y": torch.ones(9)}, {"x": wide.copy_(b), "y": torch.ones(9)})
                check(f"{label} strided", other["changed"], got["changed"])


def integers(binary, folder):
    for dtype in [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]:
        a = torch.randint(0, 2, (1000,)).to(dtype) if dtype == torch.bool else torch.randint(-100, 100, (1000,)).to(dtype)
        b = a.clone()
        b[:100] = a[:100].flip(0)
        row = diff(binary, folder, {"x": a, "k": torch.ones(2)}, {"x": b, "k": torch.ones(2)})["changed"][0]
        close(f"{dtype} share", row["share_changed"], (a != b).double().mean().item())
        distance = (a.to(torch.int64) - b.to(torch.int64)).abs().max().item()
        close(f"{dtype} max_abs", row["max_abs"], float(distance))
        check(f"{dtype} no fractions", (row["rel"], row["cos"], row["max_ulp"]), (None, None, None))


def complex_numbers(binary, folder):
    a = torch.randn(1000, dtype=torch.complex64)
    b = a.clone()
    b[::3] += 0.01 * torch.randn(334, dtype=torch.complex64)
    row = diff(binary, folder, {"x": a, "k": torch.ones(2)}, {"x": b, "k": torch.ones(2)})["changed"][0]
    x, y = a.to(torch.complex128), b.to(torch.complex128)
    close("complex share", row["share_changed"], (a != b).double().mean().item())
    close("complex max_abs", row["max_abs"], (y - x).abs().max().item())
    close("complex rel", row["rel"], ((y - x).norm() / x.norm()).item())


def casts(binary, folder):
    """B is what torch's own conversion makes of A, for every pair of types."""
    values = torch.cat([torch.randn(5000) * 10.0 ** torch.randint(-6, 5, (5000,)), torch.tensor([0.0, -0.0, float("inf"), float("nan")])])
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in FLOATS}
    for source in FLOATS:
        for target in FLOATS:
            if source == target:
                continue
            a = values.to(source)
            b = a.to(target)
            got = diff(binary, folder, {"w": a, "v": a[:9]}, {"w": b, "v": b[:9]})
            check(f"cast {source} {target}", got["counts"]["cast"], 2)
            check(f"cast verdict {source} {target}", got["verdict"], f"cast {names[source]} -> {names[target]} only")
            renamed = diff(binary, folder, {"w": a}, {"m.w": b})
            check(f"renamed cast {source} {target}", renamed["counts"]["renamed"], 1)
    b = values.to(torch.bfloat16)
    b[3] = 2 * b[3]
    check("no cast", diff(binary, folder, {"w": values}, {"w": b})["counts"]["cast"], 0)


def tolerances(binary, folder):
    """`--tol` against torch.testing.assert_close and torch.isclose, elements with infinities and NaN among them."""
    torch.manual_seed(5)
    expected = {"f16": (1e-3, 1e-5), "bf16": (1.6e-2, 1e-5), "f32": (1.3e-6, 1e-5), "f64": (1e-7, 1e-7), "1e-2,1e-3": (1e-2, 1e-3)}
    for dtype in FLOATS:
        a = torch.randn(4000, dtype=torch.float64).to(dtype)
        b = (a.double() + 10.0 ** torch.empty(4000, dtype=torch.float64).uniform_(-9, -1)).to(dtype)
        a[:3] = torch.tensor([float("inf"), float("inf"), float("nan")])
        b[:3] = torch.tensor([float("inf"), -float("inf"), 1.0])
        for text, (rtol, atol) in expected.items():
            got = diff(binary, folder, {"x": a, "k": torch.ones(2)}, {"x": b, "k": torch.ones(2)}, "--tol", text)
            near = torch.isclose(b.double(), a.double(), rtol=rtol, atol=atol)
            close(f"{dtype} {text}", got["changed"][0]["share_changed"], (~near).double().mean().item())
            good = diff(binary, folder, {"x": a[near]}, {"x": b[near]}, "--tol", text, code=0)
            check(f"{dtype} {text} within", good["identical"], True)
        steps = (ordered(b) - ordered(a)).abs()[3:]
        limit = int(steps.median())
        got = diff(binary, folder, {"x": a[3:], "k": torch.ones(2)}, {"x": b[3:], "k": torch.ones(2)}, "--tol", f"ulp={limit}")
        close(f"{dtype} ulp", got["changed"][0]["share_changed"], (steps > limit).double().mean().item())


def ranks(binary, folder):
    """Adapters of known rank folded in with torch, in each type's own rounding; and noise, which has no low rank."""
    torch.manual_seed(11)
    for dtype, scale in [(torch.float32, 1e-3), (torch.float64, 1e-3), (torch.bfloat16, 0.05), (torch.float16, 0.01)]:
        for rank in [1, 4, 16, 32]:
            a, b = OrderedDict(), OrderedDict()
            for i in range(3):
                weight = torch.randn(384, 256, dtype=torch.float64).to(dtype)
                low = scale * torch.randn(384, rank, dtype=torch.float64) @ torch.randn(rank, 256, dtype=torch.float64)
                a[f"blocks.{i}.attn.weight"] = weight
                b[f"blocks.{i}.attn.weight"] = (weight.double() + low).to(dtype)
                a[f"blocks.{i}.norm.weight"] = b[f"blocks.{i}.norm.weight"] = torch.ones(256)
            # The changed matrices are more than half of the model, so that no module stands for them.
            verdict = diff(binary, folder, a, b)["verdict"]
            check(f"rank {rank} {dtype}", verdict, f"LoRA-like, rank <= {rank} in 3 matrices")
        for key in list(b):
            if "attn" in key:
                b[key] = (a[key].double() + scale * torch.randn(384, 256, dtype=torch.float64)).to(dtype)
        check(f"noise {dtype}", diff(binary, folder, a, b)["verdict"].startswith("fine-tune, dW/W"), True)


def verdicts(binary, folder):
    torch.manual_seed(3)
    a = OrderedDict((f"layer{i}.weight", torch.randn(40, 50)) for i in range(8))
    a["fc.weight"], a["fc.bias"] = torch.randn(10, 40), torch.randn(10)
    b = OrderedDict((key, value + 0.02 * torch.randn_like(value)) for key, value in a.items())
    got = diff(binary, folder, a, b)
    x, y = (torch.cat([value.double().reshape(-1) for value in tensors.values()]) for tensors in (a, b))
    check("fine-tune", got["verdict"], f"fine-tune, dW/W {100 * ((y - x).norm() / x.norm()).item():.1f} %")
    unrelated = OrderedDict((key, torch.randn_like(value)) for key, value in a.items())
    got = diff(binary, folder, a, unrelated)
    x, y = (torch.cat([value.double().reshape(-1) for value in tensors.values() if value.dim() > 1]) for tensors in (a, unrelated))
    check("unrelated", got["verdict"], f"unrelated (cos {(x @ y / (x.norm() * y.norm())).item():.2f})")
    transposed = OrderedDict(a, **{"layer0.weight": a["layer0.weight"].t().contiguous()})
    check("transposed", diff(binary, folder, a, transposed)["verdict"], "same values, transposed (1)")
    for formats in [("pt", "safetensors"), ("safetensors", "pt")]:
        check("identical", diff(binary, folder, a, a, save=formats, code=0)["verdict"], "identical")


def health(binary, folder):
    x = torch.randn(2000)
    x[5], x[1999], x[17] = float("nan"), float("inf"), -float("inf")
    got = diff(binary, folder, {"x": x, "z": torch.ones(3)}, {"x": x.bfloat16().float(), "z": torch.zeros(3)})
    rows = {row["name"]: row for row in got["health"]}
    expected = {"nan": 1, "inf": 2, "all_zero": False}
    check("NaN and Inf", rows["x"], {"name": "x", "a": expected, "b": expected})
    check("zero", (rows["z"]["a"]["all_zero"], rows["z"]["b"]["all_zero"]), (False, True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--graftwork", required=True)
    binary = parser.parse_args().graftwork
    with tempfile.TemporaryDirectory() as folder:
        for part in [statistics, integers, complex_numbers, casts, tolerances, ranks, verdicts, health]:
            part(binary, folder)
    finish()


if __name__ == "__main__":
    main()
