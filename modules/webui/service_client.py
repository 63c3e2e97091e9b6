"""The service in this process, for the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from backend.core.files import atomic_files
from backend.planning.report import plan_as_text
from modules.app.service import Service
from modules.input_checks import InputChecks
from modules.pipeline.adetailer import BEFORE
from modules.webui.client import Drawn, Watch

if TYPE_CHECKING:
    import torch

LANCZOS = Image.Resampling.LANCZOS


class ServiceClient:
    """A :class:`modules.webui.client.Client`. It must be made and called in one thread, that of the models."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.schema = service.schema
        self.model = service.model.name
        self.plan = plan_as_text(service.runtime.plan, service.spec)
        self._preview = service.latent_preview()

    @property
    def checks(self) -> InputChecks:
        return self.service.checks

    def predict(self, inputs: Mapping[str, Any], folder: Path, watch: Watch) -> Drawn:
        metrics: dict[str, Any] = {}
        before: dict[str, Image.Image] = {}

        def keep(name: str, image: Image.Image) -> None:
            if name.startswith(BEFORE):
                before[name] = image

        def show(latents: Callable[[], torch.Tensor]) -> None:
            if watch.wants_preview():
                watch.preview(self._preview.pictures(latents()))

        work = folder / "work"
        work.mkdir()
        files = self.service.predict_into(
            work, inputs, metrics.__setitem__, watch.progress, None, keep, watch.check, latent_sink=show
        )
        pictures = [file.rename(folder / file.name) for file in files]
        shutil.rmtree(work)
        return Drawn(pictures, _saved(list(before.values()), pictures, folder), metrics)

    def close(self) -> None:
        """The service ends with its process."""


def _saved(images: list[Image.Image], finished: list[Path], folder: Path) -> list[Path]:
    """The images at the size of the finished pictures, as files."""
    if len(images) != len(finished):  # the safety checker has withheld one
        return []
    targets = [folder / f"before-{number}.webp" for number in range(len(images))]
    with atomic_files(targets) as parts:
        for image, picture, part in zip(images, finished, parts, strict=True):
            with Image.open(picture) as final:
                image.resize(final.size, LANCZOS).save(part, "WEBP", quality=95)
    return targets
