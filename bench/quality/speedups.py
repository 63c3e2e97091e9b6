"""What each speed-up costs in quality: ``python -m bench.quality.speedups [--prompts 40] [--steps 28] [--only go_fast]
[--weights weights] [--json]``.

The generate stage runs the held-out prompts of the training, plainly and with each technique. The table has the PSNR
against the plain pictures (median and worst), how many of the requested colours are there (face, hair, shirt,
background; ``training/evaluation/adherence.py``), and the time relative to the plain run. What costs quality is never a
default.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backend.checkpoints.packed_weight import PackedWeight
from backend.core.settings import Settings
from backend.offload.packed_linear import keep_packed
from backend.offload.placements import block_modules
from bench.support.markdown import table
from modules.app.service import Service, start
from modules.detection.yolo import Detector
from modules.pipeline.base import ImagePipeline
from modules.request.image_request import ImageRequest
from training.data.held_out import held_out_prompts
from training.evaluation.adherence import COLOURS, measure

TECHNIQUES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "plain": {},
        "go_fast": {"go_fast": True},
        "bfloat16": {"dtype": "bfloat16"},
        "weight_precision fp8": {"stored_as": "fp8"},
        "fp8 products": {"stored_as": "fp8_compute"},
        "fp8 products, go_fast": {"stored_as": "fp8_compute", "go_fast": True},
        "weight_precision nf4": {"stored_as": "nf4"},
        "GGUF Q8_0": {"stored_as": "Q8_0"},
        "GGUF Q4_0": {"stored_as": "Q4_0"},
        "compile": {"compile": "on"},
    }
)
"""Settings of the service; but ``go_fast`` is an input, and ``stored_as`` rounds transformer and T5 as the setting
``weight_precision`` allows, or as a GGUF file of that type has them."""
GGUF = ("Q8_0", "Q4_0")


@dataclass(frozen=True)
class Drawn:
    pictures: list[Image.Image]
    seconds: float
    right: Mapping[str, int]


def draw(technique: str, prompts: list[tuple[str, dict[str, str]]], steps: int, weights: str) -> Drawn:
    """All prompts with one technique, each with a seed of its own; the median of the seconds, and what is as it was
    asked. ``weights`` is the folder of the embedded models."""
    changes = {"dtype": "float32", **TECHNIQUES[technique]}
    go_fast, stored_as = changes.pop("go_fast", False), changes.pop("stored_as", "")
    service = embedded(weights, **changes)
    if stored_as:
        from backend.offload.quantized_linear import quantize

        store = packed_as_gguf if stored_as in GGUF else quantize
        with service.models.on_device("transformer", "text_encoder_2") as modules:
            for module, form in zip(modules, (stored_as, stored_as.removesuffix("_compute")), strict=True):
                store(module, form, service.runtime.device.dtype)
    pictures, seconds = pictures_of(service, [prompt for prompt, _ in prompts], steps, go_fast)
    return Drawn(pictures, statistics.median(seconds), adherence(service, pictures, [asked for _, asked in prompts]))


def embedded(weights: str, **settings: Any) -> Service:
    """The service with the embedded models in the folder ``weights``."""
    chosen = {"model": "embedded", "weights_dir": weights, "log_level": "ERROR", "warm_up": False, **settings}
    return start(replace(Settings(), **chosen))


def pictures_of(
    service: Service, prompts: Sequence[str], steps: int, go_fast: bool = False
) -> tuple[list[Image.Image], list[float]]:
    """What the generate stage draws, each with a seed of its own, and the seconds."""
    pipeline = ImagePipeline([stage for stage in service.pipeline.stages if stage.name == "generate"])
    side = service.profile.native
    pictures, seconds = [], []
    for index, prompt in enumerate(prompts):
        request = ImageRequest(
            prompt=prompt, width=side, height=side, seed=index, num_inference_steps=steps, go_fast=go_fast
        )
        begin = time.perf_counter()
        pictures.append(pipeline.run(request).pictures[0].image)
        seconds.append(time.perf_counter() - begin)
    return pictures, seconds


def packed_as_gguf(module: nn.Module, form: str, dtype: torch.dtype) -> nn.Module:
    """The linear layers of a model's blocks as a GGUF file has them, rounded by llama.cpp's own package."""
    import gguf

    kind, (columns, _) = gguf.GGMLQuantizationType[form], gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
    blocks = {id(part) for block in block_modules(module) for part in block.modules()}
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and id(layer) in blocks and layer.in_features % columns == 0:
            rows = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().float().numpy(), kind).copy())
            layer.weight = nn.Parameter(PackedWeight(form, [rows], layer.in_features, dtype), requires_grad=False)
    return keep_packed(module, dtype)


def adherence(service: Service, pictures: list[Image.Image], asked: list[dict[str, str]]) -> dict[str, int]:
    """In how many pictures there is a face, and the colours that were asked for around it."""
    with service.models.on_device("face_detector") as (network,):
        found = Detector(network).detect(pictures, 0.3)
    right = {"face": 0, **dict.fromkeys(COLOURS, 0)}
    for picture, detections, colours in zip(pictures, found, asked, strict=True):
        if len(detections):
            right["face"] += 1
            seen = measure(picture, detections.boxes[int(detections.confidences.argmax())])
            for name, colour in colours.items():
                right[name] += seen[name] == colour
    return right


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = float(np.square(np.asarray(a).astype(float) - np.asarray(b).astype(float)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compare(techniques: list[str], count: int, steps: int, weights: str) -> list[dict[str, Any]]:
    prompts = held_out_prompts()[:count]
    drawn = {name: draw(name, prompts, steps, weights) for name in ["plain", *techniques]}
    rows = []
    for name, one in drawn.items():
        likeness = [psnr(a, b) for a, b in zip(one.pictures, drawn["plain"].pictures, strict=True)]
        rows.append(
            {
                "technique": name,
                "time": round(one.seconds / drawn["plain"].seconds, 2),
                "psnr_median": round(statistics.median(likeness), 1),
                "psnr_worst": round(min(likeness), 1),
                **one.right,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--only", action="append", choices=[name for name in TECHNIQUES if name != "plain"], default=[])
    parser.add_argument("--weights", default="weights", help="the folder of the embedded models")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    techniques = arguments.only or [name for name in TECHNIQUES if name != "plain"]
    rows = compare(techniques, arguments.prompts, arguments.steps, arguments.weights)
    if arguments.json:
        print(json.dumps({"prompts": arguments.prompts, "steps": arguments.steps, "rows": rows}))
        return
    print(table(rows))


if __name__ == "__main__":
    main()
