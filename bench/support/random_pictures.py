"""Random files of pictures, of every kind of pixels, with what they must show by arithmetic of their own.

Only encoders of this module and of Pillow write them. A lossy file is judged by OpenCV's reading.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

WHITE = 255.0
LOSSY = ("JPEG", "WEBP", "AVIF")
PILLOW = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("PNG", "TIFF", "JPEG", "BMP", "AVIF", "WEBP", "GIF"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "GIF", "BMP"),
    "PA": ("TIFF",),
    "RGB": ("PNG", "TIFF", "JPEG", "WEBP", "BMP", "AVIF", "PPM", "TGA", "JPEG2000"),
    "RGBA": ("PNG", "TIFF", "WEBP", "AVIF"),
    "RGBX": ("TIFF", "JPEG"),
    "CMYK": ("TIFF", "JPEG"),
    "YCbCr": ("TIFF", "JPEG"),
    "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
"""The formats that Pillow writes each mode in, some of which the reader refuses."""


@dataclass(frozen=True)
class RandomFile:
    """A file, and what it must show.

    Attributes:
        wanted: H x W x 3, 0 to 255.
        lossy: Whether its pixels are only near those.
    """

    kind: str
    content: bytes
    wanted: np.ndarray
    lossy: bool = False


def random_file(rng: random.Random) -> RandomFile:
    """One file of a random kind."""
    return rng.choice(MAKERS)(rng)


def smooth(rng: random.Random, width: int, height: int, bands: int) -> np.ndarray:
    """Random soft values, H x W x bands, 0 to 255."""
    layers = [
        np.asarray(Image.frombytes("L", (4, 4), rng.randbytes(16)).resize((width, height), Image.Resampling.BICUBIC))
        for _ in range(bands)
    ]
    return np.stack(layers, axis=-1).astype(float)


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Colours, H x W x 3, and their opacity, H x W, 0 to 255, put on white."""
    share = opacity[..., None] / 255
    return colours * share + WHITE * (1 - share)


def by_pillow(rng: random.Random) -> RandomFile:
    """Any mode in any format that Pillow writes, some of them with a second frame."""
    mode = rng.choice(list(PILLOW))
    kind = rng.choice(PILLOW[mode])
    width, height = rng.randrange(12, 90), rng.randrange(12, 90)
    image = Image.fromarray(smooth(rng, width, height, 3).astype(np.uint8))
    if mode in ("1", "L", "LA", "I;16", "I", "F"):
        image = image.convert("L")
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    written = wide if mode == "I;16" else image.convert(mode)
    shown = written if mode in ("1", "P", "PA") else image
    options: dict[str, object] = {}
    if kind in ("GIF", "TIFF", "WEBP", "PNG") and mode in ("RGB", "L", "P") and rng.random() < 0.3:
        options = {"save_all": True, "append_images": [written.transpose(Image.Transpose.ROTATE_180)]}
    file = io.BytesIO()
    written.save(file, kind, quality=95, **options)
    wanted = np.asarray(shown.convert("RGB")).astype(float)
    return RandomFile(f"{kind} {mode}", file.getvalue(), wanted, kind in LOSSY or mode in ("LAB", "YCbCr"))


def png(rng: random.Random) -> RandomFile:
    """A PNG of any colour type and depth, with or without a transparent value."""
    colour, depths = rng.choice(((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))))
    depth, bands = rng.choice(depths), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width, height = _size(rng)
    most = 2**depth - 1
    values = (smooth(rng, width, height, bands) / 255 * most).round().astype(np.int64)
    chunks, shown = [], values / most * 255
    opacity = shown[..., -1] if colour in (4, 6) else np.full((height, width), WHITE)
    if colour == 3:
        palette = np.frombuffer(rng.randbytes(3 * (most + 1)), np.uint8).reshape(-1, 3)
        chunks.append((b"PLTE", palette.tobytes()))
        shown = palette[values[..., 0]].astype(float)
    if colour in (0, 2, 3) and rng.random() < 0.5:
        chosen = values[rng.randrange(height), rng.randrange(width)]
        if colour == 3:
            alphas = rng.randbytes(rng.randrange(1, most + 2))
            opacity = np.pad(np.frombuffer(alphas, np.uint8), (0, most + 1 - len(alphas)), constant_values=255)[
                values[..., 0]
            ].astype(float)
            chunks.append((b"tRNS", alphas))
        else:
            same = (
                (values == chosen).all(axis=-1) if depth < 16 or colour == 0 else (values >> 8 == chosen >> 8).all(-1)
            )
            opacity = np.where(same, 0, WHITE)
            chunks.append((b"tRNS", struct.pack(f">{bands}H", *chosen)))
    grey = colour in (0, 4)
    colours = np.repeat(shown[..., :1], 3, axis=-1) if grey else shown[..., :3]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row.reshape(-1), depth) for row in values)
    content = _png_of([(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows))])
    name = f"PNG colour type {colour}, {depth} bits" + (", tRNS" if chunks[-1:] and chunks[-1][0] == b"tRNS" else "")
    return RandomFile(name, content, on_white(colours, opacity))


def tiff(rng: random.Random) -> RandomFile:
    """A TIFF of any number of samples and type of values, in either byte order, in strips, in planes or together."""
    bands, order = rng.choice((1, 1, 1, 2, 3, 4, 5)), rng.choice("<>")
    kind = rng.choice(("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8", "f2"))
    width, height = _size(rng)
    shown = smooth(rng, width, height, bands)
    bits = 8 * int(kind[1])
    most = 1.0 if kind[0] == "f" else 2.0 ** (bits - (kind[0] == "i")) - 1
    typed = np.dtype(order + kind)
    values = (shown / 255 * most).round().astype(typed) if kind[0] != "f" else (shown / 255).astype(typed)
    if kind[0] != "f":
        shown = values.astype(float) / most * 255
    separate, compressed, white_is_zero = bands > 1 and rng.random() < 0.3, rng.random() < 0.5, False
    if bands == 1 and kind[0] == "u":
        white_is_zero = rng.random() < 0.3
    rows = rng.randrange(1, height + 1)
    planes = [values[..., [band]] for band in range(bands)] if separate else [values]
    strips = [plane[at : at + rows].tobytes() for plane in planes for at in range(0, height, rows)]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    photometric = (0 if white_is_zero else 1) if bands <= 2 else 2
    tags = {
        256: [width], 257: [height], 258: [bits] * bands, 259: [8 if compressed else 1], 262: [photometric],
        277: [bands], 278: [rows], 284: [2 if separate else 1],
        339: [{"u": 1, "i": 2, "f": 3}[kind[0]]] * bands,
    }  # fmt: skip
    colours = np.repeat(shown[..., :1], 3, axis=-1) if bands <= 2 else shown[..., :3]
    opacity = np.full((height, width), WHITE)
    if bands in (2, 4):
        tags[338], opacity = [2], shown[..., -1]
    elif bands == 5:
        tags[338] = [0, 0]
    wanted = WHITE - colours if white_is_zero else on_white(colours, opacity)
    planar = ", planes" if separate else ""
    name = f"TIFF {bands} x {kind}{planar}{', compressed' if compressed else ''}"
    return RandomFile(name, _tiff_of(tags, strips, order), wanted)


def bmp(rng: random.Random) -> RandomFile:
    """A BMP of any depth, from the top or from the bottom."""
    bits = rng.choice((1, 4, 8, 16, 24, 32))
    width, height = _size(rng)
    palette = b""
    if bits <= 8:
        values = (smooth(rng, width, height, 1)[..., 0] / 255 * (2**bits - 1)).round().astype(np.uint8)
        colours = np.frombuffer(rng.randbytes(4 * 2**bits), np.uint8).reshape(-1, 4)
        palette, shown = colours.tobytes(), colours[values][..., 2::-1].astype(float)
        rows = [_packed(row, bits) for row in values]
    elif bits == 16:
        levels = (smooth(rng, width, height, 3) / 255 * 31).round().astype("<u2")
        shown = levels / 31 * 255
        rows = [row.tobytes() for row in (levels[..., 0] << 10 | levels[..., 1] << 5 | levels[..., 2]).astype("<u2")]
    else:
        shown = smooth(rng, width, height, 3)
        rest = [np.zeros((height, width, 1))] if bits == 32 else []
        rows = [row.tobytes() for row in np.concatenate([shown[..., ::-1], *rest], axis=-1).astype(np.uint8)]
    from_top = rng.random() < 0.5
    pixels = b"".join(row + bytes(-len(row) % 4) for row in (rows if from_top else rows[::-1]))
    begin = 54 + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, -height if from_top else height, 1, bits, 0, len(pixels), 0, 0, len(palette) // 4, 0
    )
    content = b"BM" + struct.pack("<IHHI", begin + len(pixels), 0, 0, begin) + header + palette + pixels
    return RandomFile(f"BMP {bits} bits", content, shown)


def qoi(rng: random.Random) -> RandomFile:
    """A QOI of plain pixels, which the reader refuses."""
    width, height = _size(rng)
    shown = smooth(rng, width, height, 3)
    pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in shown.astype(np.uint8).reshape(-1, 3))
    return RandomFile("QOI", b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + pixels + bytes(7) + b"\1", shown)


MAKERS: Sequence[Callable[[random.Random], RandomFile]] = (
    by_pillow,
    by_pillow,
    by_pillow,
    png,
    png,
    tiff,
    tiff,
    bmp,
    qoi,
)


def random_exif(rng: random.Random) -> bytes:
    """An EXIF block of random entries, types, counts and offsets, or of a sound one with bytes changed."""
    order = rng.choice("<>")
    head = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*")
    if rng.random() < 0.5:
        tags = [0x0112, 0x8769, 0x8825, 0x927C, 0x9286, 0x0132, 0x014A, *(rng.randrange(65536) for _ in range(3))]
        entries = [
            struct.pack(
                f"{order}HHII",
                rng.choice(tags),
                rng.choice((0, 1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 129, 65535)),
                rng.choice((0, 1, 2, 4, 100, 2**31, 2**32 - 1)),
                rng.choice((0, 1, 3, 6, 8, 26, 200, 2**31, 2**32 - 1)),
            )
            for _ in range(rng.randrange(12))
        ]
        first = struct.pack(f"{order}IH", rng.choice((0, 8, 8, 8, 9, 2**31)), len(entries) + rng.randrange(3))
        return head + first + b"".join(entries)
    sound = struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, rng.randrange(10), 0)
    block = bytearray(head + sound + bytes(4) + rng.randbytes(60))
    for _ in range(rng.randrange(1, 8)):
        block[rng.randrange(6, len(block))] = rng.randrange(256)
    return bytes(block[: rng.choice((len(block), rng.randrange(6, len(block))))])


def _size(rng: random.Random) -> tuple[int, int]:
    """Width and height, odd strides and tiny ones among them."""
    width = rng.choice((1, 2, 3, 5, 7, rng.randrange(8, 90)))
    return width, rng.randrange(-(-width // 8), min(90, 8 * width) + 1)  # within 8:1


def _packed(values: np.ndarray, depth: int) -> bytes:
    """A row of values in so many bits each, the greatest bits first."""
    if depth == 16:
        return values.astype(">u2").tobytes()
    bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


def _png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    written = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def _tiff_of(tags: dict[int, list[int]], strips: Sequence[bytes], order: str) -> bytes:
    """A TIFF with these tags, whose values are all numbers of 4 bytes."""
    starts = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    tags = {**tags, 273: starts, 279: [len(strip) for strip in strips]}
    pixels, more, entries = b"".join(strips), b"", b""
    end = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        place = values[0] if len(values) == 1 else end + len(more)
        entries += struct.pack(f"{order}HHII", tag, 4, len(values), place)
        more += struct.pack(f"{order}{len(values)}I", *values) if len(values) > 1 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more
