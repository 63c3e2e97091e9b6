"""The image of a request as its file has it: what a picture keeps where nothing is drawn."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageChops, ImageCms
from pydantic.dataclasses import dataclass

from backend.core.validation import STRICT

BACKGROUND = "white"
"""What a transparent picture is put on."""


@dataclass(frozen=True, config=STRICT)
class Original:
    """An image, upright and with 8 bits. All pictures in it have one size.

    Attributes:
        image: RGB in sRGB, transparency on ``BACKGROUND``: what is worked on.
        colours: RGB as the file has them, also where it is transparent.
        profile: The ICC profile of ``colours``; empty for sRGB.
        opacity: L; None for an opaque image.
    """

    image: Image.Image
    colours: Image.Image
    profile: bytes = b""
    opacity: Image.Image | None = None

    @property
    def is_plain(self) -> bool:
        """Whether ``image`` is all that the file has."""
        return not self.profile and self.opacity is None

    def turned(self, turn: Image.Transpose) -> Original:
        """The image turned or mirrored."""
        opacity = self.opacity and self.opacity.transpose(turn)
        return Original(self.image.transpose(turn), self.colours.transpose(turn), self.profile, opacity)

    def opaque_where(self, mask: Image.Image) -> Original:
        """The same with no transparency where a mask (L, of its shape) is brighter than half: something is painted
        there."""
        if self.opacity is None:
            return self
        size = self.image.size
        painted = mask.resize(size, Image.Resampling.BILINEAR).point([0] * 128 + [255] * 128)
        flat = Image.composite(self.colours, Image.new("RGB", size, BACKGROUND), self.opacity)
        colours = Image.composite(flat, self.colours, painted)
        return Original(self.image, colours, self.profile, ImageChops.lighter(self.opacity, painted))

    def finished(self, picture: Image.Image, transparent: bool) -> tuple[Image.Image, bytes]:
        """A picture that began from ``image``, in the file's colours, and its ICC profile.

        Where it equals ``image`` it has the pixels of the file. With ``transparent`` the result is RGBA where the file
        has transparency. A picture of another size stays in sRGB.
        """
        if self.is_plain:
            return picture, b""
        if picture.size != self.image.size:
            opacity = self.opacity and self.opacity.resize(picture.size, Image.Resampling.LANCZOS)
            return (_with_opacity(picture, opacity) if opacity and transparent else picture), b""
        changed = _differs(picture, self.image)
        picture = _from_srgb(picture, self.profile) if self.profile else picture
        if not self.opacity:
            return Image.composite(picture, self.colours, changed), self.profile
        if not transparent:
            flat = Image.composite(self.colours, Image.new("RGB", picture.size, BACKGROUND), self.opacity)
            return Image.composite(picture, flat, changed), self.profile
        drawn = _with_opacity(picture, self.opacity).convert("RGB")
        finished = Image.composite(drawn, self.colours, changed)
        finished.putalpha(self.opacity)
        return finished, self.profile


def _differs(one: Image.Image, other: Image.Image) -> Image.Image:
    """White where two RGB pictures differ."""
    red, green, blue = ImageChops.difference(one, other).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue).point([0] + [255] * 255)


def _from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), given)
    assert converted is not None  # it is None only for a conversion in place
    return converted


def _with_opacity(flat: Image.Image, opacity: Image.Image) -> Image.Image:
    """A picture on ``BACKGROUND`` as RGBA: put on white again, it is the same but for rounding."""
    divisor = np.maximum(np.asarray(opacity, np.uint16), 1)
    bands = []
    for band in flat.split():  # one at a time, for the memory; the greatest sum is 65152
        missing = (255 - np.asarray(band, np.uint16)) * 255 + divisor // 2
        bands.append(Image.fromarray(255 - np.minimum(missing // divisor, 255).astype(np.uint8)))
    return Image.merge("RGBA", [*bands, opacity])
