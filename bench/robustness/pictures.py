"""Are the pictures right that people bring? Random files of every kind, and odd EXIF blocks around one picture.

    python -m bench.robustness.pictures [--files 2000] [--exif 500] [--seed 0]

A file must give the picture that other arithmetic gives, or one line that names the input. Of lossy files OpenCV gives
the picture; the numbers of all others are known. Exit code 1 for a wrong picture or another error.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from backend.core.errors import InputError
from bench.support.markdown import table
from bench.support.random_pictures import RandomFile, random_exif, random_file, smooth
from modules.request.input_image import read_image

ROUNDING = 2.0
"""Of 255: each of scaling, flattening and the file's own depth rounds once."""
MEAN_OF_LOSSY = 3.0
"""The mean difference of two readers of one lossy file, of 255."""

SOUND = (
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01",
)
"""What EXIF blocks begin with that say an orientation."""
RIGHT, LINE, WRONG = "right", "one line", "wrong"


def judged(file: RandomFile, path: Path) -> tuple[str, str]:
    """What became of a file, and what is wrong with it or what the line says. ``path`` is written."""
    path.write_bytes(file.content)
    try:
        given = np.asarray(read_image(path, "image")).astype(float)
    except InputError as error:
        one_line = str(error).startswith("image: ") and "\n" not in str(error)
        return (LINE if one_line else WRONG), str(error)
    if given.shape != file.wanted.shape:
        return WRONG, f"{given.shape} in place of {file.wanted.shape}"
    if not file.lossy:
        difference = float(np.abs(given - file.wanted).max())
        return (RIGHT if difference <= ROUNDING else WRONG), f"{difference:.0f} of 255"
    other = cv2.imdecode(np.frombuffer(file.content, np.uint8), cv2.IMREAD_COLOR)
    near = file.wanted if other is None or b"Adobe" in file.content else other[..., ::-1]
    difference = min(float(np.abs(given - one).mean()) for one in (near, file.wanted))
    return (RIGHT if difference <= MEAN_OF_LOSSY else WRONG), f"{difference:.1f} of 255 in the mean"


def with_exif(picture: np.ndarray, kind: str, block: bytes) -> bytes:
    """A file of the picture, H x W x 3, with this EXIF block."""
    file = io.BytesIO()
    image = Image.fromarray(picture.astype(np.uint8))
    if kind == "PNG":
        image.save(file, kind)
        plain, body = file.getvalue(), block.removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        return plain[:33] + chunk + plain[33:]
    image.save(file, kind, exif=block, quality=95, lossless=True)  # which only WebP can be
    return file.getvalue()


def turns(picture: np.ndarray) -> Iterator[np.ndarray]:
    """The picture in each of the eight orientations of EXIF, in their order."""
    half = np.rot90(picture, 2)
    yield from (picture, np.fliplr(picture), half, np.flipud(picture))
    yield from (picture.transpose(1, 0, 2), np.rot90(picture, -1), half.transpose(1, 0, 2), np.rot90(picture))


def orientation_of(picture: np.ndarray, given: np.ndarray | None, limit: float) -> int:
    """The orientation in which the picture is given, 0 for none; ``limit`` is the mean difference."""
    for number, turned in enumerate(turns(picture), 1):
        if given is not None and turned.shape == given.shape and np.abs(turned - given).mean() <= limit:
            return number
    return 0


def exif_trial(rng: random.Random, path: Path) -> tuple[str, str]:
    """What became of a picture with a random block beside it, and the orientations that the reader and OpenCV see.

    It must be there: turned as OpenCV turns it, or in any way where the block is odd before it says the orientation.
    """
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    picture, block = smooth(rng, 48, 32, 3).round(), random_exif(rng)
    content = with_exif(picture, kind, block)
    path.write_bytes(content)
    limit = 8.0 if kind == "JPEG" else 0.0
    seen = orientation_of(picture, np.asarray(read_image(path, "image")).astype(float), limit)
    other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    by_opencv = orientation_of(picture, None if other is None else other[..., ::-1].astype(float), limit)
    right = seen == by_opencv or (seen and not block.startswith(SOUND))
    return (RIGHT if right else WRONG), f"{kind} {seen}, OpenCV {by_opencv}: {block.hex()}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--exif", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.disable()  # notices about profiles and transparency
    rng = random.Random(options.seed)
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given"
        for _ in range(options.files):
            file = random_file(rng)
            outcome, words = judged(file, path)
            counts.setdefault(file.kind.split()[0], Counter())[outcome] += 1
            if outcome == WRONG:
                print(f"wrong: {file.kind}, {words}", file=sys.stderr)
        for _ in range(options.exif):
            outcome, words = exif_trial(rng, path)
            counts.setdefault("EXIF blocks", Counter())[outcome] += 1
            if outcome == WRONG:
                print(f"wrong: EXIF, {words}", file=sys.stderr)
    print(
        table([{"files": kind, **{one: counts[kind][one] for one in (RIGHT, LINE, WRONG)}} for kind in sorted(counts)])
    )
    return int(any(count[WRONG] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
