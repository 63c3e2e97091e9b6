"""Who follows a run of a diffusion service, and may end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backend.core.cancellation import Check, never_canceled
from backend.core.timeline import Timeline

if TYPE_CHECKING:
    import torch

    from modules.diffusion.latent_preview import LatentSink

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps to do."""
StepReport = Callable[[int, int, "Callable[[], torch.Tensor] | None"], None]
"""The same, and a function that gives the packed latents of the finished picture, as far as they are known."""


@dataclass(frozen=True)
class Monitor:
    """The ``timeline`` gets a span for each piece of work. ``progress`` and ``latent_sink`` are called after every
    step; ``check``, which may end the run, also before every prompt and before every picture or tile that the
    autoencoder works on."""

    timeline: Timeline
    progress: Progress | None = None
    check: Check = never_canceled
    latent_sink: LatentSink | None = None

    def part(self, index: int, count: int) -> Monitor:
        """For one of ``count`` runs of equally many steps, which are told as one."""
        progress = self.progress
        if progress is None:
            return self
        return replace(self, progress=lambda done, total: progress(index * total + done, count * total))
