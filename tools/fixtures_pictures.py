"""Fixtures of pictures: every kind of picture that decode and resize parity must survive, and broken ones.

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
    files = jpegs() | pngs() | others()
    for name, data in (files | broken(files)).items():
        (folder / name).write_bytes(data)
    good = {name: describe(folder, name) for name in sorted(files)}
    bad = {name: outcome(folder, name) for name in sorted(broken(files))}
    expected = {
        "specs": {s.name(): {"resize": s.resize, "crop": s.crop, "interpolation": s.interpolation} for s in SPECS},
        "mean": reference.IMAGENET_MEAN, "std": reference.IMAGENET_STD, "pictures": good, "broken": bad,
        "transforms": transformed(folder), "views": viewed(folder),
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


def others() -> dict[str, bytes]:
    """WebP, GIF, BMP and PNM, a few of each of the many that `parity_pictures_make` has."""
    import parity_pictures_make as make

    def saved(picture: Image.Image, kind: str, **options) -> bytes:
        out = io.BytesIO()
        picture.save(out, kind, **options)
        return out.getvalue()

    flower, china = photograph("flower", (61, 43), 0.7), photograph("china", (61, 43))
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 61).astype(np.uint8), (43, 1)))
    faded = Image.merge("RGBA", (*flower.split(), ramp))
    indices = np.asarray(flower)[:, :, 0] >> 4
    palette = [(i * 16, 255 - i * 9, (i * 37) % 256) for i in range(16)]
    red, green, blue = (np.asarray(flower)[:, :, channel].astype(np.uint32) for channel in range(3))
    return {
        "webp-lossy.webp": saved(flower, "WEBP", quality=70),
        "webp-lossy-alpha.webp": saved(faded, "WEBP", quality=60),
        "webp-lossless.webp": saved(flower, "WEBP", lossless=True),
        "webp-lossless-alpha.webp": saved(faded, "WEBP", lossless=True, exact=True),
        "webp-animated.webp": saved(flower, "WEBP", save_all=True, append_images=[china], quality=40),
        "gif.gif": saved(flower.quantize(32), "GIF"),
        "gif-interlaced-transparent.gif": saved(china.quantize(16), "GIF", interlace=True, transparency=2),
        "gif-animated.gif": saved(flower.quantize(8), "GIF", save_all=True, append_images=[china.quantize(8)], disposal=2),
        "gif-small-frame.gif": make.raw_gif((20, 15), (5, 4), np.arange(48, dtype=np.uint8).reshape(6, 8) % 4, bytes(range(100, 112)), b"", 2),
        "gif-beyond-palette.gif": make.wide_gif(np.arange(256, dtype=np.uint8).reshape(16, 16), bytes([9, 8, 7, 1, 2, 3])),
        "bmp-24.bmp": saved(flower.resize((30, 21)), "BMP"),
        "bmp-8.bmp": make.bitmap(61, 43, 8, 0, palette[:7], make.pack(indices, 8)),
        "bmp-4-top-down.bmp": make.bitmap(61, -43, 4, 0, palette, make.pack(indices, 4)),
        "bmp-1.bmp": saved(flower.convert("1"), "BMP"),
        "bmp-rle8.bmp": make.bitmap(61, 43, 8, 1, palette, make.rle8(indices[::-1])),
        "bmp-rle4.bmp": make.bitmap(61, 43, 4, 2, palette, make.rle4(indices[::-1])),
        "bmp-565.bmp": make.bitmap(61, 43, 16, 3, [], make.words(((red >> 3) << 11) | ((green >> 2) << 5) | (blue >> 3), 2), masks=(0xF800, 0x7E0, 0x1F)),
        "pnm-rgb.ppm": saved(flower.resize((20, 14)), "PPM"),
        "pnm-grey16.pgm": b"P5 8 4 65535\n" + np.arange(0, 32 * 20, 20, dtype=">u2").tobytes(),
        "pnm-bits.pbm": saved(flower.convert("1"), "PPM"),
        "pnm-plain.pgm": b"P2 # made by hand\n3 2 200\n0 10 20\n100 150 200\n",
        "png-beyond-palette.png": dict(make.pngs_by_hand())["png-beyond-palette.png"],
        # Its height loses more than twice as many samples as its width: Pillow resamples it vertically first.
        "jpeg-tall-180x720.jpg": jpeg(photograph("china", (180, 720)), quality=40),
    }


# Preprocessing as others write it down, for the pictures below; sha256 of the float32 tensor of the library itself.
TRANSFORMS = (
    "torchvision:resnet50", "torchvision:vgg16.IMAGENET1K_FEATURES", "torchvision:swin_v2_t",
    {"input_size": [3, 96, 96], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"input_size": [3, 64, 96], "crop_pct": 0.8, "interpolation": "lanczos", "crop_mode": "center"},
    {"input_size": [3, 96, 96], "crop_pct": 0.95, "interpolation": "bilinear", "crop_mode": "squash"},
    {"input_size": [3, 96, 96], "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "border"},
    {"input_size": [3, 50, 50], "crop_pct": 1.0, "interpolation": "nearest"},
    {"input_size": [3, 50, 50], "crop_pct": 1.0, "interpolation": "hamming"},
    {"input_size": [3, 50, 50], "crop_pct": 1.0, "interpolation": "box"},
    {"image_processor_type": "ViTImageProcessor", "size": 96},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 75}, "crop_size": {"height": 90, "width": 70}},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 60, "longest_edge": 80}, "crop_size": 64},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 80}, "crop_pct": 0.7},
    {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 90, "width": 100}, "rescale_offset": True, "rescale_factor": 1 / 127.5},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}, "do_rescale": False},
)
TRANSFORMED = ("jpeg-420-odd-113x75.jpg", "jpeg-shrink-420x391.jpg", "jpeg-tall-180x720.jpg", "jpeg-progressive.jpg", "png-rgb.png", "webp-lossy.webp", "jpeg-17x16.jpg")


def transformed(folder: Path) -> list[dict]:
    """For each preprocessing the digest that its own library gives, per picture."""
    import timm.data
    import torchvision.models
    import transformers

    entries = []
    for config in TRANSFORMS:
        if isinstance(config, str):
            model, _, weights = config.removeprefix("torchvision:").partition(".")
            known = torchvision.models.get_model_weights(model)
            transform = (known[weights] if weights else known.DEFAULT).transforms()
            tensor = lambda picture: transform(picture).numpy()
        elif "input_size" in config:
            transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
            tensor = lambda picture: transform(picture).numpy()
        else:
            options = {key: value for key, value in config.items() if key != "image_processor_type"}
            processor = getattr(transformers, config["image_processor_type"] + "Pil")(**options)
            tensor = lambda picture: processor(picture, return_tensors="np")["pixel_values"][0].astype(np.float32)
        digests = {name: reference.sha256(np.ascontiguousarray(tensor(reference.open_rgb(folder / name))).tobytes()) for name in TRANSFORMED}
        entries.append({"config": config, "float32_chw_sha256": digests})
    return entries


def viewed(folder: Path) -> list[dict]:
    """Regions of pictures, resampled and mirrored by torchvision; one picture the right way up; one scaled by the decoder."""
    from PIL import ImageOps
    from torchvision.transforms import functional

    to_tensor, evaluation = reference.values(), reference.Preprocessing(40, 32, "bicubic").evaluation()
    entries = []
    for number, name in enumerate(TRANSFORMED):
        picture = reference.open_rgb(folder / name)
        left, top = picture.width // 5, picture.height // (3 + number)
        width, height = max(1, picture.width // 2), max(1, picture.height * 3 // 5)
        part = functional.resized_crop(picture, top, left, height, width, [32, 32], reference.INTERPOLATIONS["bicubic"])
        part = functional.hflip(part) if number % 2 else part
        view = {"region": {"left": left, "top": top, "width": width, "height": height}, "flip": bool(number % 2)}
        entries.append({"picture": name, "view": view, "exif": False, "scaled_decode": False, "float32_chw_sha256": reference.sha256(to_tensor(part).numpy().tobytes())})
    upright = ImageOps.exif_transpose(Image.open(folder / "jpeg-exif-orientation6.jpg"))
    entries.append({"picture": "jpeg-exif-orientation6.jpg", "view": None, "exif": True, "scaled_decode": False, "float32_chw_sha256": reference.sha256(evaluation(upright).numpy().tobytes())})
    for name in ("jpeg-shrink-420x391.jpg", "jpeg-tall-180x720.jpg"):
        with Image.open(folder / name) as picture:
            short, long = sorted(picture.size)
            size = 40, int(40 * long / short)
            picture.draft(None, size if picture.width <= picture.height else size[::-1])
            entries.append({"picture": name, "view": None, "exif": False, "scaled_decode": True, "float32_chw_sha256": reference.sha256(evaluation(picture.convert("RGB")).numpy().tobytes())})
    return entries


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
