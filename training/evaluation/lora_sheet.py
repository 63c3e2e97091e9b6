"""What trained LoRA files do, as one sheet: ``python -m training.evaluation.lora_sheet --out docs/images/lora.webp``.

A row for every prompt: without, each file at 0.5 and at 1, and both mixed.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from backend.core.settings import ROOT, Settings
from backend.core.timeline import Timeline
from modules.app.service import start
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.lora.adapters import Loras
from modules.lora.files.lora_file import LoraFile
from modules.pipeline.generate import GenerateStage

FOLDER = ROOT / "weights" / "embedded" / "loras"
PROMPTS = (
    "a portrait of a smiling woman with long red hair and a yellow hat in front of a green background",
    "a man with a beard and glasses in front of a blue background",
)
SIDE, STEPS, LABEL = 256, 20, 22


def lora_file(path: Path) -> LoraFile:
    return LoraFile(path.stem, path, hashlib.sha256(path.read_bytes()).hexdigest())


def columns(files: list[LoraFile]) -> dict[str, Loras]:
    """What is drawn beside each other, with the words above it."""
    alone: dict[str, Loras] = {f"{file.name} {scale:g}": ((file, scale),) for file in files for scale in (0.5, 1.0)}
    mixed: Loras = tuple((file, 0.6) for file in files)
    return {"without": (), **alone, " + ".join(f"{file.name} {scale:g}" for file, scale in mixed): mixed}


def sheet(files: list[LoraFile], seed: int) -> Image.Image:
    service = start(Settings(model="embedded", warm_up=False, dtype="float32", log_level="WARNING"))
    stage = service.pipeline.stages[0]
    assert isinstance(stage, GenerateStage)
    cells = columns(files)
    result = Image.new("RGB", (SIDE * len(cells), LABEL + SIDE * len(PROMPTS)), "white")
    pen = ImageDraw.Draw(result)
    for column, (label, loras) in enumerate(cells.items()):
        pen.text((SIDE * column + 6, 4), label, "black", font_size=14)
        for row, prompt in enumerate(PROMPTS):
            request = DenoiseRequest((prompt,), (seed,), SIDE, SIDE, STEPS, 3.5, loras=loras)
            [picture] = stage.service.generate(request, Monitor(Timeline()))
            result.paste(picture, (SIDE * column, LABEL + SIDE * row))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    files = [lora_file(path) for path in sorted(FOLDER.glob("*.safetensors"))]
    sheet(files, arguments.seed).save(arguments.out, quality=85)


if __name__ == "__main__":
    main()
