"""What a stage is, what it declares, and how the pipeline runs the stages."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from PIL import Image

from backend.core.cancellation import Check, never_canceled
from backend.core.timeline import Timeline
from modules.diffusion.monitor import Monitor
from modules.lora.files.lora_file import LoraFile
from modules.request.image_request import ImageRequest
from modules.request.lora_use import LoraUse
from modules.request.original import Original

if TYPE_CHECKING:
    from backend.memory_management import MemoryPlan
    from modules.detection.service import DetectionService
    from modules.diffusion.base import DiffusionService
    from modules.diffusion.latent_preview import LatentSink
    from modules.face_restoration.service import FaceRestoration
    from modules.safety.service import SafetyService
    from modules.upscaling.service import UpscaleService

logger = logging.getLogger(__name__)

NO_LORAS: Mapping[str, LoraFile] = MappingProxyType({})


class Progress(Protocol):
    """Called after every step or tile with the stage's name, how many are done and how many there are."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class DebugSink(Protocol):
    """Takes intermediate images: a file name without its suffix, and the image."""

    def __call__(self, name: str, image: Image.Image, /) -> None: ...


@dataclass(frozen=True)
class Picture:
    """One picture of a batch: RGB pixels, its seed, what the stages write into the file, and the image whose pixels it
    keeps, if any."""

    image: Image.Image
    seed: int
    parameters: Mapping[str, object] = field(default_factory=dict)
    original: Original | None = None

    def changed(self, image: Image.Image, **parameters: object) -> Picture:
        """The picture with another image and further parameters."""
        return replace(self, image=image, parameters={**self.parameters, **parameters})


@dataclass(frozen=True)
class ImageBatch:
    """The pictures of one request, and what the stages report to. ``debug_sink`` is None where nobody wants debug
    images; ``check`` is called between two pieces of work; ``notices`` is what of the request could not be honoured, a
    line each; ``metrics`` is what stages count, by name; ``loras`` has the files by what requests call them;
    ``latent_sink`` gets the latents after every step of the stages that draw whole pictures."""

    pictures: tuple[Picture, ...]
    timeline: Timeline
    progress: Progress
    debug_sink: DebugSink | None = None
    notices: tuple[str, ...] = ()
    check: Check = never_canceled
    metrics: Mapping[str, float] = field(default_factory=dict)
    loras: Mapping[str, LoraFile] = field(default_factory=dict)
    latent_sink: LatentSink | None = None

    def lora_files(self, uses: Iterable[LoraUse]) -> tuple[tuple[LoraFile, float], ...]:
        """The files that are meant, with their scales."""
        return tuple((self.loras[use.reference], use.scale) for use in uses)

    def monitor(self, stage: str) -> Monitor:
        """What follows the denoising of a stage that draws whole pictures."""
        return Monitor(self.timeline, partial(self.progress, stage), self.check, self.latent_sink)

    def with_pictures(self, pictures: Iterable[Picture]) -> ImageBatch:
        """The batch with other pictures."""
        return replace(self, pictures=tuple(pictures))


@dataclass(frozen=True)
class Services:
    """What stages are built from. A service is None where no enabled stage needs its models, or their files are
    missing."""

    diffusion: DiffusionService
    plan: MemoryPlan
    upscale: UpscaleService | None = None
    detectors: DetectionService | None = None
    face_restoration: FaceRestoration | None = None
    safety: SafetyService | None = None


class Feature:
    """A part of the service that settings can turn off, and what it declares.

    The declaration is read even where the feature is turned off, so its module must not import the libraries that the
    feature needs. It imports them where it uses them.
    """

    name: ClassVar[str]
    """Its name in settings, reports and metrics."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names that ``disabled_extensions`` and ``disabled_scripts`` accept."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Its inputs in ``predict.py``. The first is its switch."""
    off: ClassVar[object] = False
    """The value of the switch with which the feature does nothing. The other inputs count only when it is on."""
    models: ClassVar[tuple[str, ...]] = ()
    """The models that it borrows from the cache, by their names in the memory plan. Without them it does not run."""
    optional_models: ClassVar[tuple[str, ...]] = ()
    """Models that it borrows for some requests, where they are present."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The settings that it reads."""
    without_models: ClassVar[str] = "needs a model that is not installed"
    """The error for a request that asks for it while one of its models is missing."""

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        """Imports what takes long, so that set-up can time it. ``scratch`` is a writable folder that lives as long as
        the process."""


class Stage(Feature, ABC):
    """One step from a request to finished pictures. A stage imports no other stage; it borrows models and returns a new
    batch."""

    required: ClassVar[bool] = False
    """Whether every pipeline has it. Settings cannot turn off a required stage."""

    @classmethod
    @abstractmethod
    def build(cls, services: Services) -> Self:
        """The stage, made of services. Called only when all of its ``models`` are present."""

    @classmethod
    def options(cls, inputs: Mapping[str, Any]) -> object:
        """What :class:`ImageRequest` keeps for this stage in ``stage_options``, None for nothing.

        For stages whose inputs are not fields of the request. Raises :class:`~backend.core.errors.InputError` for
        inputs that cannot be honoured.
        """
        return None

    def wanted(self, request: ImageRequest) -> bool:
        """Whether the request asks for this stage."""
        return bool(request.stage_options.get(self.name))

    def notices(self, request: ImageRequest) -> list[str]:
        """What of the request this stage does not honour, a line each; such as words that the model does not read."""
        return []

    @abstractmethod
    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        """The batch after this stage. Called only when the stage is wanted."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Progress for callers that do not want any."""


class ImagePipeline:
    """Runs the stages that a request asks for, in the given order, each in a span of the timeline."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = tuple(stages)

    def run(
        self,
        request: ImageRequest,
        progress: Progress | None = None,
        timeline: Timeline | None = None,
        debug_sink: DebugSink | None = None,
        check: Check = never_canceled,
        loras: Mapping[str, LoraFile] = NO_LORAS,
        latent_sink: LatentSink | None = None,
    ) -> ImageBatch:
        """The finished pictures. ``loras`` has the files of the request's ``lora_references``. Errors and cancellations
        of a stage are passed on unchanged."""
        show = progress or no_progress

        def checked(stage: str, done: int, total: int) -> None:
            show(stage, done, total)
            check()

        wanted = [stage for stage in self.stages if stage.wanted(request)]
        notices = [*request.notices, *(notice for stage in wanted for notice in stage.notices(request))]
        notices = list(dict.fromkeys(notices))
        for notice in notices:
            logger.warning("%s", notice)
        batch = ImageBatch(
            (), timeline or Timeline(), checked, debug_sink, tuple(notices), check, loras=loras, latent_sink=latent_sink
        )
        for stage in wanted:
            check()
            with batch.timeline.span(stage.name):
                batch = stage.run(batch, request)
        return batch
