"""The way of a picture: the wanted stages in order, each inside a span of the timeline."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from backend.core.timeline import Timeline
from modules.request.image_request import ImageRequest

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Told after every step or tile: the stage's name, what is done and what is to do."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class DebugSink(Protocol):
    """Gets what a stage has to show on its way: a name for a file, without ending, and an image."""

    def __call__(self, name: str, image: Image.Image, /) -> None: ...


@dataclass(frozen=True)
class Picture:
    """One picture on its way: RGB pixels, its seed, and what the stages want to be remembered in the file."""

    image: Image.Image
    seed: int
    parameters: Mapping[str, object] = field(default_factory=dict)

    def changed(self, image: Image.Image, **parameters: object) -> Picture:
        return replace(self, image=image, parameters={**self.parameters, **parameters})


@dataclass(frozen=True)
class ImageBatch:
    """The pictures of one request. ``progress`` and ``timeline`` are there for the stages to report to,
    ``debug_sink`` where somebody looks."""

    pictures: tuple[Picture, ...]
    timeline: Timeline
    progress: Progress
    debug_sink: DebugSink | None = None

    def with_pictures(self, pictures: Iterable[Picture]) -> ImageBatch:
        return replace(self, pictures=tuple(pictures))


class Stage(Protocol):
    """One step on the way. A stage knows no other stage; it borrows the models it needs and gives a new batch."""

    name: str

    def wanted(self, request: ImageRequest) -> bool: ...

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch: ...


def no_progress(stage: str, done: int, total: int) -> None:
    """Progress for callers that do not want any."""


class ImagePipeline:
    """Runs the stages that a request wants, in the order given."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = tuple(stages)

    def run(
        self,
        request: ImageRequest,
        progress: Progress | None = None,
        timeline: Timeline | None = None,
        debug_sink: DebugSink | None = None,
    ) -> ImageBatch:
        """Gives the finished pictures. Whatever a stage raises goes up unchanged, cancellation included."""
        batch = ImageBatch((), timeline or Timeline(), progress or no_progress, debug_sink)
        for stage in self.stages:
            if stage.wanted(request):
                with batch.timeline.span(stage.name):
                    batch = stage.run(batch, request)
        return batch
