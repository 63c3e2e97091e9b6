"""Set-up and prediction as a whole: from settings to a service that takes inputs and gives files."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend.computer import Computer, plan_device
from backend.devices import probe_device, usable_threads
from backend.families import ModelSizes
from backend.input_schema import InputSchema
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder
from backend.plan_report import plan_as_text
from backend.settings import Settings, parse_bytes
from backend.timeline import Timeline
from backend.torchvision_operators import ensure_torchvision_operators
from modules.family import Family
from modules.inputs import build_request
from modules.outputs import ModelInfo, write_pictures
from modules.pipeline import ImagePipeline, Progress
from modules.progress import ProgressBars
from modules.request import ImageRequest

logger = logging.getLogger(__name__)

Report = Callable[[str, float], None]


@dataclass
class Service:
    """Everything that lives as long as the server: the models, and the stages that borrow them."""

    computer: Computer
    family: Family
    sizes: ModelSizes
    detectors: tuple[str, ...]
    models: ModelCache
    ladder: Ladder
    pipeline: ImagePipeline
    model: ModelInfo
    timeline: Timeline
    outputs: Path

    def predict(self, inputs: Mapping[str, Any], report: Report, progress: Progress | None = None, timeline: Timeline | None = None) -> list[Path]:
        """Makes the pictures that the inputs ask for and gives their files.

        ``report`` gets every metric by name; progress goes to standard error unless ``progress`` takes it. The files of the
        prediction before are deleted first. Raises :class:`backend.errors.InputError` for inputs that cannot be honoured, before
        any model runs.
        """
        for old in self.outputs.iterdir():
            shutil.rmtree(old)
        directory = Path(tempfile.mkdtemp(dir=self.outputs))
        timeline = timeline or self.new_timeline()
        moved, retries_before = self.models.stats().bytes_moved, self.ladder.retries.copy()
        try:
            with timeline.span("inputs"):
                # the server lets 2.0 through for a whole number; here it becomes one
                request = build_request(InputSchema().validate(inputs), self.family.canvas, self.detectors)
            with ProgressBars() as bars, self.computer.computing():
                batch = self.pipeline.run(request, progress or bars, timeline)
            with timeline.span("outputs"):
                files = write_pictures(batch, request, directory, self.model)
        except BaseException:
            shutil.rmtree(directory)
            raise
        finally:
            for name, value in timeline.metrics().items():
                report(name, value)
            for step, retries in self.ladder.retries.items():
                report(f"out_of_memory_retries.{step}", retries - retries_before[step])
            report("model_bytes_moved", self.models.stats().bytes_moved - moved)
        logger.info("seed %d\n%s", request.seed, timeline.table())
        return files

    def new_timeline(self) -> Timeline:
        """For one prediction; it measures the device's memory."""
        return self.computer.timeline()

    def warm_up(self) -> None:
        """Draws one picture in a single step, so that kernels are chosen and memory is reserved before the first request."""
        side = self.family.native
        with self.computer.computing():
            self.pipeline.run(ImageRequest(prompt="warm-up", width=side, height=side, seed=0, num_inference_steps=1))


def start(settings: Settings) -> Service:
    """Probes the device, loads every model once, and warms up. Raises a :class:`backend.errors.UserError` that says what to mend."""
    logging.basicConfig(level=settings.log_level, format="%(name)s: %(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's library is imported, below: nothing here ever asks a hub
    timeline = Timeline()
    with timeline.span("device"):
        torch.set_num_threads(settings.cpu_threads or usable_threads())
        device = probe_device(settings.device, settings.dtype)
    with timeline.span("imports"):
        ensure_torchvision_operators()
        from modules.assembly import assemble, find_files
    # one folder for all that is written while the service lives; it goes when the process ends
    scratch = Path(tempfile.mkdtemp(prefix="flux-adetailer-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    with timeline.span("plan"):
        files = find_files(settings)
        sizes = files.sizes()
        emulated = parse_bytes(settings.emulate_vram) if settings.emulate_vram else None
        computer = plan_device(device, sizes, files.workload(settings), emulated, settings.quality)
    models = ModelCache(device.torch_device, computer.transfers, computer.kinds, computer.plan.inference_bytes)
    ladder = Ladder(models.make_leaner)
    assembled = assemble(files, settings, device.dtype, computer.plan, models, ladder, scratch)
    with timeline.span("models"):
        for name in models.names():
            with timeline.span(name):
                models.load(name)
    outputs = scratch / "outputs"
    outputs.mkdir()
    service = Service(computer, assembled.family, sizes, (files.face_detector.name,), models, ladder, assembled.pipeline, assembled.model, timeline, outputs)
    if settings.warm_up:
        with timeline.span("warm_up"):
            service.warm_up()
    logger.info("%s on %s (%s)\n%s", assembled.family.name, device.name, device.dtype, plan_as_text(computer.plan, sizes))
    logger.info("set-up\n%s\n%s", timeline.table(), models.stats().table())
    return service
