"""The steps of ``python -m bench.gpu``: one picture by stock diffusers and by us with every technique."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers import FluxPipeline

from bench.gpu.ground import Ground, Row
from bench.gpu.timing import attempted, dtype_of, median_seconds, seconds, served
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.extension_optimizer import optional_features
from modules.families.flux1.service import FluxService
from modules.families.registry import known_models

PROMPT = "two people: a man with a beard, a woman with red hair"
RATE = 790e12
"""Floating point operations a second that an H100 sustains in bfloat16, at best."""
ALONE: Mapping[str, Any] = MappingProxyType({"disabled_extensions": tuple(optional_features())})
"""Settings for what only needs the models of the family."""
TOKENS, FIRST_STEPS = 512, 4
"""Of a prompt; and the steps that a service is warmed up with."""


def flux_of(service: Service) -> FluxService:
    return next(stage.service for stage in service.pipeline.stages if stage.name == "generate")  # type: ignore[attr-defined, no-any-return]


def drawing_of(ground: Ground, **changes: Any) -> DenoiseRequest:
    return replace(DenoiseRequest((PROMPT,), (0,), ground.side, ground.side, ground.steps, 3.5), **changes)


def floor_seconds(ground: Ground) -> float | None:
    """What the denoising takes at least: the operations of FLUX.1-dev over the rate of an H100."""
    if not ground.on_gpu:
        return None
    work = known_models()["flux-dev"].costs["denoise"].work(TOKENS + (ground.side // 16) ** 2)
    return work * ground.steps / RATE


def our_steps(ground: Ground, name: str, settings: Mapping[str, Any], modes: Sequence[str]) -> Iterator[Row]:
    """The denoising of one picture by our service, and the decoding where that differs. The first few steps, which also
    compile, do not count."""
    with served(ground, **ALONE, **settings) as service, torch.inference_mode(), service.runtime.activate():
        flux = flux_of(service)
        embeddings = flux.encode([PROMPT])
        for mode in modes:
            drawing = drawing_of(ground, go_fast="go_fast" in mode)

            def denoise(drawing: DenoiseRequest = drawing) -> object:
                return flux.denoise(drawing, embeddings, PictureLatents(), None)

            first = seconds(ground, partial(denoise, replace(drawing, steps=min(FIRST_STEPS, ground.steps))))
            taken = median_seconds(ground, denoise)
            note = f"the first {FIRST_STEPS} steps {first:.1f} s{peak_note(ground)}"
            yield Row("steps", f"ours, {name}{mode}", taken, "s", floor_seconds(ground), note)
        if settings["weight_precision"] != "bf16" or settings["compile"] == "on":
            return  # the decoder is as it was: only "whole" compiles it
        side = ground.side // service.profile.latent_factor
        packed = flux.pack(torch.zeros(1, 16, side, side)).to(ground.device, flux.dtype)
        decode = partial(flux.decode, packed, ground.side, ground.side)
        first = seconds(ground, decode)
        yield Row("decode", name, median_seconds(ground, decode), "s", None, f"the first time {first:.1f} s")


def peak_note(ground: Ground) -> str:
    return f"; peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if ground.on_gpu else ""


def stock_steps(ground: Ground) -> Iterator[Row]:
    """The same by diffusers' pipeline, as users write it."""
    dtype = dtype_of(ground)
    pipeline: Any = FluxPipeline.from_pretrained(
        ground.folder,
        torch_dtype=dtype,
        text_encoder=None,
        text_encoder_2=None,
        vae=None,
        local_files_only=True,
        trust_remote_code=False,
    )
    pipeline.to(ground.device)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.transformer.config
    embeddings = PromptEmbeddings(
        torch.zeros(1, TOKENS if ground.on_gpu else 40, config.joint_attention_dim, dtype=dtype, device=ground.device),
        torch.zeros(1, config.pooled_projection_dim, dtype=dtype, device=ground.device),
    )
    pipeline.vae_scale_factor = 8 if ground.on_gpu else 16

    def run(steps: int = ground.steps) -> None:
        pipeline(
            prompt_embeds=embeddings.sequence,
            pooled_prompt_embeds=embeddings.pooled,
            width=ground.side,
            height=ground.side,
            num_inference_steps=steps,
            output_type="latent",
        )

    run(1)
    yield Row("steps", "stock diffusers", median_seconds(ground, run), "s", floor_seconds(ground), peak_note(ground))


PLAIN, FAST = "", ", go_fast"
TECHNIQUES: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]] = MappingProxyType(
    {
        "bf16, eager": ({"weight_precision": "bf16", "compile": "off"}, (PLAIN,)),
        "bf16, compiled blocks": ({"weight_precision": "bf16", "compile": "on"}, (PLAIN,)),
        "fp8, compiled blocks": ({"weight_precision": "fp8", "compile": "on"}, (PLAIN, FAST)),
    }
)
"""The settings of each, and the requests that it is measured with. How many steps ``go_fast`` skips says nothing on
random weights."""
GRAPHS: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]] = MappingProxyType(
    {
        "fp8, one graph": ({"weight_precision": "fp8", "compile": "whole"}, (PLAIN,)),
        "bf16, one graph": ({"weight_precision": "bf16", "compile": "whole"}, (PLAIN,)),
    }
)
"""The same for what takes minutes to compile."""


def steps(ground: Ground) -> Iterator[Row]:
    """Stock diffusers, and every technique by our service, in one run. On a CPU only those that compile nothing."""
    yield from attempted(ground, "steps", "stock diffusers", partial(stock_steps, ground))
    yield from with_techniques(ground, TECHNIQUES)


def graphs(ground: Ground) -> Iterator[Row]:
    """The whole transformer compiled."""
    yield from with_techniques(ground, GRAPHS)


def with_techniques(ground: Ground, techniques: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> Iterator[Row]:
    for name, (settings, modes) in techniques.items():
        if ground.on_gpu or settings["compile"] == "off":
            yield from attempted(ground, "steps", name, partial(our_steps, ground, name, settings, modes))
