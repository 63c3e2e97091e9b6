"""Finished pictures -> files that say how they were made.

Every file holds the generation parameters as text in WebUI's format, which WebUI and Civitai read, and a JSON record of
our own with everything that this format has no fields for. :func:`read_parameters` returns both.
"""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from backend.core.files import atomic_files
from backend.core.texts import json_from
from modules.lora.files.lora_file import LoraFile
from modules.output.lora_text import HASHES, hashes, prompt_with_tags
from modules.pipeline.base import NO_LORAS, ImageBatch, Picture
from modules.request.image_request import ImageRequest

logger = logging.getLogger(__name__)

_KIND: Mapping[str, str] = {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}
_PRIVATE_KEY = "cog-flux-adetailer"
_PARAMETERS = ("parameters", "invokeai_metadata", "prompt", "Comment")
"""The text chunks of a png in which WebUI and others, InvokeAI, ComfyUI and NovelAI write how it was made."""
_NEGATIVE = "Negative prompt"
_TEXT_KEY = re.compile(r"\w[\w \-/]+")
_NOT_FOR_TEXT = frozenset({"Hashes", "Resources"})  # WebUI and Civitai expect their own content there

_USER_COMMENT = int(ExifTags.Base.UserComment)
_UNICODE = b"UNICODE\0"
_ASCII = b"ASCII\0\0\0"
# The record goes into MakerNote, the one EXIF tag whose content is up to the maker. Viewers do not show it, and readers
# of generation parameters ignore it; ImageDescription would be shown as the title, and ComfyUI takes any text tag of
# the first directory for a workflow. As with cameras, the maker's name and a zero byte come first.
_MAKER_NOTE = int(ExifTags.Base.MakerNote)
_MAKER = _PRIVATE_KEY.encode() + b"\0"
_JPEG_EXIF_BYTES = 65533
_LONG, _UNDEFINED = 4, 7
"""Types of EXIF entries."""
_EXIF_DIRECTORY = 26
"""Where the second directory begins, behind a header of 8 bytes and a first one of one entry."""
FULL_COLOUR_QUALITY = 95
"""From this quality on, a jpg keeps the colour of every pixel (4:4:4), not of every second one."""


@dataclass(frozen=True)
class ModelInfo:
    """The origin of a picture: the model's name, the first 10 hex digits of its SHA-256 (empty when unknown), and the
    name and version of this package."""

    name: str
    hash10: str
    version: str


def parameters_text(
    request: ImageRequest,
    picture: Picture,
    model: ModelInfo,
    notices: Sequence[str] = (),
    loras: Mapping[str, LoraFile] = NO_LORAS,
) -> str:
    """The generation parameters in WebUI's format: the prompt, the negative prompt if any, and one line of fields.

    Entries of ``picture.parameters`` under a WebUI key follow our own fields. An entry with the key of one of ours
    replaces it (a stage that used another sampler writes ``"Sampler": "Euler"``); None leaves the field out. ``loras``
    has the files by what the request calls them.
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
        HASHES: hashes(loras),
        "Notes": "; ".join(notices) or None,
        "Version": model.version,
    }
    # Readers cut the text at "Negative prompt:", some of them anywhere in a line, and sd-parsers fails when it finds
    # two. A space before the colon keeps the prompt in one piece; the JSON record has it unchanged.
    texts = (prompt_with_tags(request, loras), str(negative or ""))
    prompts = [text.replace(f"{_NEGATIVE}:", f"{_NEGATIVE} :") for text in texts]
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items() if value is not None)
    return _sound("\n".join([prompts[0], *([f"{_NEGATIVE}: {prompts[1]}"] if prompts[1] else []), line]))


def write_pictures(batch: ImageBatch, request: ImageRequest, directory: Path, model: ModelInfo) -> list[Path]:
    """Writes ``out-0.webp``, ``out-1.webp``, ... into ``directory``, which must exist; returns their paths in order.

    The quality is 0 to 100 for webp (lossy even at 100) and jpg; png is lossless and ignores it. Files get their names
    only when all are complete; after an error or a cancellation none is left.

    Raises OSError when the directory cannot be written.
    """
    # the span around this call is still open and has no seconds yet
    seconds = {
        name.removesuffix(".seconds"): value
        for name, value in batch.timeline.metrics().items()
        if name.endswith(".seconds") and value
    }
    paths = [directory / f"out-{index}.{request.output_format}" for index in range(len(batch.pictures))]

    def save(picture: Picture, part: Path) -> None:
        _save(
            picture,
            part,
            request,
            parameters_text(request, picture, model, batch.notices, batch.loras),
            _record(replace(request, notices=batch.notices, original=None), picture, model, seconds, batch.loras),
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
    """The generation parameters and our record in a png, jpg or webp; empty where the file has none. The parameters are
    a WebUI's text, or what another program writes in place of it.

    Raises OSError for a file that is missing or not such a picture, and ValueError when the record is damaged.
    """
    with Image.open(path, formats=tuple(_KIND.values())) as image:
        if image.format == "PNG":
            texts = (image.info.get(key) for key in _PARAMETERS)
            text = next((text for text in texts if isinstance(text, str) and text), "")
            record = image.info.get(_PRIVATE_KEY, "")
        else:
            tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
            comment, note = tags.get(_USER_COMMENT, b""), tags.get(_MAKER_NOTE, b"")
            text = _comment_text(comment) if isinstance(comment, bytes) else ""
            record = note.removeprefix(_MAKER) if note.startswith(_MAKER) else ""
    return text, json_from(record) if record else {}


def _comment_text(comment: bytes) -> str:
    """The text of an EXIF comment. Some programs write it in the byte order of their machine."""
    if comment.startswith(_ASCII):
        return comment.removeprefix(_ASCII).decode("utf-8", "replace")
    if not comment.startswith(_UNICODE):
        return ""
    content = comment.removeprefix(_UNICODE)
    text = content.decode("utf-16-be", "replace")
    return text if "Steps:" in text else min(text, content.decode("utf-16-le", "replace"), key=_far_characters)


def _far_characters(text: str) -> int:
    """How many characters of a text lie beyond the alphabets; most, where the byte order is wrong."""
    return sum(one > "\u2fff" for one in text)


def _is_text_field(key: str, value: object) -> bool:
    return (
        not key.startswith("_")
        and key not in _NOT_FOR_TEXT
        and bool(_TEXT_KEY.fullmatch(key))
        and isinstance(value, str | int | float | None)
    )


def _quoted(value: object) -> str:
    """A value as WebUI writes it: quoted as in JSON when it holds a character that would end it early."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def _sound(text: str) -> str:
    """Text that every format can hold: lone surrogates (which JSON can hold) are replaced, zero bytes dropped."""
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace").replace("\0", "")


def _record(
    request: ImageRequest,
    picture: Picture,
    model: ModelInfo,
    seconds: Mapping[str, float],
    loras: Mapping[str, LoraFile],
) -> str:
    """Our record as ASCII JSON: the request (of images only their size), the model, the LoRA files by their SHA-256,
    the seconds of the stages, and what the text leaves out."""
    remembered = {key: value for key, value in picture.parameters.items() if not _is_text_field(key, value)}
    record = {
        "request": request,
        "model": model,
        "loras": {reference: file.sha256 for reference, file in loras.items()},
        "seed": picture.seed,
        "size": picture.image,
        "seconds": seconds,
        "parameters": remembered,
    }
    return json.dumps(record, default=_jsonable)


def _jsonable(value: object) -> object:
    if isinstance(value, Image.Image):
        return f"{value.width}x{value.height}"
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else str(value)


def _save(picture: Picture, path: Path, request: ImageRequest, text: str, record: str) -> None:
    kind, image, profile = _KIND[request.output_format], picture.image, b""
    if picture.original:
        image, profile = picture.original.finished(image, transparent=kind != "JPEG")
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", text)
        chunks.add_text(_PRIVATE_KEY, record)
        image.save(path, kind, pnginfo=chunks, icc_profile=profile)
        return
    exif = _exif(text, record)
    if kind == "JPEG" and len(exif) > _JPEG_EXIF_BYTES:
        # the picture is made; a prompt of many thousand characters must not lose it now
        logger.warning(
            "a jpg holds at most %d bytes of parameters, these are %d; what does not fit is left out (use png or webp)",
            _JPEG_EXIF_BYTES,
            len(exif),
        )
        exif = next((short for short in (_exif(text, ""), _exif("", record)) if len(short) <= _JPEG_EXIF_BYTES), b"")
    quality = request.output_quality
    subsampling = {"subsampling": "4:4:4"} if kind == "JPEG" and quality >= FULL_COLOUR_QUALITY else {}
    image.save(path, kind, quality=quality, exif=exif, icc_profile=profile, **subsampling)


def _exif(text: str, record: str) -> bytes:
    """An EXIF block with the text and our record. Empty ones are left out.

    Both tags have the type UNDEFINED, as EXIF demands; Pillow would write bytes, which the WebUI's reader cannot read.
    The block is big-endian, like the text: some readers take the byte order of the text from the header.
    """
    tags = [
        (tag, content)
        for tag, content in (
            (_MAKER_NOTE, _MAKER + record.encode() if record else b""),
            (_USER_COMMENT, _UNICODE + text.encode("utf-16-be") if text else b""),
        )
        if content
    ]
    main = struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, _LONG, 1, _EXIF_DIRECTORY, 0)
    entries, contents = b"", b""
    begin = _EXIF_DIRECTORY + 2 + 12 * len(tags) + 4
    for tag, content in tags:
        entries += struct.pack(">HHII", tag, _UNDEFINED, len(content), begin + len(contents))
        contents += content + bytes(len(content) % 2)
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + main + directory + contents
