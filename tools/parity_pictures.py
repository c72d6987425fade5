"""Demands that decoding and preprocessing equal Pillow, torchvision, timm and transformers, bit for bit, on pictures of every kind.

    cargo build --release --package graftwork-runtime --example prepare
    python tools/parity_pictures.py --prepare target/release/examples/prepare

Compares the uint8 pixels of each picture, the float32 tensors of torchvision's, timm's and transformers' evaluation transforms, random
views, EXIF orientation and scaled decoding. What Pillow refuses must be refused. Prints the number of checks and mismatches; exits
with 1 on any mismatch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import timm.data
import torch
import torchvision.transforms.v2.functional as F
from blake3 import blake3
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, functional, transforms

import parity_pictures_make
import reference

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MEAN, STD = list(reference.IMAGENET_MEAN), list(reference.IMAGENET_STD)


class Prepare:
    """The example binary: a question a line, an answer a line."""

    def __init__(self, binary: Path):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the binary died of {question}")
        return json.loads(line)


class Tally:
    def __init__(self, prepare: Prepare, folder: Path):
        self.prepare, self.folder = prepare, folder
        self.checks, self.mismatches = Counter(), []

    def check(self, kind: str, path: Path, want, **question) -> None:
        """`want` makes the reference's array; where it raises, an error must come back."""
        self.checks[kind] += 1
        got = self.prepare.ask(path=str(path), **question)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = np.ascontiguousarray(want())
        except Exception as error:  # whatever Pillow raises
            if "error" not in got:
                self.mismatches.append(f"{kind} {path.name}: read, where the reference raises {type(error).__name__}: {error}")
            return
        if "error" in got:
            self.mismatches.append(f"{kind} {path.name}: {got['error']}, where the reference reads it")
        elif got["shape"] != list(array.shape):
            self.mismatches.append(f"{kind} {path.name}: shape {got['shape']}, the reference has {list(array.shape)}")
        elif got["blake3"] != blake3(array.tobytes()).hexdigest():
            dump = self.folder / "dump.npy"
            self.prepare.ask(path=str(path), **{**question, "dump": str(dump)})
            mine = np.load(dump).astype(np.float64)
            difference = np.abs(mine - array)
            self.mismatches.append(f"{kind} {path.name} {json.dumps(question)}: {np.count_nonzero(difference)} of {array.size} differ, by up to {difference.max()}")


def preprocess(**changes) -> dict:
    return {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": MEAN, "std": STD, **changes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", type=Path, required=True, help="the example binary of graftwork-runtime")
    parser.add_argument("--only", default="", help="only pictures whose name contains this")
    parser.add_argument("--no-huge", action="store_true", help="leave out the pictures of 48 megapixels")
    parser.add_argument("--thorough", action="store_true", help="every transform on every picture instead of on a share of them")
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tally = Tally(Prepare(args.prepare), folder)
        paths = []
        for name, data in parity_pictures_make.all_pictures(huge=not args.no_huge):
            if args.only in name:
                (folder / name).write_bytes(data)
                paths.append(folder / name)
        for path in paths:
            tally.check("decode", path, lambda: np.asarray(reference.open_rgb(path)))
        readable = [path for path in paths if is_readable(path)]
        # Preprocessing depends on sizes, not on what is in the picture: a share of the pictures has every transform.
        share = readable if args.thorough else [path for number, path in enumerate(readable) if number % 7 == 0 or "huge" in path.name]
        print(f"{len(paths)} pictures, {len(readable)} that Pillow reads, {len(share)} of them for every transform", flush=True)
        torchvision_transforms(tally, readable, share)
        timm_transforms(tally, share, folder)
        huggingface_transforms(tally, share, folder)
        views(tally, share)
        oriented(tally, readable)
        drafted(tally, readable)
    print(", ".join(f"{kind} {count}" for kind, count in tally.checks.items()))
    print("\n".join(tally.mismatches[:40]))
    print(f"{sum(tally.checks.values())} checks, {len(tally.mismatches)} mismatches")
    return 1 if tally.mismatches else 0


def is_readable(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference.open_rgb(path)
    except Exception:  # whatever Pillow raises
        return False
    return True


def evaluation(resize, crop, interpolation: str, mean=MEAN, std=STD):
    steps = [transforms.Resize(resize, interpolation=InterpolationMode(interpolation)), transforms.CenterCrop(crop)]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def torchvision_transforms(tally: Tally, every: list[Path], share: list[Path]) -> None:
    first = evaluation(256, 224, "bilinear")
    for path in every:
        tally.check("torchvision", path, lambda: first(reference.open_rgb(path)).numpy(), preprocess=preprocess())
    specs = [(resize, crop, name) for name in FILTERS for resize, crop in ((232, 224), (64, 64), (40, 57))]
    specs += [((50, 70), (50, 70), "bilinear"), ((70, 50), (64, 48), "bicubic"), ((224, 224), (224, 224), "lanczos")]
    for path in share:
        picture = reference.open_rgb(path)
        for resize, crop, name in specs:
            transform = evaluation(resize, crop, name)
            spec = preprocess(resize={"exact": resize} if isinstance(resize, tuple) else resize, crop=crop, interpolation=name)
            tally.check("torchvision", path, lambda: transform(picture).numpy(), preprocess=spec)
        limited = transforms.Compose([transforms.Resize(60, max_size=90), transforms.CenterCrop(64), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        tally.check("torchvision", path, lambda: limited(picture).numpy(), preprocess=preprocess(resize={"short_side_at_most": [60, 90]}, crop=64))
    every_preset(tally, share[0])


def every_preset(tally: Tally, path: Path) -> None:
    import torchvision.models

    picture = reference.open_rgb(path)
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name)
        for entry in weights:
            tally.check("presets", path, lambda: entry.transforms()(picture).numpy(), config=f"torchvision:{name}.{entry.name}")
        tally.check("presets", path, lambda: weights.DEFAULT.transforms()(picture).numpy(), config=f"torchvision:{name}")


def timm_transforms(tally: Tally, paths: list[Path], folder: Path) -> None:
    configs = [
        {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic", "mean": MEAN, "std": STD},
        {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_mode": "center"},
        {"input_size": [3, 240, 240], "crop_pct": 0.95, "interpolation": "bilinear", "mean": MEAN, "std": STD, "crop_mode": "squash"},
        {"input_size": [3, 224, 224], "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "crop_mode": "border"},
        {"input_size": [3, 96, 160], "crop_pct": 0.9, "interpolation": "lanczos", "mean": MEAN, "std": STD},
        {"input_size": [3, 160, 96], "crop_pct": 0.7, "crop_mode": "border", "mean": MEAN, "std": STD},
        {"input_size": [3, 64, 64], "interpolation": "nearest"},
    ]
    for number, config in enumerate(configs):
        file = folder / f"timm{number}.json"
        file.write_text(json.dumps(config if number % 2 else {"architecture": "x", "pretrained_cfg": config}))
        resolved = timm.data.resolve_data_config(pretrained_cfg=config)
        transform = timm.data.create_transform(**resolved, is_training=False)
        for path in paths:
            picture = reference.open_rgb(path)
            if not keeps_pixels(config, picture):
                continue
            tally.check("timm", path, lambda: transform(picture).numpy(), config=str(file))
    every_timm_config(tally, paths[0], folder)


def keeps_pixels(config: dict, picture: Image.Image) -> bool:
    """timm's border mode can ask Pillow for a size of zero, which raises; graftwork keeps one pixel."""
    return config.get("crop_mode") != "border" or max(picture.size) < 100 * min(picture.size)


def every_timm_config(tally: Tally, path: Path, folder: Path) -> None:
    picture, seen = reference.open_rgb(path), set()
    for name in timm.list_pretrained():
        config = {key: value for key, value in timm.get_pretrained_cfg(name).to_dict().items() if key in ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")}
        text = json.dumps(config)
        if text in seen or config["input_size"][0] != 3:
            continue
        seen.add(text)
        file = folder / "timm.json"
        file.write_text(text)
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config), is_training=False)
        tally.check("timm's own", path, lambda: transform(picture).numpy(), config=str(file))


def huggingface_transforms(tally: Tally, paths: list[Path], folder: Path) -> None:
    import transformers

    configs = [
        ("ViT", {}), ("ViT", {"size": 96, "resample": 3}), ("ViT", {"do_normalize": False}), ("ViT", {"do_rescale": False, "size": {"height": 60, "width": 80}}),
        ("ViT", {"do_rescale": False, "do_normalize": True, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]}),
        ("CLIP", {}), ("CLIP", {"size": 100, "crop_size": 90}), ("CLIP", {"size": {"shortest_edge": 80}, "crop_size": {"height": 90, "width": 71}, "resample": 1}),
        ("CLIP", {"size": {"shortest_edge": 60, "longest_edge": 80}, "crop_size": 64}), ("CLIP", {"do_resize": False, "crop_size": 131}), ("CLIP", {"rescale_factor": 0.00784313725490196}),
        ("Bit", {}), ("Bit", {"size": {"shortest_edge": 448}, "crop_size": {"height": 384, "width": 384}, "resample": 2}),
        ("ConvNext", {}), ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}), ("ConvNext", {"size": 64, "crop_pct": 0.7}),
        ("Siglip", {}), ("Siglip", {"size": {"height": 128, "width": 96}, "resample": 0}),
        ("DeiT", {}), ("DeiT", {"size": 64, "crop_size": 57, "resample": 4}), ("Blip", {"size": {"height": 100, "width": 100}, "resample": 5}),
        ("EfficientNet", {}), ("EfficientNet", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}), ("EfficientNet", {"do_center_crop": True, "size": 100, "crop_size": 90}),
        ("MobileNetV1", {}), ("MobileNetV2", {"crop_size": {"height": 192, "width": 192}}), ("Levit", {}), ("Levit", {"size": {"height": 230, "width": 250}}),
    ]
    for number, (family, options) in enumerate(configs):
        processor = getattr(transformers, f"{family}ImageProcessorPil")(**options)
        asked = {"image_processor_type": f"{family}ImageProcessor", **options}
        # Once as a person writes it, with the defaults left out, and once as transformers saves it.
        sparse, saved = folder / f"hf{number}.json", folder / f"hf{number}-saved" / "preprocessor_config.json"
        sparse.write_text(json.dumps(asked))
        processor.save_pretrained(saved.parent)
        for path in paths:
            # Without what Pillow remembers of transparency: transformers would lay it on white.
            picture = Image.fromarray(np.asarray(reference.open_rgb(path)))
            want = lambda: processor(picture, return_tensors="np")["pixel_values"][0].astype(np.float32)
            tally.check("transformers", path, want, config=str(sparse))
        tally.check("transformers saved", paths[0], lambda: processor(reference.open_rgb(paths[0]), return_tensors="np")["pixel_values"][0].astype(np.float32), config=str(saved))


def views(tally: Tally, paths: list[Path]) -> None:
    """Regions as graftwork draws them, resampled by torchvision's functional; and mirrored evaluation."""
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for number, path in enumerate(paths):
        picture = reference.open_rgb(path)
        for index in range(6):
            crop, name = ((224, 224), "bilinear") if index % 2 else ((96, 64), FILTERS[(number + index) % 6])
            augment = {"seed": number, "crop": {"scale": [0.08, 1.0], "ratio": [0.75, 4 / 3]}, "flip": 0.5}
            spec = preprocess(crop=list(crop), interpolation=name)
            view = tally.prepare.ask(path=str(path), preprocess=spec, augment=[augment, index]).get("view")
            if view is None:
                tally.mismatches.append(f"views {path.name}: no view")
                continue
            box = view["region"]

            def want():
                part = functional.resized_crop(picture, box["top"], box["left"], box["height"], box["width"], list(crop), InterpolationMode(name))
                return to_tensor(functional.hflip(part) if view["flip"] else part).numpy()

            tally.check("views", path, want, preprocess=spec, augment=[augment, index])
            tally.check("views", path, want, preprocess=spec, view=view)
        mirrored = evaluation(64, 57, "bilinear")
        tally.check("mirrored", path, lambda: mirrored(picture).flip(2).numpy(), preprocess=preprocess(resize=64, crop=57), view={"region": None, "flip": True})
        # Padding is mirrored with the picture.
        padded = evaluation(20, 57, "bilinear")
        tally.check("mirrored", path, lambda: padded(picture).flip(2).numpy(), preprocess=preprocess(resize=20, crop=57), view={"region": None, "flip": True})


def oriented(tally: Tally, paths: list[Path]) -> None:
    transform = evaluation(100, 90, "bicubic")
    for path in paths:
        if "exif" not in path.name and "jpeg-113x75" not in path.name:
            continue

        def want():
            with Image.open(path) as picture:
                return transform(ImageOps.exif_transpose(picture).convert("RGB")).numpy()

        tally.check("orientation", path, want, preprocess=preprocess(resize=100, crop=90, interpolation="bicubic", exif=True))


def drafted(tally: Tally, paths: list[Path]) -> None:
    for path in paths:
        for short in (16, 64, 100, 256):
            transform = evaluation(short, short, "bilinear")

            def want():
                with Image.open(path) as picture:
                    width, height = picture.size
                    small, large = (width, height) if width <= height else (height, width)
                    long = int(short * large / small)
                    picture.draft(None, (short, long) if width <= height else (long, short))
                    return transform(picture.convert("RGB")).numpy()

            tally.check("scaled decoding", path, want, preprocess=preprocess(resize=short, crop=short, scaled_decode=True))


if __name__ == "__main__":
    sys.exit(main())
