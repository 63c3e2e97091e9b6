"""Prompts as short as people type them, and what rewriting them is worth: ``python -m training.evaluation.terse
[--weights DIR] [--sheet FILE]``.

Thirty terse prompts, of combinations of hair, shirt and background that training never saw, are drawn as they are and
as the prompt upsampler rewrites them, with the same seeds, by the generate stage alone. The colours that were asked for
are counted in both.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from backend.core.settings import Settings
from modules.app.service import Service, start
from modules.detection.yolo import Detector
from training.data.captions import COLOUR_WORDS, EXPRESSION_WORDS, HAIR_WORDS, KIND_WORDS, SHIRT_NOUNS, pick
from training.data.held_out import sample_held_out
from training.data.scene import Person
from training.evaluation.adherence import contact_sheet, generate, measure

PROMPTS = 30
ASKED = ("hair", "shirt", "background")


def terse(rng: random.Random, person: Person, background: str, attributes: Collection[str]) -> str:
    """A person in a few words without grammar, for example "red hair woman, blue shirt"; ``attributes`` are those
    that are named."""
    hair = (
        "bald"
        if person.hair_length == "bald"
        else rng.choice(("{} hair", "{} hair", "{} haired")).format(pick(rng, HAIR_WORDS, person.hair_colour))
    )
    words = {
        "hair": hair,
        "length": f"{person.hair_length} hair",
        "shirt": rng.choice(("{} {}", "{} {}", "in {}")).format(
            pick(rng, COLOUR_WORDS, person.shirt), rng.choice(SHIRT_NOUNS)
        ),
        "background": rng.choice(("{} background", "{} background", "on {}", "{} bg")).format(
            pick(rng, COLOUR_WORDS, background)
        ),
        "expression": pick(rng, EXPRESSION_WORDS, person.expression),
        "glasses": "glasses" if person.glasses else "",
        "beard": rng.choice(("beard", "bearded")) if person.beard else "",
        "hat": f"{person.hat} hat" if person.hat else "",
    }
    named = [words[name] for name in attributes if words[name]]
    rng.shuffle(named)
    place = rng.randint(0, min(2, len(named)))
    parts = [*named[:place], pick(rng, KIND_WORDS, person.kind), *named[place:]]
    return rng.choice((" ", " ", ", ")).join(parts)


def terse_prompts(seed: int = 11) -> list[tuple[str, dict[str, str]]]:
    """The prompts to measure with: two or three of hair, shirt and background, with the colours that each names."""
    rng = random.Random(seed)
    prompts: list[tuple[str, dict[str, str]]] = []
    while len(prompts) < PROMPTS:
        person, background = sample_held_out(rng)
        named = rng.sample(ASKED, rng.choice((2, 3)))
        colours = {"hair": person.hair_colour, "shirt": person.shirt, "background": background}
        prompts.append((terse(rng, person, background, named), {name: colours[name] for name in named}))
    return prompts


def colours_shown(
    service: Service, pictures: list[Image.Image], prompts: list[tuple[str, dict[str, str]]]
) -> dict[str, int]:
    """How many of the colours asked for are in the pictures, by what has them; a picture without a face shows none."""
    with service.models.on_device("face_detector") as (network,):
        found = Detector(network).detect(pictures, 0.3)
    right = dict.fromkeys(("face", *ASKED), 0)
    for picture, detections, (_, asked) in zip(pictures, found, prompts, strict=True):
        if len(detections):
            seen = measure(picture, np.asarray(detections.boxes[int(detections.confidences.argmax())]))
            right["face"] += 1
            for name, colour in asked.items():
                right[name] += seen[name] == colour
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--steps", type=int, default=28)
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", weights_dir=arguments.weights, log_level="WARNING"))
    assert service.upsampler is not None, "the weights hold no prompt upsampler"
    prompts = terse_prompts()
    rewritten = [(service.upsampler.rewrite(prompt, index), asked) for index, (prompt, asked) in enumerate(prompts)]
    print(*(f"{prompt}  ->  {text}" for (prompt, _), (text, _) in zip(prompts, rewritten, strict=True)), sep="\n")
    asked = {name: sum(name in wanted for _, wanted in prompts) for name in ASKED}
    print(json.dumps({"asked": asked, "colours": sum(asked.values()), "prompts": len(prompts)}))
    sheet: list[Image.Image] = []
    for kind, texts in (("terse", prompts), ("rewritten", rewritten)):
        pictures = generate(service, texts, arguments.steps, guidance=3.5)
        right = colours_shown(service, pictures, prompts)
        print(json.dumps({kind: right, "colours": sum(right[name] for name in ASKED)}))
        sheet += pictures
    if arguments.sheet:
        titles = [text for text, _ in (*prompts, *rewritten)]
        contact_sheet(sheet, titles, columns=10).save(arguments.sheet, quality=88)


if __name__ == "__main__":
    main()
