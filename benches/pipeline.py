"""Feature extraction side by side: `graftwork extract` against a plain Python pipeline, interleaved in one run.

    python benches/pipeline.py --graftwork target/release/graftwork --backbone M.onnx --data FOLDER
    python benches/pipeline.py --graftwork target/release/graftwork --backbone M.onnx --photographs 600
    python benches/pipeline.py --graftwork target/release/graftwork --backbone resnet50.onnx --torch resnet50 --photographs 200

Prints a Markdown section; `--append` also adds it to benches/RESULTS.md. Packages: tools/requirements.txt.
The peer gets the number of DataLoader workers that is best on a subset and is not charged for its imports; Graftwork is charged for its
whole process, with a cold feature cache in a fresh folder. The pictures are read once beforehand, so both find them in the page cache.
Ratios are of medians. The parts alone (Pillow on one thread; onnxruntime on ready tensors, its best batch) say what the machine could do:
their sum is preprocessing / cores + inference, per picture. `--torch` adds the network in PyTorch as a third side.
Without `--graftwork` only the peer and the parts are measured.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import cpu_model

BENCHES = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHES.parent / "tools"))
import reference  # noqa: E402

PEER = BENCHES / "pipeline_python.py"
RESULTS = BENCHES / "RESULTS.md"
WORKERS = (0, 1, 2, 4)
WORKER_ROUNDS = 3
PHOTOGRAPH_SEED = 20261123


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as temporary:
        scratch = Path(temporary)
        data, what = prepare_data(args, scratch)
        n_distinct = len({hashlib.sha256(path.read_bytes()).digest() for path in reference.pictures_below(data)})
        load_before = os.getloadavg()[0]
        tried = try_workers(args, data)
        workers = max(tried, key=tried.get)
        torch_tried = try_workers(args, data, "--torch", args.torch) if args.torch else {}
        torch_workers = max(torch_tried, key=torch_tried.get) if args.torch else 0
        ours, theirs, torchs = [], [], []
        for repeat in range(args.repeats):
            if args.graftwork:
                ours.append(graftwork(args, data, scratch / f"cache-{repeat}", n_distinct))
            theirs.append(peer(args, data, "--workers", workers))
            if args.torch:
                torchs.append(peer(args, data, "--torch", args.torch, "--workers", torch_workers))
            print(f"repeat {repeat + 1}/{args.repeats} done", file=sys.stderr)
        parts = peer(args, data, "--parts", "--limit", args.subset)
    section = render(args, what, load_before, (tried, workers, theirs), (torch_tried, torch_workers, torchs), ours, parts)
    print(section)
    if args.append:
        with RESULTS.open("a") as file:
            file.write("\n" + section + "\n")
    return 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", type=Path, help="the binary, built with --release")
    parser.add_argument("--backbone", type=Path, required=True, help="the ONNX file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="an image folder with train/ and val/ or test/")
    source.add_argument("--photographs", type=int, metavar="N", help="make N photographs of 0.2 megapixels and use those")
    parser.add_argument("--limit", type=int, help="use only so many pictures of --data, evenly spread")
    parser.add_argument("--subset", type=int, default=512, help="pictures for choosing workers and for the parts (default %(default)s)")
    parser.add_argument("--worker-rounds", type=int, default=WORKER_ROUNDS, help="rounds for choosing workers (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    parser.add_argument("--cut", help="boundary tensor")
    parser.add_argument("--torch", help="also run torchvision's or timm's model of this name, which the ONNX file was exported from")
    parser.add_argument("--dtype", default="float16", help="how features are stored (default %(default)s)")
    parser.add_argument("--append", action="store_true", help="add the result to benches/RESULTS.md, with the date")
    reference.add_preprocessing_arguments(parser)
    return parser.parse_args()


def prepare_data(args, scratch: Path) -> tuple[Path, str]:
    """The folder to measure on and a phrase that describes it; every picture has been read once."""
    data = scratch / "pictures"
    if args.photographs:
        make_photographs(args.photographs, data)
        kind = "photographs of 0.2 megapixels (JPEG, quality 90, 4:2:0)"
    elif args.limit:
        paths = reference.pictures_below(args.data)
        step = max(1.0, len(paths) / args.limit)
        for path in (paths[int(i * step)] for i in range(min(args.limit, len(paths)))):
            target = data / path.relative_to(args.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        kind = f"pictures of {args.data.name}"
    else:
        data, kind = args.data, f"pictures of {args.data.name}"
    paths = reference.pictures_below(data)
    if not paths:
        raise SystemExit(f"{data}: no pictures")
    n_bytes = sum(len(path.read_bytes()) for path in paths)
    return data, f"{len(paths)} {kind}, {n_bytes / len(paths) / 1000:.1f} kB each"


def make_photographs(n: int, folder: Path) -> None:
    """Random crops of about 500 x 400 from scikit-learn's two photographs: two classes, one in five for validation."""
    import numpy as np
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(PHOTOGRAPH_SEED)
    wholes = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
    for i in range(n):
        name = ("china", "flower")[i % 2]
        whole = wholes[name]
        width, height = int(rng.integers(460, 541)), int(rng.integers(375, 426))
        left, top = int(rng.integers(0, whole.width - width + 1)), int(rng.integers(0, whole.height - height + 1))
        crop = whole.crop((left, top, left + width, top + height))
        target = folder / ("val" if i // 2 % 5 == 4 else "train") / name / f"{i:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        (ImageOps.mirror(crop) if rng.integers(2) else crop).save(target, quality=90, subsampling="4:2:0")


def peer(args, data: Path, *more) -> dict:
    command = [sys.executable, str(PEER), "--backbone", str(args.backbone), "--data", str(data), *preprocessing_flags(args), *map(str, more)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"`{shlex.join(command)}` exits with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def try_workers(args, data: Path, *more) -> dict[int, float]:
    """Number of workers -> images per second on a subset: the best of interleaved rounds.

    One round would be unfair to the peer: the first run finds its libraries cold, and a busy moment of the machine picks the wrong number.
    """
    best = dict.fromkeys(WORKERS, 0.0)
    for _ in range(args.worker_rounds):
        for workers in WORKERS:
            run = peer(args, data, "--workers", workers, "--limit", args.subset, *more)
            best[workers] = max(best[workers], run["n"] / run["wall_s"])
    return best


def graftwork(args, data: Path, cache: Path, n_distinct: int) -> dict:
    """One cold extraction: wall and CPU seconds of the whole process; fails unless every picture is in the cache."""
    cache.mkdir()
    command = [str(args.graftwork), "extract", "--backbone", str(args.backbone), "--data", str(data), "--cache", str(cache), "--json",
               "--dtype", args.dtype, *preprocessing_flags(args)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"`{shlex.join(command)}` exits with {done.returncode}")
    n = len(reference.pictures_below(data))
    rows = sum(cached_rows(block) for block in cache.rglob("block-*.safetensors"))
    if rows not in (n, n_distinct):
        raise SystemExit(f"the cache holds {rows} rows for {n} pictures, {n_distinct} of them distinct")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(cache)
    told = json.loads(done.stdout)["seconds"]
    return {"n": n, "wall_s": wall, "cpu_s": cpu, "preparing_s": told["preparing"], "running_s": told["running"]}


def cached_rows(block: Path) -> int:
    """Rows of one cache block, from its safetensors header alone."""
    with block.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))["features"]["shape"][0]


def preprocessing_flags(args) -> list[str]:
    """Only what differs from the defaults, which both sides share."""
    flags, defaults = ["--cut", args.cut] if args.cut else [], reference.Preprocessing()
    for name in ("resize", "crop", "interpolation"):
        if getattr(args, name) != getattr(defaults, name):
            flags += [f"--{name}", str(getattr(args, name))]
    return flags


def render(args, what, load_before, onnx_side, torch_side, ours, parts) -> str:
    (tried, workers, theirs), (torch_tried, torch_workers, torchs) = onnx_side, torch_side
    cores = len(os.sched_getaffinity(0))
    preprocess = parts["decode_s"] + parts["resize_s"]
    sum_rate = 1 / (preprocess / cores + parts["inference_s"])
    base = rate(theirs)
    lines = [
        f"## Extraction, {datetime.date.today().isoformat()}", "",
        f"{what}; backbone {args.backbone.name}; {args.repeats} interleaved repeats, medians (min to max).",
        f"Machine: {cpu_model()}, {cores} cores, {platform.system()} {platform.release()}, load average before the run {load_before:.2f}.",
        f"Versions: {versions(args)}.",
        f"Command: `python {shlex.join(map(str, ['benches/pipeline.py', *sys.argv[1:]]))}`", "",
        "| side | images/s | wall s | CPU s | CPU ms per image | images/s against DataLoader + onnxruntime |", "|---|---|---|---|---|---|",
    ]
    for name, runs in (("graftwork extract, whole process, cold cache", ours), (f"DataLoader with {workers} workers + onnxruntime, without imports", theirs),
                       (f"DataLoader with {torch_workers} workers + PyTorch {args.torch}, without imports", torchs)):
        if runs:
            cpu = median(r["cpu_s"] for r in runs)
            rates = sorted(r["n"] / r["wall_s"] for r in runs)
            lines.append(f"| {name} | {rate(runs):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) | {median(r['wall_s'] for r in runs):.2f} | {cpu:.2f} "
                         f"| {1000 * cpu / runs[0]['n']:.2f} | {rate(runs) / base:.2f}x |")
    lines.append(f"| the parts added up, Python's ingredients on all cores | {sum_rate:.0f} | | | | {sum_rate / base:.2f}x |")
    lines += ["",
              f"Parts per image: decode {1000 * parts['decode_s']:.2f} ms and resize + crop {1000 * parts['resize_s']:.2f} ms (Pillow, one thread), "
              f"normalise {1000 * parts['normalise_s']:.2f} ms (torchvision, one thread, not in the sum), "
              f"inference {1000 * parts['inference_s']:.2f} ms (onnxruntime, ready tensors, batch {parts['inference_batch']}, the best of 1, 8 and 32, default threads); best of four rounds each.",
              f"DataLoader workers tried on a subset, the best of {args.worker_rounds}: " + ", ".join(f"{w}: {r:.0f} images/s" for w, r in tried.items()) + "."]
    if torch_tried:
        lines.append("With PyTorch: " + ", ".join(f"{w}: {r:.0f} images/s" for w, r in torch_tried.items()) + ".")
    if ours:
        preparing, running = (median(1000 * r[part] / r["n"] for r in ours) for part in ("preparing_s", "running_s"))
        lines.append(f"Graftwork's own parts per image, summed over its threads while all ran: prepare {preparing:.2f} ms, network {running:.2f} ms.")
        lines.append(f"End to end against the parts added up: {rate(ours) / sum_rate:.2f}." +
                     (f" Against DataLoader + PyTorch: {rate(ours) / rate(torchs):.2f}." if torchs else ""))
    return "\n".join(lines)


def rate(runs: list[dict]) -> float:
    return median(r["n"] / r["wall_s"] for r in runs)


def median(values) -> float:
    return statistics.median(list(values))


def versions(args) -> str:
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "pillow", "onnxruntime")]
    if args.graftwork:
        version = subprocess.run([str(args.graftwork), "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
        revision = subprocess.run(["git", "-C", str(BENCHES), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
        found.insert(0, f"{version or 'graftwork of unknown version'} (checkout {revision})")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
