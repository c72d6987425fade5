"""Fixtures of pictures: every kind of JPEG and PNG that decode and resize parity must survive, and broken ones.

All are cut from the two CC BY photographs that scikit-learn ships. `expected.json` says what Pillow and torchvision make of each.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

import png
import reference

SPECS = (
    reference.Preprocessing(256, 224, "bilinear"),
    reference.Preprocessing(32, 32, "bilinear"),
    reference.Preprocessing(232, 224, "bicubic"),
)
ORIENTATION = 0x0112


def make(folder: Path) -> dict:
    """Writes everything below `folder`; returns the numbers that the manifest records."""
    (folder / "broken").mkdir(parents=True, exist_ok=True)
    files = jpegs() | pngs()
    for name, data in (files | broken(files)).items():
        (folder / name).write_bytes(data)
    good = {name: describe(folder, name) for name in sorted(files)}
    bad = {name: outcome(folder, name) for name in sorted(broken(files))}
    expected = {
        "specs": {s.name(): {"resize": s.resize, "crop": s.crop, "interpolation": s.interpolation} for s in SPECS},
        "mean": reference.IMAGENET_MEAN, "std": reference.IMAGENET_STD, "pictures": good, "broken": bad,
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return {"pictures": len(good), "broken": len(bad)}


def photograph(name: str, size: tuple[int, int], part: float = 1.0) -> Image.Image:
    """The centre `part` of a sample photograph, resampled to `size` (width, height)."""
    whole = Image.fromarray(load_sample_image(f"{name}.jpg"))
    w, h = (side * part / 2 for side in whole.size)
    cx, cy = (side / 2 for side in whole.size)
    return whole.resize(size, Image.Resampling.LANCZOS, box=(cx - w, cy - h, cx + w, cy + h))


def jpeg(picture: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", **{"quality": 90, "subsampling": "4:2:0", **options})
    return out.getvalue()


def pillow_png(picture: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True, **options)
    return out.getvalue()


def jpegs() -> dict[str, bytes]:
    china, flower = photograph("china", (120, 80)), photograph("flower", (113, 75), 0.6)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    files = {
        "jpeg-444.jpg": jpeg(china, subsampling="4:4:4"),
        "jpeg-422.jpg": jpeg(china, subsampling="4:2:2"),
        "jpeg-420.jpg": jpeg(china),
        "jpeg-420-odd-113x75.jpg": jpeg(flower),
        "jpeg-422-odd-113x75.jpg": jpeg(flower, subsampling="4:2:2"),
        "jpeg-rgb-adobe.jpg": jpeg(flower, keep_rgb=True, subsampling="4:4:4"),
        "jpeg-grey.jpg": jpeg(flower.convert("L")),
        "jpeg-cmyk-adobe.jpg": jpeg(flower.convert("CMYK"), subsampling="4:4:4"),
        "jpeg-ycck-adobe.jpg": ycck(flower),
        "jpeg-progressive.jpg": jpeg(china, progressive=True),
        "jpeg-progressive-grey.jpg": jpeg(china.convert("L"), progressive=True),
        "jpeg-restart-rows.jpg": jpeg(china, restart_marker_rows=1),
        "jpeg-restart-blocks.jpg": jpeg(flower, restart_marker_blocks=3, subsampling="4:2:2"),
        "jpeg-quality10.jpg": jpeg(china, quality=10),
        "jpeg-quality50.jpg": jpeg(flower, quality=50),
        "jpeg-quality95.jpg": jpeg(photograph("china", (90, 60)), quality=95),
        "jpeg-quality100-444.jpg": jpeg(photograph("flower", (64, 48)), quality=100, subsampling="4:4:4"),
        "jpeg-exif-orientation6.jpg": jpeg(china, exif=turned),
        "jpeg-optimised-huffman.jpg": jpeg(china, optimize=True),
    }
    for width, height in ((37, 53), (1, 1), (1, 300), (300, 3), (33, 32), (2, 2), (17, 16)):
        files[f"jpeg-{width}x{height}.jpg"] = jpeg(photograph("flower", (width, height)))
    # Larger than the crop, so that these shrink where the small ones grow; the odd differences 257-224 and 275-224 try the
    # rounding of the crop's corner.
    files["jpeg-shrink-420x391.jpg"] = jpeg(photograph("china", (420, 391)), quality=60)
    files["jpeg-257x275.jpg"] = jpeg(photograph("flower", (257, 275)), quality=60)
    files["jpeg-440.jpg"] = resampled(jpeg(photograph("china", (80, 64)), subsampling="4:2:2"), 0x21, 0x12, (64, 80))
    files["jpeg-411.jpg"] = resampled(jpeg(photograph("china", (96, 64))), 0x22, 0x41, (192, 32))
    return files


def ycck(picture: Image.Image) -> bytes:
    """YCCK as Photoshop writes it: Pillow stores four planes untouched, so it is handed YCbCr and K and the Adobe mark is set to 2."""
    y, cb, cr = picture.convert("YCbCr").split()
    key = picture.convert("L").point(lambda v: 128 + v // 2)
    # Pillow stores 255 - value for CMYK.
    planes = [plane.point(lambda v: 255 - v) for plane in (y, cb, cr, key)]
    data = bytearray(jpeg(Image.merge("CMYK", planes), subsampling="4:4:4", quality=80))
    mark = data.index(b"Adobe")
    # "Adobe", version, flags 0, flags 1, transform.
    data[mark + 11] = 2
    return bytes(data)


def resampled(data: bytes, luma_from: int, luma_to: int, size: tuple[int, int]) -> bytes:
    """Rewrites the frame header of a JPEG to another sampling with as many luma blocks per unit, which Pillow cannot write.

    The units keep their bits but land elsewhere: the picture is scrambled on purpose, its stream is valid.
    """
    frame = data.index(b"\xff\xc0")
    out = bytearray(data)
    assert out[frame + 11] == luma_from, "the luma sampling is the 12th byte of the frame header"
    out[frame + 5 : frame + 9] = size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big")
    out[frame + 11] = luma_to
    return bytes(out)


def pngs() -> dict[str, bytes]:
    size = (45, 34)
    rgb = photograph("flower", size, 0.7)
    grey = rgb.convert("L")
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1)))
    palette = rgb.quantize(16, dither=Image.Dither.NONE)
    levels = np.asarray(grey)
    # 16-bit samples whose low byte is not zero and not a copy of the high byte.
    deep = (np.asarray(rgb).astype(np.uint16) * 257) ^ 0x5A
    small_values = (levels.astype(np.uint16) * 5) // 4
    return {
        "png-rgb.png": pillow_png(rgb),
        "png-rgba.png": pillow_png(Image.merge("RGBA", (*rgb.split(), ramp))),
        "png-l.png": pillow_png(grey),
        "png-la.png": pillow_png(Image.merge("LA", (grey, ramp))),
        "png-p.png": pillow_png(palette),
        "png-p-256.png": pillow_png(rgb.quantize(256)),
        "png-p-transparency.png": pillow_png(palette, transparency=3),
        "png-p-alpha-table.png": pillow_png(palette, transparency=bytes(range(0, 256, 16))),
        "png-rgb-trns.png": pillow_png(rgb, transparency=rgb.getpixel((0, 0))),
        "png-l-trns.png": pillow_png(grey, transparency=grey.getpixel((0, 0))),
        "png-grey1.png": png.encode(levels >> 7, 1),
        "png-grey2.png": png.encode(levels >> 6, 2),
        "png-grey4.png": png.encode(levels >> 4, 4),
        "png-grey16.png": png.encode(deep[:, :, 1], 16),
        "png-grey16-small-values.png": png.encode(small_values, 16),
        "png-rgb16.png": png.encode(deep, 16),
        "png-rgb-interlaced.png": png.encode(np.asarray(rgb), 8, interlaced=True),
        "png-grey1-interlaced.png": png.encode(levels >> 7, 1, interlaced=True),
        "png-1x1.png": pillow_png(photograph("flower", (1, 1))),
        "png-1x300.png": pillow_png(photograph("flower", (1, 300))),
        "jpeg-named.png": jpeg(photograph("china", (60, 40))),
        "png-named.jpg": pillow_png(photograph("china", (30, 20))),
    }


def broken(files: dict[str, bytes]) -> dict[str, bytes]:
    whole_jpeg, whole_png = files["jpeg-420.jpg"], files["png-rgb.png"]
    scan = whole_jpeg.index(b"\xff\xda")
    middle = (scan + len(whole_jpeg)) // 2
    junk = np.random.default_rng(7).integers(0, 255, 64, dtype=np.uint8).tobytes()  # 0..254: no marker among them
    bad_crc = bytearray(whole_png)
    bad_crc[whole_png.index(b"IDAT") + 4 + 100] ^= 0x40
    bad = {
        "jpeg-truncated.jpg": whole_jpeg[:middle],
        "jpeg-truncated-in-header.jpg": whole_jpeg[:200],
        "jpeg-no-end-marker.jpg": whole_jpeg[:-2],
        "jpeg-junk-in-scan.jpg": whole_jpeg[:middle] + junk + whole_jpeg[middle + len(junk) :],
        "jpeg-trailing-junk.jpg": whole_jpeg + junk,
        "png-truncated.png": whole_png[: len(whole_png) * 2 // 3],
        "png-no-end.png": whole_png[:-12],
        "png-flipped-bit.png": bytes(bad_crc),
        "html-named.jpg": b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n",
        "empty.jpg": b"",
    }
    return {f"broken/{name}": data for name, data in bad.items()}


def outcome(folder: Path, name: str) -> dict:
    """Whether Pillow reads the picture: its size and pixels, or the exception."""
    try:
        picture = reference.open_rgb(folder / name)
    except Exception as error:  # the point is to record whatever Pillow raises
        # Pillow prints the path as it was given; only the name belongs into the fixture.
        message = re.sub(re.escape(str(folder)) + "/", "", str(error))
        return {"raises": type(error).__name__, "message": message}
    return {"width": picture.width, "height": picture.height, "rgb_sha256": reference.sha256(picture.tobytes())}


def describe(folder: Path, name: str) -> dict:
    entry = outcome(folder, name)
    if "raises" in entry:
        raise SystemExit(f"{name}: meant to be readable, but Pillow raises {entry}")
    with Image.open(folder / name) as picture:
        entry = {"mode": picture.mode, **entry}
    picture = reference.open_rgb(folder / name)
    entry["preprocessed"] = {spec.name(): preprocessed(picture, spec) for spec in SPECS}
    first = SPECS[0]
    floats = first.evaluation()(picture).numpy().astype("<f4")
    entry["float32_chw_sha256"] = {first.name(): reference.sha256(floats.tobytes())}
    return entry


def preprocessed(picture: Image.Image, spec: reference.Preprocessing) -> dict:
    try:
        pixels = spec.geometry()(picture)
    except Exception as error:  # recorded, see `outcome`
        return {"rgb_sha256": None, "reason": f"{type(error).__name__}: {error}"}
    return {"rgb_sha256": reference.sha256(pixels.tobytes())}
