"""Set-up and prediction: from settings to a service that turns inputs into files.

:func:`start` imports torch and what needs it after it has set the environment, in spans of the set-up's timeline.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.cancellation import Check, never_canceled
from backend.core.files import full_disk_in_one_line, write_atomic
from backend.core.parent import end_with_parent
from backend.core.scratch import scratch_for_process
from backend.core.settings import Settings
from backend.core.timeline import Timeline, process_began
from backend.planning.model_specs import ModelSpec
from modules.app.environment import set_environment
from modules.app.lora_files import lora_files
from modules.app.warm_up import warm_up_requests
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import Selection, select
from modules.families.registry import FAMILIES, Families
from modules.input_checks import INSTALLED_FILE, InputChecks, Installed
from modules.lora.files.store import LoraStore
from modules.output.image_writer import ModelInfo, write_pictures
from modules.output.progress import ProgressBars
from modules.output.summary import unit_results
from modules.pipeline.base import DebugSink, ImageBatch, ImagePipeline, Progress, Stage
from modules.pipeline.stages import STAGES
from modules.prompting.prompt_upsampler import PromptUpsampler, upsampled
from modules.request.defaults import DEFAULTS, Defaults
from modules.request.image_request import ImageRequest
from modules.request.sizes import check_room
from modules.request.uploads import Uploads

if TYPE_CHECKING:
    from backend.devices.runtime import DeviceRuntime
    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.app.wiring import SetUp
    from modules.diffusion.base import DiffusionService
    from modules.diffusion.latent_preview import LatentPreview, LatentSink

logger = logging.getLogger(__name__)

Report = Callable[[str, Any], None]


@dataclass
class Service:
    """Everything that lives as long as the server: the models, and the stages that borrow them."""

    schema: InputSchema
    runtime: DeviceRuntime
    profile: ModelProfile
    spec: ModelSpec
    detectors: Mapping[str, ClassSet]
    upscalers: tuple[str, ...]
    restores_faces: bool
    defaults: Defaults
    left_out: Mapping[str, str]
    extensions: Selection
    models: ModelCache
    fallback: OomFallback
    upsampler: PromptUpsampler | None
    pipeline: ImagePipeline
    model: ModelInfo
    timeline: Timeline
    outputs: Path
    uploads: Uploads
    loras: LoraStore
    diffusion: DiffusionService

    def predict(
        self,
        inputs: Mapping[str, Any],
        report: Report,
        progress: Progress | None = None,
        timeline: Timeline | None = None,
        debug_sink: DebugSink | None = None,
    ) -> list[Path]:
        """:meth:`predict_into` a new folder. The files of the previous prediction are deleted first."""
        for old in self.outputs.iterdir():
            shutil.rmtree(old)
        with full_disk_in_one_line():
            directory = Path(tempfile.mkdtemp(dir=self.outputs))
        return self.predict_into(directory, inputs, report, progress, timeline, debug_sink)

    @full_disk_in_one_line()
    def predict_into(
        self,
        directory: Path,
        inputs: Mapping[str, Any],
        report: Report,
        progress: Progress | None = None,
        timeline: Timeline | None = None,
        debug_sink: DebugSink | None = None,
        check: Check = never_canceled,
        latent_sink: LatentSink | None = None,
    ) -> list[Path]:
        """Generates the pictures that the inputs ask for and returns their files, in ``directory``, which is deleted
        when that fails.

        ``report`` gets every metric by name; progress goes to standard error unless ``progress`` takes it;
        ``debug_sink`` gets intermediate images of the stages, ``latent_sink`` the latents after every step; ``check``
        can end the prediction after every step, tile and picture. Raises
        :class:`backend.core.errors.InputError` for inputs that cannot be honoured, before any model runs.
        """
        from backend.devices.probe import host_memory  # imports torch, which the set-up has configured

        timeline = timeline or self.new_timeline()
        moved, retries_before = self.models.stats().bytes_moved, self.fallback.retries.copy()
        try:
            with timeline.span("inputs"):
                request = self.checks.request(inputs)
                check_room(request, self.profile.canvas, host_memory()[1])
            with ProgressBars() as bars, self.runtime.activate():
                show = progress or bars
                loras = lora_files(self.loras, request, inputs, show, timeline, check, self.diffusion.adapters.check)
                if self.upsampler:
                    request = upsampled(request, self.upsampler, timeline, check)
                batch = self.pipeline.run(request, show, timeline, debug_sink, check, loras, latent_sink)
            _report_results(report, request, batch)
            check()
            with timeline.span("outputs"):
                files = write_pictures(batch, request, directory, self.model)
        except BaseException:
            shutil.rmtree(directory)
            raise
        finally:
            for name, value in timeline.metrics().items():
                report(name, value)
            for step, retries in self.fallback.retries.items():
                report(f"out_of_memory_retries.{step}", retries - retries_before[step])
            report("model_bytes_moved", self.models.stats().bytes_moved - moved)
        logger.info("seed %d\n%s", request.seed, timeline.table())
        return files

    @property
    def checks(self) -> InputChecks:
        """How inputs become a request here."""
        selection = self.extensions
        installed = Installed(
            self.profile,
            self.detectors,
            self.upscalers,
            self.restores_faces,
            selection.disabled,
            selection.missing,
            self.defaults,
            self.left_out,
            self.loras.sources,
        )
        return InputChecks(self.schema, selection, installed)

    def new_timeline(self) -> Timeline:
        """For one prediction; it measures the device's memory."""
        return self.runtime.timeline()

    def latent_preview(self) -> LatentPreview:
        """What turns latents into small pictures, fitted to this model's autoencoder."""
        from modules.diffusion.latent_preview import LatentPreview

        with self.runtime.activate():
            return LatentPreview.fitted(self.diffusion.encode_images, self.profile.canvas.native)

    def warm_up(self, requests: Iterable[ImageRequest]) -> None:
        """Generates pictures that nobody sees. Raises :class:`backend.core.errors.WeightsError` where they show that
        weights are damaged."""
        with self.runtime.activate():
            for request in requests:
                self.pipeline.run(request)


def _report_results(report: Report, request: ImageRequest, batch: ImageBatch) -> None:
    """The metrics that are known once the pictures are made."""
    report("seed", request.seed)
    if request.adetailer:
        parameters = [picture.parameters for picture in batch.pictures]
        report("adetailer.units", unit_results(parameters, len(request.adetailer)))
    for name, count in batch.metrics.items():
        report(name, count)
    if batch.notices:
        report("notices", list(batch.notices))


def since_launch(served: bool) -> Timeline:
    """A timeline that begins with this process, or with Cog's server, its parent, where it is ``served``."""
    began = process_began()
    timeline = Timeline(begin=process_began(os.getppid()) if served else began)
    if served:
        timeline.passed("server", began)
    return timeline


def start_process(settings: Settings, served: bool, schema: InputSchema | None = None) -> Service:
    """:func:`start` for a process that does nothing else: timed from its launch, and with the set-up's objects frozen
    for Python's garbage collector.

    A set-up creates some 400,000 objects that live as long as the process. Searching them for cycles costs a sixth of
    the imports, a pause of a second now and then, and more than a second at the end of the process.
    """
    if served:
        end_with_parent()
    gc.disable()
    try:
        service = start(settings, since_launch(served), schema=schema)
    finally:
        gc.enable()
    gc.freeze()
    if served:
        write_atomic(service.outputs.parent / INSTALLED_FILE, service.checks.installed.to_json())
    return service


@full_disk_in_one_line()
def start(
    settings: Settings,
    timeline: Timeline | None = None,
    *,
    families: Families = FAMILIES,
    stages: Iterable[type[Stage]] = STAGES,
    schema: InputSchema | None = None,
) -> Service:
    """Probes the device, loads every model once, and warms up. Raises a :class:`backend.core.errors.UserError` that
    says what to do.

    ``timeline`` gets the spans of the set-up. ``families`` are those that the model may be of, ``stages`` are those of
    the pipeline, in order, and ``schema`` has their inputs; by default those of ``predict.py``.
    """
    logging.basicConfig(level=settings.log_level, format="%(name)s: %(message)s")
    timeline = timeline or Timeline()
    selection = select(settings, stages)
    set_environment(settings, os.environ, sys.modules)
    timeline.passed("environment")
    with timeline.span("torch"):
        import torch

        from backend.devices.probe import probe_device, usable_threads

        torch.set_num_threads(settings.cpu_threads or usable_threads())
        device = probe_device(settings.device, settings.dtype)
    with timeline.span("imports"):
        from backend.devices.torchvision_ops import ensure_torchvision_operators

        ensure_torchvision_operators()
        from modules.app.wiring import set_up
    scratch = scratch_for_process()  # all that is written while the service lives
    parts = set_up(settings, selection, families, device, scratch, timeline)
    service = _service(schema or InputSchema(), settings, parts, timeline, scratch)
    if settings.warm_up:
        with timeline.span("warm_up"):
            thorough = device.kind == "cuda" or parts.optimizer.compiles
            enabled = {stage.name for stage in service.pipeline.stages}
            service.warm_up(warm_up_requests(service.profile, enabled, thorough, bool(settings.emulate_vram)))
    _log_set_up(service, settings, parts)
    return service


def _service(schema: InputSchema, settings: Settings, parts: SetUp, timeline: Timeline, scratch: Path) -> Service:
    """The service made of these parts, with its folders in ``scratch``."""
    outputs, uploads = scratch / "outputs", Uploads(scratch / "uploads")
    for folder in (outputs, uploads.folder):
        folder.mkdir()
    from modules.app.wiring import lora_store

    assembled = parts.assembled
    return Service(
        schema=schema,
        runtime=parts.runtime,
        profile=assembled.profile,
        spec=parts.spec,
        detectors=assembled.detectors,
        upscalers=assembled.upscalers,
        restores_faces=assembled.restores_faces,
        defaults=DEFAULTS[settings.profile],
        left_out=assembled.left_out,
        extensions=parts.selection,
        models=parts.models,
        fallback=parts.fallback,
        upsampler=assembled.upsampler,
        pipeline=assembled.pipeline,
        model=assembled.model,
        timeline=timeline,
        outputs=outputs,
        uploads=uploads,
        loras=lora_store(settings),
        diffusion=assembled.diffusion,
    )


def _log_set_up(service: Service, settings: Settings, parts: SetUp) -> None:
    from backend.planning.report import plan_as_text

    device, plan = service.runtime.device, plan_as_text(service.runtime.plan, service.spec)
    logger.info("%s on %s (%s)\n%s", service.profile.name, device.name, device.dtype, plan)
    logger.info("optimizations\n%s", parts.optimizer.table())
    seconds, statistics = service.timeline.metrics(), service.models.stats()
    imports = {name: seconds[f"stages.{name}.seconds"] for name in service.extensions.enabled}
    groups = {"detectors": tuple(parts.files.detectors), "upscaler": tuple(parts.files.cached_upscalers.values())}
    loads = statistics.load_seconds
    loads = {**loads, **{name: sum(loads.get(one, 0) for one in group) for name, group in groups.items()}}
    logger.info("extensions\n%s", service.extensions.report(imports, loads))
    if unused := service.extensions.unused_settings(settings):
        logger.warning("settings without effect, since what reads them is turned off: %s", ", ".join(unused))
    logger.info("set-up\n%s\n%s", service.timeline.table(), statistics.table())
    logger.info("set-up as JSON: %s", json.dumps(seconds))
