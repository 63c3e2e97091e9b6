"""Placements run on an emulated card whose copies take as long as on PCIe: bytes moved, seconds, and whether the pixels
are those of everything resident.

    python -m bench.memory.partial_residency [--rounds 3] [--steps 4] [--card 24] [--json]

A random Flux of 57 blocks is scaled down to 0.1 GB, and each card with it: it holds the same share of the models as the
real card holds of FLUX.1-dev in bf16 (1.5 GiB of it are a desktop's), and a copy of the transformer takes as long
against a step. Every way of placing models draws one picture a round, in turn, each with a new prompt; a figure is the
median of the rounds. What is copied beside the computation is copied by another thread.

- **everything resident**: a card with room for all.
- **our plan** is that of the memory plan for such a card, **without partial** that of a denoiser that may not keep a
  part of its blocks.
- **block offload**: transformer and T5 by blocks, the others whole.
- **component offload** uploads whole models, one after the other. accelerate would also copy them back.
- **WebUI rule**: everything else is unloaded, what fits of the model is loaded, and what does not is copied in every
  forward, while the computation waits. Forge would keep 1 GiB more free.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backend.core.settings import Settings
from backend.devices.emulated import EmulatedDevice
from backend.devices.probe import Device
from backend.devices.torchvision_ops import ensure_torchvision_operators
from backend.memory_management import MemoryPlan, MemoryRules, Placement, Workload, plan_memory, predicted_peak
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.offload.placements import StreamedModel, block_modules
from backend.planning.costs import FEWEST_STREAMED, DeviceMemory, Kind, standing_bytes, streamed_blocks
from backend.planning.gpu_specs import Card, card_named
from backend.planning.model_specs import ModelSpec
from backend.planning.rules import usable_bytes
from bench.support.markdown import table
from modules.app.model_files import Files, find_files
from modules.extension_optimizer import optional_features, select
from modules.families.registry import known_models
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from modules.pipeline.base import ImagePipeline

CARDS = ("RTX 4090", "RTX 4080", "RTX 4070", "RTX 4060")
SCALED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "transformer": {
            "num_layers": 19,
            "num_single_layers": 38,
            "num_attention_heads": 1,
            "joint_attention_dim": 128,
            "pooled_projection_dim": 64,
        },
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        "text_encoder": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "vocab_size": 1024,
        },
        "text_encoder_2": {"d_model": 128, "d_ff": 640, "num_layers": 24, "num_heads": 2, "vocab_size": 1088},
    }
)
"""FLUX.1-dev, 24 times narrower."""
SIDE = 128
HOST_BYTES = 10**12
DEVICE = Device("cpu", "emulated", 0, 0, None, torch.float32)
MARGIN_BYTES = 4 * 10**6
"""Kept free, as a real card's driver and fragmentation are; the small tensors of so narrow a model count for more."""
RULES = MemoryRules(context_bytes=MARGIN_BYTES, fragmentation_share=0)
STREAMED = ("transformer", "text_encoder_2")


@dataclass
class Way:
    """One way of placing the models, and what its pictures took."""

    name: str
    device: EmulatedDevice
    models: ModelCache
    fallback: OomFallback
    pipeline: ImagePipeline
    seconds: list[float] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)

    def draw(self, request: ImageRequest) -> None:
        before, begin = self.device.bytes_uploaded, time.perf_counter()
        with self.device:
            picture = self.pipeline.run(request).pictures[0].image
        self.seconds.append(time.perf_counter() - begin)
        self.moved.append(self.device.bytes_uploaded - before)
        self.pictures.append(np.asarray(picture))


@dataclass(frozen=True)
class Ground:
    """The scaled model: its files, its size, and the seconds of a step with everything resident."""

    files: Files
    spec: ModelSpec
    workload: Workload
    folder: Path
    step_seconds: float = 1.0

    def way(self, name: str, budget: int, bandwidth: float, plan: MemoryPlan) -> Way:
        from modules.app.wiring import assemble

        device = EmulatedDevice(budget, bandwidth, pin_bytes=HOST_BYTES)
        kinds = {model: placement.kind for model, placement in plan.placements.items()}
        kept = {model: placement.kept_blocks for model, placement in plan.placements.items()}
        models = ModelCache(torch.device("cpu"), device, kinds, plan.step_bytes, kept_blocks=kept)
        fallback = OomFallback(models)
        settings = settings_of(self.folder)
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        selection = select(settings).without(self.files.missing_models)
        made = assemble(self.files, selection, settings, DEVICE, plan, models, fallback, scratch)
        for model in models.names():
            models.load(model)
        return Way(name, device, models, fallback, made.pipeline)


def settings_of(folder: Path) -> Settings:
    nothing_else = tuple(optional_features())
    return replace(Settings(), model=str(folder), dtype="float32", log_level="ERROR", disabled_extensions=nothing_else)


def prepare(folder: Path, steps: int) -> Ground:
    ensure_torchvision_operators()  # before anything imports diffusers
    from bench.gpu.checkpoint import write_checkpoint

    write_checkpoint(folder, SCALED)
    settings = settings_of(folder)
    files = find_files(settings)
    spec = files.spec(torch.float32)
    workload = Workload(SIDE, SIDE, steps=steps)
    ground = Ground(files, spec, workload, folder)
    unlimited = 10**12
    resident = ground.way("calibration", unlimited, 0, plan_for(spec, workload, unlimited, 1e9, 1e12))
    for number in range(2):
        resident.draw(request(steps, number))
    return replace(ground, step_seconds=resident.seconds[-1] / steps)


def request(steps: int, number: int) -> ImageRequest:
    return ImageRequest(
        prompt=f"a picture, number {number}", width=SIDE, height=SIDE, seed=1, num_inference_steps=steps
    )


def plan_for(
    spec: ModelSpec, workload: Workload, budget: int, bandwidth: float, flops: float, partial: bool = True
) -> MemoryPlan:
    device = DeviceMemory("cuda", budget, None, HOST_BYTES, bandwidth, flops)
    return plan_memory(device, spec, workload, replace(RULES, partial=partial))


def scaled(card: Card, ground: Ground) -> tuple[int, float, float]:
    """Of a card as large and fast against the scaled model as it is against FLUX.1-dev: bytes, bytes per second of a
    copy, and operations per second."""
    real, device = known_models()["flux-dev"], card.device(held_bytes=card.held_bytes)
    share = usable_bytes(device, MemoryRules())[0] / sum(one.size() for one in real.components.values() if one.blocks)
    own = sum(one.size() for name, one in ground.spec.components.items() if name in STREAMED)
    work = real.costs["denoise"].work(real.text_tokens + (1024 // real.token_pixels) ** 2)
    copy_against_step = real.components["transformer"].size() / device.copy_bandwidth / (work / device.flops)
    bandwidth = ground.spec.components["transformer"].size() / (copy_against_step * ground.step_seconds)
    own_work = ground.spec.costs["denoise"].work(ground.spec.text_tokens + (SIDE // ground.spec.token_pixels) ** 2)
    return int(share * own) + MARGIN_BYTES, bandwidth, own_work / ground.step_seconds


def ways(card: Card, ground: Ground) -> tuple[list[Way], list[str]]:
    """All ways that fit the card, and the names of those that do not."""
    budget, bandwidth, flops = scaled(card, ground)
    spec, workload = ground.spec, ground.workload
    ours = plan_for(spec, workload, budget, bandwidth, flops)

    def forced(kind: Kind) -> MemoryPlan:
        lighter: Kind = "resident" if kind == "resident" else "model offload"
        places = {name: Placement(kind if name in STREAMED else lighter, "fp32") for name in spec.components}
        return replace(ours, placements=MappingProxyType(places))

    plans = {
        "everything resident": forced("resident"),
        "our plan": ours,
        "our plan without partial": plan_for(spec, workload, budget, bandwidth, flops, partial=False),
        "block offload": forced("block offload"),
        "component offload": forced("model offload"),
        "WebUI rule": forced("model offload"),
    }
    made, too_large = [], []
    device = DeviceMemory("cuda", budget, None, HOST_BYTES, bandwidth, flops)
    for name, plan in plans.items():
        room = 10**12 if name == "everything resident" else budget
        need = predicted_peak(device, spec, workload, plan.placements)
        if need > room and name == "component offload":
            too_large.append(name)
            continue
        way = ground.way(name, room, bandwidth, plan)
        if name == "WebUI rule":
            keep_what_fits(way, budget - MARGIN_BYTES - plan.step_bytes["transformer"], spec)
        made.append(way)
    return made, too_large


def keep_what_fits(way: Way, room: int, spec: ModelSpec) -> None:
    """Places the transformer by the WebUI rule: in one slot passes what of it does not fit into ``room``."""
    component = spec.components["transformer"]
    most = len(component.blocks) - FEWEST_STREAMED
    slot = component.bytes_of(max(component.blocks))
    kept = next(
        (
            k
            for k in range(most, 0, -1)
            if standing_bytes(Placement("partial", "fp32", False, k), component) + slot < room
        ),
        0,
    )
    with way.models._lock:
        module = way.models._placed["transformer"].detach()
        blocks = block_modules(module)
        streamed = [blocks[index] for index in streamed_blocks(len(blocks), kept)]
        parts = {block: list(block.modules()) for block in streamed}
        way.models._placed["transformer"] = StreamedModel(module, way.device, parts, slots=1)


def measure(card: Card, ground: Ground, rounds: int) -> list[dict[str, Any]]:
    made, too_large = ways(card, ground)
    for number in range(rounds + 1):
        for way in made:
            way.draw(request(ground.workload.steps, number))
    base = made[0]
    rows: list[dict[str, Any]] = []
    for way in made:
        retried = sum(way.fallback.retries.values())
        ratio = statistics.median(a / b for a, b in zip(way.seconds[1:], base.seconds[1:], strict=True))
        same = all(np.array_equal(a, b) for a, b in zip(way.pictures, base.pictures, strict=True))
        rows.append(
            {
                "card": card.title,
                "way": way.name + (" (memory was short)" if retried else ""),
                "MB moved": round(statistics.median(way.moved[1:]) / 1e6, 1),
                "seconds": round(statistics.median(way.seconds[1:]), 2),
                "of resident": round(ratio, 2),
                "pixels": "equal" if same else "differ",
            }
        )
    nothing: Mapping[str, Any] = {"MB moved": "", "seconds": "", "of resident": "", "pixels": ""}
    return rows + [{"card": card.title, "way": f"{name}: does not fit", **nothing} for name in too_large]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--card", type=int, action="append", help="GB; several may be given", default=[])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cards = [card for card in map(card_named, CARDS) if not options.card or card.gib in options.card]
    with tempfile.TemporaryDirectory() as folder:
        ground = prepare(Path(folder), options.steps)
        rows = [row for card in cards for row in measure(card, ground, options.rounds)]
    print(json.dumps({"steps": options.steps, "rounds": options.rounds, "rows": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
