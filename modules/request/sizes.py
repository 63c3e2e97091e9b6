"""The size of the pictures: of the first pass, and of the finished files, which must fit their format."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from PIL import Image

from backend.core.errors import InputError, nearest
from backend.core.units import format_bytes
from backend.planning.pictures import picture_bytes
from modules.diffusion.canvas import MATCH_INPUT, Canvas
from modules.request.image_modes import HALF
from modules.request.image_request import MAX_AREA, ImageRequest

CUSTOM = "custom"
"""The aspect ratio with which width and height count."""
MATCH_INPUT_IMAGE = "match_input_image"
"""The aspect ratio that is that of the reference picture."""
MAX_SIDES: Mapping[str, int] = MappingProxyType({"webp": 16383, "jpg": 65500})
"""The longest side in pixels that a format holds."""
MAX_FINISHED_PIXELS = 150_000_000
"""Of one finished picture; 1440 x 1440 at scale 8 has 133 million."""


def choose_size(
    canvas: Canvas,
    aspect_ratio: str,
    megapixels: str,
    width: int | None,
    height: int | None,
    image: Image.Image | None,
    reference: Image.Image | None = None,
) -> tuple[int, int]:
    """The size of the first pass: in the image's shape, which is repainted or says what is where; the custom size; the
    ratio's; or in the shape of the ``reference`` picture.

    Raises :class:`InputError` for a custom size that is missing or not on the grid, an area that the model does not
    draw, and where a picture is to be matched and none is given.
    """
    if megapixels not in (*canvas.areas, MATCH_INPUT):
        offered = ", ".join((*canvas.areas, MATCH_INPUT))
        raise InputError("megapixels", f"must be one of {offered} for this model, not '{megapixels}'")
    if image is not None:
        return canvas.size_like(*image.size, megapixels)
    if reference is not None and (aspect_ratio == MATCH_INPUT_IMAGE or megapixels == MATCH_INPUT):
        return canvas.size_for_reference(*reference.size, megapixels)
    for field, value, matching in (
        ("megapixels", megapixels, MATCH_INPUT),
        ("aspect_ratio", aspect_ratio, MATCH_INPUT_IMAGE),
    ):
        if value == matching:
            raise InputError(field, f"'{matching}' takes the size of a given picture, and there is none; give another")
    if aspect_ratio != CUSTOM:
        if aspect_ratio not in canvas.aspect_ratios:
            near = nearest(aspect_ratio, canvas.aspect_ratios)
            raise InputError("aspect_ratio", f"unknown ratio '{aspect_ratio}'{near}")
        return canvas.size(aspect_ratio, megapixels)
    return _on_the_grid("width", width, canvas), _on_the_grid("height", height, canvas)


def finished_size(request: ImageRequest, canvas: Canvas) -> tuple[int, int]:
    """Width and height of the files: after Hires fix and ``scale``."""
    width, height = request.picture_size
    if request.hires:
        width, height = canvas.fitted(width * request.hires.scale, height * request.hires.scale)
    return round(width * request.scale), round(height * request.scale)


def check_finished_size(request: ImageRequest, canvas: Canvas) -> None:
    """Raises :class:`InputError` for pictures that the format cannot hold, or that are larger than memory allows."""
    width, height = finished_size(request, canvas)
    factors = "a smaller scale" if request.hires is None else "a smaller scale or hr_scale"
    if width * height > MAX_FINISHED_PIXELS:
        raise InputError(
            "scale" if request.scale > 1 else "hr_scale",
            f"makes a picture of {width}x{height}; at most {MAX_FINISHED_PIXELS // 1_000_000} megapixels are made, use "
            f"{factors}",
        )
    limit = MAX_SIDES.get(request.output_format)
    if limit and max(width, height) > limit:
        raise InputError(
            "output_format",
            f"{request.output_format} holds at most {limit} pixels a side, not {width}x{height}; use png, or {factors}",
        )


def check_room(request: ImageRequest, canvas: Canvas, available: int) -> None:
    """Raises :class:`InputError` for pictures that take more than the ``available`` bytes of host memory."""
    size, finished = request.picture_size, finished_size(request, canvas)
    needed = picture_bytes(size, finished, request.num_outputs)
    if needed <= available:
        return
    made = "" if size == finished else f" to become {finished[0]}x{finished[1]}"
    by = "scale" if request.scale > 1 else "hr_scale" if request.hires else "num_outputs"
    raise InputError(
        "image" if request.keeps_image else by,
        f"{request.num_outputs} of {size[0]}x{size[1]}{made} take{'s' * (request.num_outputs == 1)} about "
        f"{format_bytes(needed)} of host memory, and {format_bytes(available)} are free; make "
        f"{'the image' if request.keeps_image else 'the picture'} smaller, or lower scale or num_outputs",
    )


def check_units_at_size(request: ImageRequest) -> None:
    """Raises :class:`InputError` for a unit that draws the whole of a picture which is too large for that."""
    width, height = request.picture_size
    if not request.keeps_image or width * height <= MAX_AREA:
        return
    if any(not unit.inpaint_only_masked and not unit.use_inpaint_width_height for unit in request.adetailer):
        raise InputError(
            "adetailer_args",
            f"ad_inpaint_only_masked is off, which draws all {width}x{height} pixels at once, and at most {MAX_AREA} "
            "are; leave it out, or give ad_use_inpaint_width_height",
        )


def check_mask(mask: Image.Image, size: tuple[int, int], field: str = "mask") -> None:
    """Raises :class:`InputError` for a mask (L), the input ``field``, that repaints nothing of a picture of this
    size."""
    _, brightest = mask.resize(size, Image.Resampling.BILINEAR).getextrema()
    if isinstance(brightest, int) and brightest <= HALF:
        raise InputError(field, "leaves nothing to repaint; paint white what is to change, or leave the mask out")


def _on_the_grid(name: str, side: int | None, canvas: Canvas) -> int:
    if side is None:
        raise InputError(name, "is needed when aspect_ratio is 'custom'")
    if side % canvas.multiple:
        below = side - side % canvas.multiple
        near = f"{below or canvas.multiple} or {below + canvas.multiple}"
        raise InputError(name, f"must be a multiple of {canvas.multiple} for this model, not {side}; use {near}")
    return side
