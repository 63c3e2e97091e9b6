"""Finished pictures -> files that say how they were made.

Every file holds two things: the generation parameters as WebUI users and Civitai read them, and our own record as JSON,
which keeps what that text has no words for. :func:`read_parameters` gives both back.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from backend.core.errors import InputError
from backend.core.files import atomic_files
from modules.pipeline.base import ImageBatch, Picture
from modules.request.image_request import ImageRequest

logger = logging.getLogger(__name__)

WEBP_MAX_SIDE = 16383
"""Pixels; the format itself ends there."""

_KIND: Mapping[str, str] = {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}
_PRIVATE_KEY = "cog-flux-adetailer"
_NEGATIVE = "Negative prompt"
_TEXT_KEY = re.compile(r"\w[\w \-/]+")
_NOT_FOR_TEXT = frozenset({"Hashes", "Resources"})  # WebUI and Civitai give these a meaning of their own

_USER_COMMENT = int(ExifTags.Base.UserComment)
_UNICODE = b"UNICODE\0"
# The MakerNote is the one EXIF tag that the standard leaves to whoever made the picture. No reader of generation
# parameters looks there, and no viewer shows it, where ImageDescription appears as the picture's title and ComfyUI
# takes every text tag of the first directory for a workflow. The maker's name and a zero byte go first, as cameras do.
_MAKER_NOTE = int(ExifTags.Base.MakerNote)
_MAKER = _PRIVATE_KEY.encode() + b"\0"
_JPEG_EXIF_BYTES = 65533


@dataclass(frozen=True)
class ModelInfo:
    """What a file says about its origin: the model's name, the first 10 hex digits of its sha256 ("": not known),
    this package's version."""

    name: str
    hash10: str
    version: str


def parameters_text(request: ImageRequest, picture: Picture, model: ModelInfo) -> str:
    """The generation parameters in WebUI's format: the prompt, the negative one if any, and one line of fields.

    What the stages remember in ``picture.parameters`` under a WebUI key follows our own fields. A key that is one of
    ours takes its place there (a stage that had to take another sampler says ``"Sampler": "Euler"``); None leaves a
    field out.
    """
    extras = {key: value for key, value in picture.parameters.items() if _is_text_field(key, value)}
    negative = extras.pop(_NEGATIVE, None)
    values: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": request.sampler,
        "Schedule type": request.scheduler,
        "CFG scale": 1,
        "Distilled CFG Scale": request.guidance_scale,
        "Seed": picture.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.hash10 or None,
        "Model": model.name,
        "Denoising strength": request.prompt_strength if request.image is not None else None,
        **extras,
        "Version": model.version,
    }
    # Readers cut the text where the negative prompt begins, some of them anywhere in a line, and sd-parsers fails when
    # it
    # finds two such places. A space before the colon keeps the prompt whole; the JSON has the very words.
    prompts = [text.replace(f"{_NEGATIVE}:", f"{_NEGATIVE} :") for text in (request.prompt, str(negative or ""))]
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items() if value is not None)
    return _sound("\n".join([prompts[0], *([f"{_NEGATIVE}: {prompts[1]}"] if prompts[1] else []), line]))


def write_pictures(batch: ImageBatch, request: ImageRequest, directory: Path, model: ModelInfo) -> list[Path]:
    """Writes ``out-0.webp``, ``out-1.webp``, ... into ``directory``, which must exist, and gives their paths in order.

    The quality goes from 0 to 100 for webp (lossy also at 100) and jpg; png is lossless and ignores it. A file appears
    under its name only when all are complete; after an error or a cancellation nothing of this call stays behind.

    Raises :class:`InputError` for a picture that webp cannot hold, and OSError when the directory cannot be written.
    """
    # A span that is still open (the one around this call) has no seconds yet.
    seconds = {
        name.removesuffix(".seconds"): value
        for name, value in batch.timeline.metrics().items()
        if name.endswith(".seconds") and value
    }
    paths = [directory / f"out-{index}.{request.output_format}" for index in range(len(batch.pictures))]

    def save(picture: Picture, part: Path) -> None:
        _save(
            picture.image,
            part,
            request,
            parameters_text(request, picture, model),
            _record(request, picture, model, seconds),
        )

    try:
        with atomic_files(paths) as parts, ThreadPoolExecutor(max(1, len(parts))) as pool:  # encoders release the GIL
            list(pool.map(save, batch.pictures, parts))
    except BaseException:
        for path in paths:  # all of them or none
            path.unlink(missing_ok=True)
        raise
    return paths


def read_parameters(path: Path) -> tuple[str, dict[str, Any]]:
    """The generation parameters and our own record of a png, jpg or webp; empty where the file has none.

    Raises OSError for a file that is missing or no such picture, and ValueError when our record in it is damaged.
    """
    with Image.open(path, formats=tuple(_KIND.values())) as image:
        if image.format == "PNG":
            text, record = image.info.get("parameters", ""), image.info.get(_PRIVATE_KEY, "")
        else:
            tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
            comment, note = tags.get(_USER_COMMENT, b""), tags.get(_MAKER_NOTE, b"")
            text = comment.removeprefix(_UNICODE).decode("utf-16-be", "replace") if comment.startswith(_UNICODE) else ""
            record = note.removeprefix(_MAKER) if note.startswith(_MAKER) else ""
    return text, json.loads(record) if record else {}


def _is_text_field(key: str, value: object) -> bool:
    return (
        not key.startswith("_")
        and key not in _NOT_FOR_TEXT
        and bool(_TEXT_KEY.fullmatch(key))
        and isinstance(value, str | int | float | None)
    )


def _quoted(value: object) -> str:
    """A value as WebUI writes it: in JSON's quotes when it holds a character that would end it early."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def _sound(text: str) -> str:
    """Text that every format can hold: half surrogate pairs (JSON clients can send them) are replaced, zero bytes
    dropped."""
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace").replace("\0", "")


def _record(request: ImageRequest, picture: Picture, model: ModelInfo, seconds: Mapping[str, float]) -> str:
    """Our own JSON, in ASCII: the request (of images only the size), the model, the stages' seconds, and what the
    text left out."""
    remembered = {key: value for key, value in picture.parameters.items() if not _is_text_field(key, value)}
    record = {"request": request, "model": model, "seed": picture.seed, "seconds": seconds, "parameters": remembered}
    return json.dumps(record, default=_jsonable)


def _jsonable(value: object) -> object:
    if isinstance(value, Image.Image):
        return f"{value.width}x{value.height}"
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else str(value)


def _save(image: Image.Image, path: Path, request: ImageRequest, text: str, record: str) -> None:
    kind = _KIND[request.output_format]
    if kind == "WEBP" and max(image.size) > WEBP_MAX_SIDE:
        raise InputError(
            "output_format",
            f"webp holds at most {WEBP_MAX_SIDE} pixels a side, not {image.width}x{image.height}; use png, or a "
            "smaller scale",
        )
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", text)
        chunks.add_text(_PRIVATE_KEY, record)
        image.save(path, kind, pnginfo=chunks)
        return
    exif = _exif(text, record)
    if kind == "JPEG" and len(exif) > _JPEG_EXIF_BYTES:
        # The request is good and the picture drawn: a prompt of many thousand characters must not cost it now.
        logger.warning(
            "a jpg holds %d bytes of parameters, not %d; leaving out what does not fit (png and webp hold all)",
            _JPEG_EXIF_BYTES,
            len(exif),
        )
        exif = next((short for short in (_exif(text, ""), _exif("", record)) if len(short) <= _JPEG_EXIF_BYTES), b"")
    image.save(path, kind, quality=request.output_quality, exif=exif)


def _exif(text: str, record: str) -> bytes:
    exif = (
        Image.Exif()
    )  # big-endian by default, as is the comment: some readers take the comment's order from the header
    tags = {_USER_COMMENT: _UNICODE + text.encode("utf-16-be"), _MAKER_NOTE: _MAKER + record.encode()}
    exif[ExifTags.IFD.Exif] = tags
    return exif.tobytes()
