"""Compares `graftwork fit --train` with PyTorch: the same network, the same pictures, whole splits as batches.

A batch that is the whole split has no order, so that every epoch is one step that both make alike: losses, trained weights,
running statistics and counts of batches must agree, frozen tensors must be the same bits, and torch must load what is written
strictly. Groups that are unfrozen one with each epoch are optimisers' groups that are added.

    python tools/check_finetune.py --graftwork target/release/graftwork
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import digits_cnn
import reference

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "fixtures" / "digits"
SIZES = reference.Preprocessing(resize=32, crop=32)
N_TRAIN = 500


def split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    paths = reference.pictures_below(DIGITS / "pictures" / name)
    classes = sorted({p.parent.name for p in paths})
    transform = SIZES.evaluation()
    pixels = torch.stack([transform(reference.open_rgb(p)) for p in paths])
    return pixels, torch.tensor([classes.index(p.parent.name) for p in paths])


def network(fc: dict[str, torch.Tensor]) -> nn.Module:
    model = digits_cnn.DigitsCnn()
    model.load_state_dict(torch.load(DIGITS / "backbone.pth", weights_only=True))
    model.load_state_dict(fc, strict=False)
    return model


def set_mode(model: nn.Module, trained: list[str], policy: str) -> None:
    """Batch statistics where the normalisation trains (or everywhere, or nowhere), running ones elsewhere."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            trains = any(name.startswith(prefix) for prefix in trained)
            module.train(policy == "batch-all" or (policy == "auto" and trains))


def train(model: nn.Module, groups: list[list[str]], rates: list[float], how: dict, data) -> list[float]:
    pixels, labels = data
    loss_of = nn.CrossEntropyLoss(label_smoothing=how.get("label_smoothing", 0.0))
    members = [
        [p for name, p in model.named_parameters() if any(name.startswith(prefix) for prefix in prefixes)]
        for prefixes in groups
    ]
    first = 1 if how.get("each_epoch") else len(groups)
    make = {
        "sgd": lambda g: torch.optim.SGD(g, momentum=0.9, weight_decay=how["weight_decay"]),
        "adamw": lambda g: torch.optim.AdamW(g, weight_decay=how["weight_decay"]),
    }[how["optimizer"]]
    optimizer = make([{"params": m, "lr": lr} for m, lr in zip(members[:first], rates)])
    losses = []
    n_open = first
    for epoch in range(how["epochs"]):
        opened = [prefix for prefixes in groups[:n_open] for prefix in prefixes]
        set_mode(model, opened, how["policy"])
        for name, p in model.named_parameters():
            p.requires_grad_(any(name.startswith(prefix) for prefix in opened))
        for group, lr in zip(optimizer.param_groups, rates):
            group["lr"] = lr * how["gamma"] ** (epoch // how["step_size"])
        optimizer.zero_grad()
        loss = loss_of(model(pixels), labels)
        loss.backward()
        if how.get("clip"):
            torch.nn.utils.clip_grad_norm_([p for m in members[:n_open] for p in m], how["clip"])
        optimizer.step()
        losses.append(loss.item())
        if how.get("each_epoch") and n_open < len(groups):
            optimizer.add_param_group({"params": members[n_open], "lr": rates[n_open]})
            n_open += 1
    return losses


def compare(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> str | None:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{name}: {ours.dtype} {tuple(ours.shape)} is not {theirs.dtype} {tuple(theirs.shape)}"
    if ours.dtype == torch.int64:
        return None if torch.equal(ours, theirs) else f"{name}: {ours.tolist()} is not {theirs.tolist()}"
    scale = theirs.abs().max().clamp(min=1e-3).item()
    off = (ours - theirs).abs().max().item() / scale
    return None if off <= tolerance else f"{name}: off by {off:.2e} of its largest"


def run(binary: Path, case: str, groups: list[list[str]], rates: list[float], how: dict, flags: list[str], data) -> bool:
    generator = torch.Generator().manual_seed(7)
    fc = {
        "fc.weight": torch.empty(5, 64).uniform_(-0.125, 0.125, generator=generator),
        "fc.bias": torch.empty(5).uniform_(-0.125, 0.125, generator=generator),
    }
    with tempfile.TemporaryDirectory() as scratch:
        out, cache = Path(scratch) / "run", Path(scratch) / "cache"
        torch.save(fc, Path(scratch) / "fc.pth")
        patterns = [" ".join(f"{prefix}**" for prefix in prefixes) for prefixes in groups]
        command = [
            str(binary), "fit", "--backbone", str(DIGITS / "backbone.onnx"), "--weights", str(DIGITS / "backbone.pth"),
            "--data", str(DIGITS / "pictures"), "--resize", "32", "--crop", "32", "--dtype", "float32", "-o", str(out),
            "--cache", str(cache), "--load", str(Path(scratch) / "fc.pth"), "--groups", " ; ".join(patterns),
            "--lrs", ",".join(map(repr, rates)), "--train-batch-size", str(N_TRAIN), "--epochs", str(how["epochs"]),
            "--optimizer", how["optimizer"], "--weight-decay", repr(how["weight_decay"]), "--schedule", "step",
            "--step-size", str(how["step_size"]), "--gamma", repr(how["gamma"]), "--best", "last", *flags,
        ]
        if how["optimizer"] == "sgd":
            command += ["--momentum", "0.9"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        model = network(fc)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = train(model, groups, rates, how, data)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found = [line["loss/train"] for line in lines]
        faults = [] if np.allclose(found, losses, rtol=1e-4, atol=1e-6) else [f"losses {found} are not {losses}"]
        written = torch.load(out / "model.pth", weights_only=True)
        digits_cnn.DigitsCnn().load_state_dict(written, strict=True)
        if list(written) != list(model.state_dict()):
            faults.append("names or their order differ")
        opened = tuple(prefix for prefixes in groups for prefix in prefixes)
        for name, theirs in model.state_dict().items():
            is_frozen = not name.startswith(opened) and how["policy"] != "batch-all"
            if is_frozen:
                if not torch.equal(written[name], before[name]):
                    faults.append(f"{name} is frozen and changed")
            elif fault := compare(name, written[name].detach(), theirs, how.get("tolerance", 2e-3)):
                faults.append(fault)
        marks = {name for name, value in written.items() if isinstance(value, nn.Parameter) and value.requires_grad}
        wanted = {name for name, _ in model.named_parameters() if name.startswith(opened)}
        if marks != wanted:
            faults.append(f"trainable marks {sorted(marks ^ wanted)} differ")
        same = load_file(out / "model.safetensors")
        faults += [f"{name} differs between the files" for name in written if not torch.equal(same[name], written[name].detach())]
        worst = max(abs(a / b - 1) for a, b in zip(found, losses))
        print(f"{'ok' if not faults else 'WRONG'}  {case}: {len(found)} epochs, losses within {worst:.1e}")
        for fault in faults:
            print(f"    {fault}")
        return not faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graftwork", type=Path, default=ROOT / "target/release/graftwork")
    binary = parser.parse_args().graftwork
    torch.set_num_threads(2)
    data = split("train")
    assert len(data[1]) == N_TRAIN
    plain = {"optimizer": "sgd", "weight_decay": 0.0, "epochs": 8, "step_size": 3, "gamma": 0.5, "policy": "auto"}
    top = ["fc.", "conv4.", "conv3."]
    cases = [
        ("a tail at once, SGD", [top], [0.05], plain, []),
        ("weight decay, label smoothing, a clipped norm", [top], [0.05],
         plain | {"weight_decay": 1e-3, "label_smoothing": 0.1, "clip": 0.5},
         ["--label-smoothing", "0.1", "--clip-grad-norm", "0.5"]),
        ("AdamW with three rates", [["fc."], ["conv4."], ["conv3."]], [1e-3, 5e-4, 1e-4],
         plain | {"optimizer": "adamw", "weight_decay": 0.01, "tolerance": 2e-2}, []),
        ("one more group with each epoch", [["fc."], ["conv4."], ["conv3."], ["conv2."]], [0.05, 0.02, 0.01, 0.005],
         plain | {"each_epoch": True}, ["--unfreeze", "each-epoch"]),
        ("normalisations by their running statistics", [top], [0.02], plain | {"policy": "frozen"}, ["--batch-norm", "frozen"]),
        ("everything from the input on", [["fc.", "conv"]], [0.02], plain | {"policy": "auto"}, []),
    ]
    if not all([run(binary, *case, data) for case in cases]):
        sys.exit(1)


if __name__ == "__main__":
    main()
