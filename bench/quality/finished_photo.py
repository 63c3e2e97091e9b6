"""A photograph finished at its own size: ``python -m bench.quality.finished_photo [--size 3000x2000] [--detector NAME]
[--confidence 0.3] [--emulate-vram 1GB] [-o FOLDER]``.

The photograph of two people that ultralytics ships is resized and finished with the embedded models: no first pass,
each face, or what ``--detector`` finds, repainted. The table says how many pixels outside of the crops differ from the
file (none may), how long every stage took, what the plan predicted, and the peaks of device and host. With a low
confidence there are many regions. Without ``--emulate-vram`` the models are on the CPU, where device and host are one.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from backend.core.settings import Settings
from backend.core.units import format_bytes
from bench.support.markdown import table
from modules.app.service import start
from modules.output.image_writer import read_parameters

PHOTOGRAPH = "assets/zidane.jpg"
"""In ultralytics: 1280 x 720."""
INPUTS = {"prompt": "two men", "prompt_strength": 0.0, "seed": 1, "num_inference_steps": 8, "scale": 1.0}


def photograph(size: tuple[int, int]) -> Image.Image:
    """Ultralytics' photograph at this size, its sides cut off."""
    spec = find_spec("ultralytics")
    assert spec is not None and spec.submodule_search_locations is not None
    with Image.open(Path(spec.submodule_search_locations[0], PHOTOGRAPH)) as image:
        return ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="3000x2000", help="width and height of the photograph")
    parser.add_argument("--confidence", type=float, default=0.3, help="of a face; the detector was trained on drawings")
    parser.add_argument("--detector", default="face_detector", help="person_detector finds both people")
    parser.add_argument("--emulate-vram", default="", help="a card of host memory of this size")
    parser.add_argument("-o", type=Path, default=None, help="folder for the finished picture")
    options = parser.parse_args(arguments)
    width, height = map(int, options.size.split("x"))
    service = start(
        replace(Settings(), model="embedded", emulate_vram=options.emulate_vram, log_level="WARNING", warm_up=False)
    )
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "photograph.png")
        photograph((width, height)).save(given, compress_level=1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        units = json.dumps({"ad_model": options.detector, "ad_confidence": options.confidence})
        inputs = {**INPUTS, "image": given, "adetailer_args": units, "output_format": "png"}
        [file] = service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
        _, record = read_parameters(file)
        boxes = record["parameters"]["_adetailer_regions"]
        with Image.open(file) as finished, Image.open(given) as original:
            differs = (np.asarray(finished) != np.asarray(original)).any(axis=2)
            if options.o:
                options.o.mkdir(parents=True, exist_ok=True)
                finished.save(options.o / "finished.png")
    changed, outside = float(differs.mean()), differs
    for left, top, right, bottom in boxes:
        outside[top:bottom, left:right] = False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = max(value for name, value in metrics.items() if name.endswith("peak_bytes"))
    stages = ("inputs", "generate", "adetailer", "outputs")
    plan = service.runtime.plan
    rows = [
        ["repainted", str(len(boxes))],
        ["share of the pixels changed", f"{changed:.1%}"],
        ["pixels outside of the crops that differ", str(int(outside.sum()))],
        *[[f"seconds: {name}", f"{metrics.get(f'{name}.seconds', 0):.1f}"] for name in stages],
        ["peak that the plan predicts", format_bytes(plan.predicted_peak_bytes)],
        ["peak of the device" if options.emulate_vram else "peak of the process in the stages", format_bytes(device)],
        ["peak of the process before, after", f"{format_bytes(before)}, {format_bytes(peak)}"],
    ]
    print(table([{f"{width}x{height}": name, "": value} for name, value in rows]))
    return 1 if outside.any() else 0


if __name__ == "__main__":
    sys.exit(main())
