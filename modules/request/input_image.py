"""A picture file that came with a request -> pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from backend.core.errors import InputError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 128 * 2**20


def read_image(path: Path, field: str) -> Image.Image:
    """A picture given as an input, upright, RGB (or RGBA or L as it is).

    It must be in one of ``IMAGE_FORMATS``, whatever its name says, and its size is judged by the header alone, before
    anything is decoded. Raises :class:`InputError`, which names the field and never the file's path or content.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(field, f"is a file of more than {MAX_BYTES // 2**20} MiB; save it smaller")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    field,
                    f"is {image.width}x{image.height}; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, "
                    "make it smaller",
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise InputError(
            field, f"is too large; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, make it smaller"
        ) from None
    except FileNotFoundError:
        raise InputError(field, "there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise InputError(field, f"is not an image that can be read; give one of {', '.join(IMAGE_FORMATS)}") from None
