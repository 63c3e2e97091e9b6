"""Does the detail pass repair faces? ``python -m bench.quality.repaired_faces [--pictures 12] [--sheet FILE]``.

Drawings of several people, half of them portraits and half whole figures, are redrawn at a strength at which everybody
stays in place: small faces get as soft or crooked as in generated pictures. Every detected face is repainted with the
words for its person. For every face before and after: the detector's confidence, and its sharpness relative to the
drawing (the spread of the Laplacian).
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import cv2
import numpy as np
from PIL import Image

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports diffusers

from backend.core.settings import Settings  # noqa: E402
from backend.core.timeline import Timeline  # noqa: E402
from modules.app.service import start  # noqa: E402
from modules.detection.detections import Detections  # noqa: E402
from modules.diffusion.base import DiffusionService  # noqa: E402
from modules.diffusion.denoise_request import DenoiseRequest  # noqa: E402
from modules.diffusion.monitor import Monitor  # noqa: E402
from modules.pipeline.adetailer import AdetailerStage  # noqa: E402
from modules.pipeline.base import ImageBatch, Picture, no_progress  # noqa: E402
from modules.request.adetailer_unit import AdetailerUnit  # noqa: E402
from modules.request.image_request import ImageRequest  # noqa: E402
from training.data.captions import describe_person  # noqa: E402
from training.data.figures import Figures, sample_figures  # noqa: E402
from training.data.scene import Scene, sample_scene  # noqa: E402
from training.data.subjects import Subject, caption, draw_subject  # noqa: E402

SIZE = (384, 256)
SURE = 0.3
STRENGTH = 0.6
"""Of the redrawing."""


def several(count: int, seed: int) -> list[tuple[Scene, Subject]]:
    """Scenes of several people with what is drawn of them, portraits and whole figures in turn."""
    rng = random.Random(seed)
    found: list[tuple[Scene, Subject]] = []
    while len(found) < count:
        subject = sample_figures(rng, SIZE) if len(found) % 2 else sample_scene(rng, SIZE)
        scene = subject.scene if isinstance(subject, Figures) else subject
        if len(scene.people) > 1:
            found.append((scene, subject))
    return found


def words(scene: Scene) -> str:
    """A prompt for every face, from left to right."""
    rng = random.Random(0)
    return " [SEP] ".join(
        f"a portrait of a {describe_person(rng, person, 1.0)}, {scene.background} background" for person in scene.people
    )


def face(image: Image.Image, scene: Scene, index: int) -> np.ndarray:
    """The gray pixels of one face, H x W."""
    place = scene.placements[index]
    left, top, size = int(place.x - place.size), int(place.y - place.size), int(2 * place.size)
    return np.asarray(image.convert("L").crop((left, top, left + size, top + size)))


def sharpness(pixels: np.ndarray) -> float:
    return float(cv2.Laplacian(pixels.astype(np.float32), cv2.CV_32F).std())


def confidence(found: Detections, scene: Scene, index: int) -> float:
    """The detector's for this face; 0 where it found none at its place."""
    place = scene.placements[index]
    at = [
        float(sure)
        for (x1, y1, x2, y2), sure in zip(found.boxes, found.confidences, strict=True)
        if abs((x1 + x2) / 2 - place.x) < place.size and abs((y1 + y2) / 2 - place.y) < place.size
    ]
    return max(at, default=0.0)


def redrawn(diffusion: DiffusionService, subject: Subject, drawing: Image.Image, seed: int) -> Image.Image:
    asked = DenoiseRequest(
        prompts=(caption(subject, random.Random(seed)),),
        seeds=(seed,),
        width=SIZE[0],
        height=SIZE[1],
        steps=diffusion.profile.steps,
        guidance=diffusion.profile.guidance,
        images=(drawing,),
        strength=STRENGTH,
    )
    return diffusion.generate(asked, Monitor(Timeline()))[0]


def save_sheet(rows: list[tuple[Image.Image, ...]], path: Path) -> None:
    """One row per scene, its images side by side."""
    sheet = Image.new("RGB", (3 * SIZE[0], len(rows) * SIZE[1]))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * SIZE[0], row * SIZE[1]))
    sheet.save(path, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--sheet", type=Path, help="drawing, before and after, a row a scene")
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))
    detail_pass, diffusion = stage.detail_pass, stage.detail_pass.service
    unit = AdetailerUnit(bbox_sortby="Position (left to right)", confidence=0.2)
    rows: list[tuple[Image.Image, ...]] = []
    figures: list[list[float]] = []
    faces = found_faces = 0
    for number, (scene, subject) in enumerate(several(arguments.pictures, arguments.seed)):
        drawn = draw_subject(subject)
        before = redrawn(diffusion, subject, drawn, number)
        request = ImageRequest(
            prompt=words(scene),
            width=SIZE[0],
            height=SIZE[1],
            seed=number,
            adetailer=(replace(unit, prompt=words(scene)),),
        )
        batch = ImageBatch((Picture(before, number),), Timeline(), no_progress)
        found_faces += len(detail_pass.choose([before], unit)[0].regions)
        faces += len(scene.people)
        after = stage.run(batch, request).pictures[0].image
        seen = detail_pass.detectors.detect([before, after], 0.01)
        for index in range(len(scene.people)):
            plain = sharpness(face(drawn, scene, index))
            figures.append([confidence(seen[0], scene, index), confidence(seen[1], scene, index)])
            figures[-1] += [sharpness(face(image, scene, index)) / plain for image in (before, after)]
        rows.append((drawn, before, after))
    sure_before, sure_after, sharp_before, sharp_after = zip(*figures, strict=True)
    print(
        json.dumps(
            {
                "faces": faces,
                "repaired": found_faces,
                "confidence_before": round(mean(sure_before), 3),
                "confidence_after": round(mean(sure_after), 3),
                f"found_at_{SURE}_before": sum(sure >= SURE for sure in sure_before),
                f"found_at_{SURE}_after": sum(sure >= SURE for sure in sure_after),
                "sharpness_before": round(mean(sharp_before), 3),
                "sharpness_after": round(mean(sharp_after), 3),
            }
        )
    )
    if arguments.sheet:
        save_sheet(rows, arguments.sheet)


if __name__ == "__main__":
    main()
