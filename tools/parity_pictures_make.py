"""Pictures of every kind that decoding has to survive, for `parity_pictures.py`: name -> bytes.

All are cut from the two CC BY photographs that scikit-learn ships, or drawn from seeded noise.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

import png
from fixtures_pictures import jpeg, photograph, pillow_png, resampled, ycck

SIZES = ((1, 1), (2, 1), (1, 2), (3, 7), (8, 8), (9, 17), (16, 16), (17, 33), (31, 64), (65, 47), (120, 80), (113, 75), (257, 275), (500, 375), (375, 500), (641, 480))
BIG = ((1600, 1067), (2592, 1944))
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
# Frame headers that Pillow cannot write: luma blocks as many as in the sampling it was written with.
REWRITTEN = (("4:2:2", 0x21, 0x12), ("4:2:0", 0x22, 0x41), ("4:2:0", 0x22, 0x14))
ORIENTATION = 0x0112


def all_pictures(huge: bool) -> Iterator[tuple[str, bytes]]:
    yield from jpegs()
    yield from odd_jpegs()
    yield from pngs()
    yield from webps()
    yield from bmps()
    yield from gifs()
    yield from pnms()
    if huge:
        whole = photograph("china", (8000, 6000))
        yield "huge-420.jpg", jpeg(whole, quality=85)
        yield "huge-422.jpg", jpeg(whole, quality=75, subsampling="4:2:2")
        yield "huge-progressive.jpg", jpeg(whole, quality=60, progressive=True)
        yield "huge.png", pillow_png(whole.resize((6000, 4500)), compress_level=1)


def noisy(size: tuple[int, int], seed: int) -> Image.Image:
    """A photograph under noise, so that no two neighbours are alike and clipping occurs."""
    rng = np.random.default_rng(seed)
    base = np.asarray(photograph("flower" if seed % 2 else "china", size)).astype(int)
    return Image.fromarray(np.clip(base + rng.integers(-120, 120, base.shape), 0, 255).astype(np.uint8))


def jpegs() -> Iterator[tuple[str, bytes]]:
    for index, size in enumerate(SIZES):
        picture = noisy(size, index) if index % 3 else photograph("flower", size)
        name = f"{size[0]}x{size[1]}"
        for sampling in SAMPLINGS:
            for progressive in (False, True):
                kind = "progressive" if progressive else "baseline"
                yield f"jpeg-{name}-{sampling.replace(':', '')}-{kind}.jpg", jpeg(picture, subsampling=sampling, progressive=progressive, quality=60 + index)
        yield f"jpeg-{name}-grey.jpg", jpeg(picture.convert("L"))
        yield f"jpeg-{name}-cmyk.jpg", jpeg(picture.convert("CMYK"), subsampling="4:4:4")
        yield f"jpeg-{name}-ycck.jpg", ycck(picture)
        for sampling, luma_from, luma_to in REWRITTEN:
            data = jpeg(picture, subsampling=sampling)
            yield f"jpeg-{name}-sampling{luma_to:02x}.jpg", resampled(data, luma_from, luma_to, turned(size, luma_from, luma_to))
    for quality in (1, 2, 5, 10, 25, 50, 75, 90, 95, 99, 100):
        yield f"jpeg-quality{quality}.jpg", jpeg(photograph("china", (233, 177)), quality=quality)
    for size in BIG:
        for sampling in SAMPLINGS:
            yield f"jpeg-{size[0]}-{sampling.replace(':', '')}.jpg", jpeg(photograph("china", size), subsampling=sampling, quality=80)
        yield f"jpeg-{size[0]}-progressive.jpg", jpeg(photograph("flower", size), progressive=True, quality=80)


def turned(size: tuple[int, int], luma_from: int, luma_to: int) -> tuple[int, int]:
    """A size that needs as many units of the new sampling as `size` needs of the old one."""
    units = [-(-side // (8 * factor)) for side, factor in zip(size, (luma_from >> 4, luma_from & 15))]
    # The last unit is cut short, so that the edges are exercised.
    return tuple(max(1, unit * 8 * factor - 5) for unit, factor in zip(units, (luma_to >> 4, luma_to & 15)))


def odd_jpegs() -> Iterator[tuple[str, bytes]]:
    picture = photograph("china", (333, 222))
    yield "jpeg-restart-rows.jpg", jpeg(picture, restart_marker_rows=1)
    yield "jpeg-restart-blocks.jpg", jpeg(picture, restart_marker_blocks=7, subsampling="4:2:2")
    yield "jpeg-restart-progressive.jpg", jpeg(picture, restart_marker_blocks=5, progressive=True)
    yield "jpeg-optimised.jpg", jpeg(picture, optimize=True)
    yield "jpeg-keep-rgb.jpg", jpeg(picture, keep_rgb=True, subsampling="4:4:4")
    yield "jpeg-grey-progressive.jpg", jpeg(picture.convert("L"), progressive=True)
    yield "jpeg-comment-icc.jpg", jpeg(picture, comment=b"hello", icc_profile=b"\0" * 70_000)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"jpeg-exif{orientation}.jpg", jpeg(picture, exif=exif)
        yield f"png-exif{orientation}.png", pillow_png(picture.resize((60, 40)), exif=exif)
        out = io.BytesIO()
        picture.resize((61, 40)).save(out, "WEBP", exif=exif, quality=80)
        yield f"webp-exif{orientation}.webp", out.getvalue()
    data = jpeg(picture)
    yield "jpeg-no-end.jpg", data[:-2]
    yield "jpeg-trailing.jpg", data + b"trailing" * 9
    for share in (0.2, 0.5, 0.9, 0.999):
        yield f"jpeg-cut{share}.jpg", data[: int(len(data) * share)]
        progressive = jpeg(picture, progressive=True)
        yield f"jpeg-progressive-cut{share}.jpg", progressive[: int(len(progressive) * share)]
    rng = np.random.default_rng(5)
    for seed in range(12):
        for kind, whole in (("baseline", data), ("progressive", jpeg(picture, progressive=True))):
            damaged = bytearray(whole)
            for _ in range(4):
                damaged[rng.integers(400, len(damaged) - 2)] = rng.integers(0, 255)
            yield f"jpeg-{kind}-damaged{seed}.jpg", bytes(damaged)


def pngs() -> Iterator[tuple[str, bytes]]:
    for size in ((1, 1), (3, 2), (45, 34), (133, 97), (300, 301)):
        rgb = photograph("flower", size, 0.7)
        grey = np.asarray(rgb.convert("L"))
        deep = (np.asarray(rgb).astype(np.uint16) * 257) ^ 0x5A
        name = f"{size[0]}x{size[1]}"
        for depth in (1, 2, 4, 8, 16):
            values = deep[:, :, 1] if depth == 16 else grey >> (8 - depth)
            for interlaced in (False, True):
                suffix = f"{depth}{'-interlaced' if interlaced else ''}-{name}.png"
                yield f"png-grey{suffix}", png.encode(values, depth, interlaced=interlaced)
                if depth >= 8:
                    yield f"png-rgb{suffix}", png.encode(deep if depth == 16 else np.asarray(rgb), depth, interlaced=interlaced)
        yield f"png-grey16-small-{name}.png", png.encode((grey.astype(np.uint16) * 5) // 4, 16)
        ramp = Image.fromarray(np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1)))
        yield f"png-rgba-{name}.png", pillow_png(Image.merge("RGBA", (*rgb.split(), ramp)))
        yield f"png-la-{name}.png", pillow_png(Image.merge("LA", (rgb.convert("L"), ramp)))
        for colours in (2, 4, 16, 200, 256):
            palette = rgb.quantize(colours, dither=Image.Dither.NONE)
            yield f"png-p{colours}-{name}.png", pillow_png(palette)
            yield f"png-p{colours}-transparency-{name}.png", pillow_png(palette, transparency=0)
        yield f"png-rgb-trns-{name}.png", pillow_png(rgb, transparency=rgb.getpixel((0, 0)))
        yield f"png-l-trns-{name}.png", pillow_png(rgb.convert("L"), transparency=7)
        yield f"png-1-{name}.png", pillow_png(rgb.convert("1"))
    yield from pngs_by_hand()
    frames = [photograph("china", (80, 60)), photograph("flower", (80, 60))]
    out = io.BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    yield "png-animated.png", out.getvalue()
    whole = pillow_png(photograph("china", (200, 100)))
    for share in (0.3, 0.9):
        yield f"png-cut{share}.png", whole[: int(len(whole) * share)]
    yield "png-no-end.png", whole[:-12]


def pngs_by_hand() -> Iterator[tuple[str, bytes]]:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    header = png.chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 3, 0, 0, 0)) + png.chunk(b"PLTE", bytes(range(40, 49)))
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in indices))
    yield "png-beyond-palette.png", b"\x89PNG\r\n\x1a\n" + header + png.chunk(b"IDAT", rows) + png.chunk(b"IEND", b"")


def webps() -> Iterator[tuple[str, bytes]]:
    def webp(picture: Image.Image, **options) -> bytes:
        out = io.BytesIO()
        picture.save(out, "WEBP", **options)
        return out.getvalue()

    for index, size in enumerate(((1, 1), (2, 3), (16, 16), (17, 15), (61, 40), (133, 97), (500, 375), (1601, 1067))):
        for seed, picture in enumerate((photograph("china", size), noisy(size, index))):
            name = f"{size[0]}x{size[1]}-{seed}"
            for quality in (0, 30, 75, 90, 100):
                yield f"webp-q{quality}-{name}.webp", webp(picture, quality=quality)
            yield f"webp-lossless-{name}.webp", webp(picture, lossless=True, quality=20, method=0)
            ramp = Image.fromarray(np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1)))
            alpha = Image.merge("RGBA", (*picture.split(), ramp))
            yield f"webp-alpha-{name}.webp", webp(alpha, quality=70)
            yield f"webp-alpha-q{name}.webp", webp(alpha, quality=70, alpha_quality=30)
            yield f"webp-alpha-lossless-{name}.webp", webp(alpha, lossless=True, quality=20, method=0)
            yield f"webp-alpha-exact-{name}.webp", webp(alpha, lossless=True, exact=True, quality=20, method=0)
    palette = photograph("flower", (150, 90)).quantize(12)
    yield "webp-lossless-palette.webp", webp(palette.convert("RGB"), lossless=True)
    yield "webp-lossless-grey.webp", webp(photograph("flower", (150, 90)).convert("L"), lossless=True)
    yield "webp-method6.webp", webp(photograph("flower", (350, 290)), quality=60, method=6)
    frames = [photograph("china", (90, 70)), photograph("flower", (90, 70))]
    for lossless in (False, True):
        yield f"webp-animated-{lossless}.webp", webp(frames[0], save_all=True, append_images=frames[1:], lossless=lossless)
        faded = [frame.copy() for frame in frames]
        for frame in faded:
            frame.putalpha(128)
        yield f"webp-animated-alpha-{lossless}.webp", webp(faded[0], save_all=True, append_images=faded[1:], lossless=lossless, background=(10, 20, 30, 255))
    whole = webp(frames[0], quality=80)
    for share in (0.4, 0.95):
        yield f"webp-cut{share}.webp", whole[: int(len(whole) * share)]


def bmps() -> Iterator[tuple[str, bytes]]:
    def bmp(picture: Image.Image) -> bytes:
        out = io.BytesIO()
        picture.save(out, "BMP")
        return out.getvalue()

    for size in ((1, 1), (7, 5), (33, 20), (130, 91)):
        picture = photograph("flower", size)
        name = f"{size[0]}x{size[1]}"
        yield f"bmp-24-{name}.bmp", bmp(picture)
        yield f"bmp-8-{name}.bmp", bmp(picture.quantize(200))
        yield f"bmp-l-{name}.bmp", bmp(picture.convert("L"))
        yield f"bmp-1-{name}.bmp", bmp(picture.convert("1"))
        yield f"bmp-32-{name}.bmp", bmp(picture.convert("RGBA"))
        pixels = np.asarray(picture)
        width, height = size
        palette = [(i * 16, 255 - i * 9, (i * 37) % 256) for i in range(16)]
        for depth in (1, 4, 8):
            colours = palette[: 1 << depth]
            indices = pixels[:, :, 0] >> (8 - min(depth, 4))
            packed = pack(indices, depth)
            yield f"bmp-palette{depth}-{name}.bmp", bitmap(width, height, depth, 0, colours, packed)
            yield f"bmp-palette{depth}-top-down-{name}.bmp", bitmap(width, -height, depth, 0, colours, packed)
            yield f"bmp-os2-{depth}-{name}.bmp", bitmap(width, height, depth, 0, colours, packed, core=True)
        yield f"bmp-black-white-{name}.bmp", bitmap(width, height, 1, 0, [(0, 0, 0), (255, 255, 255)], pack(pixels[:, :, 0] >> 7, 1))
        yield f"bmp-white-black-{name}.bmp", bitmap(width, height, 1, 0, [(255, 255, 255), (0, 0, 0)], pack(pixels[:, :, 0] >> 7, 1))
        yield f"bmp-8-two-{name}.bmp", bitmap(width, height, 8, 0, [(0, 0, 0), (255, 255, 255)], pack(pixels[:, :, 0] >> 7, 8))
        yield f"bmp-4-ramp-{name}.bmp", bitmap(width, height, 4, 0, [(i, i, i) for i in range(16)], pack(pixels[:, :, 0] >> 4, 4))
        few = palette[:5]
        yield f"bmp-beyond-palette-{name}.bmp", bitmap(width, height, 8, 0, few, pack(pixels[:, :, 0], 8))
        r, g, b = (pixels[:, :, channel].astype(np.uint32) for channel in range(3))
        five = ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3)
        six = ((r >> 3) << 11) | ((g >> 2) << 5) | (b >> 3)
        yield f"bmp-16-{name}.bmp", bitmap(width, height, 16, 0, [], words(five, 2))
        yield f"bmp-555-{name}.bmp", bitmap(width, height, 16, 3, [], words(five, 2), masks=(0x7C00, 0x3E0, 0x1F))
        yield f"bmp-565-{name}.bmp", bitmap(width, height, 16, 3, [], words(six, 2), masks=(0xF800, 0x7E0, 0x1F))
        yield f"bmp-fields32-{name}.bmp", bitmap(width, height, 32, 3, [], words((r << 16) | (g << 8) | b, 4), masks=(0xFF0000, 0xFF00, 0xFF))
        yield f"bmp-fields32-xbgr-{name}.bmp", bitmap(width, height, 32, 3, [], words((r << 24) | (g << 16) | (b << 8), 4), masks=(0xFF000000, 0xFF0000, 0xFF00))
        yield f"bmp-fields-unknown-{name}.bmp", bitmap(width, height, 32, 3, [], words(r, 4), masks=(0xFF, 0xFF0000, 0xFF00))
        for version, alpha in ((108, 0xFF000000), (124, 0), (56, 0xFF000000)):
            yield f"bmp-v{version}-{name}.bmp", bitmap(width, height, 32, 3, [], words((r << 16) | (g << 8) | b | (7 << 24), 4), masks=(0xFF0000, 0xFF00, 0xFF, alpha), header=version)
        indices = (pixels[::-1, :, 0] >> 4).astype(np.uint8)
        yield f"bmp-rle8-{name}.bmp", bitmap(width, height, 8, 1, palette, rle8(indices))
        yield f"bmp-rle4-{name}.bmp", bitmap(width, height, 4, 2, palette, rle4(indices))
        yield f"bmp-rle8-delta-{name}.bmp", bitmap(width, height, 8, 1, palette, b"\x01\x05\x00\x02\x00\x01" + rle8(indices))
        yield f"bmp-cut-{name}.bmp", bmp(picture)[:-3]


def pack(indices: np.ndarray, depth: int) -> bytes:
    rows = []
    for row in indices[::-1]:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        data = int(bits.ljust(-(-len(bits) // 32) * 32, "0"), 2).to_bytes(-(-len(bits) // 32) * 4, "big")
        rows.append(data)
    return b"".join(rows)


def words(values: np.ndarray, size: int) -> bytes:
    rows = []
    for row in values[::-1]:
        data = row.astype("<u4" if size == 4 else "<u2").tobytes()
        rows.append(data + b"\0" * (-len(data) % 4))
    return b"".join(rows)


def rle8(rows: np.ndarray) -> bytes:
    out = bytearray()
    for number, row in enumerate(rows):
        start = 0
        while start < len(row):
            if number % 2 and len(row) - start >= 3:
                count = min(len(row) - start, 11)
                out += bytes([0, count]) + row[start : start + count].tobytes() + b"\0" * (count % 2)
            else:
                count = 1
                while start + count < len(row) and row[start + count] == row[start] and count < 255:
                    count += 1
                out += bytes([count, row[start]])
            start += count
        out += b"\0\0"
    return bytes(out) + b"\0\1"


def rle4(rows: np.ndarray) -> bytes:
    out = bytearray()
    for number, row in enumerate(rows):
        for start in range(0, len(row), 8):
            part = row[start : start + 8]
            if number % 2 and len(part) >= 3:
                halves = np.append(part, 0)[: len(part) + len(part) % 2]
                data = bytes(int(a) << 4 | int(b) for a, b in zip(halves[::2], halves[1::2]))
                out += bytes([0, len(part)]) + data + b"\0" * (len(data) % 2)
            else:
                for pair in range(0, len(part), 2):
                    two = part[pair : pair + 2]
                    out += bytes([len(two), int(two[0]) << 4 | int(two[-1])])
        out += b"\0\0"
    return bytes(out) + b"\0\1"


def bitmap(width: int, height: int, depth: int, compression: int, palette: list, data: bytes, masks: tuple = (), core: bool = False, header: int = 40) -> bytes:
    if core:
        palette = palette + [(0, 0, 0)] * ((1 << depth) - len(palette))
        head = struct.pack("<IHHHH", 12, width, abs(height), 1, depth)
        table = b"".join(bytes(colour[::-1]) for colour in palette)
    else:
        head = struct.pack("<IiiHHIIiiII", header, width, height, 1, depth, compression, len(data), 2835, 2835, len(palette), 0)
        fields = b"".join(struct.pack("<I", mask) for mask in masks)
        head += fields if header == 40 else fields.ljust(header - 40, b"\0")
        table = b"".join(bytes(colour[::-1]) + b"\0" for colour in palette)
    offset = 14 + len(head) + len(table)
    return struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset) + head + table + data


def gifs() -> Iterator[tuple[str, bytes]]:
    def gif(picture: Image.Image, **options) -> bytes:
        out = io.BytesIO()
        picture.save(out, "GIF", **options)
        return out.getvalue()

    for size in ((1, 1), (5, 9), (120, 80), (333, 250)):
        picture = photograph("china", size)
        name = f"{size[0]}x{size[1]}"
        for colours in (2, 3, 16, 256):
            palette = picture.quantize(colours)
            yield f"gif-{colours}-{name}.gif", gif(palette)
            yield f"gif-{colours}-transparency-{name}.gif", gif(palette, transparency=1)
            yield f"gif-{colours}-interlaced-{name}.gif", gif(palette, interlace=True)
        yield f"gif-grey-{name}.gif", gif(picture.convert("L"))
        frames = [picture.quantize(30), photograph("flower", size).quantize(40)]
        for disposal in (0, 1, 2, 3):
            yield f"gif-animated{disposal}-{name}.gif", gif(frames[0], save_all=True, append_images=frames[1:], disposal=disposal)
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (200, 300), dtype=np.uint8))
    coloured = noise.copy()
    coloured.putpalette(np.random.default_rng(4).integers(0, 256, 768, dtype=np.uint8).tobytes())
    yield "gif-noise.gif", gif(coloured)
    whole = gif(coloured)
    for share in (0.3, 0.97):
        yield f"gif-cut{share}.gif", whole[: int(len(whole) * share)]
    yield "gif-beyond-palette.gif", wide_gif(np.arange(256, dtype=np.uint8).reshape(16, 16), bytes([9, 8, 7, 1, 2, 3]))
    # By hand: a canvas that the frame does not fill, palettes of every kind.
    small = np.arange(48, dtype=np.uint8).reshape(6, 8) % 4
    colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    ramp = bytes(value for index in range(4) for value in (index, index, index))
    for transparent in (None, 2):
        for place, global_palette, local_palette in (
            ("inside", colours, b""), ("inside-local", colours, colours[::-1]), ("local-only", b"", colours),
            ("no-palette", b"", b""), ("ramp-over-colours", colours, ramp), ("ramp", ramp, b""), ("colours-over-ramp", ramp, colours),
        ):
            yield f"gif-{place}-{transparent}.gif", raw_gif((20, 15), (5, 4), small, global_palette, local_palette, transparent)
        yield f"gif-outside-{transparent}.gif", raw_gif((10, 5), (5, 4), small, colours, b"", transparent)
        yield f"gif-no-canvas-{transparent}.gif", raw_gif((0, 0), (0, 0), small, colours, b"", transparent)


def raw_gif(canvas: tuple[int, int], place: tuple[int, int], indices: np.ndarray, global_palette: bytes, local_palette: bytes, transparent: int | None) -> bytes:
    """A GIF of 2-bit indices whose codes are never longer than three bits: a clear code before every third."""
    out = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x81 if global_palette else 0, 0, 0) + global_palette
    if transparent is not None:
        out += b"!\xf9\x04" + bytes([1, 0, 0, transparent]) + b"\0"
    height, width = indices.shape
    out += b"," + struct.pack("<HHHHB", *place, width, height, 0x81 if local_palette else 0) + local_palette
    codes = []
    for position, index in enumerate(indices.flatten()):
        if position % 2 == 0:
            codes.append(4)
        codes.append(int(index))
    codes.append(5)
    bits = sum(code << (3 * position) for position, code in enumerate(codes))
    data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
    return out + b"\x02" + bytes([len(data)]) + data + b"\0;"


def wide_gif(indices: np.ndarray, palette: bytes) -> bytes:
    """A GIF of 8-bit indices and a shorter palette."""
    codes = []
    for position, index in enumerate(indices.flatten()):
        if position % 100 == 0:
            codes.append(256)
        codes.append(int(index))
    bits = sum(code << (9 * position) for position, code in enumerate(codes + [257]))
    data = bits.to_bytes(-(-9 * (len(codes) + 1) // 8), "little")
    blocks = b"".join(bytes([len(data[start : start + 255])]) + data[start : start + 255] for start in range(0, len(data), 255))
    height, width = indices.shape
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + palette + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08" + blocks + b"\0;"


def pnms() -> Iterator[tuple[str, bytes]]:
    for size in ((1, 1), (9, 5), (40, 31)):
        picture = photograph("china", size)
        name = f"{size[0]}x{size[1]}"
        for mode, kind in (("RGB", "ppm"), ("L", "pgm"), ("1", "pbm")):
            out = io.BytesIO()
            picture.convert(mode).save(out, "PPM")
            yield f"pnm-{kind}-{name}.{kind}", out.getvalue()
        grey, rgb = np.asarray(picture.convert("L")), np.asarray(picture)
        width, height = size
        head = f"# made\n{width} {height}\n"
        yield f"pnm-plain-{name}.pgm", f"P2 {head} 200\n{' '.join(str(min(v, 200)) for v in grey.flatten())}\n".encode()
        yield f"pnm-plain-{name}.ppm", f"P3\n{head}255\n{' '.join(map(str, rgb.flatten()))}".encode()
        yield f"pnm-plain-{name}.pbm", f"P1\n{head}{''.join(map(str, (grey > 99).astype(int).flatten()))}".encode()
        yield f"pnm-100-{name}.pgm", f"P5 {width} {height} 100\n".encode() + np.minimum(grey, 100).tobytes()
        yield f"pnm-65535-{name}.pgm", f"P5 {width} {height} 65535\n".encode() + (grey.astype(">u2") * 2).tobytes()
        yield f"pnm-1000-{name}.pgm", f"P5 {width} {height} 1000\n".encode() + (grey.astype(">u2") % 5).tobytes()
        yield f"pnm-65535-{name}.ppm", f"P6 {width} {height} 65535\n".encode() + (rgb.astype(">u2") * 257).tobytes()
        yield f"pnm-31-{name}.ppm", f"P6 {width} {height} 31\n".encode() + (rgb // 8).astype(np.uint8).tobytes()
        yield f"pnm-cut-{name}.ppm", f"P6 {width} {height} 255\n".encode() + rgb.tobytes()[:-1]
