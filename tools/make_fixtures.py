"""Makes everything in fixtures/ anew: `python tools/make_fixtures.py` (packages: tools/requirements.txt).

Seeds are fixed, so the same versions on the same kind of machine give the same bytes; fixtures/MANIFEST.json records the versions,
and the size, SHA-256 and provenance of each file. With `--check` nothing is written: the files are made in a temporary folder and
compared with the ones in place, and a difference exits with 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy
import onnx
import onnxruntime
import PIL
import PIL.features
import safetensors
import sentence_transformers
import sklearn
import tokenizers
import torch
import torchvision
import transformers

import fixtures_checkpoints
import fixtures_dcp
import fixtures_digits
import fixtures_pictures
import fixtures_text

# What is made; README.md and MANIFEST.json lie beside these.
PARTS = ("digits", "pictures", "checkpoints", "dcp", "text")
LIMIT_BYTES = 2_000_000
# Folders of many like files: one digest of the listing instead of a line for each.
LISTED_AS_ONE = ("digits/pictures/train", "digits/pictures/val")

DIGITS = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; CC BY 4.0) as shipped by scikit-learn"
PHOTOGRAPHS = "cut from scikit-learn's sample photographs china.jpg and flower.jpg (CC BY, see README.md)"
PROVENANCE = {
    "digits/backbone.pth": f"state dict of tools/digits_cnn.py, trained on the digits 0-4 of {DIGITS}",
    "digits/backbone_model.pth": "the same network as a whole pickled model",
    "digits/backbone.onnx": "the same network as an ONNX graph, opset 17, batch normalisation kept",
    "digits/pictures": f"digits 5-9 of {DIGITS}, 8x8 grey, 0..16 scaled to 0..255",
    "digits/expected_features": "backbone.onnx up to its boundary on pictures/val, by torchvision, Pillow and onnxruntime",
    "pictures/expected.json": "what Pillow and torchvision make of the pictures beside it",
    "pictures/broken": "damaged on purpose; " + PHOTOGRAPHS,
    "pictures": PHOTOGRAPHS,
    "checkpoints/expected.json": "what torch.load reads from the checkpoints beside it",
    "checkpoints": "made from seeded random numbers by tools/fixtures_checkpoints.py",
    "text/expected.json": "tokens by transformers and vectors by sentence-transformers of the texts in it",
    "text": "a tiny BERT with seeded random weights and a tokenizer of a few words, by tools/fixtures_text.py",
    "dcp": "made from counted numbers by tools/fixtures_dcp.py; each folder's expected.safetensors by safetensors.torch",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures", help="default: fixtures/ of this checkout")
    parser.add_argument("--check", action="store_true", help="compare with the files in place instead of writing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "fixtures"
        figures = make(made)
        manifest = {"versions": versions(), "figures": figures, **listing(made)}
        if args.check:
            return compare(manifest, args.out)
        for part in PARTS:
            shutil.rmtree(args.out / part, ignore_errors=True)
            shutil.copytree(made / part, args.out / part)
    (args.out / "MANIFEST.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{manifest['total_size']} bytes below {args.out}")
    return 0


def make(folder: Path) -> dict:
    with warnings.catch_warnings():
        # The TorchScript-based exporter and typed storages announce their end; both are used on purpose.
        warnings.simplefilter("ignore")
        return {
            "digits": fixtures_digits.make(folder / "digits"),
            "pictures": fixtures_pictures.make(folder / "pictures"),
            "checkpoints": fixtures_checkpoints.make(folder / "checkpoints"),
            "dcp": fixtures_dcp.make(folder / "dcp"),
            "text": fixtures_text.make(folder / "text"),
        }


def versions() -> dict:
    return {
        "python": platform.python_version(), "machine": platform.machine(), "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "torch": torch.__version__, "torchvision": torchvision.__version__, "scikit-learn": sklearn.__version__,
        "Pillow": PIL.__version__, "libjpeg-turbo": PIL.features.version("libjpeg_turbo"), "zlib-ng": PIL.features.version("zlib_ng"),
        "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__, "safetensors": safetensors.__version__,
        "tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "sentence-transformers": sentence_transformers.__version__,
    }


def listing(folder: Path) -> dict:
    """Size, digest and provenance of each made file below `folder`."""
    paths = sorted(p.relative_to(folder).as_posix() for part in PARTS for p in (folder / part).rglob("*") if p.is_file())
    digests = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths}
    sizes = {path: (folder / path).stat().st_size for path in paths}
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        raise SystemExit(f"the fixtures take {total} bytes; {LIMIT_BYTES} is the limit")
    folders, files = {}, {}
    for group in LISTED_AS_ONE:
        members = [path for path in paths if path.startswith(group + "/")]
        lines = "".join(f"{digests[path]}  {path}\n" for path in members)
        folders[group] = {
            "files": len(members), "size": sum(sizes[path] for path in members), "provenance": provenance_of(group),
            "sha256_of_sha256sum_listing": hashlib.sha256(lines.encode()).hexdigest(),
        }
    for path in paths:
        if not path.startswith(tuple(group + "/" for group in LISTED_AS_ONE)):
            files[path] = {"size": sizes[path], "sha256": digests[path], "provenance": provenance_of(path)}
    return {"total_size": total, "folders": folders, "files": files}


def provenance_of(path: str) -> str:
    """The text of the longest key that the path starts with."""
    return PROVENANCE[max((key for key in PROVENANCE if path.startswith(key)), key=len)]


def compare(manifest: dict, folder: Path) -> int:
    """0 when the files in `folder` are the ones that `manifest` describes and its own manifest says so too."""
    recorded, in_place = json.loads((folder / "MANIFEST.json").read_text()), listing(folder)
    differences = []
    for part in ("folders", "files"):
        for path in sorted(manifest[part].keys() | in_place[part].keys() | recorded[part].keys()):
            made, here, said = (listed[part].get(path) for listed in (manifest, in_place, recorded))
            if here != said:
                differences.append(f"{path}: the file in place is not the one that MANIFEST.json records")
            if made != here:
                differences.append(f"{path}: made anew it differs from the file in place")
    for name in sorted(manifest["versions"]):
        if manifest["versions"][name] != recorded["versions"].get(name):
            print(f"note: {name} is {manifest['versions'][name]}, MANIFEST.json records {recorded['versions'].get(name)}", file=sys.stderr)
    print("\n".join(differences) or "the fixtures are as made anew")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
