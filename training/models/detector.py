"""Trains a detector: ``python -m training.models.detector --kind face --out DIR`` (or hand, or person, which also
outlines).

A YOLOv8 of an eighth of the width with two detection levels instead of three, on the drawings of
:mod:`training.data.detector_samples`. ``--minutes`` ends the training early; the weights then depend on the machine's
speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image
from safetensors.torch import save_file

from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics
from training.data.detector_samples import KINDS, Kind, soften, softened, write_dataset
from training.evaluation.detector_score import average_precision, mask_overlap, median_overlap, overlap, score

logger = logging.getLogger(__name__)

CONFIDENCE, ANY_CONFIDENCE = 0.3, 0.01
CONTAINMENT = {"face": 0.8}
"""By label: one box may lie in another by this share at most. A face does not lie in a face; a child may stand before
its mother."""
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
SEGMENTING = {**ARCHITECTURE, "head": [*ARCHITECTURE["head"][:-1], [[10, 13], 1, "Segment", ["nc", 32, 256]]]}  # type: ignore[index]
ARCHITECTURES = {"detect": ARCHITECTURE, "segment": SEGMENTING}

Network = Callable[[], torch.nn.Module]

COURSE: Mapping[str, object] = {
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "cos_lr": True,
    "warmup_epochs": 0.5,
    "hsv_h": 0.0,
    "erasing": 0.0,
}
"""What every course shares; drawings already vary in their colours."""
FROM_NOTHING: Mapping[str, object] = {"lr0": 0.004, "lrf": 0.02, "mosaic": 0.25, "scale": 0.4}


MACHINE = {
    "device": "cpu",
    "amp": False,
    "workers": 0,
    "cache": "ram",
    "plots": False,
    "val": False,
    "verbose": False,
    "pretrained": False,
}


def train(
    folder: Path, kind: Kind, data: Path, course: Mapping[str, object], seed: int, network: Network | None = None
) -> torch.nn.Module:
    """The trained network: not fused, in evaluation mode, rounded to half precision as it will be stored.

    ``data`` is the description of a dataset, ``course`` the trainer's own settings, ``network`` gives what is trained
    in place of our own architecture with random weights.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer

    base = {"detect": DetectionTrainer, "segment": SegmentationTrainer}[kind.task]

    class Trainer(base):  # type: ignore[misc, valid-type]
        """Trains only. The figures that count are those of the exported file, see :func:`evaluate`."""

        def get_model(self, *arguments: object, **settings: object) -> torch.nn.Module:
            model: torch.nn.Module = network() if network else super().get_model(*arguments, **settings)
            return model

        def preprocess_batch(self, batch: dict[str, object]) -> dict[str, object]:
            prepared: dict[str, object] = super().preprocess_batch(batch)
            if hasattr(
                self.model, "txt_feats"
            ):  # a world model learns with the vectors that it holds, and asks CLIP for none
                prepared["txt_feats"] = self.model.txt_feats
            return prepared

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            pass

    architecture = folder / f"{kind.label}.yaml"
    architecture.write_text(yaml.safe_dump(ARCHITECTURES[kind.task]))
    files = {"model": str(architecture), "data": str(data), "project": str(folder)}
    trainer = Trainer(overrides={**files, **MACHINE, "seed": seed, **COURSE, "imgsz": kind.imgsz, **course})
    trainer.train()
    trained: torch.nn.Module = trainer.ema.ema.half().float().eval()
    trained.args = {"imgsz": kind.imgsz}  # type: ignore[assignment]  # as ultralytics' own loader leaves it
    return trained


def export(
    network: torch.nn.Module, out: Path, architecture: dict[str, object], task: str, names: Sequence[str], imgsz: int
) -> None:
    """Writes ``out`` (NAME.safetensors, half precision) and NAME.yaml, as ``modules.detection.yolo`` reads them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in network.state_dict().items()
        },
        out,
    )
    options = {"imgsz": imgsz, "containment": CONTAINMENT.get(names[0], 1.0)}
    description = {"task": task, "names": list(names), **options, **architecture}
    out.with_suffix(".yaml").write_text(yaml.safe_dump(description, sort_keys=False, default_flow_style=None))


def evaluate(detector: Detector, kind: Kind, seed: int, count: int = 200) -> dict[str, dict[str, float]]:
    """The figures on drawings that the training has not seen, as drawn and softened."""
    rng = random.Random(seed + 10_001)
    samples = [kind.draw(rng) for _ in range(count)]
    variants = {
        "drawn": [sample.image for sample in samples],
        "softened": [soften(sample.image, rng) for sample in samples],
    }
    figures = {}
    for name, images in variants.items():
        found = detector.detect(images, ANY_CONFIDENCE)
        confidences = [one.confidences for one in found]
        boxes = [
            overlap(one.boxes, np.array(sample.boxes, np.float64).reshape(-1, 4)) for one, sample in zip(found, samples)
        ]
        sure = [one.take(np.flatnonzero(one.confidences > CONFIDENCE)) for one in found]
        figures[name] = score(sure, [sample.boxes for sample in samples]) | {
            "map50": average_precision(boxes, confidences)
        }
        if kind.task == "segment":
            empty = [np.zeros((0, image.height, image.width), np.uint8) for image in images]
            masks = [
                mask_overlap(one.masks, np.array(sample.masks or none))
                for one, sample, none in zip(found, samples, empty)
            ]
            figures[name] |= {"mask_map50": average_precision(masks, confidences), "mask_iou": median_overlap(masks)}
    return figures


def largest_difference(a: Detector, b: Detector, images: Sequence[Image.Image]) -> float:
    """The largest difference of a coordinate in pixels; infinite when the two find a different number of boxes."""
    pairs = list(zip(a.detect(images, CONFIDENCE), b.detect(images, CONFIDENCE)))
    return max(float(abs(x.boxes - y.boxes).max(initial=0)) if len(x) == len(y) else float("inf") for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="face")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="in place of those that the kind is trained for")
    parser.add_argument("--minutes", type=float, help="end the training after this time at the latest")
    parser.add_argument("--pictures", type=int, help="in place of the kind's own number")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    kind = KINDS[arguments.kind]
    with tempfile.TemporaryDirectory() as folder:
        offline_ultralytics(Path(folder, "ultralytics"))
        rng = random.Random(arguments.seed)
        samples = (softened(kind.draw(rng), rng, 0.5) for _ in range(arguments.pictures or kind.pictures))
        data = write_dataset(Path(folder, "data"), kind.label, samples)
        epochs = arguments.epochs or kind.epochs
        length = {
            "epochs": epochs,
            "close_mosaic": max(1, epochs // 3),
            "time": arguments.minutes / 60 if arguments.minutes else None,
        }
        trained = train(Path(folder), kind, data, {**FROM_NOTHING, **length}, arguments.seed)
        weights = arguments.out / f"{kind.name}.safetensors"
        export(trained, weights, ARCHITECTURES[kind.task], kind.task, [kind.label], kind.imgsz)
        exported = Detector(load_detector_network(weights))
        rng = random.Random(arguments.seed + 20_002)
        fused = copy.deepcopy(trained).fuse(verbose=False)  # type: ignore[operator]
        difference = largest_difference(exported, Detector(fused), [kind.draw(rng).image for _ in range(40)])
        if difference > 1e-3:
            raise SystemExit(f"the exported detector's boxes are {difference} pixels off the trained one's")
        figures = evaluate(exported, kind, arguments.seed) | {"export": {"largest_difference_px": difference}}
    (arguments.out / f"{kind.name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
