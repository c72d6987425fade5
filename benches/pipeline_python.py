"""The plain Python pipelines that `pipeline.py` measures against, in a process of its own.

torchvision ImageFolder + Resize/CenterCrop/ToTensor/Normalize + DataLoader, then onnxruntime with its default threads, or with `--torch` the
network in PyTorch under `inference_mode`, its last layer replaced by `Identity`; as anyone would write it first. Prints one line of JSON. The clock starts after the imports, so the peer is not charged for loading torch; it covers listing the
folder, making the session, starting the workers and every batch. `--parts` times the ingredients alone instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import reference  # noqa: E402

ROUNDS = 4
BATCHES = (1, 8, 32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cut")
    parser.add_argument("--torch", help="run torchvision's or timm's model of this name instead of the ONNX file")
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
    if args.torch:
        run = torch_model(args.torch)
    else:
        session = session_at_boundary(args)
        run = lambda batch: reference.run_rows(session, batch.numpy())  # noqa: E731
    # More workers than cores is a choice that is tried on purpose.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    loader = DataLoader(pictures(args), batch_size=args.batch, num_workers=args.workers)
    n, checksum = 0, 0.0
    for batch, _labels in loader:
        features = run(batch)
        n += len(features)
        checksum += float(features.sum(dtype=np.float64))
    # The workers have ended with the loader's iterator, so their time is among the children's.
    return {"n": n, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "checksum": checksum}


def torch_model(name: str):
    """The network without its classifier, as a function of a batch. Its weights are fresh: they cost the same."""
    import torch
    import torchvision

    if hasattr(torchvision.models, name):
        model = getattr(torchvision.models, name)(weights=None)
        model.fc = torch.nn.Identity()
    else:
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=0)
    model.eval()

    def run(batch):
        with torch.inference_mode():
            return model(batch).numpy()

    return run


def parts(args) -> dict:
    """Seconds per picture of each ingredient: Pillow on one thread, onnxruntime with its default threads on ready tensors.

    The best of several rounds each: the first one pays for fresh memory and thread pools, which a long run does not notice.
    """
    preprocessing = reference.preprocessing_from(args)
    paths = reference.pictures_below(args.data)
    chosen = [paths[i] for i in evenly(len(paths), args.limit)]
    geometry, values = preprocessing.geometry(), reference.values()
    decoded = [reference.open_rgb(path) for path in chosen]
    some = [geometry(picture) for picture in decoded[: args.batch]]
    ready = np.stack([values(picture).numpy() for picture in some])
    session = session_at_boundary(args)
    inference = {batch: inference_seconds(session, ready[:batch], len(chosen)) for batch in BATCHES if batch <= len(ready)}
    batch = min(inference, key=inference.get)
    return {
        "n": len(chosen),
        "decode_s": best_of_rounds(lambda: [reference.open_rgb(path) for path in chosen]) / len(chosen),
        "resize_s": best_of_rounds(lambda: [geometry(picture) for picture in decoded]) / len(chosen),
        "normalise_s": best_of_rounds(lambda: [values(picture) for picture in some]) / len(some),
        "inference_s": inference[batch],
        "inference_batch": batch,
    }


def inference_seconds(session, ready, n: int) -> float:
    n_batches = max(1, n // len(ready))
    return best_of_rounds(lambda: [reference.run_rows(session, ready) for _ in range(n_batches)]) / (n_batches * len(ready))


def best_of_rounds(work) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
