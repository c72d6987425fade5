"""Decoding and resampling pictures side by side: graftwork, Pillow, fast_image_resize, zune-jpeg and image, interleaved in one run.

    (cd benches/pictures && cargo build --release)
    python benches/pictures.py [--append]

Prints a Markdown section; `--append` also adds it to benches/RESULTS.md. Packages: Pillow, scikit-learn (for its two photographs).
One thread, all in memory; each go is timed inside its process around the work alone, sides take turns, medians of `--rounds`.
`decode` gives RGB; `resample` is Resize(256) bilinear and CenterCrop(224) of decoded pixels; `whole` is both. Graftwork's side of the last two
also makes normalised float32 numbers, the peers stop at bytes. `exact` says whose pixels are Pillow's.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import PIL
import PIL.features
from PIL import Image
from sklearn.datasets import load_sample_image

from machine import cpu_model

BENCHES = Path(__file__).resolve().parent
SIDES = {
    "decode": ("graftwork", "Pillow", "zune-jpeg", "image"),
    "resample": ("graftwork", "Pillow", "fast_image_resize", "image"),
    "whole": ("graftwork", "Pillow", "zune-jpeg+fast_image_resize", "image"),
}
# Name, size, JPEG options; 4:2:0 at quality 90 unless said otherwise.
PICTURES = (
    ("photograph 500 x 375", (500, 375), {}),
    ("the same, 4:4:4", (500, 375), {"subsampling": "4:4:4"}),
    ("the same, progressive", (500, 375), {"progressive": True}),
    ("photograph 1920 x 1280", (1920, 1280), {}),
    ("photograph 4000 x 3000", (4000, 3000), {"quality": 85}),
    ("small, 32 x 32", (32, 32), {}),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=BENCHES / "pictures/target/release/pictures-bench")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--append", action="store_true")
    args = parser.parse_args()
    process = subprocess.Popen([args.binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, size, options) in enumerate(PICTURES):
            path = Path(folder) / f"{number}.jpg"
            photograph = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.LANCZOS)
            photograph.save(path, "JPEG", **{"quality": 90, "subsampling": "4:2:0", **options})
            for task, sides in SIDES.items():
                # Small pictures and quick tasks need more goes for a median that stands still.
                rounds = args.rounds * (1 if size[0] > 1000 else 6)
                times = {side: [] for side in sides}
                for round_number in range(rounds + 2):
                    for side in sides:
                        seconds = pillow(task, path) if side == "Pillow" else ask(process, side, task, path)
                        if round_number >= 2:
                            times[side].append(seconds)
                rows.append((name, task, {side: statistics.median(values) for side, values in times.items()}))
    section = report(rows, args)
    print(section)
    if args.append:
        with (BENCHES / "RESULTS.md").open("a") as results:
            results.write("\n" + section)
    return 0


def ask(process: subprocess.Popen, side: str, task: str, path: Path) -> float:
    process.stdin.write(f"{side} {task} {path}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"the binary died of {side} {task} {path}")
    return float(answer)


FILES: dict[Path, bytes] = {}


def pillow(task: str, path: Path) -> float:
    data = FILES.setdefault(path, path.read_bytes())
    if task == "resample":
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        start = time.perf_counter()
        resampled(picture)
        return time.perf_counter() - start
    start = time.perf_counter()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if task == "whole":
        resampled(picture)
    return time.perf_counter() - start


def resampled(picture: Image.Image) -> Image.Image:
    """torchvision's Resize(256) and CenterCrop(224), without torchvision's own overhead."""
    width, height = picture.size
    size = (256, 256 * height // width) if width <= height else (256 * width // height, 256)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    return picture.crop((left, top, left + 224, top + 224))


def report(rows: list, args) -> str:
    lines = [
        f"## Pictures, {datetime.date.today()}", "",
        f"`python benches/pictures.py --rounds {args.rounds}`; one thread, milliseconds, medians; in parentheses how many times graftwork's.",
        f"`resample` and `whole` of graftwork also make normalised float32 numbers. Pixels are Pillow's only where marked with =.", "",
        f"Machine: {cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.2f}; Pillow {PIL.__version__} with libjpeg-turbo {PIL.features.version('libjpeg_turbo')}; {crates()}.", "",
        "| picture | task | graftwork = | Pillow = | Rust decoder and resizer | image |", "|---|---|---|---|---|---|",
    ]
    for name, task, medians in rows:
        mine = medians["graftwork"]
        cells = [f"{seconds * 1e3:.3f}" + ("" if side == "graftwork" else f" ({seconds / mine:.2f})") for side, seconds in medians.items()]
        lines.append(f"| {name} | {task} | " + " | ".join(cells) + " |")
    lines += ["", "The third column is zune-jpeg for `decode`, fast_image_resize for `resample`, both for `whole`.", ""]
    return "\n".join(lines)


def crates() -> str:
    """Versions of the peers, from the lock file."""
    lock, wanted = (BENCHES / "pictures/Cargo.lock").read_text(), ("fast_image_resize", "zune-jpeg", "image")
    blocks = [dict(line.split(" = ", 1) for line in block.splitlines() if " = " in line) for block in lock.split("[[package]]")]
    versions = {block["name"].strip('"'): block["version"].strip('"') for block in blocks if "name" in block}
    return ", ".join(f"{name} {versions[name]}" for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
