"""Trains the face detector: ``python -m training.detector --out DIR``.

A YOLOv8 of an eighth of the width with two detection levels instead of three, on drawings whose face boxes are known exactly.
Half of them are softened, because the detector works on the pictures of a small autoencoder and transformer, which are less
clean than drawings. ``--minutes`` ends the training early; the weights then depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from modules.adetailer.detection import Detector, load_detector_network, offline_ultralytics
from modules.adetailer.masks import Detections, Floats
from training.drawing import Box, draw_scene, face_boxes
from training.scene import Placement, sample_scene

logger = logging.getLogger(__name__)

NAME = "face_detector"
CONFIDENCE, IOU = 0.3, 0.5
ARCHITECTURE = {
    "nc": 1,
    "depth_multiple": 0.33,
    "width_multiple": 0.125,
    "backbone": [
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C2f", [128, True]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 6, "C2f", [256, True]],  # 4: one value for 8 x 8 pixels
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 6, "C2f", [512, True]],
        [-1, 1, "SPPF", [512, 5]],  # 7: one value for 16 x 16 pixels
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C2f", [256]],  # 10
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 7], 1, "Concat", [1]],
        [-1, 3, "C2f", [512]],  # 13
        [[10, 13], 1, "Detect", ["nc"]],
    ],
}


def draw_sample(rng: random.Random) -> tuple[Image.Image, list[Box]]:
    """A drawing and its face boxes in pixels; now and then a face that fills the frame, or nobody."""
    scene = sample_scene(rng)
    chance = rng.random()
    if chance < 0.12:
        half = rng.uniform(0.42, 0.58) * min(scene.width, scene.height)
        place = Placement(scene.width * rng.uniform(0.45, 0.55), scene.height * rng.uniform(0.45, 0.55), half, rng.uniform(-7, 7))
        scene = replace(scene, people=scene.people[:1], placements=(place,))
    elif chance < 0.15:
        scene = replace(scene, people=(), placements=())
    return draw_scene(scene), face_boxes(scene)


def soften(image: Image.Image, rng: random.Random) -> Image.Image:
    """The drawing as a small model would give it: fewer details, blotches, grain."""
    share = rng.uniform(0.3, 1.0)
    small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
    soft = small.resize(image.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = noise.normal(0, 1, (image.height // 8 + 1, image.width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[: image.height, : image.width]
    fine = noise.normal(0, 1, (image.height, image.width, 3))
    dirty = np.asarray(soft) + rng.uniform(0, 14) * coarse + rng.uniform(0, 10) * fine
    return Image.fromarray(dirty.clip(0, 255).astype(np.uint8))


def write_dataset(folder: Path, count: int, rng: random.Random) -> Path:
    """``count`` pictures and labels as ultralytics reads them, every twentieth set apart; returns the description."""
    for index in range(count):
        part = "val" if index % 20 == 0 else "train"
        image, boxes = draw_sample(rng)
        if rng.random() < 0.5:
            image = soften(image, rng)
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / part / f"{index}.png")
        centred = [((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height, (x2 - x1) / image.width, (y2 - y1) / image.height) for x1, y1, x2, y2 in boxes]
        (folder / "labels" / part / f"{index}.txt").write_text("".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in centred))
    description = folder / "data.yaml"
    description.write_text(yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": ["face"]}))
    return description


def train(folder: Path, pictures: int, imgsz: int, epochs: int, minutes: float | None, seed: int) -> torch.nn.Module:
    """The trained network: not fused, in evaluation mode, rounded to half precision as it will be stored."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):  # type: ignore[misc]
        """Trains only. The figures that count are those of the exported file, see :func:`evaluate`."""

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            pass

    (folder / "face.yaml").write_text(yaml.safe_dump(ARCHITECTURE))
    files = {"model": str(folder / "face.yaml"), "data": str(write_dataset(folder / "data", pictures, random.Random(seed))), "project": str(folder)}
    where = {"device": "cpu", "amp": False, "workers": 0, "cache": "ram", "plots": False, "val": False, "verbose": False, "pretrained": False, "seed": seed}
    course = {"imgsz": imgsz, "epochs": epochs, "time": minutes / 60 if minutes else None, "batch": 8, "nbs": 8, "close_mosaic": max(1, epochs // 3)}
    rates = {"optimizer": "AdamW", "lr0": 0.004, "lrf": 0.02, "cos_lr": True, "warmup_epochs": 0.5}
    changes = {"mosaic": 0.25, "scale": 0.4, "hsv_h": 0.0, "erasing": 0.0}  # drawings already vary in their colours
    trainer = Trainer(overrides=files | where | course | rates | changes)
    trainer.train()
    network: torch.nn.Module = trainer.ema.ema.half().float().eval()
    network.args = {"imgsz": imgsz}  # type: ignore[assignment]  # as ultralytics' own loader leaves it
    return network


def export(network: torch.nn.Module, out: Path, architecture: dict[str, object], task: str, names: Sequence[str], imgsz: int) -> None:
    """Writes ``out`` (NAME.safetensors, half precision) and NAME.yaml, as ``modules.adetailer.detection`` reads them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in network.state_dict().items()}, out)
    description = {"task": task, "names": list(names), "imgsz": imgsz, **architecture}
    out.with_suffix(".yaml").write_text(yaml.safe_dump(description, sort_keys=False, default_flow_style=None))


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of ``a`` (N x 4) with every box of ``b`` (M x 4): N x M."""
    corners = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = corners.clip(min=0).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return np.asarray(shared / (area_a[:, None] + area_b[None] - shared))


def score(found: Iterable[Detections], truth: Iterable[Sequence[Box]]) -> dict[str, float]:
    """Recall and precision at IoU 0.5, and how confident the detector is of the faces it finds.

    A face counts once: a second box on it is wrong.
    """
    faces = boxes = 0
    confidences: list[float] = []
    for detections, real in zip(found, truth):
        faces, boxes = faces + len(real), boxes + len(detections)
        overlaps = overlap(detections.boxes, np.array(real, np.float64).reshape(-1, 4))
        for index, row in enumerate(overlaps):  # most confident first
            if row.max(initial=0) >= IOU:
                confidences.append(float(detections.confidences[index]))
                overlaps[:, row.argmax()] = 0
    return {
        "recall": round(len(confidences) / faces, 4),
        "precision": round(len(confidences) / max(boxes, 1), 4),
        "median_confidence": round(float(np.median(confidences or [0])), 3),
        "share_over_half": round(float(np.mean([value > 0.5 for value in confidences or [0]])), 3),
    }


def evaluate(detector: Detector, seed: int, count: int = 200) -> dict[str, dict[str, float]]:
    """The figures on drawings that the training has not seen, as drawn and softened."""
    rng = random.Random(seed + 10_001)
    samples = [draw_sample(rng) for _ in range(count)]
    truth = [boxes for _, boxes in samples]
    variants = {"drawn": [image for image, _ in samples], "softened": [soften(image, rng) for image, _ in samples]}
    return {name: score(detector.detect(images, CONFIDENCE), truth) for name, images in variants.items()}


def largest_difference(a: Detector, b: Detector, images: Sequence[Image.Image]) -> float:
    """The largest difference of a coordinate in pixels; infinite when the two find a different number of boxes."""
    pairs = list(zip(a.detect(images, CONFIDENCE), b.detect(images, CONFIDENCE)))
    return max(float(abs(x.boxes - y.boxes).max(initial=0)) if len(x) == len(y) else float("inf") for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--minutes", type=float, help="end the training after this time at the latest")
    parser.add_argument("--pictures", type=int, default=700)
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        offline_ultralytics(Path(folder, "ultralytics"))
        trained = train(Path(folder), arguments.pictures, arguments.imgsz, arguments.epochs, arguments.minutes, arguments.seed)
        weights = arguments.out / f"{NAME}.safetensors"
        export(trained, weights, ARCHITECTURE, "detect", ["face"], arguments.imgsz)
        exported = Detector(load_detector_network(weights))
        rng = random.Random(arguments.seed + 20_002)
        difference = largest_difference(exported, Detector(copy.deepcopy(trained).fuse(verbose=False)), [draw_sample(rng)[0] for _ in range(40)])  # type: ignore[operator]
        if difference > 1e-3:
            raise SystemExit(f"the exported detector's boxes are {difference} pixels off the trained one's")
        figures = evaluate(exported, arguments.seed) | {"export": {"largest_difference_px": difference}}
    (arguments.out / f"{NAME}.json").write_text(json.dumps(figures, indent=2) + "\n")
    logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
