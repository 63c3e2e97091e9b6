"""The parts of a picture's file that decide what it shows.

Notes, thumbnails, further pictures and other metadata are dropped before Pillow sees the file, so that what is wrong
with them does not matter. What ends early is completed where its pixels are there.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PROFILE_BYTES = 16 * 2**20
"""Of a colour profile; printers' profiles have up to some megabytes."""

_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS")
_PNG_GREY, _PNG_RGB = 0, 2
_USUAL_GAMMA = range(40_000, 50_000)
"""Of 100,000: what a PNG of sRGB says, 45,455, and its neighbours."""
_HEIF_HEAD = 2**16
"""Bytes in which a HEIF file describes its picture."""
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""By the numbers of ITU-T H.273."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_IN_SCAN = frozenset(range(0xD0, 0xD8))  # restart markers
_JPEG_START, _JPEG_END, _JPEG_SCAN, _JPEG_COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_ORIENTATION = 0x0112
_EXIF_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""By the type of an EXIF entry."""
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@dataclass(frozen=True)
class ImageFile:
    """A file for Pillow, and what was taken out of it.

    Attributes:
        exif: The EXIF block, empty where there is none or it stays in the file.
        profile: The same for the colour profile.
        cut: Whether the end of the file is missing.
        encoding: How the numbers stand for light, in words, where the file says that it is not sRGB's curve.
    """

    content: bytes
    exif: bytes = b""
    profile: bytes = b""
    cut: bool = False
    encoding: str = ""


def relevant_parts(content: bytes) -> ImageFile:
    """The file with nothing but its pixels and what they need to be shown."""
    if content.startswith(PNG_SIGNATURE):
        return _png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp(content)
    return ImageFile(content, encoding=encoding_of_heif(content))


def is_heic(content: bytes) -> bool:
    """Whether the file is HEIC or another picture of the HEIF family that is not AVIF."""
    if content[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, length, 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 1 where it says none. Nothing else of the block is read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return 1
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for at in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == _ORIENTATION and kind in _EXIF_INTEGERS:
                (value,) = struct.unpack_from(f"{order}{_EXIF_INTEGERS[kind]}", tiff, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # the block ends before what it announces
        pass
    return 1


def completed_png(content: bytes) -> tuple[bytes, float]:
    """A PNG from :func:`relevant_parts` whose compressed pixels end early or have a wrong checksum, with zeros in place
    of what is missing; and the share that is missing, from 0 to 1.

    Raises ValueError for an interlaced one, whose rows are not in their order.
    """
    chunks = {kind: body for kind, body in _png_chunks(content) if kind != b"IEND"}
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"][:13])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    total = height * (1 + (width * channels * depth + 7) // 8)
    if interlaced or not channels:
        raise ValueError("cannot be completed")
    stream, pixels = zlib.decompressobj(), bytearray()
    compressed = chunks.pop(b"IDAT", b"")
    try:
        for at in range(0, len(compressed), 4096):  # in pieces: what precedes damage must not be lost with it
            pixels += stream.decompress(compressed[at : at + 4096], total - len(pixels)) if len(pixels) < total else b""
    except zlib.error:
        pass
    whole = zlib.compress(pixels + bytes(total - len(pixels)), 1)
    return _png_of([*chunks.items(), (b"IDAT", whole)]), 1 - len(pixels) / total


def _png(content: bytes) -> ImageFile:
    kept: list[tuple[bytes, bytes]] = []
    pixels, exif, profile, encoding, complete = [], b"", b"", "", False
    for kind, body in _png_chunks(content):
        complete |= kind == b"IEND"
        if kind == b"tRNS" and kept:
            kept.append((kind, _in_8_bits(body, kept[0][1])))
        elif kind in _PNG_PIXELS:
            kept.append((kind, body))
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"eXIf":
            exif = body
        elif kind == b"iCCP":
            profile = _inflated(body.partition(b"\0")[2][1:])
        elif kind == b"cICP" and body[1:2]:
            encoding = _hdr(body[1]) or encoding
        elif kind == b"gAMA" and len(body) == 4 and (gamma := int.from_bytes(body, "big")) not in _USUAL_GAMMA:
            encoding = encoding or f"a gamma of {gamma / 100_000:g}"
    return ImageFile(
        _png_of([*kept, (b"IDAT", b"".join(pixels))]), exif, profile, not complete, "" if profile else encoding
    )


def _in_8_bits(transparent: bytes, header: bytes) -> bytes:
    """The transparent grey or colour of a PNG, in the depth of the pixels that Pillow compares with it: it makes 8 bits
    of grey of 2 or 4 and of colours of 16."""
    depth, colour = header[8:10] if len(header) >= 10 else (0, 0)
    values = struct.unpack(f">{len(transparent) // 2}H", transparent[: len(transparent) // 2 * 2])
    if colour == _PNG_GREY and depth in (2, 4):
        values = tuple(min(value * 255 // (2**depth - 1), 255) for value in values)
    elif colour == _PNG_RGB and depth == 16:
        values = tuple(value >> 8 for value in values)
    else:
        return transparent
    return struct.pack(f">{len(values)}H", *values)


def _hdr(transfer: int) -> str:
    return f"HDR ({_HDR_TRANSFERS[transfer]})" if transfer in _HDR_TRANSFERS else ""


def encoding_of_heif(content: bytes) -> str:
    """What an AVIF or HEIC file says of its colours, where that is HDR."""
    at = content.find(b"colrnclx", 0, _HEIF_HEAD) if content[4:8] == b"ftyp" else -1
    return _hdr(int.from_bytes(content[at + 10 : at + 12], "big")) if at >= 0 else ""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk, up to the last; the last may be cut off. A chunk that decides what the picture
    shows, and has a wrong checksum, ends the file; of notes the checksum does not matter, and of pixels zlib has its
    own."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + length]
        checksum = content[at + 8 + length : at + 12 + length]
        if kind in _PNG_PIXELS and checksum != _checksum(kind, body):
            return
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length


def _png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks and the end marker."""
    written = (
        struct.pack(">I4s", len(body), kind) + body + _checksum(kind, body) for kind, body in [*chunks, (b"IEND", b"")]
    )
    return PNG_SIGNATURE + b"".join(written)


def _checksum(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _inflated(compressed: bytes) -> bytes:
    """Empty if it is damaged or very long."""
    try:
        return zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""


def _jpeg(content: bytes) -> ImageFile:
    kept, exif, cut = [b"\xff\xd8"], b"", True
    at = 2
    while found := _JPEG_MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker == _JPEG_END:
            cut = False
            break
        if marker in _JPEG_IN_SCAN or marker in (0x01, _JPEG_START):
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        body, at = content[at + 2 : at + length], at + max(length, 2)
        if marker == 0xE1 and body.startswith(b"Exif\0\0") and not exif:
            exif = body
        segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        if marker == _JPEG_SCAN:
            begin, at = at, _scan_end(content, at)
            kept.append(segment + content[begin:at])
        elif not _is_note(marker, body):
            kept.append(segment)
    return ImageFile(b"".join([*kept, b"\xff\xd9"]), exif, cut=cut)


def _scan_end(content: bytes, at: int) -> int:
    """Where the compressed pixels end that begin at ``at``: at the next marker that is no restart."""
    others = (found.start() for found in _JPEG_MARKER.finditer(content, at) if found[1][0] not in _JPEG_IN_SCAN)
    return next(others, len(content))


def _is_note(marker: int, body: bytes) -> bool:
    """Whether a segment says nothing about the pixels: all but the tables, JFIF, Adobe's, and the colour profile."""
    if marker == 0xE0:
        return not body.startswith(b"JFIF\0")
    if marker == 0xE2:
        return not body.startswith(b"ICC_PROFILE\0")
    return marker == _JPEG_COMMENT or 0xE0 <= marker <= 0xEF and marker != 0xEE


def _webp(content: bytes) -> ImageFile:
    kept, exif, at = [], b"", 12
    while at + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + length]
        if kind == b"EXIF":
            exif = body
        elif kind != b"XMP ":
            kept.append(struct.pack("<4sI", kind, length) + body + bytes(length % 2))
        at += 8 + length + length % 2
    if kept and kept[0].startswith(b"VP8X"):  # whose flags announce the notes
        kept[0] = kept[0][:8] + bytes([kept[0][8] & ~0b1100]) + kept[0][9:]
    chunks = b"".join(kept)
    return ImageFile(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, exif)
