"""Seconds a picture of the safety checkers that ride in packages: ``python -m bench.speed.safety [--runs 20]``.

One photograph that ultralytics ships, at 1024 x 1024, through the service of the last stage.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from backend.core.settings import Settings
from modules.app.service import start
from modules.pipeline.safety_check import SafetyCheckStage
from modules.safety.discovery import PACKAGED

SIDE = 1024


def photograph() -> Image.Image:
    found = find_spec("ultralytics")  # found, not imported: the package decides when that happens
    assert found and found.origin
    with Image.open(Path(found.origin).parent / "assets" / "bus.jpg") as image:
        return image.convert("RGB").resize((SIDE, SIDE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    picture = photograph()
    for name in PACKAGED:
        settings = replace(Settings(), model="embedded", safety_checker=name, warm_up=False, log_level="ERROR")
        stages = start(settings).pipeline.stages
        safety = next(stage.safety for stage in stages if isinstance(stage, SafetyCheckStage))
        assert safety is not None
        seconds = []
        for _ in range(arguments.runs + 1):
            begin = time.perf_counter()
            safety.objections([picture])
            seconds.append(time.perf_counter() - begin)
        print(f"{name:<10} {1000 * statistics.median(seconds[1:]):6.1f} ms a picture")


if __name__ == "__main__":
    main()
