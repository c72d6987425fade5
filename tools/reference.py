"""The reference that Graftwork's features are held against: torchvision + Pillow + onnxruntime, and nothing clever.

Shared by the fixture maker, the checks and the benchmark so that all of them mean the same transform, the same order of pictures
and the same boundary. No product code: nothing here is installed or shipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Iterator

import numpy as np
import onnx
import onnxruntime
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """torchvision's evaluation transform; the defaults are Graftwork's."""

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"

    def name(self) -> str:
        return f"resize{self.resize}-crop{self.crop}-{self.interpolation}"

    def geometry(self) -> transforms.Compose:
        """PIL picture -> PIL picture of crop x crop."""
        return transforms.Compose([
            transforms.Resize(self.resize, interpolation=INTERPOLATIONS[self.interpolation]),
            transforms.CenterCrop(self.crop),
        ])

    def evaluation(self) -> transforms.Compose:
        """PIL picture -> float32 tensor [3, crop, crop]."""
        return transforms.Compose([self.geometry(), *values().transforms])


def values() -> transforms.Compose:
    """PIL picture -> normalised float32 tensor of the same size."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def add_preprocessing_arguments(parser) -> None:
    defaults = Preprocessing()
    parser.add_argument("--resize", type=int, default=defaults.resize, help="short side after the resize (default %(default)s)")
    parser.add_argument("--crop", type=int, default=defaults.crop, help="side of the centre crop (default %(default)s)")
    parser.add_argument("--interpolation", choices=sorted(INTERPOLATIONS), default=defaults.interpolation)


def preprocessing_from(args) -> Preprocessing:
    return Preprocessing(args.resize, args.crop, args.interpolation)


def open_rgb(path: Path) -> Image.Image:
    """What torchvision's default loader does; raises as Pillow raises."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def pictures_below(folder: Path) -> list[Path]:
    """Every file below `folder` that torchvision would call a picture, in sorted order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in IMG_EXTENSIONS)


def batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def boundary_of(model: onnx.ModelProto) -> str:
    """The default cut: the data input of the last Gemm or MatMul that reads stored weights."""
    stored = {i.name for i in model.graph.initializer}
    for node in reversed(model.graph.node):
        if node.op_type in ("Gemm", "MatMul") and len(node.input) > 1 and node.input[1] in stored:
            return node.input[0]
    raise ValueError("the graph has no Gemm or MatMul with stored weights: name the boundary with --cut")


def cut_at(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The part of the graph that `tensor` depends on, with `tensor` as its one output."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    if tensor not in made_by:
        raise ValueError(f"no node of the graph makes a tensor named {tensor!r}")
    needed, open_names = set(), [tensor]
    while open_names:
        name = open_names.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made_by:
            open_names.extend(i for i in made_by[name].input if i)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.initializer[:], part.graph.output[:]
    part.graph.node.extend(n for n in model.graph.node if needed.intersection(n.output))
    part.graph.initializer.extend(i for i in model.graph.initializer if i.name in needed)
    part.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    return part


def session_of(model: onnx.ModelProto | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session; `threads` 0 leaves onnxruntime its own default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_rows(session: onnxruntime.InferenceSession, batch: np.ndarray) -> np.ndarray:
    """First output for a [n, 3, h, w] batch, as [n, D]."""
    out = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return out.reshape(len(batch), -1)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
