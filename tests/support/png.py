"""PNG files of any depth, which Pillow does not write."""

import struct
import zlib

import numpy as np

CHANNELS = {"grey": (0, 1), "colour": (2, 3), "grey with alpha": (4, 2), "colour with alpha": (6, 4)}


def png(pixels: np.ndarray, depth: int, kind: str, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG file of pixels (H, W, C).

    Args:
        depth: bits a channel.
        kind: of `CHANNELS`.
        clear: the colour that is transparent.
    """
    code, channels = CHANNELS[kind]
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, code, 0, 0, 0)
    bits = (pixels.reshape(height, width * channels, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    transparency = [(b"tRNS", struct.pack(f">{len(clear)}H", *clear))] if clear else []
    parts = [(b"IHDR", header), *transparency, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_part(name, data) for name, data in parts)


def _part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
