"""Pictures as people bring them: one drawing, written in every way."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageDraw

Primaries = tuple[tuple[float, float], ...]
"""x and y of red, green and blue."""
SRGB: Primaries = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB: Primaries = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3: Primaries = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
PROPHOTO: Primaries = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))


@cache
def drawing() -> Image.Image:
    """96 x 64, RGB: soft colours, no black and no white."""
    across, down = np.meshgrid(np.linspace(40, 215, 96), np.linspace(40, 215, 64))
    image = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).round().astype(np.uint8))
    ImageDraw.Draw(image).ellipse((20, 12, 60, 52), fill=(180, 90, 60))
    return image


def grey() -> np.ndarray:
    """The drawing in grey, 64 x 96, 0 to 255."""
    return np.asarray(drawing().convert("L")).astype(int)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, **options)
    return file.getvalue()


def tiff_of(
    values: np.ndarray, kind: str, bits: int, sample_format: int, white_is_zero: bool = False, **more: int
) -> bytes:
    """A TIFF of grey values, H x W. ``kind`` is their numpy type, little-endian, of ``bits`` bits; ``sample_format`` is
    TIFF's: 1 unsigned, 2 signed, 3 floating point. ``more`` are further tags, as ``tag_254=1``."""
    tags = {258: [bits], 262: [int(not white_is_zero)], 277: [1], 339: [sample_format]}
    tags |= {int(name.removeprefix("tag_")): [value] for name, value in more.items()}
    return _tiff(values.astype(kind).tobytes(), values.shape[1], values.shape[0], tags)


def premultiplied_tiff(values: np.ndarray) -> bytes:
    """A TIFF of RGBA bytes, H x W x 4, whose colours are multiplied by their opacity."""
    tags = {258: [8] * 4, 262: [2], 277: [4], 338: [1]}
    return _tiff(values.astype("u1").tobytes(), values.shape[1], values.shape[0], tags)


def _tiff(pixels: bytes, width: int, height: int, tags: dict[int, list[int]]) -> bytes:
    tags = {**tags, 256: [width], 257: [height], 259: [1], 273: [8], 278: [height], 279: [len(pixels)]}
    entries, more = b"", b""
    end = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        entries += struct.pack("<HHII", tag, 4, len(values), values[0] if len(values) == 1 else end + len(more))
        more += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
    directory = struct.pack("<H", len(tags)) + entries + bytes(4) + more
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def png_with(chunk: bytes, content: bytes, png: bytes | None = None, before: bytes = b"IDAT") -> bytes:
    """The PNG with one more chunk."""
    png = png or file_of(drawing())
    at = png.index(before) - 4
    added = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content))
    return png[:at] + added + png[at:]


def png_header(width: int, height: int) -> bytes:
    """A PNG of this size that holds a few pixels only."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    written = file_of(Image.new("RGB", (1, 1)))
    return written[:12] + header + struct.pack(">I", zlib.crc32(header)) + written[33:]


def exif_block(orientation: int = 1, order: str = "<", more: bytes = b"") -> bytes:
    """An EXIF block that says the orientation, followed by ``more``."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + head + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4) + more


def jpeg_with(marker: int, content: bytes, jpeg: bytes | None = None) -> bytes:
    """The JPEG with one more segment at its beginning."""
    jpeg = jpeg or file_of(drawing(), "JPEG", quality=95)
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def xyz_of(primaries: Primaries) -> np.ndarray:
    """The matrix from linear RGB to XYZ for these primaries and white D65."""
    corners = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    return corners * np.linalg.solve(corners, np.array([0.9505, 1.0, 1.0891]))


def in_space(image: Image.Image, primaries: Primaries, gamma: float) -> Image.Image:
    """The picture, which is sRGB, with its colours as numbers of another space."""
    values = np.asarray(image) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = linear @ (np.linalg.inv(xyz_of(primaries)) @ xyz_of(SRGB)).T
    return Image.fromarray((linear.clip(0, 1) ** (1 / gamma) * 255).round().astype(np.uint8))


def profile(primaries: Primaries, gamma: float) -> bytes:
    """An ICC profile of an RGB space with these primaries, white D65 and one gamma."""
    to_d50 = np.array([[1.0479, 0.0229, -0.0502], [0.0296, 0.9904, -0.0171], [-0.0092, 0.0151, 0.7519]])
    columns = (to_d50 @ xyz_of(primaries)).T
    d50 = (0.9642, 1.0, 0.8249)
    tags = {b"desc": _described(), b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(d50)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags[name] = _xyz(tuple(column))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _icc(b"RGB ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey with one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _icc(b"GRAY", {b"desc": _described(), b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"kTRC": curve})


def cmyk_profile(ink: tuple[int, int, int]) -> bytes:
    """An ICC profile of a printer whose inks all have one colour, and together give black. The colour is Lab: L from 0 to
    100, a and b from -128 to 127."""
    paper, black, inked = (
        bytes((255, 128, 128)),
        bytes((0, 128, 128)),
        bytes((round(ink[0] * 2.55), ink[1] + 128, ink[2] + 128)),
    )
    straight = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    table += straight * 4 + paper + inked * 14 + black + straight * 3
    return _icc(
        b"CMYK", {b"desc": _described(), b"wtpt": _xyz((0.9642, 1.0, 0.8249)), b"A2B0": table}, b"prtr", b"Lab "
    )


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _described() -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)


def _icc(space: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr", between: bytes = b"XYZ ") -> bytes:
    table, content = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", begin + len(content), len(body))
        content += body + bytes(-len(body) % 4)
    size = begin + len(content)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, device, space, between)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header[:128] + table + content
