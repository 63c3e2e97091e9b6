"""The product's own set-up and predictions on a fake card."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from support.fake_card_requests import LORA, Request, workloads_for, write_lora
from support.fake_cuda import FakeCard
from torch import nn

import backend.devices.runtime
import modules.detection.service
import modules.flux_memory_optimizer
from backend.core.settings import Settings
from backend.core.units import GIB, format_bytes
from backend.devices.speed import measure_speed
from backend.memory_management import MemoryPlan, ModelSpec, Workload, plan_memory, predicted_peak
from backend.planning.activations import Step, prediction_steps
from backend.planning.costs import (
    DeviceMemory,
    Kind,
    Placement,
    moved_bytes,
    passing_bytes,
    standing_bytes,
)
from backend.planning.gpu_specs import REPORTED_SHARE
from backend.planning.model_specs import Curve
from backend.planning.rules import MemoryRules
from backend.planning.search import PlanSearch
from modules.app.model_files import find_files
from modules.app.service import Service, start
from modules.detection.detections import Detections, rectangle_masks
from modules.detection.yolo import Detector, load_detector_network
from modules.extension_optimizer import optional_features, select
from modules.families.autoencoder_costs import DECODE_MAPS, DECODE_MAPS_16_BIT
from modules.lora.files.disk_cache import DiskCache
from modules.lora.files.sources import LoraSources
from modules.lora.files.store import LoraStore

ALONE: Mapping[str, Any] = {"disabled_extensions": list(optional_features())}
"""Settings that leave nothing but the model that generates."""
REQUEST: Mapping[str, Any] = {
    "prompt": "a woman with red hair",
    "seed": 1,
    "num_inference_steps": 6,
    "adetailer": False,
    "scale": 1,
    "output_format": "jpg",  # the fastest to write
}
"""Words to one picture of the native size, and nothing else."""
PROMPTS: Mapping[str, str] = {"z_image": "{}, as long as the plan counts it" + " with many words" * 50}
"""By family, in place of the request's name, for a denoiser that reads as many tokens as the prompt has."""


@dataclass(frozen=True)
class Prediction:
    """What one prediction did on the card; bytes of weights that the cache moved are ``moved``.
    ``waits_in_steps`` are those between the first and the last forward of a denoising loop."""

    flops: int
    peak_bytes: int
    uploaded: int
    pageable: int
    moved: int
    waits: tuple[tuple[str, str], ...]
    waits_in_steps: tuple[tuple[str, str], ...]


def start_on_card(model: Path, **settings: Any) -> Service:
    """The set-up without warm-up and compilation. To be called inside of a card. The plan counts with the speed of the
    card's name, and attention is PyTorch's own: what is measured here is the time of this machine."""
    chosen = {
        "device": "cuda",
        "compile": "off",
        "warm_up": False,
        "log_level": "WARNING",
        "quantized_cache_gb": 0,
        **settings,
    }
    with (
        patch.object(backend.devices.runtime, "measure_speed", _measured_in_vain),
        patch.object(modules.flux_memory_optimizer, "ATTENTION_BACKENDS", ()),
    ):
        return start(replace(Settings(), model=str(model), **chosen))


def start_with_lora(model: Path, folder: Path, dtype: str, disabled: Sequence[str]) -> Service:
    """The service, with a LoRA file of its own in ``folder``."""
    service = start_on_card(model, dtype=dtype, disabled_extensions=disabled, weight_precision="bf16")
    denoiser = service.profile.denoiser
    write_lora(folder, denoiser, service.models.module(denoiser))
    service.loras = LoraStore(LoraSources(("local",), folder), DiskCache((folder,), 0))
    return service


def _measured_in_vain(device: torch.device, dtype: torch.dtype) -> None:
    assert measure_speed(device, dtype)


def predict_on_card(card: FakeCard, service: Service, **inputs: Any) -> Prediction:
    """:data:`REQUEST` with these inputs."""
    card.peak_bytes = card.allocated_bytes
    flops, uploaded, pageable, waits = card.flops, card.bytes_uploaded, card.pageable_bytes, len(card.waits)
    metrics: dict[str, Any] = {}
    card.steps.clear()
    service.predict({**REQUEST, **inputs}, metrics.__setitem__, progress=lambda *args: None)
    return Prediction(
        card.flops - flops,
        card.peak_bytes,
        card.bytes_uploaded - uploaded,
        card.pageable_bytes - pageable,
        metrics["model_bytes_moved"],
        tuple(card.waits[waits:]),
        tuple(wait for loop in card.steps for wait in card.waits[loop[0] : loop[-1]]),
    )


def placements_of(spec: ModelSpec, kind: Kind, precision: str = "") -> dict[str, Placement]:
    """The denoiser placed as ``kind`` says, the others as near to that as they can be. What can be rounded is stored in
    ``precision``, if one is given."""
    lighter: Kind = "resident" if kind == "resident" else "model offload"
    placements = {}
    for name, component in spec.components.items():
        dtype = precision if precision and component.blocks and component.rounds else component.dtype
        if name == spec.denoiser:
            kept = len(component.blocks) // 2 if kind == "partial" else 0
            placements[name] = Placement(kind, dtype, kept_blocks=kept)
        else:
            streams = component.blocks and kind != "partial"
            placements[name] = Placement(kind if streams else lighter, "fp8" if dtype == "fp8_compute" else dtype)
    return placements


@contextmanager
def every_model_placed(kind: Kind, precision: str = "", pin_bytes: int | None = None) -> Iterator[None]:
    """Inside, plans have :func:`placements_of`, whether they fit or not, and pin ``pin_bytes``, by default all that
    waits. Details are repainted one by one, as the plan counts them."""

    def plan(device: DeviceMemory, spec: ModelSpec, workload: Workload, rules: MemoryRules, *_: Any) -> MemoryPlan:
        roomy = replace(device, total_bytes=10**12, free_bytes=None, host_bytes=10**12)
        made = plan_memory(roomy, spec, workload, rules)
        placements = placements_of(spec, kind, precision)
        search = PlanSearch(device, spec, replace(workload, upscale_tile=made.upscale_tile), rules)
        choice = tuple(search.option(name, placements[name]) for name in spec.components)
        pinned = sum(option.waiting for option in choice) if pin_bytes is None else pin_bytes
        return replace(
            made,
            placements=placements,
            max_detail_batch=1,
            max_tile_batch=1,
            one_pass_pixels=2**28,
            pin_bytes=pinned,
            pin_limit=int(1.05 * pinned),  # in whole pages, and the plan leaves out small tensors
            reserve_bytes=search.reserve,
            step_bytes=search.step_bytes(choice),
            predicted_peak_bytes=search.demand(choice)[0] + search.reserve,
        )

    with patch.object(backend.devices.runtime, "plan_memory", plan):
        yield


@contextmanager
def steps_watched(card: FakeCard, service: Service) -> Iterator[None]:
    """Inside, ``card.steps`` has for every denoising loop how often the host had waited at each forward."""
    diffusion = next(stage.service for stage in service.pipeline.stages if stage.name == "generate")  # type: ignore[attr-defined]
    denoise = diffusion.denoise

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        card.steps.append([])
        return denoise(*args, **kwargs)  # type: ignore[no-any-return]

    def forward(module: nn.Module, args: Any) -> None:
        card.steps[-1].append(len(card.waits))

    hook = service.models.module(service.profile.denoiser).register_forward_pre_hook(forward)
    try:
        with patch.object(diffusion, "denoise", watched):
            yield
    finally:
        hook.remove()


def differences(
    card: FakeCard, service: Service, memory: DeviceMemory, name: str, request: Request, family: str, folder: Path
) -> list[str]:
    """In what a prediction of ``request`` is not as the plan says. ``memory`` is that of the card before the set-up,
    ``folder`` where :func:`start_with_lora` has its file."""
    with steps_watched(card, service):
        did = predict_on_card(card, service, prompt=PROMPTS.get(family, "{}").format(name), **request.inputs)
    plan = as_planned(service, memory, request.workload, request.steps)
    moved_beside = (folder / f"{LORA}.safetensors").stat().st_size
    expected = {
        f"{did.flops / 1e12:.2f} TFLOP, planned {plan.flops / 1e12:.2f}": 0.995 <= did.flops / plan.flops <= 1.005,
        f"a peak of {format_bytes(did.peak_bytes)}, planned {format_bytes(plan.peak_bytes)} to "
        f"{format_bytes(plan.ahead_bytes)}": 0.85 * plan.peak_bytes < did.peak_bytes < 1.01 * plan.ahead_bytes,
        f"{format_bytes(did.moved)} moved, planned {format_bytes(plan.moved)}": abs(did.moved - plan.moved)
        <= max(0.02 * plan.moved, moved_beside),
        # pictures, noise and LoRA files, no weights
        f"{format_bytes(did.pageable)} copied from memory that is not pinned": did.pageable < 50_000_000,
        f"waits in the step loop: {did.waits_in_steps[:3]}": not did.waits_in_steps,
        f"the fallback was needed: {service.fallback.retries}": not sum(service.fallback.retries.values()),
    }
    return [told for told, holds in expected.items() if not holds]


@dataclass(frozen=True)
class Planned:
    """What the plan says of one prediction: operations, bytes of weights that move, and the peak without what is kept
    back for the driver, and for the workspace of kernels, which a fake card does not have. Where a card has room for
    more than the plan needs, the next model is uploaded ahead, and the peak is that of ``ahead_bytes``."""

    flops: float
    moved: int
    peak_bytes: int
    ahead_bytes: int


def as_planned(
    service: Service, memory: DeviceMemory, workload: Workload, steps: Sequence[Step] | None = None
) -> Planned:
    """``memory`` is that of the card before the set-up; ``steps`` are those of the prediction, unless they are all that
    the workload has."""
    spec, plan = without_workspace(service.spec), service.runtime.plan
    steps = steps or prediction_steps(workload, spec)
    moved = sum(
        moved_bytes(plan.placements[name], spec.components[name], step, previous)
        for step, previous in zip(steps, (None, *steps))
        for name in step.components
    )
    peak = predicted_peak(memory, spec, workload, plan.placements) - plan.reserve_bytes
    flops = sum(step.work * step.forwards for step in steps)
    remembered = workload.cached_prompts * spec.prompt_bytes + workload.lora_bytes
    return Planned(flops, moved, peak, max(peak, _ahead_bytes(service, peak, remembered)))


def _ahead_bytes(service: Service, peak: int, remembered: int) -> int:
    """The most that is on the card when models are uploaded ahead: the denoiser, or the autoencoder where it reads
    pictures, beside text encoders at work and what is ``remembered``, and later the autoencoder beside the
    denoiser."""
    components, placements = service.spec.components, service.runtime.plan.placements
    passing = {name: passing_bytes(placements[name], component) for name, component in components.items()}
    standing = sum(standing_bytes(placements[name], component) for name, component in components.items())
    reading = sum(passing[name] for name in (*service.profile.encoders, service.profile.denoiser))
    later = passing["vae"] if placements["vae"].kind != "resident" else 0
    return max(peak + later, standing + reading + service.runtime.plan.step_bytes["text_encoder"] + remembered)


def without_workspace(spec: ModelSpec) -> ModelSpec:
    decode = spec.costs["decode"]
    if spec.components["vae"].dtype == "fp32":
        return spec
    maps = Curve(linear=decode.memory.linear * DECODE_MAPS / DECODE_MAPS_16_BIT)
    return replace(spec, costs={**spec.costs, "decode": replace(decode, memory=maps)})


@contextmanager
def faces_at(*boxes: tuple[int, int, int, int]) -> Iterator[None]:
    """Inside, detectors run as they do, and then find these boxes; what a card without data finds is nothing. Each
    network is built once and then copied, because building one takes as long as all other models of a short one."""
    detect = Detector.detect

    def found(self: Detector, images: Any, *args: Any, **kwargs: Any) -> list[Detections]:
        results = detect(self, images, *args, **kwargs)
        places = np.array(boxes, np.float64)
        made = [Detections(places, rectangle_masks(places, image.size), np.full(len(boxes), 0.9)) for image in images]
        assert len(made) == len(results)
        return made

    def load(path: Path) -> nn.Module:
        return copy.deepcopy(_detector_network(path))

    with (
        patch.object(Detector, "detect", found),
        patch.object(modules.detection.service, "load_detector_network", load),
    ):
        yield


@functools.cache
def _detector_network(path: Path) -> nn.Module:
    return load_detector_network(path)


def smallest_card(model: Path, kind: Kind, precision: str, **settings: Any) -> FakeCard:
    """The smallest card for ``support/fake_card_requests.py`` with every model placed so, by what the plan predicts.
    It multiplies in fp8."""
    chosen = replace(Settings(), model=str(model), **settings)
    files, dtype = find_files(chosen, select(chosen)), getattr(torch, chosen.dtype)
    spec = files.spec(dtype, torch.float16)
    placements = placements_of(spec, kind, precision)
    device = DeviceMemory("cuda", total_bytes=10 * GIB)
    for _ in range(3):  # a share of the card is kept back
        need = max(predicted_peak(device, spec, workload, placements) for workload in workloads_for(spec).values())
        device = replace(device, total_bytes=need)
    return FakeCard(device.total_bytes / REPORTED_SHARE / GIB)
