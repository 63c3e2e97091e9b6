"""The service that checks finished pictures with the safety checker of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback, Step, Strategy
from modules.safety.discovery import SAFETY_CHECKER
from modules.safety.networks import SafetyNetwork


@dataclass(frozen=True)
class SafetyService:
    """``label`` is the checker's name; ``threshold`` the score, 0 to 1, from which a class counts."""

    models: ModelCache
    fallback: OomFallback
    label: str
    threshold: float

    def objections(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """For every RGB image the classes that it must not show and does, with their scores."""

        def check(together: int) -> list[dict[str, float]]:
            with self.models.on_device(SAFETY_CHECKER) as (module,):
                network = cast(SafetyNetwork, module)
                parts = [images[start : start + together] for start in range(0, len(images), together)]
                return [one for part in parts for one in network.scores(part, network.objectionable, self.threshold)]

        strategies = [
            Strategy("all pictures together", partial(check, len(images))),
            Strategy("one picture at a time", partial(check, 1)),
        ]
        sides = tuple(side for image in images for side in image.size)
        return self.fallback.run(Step("safety_check", (SAFETY_CHECKER,), sides, "num_outputs"), strategies)
