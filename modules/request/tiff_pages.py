"""Which page of a TIFF is the picture, and which kinds of TIFF Pillow reads wrong."""

from __future__ import annotations

from PIL import Image, TiffImagePlugin

_SUBFILE, _OLD_SUBFILE, _DNG_VERSION = 254, 255, 50706
_BITS, _SAMPLES, _PLANES, _COMPRESSION = 258, 277, 284, 259
_UNCOMPRESSED, _SEPARATE, _REDUCED = 1, 2, 2


def show_picture(image: Image.Image) -> bool:
    """Turns to the first page that is not a small preview of another one. False if there is none, which is how the raw
    files of cameras look.

    Raises what Pillow raises for a damaged page.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    if _DNG_VERSION in image.tag_v2:
        return False
    try:
        while _is_preview(image.tag_v2):
            image.seek(image.tell() + 1)
    except EOFError:
        return False
    return True


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow decodes this page to wrong values: separate planes of 16 bits without compression, or of grey and
    opacity; compressed floating point, or grey of 32 bits or with a sign, in big-endian order."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    compressed = tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED
    if tags.get(_PLANES) == _SEPARATE and tags.get(_SAMPLES, 1) > 1:
        return (max(tags.get(_BITS, (1,))) > 8 and not compressed) or tags[_SAMPLES] == 2
    return image.mode in ("F", "I") and compressed and tags.prefix == b"MM"


def _is_preview(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    return bool(tags.get(_SUBFILE, 0) & 1) or tags.get(_OLD_SUBFILE) == _REDUCED
