"""Set-up and prediction as a whole: from settings to a service that takes inputs and gives files.

torch and what needs it are imported by :func:`start`, after the environment is as it should be, and inside the spans of
the set-up.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.settings import Settings
from backend.core.timeline import Timeline, process_began
from backend.core.units import parse_bytes
from backend.devices.cuda_allocator import apply_allocator_conf
from backend.planning.model_specs import ModelSizes
from modules.detection.classes import ClassSet
from modules.extension_optimizer import Selection, select
from modules.families.family import Family
from modules.output.image_writer import ModelInfo, write_pictures
from modules.output.progress import ProgressBars
from modules.pipeline.base import DebugSink, ImagePipeline, Progress
from modules.prompting.prompt_upsampler import PromptUpsampler, upsampled
from modules.request.image_request import ImageRequest
from modules.request.parser import build_request
from modules.request.uploads import Uploads

if TYPE_CHECKING:
    from backend.devices.runtime import DeviceRuntime
    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback

logger = logging.getLogger(__name__)

Report = Callable[[str, float], None]

SPIN_COUNT = "10000"
"""How often a thread of OpenMP asks for the next piece of work before it sleeps; GNU's own number is 300,000. As long
as it asks it keeps its core from whom it waits for: with a neighbour on one core of two a prediction took seven times
as long, now 2.5 times; asking less often than this costs time on an idle machine (``python -m
bench.speed.neighbour``)."""


@dataclass
class Service:
    """Everything that lives as long as the server: the models, and the stages that borrow them."""

    runtime: DeviceRuntime
    family: Family
    sizes: ModelSizes
    detectors: Mapping[str, ClassSet]
    upscalers: tuple[str, ...]
    restores_faces: bool
    extensions: Selection
    models: ModelCache
    fallback: OomFallback
    upsampler: PromptUpsampler | None
    pipeline: ImagePipeline
    model: ModelInfo
    timeline: Timeline
    outputs: Path
    uploads: Uploads

    def predict(
        self,
        inputs: Mapping[str, Any],
        report: Report,
        progress: Progress | None = None,
        timeline: Timeline | None = None,
        debug_sink: DebugSink | None = None,
    ) -> list[Path]:
        """Makes the pictures that the inputs ask for and gives their files.

        ``report`` gets every metric by name; progress goes to standard error unless ``progress`` takes it;
        ``debug_sink`` gets what the stages found on their way. The files of the prediction before are deleted first.
        Raises :class:`backend.core.errors.InputError` for inputs that cannot be honoured, before any model runs.
        """
        for old in self.outputs.iterdir():
            shutil.rmtree(old)
        self.uploads.delete_others(inputs)
        directory = Path(tempfile.mkdtemp(dir=self.outputs))
        timeline = timeline or self.new_timeline()
        moved, retries_before = self.models.stats().bytes_moved, self.fallback.retries.copy()
        try:
            with timeline.span("inputs"):
                # the server lets 2.0 through for a whole number; here it becomes one
                schema = InputSchema()
                wanted = self.extensions.turn_off(schema.validate(inputs), schema.defaults)
                request = build_request(wanted, self.family, self.detectors, self.upscalers, self.restores_faces)
            with ProgressBars() as bars, self.runtime.activate():
                request = upsampled(request, self.upsampler, timeline)
                batch = self.pipeline.run(request, progress or bars, timeline, debug_sink)
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

    def new_timeline(self) -> Timeline:
        """For one prediction; it measures the device's memory."""
        return self.runtime.timeline()

    def warm_up(self) -> None:
        """Draws one picture in a single step, so that kernels are chosen and memory is reserved before the first
        request."""
        side = self.family.native
        with self.runtime.activate():
            self.pipeline.run(ImageRequest(prompt="warm-up", width=side, height=side, seed=0, num_inference_steps=1))


def since_launch(served: bool) -> Timeline:
    """A timeline that begins with this process; ``served``: with Cog's server, which started this process."""
    began = process_began()
    timeline = Timeline(begin=process_began(os.getppid()) if served else began)
    if served:
        timeline.passed("server", began)
    return timeline


def start_process(settings: Settings, served: bool) -> Service:
    """:func:`start` for a process that does nothing else: counted from its launch, and set apart from Python's garbage
    collector.

    The modules and models of a set-up are some 400,000 objects that live as long as the process. Looking through them
    for cycles costs a sixth of the imports, a pause of a second now and then, and more than a second at the end of the
    process.
    """
    gc.disable()
    try:
        service = start(settings, since_launch(served))
    finally:
        gc.enable()
    gc.freeze()
    return service


def start(settings: Settings, timeline: Timeline | None = None) -> Service:
    """Probes the device, loads every model once, and warms up. Raises a :class:`backend.core.errors.UserError` that
    says what to mend.

    ``timeline`` gets the spans of the set-up.
    """
    logging.basicConfig(level=settings.log_level, format="%(name)s: %(message)s")
    timeline = timeline or Timeline()
    extensions = select(settings)
    os.environ.setdefault(
        "HF_HUB_OFFLINE", "1"
    )  # read when the hub's library is imported, below: nothing here ever asks a hub
    apply_allocator_conf(settings.allocator_conf, os.environ)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch loads OpenMP
    timeline.passed("environment")
    with timeline.span("torch"):
        import torch

        from backend.devices.probe import probe_device, usable_threads

        torch.set_num_threads(settings.cpu_threads or usable_threads())
        device = probe_device(settings.device, settings.dtype)
    with timeline.span("imports"):
        from backend.devices.torchvision_ops import ensure_torchvision_operators

        ensure_torchvision_operators()
        from backend.devices.runtime import plan_device
        from backend.model_cache_optimizer import ModelCache
        from backend.offload.oom_fallback import OomFallback
        from backend.planning.report import plan_as_text
        from modules.app.model_files import find_files
        from modules.app.wiring import assemble
        from modules.flux_memory_optimizer import FluxMemoryOptimizer
    # one folder for all that is written while the service lives; it goes when the process ends
    scratch = Path(tempfile.mkdtemp(prefix="flux-adetailer-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    with timeline.span("plan"):
        files = find_files(settings)
        sizes = files.sizes(device.dtype, device.upscaler_dtype)
        emulated = parse_bytes(settings.emulate_vram) if settings.emulate_vram else None
        runtime = plan_device(device, sizes, files.workload(settings), emulated, settings.weight_precision)
    optimizer = FluxMemoryOptimizer(device, runtime.plan, settings, files.cached_upscalers.values())
    optimizer.set_process_options()
    models = ModelCache(
        device.torch_device,
        runtime.transfers,
        files.kinds(runtime.kinds),
        runtime.plan.inference_bytes,
        optimizer.improve,
    )
    fallback = OomFallback(models.downgrade)
    with timeline.span("stages"):
        assembled = assemble(files, settings, device, runtime.plan, models, fallback, scratch, timeline)
    with timeline.span("models"):
        for name in models.names():
            with timeline.span(name):
                models.load(name)
    outputs, uploads = scratch / "outputs", Uploads(scratch / "uploads")
    for folder in (outputs, uploads.folder):
        folder.mkdir()
    parts = assembled.upsampler, assembled.pipeline, assembled.model
    there = assembled.detectors, assembled.upscalers, assembled.restores_faces
    service = Service(
        runtime, assembled.family, sizes, *there, extensions, models, fallback, *parts, timeline, outputs, uploads
    )
    if settings.warm_up:
        with timeline.span("warm_up"):
            service.warm_up()
    logger.info(
        "%s on %s (%s)\n%s", assembled.family.name, device.name, device.dtype, plan_as_text(runtime.plan, sizes)
    )
    logger.info("optimizations\n%s", optimizer.table())
    seconds = timeline.metrics()
    imports = {name: seconds[f"stages.{name}.seconds"] for name in extensions.enabled}
    load_seconds = models.stats().load_seconds
    groups = {"detectors": tuple(files.detectors), "upscaler": tuple(files.cached_upscalers.values())}
    reading = {**load_seconds, **{name: sum(load_seconds[one] for one in group) for name, group in groups.items()}}
    logger.info("extensions\n%s", extensions.report(imports, reading))
    logger.info("set-up\n%s\n%s", timeline.table(), models.stats().table())
    logger.info("set-up as JSON: %s", json.dumps(seconds))
    return service
