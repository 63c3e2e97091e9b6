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
import yaml  # type: ignore[import-untyped]
from safetensors.torch import load_file

from backend.settings import ROOT, Settings
from backend.timeline import Timeline
from backend.weights import EMBEDDED
from modules.adetailer.detection import Detector, load_detector_network
from modules.flux import Drawing, FluxService
from modules.generate import GenerateStage
from modules.startup import start
from training.captions import caption
from training.detector import ARCHITECTURES, evaluate, export
from training.detector_samples import KINDS, Sample, label_lines, soften
from training.drawing import draw_scene, face_boxes
from training.scene import sample_training_scene

logger = logging.getLogger(__name__)

STRENGTHS = (0.35, 0.65)
STEPS = 10
KIND = KINDS["face"]


def redrawn(flux: FluxService, rng: random.Random) -> Sample:
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


def write_dataset(folder: Path, flux: FluxService, count: int, rng: random.Random) -> Path:
    """``count`` pictures, two of three redrawn, with labels as ultralytics reads them; gives the description."""
    for index in range(count):
        part = "val" if index % 20 == 0 else "train"
        sample = redrawn(flux, rng) if index % 3 else KIND.draw(rng)
        image = soften(sample.image, rng) if rng.random() < 0.2 else sample.image
        for folders in ("images", "labels"):
            (folder / folders / part).mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / part / f"{index}.png")
        (folder / "labels" / part / f"{index}.txt").write_text(label_lines(sample))
    description = folder / "data.yaml"
    description.write_text(yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": [KIND.label]}))
    return description


def go_on(folder: Path, weights: Path, data: Path, epochs: int, seed: int) -> torch.nn.Module:
    """The detector of ``weights`` after some more epochs, in evaluation mode and rounded to half precision."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):  # type: ignore[misc]
        def get_model(self, cfg: object = None, weights: object = None, verbose: bool = False) -> torch.nn.Module:
            model: torch.nn.Module = super().get_model(cfg, None, False)
            model.load_state_dict({name: tensor.float() for name, tensor in load_file(known).items()})
            return model

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            pass

    known = weights
    architecture = folder / f"{KIND.label}.yaml"
    architecture.write_text(yaml.safe_dump(ARCHITECTURES[KIND.task]))
    files = {"model": str(architecture), "data": str(data), "project": str(folder)}
    where = {"device": "cpu", "amp": False, "workers": 0, "cache": "ram", "plots": False, "val": False, "verbose": False, "pretrained": False, "seed": seed}
    course = {"imgsz": KIND.imgsz, "epochs": epochs, "batch": 8, "nbs": 8, "close_mosaic": epochs}
    rates = {"optimizer": "AdamW", "lr0": 0.001, "lrf": 0.05, "cos_lr": True, "warmup_epochs": 0.5}
    trainer = Trainer(overrides=files | where | course | rates | {"mosaic": 0.0, "scale": 0.3, "hsv_h": 0.0, "erasing": 0.0})
    trainer.train()
    network: torch.nn.Module = trainer.ema.ema.half().float().eval()
    network.args = {"imgsz": KIND.imgsz}  # type: ignore[assignment]
    return network


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
        data = write_dataset(Path(folder, "data"), generate.flux, arguments.pictures, random.Random(arguments.seed))
        logger.info("%d pictures are drawn", arguments.pictures)
        trained = go_on(Path(folder), weights, data, arguments.epochs, arguments.seed)
    out = arguments.out / "face_detector.safetensors"
    export(trained, out, ARCHITECTURES[KIND.task], KIND.task, [KIND.label], KIND.imgsz)
    figures = evaluate(Detector(load_detector_network(out)), KIND, arguments.seed)
    (arguments.out / "face_detector.json").write_text(json.dumps(figures, indent=2) + "\n")
    logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
