"""Are the pictures as crisp as the drawings? ``python -m training.evaluation.crispness [--weights DIR]``.

Portraits of forty combinations that training never saw are generated and drawn. Gradient energy is the mean of the
squared differences between neighbouring pixels: soft edges lower it, noise raises it. It is given as a share of the
drawings', of the autoencoder's copies of the drawings, of generated pictures, and of those after the detail pass.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from backend.core.settings import Settings
from modules.app.service import start
from modules.pipeline.adetailer import AdetailerStage
from modules.pipeline.base import ImagePipeline
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest
from training.data.drawing import draw_scene
from training.data.held_out import PROMPTS, sample_held_out, sentence
from training.data.scene import Scene, place_people

SEED = 31


def portraits(side: int, count: int = PROMPTS, seed: int = SEED) -> list[tuple[str, Scene]]:
    """Prompts, and scenes of ``side`` x ``side`` pixels that show what they ask for."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        person, background = sample_held_out(rng)
        scene = Scene((person,), place_people(rng, 1, "portrait", side, side), background, "portrait", side, side)
        found.append((sentence(rng, person, background), scene))
    return found


def gradient_energy(image: Image.Image) -> float:
    """The mean of the squared differences between neighbours, of gray levels in 0..1."""
    gray = np.asarray(image.convert("L"), np.float64) / 255
    return float(np.square(np.diff(gray, axis=0)).mean() + np.square(np.diff(gray, axis=1)).mean())


def energies(images: Sequence[Image.Image]) -> float:
    return float(np.mean([gradient_energy(image) for image in images]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="weights")
    given = parser.parse_args()
    service = start(replace(Settings(), model="embedded", weights_dir=given.weights, log_level="WARNING"))
    side = service.profile.native
    asked = portraits(side)
    drawn = [draw_scene(scene).convert("RGB") for _, scene in asked]
    detail = next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))
    diffusion = detail.detail_pass.service
    copied = [diffusion.decode(diffusion.pack(diffusion.encode_images([one])), side, side)[0] for one in drawn]
    made: dict[bool, list[Image.Image]] = {}
    for repainted in (False, True):
        pipeline = ImagePipeline((service.pipeline.stages[0], detail)[: 1 + repainted])
        units = (AdetailerUnit(),) if repainted else ()
        requests = (
            ImageRequest(prompt=prompt, width=side, height=side, seed=index, adetailer=units)
            for index, (prompt, _) in enumerate(asked)
        )
        made[repainted] = [pipeline.run(request).pictures[0].image for request in requests]
    plain = energies(drawn)
    found = {"autoencoder": copied, "generated": made[False], "after the detail pass": made[True]}
    print(json.dumps({name: round(energies(pictures) / plain, 3) for name, pictures in found.items()}))


if __name__ == "__main__":
    main()
