"""Runs RUN/model.onnx with onnxruntime on every picture of a split and compares its accuracy with RUN/metrics.json.

    python tools/check_model.py --run RUN --data FOLDER --split val

The pictures go through torchvision's evaluation transform, so this proves the exported file itself, by none of Graftwork's code.
`onnx.checker` must accept the file. Exits with 1 when the count of right answers differs by more than `--slack` pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx

import reference

BATCH = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run folder: model.onnx and metrics.json")
    parser.add_argument("--data", type=Path, required=True, help="the image folder that holds the split's folder")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="default %(default)s")
    parser.add_argument("--slack", type=int, default=0, help="pictures by which the counts may differ (default %(default)s)")
    reference.add_preprocessing_arguments(parser)
    args = parser.parse_args()
    metrics = json.loads((args.run / "metrics.json").read_text())
    classes = metrics["classes"]
    onnx.checker.check_model(str(args.run / "model.onnx"), full_check=True)
    print("onnx.checker: accepts model.onnx")
    right, n, unread = score(args.run / "model.onnx", args.data / args.split, classes, reference.preprocessing_from(args))
    if n == 0:
        raise SystemExit(f"{args.data / args.split}: no readable pictures")
    stated = metrics["val"]
    stated_right = stated["accuracy"] * stated["n"]
    for line in unread:
        print(f"skipped {line}")
    print(f"onnxruntime + torchvision: {right}/{n} = {right / n:.6f}")
    print(f"metrics.json:              {stated_right:.0f}/{stated['n']} = {stated['accuracy']:.6f}")
    agree = stated["n"] == n and abs(stated_right - right) <= args.slack + 1e-3
    print("they agree" if agree else "they DIFFER")
    return 0 if agree else 1


def score(model: Path, folder: Path, classes: list[str], preprocessing: reference.Preprocessing) -> tuple[int, int, list[str]]:
    """Right answers, readable pictures, and the pictures that Pillow cannot read."""
    session, transform = reference.session_of(model), preprocessing.evaluation()
    index, unread = {name: i for i, name in enumerate(classes)}, []
    right = n = 0
    for group in reference.batches(reference.pictures_below(folder), BATCH):
        tensors, labels = [], []
        for path in group:
            try:
                picture = transform(reference.open_rgb(path)).numpy()
            except Exception as error:  # whatever Pillow raises
                unread.append(f"{path}: {type(error).__name__}: {error}")
                continue
            tensors.append(picture)
            labels.append(index[path.relative_to(folder).parts[0]])
        if not labels:
            continue
        logits = reference.run_rows(session, np.stack(tensors))
        if logits.shape[1] != len(classes):
            raise SystemExit(f"{model}: {logits.shape[1]} logits for {len(classes)} classes")
        right += int((logits.argmax(1) == np.array(labels)).sum())
        n += len(labels)
    return right, n, unread


if __name__ == "__main__":
    sys.exit(main())
