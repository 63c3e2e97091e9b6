"""Finds with any detector that is there, by its name. Those with a file are models of the cache, read once and lent
like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backend.core.settings import Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback, Strategy
from backend.weights.resolver import require_detector
from modules.detection.classes import TEXT_MODEL, ClassSet
from modules.detection.detections import Detections
from modules.detection.mediapipe import NAMES, MediaPipeFaces, why_not
from modules.detection.yolo import Detector, load_detector_network


class Detectors:
    """Registers its files with the cache and borrows them from there.

    Args:
        files: By name (:func:`~modules.detection.registry.find_detectors`); the first is the one that the name ""
            stands for.
        settings: Tell where the text model for classes in words would be.
    """

    def __init__(
        self, files: Mapping[str, Path], settings: Settings, models: ModelCache, fallback: OomFallback
    ) -> None:
        self.default = next(iter(files))
        mediapipe = () if why_not() else NAMES
        self.class_sets: dict[str, ClassSet] = {
            **dict.fromkeys(files, ClassSet(())),
            **dict.fromkeys(mediapipe, ClassSet(("face",))),
        }
        """Those with a file know nothing until they are read."""
        self._mediapipe = MediaPipeFaces()
        self._models, self._fallback = models, fallback
        self._text_model = folder if (folder := settings.weights_path / TEXT_MODEL).is_dir() else None
        self._features = lru_cache(maxsize=32)(self._read_features)
        for name, path in files.items():
            models.register(name, partial(self._load, name, path))

    def detect(
        self, images: Sequence[Image.Image], confidence: float, model: str = "", classes: str = ""
    ) -> list[Detections]:
        """What one detector finds in every image, all of them together where memory allows.

        Args:
            model: Its name; "" is the default one.
            classes: Only these, with commas between them; "" = all that it knows.
        """
        name = model or self.default
        if name in NAMES:
            return self._mediapipe.detect(images, confidence, name)

        def detect(together: int) -> list[Detections]:
            with self._models.on_device(name) as (network,):
                detector, numbers = self._detector(name, network, classes)
                batches = [images[start : start + together] for start in range(0, len(images), together)]
                return [found for batch in batches for found in detector.detect(batch, confidence, numbers)]

        strategies = [
            Strategy("all pictures together", partial(detect, len(images))),
            Strategy("one picture at a time", partial(detect, 1)),
        ]
        return self._fallback.run("detect", strategies, "num_outputs")

    def _detector(self, name: str, network: torch.nn.Module, classes: str) -> tuple[Detector, list[int] | None]:
        known = self.class_sets[name]
        wanted = known.wanted(classes)
        if not wanted:
            return Detector(network), None
        if all(word in known.classes for word in wanted):
            return Detector(network), [known.classes.index(word) for word in wanted]
        return Detector(network, self._features(wanted)), None

    def _load(self, name: str, path: Path) -> torch.nn.Module:
        network: Any = load_detector_network(path)
        classes = tuple(
            str(word)
            for word in dict(enumerate(network.names) if isinstance(network.names, list) else network.names).values()
        )
        require_detector(path.name, task_of(network), classes)
        world = hasattr(network, "txt_feats")
        self.class_sets[name] = ClassSet(classes, world, world and self._text_model is not None)
        return network  # type: ignore[no-any-return]

    def _read_features(self, classes: tuple[str, ...]) -> torch.Tensor:
        """Of every class a vector of length 1, 1 x classes x width. The text model is read from disk: asked for
        rarely, it is not kept."""
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        assert self._text_model is not None  # else the classes are refused before anything runs
        tokenizer = CLIPTokenizer.from_pretrained(self._text_model, local_files_only=True)
        encoder: Any = CLIPTextModelWithProjection.from_pretrained(
            self._text_model, local_files_only=True, use_safetensors=True
        ).eval()
        with torch.inference_mode():
            features: torch.Tensor = encoder(
                **tokenizer(list(classes), padding=True, truncation=True, return_tensors="pt")
            ).text_embeds
            return torch.nn.functional.normalize(features, dim=-1)[None]


def task_of(network: Any) -> str:
    """Whether a network from :func:`load_detector_network` finds boxes or outlines as well."""
    return (
        "segment"
        if type(network).__name__ == "SegmentationModel" or getattr(network, "task", "") == "segment"
        else "detect"
    )
