"""What detectors are trained on: drawings of faces, hands and persons, with boxes and masks that are known exactly.

Half of the training pictures are softened, because the detectors work on the pictures of a small autoencoder and
transformer, which are less clean than drawings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from PIL import Image, ImageFilter

from modules.detection.detections import Mask
from training.data.drawing import draw_scene, face_boxes
from training.data.figure_drawing import draw_figures, draw_portraits
from training.data.figures import SHAPES, Figures, sample_figures
from training.data.scene import Placement, Scene, sample_scene
from training.data.shapes import Box
from training.data.subjects import draw_subject
from training.data.things import sample_things

SPECK = 4
"""Pixels; a piece of a mask that covers no more is left out of the label."""


@dataclass(frozen=True)
class Sample:
    """A picture, and what is to be found in it: boxes in pixels, and for a detector that segments a mask H x W for
    every box."""

    image: Image.Image
    boxes: list[Box]
    masks: tuple[Mask, ...] = ()


def labelled(label: str, subject: Scene | Figures) -> Sample:
    """What is drawn of a subject, and where in it the things of this label are."""
    if label == "face":
        return Sample(draw_subject(subject), face_boxes(subject if isinstance(subject, Scene) else subject.scene))
    drawn = draw_portraits(subject) if isinstance(subject, Scene) else draw_figures(subject)
    return (
        Sample(drawn.image, list(drawn.hands))
        if label == "hand"
        else Sample(drawn.image, list(drawn.person_boxes), drawn.persons)
    )


def draw_faces(rng: random.Random) -> Sample:
    """A portrait or figures, and the faces; now and then a face that fills the frame, or a thing or an animal, which
    have none that is a person's."""
    chance = rng.random()
    if chance < 0.15:
        return Sample(draw_subject(sample_things(rng, rng.choice(SHAPES[:5]))), [])
    if chance < 0.4:
        return labelled("face", sample_figures(rng))
    scene = sample_scene(rng)
    chance = rng.random()
    if chance < 0.12:
        half = rng.uniform(0.42, 0.58) * min(scene.width, scene.height)
        place = Placement(
            scene.width * rng.uniform(0.45, 0.55), scene.height * rng.uniform(0.45, 0.55), half, rng.uniform(-7, 7)
        )
        scene = replace(scene, people=scene.people[:1], placements=(place,))
    elif chance < 0.15:
        scene = replace(scene, people=(), placements=())
    return labelled("face", scene)


def draw_hands(rng: random.Random) -> Sample:
    """Figures and their hands; one picture in eight is a portrait, which shows none."""
    if rng.random() < 0.12:
        return Sample(draw_scene(sample_scene(rng)), [])
    return labelled("hand", sample_figures(rng))


def draw_persons(rng: random.Random) -> Sample:
    """Figures, one picture in four a portrait, now and then nobody."""
    chance = rng.random()
    if chance >= 0.25:
        return labelled("person", sample_figures(rng))
    scene = sample_scene(rng)
    return labelled("person", replace(scene, people=(), placements=()) if chance < 0.03 else scene)


@dataclass(frozen=True)
class Kind:
    """One of our detectors: the word for what it finds, how, at which size in pixels, and in what; ``pictures`` and
    ``epochs`` of its training."""

    label: str
    task: str  # detect | segment
    imgsz: int
    draw: Callable[[random.Random], Sample]
    pictures: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.label}_detector"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "face": Kind("face", "detect", 256, draw_faces, 700, 9),
        "hand": Kind("hand", "detect", 384, draw_hands, 1000, 12),
        "person": Kind("person", "segment", 192, draw_persons, 1000, 10),
    }
)


def soften(image: Image.Image, rng: random.Random) -> Image.Image:
    """The drawing as a small model would give it: fewer details, blotches, grain."""
    share = rng.uniform(0.3, 1.0)
    small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
    soft = small.resize(image.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = (
        noise.normal(0, 1, (image.height // 8 + 1, image.width // 8 + 1, 3))
        .repeat(8, 0)
        .repeat(8, 1)[: image.height, : image.width]
    )
    fine = noise.normal(0, 1, (image.height, image.width, 3))
    dirty = np.asarray(soft) + rng.uniform(0, 14) * coarse + rng.uniform(0, 10) * fine
    return Image.fromarray(dirty.clip(0, 255).astype(np.uint8))


def outline(mask: Mask) -> list[tuple[float, float]]:
    """A mask as one polygon, in fractions of its size: filled by the even-odd rule it is the mask again, holes and
    loose parts included.

    The line goes home to the first point after every contour, so those between contours run back over themselves and
    enclose nothing.
    """
    height, width = mask.shape
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [ring[:, 0] for ring in contours if len(ring) >= 3 and cv2.contourArea(ring) > SPECK]
    return [((x + 0.5) / width, (y + 0.5) / height) for ring in rings for x, y in (*ring, ring[0], rings[0][0])]


def label_lines(sample: Sample) -> str:
    """What ultralytics reads beside a picture: a box, or a polygon, a line."""
    image = sample.image
    if sample.masks:
        polygons = [polygon for mask in sample.masks if (polygon := outline(mask))]
        return "".join(f"0 {' '.join(f'{x:.5f} {y:.5f}' for x, y in polygon)}\n" for polygon in polygons)
    centred = [
        ((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height, (x2 - x1) / image.width, (y2 - y1) / image.height)
        for x1, y1, x2, y2 in sample.boxes
    ]
    return "".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in centred)


def softened(sample: Sample, rng: random.Random, share: float) -> Sample:
    """The sample, softened in ``share`` of all cases."""
    return replace(sample, image=soften(sample.image, rng)) if rng.random() < share else sample


def write_dataset(folder: Path, label: str, samples: Iterable[Sample]) -> Path:
    """Pictures and labels as ultralytics reads them, every twentieth set apart; returns the description."""
    for index, sample in enumerate(samples):
        part = "val" if index % 20 == 0 else "train"
        for folders in ("images", "labels"):
            (folder / folders / part).mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / "images" / part / f"{index}.png")
        (folder / "labels" / part / f"{index}.txt").write_text(label_lines(sample))
    description = folder / "data.yaml"
    description.write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": [label]})
    )
    return description
