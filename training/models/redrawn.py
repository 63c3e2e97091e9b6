"""Teaches a detector the look of the generator: ``python -m training.models.redrawn --kind face --weights DIR --out
DIR``.

The detector is trained on drawings, but works on what the transformer draws, which leaves out and blots more than any
filter would. So drawings are redrawn by the package's own image-to-image at half strength: everything stays where it is
known to be, and gets the generator's look. The detector in DIR goes on from its weights with those pictures beside
plain drawings.
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

from backend.core.settings import ROOT, Settings
from backend.core.timeline import Timeline
from backend.weights.resolver import EMBEDDED
from modules.app.service import start
from modules.detection.yolo import Detector, load_detector_network
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.pipeline.generate import GenerateStage
from training.data.detector_samples import KINDS, Kind, Sample, labelled, softened, write_dataset
from training.data.subjects import SUBJECTS, caption, draw_subject
from training.data.things import Things
from training.models.detector import ARCHITECTURES, evaluate, export, train

logger = logging.getLogger(__name__)

STRENGTHS = {"portraits": (0.35, 0.65), "figures": (0.25, 0.45), "things": (0.4, 1.0)}
"""How much is redrawn. Hands, and faces of whole figures, are small: much more, and they would no longer be where
they are known to be. In pictures of things nothing is to be found, so they may change as a whole."""
FIGURES = {"face": 0.5, "hand": 0.9, "person": 0.75}
"""The share of figures among the pictures of a kind; the others are portraits."""
NOBODY = 0.35
"""The share of pictures of things and animals, in which nothing is to be found."""
STEPS = 10
GOING_ON = {"lr0": 0.001, "lrf": 0.05, "mosaic": 0.0, "scale": 0.3}


def redrawn(flux: DiffusionService, kind: Kind, rng: random.Random) -> Sample:
    """A drawing as the generator would have drawn it, and what is to be found in it."""
    name = "figures" if rng.random() < FIGURES[kind.label] else "portraits"
    name = "things" if rng.random() < NOBODY else name
    sample, sizes = SUBJECTS[name]
    subject = sample(rng, rng.choice(sizes))
    drawn = Sample(draw_subject(subject), []) if isinstance(subject, Things) else labelled(kind.label, subject)
    drawing = DenoiseRequest(
        prompts=(caption(subject, rng),),
        seeds=(rng.getrandbits(31),),
        width=drawn.image.width,
        height=drawn.image.height,
        steps=STEPS,
        guidance=rng.uniform(2, 4.5),
        images=(drawn.image,),
        strength=rng.uniform(*STRENGTHS[name]),
    )
    return replace(drawn, image=flux.generate(drawing, Monitor(Timeline()))[0])


def as_trained(weights: Path, kind: Kind) -> torch.nn.Module:
    """The detector of this file, not fused, to be trained further."""
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    build = {"detect": DetectionModel, "segment": SegmentationModel}[kind.task]
    model: torch.nn.Module = build(ARCHITECTURES[kind.task], nc=1, verbose=False)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="face")
    parser.add_argument(
        "--weights", required=True, help="the folder with embedded/, whose generator and detector are taken"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the new detector and its yaml")
    parser.add_argument("--pictures", type=int, default=450)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", weights_dir=arguments.weights, log_level="WARNING"))
    generate = service.pipeline.stages[0]
    assert isinstance(generate, GenerateStage)
    kind = KINDS[arguments.kind]
    weights = ROOT / arguments.weights / EMBEDDED / f"{kind.name}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(arguments.seed)
        pictures = (
            redrawn(generate.service, kind, rng) if index % 3 else kind.draw(rng) for index in range(arguments.pictures)
        )
        data = write_dataset(Path(folder, "data"), kind.label, (softened(picture, rng, 0.2) for picture in pictures))
        logger.info("%d pictures are drawn", arguments.pictures)
        course = {**GOING_ON, "epochs": arguments.epochs, "close_mosaic": arguments.epochs}
        trained = train(Path(folder), kind, data, course, arguments.seed, lambda: as_trained(weights, kind))
    out = arguments.out / f"{kind.name}.safetensors"
    export(trained, out, ARCHITECTURES[kind.task], kind.task, [kind.label], kind.imgsz)
    figures = evaluate(Detector(load_detector_network(out)), kind, arguments.seed)
    (arguments.out / f"{kind.name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
