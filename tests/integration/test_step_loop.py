"""What surrounds the steps: nothing in the loop waits for the device, and nothing is computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from PIL import Image
from support.pictures import PICTURE, PROMPT
from support.services import flux_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from backend.core.settings import ROOT
from backend.core.timeline import Timeline
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.families.flux1 import FLUX1
from modules.families.flux1.service import FluxService
from modules.families.source import Source

FOLDER = ROOT / "weights" / "embedded" / "flux"
META = torch.device("meta")
DRAWING = DenoiseRequest((PROMPT,), (7,), 256, 256, steps=6, guidance=3.5)
PICTURE_TO_REDRAW = {"images": (Image.new("RGB", (256, 256)),), "strength": 0.7}


class Operations(TorchDispatchMode):
    """Counts what is computed, by the name of the operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def without_data(prepare: Callable[[str, nn.Module], nn.Module]) -> FluxService:
    """The service that draws, on a device whose tensors hold nothing: whoever asks one for its value gets an error."""

    def transformer() -> nn.Module:
        with META:
            module: nn.Module = FluxTransformer2DModel.from_config(
                FluxTransformer2DModel.load_config(FOLDER / "transformer")
            )
        return module

    models = ModelCache(META, prepare=prepare)
    models.register("transformer", transformer)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(FOLDER / "scheduler", trust_remote_code=False)
    return FluxService(models, FLUX1.profile(Source(FOLDER)), scheduler, None, None, torch.float32, OomFallback())  # type: ignore[arg-type]


def embeddings() -> PromptEmbeddings:
    return PromptEmbeddings(torch.empty(1, 40, 192, device=META), torch.empty(1, 128, device=META))


@pytest.mark.parametrize(
    "change",
    [{}, PICTURE_TO_REDRAW, {**PICTURE_TO_REDRAW, "masks": (Image.new("L", (256, 256), 255),)}],
    ids=["words", "image", "mask"],
)
def test_no_step_asks_the_device_for_a_value(change: dict[str, Any]) -> None:
    drawing = DenoiseRequest(**{**vars(DRAWING), **change})
    given = PictureLatents(torch.empty(1, 16, 16, 16, device=META) if drawing.images else None)
    told: list[tuple[int, int]] = []
    with torch.inference_mode():
        latents = without_data(lambda name, module: module).denoise(
            drawing, embeddings(), given, lambda done, total, latents: told.append((done, total))
        )
    assert latents.device == META and latents.shape == (1, 64, 64)
    assert told[-1] == (drawing.steps_run(),) * 2


def test_the_device_without_data_notices_who_asks() -> None:
    def nosy(name: str, module: nn.Module) -> nn.Module:
        module.register_forward_pre_hook(
            lambda module, args, kwargs: print(float(kwargs["timestep"])), with_kwargs=True
        )
        return module

    with torch.inference_mode(), pytest.raises(RuntimeError, match="meta"):
        without_data(nosy).denoise(DRAWING, embeddings(), PictureLatents(), None)


def test_noise_is_drawn_once_and_more_steps_read_no_more_values(service: Service) -> None:
    flux = flux_of(service)
    counts = []
    for steps in (3, 6):
        with Operations() as operations:
            flux.generate(DenoiseRequest(**{**vars(DRAWING), "steps": steps}), Monitor(Timeline()))
        counts.append(operations.counts)
    assert counts[0]["randn"] + counts[0]["normal_"] == counts[1]["randn"] + counts[1]["normal_"] == 1
    assert counts[0]["_local_scalar_dense"] == counts[1]["_local_scalar_dense"]


def test_every_model_runs_in_inference_mode(service: Service) -> None:
    seen: dict[str, set[bool]] = {}
    hooks = []
    for name in service.models.names():
        with service.models.on_device(name) as (module,):
            forward = module.decoder if name == "vae" else module
            hooks.append(
                forward.register_forward_pre_hook(
                    lambda module, args, name=name: seen.setdefault(name, set()).add(torch.is_inference_mode_enabled())
                )
            )  # type: ignore[union-attr,arg-type,misc]
    try:
        service.predict(
            {**PICTURE, "prompt": f"{PICTURE['prompt']}, inference", "prompt_upsampling": True},
            lambda name, value: None,
        )
    finally:
        for hook in hooks:
            hook.remove()
    unused = {"hand_detector", "person_detector"}
    assert seen == dict.fromkeys(set(service.models.names()) - unused, {True})
