"""The LoRA files of a request: of the folder, of the cache on disk, or downloaded, before any model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from backend.core.cancellation import Check
from backend.core.errors import InputError
from backend.core.timeline import Timeline
from modules.lora.files.lora_file import LoraError, LoraFile
from modules.lora.files.store import Fetch, LoraStore, Tokens
from modules.pipeline.base import Progress
from modules.request.image_request import ImageRequest

STAGE = "lora_files"
"""Their span in the timeline, and what their progress is called."""
MEGABYTE = 10**6


def lora_files(
    store: LoraStore,
    request: ImageRequest,
    inputs: Mapping[str, Any],
    progress: Progress,
    timeline: Timeline,
    check: Check,
    accept: Callable[[Sequence[LoraFile]], object],
) -> dict[str, LoraFile]:
    """The files by what the request calls them. The tokens are taken from ``inputs``; ``accept`` raises LoraError for
    files that the model cannot use.

    Raises :class:`backend.core.errors.InputError`, which names the input that a file was given in.
    """
    found: dict[str, LoraFile] = {}
    if not request.lora_references:
        return found
    given_in = {use.reference: use.input_name for use in reversed(request.loras)}
    tokens, on_progress = Tokens.of_inputs(inputs), partial(_show, progress)
    with timeline.span(STAGE):
        for reference in request.lora_references:
            keep = frozenset(file.sha256 for file in found.values())
            name = given_in.get(reference, "ad_prompt")
            how = Fetch(name, tokens, check, on_progress, lambda file: accept([file]), keep)
            found[reference] = store.fetch(reference, how)
        try:
            accept(list(found.values()))  # together they may need too much memory
        except LoraError as problem:
            raise InputError(name, str(problem)) from None
    return found


def _show(progress: Progress, done: int, total: int) -> None:
    """A download in megabytes. One whose size the host does not say is not shown."""
    if total:
        progress(STAGE, done // MEGABYTE, max(1, total // MEGABYTE))
