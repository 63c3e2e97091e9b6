"""Detects with any installed detector, by its name. Those with a file are models of the cache like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backend.core.settings import Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback, Step, Strategy
from backend.weights.resolver import require_detector
from modules.detection.classes import TEXT_MODEL, ClassSet
from modules.detection.detections import Detections
from modules.detection.packaged import class_sets, finders
from modules.detection.sam2 import MODEL as SAM2
from modules.detection.sam2 import find_sam2, load_sam2, outlined
from modules.detection.text_encoder import ClassNameEncoder
from modules.detection.yolo import Detector, load_detector_network


class DetectionService:
    """Registers the detectors' files with the cache and borrows the networks from there.

    Args:
        files: By name (:func:`~modules.detection.registry.find_detectors`); the first is the default.
        settings: Say where the text model for other classes is looked for.
    """

    def __init__(
        self, files: Mapping[str, Path], settings: Settings, models: ModelCache, fallback: OomFallback
    ) -> None:
        self.default = next(iter(files))
        sam2 = find_sam2(settings)
        if sam2:
            models.register(SAM2, partial(load_sam2, sam2))
        self._outlines = sam2 is not None
        self.class_sets: dict[str, ClassSet] = {
            **dict.fromkeys(files, ClassSet(())),
            **class_sets(self._outlines),
        }
        """By name; empty for a detector whose file has not been read yet."""
        self._packaged = finders()
        self._models, self._fallback = models, fallback
        folder = settings.weights_path / TEXT_MODEL
        self._class_names = ClassNameEncoder(folder) if folder.is_dir() else None
        for name, path in files.items():
            models.register(name, partial(self._load, name, path))

    def detect(
        self, images: Sequence[Image.Image], confidence: float, model: str = "", classes: str = "", sam: bool = False
    ) -> list[Detections]:
        """What one detector finds in every image, in one batch where memory allows.

        Args:
            model: The detector's name; "" is the default one.
            classes: Only these, separated by commas; "" = all that it knows.
            sam: The masks are those that SAM 2 sees in the boxes.
        """
        name = model or self.default
        if name in self._packaged:
            found = self._packaged[name].detect(images, confidence, name)
        else:
            found = self._detected(images, confidence, name, classes)
        return [self._outlined(*one) for one in zip(images, found, strict=True)] if sam else found

    def _outlined(self, image: Image.Image, found: Detections) -> Detections:
        def outline() -> Detections:
            with self._models.on_device(SAM2) as (network,):
                return outlined(network, image, found)

        step = Step("outline", (SAM2,), image.size, "ad_sam")
        return self._fallback.run(step, [Strategy("one picture at a time", outline)])

    def _detected(self, images: Sequence[Image.Image], confidence: float, name: str, classes: str) -> list[Detections]:

        def detect(batch_size: int) -> list[Detections]:
            with self._models.on_device(name) as (network,):
                detector, numbers = self._detector(name, network, classes)
                batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
                return [found for batch in batches for found in detector.detect(batch, confidence, numbers)]

        strategies = [
            Strategy("all pictures together", partial(detect, len(images))),
            Strategy("one picture at a time", partial(detect, 1)),
        ]
        sides = tuple(side for image in images for side in image.size)
        lower = "num_outputs" if len(images) > 1 else "size of the picture"
        return self._fallback.run(Step("detect", (name,), sides, lower), strategies)

    def _detector(self, name: str, network: torch.nn.Module, classes: str) -> tuple[Detector, list[int] | None]:
        known = self.class_sets[name]
        wanted = known.parse(classes)
        if not wanted:
            return Detector(network), None
        if all(word in known.classes for word in wanted):
            return Detector(network), [known.classes.index(word) for word in wanted]
        assert self._class_names is not None  # without it the request was refused before anything ran
        return Detector(network, self._class_names.encode(wanted)), None

    def _load(self, name: str, path: Path) -> torch.nn.Module:
        network: Any = load_detector_network(path)
        names = network.names if isinstance(network.names, list) else network.names.values()
        classes = tuple(str(name) for name in names)
        require_detector(path.name, task_of(network), classes)
        world = hasattr(network, "txt_feats")
        self.class_sets[name] = ClassSet(classes, world, world and self._class_names is not None, self._outlines)
        return network  # type: ignore[no-any-return]


def task_of(network: Any) -> str:
    """Whether a network from :func:`load_detector_network` finds boxes or outlines as well."""
    return (
        "segment"
        if type(network).__name__ == "SegmentationModel" or getattr(network, "task", "") == "segment"
        else "detect"
    )
