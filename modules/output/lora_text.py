"""The LoRA of a picture in WebUI's text: tags in the prompt, and hashes by which other programs find the files."""

from __future__ import annotations

from collections.abc import Mapping

from modules.lora.files.lora_file import LoraFile
from modules.request.image_request import ImageRequest
from modules.request.lora_use import changed_tags, tagged, written

HASHES = "Lora hashes"
"""The field of the hashes."""
DIGITS = 12


def prompt_with_tags(request: ImageRequest, files: Mapping[str, LoraFile]) -> str:
    """The prompt with a tag for every LoRA, also for those of other inputs. In tags stands the file's name, because
    WebUIs read no other reference."""

    def named(tag: str) -> str:
        (use,) = tagged(tag)
        return tag if files[use.reference].name == use.reference else written(files[use.reference].name, use.scale)

    if not files:
        return request.prompt
    tags = [written(files[use.reference].name, use.scale) for use in request.loras if use.input_name != "prompt"]
    return " ".join([changed_tags(request.prompt, named), *tags])


def hashes(files: Mapping[str, LoraFile]) -> str | None:
    """``name: hash, name: hash`` as WebUIs write it; None where there are no files."""
    found = {file.name: file.tensors_sha256[:DIGITS] for file in files.values()}
    return ", ".join(f"{name}: {digits}" for name, digits in found.items()) or None
