"""The six detectors that ADetailer offers, as files of their architectures trained on our drawings: do they resolve, load and find?

    python -m bench.published_detectors [--out DIR]

Builds each from ultralytics' own description, trains it for a few epochs (the larger ones for fewer steps), saves it as ultralytics
does under the published name, and looks it up, loads and runs it as the package does. Prints what each finds on held-out drawings.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.fetch_command import trust
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder
from backend.settings import ROOT, Settings
from modules.adetailer.detection import offline_ultralytics
from modules.adetailer.detector_names import OWN, find_detectors
from modules.adetailer.detectors import Detectors
from training.detector_samples import KINDS, write_dataset
from training.detector_score import average_precision, overlap, score

IMGSZ, HELD_OUT, LOWEST = 160, 60, 0.01
COURSES = {  # architecture, kind, pictures, epochs
    "face_yolov8n.pt": ("yolov8n.yaml", "face", 300, 6),
    "face_yolov8s.pt": ("yolov8s.yaml", "face", 200, 4),
    "hand_yolov8n.pt": ("yolov8n.yaml", "hand", 300, 6),
    "person_yolov8n-seg.pt": ("yolov8n-seg.yaml", "person", 300, 6),
    "person_yolov8s-seg.pt": ("yolov8s-seg.yaml", "person", 200, 4),
    "yolov8x-worldv2.pt": ("yolov8x-worldv2.yaml", "person", 120, 2),
}


def train(folder: Path, architecture: str, kind: str, pictures: int, epochs: int) -> Any:
    """The network as ultralytics would save it. A world model is trained with one class baked in, as a vector by chance."""
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer
    from ultralytics.nn.tasks import WorldModel

    base = SegmentationTrainer if "-seg" in architecture else DetectionTrainer

    class Trainer(base):  # type: ignore[misc, valid-type]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            if "world" not in architecture:
                return super().get_model(cfg, weights, verbose)
            network = WorldModel(architecture, nc=1, verbose=False)
            network.txt_feats = torch.nn.functional.normalize(torch.randn(1, 1, 512), dim=-1)
            return network

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def final_eval(self) -> None:
            pass

    data = write_dataset(folder / "data", KINDS[kind], pictures, random.Random(0))
    where = {"device": "cpu", "amp": False, "workers": 0, "cache": "ram", "plots": False, "val": False, "verbose": False, "pretrained": False, "save": False}
    course = {"imgsz": IMGSZ, "epochs": epochs, "batch": 8, "nbs": 8, "optimizer": "AdamW", "lr0": 0.002, "cos_lr": True, "warmup_epochs": 0.5, "mosaic": 0.0}
    trainer = Trainer(overrides={"model": architecture, "data": str(data), "project": str(folder), **where, **course})
    trainer.train()
    network = trainer.ema.ema.eval()
    network.names = {0: KINDS[kind].label}
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the files here")
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
            architecture, kind, pictures, epochs = COURSES[name]
            begin = time.monotonic()
            network = train(Path(scratch, name), architecture, kind, pictures, epochs)
            torch.save({"model": network.half(), "train_args": {"imgsz": IMGSZ}}, weights / name)
            trust(weights / name, weights)
            seconds[name] = time.monotonic() - begin
        settings, models = Settings(weights_dir=str(weights)), ModelCache(torch.device("cpu"))
        detectors = Detectors(find_detectors(settings), settings, models, Ladder(models.make_leaner))
        print(f"{'name':<24} {'million':>8} {'steps':>6} {'train s':>8} {'recall':>7} {'mAP50':>7}")
        for name in arguments.only:
            _, kind, pictures, epochs = COURSES[name]
            rng = random.Random(10_001)
            samples = [KINDS[kind].draw(rng) for _ in range(HELD_OUT)]
            truth = [np.array(sample.boxes, np.float64).reshape(-1, 4) for sample in samples]
            found = detectors.detect([sample.image for sample in samples], LOWEST, name)
            precision = average_precision([overlap(one.boxes, real) for one, real in zip(found, truth)], [one.confidences for one in found])
            recall = score(found, [sample.boxes for sample in samples])["recall"]
            with models.on_device(name) as (network,):
                million = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            print(f"{name:<24} {million:>8.2f} {pictures * epochs * 19 // 20 // 8:>6} {seconds[name]:>8.0f} {recall:>7.3f} {precision:>7.3f}")


if __name__ == "__main__":
    main()
