"""A table of sixteen rows, and the command that draws it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from backend.core.settings import ROOT
from backend.nodes.result_log import MANIFEST

QUICK: dict[str, Any] = {
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1.0,
    "output_format": "png",
}


COLOURS = ("red", "blue", "green", "yellow")


BROKEN = ("row-05", "row-08", "row-13")


def table_of_sixteen(folder: Path) -> Path:
    """16 rows, of which one has a number out of range, one a picture that is not there, and one a size that is off
    the grid."""
    columns = ["id", "prompt", "seed", "image", "aspect_ratio", "width", "height", *QUICK]
    path = folder / "table.csv"
    with path.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        for index in range(16):
            row = {
                "id": f"row-{index:02}",
                "prompt": f"a woman with {COLOURS[index % 4]} hair, number {index}",
                **QUICK,
            }
            row |= {"seed": index} if index % 2 else {}
            broken = {
                5: {"num_inference_steps": 99},
                8: {"image": "missing.png"},
                13: {"aspect_ratio": "custom", "width": 272, "height": 256},
            }
            writer.writerow(row | broken.get(index, {}))
    return path


ENVIRONMENT = {"FLUX_MODEL": "embedded", "FLUX_DTYPE": "float32", "FLUX_WARM_UP": "false"}


def run_command(*arguments: str | Path, python: str = sys.executable) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **ENVIRONMENT}
    return subprocess.Popen(
        [python, "-m", "modules.cli.batch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest by row; a row that has two lines fails."""
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def pixels(folder: Path) -> dict[str, bytes]:
    """What the pictures show, by file; the files themselves also hold the seconds that they took."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found[path.name] = image.tobytes()
    return found
