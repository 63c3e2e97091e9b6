"""Teaches the face detector the look of the generator: ``python -m training.redrawn --weights DIR --out DIR``.

The detector is trained on drawings, but works on what the transformer draws, which leaves out and blots more than any filter would.
So drawings are redrawn by the package's own image-to-image at half strength: the faces stay where they are known to be, and get the
generator's look. The detector in DIR goes on from its weights with those pictures beside plain drawings.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from backend.settings import ROOT, Settings
from backend.timeline import Timeline
from backend.weights import EMBEDDED
from modules.adetailer.detection import Detector, load_detector_network
from modules.drawing import Drawing, DrawingService
from modules.generate import GenerateStage
from modules.startup import start
from training.captions import caption
from training.detector import ARCHITECTURES, evaluate, export, train
from training.detector_samples import KINDS, Sample, softened, write_dataset
from training.drawing import draw_scene, face_boxes
from training.scene import sample_training_scene

logger = logging.getLogger(__name__)

STRENGTHS = (0.35, 0.65)
STEPS = 10
KIND = KINDS["face"]
GOING_ON = {"lr0": 0.001, "lrf": 0.05, "mosaic": 0.0, "scale": 0.3}


def redrawn(flux: DrawingService, rng: random.Random) -> Sample:
    """A drawing as the generator would have drawn it, and its faces."""
    scene = sample_training_scene(rng)
    drawing = Drawing(
        prompts=(caption(scene, rng),),
        seeds=(rng.getrandbits(31),),
        width=scene.width,
        height=scene.height,
        steps=STEPS,
        guidance=rng.uniform(2, 4.5),
        images=(draw_scene(scene),),
        strength=rng.uniform(*STRENGTHS),
    )
    return Sample(flux.draw(drawing, Timeline())[0], face_boxes(scene))


def as_trained(weights: Path) -> torch.nn.Module:
    """The face detector of ``weights``, not fused, to be trained further."""
    from ultralytics.nn.tasks import DetectionModel

    model: torch.nn.Module = DetectionModel(ARCHITECTURES[KIND.task], nc=1, verbose=False)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="the folder with embedded/, whose generator and face detector are taken")
    parser.add_argument("--out", type=Path, required=True, help="folder for the new face_detector.safetensors and its yaml")
    parser.add_argument("--pictures", type=int, default=450)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", weights_dir=arguments.weights, log_level="WARNING"))
    generate = service.pipeline.stages[0]
    assert isinstance(generate, GenerateStage)
    weights = ROOT / arguments.weights / EMBEDDED / "face_detector.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(arguments.seed)
        pictures = (redrawn(generate.service, rng) if index % 3 else KIND.draw(rng) for index in range(arguments.pictures))
        data = write_dataset(Path(folder, "data"), KIND.label, (softened(picture, rng, 0.2) for picture in pictures))
        logger.info("%d pictures are drawn", arguments.pictures)
        course = {**GOING_ON, "epochs": arguments.epochs, "close_mosaic": arguments.epochs}
        trained = train(Path(folder), KIND, data, course, arguments.seed, lambda: as_trained(weights))
    out = arguments.out / "face_detector.safetensors"
    export(trained, out, ARCHITECTURES[KIND.task], KIND.task, [KIND.label], KIND.imgsz)
    figures = evaluate(Detector(load_detector_network(out)), KIND, arguments.seed)
    (arguments.out / "face_detector.json").write_text(json.dumps(figures, indent=2) + "\n")
    logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
