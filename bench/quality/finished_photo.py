"""A photograph finished at its own size: ``python -m bench.quality.finished_photo [--size 3000x2000]
[--photograph street] [--detector nudenet_face] [--confidence 0.3] [--scale 1] [--emulate-vram 1GB] [-o FOLDER]``.

A photograph of two people that ultralytics ships is resized and finished with the embedded models: no first pass, each
face, or what ``--detector`` finds, repainted. The table says how many pixels outside of the masks differ from the file
(none may, as long as nothing is upscaled), how long every stage took, and the peaks of device and host beside those of
the plan. Without ``--emulate-vram`` the models are on the CPU, where device and host are one.
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
from backend.core.units import format_bytes, parse_bytes
from backend.devices.probe import process_memory
from backend.devices.runtime import device_memory
from backend.memory_management import Workload, predicted_peak
from bench.support.markdown import table
from modules.app.service import Service, start
from modules.output.image_writer import read_parameters
from modules.pipeline.adetailer import AdetailerStage
from modules.request.adetailer_unit import AdetailerUnit

PHOTOGRAPHS = {"street": ("bus.jpg", (0, 330, 480, 650)), "touchline": ("zidane.jpg", (100, 0, 1180, 720))}
"""In ultralytics' assets, and the part of it that is taken: two men who look ahead, and two of whom one is seen from
the side."""
INPUTS = {"prompt": "two men", "prompt_strength": 0.0, "seed": 1, "num_inference_steps": 8}
STAGES = ("inputs", "generate", "adetailer", "upscale", "outputs")


def photograph(name: str, size: tuple[int, int]) -> Image.Image:
    """Ultralytics' photograph at this size, its sides cut off."""
    spec = find_spec("ultralytics")
    assert spec is not None and spec.submodule_search_locations is not None
    file, box = PHOTOGRAPHS[name]
    with Image.open(Path(spec.submodule_search_locations[0], "assets", file)) as image:
        return ImageOps.fit(image.convert("RGB").crop(box), size, Image.Resampling.LANCZOS)


def main(arguments: list[str] | None = None) -> int:
    options = _parsed(arguments)
    width, height = map(int, options.size.split("x"))
    service = start(
        replace(Settings(), model="embedded", emulate_vram=options.emulate_vram, log_level="WARNING", warm_up=False)
    )
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "photograph.png")
        photograph(options.photograph, (width, height)).save(given, compress_level=1)
        before = process_memory()
        unit = {"ad_model": options.detector, "ad_confidence": options.confidence}
        inputs = {**INPUTS, "image": given, "adetailer_args": json.dumps(unit), "scale": options.scale}
        inputs["output_format"] = "png"
        [file] = service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _, record = read_parameters(file)
        unchanged = "not compared"
        if options.scale == 1:
            unchanged = _differing(service, given, file, AdetailerUnit(options.detector, confidence=options.confidence))
        if options.o:
            options.o.mkdir(parents=True, exist_ok=True)
            file.rename(options.o / "finished.png")
    device = max(value for name, value in metrics.items() if name.endswith("peak_bytes"))
    faces = record["parameters"]["_adetailer_found"]
    workload = Workload(0, 0, detail_crop=service.profile.native, scale=options.scale, finished=(width, height))
    workload = replace(workload, details=len(faces), cached_prompts=Settings().prompt_cache_entries)
    rows = [
        ["found, with confidence", ", ".join(f"{confidence:.2f}" for *_, confidence in faces) or "nothing"],
        ["repainted", str(len(record["parameters"]["_adetailer_regions"]))],
        ["pixels outside of the masks that differ", unchanged],
        *[[f"seconds: {name}", f"{metrics.get(f'{name}.seconds', 0):.1f}"] for name in STAGES],
        ["memory of the device, predicted", format_bytes(_planned(service, workload, options.emulate_vram))],
        ["peak of the device" if options.emulate_vram else "peak of the process in the stages", format_bytes(device)],
        ["memory of the process before, at its peak", f"{format_bytes(before)}, {format_bytes(peak)}"],
        ["memory of the pictures, predicted", format_bytes(workload.picture_bytes)],
    ]
    print(table([{f"{width}x{height}, {options.detector}": name, "": value} for name, value in rows]))
    return 0 if unchanged in ("0", "not compared") else 1


def _planned(service: Service, workload: Workload, emulated: str) -> int:
    memory = device_memory(service.runtime.device, parse_bytes(emulated) if emulated else None)
    plan = service.runtime.plan
    workload = replace(workload, upscale_tile=plan.upscale_tile)
    return predicted_peak(memory, service.spec, workload, plan.placements)


def _differing(service: Service, given: Path, finished: Path, unit: AdetailerUnit) -> str:
    """How many pixels that no mask of the unit covers differ."""
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))
    with Image.open(finished) as after, Image.open(given) as before:
        with service.runtime.activate():
            [chosen] = stage.detail_pass.choose([before.convert("RGB")], unit)
        differs = (np.asarray(after) != np.asarray(before)).any(axis=2)
    for region in chosen.regions:
        differs[region.mask > 0] = False
    return str(int(differs.sum()))


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="3000x2000", help="width and height of the photograph")
    parser.add_argument("--photograph", choices=PHOTOGRAPHS, default="street")
    parser.add_argument("--confidence", type=float, default=0.3, help="from which something is repainted")
    parser.add_argument("--detector", default="nudenet_face", help="face_detector was trained on drawings")
    parser.add_argument("--scale", type=float, default=1.0, help="upscales what is finished")
    parser.add_argument("--emulate-vram", default="", help="a card of host memory of this size")
    parser.add_argument("-o", type=Path, default=None, help="folder for the finished picture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
