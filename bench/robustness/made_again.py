"""Does ``scripts/predict --from`` give the same pixels? Twelve requests, each made and then made again of its files.

    python -m bench.robustness.made_again [--only NAME]

Every file of a request is made again by itself, also one of several. Only what a file cannot hold is given beside it:
the picture and the mask that the request began from. Exit code 1 where a picture differs or something was not honoured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from bench.support.markdown import table
from bench.support.tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
PREDICT = ROOT / "scripts" / "predict"
WOMAN = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
PEOPLE = "two people waving, full body, green background"
UNITS = [
    {"ad_confidence": 0.2, "ad_mask_blur": 8, "ad_prompt": "a smile [SEP] a hat"},
    {"ad_model": "person_detector", "ad_denoising_strength": 0.6, "ad_use_steps": True, "ad_steps": 3},
    {"ad_model": "hand_detector", "ad_mask_k": 1, "ad_x_offset": -4},
]


@dataclass(frozen=True)
class Request:
    """``inputs`` as ``NAME=VALUE`` texts take them; ``beside`` are those of them that are given again."""

    name: str
    inputs: Mapping[str, object] = field(default_factory=dict)
    model: str = "embedded"
    beside: tuple[str, ...] = ()


def make_requests(scratch: Path) -> list[Request]:
    """The requests. Their input files and a tiny model are written to ``scratch``."""
    picture = Image.new("RGB", (256, 192), (90, 160, 90))
    ImageDraw.Draw(picture).ellipse((80, 40, 176, 160), (240, 200, 170), (44, 34, 38), 3)
    picture.save(scratch / "picture.png")
    ImageOps.expand(Image.new("L", (128, 90), 255), (64, 20, 64, 82)).save(scratch / "mask.png")
    write_tiny_model(scratch / "sdxl", "sdxl")
    image = {"image": f"@{scratch / 'picture.png'}", "prompt_strength": 0.7}
    return [
        Request(
            "size of its own, png", {"aspect_ratio": "custom", "width": 320, "height": 256, "output_format": "png"}
        ),
        Request("sampler", {"sampler": "DPM++ 2M SDE", "guidance_scale": 2.25, "output_format": "jpg"}),
        Request("schedule, 4:4:4", {"scheduler": "Beta", "output_format": "jpg", "output_quality": 97}),
        Request("Hires fix, ESRGAN", {"enable_hr": True, "hr_scale": 1.5, "hr_steps": 3, "denoising_strength": 0.45}),
        Request("Hires fix, latent", {"enable_hr": True, "hr_upscaler": "Latent (bicubic)", "denoising_strength": 0.7}),
        Request("three ADetailer units", {"prompt": PEOPLE, "adetailer_args": json.dumps(UNITS)}),
        Request("hands", {"prompt": PEOPLE, "ad_hands_prompt": "an open hand", "ad_prompt": "[PROMPT], smiling"}),
        Request("image and mask", {**image, "mask": f"@{scratch / 'mask.png'}"}, beside=("image", "mask")),
        Request("three pictures", {"num_outputs": 3, "output_format": "png", "megapixels": "0.25"}),
        Request("rewritten prompt, no seed", {"prompt": "a sad boy", "prompt_upsampling": "on", "seed": None}),
        Request("names of hosts", {"aspect_ratio": "16:9", "go_fast": "on", "output_quality": 60, "scale": 1}),
        Request(
            "SDXL, negative prompt",
            {"prompt": "(a fox:1.2) BREAK snow", "negative_prompt": "a hat, Negative prompt: x", "sampler": "UniPC"},
            str(scratch / "sdxl"),
        ),
    ]


def predicted(words: Sequence[str], model: str, folder: Path) -> tuple[list[Path], str]:
    """The files of one command, and the notices that it printed. Ends the program where it fails."""
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
    environment |= {"FLUX_MODEL": model, "FLUX_DTYPE": "float32", "FLUX_DEVICE": "cpu"}
    command = [str(PREDICT), *words, "-o", str(folder), "--json"]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ends with {process.returncode}:\n{process.stderr}")
    notices = [line for line in process.stderr.splitlines() if line.startswith("note: ")]
    return [folder / file for file in json.loads(process.stdout)["files"]], "; ".join(notices)


def made_again(request: Request, folder: Path) -> dict[str, object]:
    """A row of the table: the greatest difference of 255 over all pictures, and the notices of the second run."""
    inputs = {"prompt": WOMAN, "seed": 3, "num_inference_steps": 4, **request.inputs}
    texts = {name: f"{name}={value}" for name, value in inputs.items() if value is not None}
    first, _ = predicted(list(texts.values()), request.model, folder / "first")
    greatest, told = 0, []
    for number, file in enumerate(first):
        words = ["--from", str(file), *(texts[name] for name in request.beside)]
        (second,), notices = predicted(words, request.model, folder / f"again-{number}")
        pixels = [np.asarray(Image.open(one)).astype(int) for one in (file, second)]
        same_kind = file.suffix == second.suffix and pixels[0].shape == pixels[1].shape
        greatest = max(greatest, int(np.abs(pixels[0] - pixels[1]).max()) if same_kind else 255)
        told += [notices] if notices else []
    return {"request": request.name, "pictures": len(first), "difference": greatest, "notices": "; ".join(told) or "-"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="requests whose name begins so")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, request in enumerate(make_requests(Path(folder))):
            if request.name.startswith(options.only or ""):
                rows.append(made_again(request, Path(folder) / str(number)))
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row["difference"] or row["notices"] != "-" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
