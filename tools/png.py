"""A plain PNG writer for the kinds that Pillow cannot write: 1-, 2- and 4-bit grey, 16-bit RGB, and Adam7 interlacing.

Every row uses filter 0, which keeps the writer obviously right; the pictures are tiny.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB = 0, 2
# First row, first column, row step, column step of the seven passes (PNG specification, 8.2).
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def encode(samples: np.ndarray, bits: int, interlaced: bool = False) -> bytes:
    """[h, w] grey or [h, w, 3] RGB samples, each below 2**bits -> the bytes of a PNG file."""
    colour_type = GREY if samples.ndim == 2 else RGB
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    scan = b"".join(_rows(p, bits) for p in passes if p.size)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scan, 9)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(samples: np.ndarray, bits: int) -> bytes:
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    elif bits == 8:
        packed = flat.astype(np.uint8)
    else:
        # The high bit of a byte is the leftmost pixel.
        planes = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(planes.reshape(len(flat), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)
