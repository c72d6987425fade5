"""Epochs of the mini-batch trainer beside PyTorch on the CPU: same rows, batches, settings and threads, interleaved in one run.

    cargo build --release -p graftwork-runtime --example trainer
    python benches/trainer.py --trainer target/release/examples/trainer [--append]

PyTorch's side is the fastest loop that people write on cached features: rows of each batch by one index, no DataLoader.
`share` is the part of PyTorch's own measured sgemm rate (the better of two shapes) at which the epoch's 4·N·D·C (for a
perceptron 6·N·(D·H + H·C) - 2·N·D·H) multiplications and additions ran. A sweep is 52 linear heads at once beside 52 runs,
of which PyTorch makes one, times 52; its floor is those operations at the sgemm rate.
Times are the best of the repetitions. `--append` adds the tables to benches/RESULTS.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from torch import nn

from machine import cpu_model

SGD = {"kind": "sgd", "momentum": 0.9, "dampening": 0.0, "nesterov": False}
ADAMW = {"kind": "adam-w", "betas": [0.9, 0.999], "eps": 1e-8}

# name, rows, features, classes, hidden, batch
SMALL = [(n, d, c, [], b) for d, n in [(512, 4000), (2048, 2000)] for c in [2, 10] for b in [4, 16, 64]]
LARGE = [(4096, 768, 1000, [], 256), (4096, 2048, 1000, [], 256), (4096, 2048, 1000, [], 1024),
         (4096, 768, 10, [512], 256), (4096, 2048, 100, [1024], 256)]


def config(optimiser, batch, hidden, epochs, lr=0.001):
    return {
        "task": "single-label", "hidden": hidden, "activation": "relu", "norm": "none", "dropout": 0.0,
        "label_smoothing": 0.0, "class_weights": "none", "optimiser": optimiser, "lr": lr, "weight_decay": 0.01,
        "schedule": {"curve": {"kind": "constant"}, "unit": "epoch", "warmup": 0, "warmup_start": 1 / 3},
        "epochs": epochs, "batch_size": batch, "drop_last": False, "clip_norm": None, "mixup": None, "noise": 0.0,
        "standardise": False, "early_stopping": None, "best": "last", "ema": None, "init": {"kind": "uniform"},
        "seed": 0, "init_seed": 0,
    }


def sgemm_rate(threads):
    """FLOP/s of torch.mm, the best of a few."""
    torch.set_num_threads(threads)
    best = 0.0
    for m, k, n in [(1024, 2048, 1024), (2048, 2048, 2048)]:
        a, b = torch.randn(m, k), torch.randn(k, n)
        for _ in range(6):
            begin = time.perf_counter()
            a @ b
            best = max(best, 2 * m * k * n / (time.perf_counter() - begin))
    return best


def flops(n, d, c, hidden):
    if not hidden:
        return 4 * n * d * c
    return 6 * n * (d * hidden[0] + hidden[0] * c) - 2 * n * d * hidden[0]


def theirs(features, labels, hidden, classes, optimiser, batch, epochs):
    """Seconds of an epoch of PyTorch, the best."""
    widths = [features.shape[1], *hidden, classes]
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    if optimiser["kind"] == "sgd":
        optim = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.01)
    else:
        optim = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.01)
    loss_of, best = nn.CrossEntropyLoss(), float("inf")
    for _ in range(epochs):
        begin = time.perf_counter()
        for rows in torch.randperm(len(features)).split(batch):
            optim.zero_grad()
            loss_of(model(features[rows]), labels[rows]).backward()
            optim.step()
        best = min(best, time.perf_counter() - begin)
    return best


def ours(trainer, threads, folder, n, d, c, request, epochs):
    request = request | {"outputs": c, "n_features": d, "quiet": True, "repeat": 3,
                         "features_file": str(folder / f"x{n}x{d}"), "labels_file": str(folder / f"y{n}x{c}")}
    done = subprocess.run([trainer], input=json.dumps(request), capture_output=True, text=True, check=True,
                          env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    return min(json.loads(done.stdout)["seconds"]) / epochs


def data(folder, n, d, c):
    torch.manual_seed(0)
    features, labels = torch.randn(n, d), torch.randint(c, (n,))
    (folder / f"x{n}x{d}").write_bytes(features.numpy().tobytes())
    (folder / f"y{n}x{c}").write_bytes(labels.to(torch.int32).numpy().tobytes())
    return features, labels


def epochs_table(args, folder, rate, cases):
    lines = ["| N x D -> C | hidden | batch | optimiser | PyTorch, ms an epoch | Graftwork | ratio | us a step | share of sgemm |",
             "|---|---|---|---|---|---|---|---|---|"]
    for (n, d, c, hidden, batch), (name, optimiser) in [(a, b) for a in cases for b in [("SGD", SGD), ("AdamW", ADAMW)]]:
        features, labels = data(folder, n, d, c)
        seconds_a_pass = flops(n, d, c, hidden) / rate
        epochs = max(2, min(20, int(0.2 / (seconds_a_pass + n / batch * 5e-6))))
        request = {"config": config(optimiser, batch, hidden, epochs)}
        peer = theirs(features, labels, hidden, c, optimiser, batch, 3)
        own = ours(args.trainer, args.threads, folder, n, d, c, request, epochs)
        peer = min(peer, theirs(features, labels, hidden, c, optimiser, batch, 2))
        lines.append(f"| {n} x {d} -> {c} | {hidden[0] if hidden else '-'} | {batch} | {name} | {peer * 1e3:.1f} | {own * 1e3:.2f} "
                     f"| {peer / own:.1f} | {own / -(-n // batch) * 1e6:.1f} | {seconds_a_pass / own:.2f} |")
        print(lines[-1], flush=True)
    return lines


def sweep_table(args, folder, rate):
    lines = ["| heads | N x D -> C | batch | 52 runs of PyTorch, s an epoch | Graftwork, all at once | ratio | times the floor |",
             "|---|---|---|---|---|---|---|"]
    for n, d, c, batch in [(4096, 768, 10, 128), (4096, 2048, 10, 128), (4096, 768, 2, 128), (2048, 768, 100, 128)]:
        features, labels = data(folder, n, d, c)
        epochs = 2
        base = config(SGD, batch, [], epochs) | {"weight_decay": 0.0}
        heads = [{"lr": 1e-5 * 1.2**i, "weight_decay": 0.0, "init_seed": i} for i in range(52)]
        request = {"sweep": {"base": base, "heads": heads, "halving": None}}
        peer = 52 * theirs(features, labels, [], c, SGD, batch, 3)
        own = ours(args.trainer, args.threads, folder, n, d, c, request, epochs)
        floor = 52 * flops(n, d, c, []) / rate
        lines.append(f"| 52 | {n} x {d} -> {c} | {batch} | {peer:.2f} | {own:.3f} | {peer / own:.1f} | {own / floor:.2f} |")
        print(lines[-1], flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--only", choices=["small", "large", "sweep"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = sgemm_rate(args.threads)
    text = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, title, run in [
            ("small", "Few classes, small batches", lambda: epochs_table(args, folder, before, SMALL)),
            ("large", "Products that dominate", lambda: epochs_table(args, folder, before, LARGE)),
            ("sweep", "52 heads at once", lambda: sweep_table(args, folder, before)),
        ]:
            if args.only in (None, name):
                print(f"\n**{title}**\n", flush=True)
                text += [f"**{title}**", "", *run(), ""]
    after = sgemm_rate(args.threads)
    cpu = cpu_model()
    note = (f"{args.threads} threads on {cpu}, torch {torch.__version__}; sgemm {before / 1e9:.0f} GFLOP/s before and "
            f"{after / 1e9:.0f} after the run.")
    print(note)
    if args.append:
        results = Path(__file__).with_name("RESULTS.md")
        with results.open("a") as file:
            file.write(f"\n## Trainer of heads, {date.today()}\n\n`python benches/trainer.py {' '.join(sys.argv[1:])}`: {note}\n\n")
            file.write("\n".join(text))


if __name__ == "__main__":
    main()
