"""The plain Python pipeline that `pipeline.py` measures against, in a process of its own.

torchvision ImageFolder + Resize/CenterCrop/ToTensor/Normalize + DataLoader + onnxruntime with its default threads, as anyone would write
it first. Prints one line of JSON. The clock starts after the imports, so the peer is not charged for loading torch; it covers listing the
folder, making the session, starting the workers and every batch. `--parts` times the ingredients alone instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import reference  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cut")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="only so many pictures, evenly spread")
    parser.add_argument("--parts", action="store_true", help="time decode + resize alone and onnxruntime alone")
    reference.add_preprocessing_arguments(parser)
    args = parser.parse_args()
    print(json.dumps(parts(args) if args.parts else pipeline(args)))
    return 0


def pipeline(args) -> dict:
    wall, cpu = time.perf_counter(), cpu_seconds()
    session = session_at_boundary(args)
    loader = DataLoader(pictures(args), batch_size=args.batch, num_workers=args.workers)
    n, checksum = 0, 0.0
    for batch, _labels in loader:
        features = reference.run_rows(session, batch.numpy())
        n += len(features)
        checksum += float(features.sum(dtype=np.float64))
    # The workers have ended with the loader's iterator, so their time is among the children's.
    return {"n": n, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "checksum": checksum}


def parts(args) -> dict:
    """Seconds per picture of each ingredient: Pillow on one thread, onnxruntime with its default threads on ready tensors."""
    preprocessing = reference.preprocessing_from(args)
    paths = reference.pictures_below(args.data)
    chosen = [paths[i] for i in evenly(len(paths), args.limit)]
    geometry, values = preprocessing.geometry(), reference.values()
    start = time.perf_counter()
    decoded = [reference.open_rgb(path) for path in chosen]
    decode = time.perf_counter() - start
    start = time.perf_counter()
    resized = [geometry(picture) for picture in decoded]
    resize = time.perf_counter() - start
    start = time.perf_counter()
    ready = np.stack([values(picture).numpy() for picture in resized[: args.batch]])
    normalise = time.perf_counter() - start
    session = session_at_boundary(args)
    reference.run_rows(session, ready)
    n_batches = max(1, -(-len(chosen) // len(ready)))
    start = time.perf_counter()
    for _ in range(n_batches):
        reference.run_rows(session, ready)
    inference = time.perf_counter() - start
    return {
        "n": len(chosen), "decode_s": decode / len(chosen), "resize_s": resize / len(chosen),
        "normalise_s": normalise / len(ready), "inference_s": inference / (n_batches * len(ready)),
    }


def pictures(args):
    """Every split of the folder, as ImageFolder reads it."""
    transform = reference.preprocessing_from(args).evaluation()
    splits = [args.data / name for name in ("train", "val", "test") if (args.data / name).is_dir()]
    whole = ConcatDataset([ImageFolder(str(split), transform) for split in splits or [args.data]])
    return Subset(whole, evenly(len(whole), args.limit)) if args.limit else whole


def evenly(n: int, limit: int | None) -> list[int]:
    return np.linspace(0, n - 1, min(n, limit or n)).astype(int).tolist()


def session_at_boundary(args):
    model = onnx.load(args.backbone)
    return reference.session_of(reference.cut_at(model, args.cut or reference.boundary_of(model)))


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    sys.exit(main())
