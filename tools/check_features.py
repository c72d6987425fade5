"""Compares the features that `graftwork extract` caches with torchvision + Pillow + onnxruntime, on every picture.

    python tools/check_features.py --graftwork target/release/graftwork --backbone M.onnx --data FOLDER

Runs the extraction into a fresh temporary cache (or reads a cache entry that exists, with `--entry`), makes the same features by the
reference, and matches the rows by the BLAKE3 digest of each picture's bytes. The error of one picture is the largest of
|a - b| / max(|b|, 1e-3 * max|b|) over its features, b being the reference and the inner maximum that of the same picture.
Exits with 1 when any error is above `--tolerance`, or a picture that Pillow reads is missing from the cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from blake3 import blake3
from safetensors.numpy import load_file

import reference

BATCH = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", type=Path, help="the binary; not needed with --entry")
    parser.add_argument("--backbone", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--data", type=Path, required=True, help="the image folder")
    parser.add_argument("--cut", help="boundary tensor (default: the input of the last Gemm or MatMul with stored weights)")
    parser.add_argument("--limit", type=int, help="compare only so many pictures, evenly spread")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="default %(default)s")
    parser.add_argument("--entry", type=Path, help="a cache entry that exists, instead of running the extraction")
    parser.add_argument("--pass-on", nargs=argparse.REMAINDER, default=[], help="all that follows goes to `graftwork extract` as it is")
    reference.add_preprocessing_arguments(parser)
    args = parser.parse_args()
    if args.entry is None and args.graftwork is None:
        parser.error("--graftwork or --entry is needed")
    preprocessing = reference.preprocessing_from(args)
    with tempfile.TemporaryDirectory() as cache:
        entry = args.entry or extract(args, preprocessing, Path(cache))
        cached = read_entry(entry)
    paths = spread(reference.pictures_below(args.data), args.limit)
    model = onnx.load(args.backbone)
    boundary = args.cut or reference.boundary_of(model)
    session = reference.session_of(reference.cut_at(model, boundary))
    print(f"{len(paths)} pictures, {len(cached)} cached rows, boundary {boundary}, {preprocessing.name()}")
    return report(*compare(paths, cached, session, preprocessing), args.tolerance)


def extract(args, preprocessing: reference.Preprocessing, cache: Path) -> Path:
    """Runs `graftwork extract`; its one line on stdout is the entry's folder."""
    command = [str(args.graftwork), "extract", "--backbone", str(args.backbone), "--data", str(args.data), "--cache", str(cache)]
    command += ["--cut", args.cut] if args.cut else []
    if preprocessing != reference.Preprocessing():
        command += ["--resize", str(preprocessing.resize), "--crop", str(preprocessing.crop), "--interpolation", preprocessing.interpolation]
    command += args.pass_on
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` exits with {done.returncode}")
    lines = done.stdout.splitlines()
    if len(lines) != 1 or not Path(lines[0]).is_dir():
        raise SystemExit(f"expected one line with the entry's folder on stdout, found {done.stdout!r}")
    return Path(lines[0])


def read_entry(entry: Path) -> dict[bytes, np.ndarray]:
    """Digest of a picture's bytes -> its row of features."""
    blocks = sorted(entry.glob("block-*.safetensors"))
    if not blocks:
        raise SystemExit(f"{entry}: no block-*.safetensors in it")
    rows = {}
    for block in blocks:
        tensors = load_file(block)
        features, ids = tensors["features"], tensors["ids"]
        if features.dtype != np.float32 or ids.dtype != np.uint8 or ids.shape != (len(features), 32):
            raise SystemExit(f"{block}: features {features.dtype}{features.shape}, ids {ids.dtype}{ids.shape}; expected f32 [n, D] and u8 [n, 32]")
        rows.update((digest.tobytes(), row) for digest, row in zip(ids, features, strict=True))
    return rows


def spread(paths: list[Path], limit: int | None) -> list[Path]:
    if not paths:
        raise SystemExit("no pictures to compare")
    if limit is None or limit >= len(paths):
        return paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]


def compare(paths, cached, session, preprocessing) -> tuple[list[tuple[float, Path]], list[str]]:
    """Error of each picture, and complaints about pictures that cannot be compared."""
    transform = preprocessing.evaluation()
    errors, complaints = [], []
    for group in reference.batches(paths, BATCH):
        tensors, read = [], []
        for path in group:
            digest = blake3(path.read_bytes()).digest()
            try:
                picture = transform(reference.open_rgb(path)).numpy()
            except Exception as error:  # whatever Pillow raises: such a picture has no features
                if digest in cached:
                    complaints.append(f"{path}: cached, though Pillow raises {type(error).__name__}: {error}")
                continue
            if digest not in cached:
                complaints.append(f"{path}: not in the cache")
                continue
            tensors.append(picture)
            read.append((path, cached[digest]))
        if not read:
            continue
        for (path, ours), theirs in zip(read, reference.run_rows(session, np.stack(tensors)), strict=True):
            if ours.shape != theirs.shape:
                raise SystemExit(f"{path}: the cache has {ours.shape} features, the reference {theirs.shape}")
            errors.append((relative_error(ours, theirs), path))
    return errors, complaints


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest |a - b| / max(|b|, 1e-3 max|b|); NaN counts as infinite."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    scale = np.maximum(np.abs(b), 1e-3 * np.abs(b).max())
    # Where the reference is all zero any difference is infinite and no difference is none.
    error = np.divide(np.abs(a - b), scale, out=np.where(a == b, 0.0, np.inf), where=scale > 0)
    return float(np.where(np.isnan(error), np.inf, error).max())


def report(errors: list[tuple[float, Path]], complaints: list[str], tolerance: float) -> int:
    for complaint in complaints:
        print(complaint)
    if not errors:
        print("nothing was compared")
        return 1
    errors.sort(key=lambda pair: pair[0], reverse=True)
    values = np.array([error for error, _ in errors])
    above = int((values > tolerance).sum())
    print(f"compared {len(values)}: max relative error {values[0]:.3e} ({errors[0][1]}), median {np.median(values):.3e}, "
          f"identical {int((values == 0).sum())}, above {tolerance:g}: {above}")
    return 1 if above or complaints else 0


if __name__ == "__main__":
    sys.exit(main())
