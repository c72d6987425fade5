#!/usr/bin/env python3
"""The notebook's job, 25 epochs on pictures, beside the same in PyTorch: both ways that the notebook names, interleaved in one run.

    python benches/notebook.py --graftwork target/release/graftwork --data cifar10 --append

`fixed`: a ResNet18 that is frozen, and a new classifier. `tail`: layer3, layer4 and the classifier train from fresh weights, the rest is
frozen. The weights are fresh ones of torchvision's, which cost the same as pretrained ones. Both sides resize to 256, crop 224, train
with SGD (lr 0.001, momentum 0.9, StepLR(7, 0.1)) on batches of 32, look at the validation pictures after each epoch and keep the best.
Graftwork is measured whole, from the start of the process to its end with a cold cache: reading, features, training, writing and proving
the models. PyTorch's epochs all cost the same, so that `--torch-epochs` of them are timed and counted 25 times; its imports are not
charged, and it runs with the number of workers and the memory format that are fastest in a probe. Packages: tools/requirements.txt.
"""

import argparse
import copy
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import cpu_model

BENCHES = Path(__file__).resolve().parent
RESULTS = BENCHES / "RESULTS.md"
EPOCHS = 25
BATCH = 32
TAIL = ["layer3", "layer4", "fc"]


def cpu_seconds(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def torch_side(job, data, n_epochs, threads):
    """Prints a line of JSON: seconds an epoch, processor seconds an epoch, and what was chosen."""
    import torch
    import torchvision
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(threads)
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    sets = {split: ImageFolder(str(data / split), transform) for split in ("train", "val")}

    def network(channels_last):
        torch.manual_seed(0)
        net = torchvision.models.resnet18()
        net.fc = nn.Linear(512, len(sets["train"].classes))
        trained = TAIL if job == "tail" else ["fc"]
        for name, parameter in net.named_parameters():
            parameter.requires_grad = name.split(".")[0] in trained
        net = net.to(memory_format=torch.channels_last) if channels_last else net
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
        return net, optimiser

    def phase(net, optimiser, split, workers, channels_last, limit=None):
        training = split == "train"
        net.train(training)
        loader = DataLoader(sets[split], batch_size=BATCH, shuffle=training, num_workers=workers)
        right = 0
        for i, (x, y) in enumerate(loader):
            if limit and i == limit:
                break
            if channels_last:
                x = x.to(memory_format=torch.channels_last)
            optimiser.zero_grad()
            with torch.set_grad_enabled(training):
                logits = net(x)
                if training:
                    nn.functional.cross_entropy(logits, y).backward()
                    optimiser.step()
            right += (logits.argmax(1) == y).sum().item()
        return right / len(sets[split])

    def probe(choice):
        net, optimiser = network(choice[1])
        phase(net, optimiser, "train", *choice, limit=1)
        start = time.perf_counter()
        phase(net, optimiser, "train", *choice, limit=6)
        return time.perf_counter() - start

    choice = min([(w, c) for w in (0, 2) for c in (False, True)], key=probe)
    net, optimiser = network(choice[1])
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=7, gamma=0.1)
    best, best_weights = -1.0, None
    walls, cpus = [], []
    for _ in range(n_epochs):
        wall, cpu = time.perf_counter(), sum(map(cpu_seconds, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
        phase(net, optimiser, "train", *choice)
        schedule.step()
        accuracy = phase(net, optimiser, "val", *choice)
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(net.state_dict())
        walls.append(time.perf_counter() - wall)
        # The workers have ended with their loader, so that their time is among the children's.
        cpus.append(sum(map(cpu_seconds, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))) - cpu)
    assert best_weights is not None
    layout = "channels last" if choice[1] else "contiguous"
    print(json.dumps({"wall": walls, "cpu": cpus, "choice": f"{choice[0]} workers, {layout}", "torch": torch.__version__}))


def graftwork_side(job, args, data, weights, scratch):
    command = [args.graftwork, "fit", "--backbone", weights, "--data", data, "-o", scratch / "run", "--cache", scratch / "cache",
               "--optimizer", "sgd", "--lr", "0.001", "--momentum", "0.9", "--schedule", "step", "--epochs", str(EPOCHS),
               "--train-batch-size", str(BATCH)]
    if job == "tail":
        patterns = " ".join(f"{name}.**" for name in TAIL)
        command += ["--train", patterns, "--fresh", patterns]
    wall, cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_CHILDREN)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    wall, cpu = time.perf_counter() - wall, cpu_seconds(resource.RUSAGE_CHILDREN) - cpu
    if done.returncode:
        sys.exit(f"graftwork failed: {done.stderr}")
    epochs = sum(1 for line in (scratch / "run/metrics.jsonl").read_text().splitlines() if '"epoch"' in line)
    shutil.rmtree(scratch / "run")
    shutil.rmtree(scratch / "cache")
    return {"wall": wall, "cpu": cpu, "epochs": epochs}


def some_pictures(source, folder, n_train, n_val):
    """The first pictures of each class of each split, as `train` and `val`."""
    counts = {}
    for split, names, n in (("train", ["train"], n_train), ("val", ["val", "test"], n_val)):
        found = next(source / name for name in names if (source / name).is_dir())
        counts[split] = 0
        for label in sorted(p for p in found.iterdir() if p.is_dir()):
            (folder / split / label.name).mkdir(parents=True)
            for picture in sorted(label.iterdir())[:n]:
                shutil.copy(picture, folder / split / label.name)
                counts[split] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graftwork", type=Path, default=BENCHES.parent / "target/release/graftwork")
    parser.add_argument("--data", type=Path, required=True, help="an image folder with train/ and val/ or test/")
    parser.add_argument("--jobs", nargs="*", choices=["fixed", "tail"], default=["fixed", "tail"])
    parser.add_argument("--fixed", type=int, nargs=2, default=[250, 50], metavar="N", help="pictures a class of training and validation")
    parser.add_argument("--tail", type=int, nargs=2, default=[50, 10], metavar="N", help="the same, of the job that trains a tail")
    parser.add_argument("--torch-epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--append", action="store_true", help="to benches/RESULTS.md")
    parser.add_argument("--torch-side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch_side:
        job, data, n_epochs = args.torch_side
        return torch_side(job, Path(data), int(n_epochs), args.threads)

    load = os.getloadavg()[0]
    rows, notes = [], []
    for job in args.jobs:
        with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as scratch:
            scratch = Path(scratch)
            counts = some_pictures(args.data, scratch / "data", *(args.fixed if job == "fixed" else args.tail))
            weights = scratch / "resnet18.pth"
            subprocess.run([sys.executable, "-c", "import sys, torch, torchvision; torch.manual_seed(0);"
                            " torch.save(torchvision.models.resnet18().state_dict(), sys.argv[1])", weights], check=True)
            ours, theirs = [], []
            for repeat in range(args.repeats):
                ours.append(graftwork_side(job, args, scratch / "data", weights, scratch))
                torch = [sys.executable, __file__, "--data", scratch, "--threads", str(args.threads), "--torch-side", job, scratch / "data"]
                out = subprocess.run(list(map(str, torch + [args.torch_epochs])), capture_output=True, text=True, check=True)
                theirs.append(json.loads(out.stdout.splitlines()[-1]))
                print(f"{job} {repeat + 1}/{args.repeats}: {ours[-1]} {theirs[-1]}", file=sys.stderr)
        assert all(one["epochs"] == EPOCHS for one in ours), ours
        wall = [EPOCHS * statistics.mean(one["wall"]) for one in theirs]
        cpu = [EPOCHS * statistics.mean(one["cpu"]) for one in theirs]
        our_wall, our_cpu = [one["wall"] for one in ours], [one["cpu"] for one in ours]
        ratio = statistics.median(b / a for a, b in zip(our_wall, wall))
        cpu_ratio = statistics.median(b / a for a, b in zip(our_cpu, cpu))
        what = f"{job}, {counts['train']} + {counts['val']} pictures"
        rows.append(f"| {what} | graftwork | {statistics.median(our_wall):.1f} ({min(our_wall):.1f} to {max(our_wall):.1f})"
                    f" | {statistics.median(our_cpu):.1f} | 1.00x | 1.00x |")
        rows.append(f"| {what} | PyTorch | {statistics.median(wall):.1f} ({min(wall):.1f} to {max(wall):.1f})"
                    f" | {statistics.median(cpu):.1f} | {ratio:.2f}x | {cpu_ratio:.2f}x |")
        notes.append(f"PyTorch's choice for `{job}`: {', '.join(sorted({one['choice'] for one in theirs}))}.")
    checkout = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=BENCHES, capture_output=True, text=True).stdout.strip()
    arguments = " ".join(Path(a).name if a.startswith("/") else a for a in sys.argv[1:])
    text = "\n".join([
        f"## The notebook's job, {datetime.date.today()}",
        "",
        f"{EPOCHS} epochs in seconds, ResNet18 at 224 x 224, batches of {BATCH}; {args.repeats} interleaved repeats, medians (min to max)."
        f" PyTorch: {args.torch_epochs} epoch(s) timed each, counted {EPOCHS} times. Graftwork: the whole process, cold cache.",
        f"Machine: {cpu_model()}, {os.cpu_count()} cores, load average before the run {load:.2f}.",
        f"Versions: graftwork (checkout {checkout}), torch {theirs[-1]['torch']}, Python {platform.python_version()}.",
        f"Command: `python benches/notebook.py {arguments}`",
        "",
        "| job | side | s | CPU s | time against graftwork (median of the rounds' ratios) | CPU time |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        " ".join(notes),
    ])
    print(text)
    if args.append:
        RESULTS.write_text(RESULTS.read_text().rstrip("\n") + "\n\n" + text + "\n")


if __name__ == "__main__":
    main()
