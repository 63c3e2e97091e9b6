"""Requests for a fake card, and the steps that the memory plan counts for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from support.lora_files import lora_file, named, random_pairs

from backend.memory_management import ModelSpec, Workload
from backend.planning.activations import Step, prediction_steps

STEPS = 3
FACES = ((60, 60, 180, 180), (250, 80, 360, 200), (90, 300, 220, 440))
"""Where three details are. They are repainted at the native size."""
HIRES, STRENGTH, DETAIL_STRENGTH = 1.25, 0.7, 0.4
LORA = "one"
"""The name of the file that :func:`write_lora` writes."""


@dataclass(frozen=True)
class Request:
    """``inputs`` beside those of every request; ``workload`` and ``steps`` are what the plan counts for it."""

    inputs: Mapping[str, Any]
    workload: Workload
    steps: Sequence[Step]


def workloads_for(spec: ModelSpec, steps: int = STEPS) -> dict[str, Workload]:
    """From words; two pictures; with a second pass; where there are detectors, with :data:`FACES`."""
    side, larger = spec.native, int(HIRES * spec.native)
    text = Workload(side, side, steps=steps, cached_prompts=8)
    detailed = replace(text, detail_crop=side, details=len(FACES), detail_strength=DETAIL_STRENGTH)
    return {
        "text": text,
        "two": replace(text, outputs=2),
        "hires": replace(text, hires=(larger, larger), hires_strength=STRENGTH),
        **({"three details": detailed} if "detect" in spec.costs else {}),
    }


def requests_for(spec: ModelSpec, folder: Path, count: int = STEPS) -> dict[str, Request]:
    """Those of :func:`workloads_for`, an image with a mask, another sampler and a LoRA, of ``count`` steps. ``folder``
    gets the files."""
    side = spec.native
    Image.new("RGB", (side, side), "grey").save(picture := folder / "picture.png")
    ImageDraw.Draw(area := Image.new("L", (side, side))).rectangle((100, 100, 300, 300), fill=255)
    area.save(mask := folder / "mask.png")
    workloads = workloads_for(spec, count)
    steps = {name: prediction_steps(workload, spec) for name, workload in workloads.items()}
    repainting = replace(workloads["text"], detail_crop=side, detail_strength=STRENGTH)
    # as a detail of the picture's size; its detection is not among the last three steps
    with_detectors = replace(spec, costs={"detect": spec.costs["decode"], **spec.costs})
    repaint = (steps["text"][0], *prediction_steps(repainting, with_detectors)[-3:])
    from_image = {"image": picture, "mask": mask, "prompt_strength": STRENGTH}
    second_pass = {"enable_hr": True, "hr_scale": HIRES, "denoising_strength": STRENGTH}
    inputs: dict[str, Mapping[str, Any]] = {
        "text": {},
        "two": {"num_outputs": 2},
        "hires": second_pass,
        "three details": {"adetailer": True},
    }
    requests = {
        **{name: Request(inputs[name], workload, steps[name]) for name, workload in workloads.items()},
        "image and mask": Request(from_image, workloads["text"], repaint),
        "solver": Request({"sampler": "DPM++ 2M"}, workloads["text"], steps["text"]),
        "lora": Request({"lora_weights": LORA}, workloads["text"], steps["text"]),
    }
    return {name: replace(one, inputs={**one.inputs, "num_inference_steps": count}) for name, one in requests.items()}


def write_lora(folder: Path, component: str, denoiser: torch.nn.Module) -> None:
    """A LoRA of rank 4 for the queries and values of a denoiser, in diffusers' names."""
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in denoiser.named_modules()
        if name.endswith(("to_q", "to_v")) and isinstance(layer, torch.nn.Linear)
    }
    folder.mkdir(parents=True, exist_ok=True)
    lora_file(named(random_pairs(shapes), lambda path: f"{component}.{path}"), folder / f"{LORA}.safetensors")
