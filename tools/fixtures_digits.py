"""Fixtures of the digits: a backbone pretrained on 0-4, pictures of 5-9 for the transfer, and the features they must give.

The data are the 8x8 scans that scikit-learn ships (UCI Optical Recognition of Handwritten Digits, CC BY 4.0).
Everything goes through the reference transform (resize 32, crop 32, ImageNet mean and std), in training too, so that a backbone
that works here works with the product's own preprocessing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from safetensors.numpy import save
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import digits_cnn
import reference

SEED = 20261123
PREPROCESSING = reference.Preprocessing(resize=32, crop=32)
EPOCHS = 40
BATCH = 32
TRAIN_PER_CLASS, VAL_PER_CLASS = 100, 40
C_CANDIDATES = [10.0**e for e in range(-3, 4)]


def make(folder: Path) -> dict:
    """Writes everything below `folder`; returns the numbers that the manifest records."""
    folder.mkdir(parents=True, exist_ok=True)
    scans, labels = load_digits(return_X_y=True)
    pictures = [grey_picture(scan) for scan in scans]
    model, held_out = pretrain(pictures, labels)
    save_backbone(model, folder)
    write_pictures(pictures, labels, folder / "pictures")
    figures = check_transfer(model, folder)
    write_expected_features(folder)
    return {"held_out_accuracy_0_to_4": held_out, **figures}


def grey_picture(scan: np.ndarray) -> Image.Image:
    """64 values 0..16 -> an 8x8 picture 0..255."""
    return Image.fromarray(np.rint(scan.reshape(8, 8) * (255.0 / 16.0)).astype(np.uint8))


def normalised(pictures: list[Image.Image]) -> torch.Tensor:
    transform = PREPROCESSING.evaluation()
    return torch.stack([transform(p.convert("RGB")) for p in pictures])


def pretrain(pictures: list[Image.Image], labels: np.ndarray) -> tuple[nn.Module, float]:
    """Trains on 80 % of the digits 0-4; returns the model in evaluation mode and its accuracy on the other 20 %."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(SEED)
    known = rng.permutation(np.flatnonzero(labels < len(digits_cnn.CLASSES)))
    held_out, train = np.split(known, [len(known) // 5])
    x, y = normalised([pictures[i] for i in train]), torch.from_numpy(labels[train])
    model = digits_cnn.DigitsCnn()
    steps = EPOCHS * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in reference.batches(rng.permutation(len(train)).tolist(), BATCH):
            # A shift by up to three of 32 pixels, one per batch, keeps the features from memorising positions.
            dy, dx = rng.integers(-3, 4, size=2).tolist()
            batch = torch.roll(x[rows], (dy, dx), dims=(2, 3))
            loss = nn.functional.cross_entropy(model(batch), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        logits = model(normalised([pictures[i] for i in held_out]))
    accuracy = float((logits.argmax(1).numpy() == labels[held_out]).mean())
    if accuracy <= 0.98:
        raise SystemExit(f"the backbone reaches only {accuracy:.4f} on held-out digits 0-4; 0.98 is the floor")
    return model, accuracy


def save_backbone(model: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "backbone.pth")
    torch.save(model, folder / "backbone_model.pth")
    size = PREPROCESSING.crop
    # PRESERVE keeps the batch normalisations as nodes and every weight under its own name; the default folds them into
    # the convolutions and invents names.
    torch.onnx.export(
        model, torch.zeros(2, 3, size, size), folder / "backbone.onnx",
        dynamo=False, opset_version=17, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        input_names=["input"], output_names=["logits"], dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
    )
    graph = onnx.load(folder / "backbone.onnx")
    onnx.checker.check_model(graph, full_check=True)
    stored = {i.name for i in graph.graph.initializer}
    probe = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        expected = model(probe).numpy()
    np.testing.assert_allclose(reference.run_rows(reference.session_of(graph, threads=1), probe.numpy()), expected, rtol=1e-4, atol=1e-4)
    missing = {n for n in model.state_dict() if not n.endswith("num_batches_tracked")} - stored
    if missing:
        raise SystemExit(f"the ONNX export lost the names {sorted(missing)}")


def write_pictures(pictures: list[Image.Image], labels: np.ndarray, folder: Path) -> None:
    rng = np.random.default_rng(SEED + 1)
    for digit in range(len(digits_cnn.CLASSES), 10):
        chosen = rng.permutation(np.flatnonzero(labels == digit))[: TRAIN_PER_CLASS + VAL_PER_CLASS]
        parts = {"train": chosen[:TRAIN_PER_CLASS], "val": chosen[TRAIN_PER_CLASS:]}
        for split, rows in parts.items():
            target = folder / split / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            for number, row in enumerate(rows):
                pictures[row].save(target / f"{number:03}.png", optimize=True)


def split_of(folder: Path, split: str) -> tuple[list[Path], np.ndarray]:
    """Pictures of one split in sorted order, with the index of each one's class among the sorted class names."""
    paths = reference.pictures_below(folder / "pictures" / split)
    classes = sorted({p.parent.name for p in paths})
    return paths, np.array([classes.index(p.parent.name) for p in paths], dtype=np.int64)


def check_transfer(model: nn.Module, folder: Path) -> dict:
    """Logistic regression on the frozen features of 5-9: the number a transfer should reach."""
    parts = {}
    for split in ("train", "val"):
        paths, labels = split_of(folder, split)
        with torch.no_grad():
            parts[split] = model.features(normalised([reference.open_rgb(p) for p in paths])).numpy(), labels
    scores = {}
    for c in C_CANDIDATES:
        fit = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(*parts["train"])
        scores[c] = float(fit.score(*parts["val"]))
    best = max(scores, key=lambda c: (scores[c], -c))
    if scores[best] <= 0.95:
        raise SystemExit(f"logistic regression on the features of 5-9 reaches only {scores[best]:.4f}; 0.95 is the floor")
    return {
        "transfer_val_accuracy_by_c": {f"{c:g}": s for c, s in scores.items()},
        "transfer_best_c": best,
        "transfer_best_val_accuracy": scores[best],
    }


def write_expected_features(folder: Path) -> None:
    """onnxruntime's features of every val picture, at the boundary, in the order that the sidecar lists."""
    graph = onnx.load(folder / "backbone.onnx")
    boundary = reference.boundary_of(graph)
    session = reference.session_of(reference.cut_at(graph, boundary), threads=1)
    paths, labels = split_of(folder, "val")
    batch = normalised([reference.open_rgb(p) for p in paths]).numpy()
    features = reference.run_rows(session, batch)
    # `save` and not `save_file`, which makes a file that only its owner can read.
    (folder / "expected_features.safetensors").write_bytes(save({"features": np.ascontiguousarray(features, np.float32)}))
    sidecar = {
        "boundary": boundary,
        "preprocessing": {"resize": PREPROCESSING.resize, "crop": PREPROCESSING.crop,
                          "interpolation": PREPROCESSING.interpolation,
                          "mean": reference.IMAGENET_MEAN, "std": reference.IMAGENET_STD},
        "onnxruntime": onnxruntime.__version__,
        "classes": sorted({p.parent.name for p in paths}),
        "paths": [p.relative_to(folder).as_posix() for p in paths],
        "labels": labels.tolist(),
    }
    (folder / "expected_features.json").write_text(json.dumps(sidecar, indent=1) + "\n")
