"""The service that draws gives the pictures that diffusers gives, and the same seed gives the same picture however
it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from PIL import Image
from support.flux_pictures import picture, pixels
from support.pictures import PROMPT

from backend.core.settings import ROOT
from backend.core.timeline import Timeline
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.prompt_cache import PromptCache, PromptEmbeddings
from modules.families.flux1.service import FluxService
from modules.pipeline.generate import GenerateStage

FOLDER = ROOT / "weights" / "embedded" / "flux"
STEPS = 4


@pytest.fixture(scope="module")
def flux(service: Service) -> FluxService:
    stage = service.pipeline.stages[0]
    assert isinstance(stage, GenerateStage)
    return stage.service


@pytest.fixture(scope="module")
def bare() -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(
        FOLDER, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.to(memory_format=torch.channels_last)  # as ours, so that convolutions add in the same order
    return pipeline


def denoise_request(**changes: object) -> DenoiseRequest:
    values: dict[str, object] = {
        "prompts": (PROMPT,),
        "seeds": (3,),
        "width": 256,
        "height": 256,
        "steps": STEPS,
        "guidance": 3.5,
    }
    return DenoiseRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_text_to_image_is_that_of_bare_diffusers(flux: FluxService, bare: FluxPipeline) -> None:
    ours = flux.generate(denoise_request(), Monitor(Timeline()))[0]
    theirs = bare(
        PROMPT,
        width=256,
        height=256,
        num_inference_steps=STEPS,
        guidance_scale=3.5,
        max_sequence_length=flux.profile.tokens,
        generator=torch.Generator("cpu").manual_seed(3),
    )
    assert np.array_equal(pixels(ours), pixels(theirs.images[0]))


@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_image_to_image_is_that_of_bare_diffusers(flux: FluxService, bare: FluxPipeline, strength: float) -> None:
    ours = flux.generate(denoise_request(steps=8, images=(picture(),), strength=strength), Monitor(Timeline()))[0]
    peer = FluxImg2ImgPipeline.from_pipe(bare)
    theirs = peer(
        PROMPT,
        image=flux.encode_images([picture()]),  # latents, because the peer would sample them with the generator
        strength=int(8 * strength) / 8,
        width=256,
        height=256,
        num_inference_steps=8,
        guidance_scale=3.5,
        max_sequence_length=flux.profile.tokens,
        generator=torch.Generator("cpu").manual_seed(3),
    )
    assert np.abs(pixels(ours) - pixels(theirs.images[0])).max() <= 1


def test_inpainting_is_that_of_bare_diffusers(flux: FluxService, bare: FluxPipeline) -> None:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (64, 64, 192, 160))
    ours = flux.generate(
        denoise_request(steps=6, images=(picture(),), masks=(mask,), strength=0.5), Monitor(Timeline())
    )[0]
    latents = flux.encode_images([picture()])
    theirs = FluxInpaintPipeline.from_pipe(bare)(
        PROMPT,
        image=latents,
        mask_image=mask,
        masked_image_latents=latents,
        strength=0.5,
        width=256,
        height=256,
        num_inference_steps=6,
        guidance_scale=3.5,
        max_sequence_length=flux.profile.tokens,
        generator=torch.Generator("cpu").manual_seed(3),
    )
    assert np.abs(pixels(ours) - pixels(theirs.images[0])).max() <= 1


def test_a_picture_of_a_batch_is_the_picture_drawn_alone(flux: FluxService) -> None:
    together = flux.generate(denoise_request(prompts=(PROMPT, PROMPT), seeds=(3, 4)), Monitor(Timeline()))
    alone = flux.generate(denoise_request(seeds=(4,)), Monitor(Timeline()))[0]
    assert np.abs(pixels(together[1]) - pixels(alone)).max() <= 1


def test_strength_0_gives_the_picture_back(flux: FluxService) -> None:
    assert np.array_equal(
        pixels(flux.generate(denoise_request(images=(picture(),), strength=0.0), Monitor(Timeline()))[0]),
        pixels(picture()),
    )


def test_a_repeated_prompt_runs_no_text_encoder(service: Service, flux: FluxService) -> None:
    flux.encode(["a man with a hat, yellow background"])
    borrowed = service.models.stats().hits
    flux.encode(["a man with a hat, yellow background"])
    assert service.models.stats().hits == borrowed


def test_the_prompt_cache_forgets_what_was_used_longest_ago() -> None:
    cache, embeddings = PromptCache(2), PromptEmbeddings(torch.zeros(1, 2, 3), torch.zeros(1, 4))
    for prompt in ("a", "b"):
        cache.put(prompt, embeddings)
    cache.get("a")
    cache.put("c", embeddings)
    assert cache.get("b") is None and cache.get("a") is not None and cache.get("c") is not None


def test_every_step_is_reported(flux: FluxService) -> None:
    told: list[tuple[int, int]] = []
    flux.generate(denoise_request(), Monitor(Timeline(), lambda done, total: told.append((done, total))))
    assert told == [(step, STEPS) for step in range(1, STEPS + 1)]


def test_after_a_cancel_in_the_step_loop_the_next_picture_is_the_same_as_ever(flux: FluxService) -> None:
    class Canceled(BaseException):
        pass

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Canceled

    before = flux.generate(denoise_request(), Monitor(Timeline()))[0]
    with pytest.raises(Canceled):
        flux.generate(denoise_request(seeds=(9,)), Monitor(Timeline(), cancel))
    assert np.array_equal(pixels(before), pixels(flux.generate(denoise_request(), Monitor(Timeline()))[0]))
