"""Does another commit give the same pixels? Twelve requests with both.

    python -m bench.robustness.same_pixels --against REV [--json FILE]
    python -m bench.robustness.same_pixels --against-folder DIR          a checkout with an environment of its own
    python -m bench.robustness.same_pixels --against REV --its-models -i scale=1

Both sides run ``scripts/predict``, so that everything behind it may change. They use float32 on the CPU with their own
embedded models, or both with those of the other commit (``--its-models``), because they may have been trained anew
since; and tiny random SDXL and SD 1.5 models. ``-i`` is an input of all requests that do not set it themselves. Exit
code 1 if any pixel differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from transformers.utils.logging import disable_progress_bar

from bench.support.tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
WOMAN = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
COMMON = {"prompt": WOMAN, "seed": 3, "num_inference_steps": 4, "output_format": "png"}
UNITS = [{"ad_confidence": 0.5, "ad_mask_blur": 8}, {"ad_model": "person_detector", "ad_denoising_strength": 0.6}]


@dataclass(frozen=True)
class Request:
    name: str
    inputs: Mapping[str, object] = field(default_factory=dict)  # over those of COMMON
    model: str = "embedded"
    options: tuple[str, ...] = ()


def make_requests(scratch: Path) -> list[Request]:
    """The twelve requests. Their input files and tiny models are written to ``scratch``."""
    picture = Image.new("RGB", (256, 256), (90, 160, 90))
    face = ImageDraw.Draw(picture)
    face.ellipse((80, 70, 176, 210), (240, 200, 170), (44, 34, 38), 3)
    for left in (99, 139):
        face.ellipse((left, 122, left + 18, 136), (252, 252, 252), (44, 34, 38), 2)
    face.arc((104, 150, 152, 186), 20, 160, (150, 40, 50), 4)
    picture.save(scratch / "picture.png")
    ImageOps.expand(Image.new("L", (128, 90), 255), (64, 20, 64, 146)).save(scratch / "mask.png")
    for family in ("sdxl", "sd15"):
        write_tiny_model(scratch / family, family)
    image = {"image": f"@{scratch / 'picture.png'}"}
    unsure = {"negative_prompt": "a hat", "adetailer_args": json.dumps({"ad_confidence": 0.05})}  # it looks at noise
    return [
        Request("text"),
        Request("image", {**image, "prompt_strength": 0.6}),
        Request("image and mask", {**image, "mask": f"@{scratch / 'mask.png'}", "prompt": "a yellow hat"}),
        Request("batch of 4", {"num_outputs": 4}),
        Request("Hires fix, DPM++ 2M", {"enable_hr": True, "hr_scale": 1.5, "sampler": "DPM++ 2M"}),
        Request("hands", {"prompt": "two people waving, full body, green background", "ad_hands_prompt": "a hand"}),
        Request("two ADetailer units", {"adetailer_args": json.dumps(UNITS)}),
        Request("Karras, upscaled by 4", {"scheduler": "Karras", "num_inference_steps": 8, "scale": 4}),
        Request("SDXL", unsure, str(scratch / "sdxl")),
        Request("SD 1.5, DPM++ 2M, Karras", {"sampler": "DPM++ 2M", "scheduler": "Karras"}, str(scratch / "sd15")),
        Request("card of 64 MB", {"num_outputs": 2}, options=("--emulate-vram", "64MB")),
        Request("card of 34 MB", options=("--emulate-vram", "34MB")),
    ]


def draw(request: Request, checkout: Path, models: Path, folder: Path) -> tuple[list[np.ndarray], float]:
    """The pictures that a checkout draws with the embedded models of ``models``, and the seconds of the whole command.
    Ends the program when it draws none."""
    weights = folder / "weights"  # without what was downloaded: only one side may have it
    weights.mkdir(parents=True)
    (weights / "embedded").symlink_to(models / "weights" / "embedded")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
    environment |= {"FLUX_DTYPE": "float32", "FLUX_DEVICE": "cpu", "FLUX_LOG_LEVEL": "WARNING"}
    environment |= {"FLUX_MODEL": request.model, "FLUX_WEIGHTS_DIR": str(weights)}
    inputs = [word for name, value in {**COMMON, **request.inputs}.items() for word in ("-i", f"{name}={value}")]
    command = [str(checkout / "scripts" / "predict"), *inputs, "-o", str(folder), "--json", *request.options]
    begin = time.monotonic()
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - begin, 1)
    if process.returncode:
        sys.exit(f"{request.name}: scripts/predict of {checkout} ends with {process.returncode}:\n{process.stderr}")
    return [np.asarray(Image.open(folder / file)).astype(int) for file in json.loads(process.stdout)["files"]], seconds


def compare(request: Request, there: Path, models: Path, scratch: Path) -> dict[str, object]:
    """A row of the table; its difference is the largest of 255, or "sizes" where number or sizes of pictures differ."""
    ours, seconds_here = draw(request, ROOT, models, scratch / "here" / request.name)
    theirs, seconds_there = draw(request, there, there, scratch / "there" / request.name)
    alike = [picture.shape for picture in ours] == [picture.shape for picture in theirs]
    difference = max(int(np.abs(a - b).max()) for a, b in zip(ours, theirs)) if alike else "sizes"
    seconds = {"seconds_here": seconds_here, "seconds_there": seconds_there}
    return {"request": request.name, "pictures": len(ours), "difference": difference, **seconds}


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A temporary worktree of the revision with the packages of this checkout."""
    git = ["git", "-C", str(ROOT), "worktree"]
    if subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=False).returncode:
        sys.exit(1)  # git has said why
    try:
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        shutil.copy(ROOT / "requirements.txt", folder)  # else scripts/predict would install its list into our packages
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--against", metavar="REV", help="a commit, which is checked out for the time of the comparison")
    other.add_argument("--against-folder", type=Path, metavar="DIR", help="a checkout that can draw")
    parser.add_argument("--its-models", action="store_true", help="both draw with the other's embedded models")
    parser.add_argument("-i", dest="inputs", action="append", default=[], metavar="NAME=VALUE", help="of all requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    if wrong := [one for one in options.inputs if "=" not in one]:
        parser.error(f"-i {wrong[0]}: give NAME=VALUE")
    inputs = dict(one.split("=", 1) for one in options.inputs)
    disable_progress_bar()
    line, rows = "{:<26} {:>8} {:>10} {:>12} {:>6}", []
    with tempfile.TemporaryDirectory() as temporary:
        scratch, folder = Path(temporary), options.against_folder
        with nullcontext(folder.resolve()) if folder else checked_out(options.against, scratch / "checkout") as there:
            print(line.format("request", "pictures", "difference", "seconds here", "there"))
            models = there if options.its_models else ROOT
            for request in make_requests(scratch):
                asked = replace(request, inputs={**inputs, **request.inputs})
                rows.append(compare(asked, there, models, scratch))
                print(line.format(*rows[-1].values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    different = [str(row["request"]) for row in rows if row["difference"] != 0]
    print("different: " + ", ".join(different) if different else "all pixels are equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
