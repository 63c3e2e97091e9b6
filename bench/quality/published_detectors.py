"""Do files of the six published detectors load and detect? ``python -m bench.quality.published_detectors [--out DIR]``.

Builds each from ultralytics' own description, trains it for a few epochs on our drawings (the larger ones for fewer
steps), saves it as ultralytics does under the published name, and finds, loads and runs it as the package does. Prints
what each detects on held-out drawings.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from backend.core.settings import ROOT, Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.cli.fetch_weights import trust
from modules.detection.registry import OWN, find_detectors
from modules.detection.service import Detectors
from modules.detection.yolo import offline_ultralytics
from training.data.detector_samples import KINDS, Kind, softened, write_dataset
from training.evaluation.detector_score import average_precision, overlap, score
from training.models.detector import train

IMGSZ, HELD_OUT, LOWEST = 160, 60, 0.01
COURSES = {  # architecture, kind, pictures, epochs
    "face_yolov8n.pt": ("yolov8n.yaml", "face", 300, 6),
    "face_yolov8s.pt": ("yolov8s.yaml", "face", 200, 4),
    "hand_yolov8n.pt": ("yolov8n.yaml", "hand", 800, 16),
    "person_yolov8n-seg.pt": ("yolov8n-seg.yaml", "person", 300, 6),
    "person_yolov8s-seg.pt": ("yolov8s-seg.yaml", "person", 200, 4),
    "yolov8x-worldv2.pt": ("yolov8x-worldv2.yaml", "person", 120, 1),
}


def world() -> torch.nn.Module:
    """A world model with one class baked in, as a vector by chance."""
    from ultralytics.nn.tasks import WorldModel

    network: torch.nn.Module = WorldModel("yolov8x-worldv2.yaml", nc=1, verbose=False)
    network.txt_feats = torch.nn.functional.normalize(torch.randn(1, 1, 512), dim=-1)
    return network


def published(folder: Path, architecture: str, kind: Kind, pictures: int, epochs: int) -> torch.nn.Module:
    """The network as ultralytics would save it."""
    rng = random.Random(0)
    data = write_dataset(folder / "data", kind.label, (softened(kind.draw(rng), rng, 0.5) for _ in range(pictures)))
    kind = replace(kind, task="segment" if "-seg" in architecture else "detect")
    course = {"model": architecture, "imgsz": IMGSZ, "epochs": epochs, "lr0": 0.002, "mosaic": 0.0, "save": False}
    network = train(folder, kind, data, course, 0, world if "world" in architecture else None)
    network.names = {0: kind.label}  # type: ignore[assignment]
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="keep the files here; those that are there already are not trained again"
    )
    parser.add_argument("--only", nargs="*", default=list(COURSES), choices=COURSES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        weights = (arguments.out or Path(scratch, "weights")).resolve()
        (weights / "embedded").mkdir(parents=True, exist_ok=True)
        for name in OWN[:1]:
            for suffix in (".safetensors", ".yaml"):
                target = (weights / "embedded" / name).with_suffix(suffix)
                target.unlink(missing_ok=True)
                target.symlink_to((ROOT / "weights" / "embedded" / name).with_suffix(suffix))
        offline_ultralytics(Path(scratch, "ultralytics"))
        seconds = {}
        for name in arguments.only:
            if (weights / name).exists():
                continue
            architecture, kind, pictures, epochs = COURSES[name]
            begin = time.monotonic()
            network = published(Path(scratch, name), architecture, KINDS[kind], pictures, epochs)
            torch.save({"model": network.half(), "train_args": {"imgsz": IMGSZ}}, weights / name)
            trust(weights / name, weights)
            seconds[name] = time.monotonic() - begin
        settings, models = Settings(weights_dir=str(weights)), ModelCache(torch.device("cpu"))
        detectors = Detectors(find_detectors(settings), settings, models, OomFallback(models.downgrade))
        print(f"{'name':<24} {'million':>8} {'steps':>6} {'train s':>8} {'recall':>7} {'mAP50':>7}")
        for name in arguments.only:
            _, kind, pictures, epochs = COURSES[name]
            rng = random.Random(10_001)
            samples = [KINDS[kind].draw(rng) for _ in range(HELD_OUT)]
            truth = [np.array(sample.boxes, np.float64).reshape(-1, 4) for sample in samples]
            found = detectors.detect([sample.image for sample in samples], LOWEST, name)
            precision = average_precision(
                [overlap(one.boxes, real) for one, real in zip(found, truth)], [one.confidences for one in found]
            )
            recall = score(found, [sample.boxes for sample in samples])["recall"]
            with models.on_device(name) as (network,):
                million = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            print(
                f"{name:<24} {million:>8.2f} {pictures * epochs * 19 // 20 // 8:>6} {seconds.get(name, 0):>8.0f} "
                f"{recall:>7.3f} {precision:>7.3f}"
            )


if __name__ == "__main__":
    main()
