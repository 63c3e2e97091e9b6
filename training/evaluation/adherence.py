"""Measures whether the pictures show what was asked: ``python -m training.evaluation.adherence [--subject figures]
[--weights DIR] [--sheet FILE]``.

Forty prompts with combinations of hair, shirt and background that training never saw, or 120 in wordings that it never
saw either (``--subject wordings``). In portraits the face detector says where the face is; the colours above, below and
beside it are compared with the palette that the drawings use. In pictures of whole figures the person detector counts.
Of 60 things and landscapes (``--subject things``) a classifier that has learned from drawings says what they are.
The prompts run through the package's own generate stage, alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.core.settings import Settings
from modules.app.service import Service, start
from modules.detection.detections import Detections
from modules.detection.yolo import Detector
from modules.pipeline.base import ImagePipeline
from modules.request.image_request import ImageRequest
from training.data.held_out import held_out_figures, held_out_prompts, held_out_things
from training.data.held_out_wordings import held_out_wordings
from training.data.scene import BACKGROUND_COLOURS, HAIR_COLOURS, SHIRT_COLOURS, Colour
from training.evaluation.subject_classifier import Seen, read_classifier

Prompts = list[tuple[str, dict[str, str]]]
COLOURS: Mapping[str, Mapping[str, Colour]] = {
    "background": BACKGROUND_COLOURS,
    "hair": HAIR_COLOURS,
    "shirt": SHIRT_COLOURS,
}


def nearest_colour(pixels: np.ndarray, palette: Mapping[str, Colour]) -> str:
    """The palette's colour that is nearest to the median of the pixels (any shape x 3)."""
    median = np.median(pixels.reshape(-1, 3), axis=0)
    return min(palette, key=lambda name: float(np.abs(median - palette[name]).sum()))


def measure(image: Image.Image, box: np.ndarray) -> dict[str, str]:
    """The colours seen in a picture whose face is at ``box`` (x1, y1, x2, y2 in pixels)."""
    array = np.asarray(image.convert("RGB")).astype(np.int16)
    height, width = array.shape[:2]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_width, half = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2

    def patch(left: float, top: float, right: float, bottom: float) -> np.ndarray:
        x1, x2 = (int(np.clip(x + side * half_width, 0, width - 2)) for side in (left, right))
        y1, y2 = (int(np.clip(y + side * half, 0, height - 2)) for side in (top, bottom))
        return array[y1 : max(y2, y1 + 2), x1 : max(x2, x1 + 2)]

    edge = max(4, width // 24)
    corners = np.concatenate([array[: height // 3, :edge].reshape(-1, 3), array[: height // 3, -edge:].reshape(-1, 3)])
    return {
        "background": nearest_colour(corners, BACKGROUND_COLOURS),
        "hair": nearest_colour(patch(-0.45, -1.2, 0.45, -1.0), HAIR_COLOURS),
        "shirt": nearest_colour(patch(-0.6, 1.9, 0.6, 2.5), SHIRT_COLOURS),
    }


def generate(service: Service, prompts: Prompts, steps: int, guidance: float) -> list[Image.Image]:
    alone = ImagePipeline(service.pipeline.stages[:1])
    side = service.profile.native
    pictures = []
    for index, (prompt, _) in enumerate(prompts):
        request = ImageRequest(
            prompt=prompt, width=side, height=side, seed=index, num_inference_steps=steps, guidance_scale=guidance
        )
        pictures.append(alone.run(request).pictures[0].image)
    return pictures


def chest(array: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The pixels of a standing figure's shirt: below the head, about the middle of its box."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    middle, tall = (x1 + x2) / 2, y2 - y1
    return array[
        int(y1 + 0.45 * tall) : int(y1 + 0.53 * tall), int(middle - 0.05 * tall) : int(middle + 0.05 * tall) + 1
    ]


def count_faces(found: list[Detections], pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    """Counts the pictures with a face, with each colour as asked, and with all of them; prints what is wrong."""
    right = {"face": 0, **dict.fromkeys(COLOURS, 0), "all": 0, "more than one face": 0}
    for picture, detections, (prompt, asked) in zip(pictures, found, prompts, strict=True):
        if not len(detections):
            print(f"no face: {prompt}")
            continue
        right["face"] += 1
        if len(detections) > 1:
            right["more than one face"] += 1
            print(f"{len(detections)} faces, {np.round(detections.confidences, 2)} sure: {prompt}")
        seen = measure(picture, detections.boxes[int(detections.confidences.argmax())])
        right["all"] += all(seen[name] == colour for name, colour in asked.items())
        for name, colour in asked.items():
            right[name] += seen[name] == colour
            if seen[name] != colour:
                print(f"{name} is {seen[name]}: {prompt}")
    return right


def count_persons(found: list[Detections], pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    """How many pictures have as many persons as were asked for, and the background; of single figures how many have
    the shirt."""
    right = {"people": 0, "background": 0, "shirt": 0, "single": sum("shirt" in asked for _, asked in prompts)}
    for picture, detections, (prompt, asked) in zip(pictures, found, prompts, strict=True):
        array = np.asarray(picture.convert("RGB")).astype(np.int16)
        seen = {
            "people": str(len(detections)),
            "background": background_of(picture),
        }
        if "shirt" in asked and len(detections):
            seen["shirt"] = nearest_colour(chest(array, detections.boxes[0]), SHIRT_COLOURS)
        for name, wanted in asked.items():
            right[name] += seen.get(name) == wanted
            if seen.get(name) != wanted:
                print(f"{name}: {seen.get(name)}: {prompt}")
    return right


def count_things(seen: list[Seen], pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    """How many pictures show what was asked; of those that name them, how many have the colour and the background."""
    asked_for = {f"{name} asked": sum(name in asked for _, asked in prompts) for name in ("colour", "background")}
    right = {"kind": 0, "colour": 0, "background": 0, **asked_for}
    for picture, one, (prompt, asked) in zip(pictures, seen, prompts, strict=True):
        shown = {"kind": one.kind, "colour": one.colour, "background": background_of(picture)}
        for name, wanted in asked.items():
            right[name] += shown[name] == wanted
            if shown[name] != wanted:
                print(f"{name} is {shown[name]}: {prompt}")
    return right


def background_of(picture: Image.Image) -> str:
    """The background's colour in the two upper corners."""
    array = np.asarray(picture.convert("RGB")).astype(np.int16)
    return nearest_colour(np.concatenate([array[:24, :24], array[:24, -24:]]), BACKGROUND_COLOURS)


def contact_sheet(pictures: list[Image.Image], titles: list[str], columns: int = 8) -> Image.Image:
    width, height, text = *pictures[0].size, 44
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + text)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = index % columns * width, index // columns * (height + text)
        sheet.paste(picture, (x, y))
        words, line = [""], 0
        for word in title.split():
            if draw.textlength(f"{words[line]} {word}", font=font) > width - 8:
                words.append("")
                line += 1
            words[line] = f"{words[line]} {word}".strip()
        draw.multiline_text((x + 4, y + height + 2), "\n".join(words[:3]), fill="black", font=font, spacing=1)
    return sheet


def detected(service: Service, detector: str, pictures: list[Image.Image]) -> list[Detections]:
    with service.models.on_device(detector) as (network,):
        return Detector(network).detect(pictures, 0.3)


def faces(service: Service, pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    return count_faces(detected(service, "face_detector", pictures), pictures, prompts)


def persons(service: Service, pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    return count_persons(detected(service, "person_detector", pictures), pictures, prompts)


def things(service: Service, pictures: list[Image.Image], prompts: Prompts) -> dict[str, int]:
    with_face = sum(len(found) > 0 for found in detected(service, "face_detector", pictures))
    return {**count_things(read_classifier().look(pictures), pictures, prompts), "taken for a face": with_face}


@dataclass(frozen=True)
class Measurement:
    """Prompts, and how what their pictures show is counted."""

    prompts: Callable[[], Prompts]
    count: Callable[[Service, list[Image.Image], Prompts], dict[str, int]]


SUBJECTS: Mapping[str, Measurement] = {
    "portraits": Measurement(held_out_prompts, faces),
    "wordings": Measurement(held_out_wordings, faces),
    "figures": Measurement(held_out_figures, persons),
    "things": Measurement(held_out_things, things),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, default="portraits")
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.5)
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", weights_dir=arguments.weights, log_level="WARNING"))
    measured = SUBJECTS[arguments.subject]
    prompts = measured.prompts()
    pictures = generate(service, prompts, arguments.steps, arguments.guidance)
    print(json.dumps({"prompts": len(prompts), **measured.count(service, pictures, prompts)}))
    if arguments.sheet:
        contact_sheet(pictures, [prompt for prompt, _ in prompts]).save(arguments.sheet, quality=88)


if __name__ == "__main__":
    main()
