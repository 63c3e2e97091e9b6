"""The grid at the head of the README: ``python -m training.evaluation.grid [--weights DIR] --out FILE``.

Twelve fixed prompts with the seeds 1 to 12 and otherwise default inputs: whatever comes is shown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image

from backend.core.settings import ROOT, Settings
from modules.app.service import start

PROMPTS = (
    "a portrait of a smiling woman with long red hair, glasses, blue shirt, yellow background",
    "a portrait of a man with a beard, green shirt, white background",
    "a girl with long black hair, pink background",
    "a sad man with glasses, gray hair, purple shirt",
    "a woman wearing a yellow hat, in front of a blue background",
    "on a green background: a boy, blond hair, red shirt",
    "an orange cat",
    "a red house, teal background",
    "a mountain landscape",
    "a city at night",
    "two people waving, full body, yellow background",
    "three people, full body, blue background",
)
COLUMNS, SIDE = 4, 320
"""Pictures of a row, and the side in pixels to which each is reduced."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "grid.webp")
    arguments = parser.parse_args()
    service = start(
        replace(Settings(), model="embedded", weights_dir=arguments.weights, log_level="WARNING", warm_up=False)
    )
    grid = Image.new("RGB", (COLUMNS * SIDE, len(PROMPTS) // COLUMNS * SIDE))
    for index, prompt in enumerate(PROMPTS):
        (file,) = service.predict(
            {"prompt": prompt, "seed": index + 1, "output_format": "png"}, lambda name, value: None
        )
        with Image.open(file) as picture:
            small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        grid.paste(small, (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    grid.save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
